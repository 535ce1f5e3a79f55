"""What a set's accuracy means: that of real images beside it, and the measures of DD-Ranking.

Source: DD-Ranking (Li et al., arXiv 2505.13300). `add` below is evaluate.py's Evaluator.add: it trains and tests
networks on sets that it is given, and returns their mean accuracy in 0..1.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import augment, distill, pretrained, storage
from .data import RealData
from .data.class_order import listed
from .draws import Draws
from .options import replaced
from .system import memory
from .system.errors import UserError, say

Label = Callable[[Tensor, Tensor], Tensor]  # images (N, C, H, W) and labels (N,) -> the labels to train on
LEFT_OUT = ("improvement over random, label-robust score and augmentation-robust score are left out: they compare "
            "images with labels of one kind; name networks that give random images soft labels with --pool")


def counts_of(labels: Tensor, data: RealData) -> list[int]:
    """How many real images of each class stand beside a set: as many as it stores, or all that there are."""
    stored = labels.bincount(minlength=data.num_classes).tolist()
    return [min(count, size) for count, size in zip(stored, data.class_sizes, strict=True)]


def say_few(path: Path, sets: list[tuple[Tensor, Tensor]], data: RealData) -> None:
    """A line with the classes of which a set stores more images than there are real ones, if there are some."""
    lacks = [f"{data.class_names[k]} ({real} of {stored})" for _, labels in sets
             for k, (real, stored) in enumerate(zip(counts_of(labels, data),
                                                    labels.bincount(minlength=data.num_classes).tolist(), strict=True))
             if real < stored]
    if lacks:
        say(f"--fair: {path} stores more images of some classes than {data.name} has for training; random images are "
            f"all that there are of {listed(list(dict.fromkeys(lacks)), 5)}")


def random_images(data: RealData, draws: Draws, counts: list[int], aug: bool = False) -> tuple[Tensor, Tensor]:
    """So many real images of each class, ready to train on, or 2x2 formations of them, with their labels."""
    positions = draws.initial_by_class(data.class_sizes, augment.tiles(aug), counts)
    images = distill.as_stored(data, positions, aug)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return storage.expand(images, labels, augment.formation(aug))


def pool_labels(options, data: RealData, parts: float) -> Label:
    """Soft labels (N, K) as a run gives them: `parts` of the mean prediction of --pool, the class for the rest."""
    wanted = replaced(options, model=pretrained.model_of(options.pool), zca=data.whitening is not None,
                      pool_networks=None, pool_stages=None, ce_stages=None)
    pool = pretrained.Pretrained(data, Draws(options.seed), wanted)
    networks = pool.labelling()
    steps = ", ".join(map(str, sorted({stage.step for stage in networks})))
    say(f"--pool {options.pool}: labels of random images are {parts:g} parts mean prediction of {len(networks)} "
        f"networks ({wanted.model}, after {steps} steps), the rest their class")
    max_batch = options.max_batch or memory.batch_that_fits(networks[0].network, data.normalise(data.images[:1]))
    return partial(distill.soft_labels, pool, parts, max_batch, data.num_classes)


def parts_of(path: Path, saved: dict) -> float:
    """--soft_labels of the run that made a set, or all for sets of others. UserError for what no run has."""
    parts = saved["meta"].get("options", {}).get("soft_labels") or 1.0
    if type(parts) not in (int, float) or not 0 < parts <= 1:
        raise UserError(f"{path}: its --soft_labels {parts!r} is no part above 0 and at most 1; make it again")
    return float(parts)


def read(add: Callable[..., float], options, data: RealData, model: str, saved: dict, formation: int,
         accuracy: float, label: Label | None = None) -> None:
    """Evaluates real images beside a set of this accuracy, and prints DD-Ranking's measures.

    saved: its `data` are the sets as stored. Random images are drawn anew for each network, as many of each class as
    the set of that experiment stores. label: gives them soft labels where the set has such; without it, what compares
    a set with random images of another kind of labels is left out, and said.
    """
    soft, plain, ready = "soft_labels" in saved, {"dsa_strategy": "none"}, storage.ready(saved, formation)
    sizes = [counts_of(labels, data) for _, labels in saved["data"]]

    def real(k: int, aug: bool = False) -> tuple[Tensor, Tensor]:
        images, labels = random_images(data, Draws(options.seed, k), sizes[k // options.num_eval], aug)
        return images, label(images, labels) if label else labels

    kind = (" with soft labels" if label else " with hard labels") if soft else ""
    many, count = per_class(sizes), options.num_eval * len(ready)
    random = f"random real images, {many}{kind}"
    gain = accuracy - add(random, model, count, real, num_eval=1)
    gain_plain = (add("the set", model, len(ready), ready.__getitem__, **plain)
                  - add(random, model, count, real, num_eval=1, **plain))
    if soft:
        hard = storage.ready({name: part for name, part in saved.items() if name != "soft_labels"}, formation)
        accuracy = add("the set with hard labels", model, len(hard), hard.__getitem__)
    if formation == 2:
        add(f"random 2x2 formations, {many}{kind}", model, count, partial(real, aug=True), num_eval=1)
    passes = {"epoch_eval_train": options.epoch_whole_train}
    whole, _ = (add(f"whole training set, {options.epoch_whole_train + 1} passes", model, 1,
                    lambda k: (data.images, data.labels), **passes, **changes) for changes in ({}, plain))
    for line in measures(whole - accuracy, None if soft and not label else (gain, gain_plain)):
        say(f"{model}: {line}")


def per_class(sizes: list[list[int]]) -> str:
    """How many images the classes have, in words."""
    some = [size for counts in sizes for size in counts if size]
    return f"{min(some)} per class" if min(some) == max(some) else f"{min(some)} to {max(some)} per class"


def measures(recovery: float, gains: tuple[float, float] | None) -> list[str]:
    """DD-Ranking's measures by name, each with its direction and formula, in percent; from differences in 0..1.

    gains: over random images with augmentation and without; None where these are of another kind.
    """
    lines = [("hard-label recovery (HLR)", 100 * recovery, "lower is better: whole training set - the set, both with "
              "hard labels")]
    if gains:
        gain, plain = gains
        lines += [("improvement over random (IOR)", 100 * gain, "higher is better: the set - random real images"),
                  ("IOR without augmentation", 100 * plain, "higher is better: the same, both without DSA"),
                  ("label-robust score (LRS)", score((gain - recovery) / 2), "higher is better: 100 (exp(a) - 1/e) / "
                   "(e - 1/e), a = (IOR - HLR) / 2 in parts of 1"),
                  ("augmentation-robust score (ARS)", score((gain + plain) / 2), "higher is better: the same of "
                   "a = (IOR + IOR without augmentation) / 2")]
    said = [f"{name} {value:.2f} ({about})" for name, value, about in lines]
    return said if gains else [*said, LEFT_OUT]


def score(value: float) -> float:
    """DD-Ranking's scale: -1 is 0, 1 is 100."""
    return 100 * (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
