"""Synthetic sets: their .pt files, those of others, and their pictures."""

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from . import augment, foreign_sets
from .data import arrays
from .data.normalisation import Whitening, per_channel, to_pixels
from .system import files, unpickle
from .system.errors import UserError, memory_for, reason

# What the meta of our sets holds, where it does.
META_LISTS = {"class_names": str, "iteration": int}
META = {"method": str, "dataset": str, "model": str, "chosen": str, "ipc": int, "seed": int, "options": dict,
        "version": dict, **dict.fromkeys(META_LISTS, list)}


def save(path: Path, saved: dict) -> None:
    """Writes a set: {"data": [[images, labels], ...], "accs_all_exps": {...}, "meta": {...}}."""
    content = io.BytesIO()  # because torch.save on a file hides why the file could not be written
    torch.save(saved, content)
    files.write_whole(path, lambda file: file.write(content.getbuffer()))


def load(path: str | Path, labels: str | Path | None = None, raw: bool = False) -> dict:
    """Reads a whole saved set: `data`, `accs_all_exps` and `meta`, tensors on the CPU.

    Reads our sets and those of other projects (foreign_sets.FORMS). What those lack (`accs_all_exps`, `meta`) is empty.
    `kinds` and `left_out` say what their parts were taken for and what was not taken. `widths` has how many columns
    their labels have; soft labels are probabilities under `soft_labels`.
    labels: the file of a set's labels, where they are in another. raw: images of others may be pixels, too, as
    they are in the file. Nothing in the file is executed. Raises UserError for a file that is missing, damaged
    or no set.
    """
    path = Path(path)
    try:
        with memory_for(path):
            return validated(_read_parts(path, labels), raw)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; name a saved set") from None
    except Exception as error:  # torch and pickle raise many kinds
        why, advice = reason(error), f"name one of these forms: {foreign_sets.FORMS}"
        if why.startswith("Weights only"):
            why = "it is damaged, or holds more than tensors and plain values, which could run code"
        elif isinstance(error, KeyError):  # with a byte that is none of a pickle
            why = "it is damaged or of another form"
        elif why.startswith(("EOFError", "PytorchStreamReader", "[Errno 22]", "File is not a zip")):  # of torch.load
            why, advice = "it is damaged or incomplete", "name a set that a run saved, or make it again"
        raise UserError(f"{path}: not a readable synthetic set ({why}); {advice}") from None


def _read_parts(path: Path, labels: str | Path | None) -> dict:
    """A saved set, from its file, or from those of its images, labels and learning rate."""
    found = foreign_sets.parts(path) if path.is_dir() else {"images": path}
    if labels:
        found["labels"] = Path(labels)
    content = {kind: _read(part) for kind, part in found.items()}
    saved = foreign_sets.as_saved(content["images"], content.get("labels"))
    if "lr" in content:
        saved["meta"] = {"options": {"lr_net": foreign_sets.learning_rate(content["lr"])}}
    return saved


def _read(path: Path):
    if path.suffix.lower() in (".npz", ".npy"):
        return arrays.read(path)
    with files.open_regular(path) as file:
        if path.suffix.lower() in (".pkl", ".pickle"):
            return unpickle.load(file)
        return unpickle.load_torch(file)


def validated(saved: dict, raw: bool = False) -> dict:
    """A saved set with all its keys, or ValueError where it is no synthetic set."""
    meta = dict(saved.get("meta", {}))
    pairs = [foreign_sets.pair(*pair) for pair in saved.get("codes") or saved["data"]]
    if "packed" in meta:
        pairs = [pair._replace(images=_unpacked(pair.images, **meta["packed"])) for pair in pairs]
    for images, *_ in pairs:
        if not raw and not images.is_floating_point():
            raise ValueError(f"its images are {images.dtype}, not normalised floats")
    meta.pop("packed", None)
    if meta.get("formation", 1) not in (1, 2) or not all(
            type(meta[name]) is kind for name, kind in META.items() if name in meta) or not all(
            type(value) is kind for name, kind in META_LISTS.items() for value in meta.get(name, [])):
        raise ValueError("its `meta` is damaged")
    image = pairs[0].images[:1].float()
    if "mean" in meta and not (all(map(math.isfinite, [*meta["mean"], *meta["std"]])) and min(meta["std"]) > 0):
        raise ValueError("its mean and std are not finite and positive")
    if "mean" in meta and pixels(image, meta).shape != image.shape:
        raise ValueError("its mean and std are not of its channels")
    if meta.get("zca") and not whitening(meta)(image).isfinite().all():
        raise ValueError("its whitening has values that are not finite")
    accuracies = {name: [float(value) for value in values] for name, values in saved.get("accs_all_exps", {}).items()}
    checked = {"data": [[pair.images if raw else pair.images.float(), pair.labels] for pair in pairs],
               "accs_all_exps": accuracies, "meta": meta, "kinds": [pair.kind for pair in pairs],
               "widths": [pair.width for pair in pairs], "left_out": saved.get("left_out", [])}
    if "soft_labels" in saved:
        checked["soft_labels"] = saved["soft_labels"]
        for soft, (_, labels) in zip(saved["soft_labels"], checked["data"], strict=True):
            right = (len(labels) * meta.get("formation", 1) ** 2, len(meta["class_names"]))
            if soft.shape != right or not soft.is_floating_point() or not soft.isfinite().all():
                raise ValueError(f"soft labels {tuple(soft.shape)} of {soft.dtype}, not {right} of floats")
            if soft.min() < 0 or (soft.float().sum(dim=1) - 1).abs().max() > 0.01:
                raise ValueError("its soft labels are no probabilities")
    elif any(pair.soft is not None for pair in pairs):
        if not all(pair.soft is not None for pair in pairs):
            raise ValueError("some of its experiments have soft labels, and others have not")
        checked["soft_labels"] = [pair.soft for pair in pairs]
    return checked


