"""Distils scikit-learn's 8x8 digits; nothing is downloaded.

    python3 -u BACON_digits.py --ipc 10
"""

from utils.experiment import main

DEFAULTS = {
    "dataset": "digits",
    "model": "ConvNetD2",
    "Iteration": 150,
    "num_exp": 1,
}

if __name__ == "__main__":
    main(__doc__, **DEFAULTS)
