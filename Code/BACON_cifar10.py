"""Distils CIFAR-10. The published command for 10 images per class (all commands: ../Command.txt):

    python3 -u BACON_cifar10.py --dataset CIFAR10 --model ConvNet --ipc 10 \\
        --dsa_strategy color_crop_cutout_flip_scale_rotate --init real --lr_img 0.2 --num_exp 5 --num_eval 5 \\
        --eval_interval 100 --net_decay --embed_last 1000 --syn_ce --ce_weight 0.5 --train_net_num 1 --aug

As published, its defaults differ from the other scripts': one network per evaluation under --method BACON, and a
selection of real images for --ipc 1 without --aug.
"""

from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, by_method={"BACON": {"num_eval": 1}}, dataset="CIFAR10", ipc1_real=2560)
