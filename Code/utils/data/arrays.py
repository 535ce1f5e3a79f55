"""A data set as arrays: what every reader returns, and the reader of .npz files."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..system import files
from ..system.errors import UserError, say
from .class_order import listed

MOST_COMPRESSED = 100  # times: what a compressed file may unfold to; images compress less
# What the parts of a data set are called in .npz files, in any capitals: by MedMNIST, Keras and others.
IMAGES, LABELS = (("{}_images", "x_{}", "images_{}"), ("{}_labels", "y_{}", "labels_{}"))
VALIDATION = "val"


class Arrays(NamedTuple):
    """Images are uint8 (N, C, H, W), labels int64 (N,). N is 0 for the test images of a folder without any."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]

    def checked(self) -> "Arrays":
        """ValueError where the parts are of another type or form, or do not belong together."""
        tensors = zip(self._fields[:4], self[:4], strict=True)
        odd = next(((name, part) for name, part in tensors if not isinstance(part, Tensor)), None)
        if odd:
            raise ValueError(f"its {odd[0]} are of type {type(odd[1]).__name__}, not Tensor")
        if not isinstance(self.class_names, list | tuple) or not all(
                isinstance(name, str) and name.strip() for name in self.class_names) or (
                len(set(self.class_names)) < len(self.class_names)):
            names = listed(list(self.class_names)) if isinstance(self.class_names, list | tuple) else self.class_names
            raise ValueError(f"class names {str(names)[:200]} are not all different names")
        for images, labels in ((self.images, self.labels), (self.test_images, self.test_labels)):
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
                raise ValueError(f"its images are {images.dtype} {tuple(images.shape)}, not uint8 (N, C, H, W) with "
                                 f"1 or 3 channels")
            if labels.dtype != torch.int64 or labels.dim() != 1:
                raise ValueError(f"its labels are {labels.dtype} {tuple(labels.shape)}, not int64 (N,)")
            if images.shape[1:] != self.images.shape[1:] or len(images) != len(labels):
                raise ValueError(f"{len(labels)} labels do not go with {images.dtype} images {tuple(images.shape)}")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
                raise ValueError(f"labels {listed(labels.unique().tolist())} in {len(self.class_names)} classes")
        return self

    def in_one_channel(self) -> "Arrays":
        """The same with one channel, if all images are grey."""
        if all((images == images[:, :1]).all() for images in (self.images, self.test_images)):
            return self._replace(images=self.images[:, :1], test_images=self.test_images[:, :1])
        return self


def read(path: Path) -> dict[str, np.ndarray] | np.ndarray:
    """The content of an .npz or .npy file; objects, which could run code, are refused by NumPy.

    ValueError where it would unfold to more than MOST_COMPRESSED times its size, and what NumPy raises of damage.
    """
    with files.open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
    if path.suffix.lower() == ".npz":
        with zipfile.ZipFile(path) as archive:
            parts = files.zip_entries(archive)
            if sum(part.file_size for part in parts) > max(MOST_COMPRESSED * size, 2**20):
                raise ValueError(f"its arrays are more than {MOST_COMPRESSED} times the size of the file")
            return {part.filename.removesuffix(".npy"): _native(np.lib.format.read_array(  # np.load trusts sizes
                io.BytesIO(files.unzip(archive, part)), allow_pickle=False)) for part in parts}
    return _native(np.load(path, allow_pickle=False))


def _native(array: np.ndarray) -> np.ndarray:
    """The same in the byte order of this machine, which torch wants."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_npz(path: Path) -> Arrays:
    """{train,val,test}_images uint8 (N, H, H) or (N, H, H, C), {...}_labels (N,) or (N, 1), as MedMNIST has them.

    Keras's x_train and y_train are taken, too, and images and labels alone. Without test images those for validation
    are taken, else the training images are split by the caller. UserError for anything else.
    """
    content = read(path)
    found = {part: names for part in ("train", VALIDATION, "test") if (names := _named(content, part))}
    if "train" not in found:
        raise UserError(f"{path.name}: it has no train_images with train_labels, but {listed(list(content))}; it is to "
                        "hold train_images, train_labels, test_images and test_labels")
    test = next((part for part in ("test", VALIDATION) if part in found and len(content[found[part][0]])), None)
    images, labels = _part(path, content, *found["train"])
    test_images, test_labels = _part(path, content, *found[test]) if test else (images[:0], labels[:0])
    if test == VALIDATION:
        say(f"{path.name}: the test images are those for validation")
    elif VALIDATION in found:
        say(f"{path.name}: {len(content[found[VALIDATION][0]])} images for validation are left out")
    used = {name for part in ("train", test, VALIDATION) for name in found.get(part, ())}
    if left := [name for name in content if name not in used]:
        say(f"{path.name}: left out: {listed(left)}")
    gaps = not len(labels) or labels.min() < 0 or not torch.bincount(labels).all()
    if gaps:
        raise UserError(f"{path.name}: {found['train'][1]} are to be 0, 1, ... without a gap, and they are "
                        f"{listed(labels.unique().tolist()) or 'none'}; number the classes anew")
    arrays = Arrays(images, labels, test_images, test_labels, [str(k) for k in range(int(labels.max()) + 1)])
    try:
        return arrays.checked()
    except ValueError as error:
        raise UserError(f"{path.name}: {error}; make the parts for training and testing alike") from None


def _named(content: dict[str, np.ndarray], part: str) -> tuple[str, str] | None:
    """The names of the images and of the labels of a part, if there are both."""
    lower = {name.lower(): name for name in content}
    pairs = [(images.format(part), labels.format(part)) for images, labels in zip(IMAGES, LABELS, strict=True)]
    pairs += [("images", "labels")] if part == "train" else []
    return next(((lower[images], lower[labels]) for images, labels in pairs if {images, labels} <= lower.keys()), None)


def _part(path: Path, content: dict[str, np.ndarray], of_images: str, of_labels: str) -> tuple[Tensor, Tensor]:
    images, labels = content[of_images], content[of_labels]
    images = images[..., None] if images.ndim == 3 else images
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or (
            images.shape[3] not in (1, 3)):
        raise UserError(f"{path.name}: {of_images} are {images.dtype} {images.shape}; square images of uint8 are read, "
                        "(N, H, H) or (N, H, H, 3); convert them: pixels to 0..255, channels last")
    with np.errstate(invalid="ignore"):
        whole = labels.dtype.kind in "biuf" and np.array_equal(labels, labels.astype(np.int64))
    if labels.shape != images.shape[:1] or not whole:
        raise UserError(f"{path.name}: {of_labels} are {labels.dtype} {labels.shape}; a whole number for each of the "
                        f"{len(images)} images is wanted, (N,) or (N, 1)")
    return (torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            torch.from_numpy(labels.astype(np.int64)))
