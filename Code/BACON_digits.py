"""Distils scikit-learn's digits; nothing is downloaded. The defaults fit a first run on two CPU cores.

    python3 -u BACON_digits.py --ipc 10
"""

from utils.experiment import main

DEFAULTS = {
    "dataset": "digits",
    "model": "ConvNetW32",
    "ipc": 1,
    "Iteration": 100,
    "num_exp": 1,
    "num_eval": 5,
    "eval_interval": 50,
    "epoch_eval_train": 80,
    "lr_img": 1.0,
    "lr_net": 0.03,
    "batch_real": 64,
    "aug": True,
    "embed_last": 1000,
    "syn_ce": True,
    "ce_weight": 0.005,  # its factor is the accuracy in percent; the published 0.5 overshoots within 100 iterations
    "net_decay": True,
    "train_net_num": 1,
    "model_train_steps": 3,
    "trained_bs": 64,
}

if __name__ == "__main__":
    main(__doc__, **DEFAULTS)
