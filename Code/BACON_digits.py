"""Distils scikit-learn's 8x8 digits; nothing is downloaded.

    python3 -u BACON_digits.py --ipc 10
"""

from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, dataset="digits", model="ConvNetW32", lr_img=0.2, num_exp=1, num_eval=5, net_decay=True,
         embed_last=1000, syn_ce=True, ce_weight=0.5, train_net_num=1, aug=True, Iteration=200)
