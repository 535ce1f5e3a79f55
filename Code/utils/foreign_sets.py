"""Synthetic sets of other projects: which forms they have, what their parts are taken for, and in which unit."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data import RealData
from .data.class_order import listed
from .system import files
from .system.errors import UserError

FORMS = ('{"data": [[images, labels], ...]}, [images, labels], {"images": ..., "labels": ...} in .pt or .pkl, arrays '
         "images and labels in .npz, a folder of images_best.pt and labels_best.pt (or images.pt and labels.pt), "
         "images in .pt or .npy with --labels, or a folder of <class>/<image>")
IMAGES = ("images", "image", "image_syn", "syn_images", "images_train", "train_images", "x_train", "x", "data")
LABELS = ("labels", "label", "label_syn", "syn_labels", "labels_train", "train_labels", "y_train", "y", "targets",
          "soft_labels")
UNITS = {"normalised": None, "0..1": (0, 1), "0..255": (0, 255), "-1..1": (-1, 1)}  # --pixels -> black and white
FAR = 10  # times the largest value of the real images: no synthetic image that was trained on has such values
MOST_COMPRESSED = 100  # times: what a compressed file may unfold to; images compress less


class Pair(NamedTuple):
    """One set: images (N, C, H, W), hard labels int64 (N,), soft ones as probabilities (N, K) or None, and a word."""

    images: Tensor
    labels: Tensor
    soft: Tensor | None
    kind: str


def parts(folder: Path) -> dict[str, Path]:
    """The files images, labels and, if there is one, lr of a set that is saved as a folder; empty if it is none."""
    def named(kind: str) -> list[Path]:
        found = sorted(path for path in folder.glob(f"{kind}*") if path.suffix.lower() in (".pt", ".pth", ".npy"))
        return [path for path in found if path.stem in (kind, f"{kind}_best")] or found

    found = {kind: named(kind) for kind in ("images", "labels", "lr")}
    if not found["images"]:
        return {}
    several = [path.name for paths in found.values() for path in paths if len(paths) > 1]
    if several or not found["labels"]:
        what = f"which of {listed(several)} belong together is not clear" if several else "it has no labels*.pt"
        raise UserError(f"{folder}: {what}; name the file of images, and that of labels with --labels")
    return {kind: paths[0] for kind, paths in found.items() if paths}


def arrays(path: Path) -> dict[str, np.ndarray] | np.ndarray:
    """The content of an .npz or .npy file; objects, which could run code, are refused by NumPy."""
    with files.open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as content:
            if sum(entry.file_size for entry in archive.infolist()) > max(MOST_COMPRESSED * size, 2**20):
                raise ValueError(f"its arrays are more than {MOST_COMPRESSED} times the size of the file")
            if archive.testzip():
                raise ValueError("it is damaged")
            return {name: content[name] for name in content.files}
    return np.load(path, allow_pickle=False)


def as_saved(content, labels=None) -> dict:
    """Whatever a file holds as {"data": [[images, labels], ...]}; ValueError where it is of no known form."""
    if labels is not None:
        found = _find(content, IMAGES) if isinstance(content, dict) else content
        return {"data": [[found, _find(labels, LABELS) if isinstance(labels, dict) else labels]]}
    if isinstance(content, dict):
        if isinstance(content.get("codes"), list) and content["codes"]:  # our own, in 8 bits
            return content
        data = content.get("data")
        if isinstance(data, list | tuple) and len(data):
            return content | {"data": _pairs(data)}
        images, found = _find(content, IMAGES), _find(content, LABELS)
        if images is None or found is None:
            keys = listed([str(key)[:40] for key in content], 5)
            raise ValueError(f"it has no `data`, nor images and labels, but {keys or 'nothing'}")
        return {"data": [[images, found]]}
    if isinstance(content, list | tuple) and len(content):
        return {"data": _pairs(content)}
    if isinstance(content, Tensor | np.ndarray):
        raise ValueError("it has images or labels alone; name its labels with --labels")
    raise ValueError(f"it is a {type(content).__name__}")


def _find(content: dict, names: tuple[str, ...]):
    """What stands under the first of these names, whatever its capitals."""
    lower = {str(key).lower(): value for key, value in content.items()}
    return next((lower[name] for name in names if name in lower), None)


def _pairs(data: list | tuple) -> list:
    """[images, labels] or [[images, labels], ...] -> the latter."""
    if len(data) >= 2 and isinstance(data[0], Tensor | np.ndarray) and np.ndim(data[0]) > 2 and np.ndim(data[1]) < 3:
        return [list(data[:2])]
    if not all(isinstance(pair, list | tuple) and len(pair) >= 2 for pair in data):
        raise ValueError("its `data` is no list of [images, labels]")
    return [list(pair[:2]) for pair in data]


def pair(images, labels) -> Pair:
    """One set from what a file holds; ValueError where images and labels do not go together."""
    images, labels = (torch.as_tensor(part).detach() for part in (images, labels))
    said = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images, said = images.permute(0, 3, 1, 2).contiguous(), f"{said}, channels last"
    shape = tuple(labels.shape)
    right = images.dim() == 4 and len(images) and labels.dim() in (1, 2) and len(labels) == len(images)
    if not right or images.is_complex() or labels.is_complex() or labels.shape[1:] == (0,):
        raise ValueError(f"images {tuple(images.shape)} with labels {shape} of {labels.dtype}")
    if labels.dim() == 2 and shape[1] == 1:
        labels = labels[:, 0]
    if not (images.isfinite().all() and labels.isfinite().all()):
        raise ValueError("its images or labels have values that are not finite")
    if labels.dim() == 2:
        hard, soft, kind = _soft(labels.float())
    else:
        hard, soft, kind = labels.long(), None, f"hard labels {shape} {str(labels.dtype).removeprefix('torch.')}"
        if not torch.equal(hard.to(labels.dtype), labels):
            raise ValueError(f"labels {shape} of {labels.dtype} are not whole numbers")
    return Pair(images, hard, soft, f"images {said}, {kind}")


def _soft(values: Tensor) -> tuple[Tensor, Tensor | None, str]:
    """Labels (N, K): one-hot as hard ones, probabilities as they are, and all else as logits."""
    hard, sums = values.argmax(1), values.sum(1)
    shape = tuple(values.shape)
    if torch.equal(torch.nn.functional.one_hot(hard, shape[1]).float(), values):
        return hard, None, f"one-hot labels {shape}"
    if values.min() >= 0 and (sums - 1).abs().max() < 1e-2:
        return hard, values / sums[:, None], f"soft labels {shape}, probabilities"
    return hard, values.softmax(1), f"soft labels {shape}, logits of which the softmax is taken"


def counts(labels: Tensor, names: list[str]) -> str:
    """How many images each class has, and which classes have none."""
    sizes = torch.bincount(labels, minlength=len(names)).tolist()
    some = [size for size in sizes if size]
    each = f"{some[0]}" if min(some) == max(some) else f"{min(some)} to {max(some)}"
    missing = [name for name, size in zip(names, sizes, strict=True) if not size]
    line = f"{each} images of each of {len(some)} of {len(names)} classes"
    return line + (f", none of {listed(missing, 5)}" if missing else "")


def describe(sets: list[tuple[Tensor, Tensor]], kinds: list[str], data: RealData, unit: str) -> str:
    """The line that says what a set was taken for; images as they are in the file."""
    images, labels = sets[0]
    sets_in_all = f"{len(sets)} sets, the first: " if len(sets) > 1 else ""
    return (f"taken for: {sets_in_all}{kinds[0]}, {counts(labels, data.class_names)}, {unit} values "
            f"{images.min().item():.4g} to {images.max().item():.4g}")


def normalised(images: Tensor, data: RealData, pixels: str | None, path: Path) -> Tensor:
    """Images in the unit that --pixels names as normalised float32; UserError where they cannot be in that unit.

    Without --pixels they are normalised images, unless their values cannot be such.
    """
    low, high = images.min().item(), images.max().item()
    found = f"{path}: values of {images.dtype} from {low:.4g} to {high:.4g}".replace("torch.", "")
    if pixels and (unit := UNITS[pixels]):
        black, white = unit
        share = 0.02 * (white - black)  # distilled pixels go a little beyond
        if low < black - share or high > white + share or (pixels == "0..255" and 0 < high <= 1):
            raise UserError(f"{found} are not --pixels {pixels}; name another of {', '.join(UNITS)}")
        values = ((images.float() - black) / (white - black)).to(data.device)
        return data.normalise_pixels(values).cpu()
    if pixels is None and (why := not_normalised(images, data)):
        raise UserError(f"{found}: {why}; say what they are with --pixels, one of {', '.join(UNITS)}")
    return images.float()


def not_normalised(images: Tensor, data: RealData) -> str:
    """Why these cannot be normalised images of the data set, or nothing."""
    real = data.normalise(data.images[:1000])
    low, high = images.min().item(), images.max().item()
    if not images.is_floating_point():
        return f"its images are {images.dtype}, not normalised floats"
    if low >= 0 < high and real.min() < 0:
        return f"normalised images of {data.name} have values below 0"
    if max(abs(low), abs(high)) > FAR * real.abs().max().item():
        return f"normalised images of {data.name} are within {real.min().item():.2f} to {real.max().item():.2f}"
    if -1 <= low < -0.98 and 0.98 < high <= 1:
        return "these may be pixels from -1 to 1"
    return ""
