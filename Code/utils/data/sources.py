"""Where data sets come from: the readers of each published format, and of image folders.

Packages that take seconds to import, or that few data sets need, are imported by the functions that use them.
"""

import contextlib
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..system import files, unpickle
from ..system.errors import UserError, is_out_of_memory, needed_for, reason, say
from ..system.imports import import_named
from . import class_order, image_files, parquet
from .arrays import Arrays, read_npz
from .class_order import listed

TINY_TENSORS = "tinyimagenet.pt"
RETURNED = ("Arrays of uint8 images (N, C, H, W) with int64 labels (N,), for training and testing, and the names of "
            "the classes")
MOST_LETTERS = 60  # of the name of one's own data
SVHN_MOST = 100_000  # images; published are 73,257 for training
COMPRESSED, NUMBERS, COMPLEX = 15, range(6, 16), 0x800  # in .mat: the type of an element, classes of arrays, a flag


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

    def validated(self, name: str) -> "Source":
        """The same; UserError where a part of it cannot be right."""
        for part, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and not (isinstance(values, list | tuple) and len(values) in (1, 3) and all(
                    isinstance(value, int | float) and (0 if part == "mean" else 1e-6) <= value <= 1
                    for value in values)):
                raise UserError(f"{name}: its {part} is {values!r}; a number in 0..1 for each of 1 or 3 channels is "
                                "wanted, or None for mean and std")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise UserError(f"{name}: its mean {self.mean} and std {self.std} do not go together; give both or None")
        if type(self.size) is not int or self.size < 1 or not callable(self.read):
            raise UserError(f"{name}: its size {self.size!r} and read {self.read!r} are to be a whole number and a "
                            "function read(data_path, size)")
        return self

    def load(self, name: str, data_path: Path, size: int) -> Arrays:
        """Images of size x size, from <data_path>/<name>/{train,test}/<class>/ or else the published files.

        Raises UserError with one line that names what is missing or damaged.
        """
        try:
            folder = _folder_named(data_path, name) if name in class_order.NAMES else None
            arrays = (_override(folder, name, size, len(self.mean)).checked() if folder
                      else self._published(data_path, size, own=":" in name))
        except UserError as error:
            raise UserError(f"--data_path {data_path}: {error}") from None
        except PermissionError as error:
            raise UserError(f"--data_path {data_path}: no permission for {error.filename}; change that, or name "
                            "another folder") from None
        except Exception as error:  # torchvision, SciPy and pickle raise many kinds
            if is_out_of_memory(error) and str(error):  # that of a damaged pickle has no words
                raise UserError(f"--data_path {data_path}: its files need more memory than there is ({reason(error)}); "
                                "free some, or bring fewer or smaller images") from None
            advice = (f"put the whole, undamaged files {', '.join(self.files)} there, or images in {name}/"
                      "{train,test}/<class>/, or delete those files that are damaged and connect to the internet, from "
                      "where missing ones come" if self.download else
                      f"mend what its read returns: {RETURNED}" if ":" in name else
                      "bring the whole, undamaged files")
            raise UserError(f"--data_path {data_path}: cannot load {name} ({reason(error)}); {advice}") from None
        if arrays.images.shape[2:] == (size, size):
            return arrays
        from torchvision.transforms.v2.functional import resize
        return arrays._replace(images=resize(arrays.images, [size, size]),
                               test_images=resize(arrays.test_images, [size, size]))

    def _published(self, data_path: Path, size: int, own: bool) -> Arrays:
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
        if not isinstance(arrays, tuple) or len(arrays) != len(Arrays._fields):
            raise ValueError(f"read returned {type(arrays).__name__}, not Arrays")
        arrays = Arrays(*arrays)
        for images in (arrays.images, arrays.test_images):  # each by its own shape
            if isinstance(images, Tensor) and images.dim() == 4 and images.dtype == torch.uint8:
                self._check_shape(images, size, own)
        return arrays.checked()

    def _check_shape(self, images: Tensor, size: int, own: bool) -> None:
        """UserError where images are not of the published shape, of one's own Source, or of a square."""
        channels, *sides = images.shape[1:]
        if not self.mean and sides[0] != sides[1]:
            raise UserError(f"its images are {tuple(images.shape[1:])}; square ones are wanted")
        if self.mean and (sides not in ([size, size], [self.size, self.size]) or channels != len(self.mean)):
            raise UserError(f"its images are {tuple(images.shape[1:])}, not "
                            f"{(len(self.mean), self.size, self.size)} as "
                            + ("its Source says; mend that or its read" if own else "published; put those files there"))


