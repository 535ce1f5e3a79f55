"""Where data sets come from: the readers of each published format, and of image folders.

Packages that take seconds to import, or that few data sets need, are imported by the functions that use them.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import files, unpickle
from ..system.errors import UserError, is_out_of_memory, needed_for, reason
from . import image_files
from .class_order import listed

TINY_TENSORS = "tinyimagenet.pt"
SVHN_MOST = 100_000  # images; published are 73,257 for training


class Arrays(NamedTuple):
    """Images are uint8 (N, C, H, W), labels int64 (N,). N is 0 for the test images of a folder without any."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: list[str]

    def checked(self) -> "Arrays":
        """ValueError where images and labels do not belong together, or class names are no names."""
        if len(set(self.class_names)) < len(self.class_names) or not all(
                isinstance(name, str) and name.strip() for name in self.class_names):
            raise ValueError(f"class names {listed(self.class_names)[:200]} are not all different names")
        for images, labels in ((self.images, self.labels), (self.test_images, self.test_labels)):
            if images.dtype != torch.uint8 or images.shape[1:] != self.images.shape[1:] or len(images) != len(labels):
                raise ValueError(f"{len(labels)} labels do not go with {images.dtype} images {tuple(images.shape)}")
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.class_names):
                raise ValueError(f"labels {labels.unique().tolist()} in {len(self.class_names)} classes")
        return self


@contextlib.contextmanager
def reading_only(only: bool = True):
    """Around reading from a folder that a file names: nothing is downloaded to it or cached there."""
    token = image_files.READ_ONLY.set(only)
    try:
        yield
    finally:
        image_files.READ_ONLY.reset(token)


@dataclass(frozen=True)
class Source:
    """A data set that can be loaded.

    mean, std: per channel, of pixels in 0..1, as published; None where they are measured on the images.
    size: side of its images. read(data_path, size): the reader. files: what it needs below --data_path.
    download(data_path): gets them where they are missing.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    size: int
    read: Callable[[Path, int], Arrays]
    files: tuple[str, ...] = ()
    download: Callable[[Path], object] | None = None

    def load(self, name: str, data_path: Path, size: int) -> Arrays:
        """Images of size x size, from <data_path>/<name>/{train,test}/<class>/ or else the published files.

        Raises UserError with one line that names what is missing or damaged.
        """
        try:
            folder = _folder_named(data_path, name) if self.mean else None
            arrays = (_override(folder, name, size, len(self.mean)) if folder
                      else self._published(data_path, size)).checked()
        except UserError as error:
            raise UserError(f"--data_path {data_path}: {error}") from None
        except PermissionError as error:
            raise UserError(f"--data_path {data_path}: no permission for {error.filename}; change that, or name "
                            "another folder") from None
        except Exception as error:  # torchvision, SciPy and pickle raise many kinds
            if is_out_of_memory(error) and str(error):  # that of a damaged pickle has no words
                raise
            raise UserError(f"--data_path {data_path}: cannot load {name} ({reason(error)}); put the whole, undamaged "
                            f"files {', '.join(self.files)} there, or delete those that are damaged and connect to "
                            "the internet, from where missing ones come") from None
        if arrays.images.shape[2:] == (size, size):
            return arrays
        from torchvision.transforms.v2.functional import resize
        return arrays._replace(images=resize(arrays.images, [size, size]),
                               test_images=resize(arrays.test_images, [size, size]))

    def _published(self, data_path: Path, size: int) -> Arrays:
        odd = next((data_path / file for file in self.files
                    if os.path.exists(data_path / file) and not (data_path / file).is_file()), None)
        if odd and self.mean:
            raise UserError(f"{odd}: not a regular file; remove it")
        if self.download and not all((data_path / file).is_file() for file in self.files):
            if image_files.READ_ONLY.get():
                raise UserError("its files are not there; name a --data_path, to which missing ones are downloaded")
            folders = {folder for file in self.files for folder in (data_path / file).parents}
            missing = [folder for folder in folders if not folder.exists()]
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    self.download(data_path)
            finally:
                for folder in sorted(missing, reverse=True):
                    with contextlib.suppress(OSError):  # only empty ones go; a file that came is not to come again
                        folder.rmdir()
        arrays = self.read(data_path, size)
        for images in (arrays.images, arrays.test_images):  # each by its own shape
            self._check_shape(images, size)
        return arrays

    def _check_shape(self, images: Tensor, size: int) -> None:
        """UserError where images are not of the published shape, or of a square of one's own."""
        channels, *sides = images.shape[1:]
        own = not self.mean and sides[:1] == sides[1:]
        if not own and (sides not in ([size, size], [self.size, self.size]) or channels != len(self.mean)):
            raise UserError(f"its images are {tuple(images.shape[1:])}, not "
                            f"{(len(self.mean or (1,)), self.size, self.size)} as published; put those files there")


