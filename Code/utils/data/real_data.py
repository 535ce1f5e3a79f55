"""Data sets as tensors: uint8 images that stay on the device and are normalised as they are batched."""

import functools
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..system import device as devices
from ..system.device import send
from ..system.errors import UserError, say
from . import sources
from .normalisation import Whitening, per_channel, statistics, to_pixels


@dataclass
class RealData:
    """A data set on one device.

    images, test_images: uint8 (N, C, H, W); labels, test_labels: int64 (N,); mean, std: per channel, of
    pixels in 0..1; whitening: what follows these, or None; dtype: the type of normalised images.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: Whitening | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self):
        order = torch.argsort(self.labels, stable=True).cpu()
        self.class_sizes = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        self.class_rows = [rows.numpy() for rows in order.split(self.class_sizes)]

    @property
    def num_classes(self) -> int:
        """K"""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return tuple(self.images.shape[1:])

    @property
    def network_shape(self) -> tuple[int, int, tuple[int, int]]:
        """(C, number of classes, (H, W)): what `get_network` builds a network for."""
        return self.image_shape[0], self.num_classes, self.image_shape[1:]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def checksum(self) -> int:
        """Tells this data set from others: a CRC-32 of class names, labels, and a thousand training and test images."""
        some = [images[::max(1, len(images) // 1000)] for images in (self.images, self.test_images)]
        parts = (repr(self.class_names).encode(),
                 *(part.cpu().contiguous().numpy() for part in (self.labels, self.test_labels, *some)))
        return functools.reduce(lambda value, part: zlib.crc32(part, value), parts, 0)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (..., C, H, W) -> normalised images of type `dtype`."""
        return self.normalise_pixels(images.to(self.dtype).div_(255))

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..1 (..., C, H, W), which are changed in place -> normalised images."""
        normalised = pixels.sub_(per_channel(self.mean, pixels)).div_(per_channel(self.std, pixels))
        if self.whitening is None:
            return normalised
        return self.whitening(normalised.reshape(-1, *self.image_shape)).reshape(pixels.shape)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> pixels in 0..1, clipped, as for a picture."""
        return to_pixels(images, self.mean, self.std, self.whitening)

    def batch(self, rows: np.ndarray) -> Tensor:
        """Normalised training images of these rows; the result has the shape of `rows` and then (C, H, W)."""
        return self.normalise(self.images[send(rows, self.device)])

    def to(self, device: torch.device) -> "RealData":
        """Moves the images, in place, to a device; returns the data set."""
        for name in ("images", "labels", "test_images", "test_labels"):
            setattr(self, name, getattr(self, name).to(device))
        if self.whitening is not None:
            self.whitening = self.whitening.to(device)
        return self


def load_data(options) -> RealData:
    """The data set that a command line names, on its device."""
    data = load(options.dataset, options.data_path, devices.find(options.device), options.im_size, options.zca,
                options.seed, options.validation)
    data.name = getattr(options, "name", None) or data.name
    return data


def load(name: str, data_path: str | Path, device: torch.device | str = "cpu", im_size: int | None = None,
         zca: bool = False, seed: int = 0, validation: bool = False) -> RealData:
    """Loads a data set onto a device.

    data_path: the folder that holds the data set, where missing files are downloaded to. im_size: side of
    the images, None for the data set's own. zca: whiten with statistics of the training images. seed: of
    the split where a folder has no test images. validation: a fifth of the training images is left
    out and takes the place of the test images. Raises UserError for an unknown name and for missing or
    damaged files.
    """
    source = sources.find(name)
    arrays = source.load(name, Path(data_path), im_size or source.size)
    if validation:  # by one seed for all runs, whose networks may be shared
        arrays, seed = arrays._replace(test_images=arrays.test_images[:0], test_labels=arrays.test_labels[:0]), 0
    if not len(arrays.test_labels):
        try:
            arrays = sources.split(arrays, seed)
        except UserError:
            raise
        except ValueError:
            raise UserError(f"--data_path {data_path}: too few images to keep a fifth of each class for testing; add "
                            "images, or a test folder") from None
        say(f"no test images: split into {len(arrays.labels)} training and {len(arrays.test_labels)} test images")
    sources.refuse_empty_classes(data_path, arrays)
    if len(arrays.class_names) < 2:
        raise UserError(f"--data_path {data_path}: all images are of one class, {arrays.class_names[0]}; bring two or "
                        "more, each in a folder <class>/")
    if all((part == arrays.images[:1, :, :1, :1]).all() for part in arrays.images.split(1000)):
        raise UserError(f"--data_path {data_path}: all training images are one and the same colour; bring others")
    sources.say_untested(arrays)
    channels = arrays.images.shape[1]
    if zca:  # whitening centres and scales by itself
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = (source.mean, source.std) if source.mean else statistics(arrays.images)
    data = RealData(name, *arrays, mean, std)
    if zca:
        data.whitening = Whitening.fit(data.images.float().div_(255))
    return data.to(torch.device(device))
