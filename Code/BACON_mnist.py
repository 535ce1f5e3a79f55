"""Distils MNIST. The published command for 10 images per class, which ../Command.txt has in full:

    python3 -u BACON_mnist.py --published --ipc 10
"""

from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, dataset="MNIST")
