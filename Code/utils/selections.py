"""Real images as a set: which ones of a class stand for it best, by the features of a trained network.

Each choice takes the features (n, D) of a class's images, how many to choose, and a seed; it returns that many
distinct positions. Features are the flattened embedding, as DM's paper compares with (arXiv 2110.04181).
"""

import numpy as np
import torch
from torch import Tensor

from .system.errors import needed_for


def herding(features: Tensor, count: int, seed: int) -> np.ndarray:
    """Greedily keeps the mean of the chosen nearest to the mean of all. Source: Welling, ICML 2009."""
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    square = features.square().sum(dim=1)
    chosen = []
    for turn in range(count):
        distance = square - 2 * features @ ((turn + 1) * mean - total)
        distance[chosen] = torch.inf
        chosen.append(distance.argmin().item())
        total += features[chosen[-1]]
    return np.array(chosen)


def k_center(features: Tensor, count: int, seed: int) -> np.ndarray:
    """From the image nearest to the mean on, always the one farthest from those chosen.

    Source: greedy k-center (Sener and Savarese, arXiv 1708.00489, algorithm 1).
    """
    chosen = [(features - features.mean(dim=0)).norm(dim=1).argmin().item()]
    distance = (features - features[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        distance[chosen] = -1
        chosen.append(distance.argmax().item())
        distance = torch.minimum(distance, (features - features[chosen[-1]]).norm(dim=1))
    return np.array(chosen)


def k_means(features: Tensor, count: int, seed: int) -> np.ndarray:
    """The image nearest to the centre of each of `count` clusters, among its own members.

    Where images have the same features there may be fewer clusters than that; the first images fill up.
    """
    with needed_for("--method kmeans", "scikit-learn"):
        from sklearn.cluster import KMeans  # here, because it takes a second

    points = features.cpu().numpy()
    clusters = KMeans(count, n_init=1, random_state=seed).fit(points)
    filled = np.unique(clusters.labels_)
    others = clusters.labels_[:, None] != filled
    nearest = np.where(others, np.inf, clusters.transform(points)[:, filled]).argmin(axis=0)
    return np.concatenate([nearest, np.setdiff1d(np.arange(len(points)), nearest)[:count - len(filled)]])
