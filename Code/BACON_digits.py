"""Distils scikit-learn's digits; nothing is downloaded. The defaults fit a first run on two CPU cores.

    python3 -u BACON_digits.py --ipc 10
"""

from utils import defaults
from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, **defaults.of("digits"))
