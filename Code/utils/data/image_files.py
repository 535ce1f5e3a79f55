"""Image files, in a folder or a zip: which there are, of which class, and their pixels, cached as one uint8 file."""

import hashlib
import io
import os
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..system import files, logs
from ..system.errors import UserError, reason

ANEW = "unpack or download tiny-imagenet-200.zip again, whose layout is to stay as published"
LIKE_TEST = {"test", "Test", "val", "valid", "validation"}  # folders that someone means for testing
FILES_PER_WORKER = 1000  # a decoding process costs as much as decoding about this many small images
BATCH_BYTES = 2**20  # of pixels that a decoding process hands over at once


class Tree:
    """The files below a folder or inside a zip, by relative name. Nothing is unpacked.

    Raises UserError where the zip is damaged or a file cannot be reached.
    """

    def __init__(self, root: Path):
        self.root = root
        self._zip = None
        self._members = {}
        self.stamps = self._zip_stamps() if root.is_file() else self._folder_stamps()

    def _folder_stamps(self) -> dict[str, tuple]:
        stamps = {}

        def refuse(error: OSError):
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); put it right or remove it") from None

        walk = os.walk(self.root, onerror=refuse, followlinks=True) if self.root.exists() else ()
        for folder, _, names in walk:
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except OSError as error:
                    refuse(error)
                stamps[path.relative_to(self.root).as_posix()] = (status.st_size, status.st_mtime_ns)
        return stamps

    def _zip_stamps(self) -> dict[str, tuple]:
        """Names in a zip lack the one folder that all of them lie in."""
        try:
            with zipfile.ZipFile(self.root) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.root}: not a readable zip ({reason(error)}); download it again") from None
        self._members = {"/".join(PurePosixPath(entry.filename).parts[1:]): entry.filename for entry in entries}
        stamps = {entry.filename: (entry.file_size, entry.date_time, entry.CRC) for entry in entries}
        return {name: stamps[member] for name, member in self._members.items()}

    def read(self, name: str) -> bytes:
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.root)
        return self._zip.read(self._members[name])

    def close(self) -> None:
        """Before other processes take it: each is to open the zip for itself, or they move each other's position."""
        if self._zip is not None:
            self._zip.close()
            self._zip = None


@dataclass
class Listing:
    """Which image files make up a data set: (name, label) of each, and the names of the classes."""

    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    class_names: list[str]

    def __post_init__(self):
        if not self.train:
            raise UserError("no images in train/<class>/")


def _is_image(name: str) -> bool:
    hidden = "/." in f"/{name}"
    return name.lower().endswith(IMG_EXTENSIONS) and not hidden


def images_by_folder(tree: Tree, below: str = "") -> tuple[list[str], list[str]]:
    """Names of the images in <below><class>/**, sorted, and the class folder of each."""
    names = [name for name in sorted(tree.stamps) if name.startswith(below) and _is_image(name)]
    found = [(name, name[len(below):].split("/")[0]) for name in names if "/" in name[len(below):]]
    return [name for name, _ in found], [folder for _, folder in found]


def list_classes(tree: Tree) -> Listing:
    """{train,test}/<class>/**/<image>, classes in the order of their names; there may be no test folder."""
    (train, train_folders), (test, test_folders) = (images_by_folder(tree, below) for below in ("train/", "test/"))
    classes = sorted(set(train_folders))
    index = {name: k for k, name in enumerate(classes)}
    unknown = sorted(set(test_folders) - set(classes))
    if unknown:
        raise UserError(f"test/{unknown[0]} has no images in train/{unknown[0]}")
    unused = sorted({name.split("/")[0] for name in tree.stamps if _is_image(name)} & LIKE_TEST)
    if unused and not test:
        raise UserError(f"{unused[0]}/ has images, but not as test/<class>/; make it so, or remove it")
    return Listing([(name, index[folder]) for name, folder in zip(train, train_folders, strict=True)],
                   [(name, index[folder]) for name, folder in zip(test, test_folders, strict=True)],
                   [os.fsencode(name).decode(errors="replace") for name in classes])