def _folder_named(data_path: Path, name: str) -> Path | None:
    """The folder of a data set's images, if there is one; capitals do not matter."""
    if not data_path.is_dir():
        return None
    return next((path for path in sorted(data_path.iterdir())
                 if path.name.lower() == name.lower()
                 and any(part.name.casefold() in image_files.LIKE_TRAIN and part.is_dir()
                         for part in (path.iterdir() if path.is_dir() else ()))), None)


def read_images(root: Path, size: int, channels: int, list_files: Callable = image_files.list_classes) -> Arrays:
    """Images in a folder or a zip, decoded once and then cached beside it."""
    try:
        tree = image_files.Tree(root)
        listing = list_files(tree)
        cache = root.parent / f"cache_{root.name}_{size}.pt"
        images, test_images = image_files.load_cached(tree, listing, channels, size, cache)
    except UserError as error:
        raise UserError(f"{root.name}: {error}") from None
    labels, test_labels = (torch.tensor([label for _, label in split], dtype=torch.long)
                           for split in (listing.train, listing.test))
    return Arrays(images, labels, test_images, test_labels, listing.class_names)


def _override(folder: Path, name: str, size: int, channels: int) -> Arrays:
    arrays = read_images(folder, size, channels, partial(image_files.list_classes, dataset=name))
    if not len(arrays.test_labels):
        raise UserError(f"{folder.name}: no images in test/<class>/")
    return arrays


def _read_npz(path: Path) -> Arrays:
    """MedMNIST's form: {train,test}_images uint8 (N, H, W) or (N, H, W, C), {train,test}_labels (N,) or (N, 1).

    Without test images the training images are split. UserError for anything else, and for a class without
    training images. Images for validation are left out.
    """
    with np.load(path, allow_pickle=False) as content:
        def part(split: str) -> tuple[Tensor, Tensor]:
            images, labels = content[f"{split}_images"], content[f"{split}_labels"]
            images = images[..., None] if images.ndim == 3 else images
            labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] \
                    or images.shape[3] not in (1, 3):
                raise UserError(f"{path.name}: {split}_images are {images.dtype} {images.shape}; square images of "
                                "uint8 are read, (N, H, H) or (N, H, H, 3)")
            if labels.shape != images.shape[:1] or not np.array_equal(labels, labels.astype(np.int64)):
                raise UserError(f"{path.name}: {split}_labels are {labels.dtype} {labels.shape}; a whole number for "
                                f"each of the {len(images)} images is wanted, (N,) or (N, 1)")
            return (torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
                    torch.from_numpy(labels.astype(np.int64)))

        lacks = [name for name in ("train_images", "train_labels") if name not in content.files]
        if lacks:
            raise UserError(f"{path.name}: it has no {lacks[0]}, but {listed(content.files)}; it is to hold "
                            "train_images, train_labels, test_images and test_labels")
        images, labels = part("train")
        test_images, test_labels = part("test") if "test_images" in content.files else (images[:0], labels[:0])
        if "val_images" in content.files:
            print(f"{path.name}: {len(content['val_images'])} images for validation are left out", flush=True)
    counts = torch.bincount(labels) if len(labels) and labels.min() >= 0 else torch.zeros(1)
    if not counts.all():
        raise UserError(f"{path.name}: train_labels are to be 0, 1, ... without a gap")
    return Arrays(images, labels, test_images, test_labels, [str(k) for k in range(len(counts))])


