"""Distils your own images, grey or colour, of any size, from <data_path>/{train,test}/<class>/.

    python3 -u BACON_folder.py --data_path PATH --im_size 64 --model ConvNetD4 --ipc 10 --Iteration 2000 \\
        --lr_img 0.2 --num_exp 1 --num_eval 5 --eval_interval 500 --net_decay --embed_last 1000 --syn_ce \\
        --ce_weight 0.5 --train_net_num 1 --aug

Images are scaled to fill --im_size (32) squared and cut at the centre. Where there is no test folder, a fifth of
the training images, stratified by class and drawn by --seed, is kept for testing. PATH may also be an .npz file, as
MedMNIST or Keras publish their data, or Parquet files, as Hugging Face stores image data sets.
"""

from utils import defaults
from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, **defaults.of("folder"))
