"""Distils CIFAR-10. The published command for 10 images per class, which ../Command.txt has in full:

    python3 -u BACON_cifar10.py --published --ipc 10

As published, its defaults differ from the other scripts': one network per evaluation under --method BACON, and a
selection of real images for --ipc 1 without --aug.
"""

from utils import defaults
from utils.experiment import main

if __name__ == "__main__":
    main(__doc__, **defaults.of("CIFAR10"))