def list_tiny_imagenet(tree: Tree) -> Listing:
    """Tiny-ImageNet's own layout: train/<wnid>/images/*, val/images/* with val/val_annotations.txt.

    Classes are in the order of their WordNet IDs; words.txt gives their names. The test set is val, as in
    the literature: the labels of the original test images were never published.
    """
    names, folders = images_by_folder(tree, "train/")
    wnids = sorted(set(folders))
    index = {wnid: k for k, wnid in enumerate(wnids)}
    train = [(name, index[wnid]) for name, wnid in zip(names, folders, strict=True)]
    try:
        lines = [line.split("\t") for line in tree.read("val/val_annotations.txt").decode().splitlines()]
        test = [(f"val/images/{line[0]}", index[line[1]]) for line in lines]
        words = dict(line.split("\t", 1) for line in tree.read("words.txt").decode().splitlines())
    except Exception as error:  # a missing file, a damaged zip, a line or a class that should not be there
        raise UserError("val/val_annotations.txt or words.txt is missing or damaged "
                        f"({reason(error)}); {ANEW}") from None
    missing = next((name for name, _ in test if name not in tree.stamps), None)
    if missing:
        raise UserError(f"{missing} is named in val/val_annotations.txt and is not there; {ANEW}")
    return Listing(train, test, [words.get(wnid, wnid).split(",")[0] for wnid in wnids])


class _Images(Dataset):
    """The files of a tree as uint8 (C, size, size), each with what is wrong with it, if anything."""

    def __init__(self, tree: Tree, names: list[str], channels: int, size: int):
        self.tree, self.names, self.mode, self.size = tree, names, {1: "L", 3: "RGB"}[channels], size
        self.broken = np.zeros((channels, size, size), np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: int) -> tuple[np.ndarray, str]:
        try:
            with warnings.catch_warnings(), Image.open(io.BytesIO(self.tree.read(self.names[k]))) as image:
                warnings.simplefilter("ignore")  # Pillow warns of transparency that is lost
                if image.mode.startswith(("I", "F")):
                    return self.broken, f"{self.names[k]} has more than 8 bits a channel; convert it to 8"
                image = ImageOps.exif_transpose(image).convert(self.mode)
                pixels = np.array(ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
                                  if image.size != (self.size, self.size) else image)
        except Exception as error:  # Pillow's decoders raise many kinds
            why = "of no known format" if isinstance(error, UnidentifiedImageError) else reason(error)
            return self.broken, f"{self.names[k]} is not a readable image ({why}); replace or remove it"
        return pixels.reshape(self.size, self.size, -1).transpose(2, 0, 1), ""


def _stack(items: list[tuple[np.ndarray, str]]) -> tuple[np.ndarray, list[str]]:
    """A batch without tensors, which would go through shared memory, and containers have little of it."""
    images, problems = zip(*items, strict=True)
    return np.stack(images), list(problems)


def decode(tree: Tree, names: list[str], channels: int, size: int) -> Tensor:
    """The images as uint8 (N, channels, size, size), decoded by all CPU cores.

    Larger or smaller images are scaled to fill the square and cut at the centre. Raises UserError for a
    file that cannot be decoded.
    """
    pixels = torch.empty(len(names), channels, size, size, dtype=torch.uint8)
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                  len(names) // FILES_PER_WORKER)
    tree.close()
    loader = DataLoader(_Images(tree, names, channels, size), batch_size=max(1, BATCH_BYTES // (channels * size**2)),
                        num_workers=workers, collate_fn=_stack)
    done = 0
    with logs.Progress("decoding images", len(names), unit="image") as progress:
        for images, problems in loader:
            problem = next(filter(None, problems), None)
            if problem:
                raise UserError(problem)
            pixels[done:done + len(images)] = torch.from_numpy(images)
            done += len(images)
            progress.update(steps=len(images))
    return pixels


def load_cached(tree: Tree, listing: Listing, channels: int, size: int, cache: Path) -> tuple[Tensor, Tensor]:
    """Pixels of the train and test images, from the cache file where it was made from these very files.

    Files are told by their names, sizes and dates. The cached pixels are mapped into memory, not copied.
    Damage inside them is not looked for. Where the cache cannot be written, a line says so.
    """
    names = [[name for name, _ in split] for split in (listing.train, listing.test)]
    stamps = [(name, tree.stamps[name]) for split in names for name in split]
    key = hashlib.sha256(repr((channels, size, stamps)).encode()).hexdigest()
    try:
        cached = torch.load(cache, weights_only=True, mmap=True)
        if cached["key"] == key:
            return cached["train"], cached["test"]
    except Exception:  # no cache or a damaged one: it is made anew
        pass
    train, test = (decode(tree, split, channels, size) for split in names)
    try:
        files.write_whole(cache, lambda file: torch.save({"key": key, "train": train, "test": test}, file))
    except (UserError, RuntimeError):  # torch.save turns what the system refuses into RuntimeError
        print(f"note: {cache} cannot be written, so the images will be decoded at each start", file=sys.stderr)
    return train, test