def _read_users(root: Path, size: int) -> Arrays:
    """The user's own images, in one channel if all of them are grey."""
    if root.suffix.lower() == ".npz":
        return _read_npz(root)
    arrays = read_images(Path(os.path.abspath(root)), size, 3)
    if all((images == images[:, :1]).all() for images in (arrays.images, arrays.test_images)):
        return arrays._replace(images=arrays.images[:, :1], test_images=arrays.test_images[:, :1])
    return arrays


def _read_tiny(root: Path, size: int) -> Arrays:
    """Tiny-ImageNet, from its folder or its zip, or from the file that the published script reads."""
    for name in ("tiny-imagenet-200", "tiny-imagenet-200.zip"):
        if (root / name).exists():
            return read_images(root / name, size, 3, image_files.list_tiny_imagenet)
    if (root / TINY_TENSORS).exists():
        return _read_tiny_tensors(root / TINY_TENSORS)
    raise UserError(f"neither tiny-imagenet-200/ nor tiny-imagenet-200.zip nor {TINY_TENSORS} is there; download the "
                    "zip from http://cs231n.stanford.edu/tiny-imagenet-200.zip")


def _read_tiny_tensors(path: Path) -> Arrays:
    """A dict of tensors: images_train, images_val, uint8 (N, 3, 64, 64), labels_train, labels_val, and classes."""
    try:
        content = unpickle.load_torch(path, mmap=True)
        tensors = [content[f"{kind}_{part}"] for part in ("train", "val") for kind in ("images", "labels")]
        names = [str(name) for name in content["classes"]]
    except Exception as error:  # torch raises many kinds
        raise UserError(f"{path.name}: damaged, or not the published form ({reason(error)}); it holds tensors under "
                        "images_train, labels_train, images_val, labels_val, and the names of the classes under "
                        "classes") from None
    images, labels, test_images, test_labels = tensors
    return Arrays(images, labels.long(), test_images, test_labels.long(), names)


def _read_digits(root: Path, size: int) -> Arrays:
    """scikit-learn's 1,797 digits, a fifth of them, stratified by class, for testing.

    They have 8x8 pixels and are enlarged to 16x16, because a formation holds images of half the size, and
    of 4x4 pixels no digit can be read.
    """
    with needed_for("--dataset digits", "scikit-learn"):
        from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)
    images = F.interpolate(pixels, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    return split(Arrays(images, labels, images[:0], labels[:0], [str(name) for name in digits.target_names]), seed=0)


def split(arrays: Arrays, seed: int) -> Arrays:
    """Moves a fifth of the training images, stratified by class, to the empty test set; ValueError if too few."""
    with needed_for("a data set without test images", "scikit-learn"):
        from sklearn.model_selection import train_test_split

    rows = np.arange(len(arrays.labels))
    train, test = train_test_split(rows, test_size=0.2, stratify=arrays.labels, random_state=seed)
    return Arrays(arrays.images[train], arrays.labels[train], arrays.images[test], arrays.labels[test],
                  arrays.class_names)


def say_untested(arrays: Arrays) -> None:
    """A line with the classes that have no test images, if there are some."""
    tested = torch.bincount(arrays.test_labels, minlength=len(arrays.class_names)).tolist()
    lacks = [name for name, count in zip(arrays.class_names, tested, strict=True) if not count]
    if lacks:
        print(f"no test images of {listed(lacks)}: {len(lacks)} of {len(tested)} classes are not tested", flush=True)


def _grey(name: str, mean: float, std: float) -> Source:
    """MNIST and Fashion-MNIST: four idx files."""
    def dataset(root: Path, **more):
        from torchvision import datasets
        return getattr(datasets, name)(root, **more)

    def read(root: Path, size: int) -> Arrays:
        train, test = dataset(root, train=True), dataset(root, train=False)
        return Arrays(train.data.unsqueeze(1), train.targets, test.data.unsqueeze(1), test.targets, train.classes)

    files = [f"{name}/raw/{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3",
                                                     "t10k-labels-idx1")]
    return Source((mean,), (std,), 28, read, tuple(files), lambda root: dataset(root, download=True))


