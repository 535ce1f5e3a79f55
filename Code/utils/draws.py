"""Every random decision of a run, as a pure function of the seed and of where in the run it is made.

Nothing here has a state, so a resumed run needs no random state, and several processes that ask for the
same draw get the same answer. Elsewhere only libraries draw, from seeds that they are given.
"""

import zlib
from dataclasses import dataclass

import numpy as np


def generator(seed: int, *place: int | str) -> np.random.Generator:
    """The random generator of one place in a run, such as generator(0, "pool batch", iteration)."""
    words = [zlib.crc32(word.encode()) if isinstance(word, str) else word for word in place]
    return np.random.default_rng([seed, *words])


def choose(rng: np.random.Generator, population: int, count: int) -> np.ndarray:
    """`count` distinct integers below `population`, or all of them where there are fewer."""
    return rng.choice(population, min(count, population), replace=False)


@dataclass(frozen=True)
class Draws:
    """The draws of one experiment.

    `update` counts the image updates of an iteration, one per outer loop and matching network; `turn` counts the outer
    loops of the whole run, after each of which networks are trained (with one outer loop it is the iteration).
    """

    seed: int
    experiment: int = 0

    def _at(self, *place: int | str) -> np.random.Generator:
        return generator(self.seed, self.experiment, *place)

    def network_seed(self, *place: int | str) -> int:
        """Seed of a network's initial weights; the place says which network."""
        return int(self._at("network", *place).integers(2**31))

    def initial(self, class_sizes: list[int], sets: int, ipc: int) -> np.ndarray:
        """Real images the synthetic set starts from: (sets, K, ipc) positions within each class."""
        return np.array(self.initial_by_class(class_sizes, sets, [ipc] * len(class_sizes)))

    def initial_by_class(self, class_sizes: list[int], sets: int, counts: list[int]) -> list[list[np.ndarray]]:
        """The same with a count for each class: for each set and class, its positions (all of a smaller class)."""
        rng = self._at("initial images")
        return [[choose(rng, size, count) for size, count in zip(class_sizes, counts, strict=True)]
                for _ in range(sets)]

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise for --init noise."""
        return self._at("initial noise").standard_normal(shape)

    def matching_networks(self, iteration: int, candidates: int, count: int) -> np.ndarray:
        """Which pool networks the images are matched on."""
        return choose(self._at("matching networks", iteration, 0), candidates, count)  # 0: so that old seeds hold

    def judging_network(self, iteration: int, update: int, candidates: int) -> int:
        """Which network trained beforehand gives the cross-entropy."""
        return int(self._at("judging network", iteration, update).integers(candidates))

    def real_images(self, iteration: int, update: int, class_sizes: list[int], count: int) -> list[np.ndarray]:
        """For each class, positions of `count` distinct real images (all of them in a smaller class)."""
        rng = self._at("real images", iteration, update)
        return [choose(rng, size, count) for size in class_sizes]

    def siamese(self, iteration: int, update: int, strategy: list[str],
                classes: int) -> tuple[list[str], np.ndarray]:
        """One DSA operation and its parameters (K, 3) for each class; no operations for strategy []."""
        rng = self._at("siamese", iteration, update)
        operations = [strategy[k] for k in rng.integers(len(strategy), size=classes)] if strategy else []
        return operations, rng.random((classes, 3))

    def trained_networks(self, turn: int, pool_size: int, count: int) -> np.ndarray:
        """Which pool networks are trained."""
        return choose(self._at("trained networks", turn), pool_size, count)

    def training_batch(self, turn: int, network: int, step: int, images: int, count: int) -> np.ndarray:
        """Positions of one batch of distinct real images for the `network`-th of the networks that are trained."""
        return choose(self._at("training batch", turn, network, step), images, count)

    def evaluation(self, *place: int | str) -> np.random.Generator:
        """The generator of one evaluation training: order of the images, DSA operations and parameters."""
        return self._at("evaluation", *place)
