"""Test accuracies in % for ConvNet, by data set and images per class, as BACON's table has them for all three methods.

Source: Zhou et al., arXiv 2406.01112, and the README of its published code.
"""

PAPER = {
    "BACON": {
        "MNIST": {1: 94.15, 10: 97.3, 50: 98.01},
        "FashionMNIST": {1: 78.48, 10: 84.23, 50: 85.52},
        "SVHN": {1: 69.44, 10: 84.64, 50: 89.1},
        "CIFAR10": {1: 45.62, 10: 62.06, 50: 70.06},
        "CIFAR100": {1: 23.68, 10: 46.15, 50: 52.29},
        "TinyImageNet": {1: 10.2, 10: 25.0},
    },
    "IDM": {
        "MNIST": {1: 93.82, 10: 96.26, 50: 97.01},
        "FashionMNIST": {1: 78.23, 10: 82.53, 50: 84.03},
        "SVHN": {1: 69.45, 10: 82.95, 50: 87.5},
        "CIFAR10": {1: 45.6, 10: 58.6, 50: 67.5},
        "CIFAR100": {1: 20.1, 10: 45.1, 50: 50.0},
        "TinyImageNet": {1: 10.1, 10: 21.9},
    },
    "DM": {
        "MNIST": {1: 89.2, 10: 97.3, 50: 94.8},
        "CIFAR10": {1: 26.0, 10: 48.9, 50: 63.0},
        "CIFAR100": {1: 11.4, 10: 29.7, 50: 43.6},
        "TinyImageNet": {1: 3.9, 10: 12.9},
    },
}
ITERATIONS, EPOCHS, WIDTH = 20000, 1000, 128  # of distillation, of an evaluated network (less 1), of ConvNet


def accuracy(method: str, dataset: str, ipc: int) -> float | None:
    """The paper's number, or None where it has none."""
    return PAPER.get(method, {}).get(dataset, {}).get(ipc)