def _cifar(name: str, folder: str, train_files: list[str], test_files: list[str], names_file: str, names_key: str,
           mean: tuple[float, ...], std: tuple[float, ...]) -> Source:
    """CIFAR-10 and CIFAR-100: pickles in a folder, of which nothing is run; the names of the classes in one more."""
    def read(root: Path, size: int) -> Arrays:
        def content(file: str) -> dict:
            with files.open_regular(root / folder / file) as opened:
                return unpickle.load(opened)

        def images_and_labels(files: list[str]) -> tuple[Tensor, Tensor]:
            entries = [content(file) for file in files]
            images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([entry.get("labels") or entry["fine_labels"] for entry in entries])
            if not np.array_equal(labels, labels.astype(np.int64)):
                raise ValueError(f"labels in {files[0]} are not whole numbers")
            return torch.from_numpy(images), torch.from_numpy(labels).long()

        names = content(names_file)[names_key]
        return Arrays(*images_and_labels(train_files), *images_and_labels(test_files), list(names))

    def download(root: Path):
        from torchvision import datasets
        return getattr(datasets, name)(root, download=True)

    every = [f"{folder}/{file}" for file in (*train_files, *test_files, names_file)]
    return Source(mean, std, 32, read, tuple(every), download)


def _read_svhn(root: Path, size: int) -> Arrays:
    """SVHN's cropped digits, without the extra ones; its label 10 means 0."""
    with needed_for("--dataset SVHN", "scipy"):
        import scipy.io

    def images_and_labels(part: str) -> tuple[Tensor, Tensor]:
        path = root / f"{part}_32x32.mat"
        found = [(name, shape) for name, shape, _ in scipy.io.whosmat(path)]  # which reads no more than sizes
        if sorted(name for name, _ in found) != ["X", "y"] or not all(
                0 < math.prod(shape) <= SVHN_MOST * (32 * 32 * 3 if name == "X" else 1) for name, shape in found):
            raise ValueError(f"{path.name} holds {found}, not X and y of at most {SVHN_MOST} images of 32x32")
        content = scipy.io.loadmat(path)
        images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))
        labels = content["y"].flatten()
        if not np.isin(labels, np.arange(1, 11)).all():
            raise ValueError(f"labels {listed(np.unique(labels).tolist())} in {part}_32x32.mat, not 1 to 10")
        return torch.from_numpy(images), torch.from_numpy(labels % 10).long()

    return Arrays(*images_and_labels("train"), *images_and_labels("test"), [str(digit) for digit in range(10)])


def _download_svhn(root: Path):
    from torchvision.datasets import SVHN
    return [SVHN(root, part, download=True) for part in ("train", "test")]


SOURCES = {
    "digits": Source((0.3054,), (0.3186,), 16, _read_digits),
    "MNIST": _grey("MNIST", 0.1307, 0.3081),
    "FashionMNIST": _grey("FashionMNIST", 0.2861, 0.3530),
    "SVHN": Source((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 32, _read_svhn,
                   ("train_32x32.mat", "test_32x32.mat"), _download_svhn),
    "CIFAR10": _cifar("CIFAR10", "cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], ["test_batch"],
                      "batches.meta", "label_names", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR100": _cifar("CIFAR100", "cifar-100-python", ["train"], ["test"], "meta", "fine_label_names",
                       (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "TinyImageNet": Source((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 64, _read_tiny),
    "folder": Source(None, None, 32, _read_users, ("train/<class>/*.png",)),
}


def find(name: str) -> Source:
    """The data set of this name; UserError where there is none."""
    if name not in SOURCES:
        raise UserError(f"unknown data set {name!r}; known: {', '.join(SOURCES)}")
    return SOURCES[name]
