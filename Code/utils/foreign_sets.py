"""Synthetic sets of other projects: which forms they have, what their parts are taken for, and in which unit."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import RealData
from .data.class_order import listed
from .data.image_files import FORMATS as PICTURES
from .system import logs
from .system.errors import UserError, reason, say

FORMS = ('{"data": [[images, labels], ...]}, [images, labels], {"images": ..., "labels": ...} in .pt or .pkl, arrays '
         "images and labels in .npz, a folder of images_best.pt and labels_best.pt (or images.pt and labels.pt), "
         "images in .pt or .npy with --labels, or a folder of <class>/<image>")
# The keys of a dict, or of an .npz file (arr_0: without names), in any capitals; the first that is there is taken.
IMAGES = ("images", "image", "image_syn", "syn_images", "images_train", "train_images", "x_train", "x", "data", "arr_0")
LABELS = ("soft_labels", "labels", "label", "label_syn", "syn_labels", "labels_train", "train_labels", "y_train", "y",
          "targets", "arr_1")
LR = ("lr", "syn_lr", "lr_net")
CLASSES = ("class_names", "classes")
UNITS = {"normalised": None, "0..1": (0, 1), "0..255": (0, 255), "-1..1": (-1, 1)}  # --pixels -> black and white
WHITENED = "images_zca"  # what MTT calls the files of such pictures
SAME_SCALE = 0.7, 2  # a set's standard deviation over that of real images; of another it is said
FLAT = 2  # logits of a trained network are further apart than that
FAR = 10  # times the largest value of the real images: no synthetic image that was trained on has such values


class Pair(NamedTuple):
    """One set: images (N, C, H, W), hard labels int64 (N,), soft ones as probabilities (N, K) or None, and a word.

    width: K, where the labels have columns, or 0.
    """

    images: Tensor
    labels: Tensor
    soft: Tensor | None
    kind: str
    width: int = 0


def parts(folder: Path) -> dict[str, Path]:
    """The files images, labels and, if there is one, lr of a set that is saved as a folder; empty if it is none."""
    def named(kind: str) -> list[Path]:
        found = sorted(path for path in folder.glob(f"{kind}*") if path.suffix.lower() in (".pt", ".pth", ".npy")
                       and not path.name.startswith(WHITENED))
        return [path for path in found if path.stem in (kind, f"{kind}_best")] or found

    found = {kind: named(kind) for kind in ("images", "labels", "lr")}
    if not found["images"]:
        return {}
    several = [path.name for paths in found.values() for path in paths if len(paths) > 1]
    apart = [path.name for paths in found.values() for path in paths] if len({
        path.stem.removeprefix(kind) for kind, paths in found.items() for path in paths}) > 1 else []
    if several or apart or not found["labels"]:
        what = (f"which of {listed(several or apart)} belong together is not clear" if several or apart else
                "it has no labels*.pt")
        raise UserError(f"{folder}: {what}; name the file of images, and that of labels with --labels")
    return {kind: paths[0] for kind, paths in found.items() if paths}


def is_whitened(folder: Path) -> bool:
    """Whether a folder has the pictures that MTT leaves beside a whitened set (--zca)."""
    return any(folder.glob(f"{WHITENED}*"))


def learning_rate(value) -> float:
    """A learning rate that a file holds; ValueError for what is none."""
    tensor = _tensor(value)
    lr = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else 0.0
    if not 0 < lr < float("inf"):
        raise ValueError(f"its lr is {value if tensor.numel() == 1 else tuple(tensor.shape)}, no learning rate")
    return float(f"{lr:.7g}")


def as_saved(content, labels=None) -> dict:
    """Whatever a file holds as {"data": [[images, labels], ...]}; ValueError where it is of no known form.

    `left_out` says what else there is in it.
    """
    if labels is not None:
        return {"data": [[_part(content, IMAGES), _part(labels, LABELS)]]}
    if isinstance(content, dict):
        if isinstance(content.get("codes"), list) and content["codes"]:  # our own, in 8 bits
            return content
        data = content.get("data")
        if isinstance(data, list | tuple) and len(data):
            return content | _pairs(data)
        return _from_dict(content)
    if isinstance(content, list | tuple) and len(content):
        return _pairs(content)
    if isinstance(content, Tensor | np.ndarray):
        raise ValueError("it has images or labels alone; name its labels with --labels")
    raise ValueError(f"it is a {type(content).__name__}")


def _from_dict(content: dict) -> dict:
    """{"images": ..., "labels": ...} under any of the known names, with a learning rate and names of classes."""
    images, labels, lr, names = (_key(content, names) for names in (IMAGES, LABELS, LR, CLASSES))
    if images is None or labels is None:
        keys = listed([str(key)[:40] for key in content], 5)
        raise ValueError(f"it has no `data`, nor images and labels, but {keys or 'nothing'}")
    meta = {} if lr is None else {"options": {"lr_net": learning_rate(content[lr])}}
    if isinstance(content.get(names), list | tuple) and all(isinstance(name, str) for name in content[names]):
        meta["class_names"] = list(content[names])
    else:
        names = None
    left = [str(key)[:40] for key in content if key not in (images, labels, lr, names)]
    return {"data": [[content[images], content[labels]]], "meta": meta, "left_out": left}


def _key(content: dict, names: tuple[str, ...]):
    """The key that is the first of these names, whatever its capitals; None where there is none."""
    lower = {str(key).lower(): key for key in content}
    return next((lower[name] for name in names if name in lower), None)


def _part(content, names: tuple[str, ...]):
    """What stands in a dict under the first of these names, or what is no dict."""
    return content.get(_key(content, names)) if isinstance(content, dict) else content


def _pairs(data: list | tuple) -> dict:
    """[images, labels], [[images, labels], ...] or [(image, label), ...] as a saved set."""
    if len(data) >= 2 and isinstance(data[0], Tensor | np.ndarray) and np.ndim(data[0]) > 2 and np.ndim(data[1]) < 3:
        data = [data]
    if not all(isinstance(pair, list | tuple) and len(pair) >= 2 for pair in data):
        raise ValueError("its `data` is no list of [images, labels]")
    if all(np.ndim(pair[1]) == 0 and np.ndim(pair[0]) == 3 for pair in data):  # a data set, image by image
        return {"data": [[[pair[0] for pair in data], [int(pair[1]) for pair in data]]]}
    more = [part for pair in data for part in pair[2:]]
    saved = {"data": [list(pair[:2]) for pair in data]}
    if len(more) == 1 and len(data) == 1 and not isinstance(more[0], str | dict) and _tensor(more[0]).numel() == 1:
        return saved | {"meta": {"options": {"lr_net": learning_rate(more[0])}}}
    return saved | ({"left_out": [f"{len(more)} parts behind images and labels"]} if more else {})


def pair(images, labels) -> Pair:
    """One set from what a file holds; ValueError where images and labels do not go together."""
    images, labels = _tensor(images), _tensor(labels)
    said = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.dim() == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images, said = images.permute(0, 3, 1, 2).contiguous(), f"{said}, channels last"
    shape = tuple(labels.shape)
    right = images.dim() == 4 and len(images) and labels.dim() in (1, 2) and len(labels) == len(images)
    if images.dtype in (torch.uint16, torch.uint32, torch.uint64):  # of which torch has no minimum
        raise ValueError(f"its images are {images.dtype}; save them as uint8 or float32")
    if not right or images.is_complex() or labels.is_complex() or labels.shape[1:] == (0,):
        raise ValueError(f"images {tuple(images.shape)} with labels {shape} of {labels.dtype}")
    if labels.dim() == 2 and shape[1] == 1:
        labels = labels[:, 0]
    if not (images.isfinite().all() and labels.isfinite().all()):
        raise ValueError("its images or labels have values that are not finite")
    if labels.dim() == 2:
        hard, soft, kind = _soft(labels.double())
    else:
        hard, soft, kind = labels.long(), None, f"hard labels {shape} {str(labels.dtype).removeprefix('torch.')}"
        if not torch.equal(hard.to(labels.dtype), labels):
            raise ValueError(f"labels {shape} of {labels.dtype} are not whole numbers")
    return Pair(images, hard, soft, f"images {said}, {kind}", labels.shape[1] if labels.dim() == 2 else 0)


def _tensor(part) -> Tensor:
    """Numbers of any kind, also as a list of tensors of one shape; ValueError for others."""
    try:
        if isinstance(part, list | tuple) and part and isinstance(part[0], Tensor | np.ndarray):
            part = torch.stack([torch.as_tensor(one) for one in part])
        tensor = torch.as_tensor(part).detach()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"its images or labels are no plain numbers: {reason(error)}") from None
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError("its images or labels are no plain tensors, but sparse or quantised")
    return tensor


def _soft(values: Tensor) -> tuple[Tensor, Tensor | None, str]:
    """Labels (N, K): one-hot as hard ones, probabilities as they are, and all else as logits."""
    hard, sums = values.argmax(1), values.sum(1)
    shape = tuple(values.shape)
    one_hot = torch.nn.functional.one_hot(hard, shape[1]).double()
    for low in (0, -1 / shape[1]):  # KIP's are centred
        if torch.allclose(one_hot + low, values, rtol=0, atol=1e-6):
            return hard, None, f"one-hot labels {shape}{', centred' * (low < 0)}"
    for unit, word in ((1, "probabilities"), (100, "percentages")):
        if values.min() >= 0 and (sums / unit - 1).abs().max() < 1e-2:
            return hard, (values / sums[:, None]).float(), f"soft labels {shape}, {word}"
    soft = values.softmax(1)
    if torch.allclose(soft, values.exp(), atol=1e-2):
        return hard, soft.float(), f"soft labels {shape}, logarithms of probabilities"
    if (values.amax(1) - values.amin(1)).max() < FLAT:
        raise ValueError(f"soft labels {shape} are no probabilities, for their sums are {sums.min():.4g} to "
                         f"{sums.max():.4g}, nor logits, for their softmax is flat, at most {soft.max():.2f}")
    return hard, soft.float(), f"soft labels {shape}, logits of which the softmax is taken"


def counts(labels: Tensor, names: list[str]) -> str:
    """How many images each class has, and which classes have none."""
    sizes = torch.bincount(labels, minlength=len(names)).tolist()
    some = [size for size in sizes if size]
    each = f"{some[0]}" if min(some) == max(some) else f"{min(some)} to {max(some)}"
    missing = [name for name, size in zip(names, sizes, strict=True) if not size]
    line = f"{each} images of each of {len(some)} of {len(names)} classes"
    return line + (f", none of {listed(missing, 5)}" if missing else "")


def describe(saved: dict, data: RealData, unit: str) -> str:
    """The line that says what a set was taken for; images as they are in the file."""
    (images, labels), several = saved["data"][0], len(saved["data"]) > 1
    sets_in_all = f"{len(saved['data'])} sets, the first: " if several else ""
    lr = saved["meta"].get("options", {}).get("lr_net")
    rate = f", learning rate {lr:g}" if lr else ""
    left_out = f"; left out: {listed(saved['left_out'], 5)}" if saved.get("left_out") else ""
    return (f"taken for: {sets_in_all}{saved['kinds'][0]}, {counts(labels, data.class_names)}, {unit} values "
            f"{images.min().item():.4g} to {images.max().item():.4g}{rate}{left_out}")


def normalised(images: Tensor, data: RealData, pixels: str | None, path: Path) -> Tensor:
    """Images in the unit that --pixels names as normalised float32; UserError where they cannot be in that unit.

    Without --pixels they are normalised images, unless their values cannot be such.
    """
    low, high = images.min().item(), images.max().item()
    found = f"{path}: values of {images.dtype} from {low:.4g} to {high:.4g}".replace("torch.", "")
    if pixels and (unit := UNITS[pixels]):
        black, white = unit
        share = 0.02 * (white - black)  # distilled pixels go a little beyond
        if low < black - share or high > white + share or (pixels == "0..255" and 0 < high <= 1) or (
                pixels == "-1..1" and low >= 0):
            raise UserError(f"{found} are not --pixels {pixels}; name another of {', '.join(UNITS)}")
        values = ((images.float() - black) / (white - black)).to(data.device)
        return data.normalise_pixels(values).cpu()
    if pixels is None and (why := not_normalised(images, data)):
        raise UserError(f"{found}: {why}; say what they are with --pixels, one of {', '.join(UNITS)}")
    if pixels is None:
        _say_scale(images.float(), data, path)
    return images.float()


def _say_scale(images: Tensor, data: RealData, path: Path) -> None:
    """A note where mean or standard deviation are far from those of normalised real images."""
    real = data.normalise(data.images[:1000]).float()
    ratio = images.std().item() / real.std().item()
    if not SAME_SCALE[0] <= ratio <= SAME_SCALE[1] or (images.mean() - real.mean()).abs() > real.std() / 2:
        say(f"note: {path}: mean {images.mean():.2f} and standard deviation {images.std():.2f}, where normalised "
            f"images of {data.name} have {real.mean():.2f} and {real.std():.2f}; if they are pixels, say so with "
            "--pixels, and if they are whitened, with --zca")


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
    if -1.04 < low < -0.9 and 0.9 < high < 1.04:
        return "these may be pixels from -1 to 1"
    dark, darkest = (np.quantile(part.flatten()[::max(1, part.numel() // 100_000)].float().cpu(), 0.01)
                     for part in (images, real))
    if darkest < 0 and dark > darkest / 4:
        return (f"all but a hundredth of them are above {dark:.2g}, those of normalised images of {data.name} above "
                f"{darkest:.2g}")
    return ""


def say_what_changes(path: Path, contents: Iterable[bytes], shape: tuple[int, int, int]) -> None:
    """A line with how many image files are brought to another size, or lose their colours, to be images of `shape`."""
    sizes, coloured = Counter(), 0
    for content in contents:
        image = Image.open(io.BytesIO(content), formats=PICTURES)
        sizes[image.size] += image.size != (shape[2], shape[1])
        if shape[0] == 1 and image.mode not in ("1", "L", "LA", "I", "I;16", "F"):
            with logs.without_lines_of_libraries():  # libtiff's
                red, green, blue = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            coloured += bool((red != green).any() or (red != blue).any())
    scaled = [f"{width}x{height}" for (width, height), count in sizes.most_common() if count]
    said = [f"{sizes.total()} images of {listed(scaled, 3)} are scaled to {shape[2]}x{shape[1]}"] * bool(scaled)
    said += [f"{coloured} images in colour become grey"] * bool(coloured)
    if said:
        say(f"{path}: {', '.join(said)}")