def _folder_named(data_path: Path, name: str) -> Path | None:
    """The folder of a data set's images, if there is one; capitals and signs do not matter."""
    if not data_path.is_dir():
        return None
    return next((path for path in sorted(data_path.iterdir())
                 if class_order.letters(path.name) == class_order.letters(name)
                 and any(part.name.casefold() in image_files.LIKE_TRAIN and part.is_dir()
                         for part in (path.iterdir() if path.is_dir() else ()))), None)


def read_images(root: Path, size: int, channels: int, list_files: Callable = image_files.list_classes) -> Arrays:
    """Images in a folder or a zip, decoded once and then cached beside it."""
    try:
        tree = image_files.Tree(root)
    except UserError as error:
        raise UserError(f"{root.name}: {error}") from None
    return _decoded(tree, size, channels, list_files)


def _decoded(tree: image_files.Tree | parquet.Table, size: int, channels: int, list_files: Callable) -> Arrays:
    root = tree.root
    try:
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


def _read_users(root: Path, size: int) -> Arrays:
    """The user's own images, in one channel if all of them are grey."""
    if root.suffix.lower() == ".npz":
        return read_npz(root)
    root = Path(os.path.abspath(root))
    if not root.exists():
        raise UserError("no such folder; name that of your images")
    if tables := parquet.files_in(root):
        if root.is_dir():
            image_files.say_what_is_left_out(image_files.Tree(root), [], ())
        return _decoded(parquet.Table(root, tables), size, 3, parquet.Table.listing).in_one_channel()
    if root.is_file() and root.suffix.lower() != ".zip":
        raise UserError(f"{root.name}: not a folder, .zip, .npz or .parquet, which are read; bring one of these")
    return read_images(root, size, 3).in_one_channel()


def _read_tiny(root: Path, size: int) -> Arrays:
    """Tiny-ImageNet, from its folder or its zip, or from the file that the published script reads."""
    for name in ("tiny-imagenet-200", "tiny-imagenet-200.zip"):
        if (root / name).exists():
            return read_images(root / name, size, 3, image_files.list_tiny_imagenet)
    if (root / TINY_TENSORS).exists():
        return _read_tiny_tensors(root / TINY_TENSORS)
    if (root / "wnids.txt").exists():  # the folder itself
        return read_images(Path(os.path.abspath(root)), size, 3, image_files.list_tiny_imagenet)
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


def refuse_empty_classes(data_path: Path, arrays: Arrays) -> None:
    """UserError for classes without training images."""
    counts = torch.bincount(arrays.labels, minlength=len(arrays.class_names)).tolist()
    lacks = [name for name, count in zip(arrays.class_names, counts, strict=True) if not count]
    if lacks:
        raise UserError(f"--data_path {data_path}: no training images of {listed(lacks)}: {len(lacks)} of "
                        f"{len(counts)} classes; add images, or leave these classes out")


def say_untested(arrays: Arrays) -> None:
    """A line with the classes that have no test images, if there are some."""
    tested = torch.bincount(arrays.test_labels, minlength=len(arrays.class_names)).tolist()
    lacks = [name for name, count in zip(arrays.class_names, tested, strict=True) if not count]
    if lacks:
        say(f"no test images of {listed(lacks)}: {len(lacks)} of {len(tested)} classes are not tested")


