"""Distils Tiny-ImageNet. The published command for 10 images per class (all commands: ../Command.txt):

    python3 -u BACON_tiny.py --dataset TinyImageNet --model ConvNet --ipc 10 \\
        --dsa_strategy color_crop_cutout_flip_scale_rotate --init real --lr_img 0.2 --num_exp 5 --num_eval 5 \\
        --eval_interval 500 --net_decay --embed_last 1000 --syn_ce --ce_weight 0.5 --train_net_num 1 --aug \\
        --model_train_steps 50
"""

from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, dataset="TinyImageNet")
