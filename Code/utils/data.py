"""Data sets as tensors: uint8 images that stay on the device and are normalised as they are batched."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from utils.errors import UserError


@dataclass(frozen=True)
class Source:
    """A data set that can be loaded: its statistics and a function from --data_path to arrays.

    `load` returns train images, train labels, test images, test labels and class names; images are uint8
    (N, C, H, W), labels int64 (N,). mean and std are per channel, of pixels in 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    load: Callable[[Path], tuple[Tensor, Tensor, Tensor, Tensor, list[str]]]


@dataclass
class RealData:
    """A data set on one device.

    images, test_images: uint8 (N, C, H, W); labels, test_labels: int64 (N,); mean, std: per channel, of
    pixels in 0..1; dtype: the type of normalised images.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self):
        order = torch.argsort(self.labels, stable=True).cpu()
        self.class_sizes = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        self.class_rows = [rows.numpy() for rows in order.split(self.class_sizes)]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.images.device

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (..., C, H, W) -> normalised images of type `dtype`."""
        pixels = images.to(self.dtype).div_(255)
        return pixels.sub_(self._per_channel(self.mean, pixels)).div_(self._per_channel(self.std, pixels))

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images -> pixels in 0..1, clipped, as for a picture."""
        return (images * self._per_channel(self.std, images) + self._per_channel(self.mean, images)).clamp(0, 1)

    def batch(self, rows: np.ndarray) -> Tensor:
        """Normalised training images of these rows; the result has the shape of `rows` and then (C, H, W)."""
        return self.normalise(self.images[torch.as_tensor(rows, device=self.device)])

    def to(self, device: torch.device) -> "RealData":
        for name in ("images", "labels", "test_images", "test_labels"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def _quietly(load: Callable, name: str, root: Path, expected: str):
    """Runs a torchvision loader; what goes wrong becomes one line that says which files were expected."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return load()
    except Exception as error:  # torchvision raises ValueError, RuntimeError, URLError, AssertionError, ...
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"--data_path {root}: cannot load {name} ({reason}); put the whole, undamaged files "
                        f"{expected} there, or connect to the internet so that they can be downloaded") from None


def _torchvision_grey(name: str) -> Callable:
    dataset = getattr(torchvision.datasets, name)

    def load(root: Path):
        def read():
            files = root / name / "raw"
            present = (files / "train-images-idx3-ubyte").is_file() and (files / "t10k-images-idx3-ubyte").is_file()
            return [dataset(root, train=train, download=not present) for train in (True, False)]

        train, test = _quietly(read, name, root, f"{name}/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte")
        return train.data.unsqueeze(1), train.targets, test.data.unsqueeze(1), test.targets, train.classes

    return load


def _digits(root: Path):
    """scikit-learn's 1,797 digits, a fifth of them, stratified by class, for testing.

    They have 8x8 pixels and are enlarged to 16x16, because a formation holds images of half the size, and
    of 4x4 pixels no digit can be read.
    """
    from sklearn.datasets import load_digits  # here, because it takes a second that no other data set needs
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)
    images = F.interpolate(pixels, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    names = [str(name) for name in digits.target_names]
    return images[train], labels[train], images[test], labels[test], names


SOURCES = {
    "digits": Source((0.3054,), (0.3186,), _digits),
    "MNIST": Source((0.1307,), (0.3081,), _torchvision_grey("MNIST")),
    "FashionMNIST": Source((0.2861,), (0.3530,), _torchvision_grey("FashionMNIST")),
}


def load(name: str, data_path: str | Path, device: torch.device | str = "cpu") -> RealData:
    """Loads a data set onto a device.

    data_path: the folder that holds the data set's own folder, where missing files are downloaded to.
    Raises UserError for an unknown name and for missing or damaged files.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    data = RealData(name, *source.load(Path(data_path)), source.mean, source.std)
    return data.to(torch.device(device))