def _grey(name: str, mean: float, std: float) -> Source:
    """MNIST and Fashion-MNIST: four idx files."""
    def read(root: Path, size: int) -> Arrays:
        from torchvision.datasets import mnist
        readers = 2 * [mnist.read_image_file, mnist.read_label_file]  # the data set itself would take other files, too
        train, labels, test, test_labels = (one(str(root / file)) for one, file in zip(readers, files, strict=True))
        return Arrays(train.unsqueeze(1), labels, test.unsqueeze(1), test_labels, getattr(mnist, name).classes)

    def download(root: Path):
        from torchvision import datasets
        return getattr(datasets, name)(root, download=True)

    files = [f"{name}/raw/{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3",
                                                     "t10k-labels-idx1")]
    return Source((mean,), (std,), 28, read, tuple(files), download)


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
        _refuse_other_variables(path)
        found = scipy.io.whosmat(path)  # which reads no more than names, shapes and types
        if sorted(name for name, *_ in found) != ["X", "y"] or not all(
                0 < math.prod(shape) <= SVHN_MOST * (32 * 32 * 3 if name == "X" else 1)
                and (name == "y" or kind == "uint8") for name, shape, kind in found):
            raise ValueError(f"{path.name} holds {found}, not X and y of at most {SVHN_MOST} images of 32x32")
        content = scipy.io.loadmat(path)
        images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))
        labels = content["y"].flatten()
        if not np.isin(labels, np.arange(1, 11)).all():
            raise ValueError(f"labels {listed(np.unique(labels).tolist())} in {part}_32x32.mat, not 1 to 10")
        return torch.from_numpy(images), torch.from_numpy(labels % 10).long()

    return Arrays(*images_and_labels("train"), *images_and_labels("test"), [str(digit) for digit in range(10)])


def _refuse_other_variables(path: Path) -> None:
    """ValueError where a .mat file, of version 5, has more than arrays of real numbers.

    SciPy does not tell complex ones, of 16 bytes a value, beforehand, and cells within cells end the process.
    """
    with files.open_regular(path) as file:
        head = file.read(128)
        if 0 in head[:4]:
            raise ValueError(f"{path.name} is not of version 5")
        order = "<" if head[126:] == b"IM" else ">"
        while tag := file.read(8):
            kind, size = struct.unpack(f"{order}2I", tag)
            following = file.tell() + size
            start = zlib.decompressobj().decompress(file.read(1024), 24) if kind == COMPRESSED else tag + file.read(16)
            flags, = struct.unpack_from(f"{order}I", start, 16)
            if flags & 255 not in NUMBERS or flags & COMPLEX:
                raise ValueError(f"{path.name} has a variable that is no array of real numbers")
            file.seek(following)


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
    """The data set of this name; UserError where there is none. Imports nothing: a name may come from a file."""
    if name not in SOURCES:
        own = "; name your own with --dataset" if ":" in name else ", or your own as module:source"
        raise UserError(f"unknown data set {name!r}; known: {', '.join(SOURCES)}{own}")
    return SOURCES[name]


def check_form(name: str) -> None:
    """UserError for what is neither a data set's name nor has the form module:source. Imports nothing."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        find(name)


def own_name(dataset: str, data_path: Path) -> str | None:
    """What one's own data are called by default: as the folder or the source; None for data sets that have a name."""
    if ":" not in dataset and dataset != "folder":
        return None
    text = dataset.split(":")[-1] if ":" in dataset else Path(os.path.abspath(data_path)).stem
    name = re.sub(r"[^\w.-]+", "_", text).strip("._-")[:MOST_LETTERS] or "folder"
    return f"{name}_folder" if _is_published(name) else name


def check_own_name(name: str) -> None:
    """UserError for a name that cannot stand in names of files, or is that of a published data set."""
    if not re.fullmatch(r"[^\W_][\w.-]*", name) or name.endswith(".") or len(name) > MOST_LETTERS:
        raise UserError(f"{name[:80]!r} is no plain name; take at most {MOST_LETTERS} letters, digits and _ . -")
    if _is_published(name):
        raise UserError(f"{name} is a published data set; choose another name")


def _is_published(name: str) -> bool:
    return name.casefold() in {known.casefold() for known in class_order.NAMES}


def imported(name: str) -> Source:
    """The data set of this name, or the user's own: `module:source`, imported from the current directory.

    For names that the user gives alone, never for those in files. UserError where there is none.
    """
    if name not in SOURCES and ":" in name:
        found = import_named(name)
        if not isinstance(found, Source):
            raise UserError(f"{name!r} is {type(found).__name__}, not a Source; make it with "
                            "utils.data.sources.Source(mean, std, size, read)")
        SOURCES[name] = found.validated(name)
    return find(name)