def packed(saved: dict) -> dict:
    """The saved set with its images in 8 bits, a quarter of the size; `load` gives them back as float32.

    Each channel is spread from its lowest to its highest value over 0..255, so nothing is clipped, and a
    value moves by at most half a step. `meta["packed"]` has low and step of each channel. They stand under `codes`
    in place of `data`, so that other readers fail instead of training on them; older files have them under `data`.
    """
    every = torch.cat([images for images, _ in saved["data"]])
    low, high = (extreme(dim=(0, 2, 3), keepdim=True) for extreme in (every.amin, every.amax))
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    pairs = [[((images - low) / step).round().to(torch.uint8), labels] for images, labels in saved["data"]]
    scale = {"low": low.flatten().tolist(), "step": step.flatten().tolist()}
    rest = {name: value for name, value in saved.items() if name in ("accs_all_exps", "soft_labels")}
    return {"codes": pairs, **rest, "meta": saved["meta"] | {"packed": scale}}


def _unpacked(images: Tensor, low: list[float], step: list[float]) -> Tensor:
    return per_channel(low, images.float()) + images * per_channel(step, images.float())


def load_synthetic(path: str | Path, experiment: int = 0, formation: int = 1) -> tuple[Tensor, Tensor]:
    """Images and labels of a saved set, ready to train on: normalised, formation expanded.

    Returns float32 (N, C, H, W) and int64 (N,), or float32 (N, K) where the set has soft labels; cross_entropy
    takes both. `experiment` picks one of the sets in the file; `formation` (2 for 2x2) counts only for files that
    do not say theirs. `pixels(images, load(path)["meta"])` shows them.
    """
    sets = ready(load(path), formation)
    if not 0 <= experiment < len(sets):
        raise UserError(f"{path}: has experiments 0 to {len(sets) - 1}, not {experiment}")
    return sets[experiment]


def ready(saved: dict, formation: int = 1) -> list[tuple[Tensor, Tensor]]:
    """What networks are trained on, for each experiment of a saved set: as `load_synthetic` returns it."""
    sets = [expand(*pair, saved["meta"].get("formation", formation)) for pair in saved["data"]]
    soft = saved.get("soft_labels", [labels for _, labels in sets])
    return [(images, labels if len(labels) == len(images) else labels.repeat(formation**2, 1))  # of stored images
            for (images, _), labels in zip(sets, soft, strict=True)]


def pixels(images: Tensor, meta: dict) -> Tensor:
    """Normalised images (N, C, H, W) of a saved set -> pixels in 0..1, clipped."""
    return to_pixels(images, meta["mean"], meta["std"], whitening(meta))


def whitening(meta: dict) -> Whitening | None:
    """The ZCA whitening of a saved set, if it has one."""
    return Whitening(**meta["zca"]) if meta.get("zca") else None


def labelled(images: Tensor) -> tuple[Tensor, Tensor]:
    """A set (K, ipc, C, H, W) as it is stored: images (N, C, H, W), class by class, and labels (N,) on the CPU."""
    return images.flatten(0, 1), torch.arange(len(images)).repeat_interleave(images.shape[1])


def expand(images: Tensor, labels: Tensor, formation: int) -> tuple[Tensor, Tensor]:
    """Stored images and labels -> those to train on; formation 1 (none) or 2 (2x2 tiles), whose sides are even."""
    if formation == 1:
        return images, labels
    height, width = images.shape[2:]
    if height % 2 or width % 2:
        raise UserError(f"--aug: images of {height}x{width} are no 2x2 formations; leave --aug out")
    return augment.expand_formation(images), labels.repeat(4)
