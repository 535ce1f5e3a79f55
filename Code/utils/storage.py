"""Synthetic sets: their .pt files, those of others, and their pictures."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from . import augment
from .data.normalisation import Whitening, per_channel, to_pixels
from .system import files, unpickle
from .system.errors import UserError, reason


def save(path: Path, record: dict) -> None:
    """Writes a set: {"data": [[images, labels], ...], "accs_all_exps": {...}, "meta": {...}}."""
    content = io.BytesIO()  # because torch.save on a file hides why the file could not be written
    torch.save(record, content)
    files.write_whole(path, lambda file: file.write(content.getbuffer()))


def load(path: str | Path) -> dict:
    """Reads the whole record of a saved set: `data`, `accs_all_exps` and `meta`, tensors on the CPU.

    Reads our sets, .pt files in the form of DM and IDM, and published .pkl checkpoints; what those lack
    (`accs_all_exps`, `meta`) is empty. Nothing in the file is executed. Raises UserError for a file that
    is missing, damaged or no set.
    """
    path = Path(path)
    try:
        return _checked(_read(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a saved set") from None
    except Exception as error:  # torch and pickle raise many kinds
        why = reason(error)
        if why.startswith("Weights only"):
            why = "it is damaged, or holds more than tensors and plain values, which could run code"
        elif why.startswith(("EOFError", "PytorchStreamReader", "[Errno 22]")):  # of torch.load
            why = "it is damaged or incomplete"
        raise UserError(f"{path}: not a readable synthetic set ({why}); name a set that a run saved, or make "
                        "it again") from None


def _read(path: Path):
    with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(unpickle.NUMPY_SCALARS):
        warnings.simplefilter("ignore")  # torch warns of what it is about to refuse
        if path.suffix.lower() == ".pkl":
            return {"data": [unpickle.load(file)]}
        return torch.load(file, map_location="cpu", weights_only=True)


def _checked(record) -> dict:
    """A record with all its keys, or ValueError where it is no synthetic set."""
    if not isinstance(record, dict) or not isinstance(record.get("data"), list) or not record["data"]:
        raise ValueError("it has no `data`")
    meta, pairs = dict(record.get("meta", {})), []
    for pair in record["data"]:
        images, labels = (torch.as_tensor(part).detach() for part in pair)
        if "packed" in meta:
            images = _unpacked(images, **meta["packed"])
        if not images.is_floating_point():
            raise ValueError(f"its images are {images.dtype}, not normalised floats")
        if images.dim() != 4 or labels.shape != images.shape[:1] or labels.is_floating_point() or not len(labels):
            raise ValueError(f"images {tuple(images.shape)} with labels {tuple(labels.shape)} of {labels.dtype}")
        if not images.isfinite().all():
            raise ValueError("its images have values that are not finite")
        pairs.append([images.float(), labels.long()])
    meta.pop("packed", None)
    if meta.get("formation", 1) not in (1, 2) or not isinstance(meta.get("options", {}), dict):
        raise ValueError("its `meta` is damaged")
    image = pairs[0][0][:1]
    if "mean" in meta and pixels(image, meta).shape != image.shape:
        raise ValueError("its mean and std are not of its channels")
    if meta.get("zca") and not whitening(meta)(image).isfinite().all():
        raise ValueError("its whitening has values that are not finite")
    accuracies = {name: [float(value) for value in values] for name, values in record.get("accs_all_exps", {}).items()}
    checked = {"data": pairs, "accs_all_exps": accuracies, "meta": meta}
    if "soft_labels" in record:
        checked["soft_labels"] = record["soft_labels"]
        for soft, (_, labels) in zip(record["soft_labels"], pairs, strict=True):
            right = (len(labels) * meta.get("formation", 1) ** 2, len(meta["class_names"]))
            if soft.shape != right or not soft.is_floating_point() or not soft.isfinite().all():
                raise ValueError(f"soft labels {tuple(soft.shape)} of {soft.dtype}, not {right} of floats")
    return checked


def packed(record: dict) -> dict:
    """The record with its images in 8 bits, a quarter of the size; `load` gives them back as float32.

    Each channel is spread from its lowest to its highest value over 0..255, so nothing is clipped, and a
    value moves by at most half a step. `meta["packed"]` has low and step of each channel.
    """
    every = torch.cat([images for images, _ in record["data"]])
    low, high = (extreme(dim=(0, 2, 3), keepdim=True) for extreme in (every.amin, every.amax))
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    pairs = [[((images - low) / step).round().to(torch.uint8), labels] for images, labels in record["data"]]
    scale = {"low": low.flatten().tolist(), "step": step.flatten().tolist()}
    return record | {"data": pairs, "meta": record["meta"] | {"packed": scale}}


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


def ready(record: dict, formation: int = 1) -> list[tuple[Tensor, Tensor]]:
    """What networks are trained on, for each experiment of a loaded record: as `load_synthetic` returns it."""
    sets = [expand(*pair, record["meta"].get("formation", formation)) for pair in record["data"]]
    soft = record.get("soft_labels", [labels for _, labels in sets])
    return [(images, labels) for (images, _), labels in zip(sets, soft, strict=True)]


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
