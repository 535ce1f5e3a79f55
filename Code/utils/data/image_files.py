"""Image files, in a folder or a zip: which there are, of which class, and their pixels, cached as one uint8 file."""

import contextlib
import contextvars
import hashlib
import io
import os
import re
import stat
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

from ..system import files, logs, unpickle
from ..system.errors import UserError, reason, say
from . import class_order, whole_image
from .arrays import MOST_COMPRESSED

ANEW = "unpack or download tiny-imagenet-200.zip again, whose layout is to stay as published"
LIKE_TRAIN = {"train", "training", "trn", "trainset", "traindata", *(
    f"{word}_{what}" for word in ("train", "training") for what in ("set", "images", "data"))}  # without capitals
SPLITS = {"train", "training", "trn", "test", "testing", "tst", "val", "valid", "validation", "eval", "evaluation",
          "dev"}  # words in names of folders that are no classes
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jfif", ".jpe", ".gif")
LEFT_BY_SYSTEMS = {"Thumbs.db", "desktop.ini", "Icon\r", "ehthumbs.db", "__MACOSX", "@eaDir", "#recycle",
                   "$RECYCLE.BIN", "System Volume Information", "lost+found"}
TENSORS = (".pt", ".pth", ".npy", ".npz", ".pkl")  # which may be labels, wherever they lie
DECODED = "on white"  # how; a cache of pixels that were decoded otherwise is made anew
SAID, MOST_SAID = 10, 80  # of files that are wrong, the first ones are named, with so many letters each
FILES_PER_WORKER = 1000  # a decoding process costs as much as decoding about this many small images
READ_ONLY = contextvars.ContextVar("READ_ONLY", default=False)  # whether the folder of the data is another's
MOST_FILE_BYTES, MOST_PIXELS = 2**28, 50_000_000  # of one file, before it is decoded
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of the documented names; others start programs
BATCH_BYTES = 2**20  # of pixels that a decoding process hands over at once


class Tree:
    """The files below a folder or inside a zip, by relative name. Nothing is unpacked.

    Where all of them lie in one folder, as in most zips, names are relative to that. Raises UserError where the zip is
    damaged or a file cannot be reached.
    """

    def __init__(self, root: Path):
        self.root = root
        self._zip = None
        self._members = {}
        self.folders = set()
        stamps = self._zip_stamps() if root.is_file() else self._folder_stamps()
        top = _one_folder([name for name in stamps if _is_visible(name)])
        self._members = {name[len(top):]: self._members.get(name, name) for name in stamps if name.startswith(top)}
        self.stamps = {name: stamps[top + name] for name in self._members}
        self.folders = {folder[len(top):] for folder in self.folders if folder.startswith(top)}

    def _folder_stamps(self) -> dict[str, tuple]:
        stamps = {}

        def refuse(error: OSError):
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); put it right or remove it") from None

        walk = os.walk(self.root, onerror=refuse, followlinks=True) if self.root.exists() else ()
        for folder, _, names in walk:
            if os.path.islink(folder) and Path(folder).resolve() in map(Path.resolve, Path(folder).parents):
                raise UserError(f"{folder}: a link back to a folder above it; remove it")
            self.folders.add(Path(folder).relative_to(self.root).as_posix())
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except OSError as error:
                    refuse(error)
                stamps[path.relative_to(self.root).as_posix()] = (status.st_size, status.st_mtime_ns)
        return stamps

    def _zip_stamps(self) -> dict[str, tuple]:
        try:
            with zipfile.ZipFile(self.root) as archive:
                entries = files.zip_entries(archive)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.root}: not a readable zip ({reason(error)}); download or pack it again") from None
        if sum(entry.file_size for entry in entries) > max(MOST_COMPRESSED * self.root.stat().st_size, MOST_FILE_BYTES):
            raise UserError(f"{self.root}: its files are more than {MOST_COMPRESSED} times as large as it; download it "
                            "again")
        windows = not any("/" in entry.filename for entry in entries)  # as some programs there write them
        names = {entry.filename: entry.filename.replace("\\", "/") if windows else entry.filename for entry in entries}
        self.folders = {name.rstrip("/") for name in names.values() if name.endswith("/")}
        entries = [entry for entry in entries if not names[entry.filename].endswith("/")]
        self._members = {names[entry.filename]: entry.filename for entry in entries}
        stamps = {entry.filename: (entry.file_size, entry.date_time, entry.CRC) for entry in entries}
        if len(self._members) < len(entries):
            raise UserError(f"{self.root}: it has several files of one name; pack it anew")
        return {name: stamps[member] for name, member in self._members.items()}

    def read(self, name: str) -> bytes:
        if self.stamps.get(name, (0,))[0] > MOST_FILE_BYTES:
            raise ValueError(f"larger than {MOST_FILE_BYTES >> 20} MiB")
        if self.root.is_dir():
            with files.open_regular(self.root / self._members.get(name, name)) as file:
                return file.read(MOST_FILE_BYTES)
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.root)
        return files.unzip(self._zip, self._zip.getinfo(self._members[name]))

    def close(self) -> None:
        """Before other processes take it: each is to open the zip for itself, or they move each other's position."""
        if self._zip is not None:
            self._zip.close()
            self._zip = None


def _one_folder(names: list[str]) -> str:
    """The folder, with a slash, that all these files lie in, if it is none of a split: "", "name/" or "name/name/"."""
    top = ""
    while True:
        first = {name[len(top):].split("/")[0] for name in names}
        loose = any("/" not in name[len(top):] for name in names)
        (only,) = first if len(first) == 1 else (None,)
        if only is None or loose or only.casefold() in LIKE_TRAIN or _is_like_test(only):
            return top
        if not any("/" in name[len(top) + len(only) + 1:] for name in names):  # a class alone
            return top
        top += f"{only}/"


@dataclass
class Listing:
    """Which image files make up a data set: (name, label) of each, and the names of the classes."""

    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    class_names: list[str]

    def __post_init__(self):
        if not self.train:
            raise UserError("no images in train/<class>/")


def _is_visible(name: str) -> bool:
    """Not hidden, and not what macOS and Windows leave behind."""
    parts = name.split("/")
    return not any(part.startswith(".") or part in LEFT_BY_SYSTEMS for part in parts)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and _is_visible(name)


def images_by_folder(tree: Tree, below: str = "") -> tuple[list[str], list[str]]:
    """Names of the images in <below><class>/**, sorted, and the class folder of each, in one form of Unicode."""
    names = [name for name in sorted(tree.stamps) if name.startswith(below) and _is_image(name)]
    found = [(name, class_order.composed(name[len(below):].split("/")[0])) for name in names
             if "/" in name[len(below):]]
    return [name for name, _ in found], [folder for _, folder in found]


def find_splits(tree: Tree) -> tuple[str, str | None]:
    """Where train and test images are: "train/" and "test/", or what they are called; UserError if that is not clear.

    Where there is no such folder, "" is that of all classes, and None stands for no test images.
    """
    tops = sorted({name.split("/")[0] for name in tree.stamps if "/" in name and _is_image(name)})
    train = [top for top in tops if top == "train"] or [top for top in tops if top.casefold() in LIKE_TRAIN]
    others = [top for top in tops if top not in train]
    if not train:
        if len(others) < 2 or any(SPLITS & set(re.split("[^a-z]+", top.casefold())) for top in others):
            where = f", but in {class_order.listed(others)}" if others else ""
            raise UserError(f"no images in train/<class>/{where}; {_advice(tree)}")
        return "", None
    test = ([top for top in others if top == "test"] or [top for top in others if top.casefold().startswith("test")]
            or others)
    if len(train) > 1 or len(test) > 1:
        raise UserError(f"which of the folders {class_order.listed(tops)} are for training and testing is not clear; "
                        "call them train and test")
    unread = sorted({name.split("/")[0] for name in tree.stamps if "/" in name and _is_visible(name)} - set(tops))
    if not test and (unread := list(filter(_is_like_test, unread))):
        raise UserError(f"{unread[0]}/ has files, but no images that are read; bring {unread[0]}/<class>/<image>, or "
                        "remove it")
    return f"{train[0]}/", f"{test[0]}/" if test else None


def _advice(tree: Tree) -> str:
    """What to do where images are not in class folders."""
    near = sorted(name for name in tree.stamps if name.count("/") < 2 and _is_visible(name))
    arrays, tables = ([name for name in near if name.lower().endswith(kinds)]
                      for kinds in ((".npz", ".zip"), (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".xml", ".mat")))
    if arrays:
        return f"name {arrays[0]} itself"
    told = f"no labels are read from {class_order.listed(tables, 3)}: " if tables else ""
    return f"{told}sort the images into train/<class>/ and, for testing, test/<class>/, or name the folder above these"


def _is_like_test(name: str) -> bool:
    return name.casefold().startswith(("test", "val", "eval")) or name.casefold() == "dev"


def say_what_is_left_out(tree: Tree, used: list[str], below: tuple[str, ...], within: tuple[str, ...] = ("",),
                         known: tuple[str, ...] = ()) -> None:
    """A line with the counts of visible files below these folders, and of images `within` others, that are not read.

    known: endings of files that belong there.
    """
    left = sorted(name for name in tree.stamps.keys() - set(used) if (_is_image(name) and name.startswith(within)) or (
        _is_visible(name) and name.startswith(below) and not name.endswith(known or ("\0",))
        and ("/" in name or name.lower().endswith(TENSORS))))
    if not left:
        return
    images = [name for name in left if _is_image(name)]
    kinds = sorted({PurePosixPath(name).suffix or "no suffix" for name in left if not _is_image(name)})
    counts = [f"{len(images)} images outside of class folders or in folders that are not used"] if images else []
    if kinds:
        counts += [f"{len(left) - len(images)} of types that are not read ({class_order.listed(kinds, 5)})"]
    say(f"{tree.root.name}: {len(left)} files are left out: {', '.join(counts)}; such as {left[0]}")


def _empty_classes(tree: Tree, below: str, classes: list[str]) -> list[str]:
    """The folders beside those of these classes."""
    folders = {folder[len(below):] for folder in tree.folders if folder.startswith(below) and _is_visible(folder)}
    return sorted({class_order.composed(name) for name in folders if name not in ("", ".") and "/" not in name}
                  - set(classes))


def _refuse_empty_classes(tree: Tree, below: str, classes: list[str]) -> None:
    """UserError for class folders that have no image that is read."""
    empty = _empty_classes(tree, below, classes)
    if empty:
        raise UserError(f"{below}{empty[0]} has no images that are read ({len(empty)} such class folders); add images "
                        "(PNG, JPEG, WebP, TIFF, BMP, GIF), or remove the folder")


def list_classes(tree: Tree, dataset: str | None = None) -> Listing:
    """<train>/<class>/**/<image> and <test>/<class>/**/<image>; there may be no test folder.

    Labels are those of the published data set of this name, or else follow the names of the folders. What is not
    read is printed.
    """
    below, test_below = find_splits(tree)
    (train, train_folders), (test, test_folders) = (images_by_folder(tree, below), ([], []) if test_below is None
                                                    else images_by_folder(tree, test_below))
    classes = class_order.own(sorted(set(train_folders)))
    if test_below and not test:
        raise UserError(f"{test_below} has images, but not as {test_below}<class>/; make it so, or remove it")
    if not train:
        raise UserError(f"no images in {below}<class>/; {_advice(tree)}")
    _refuse_empty_classes(tree, below, classes)
    look_within(tree, below, train, train_folders)
    if dataset:
        index, test_index, names = _published_labels(dataset, classes, sorted(set(test_folders)))
    else:
        index = test_index = {name: k for k, name in enumerate(classes)}
        unknown = sorted(set(test_folders) - set(classes))
        if unknown:
            raise UserError(f"{test_below}{unknown[0]} has no images in {below}{unknown[0]}; call the folders of a "
                            "class alike, or remove it")
        names = [os.fsencode(name).decode(errors="replace") for name in classes]
    if test and test_below != "test/":
        say(f"{tree.root.name}: the test images are those in {test_below}")
    empty = _empty_classes(tree, test_below, test_folders + classes) if test_below else []
    if empty:
        say(f"{tree.root.name}: {len(empty)} folders in {test_below} have no images that are read: "
            f"{class_order.listed(empty, 5)}")
    say_what_is_left_out(tree, train + test, (below, test_below) if test_below else (below,))
    return Listing([(name, index[folder]) for name, folder in zip(train, train_folders, strict=True)],
                   [(name, test_index[folder]) for name, folder in zip(test, test_folders, strict=True)], names)


def look_within(tree: Tree, below: str, names: list[str], folders: list[str]) -> None:
    """A line for classes with several folders within; UserError where all have the same, which may be the classes."""
    within = {folder: set() for folder in folders}
    for name, folder in zip(names, folders, strict=True):
        within[folder].update(name[len(below):].split("/")[1:-1][:1])
    shared = sorted(set.intersection(*within.values()))
    if len(within) > 1 and len(shared) > 1:
        raise UserError(f"each of the folders {class_order.listed(list(within))} has folders "
                        f"{class_order.listed(shared)} in it, so which are the classes is not clear; keep the images "
                        "of a class in one folder, without folders within")
    several = [folder for folder, inner in within.items() if len(inner) > 1]
    if several:
        say(f"{tree.root.name}: all folders within {class_order.listed(several, 5)} are taken as of that class "
            f"({len(several)} such classes)")


def _published_labels(dataset: str, train: list[str], test: list[str]) -> tuple[dict, dict, list[str]]:
    """The labels of train and test folders, and the names of the classes; UserError where train lacks a class."""
    names, labels = class_order.NAMES[dataset], [class_order.published(dataset, folders) for folders in (train, test)]
    lacks = [name for k, name in enumerate(names) if train and k not in labels[0].values()]
    if lacks:
        raise UserError(f"train/ has no images of {class_order.listed(lacks)}, which are classes of {dataset}; add "
                        "them, or take BACON_folder.py for some of the classes")
    return *labels, names


def list_tiny_imagenet(tree: Tree) -> Listing:
    """Tiny-ImageNet's own layout: train/<wnid>/images/*, val/images/* with val/val_annotations.txt; also val/<wnid>/**.

    Classes are in the order of their WordNet IDs; words.txt gives their names. The test set is val, as in
    the literature: the labels of the original test images were never published.
    """
    names, folders = images_by_folder(tree, "train/")
    wnids = sorted(set(folders))
    odd = [wnid for wnid in wnids if not re.fullmatch(r"n[0-9]{8}", wnid)]
    if odd or not wnids:
        where = f", but in {class_order.listed(odd)}" if odd else ""
        raise UserError(f"no images in train/<wnid>/, as published{where}; {ANEW}")
    index = {wnid: k for k, wnid in enumerate(wnids)}
    train = [(name, index[wnid]) for name, wnid in zip(names, folders, strict=True)]
    test = _tiny_validation(tree, index)
    if wnids != sorted(class_order.tiny_names()):
        say(f"{tree.root.name}: labels are those of the {len(wnids)} folders of train/, not of the 200 published ones")
    words = class_order.tiny_names() | _tab_separated(tree, "words.txt")
    say_what_is_left_out(tree, [name for name, _ in train + test], ("train/", "val/"), within=("train/", "val/"),
                         known=(".txt",))
    return Listing(train, test, [words.get(wnid, wnid).split(",")[0] for wnid in wnids])


def _tab_separated(tree: Tree, name: str) -> dict[str, str]:
    """The first two columns of a file; none where it is not there. UserError where it is damaged."""
    try:
        lines = [line.split("\t") for line in tree.read(name).decode().splitlines()] if name in tree.stamps else []
        return {first: second for first, second, *_ in lines}
    except Exception as error:  # a damaged zip, a line that should not be there
        raise UserError(f"{name} is damaged ({reason(error)}); {ANEW}") from None


def _tiny_validation(tree: Tree, index: dict[str, int]) -> list[tuple[str, int]]:
    """(name, label) of the images of val, labelled by val_annotations.txt or by the folders that they lie in."""
    noted = _tab_separated(tree, "val/val_annotations.txt")
    names, folders = images_by_folder(tree, "val/")
    by_class = [(name, folder) for name, folder in zip(names, folders, strict=True) if folder in index]
    if by_class and not any(f"val/images/{name}" in tree.stamps for name in noted):
        wrong = [name for name, folder in by_class if noted.get(name.split("/")[-1], folder) != folder]
        if wrong:
            raise UserError(f"{wrong[0]} is of another class in val/val_annotations.txt; {ANEW}")
        say(f"{tree.root.name}: the images of val are labelled by their folders")
        return [(name, index[folder]) for name, folder in by_class]
    if not noted:
        where = f"val/ has images in {class_order.listed(sorted(set(folders)), 5)}" if names else "val/ has no images"
        raise UserError(f"{where}, and val/val_annotations.txt with their labels is not there; {ANEW}")
    other = next((wnid for wnid in noted.values() if wnid not in index), None)
    if other:
        raise UserError(f"val/val_annotations.txt has images of {other}, of which train/ has none; {ANEW}")
    test = [(f"val/images/{name}", index[wnid]) for name, wnid in noted.items()]
    missing = next((name for name, _ in test if name not in tree.stamps), None)
    if missing:
        raise UserError(f"{missing} is named in val/val_annotations.txt and is not there; {ANEW}")
    return test


class _Images(Dataset):
    """The files of a tree as uint8 (C, size, size), each with what is wrong with it, if anything."""

    def __init__(self, tree: Tree, names: list[str], channels: int, size: int):
        self.tree, self.names, self.mode, self.size = tree, names, {1: "L", 3: "RGB"}[channels], size
        self.broken = np.zeros((channels, size, size), np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: int) -> tuple[np.ndarray, str]:
        try:
            content = self.tree.read(self.names[k])
            # Pillow warns of transparency that is lost
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    return self.broken, (f"{self.names[k]} has {image.width} x {image.height} pixels, more than "
                                         f"{MOST_PIXELS:,}; make it smaller")
                with logs.without_lines_of_libraries() if image.format == "TIFF" else contextlib.nullcontext():
                    image = whole_image.as_pixels(image, content, self.mode)
                pixels = np.array(ImageOps.fit(image, (self.size, self.size), Image.Resampling.BICUBIC)
                                  if image.size != (self.size, self.size) else image)
        except whole_image.NotWhole as error:
            return self.broken, f"{self.names[k]} {error}"
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
    done, wrong = 0, []
    with logs.Progress("decoding images", len(names), unit="image") as progress:
        for images, problems in loader:
            wrong += filter(None, problems)
            pixels[done:done + len(images)] = torch.from_numpy(images)
            done += len(images)
            progress.update(steps=len(images))
    if len(wrong) > 1:
        shown = ", ".join(problem.split(";")[0][:MOST_SAID] for problem in wrong[:SAID])
        raise UserError(f"{len(wrong)} images are wrong: {shown}{', ...' if len(wrong) > SAID else ''}; replace or "
                        "remove them")
    if wrong:
        raise UserError(wrong[0])
    return pixels


def _safe_stamp(cache: Path, root: Path) -> tuple | None:
    """Tells a cache from others of its name; None where not only this user, root and the owner of the images write it.

    Its name is known to all who share the folder, and whoever writes it, or links to another, chooses the pixels.
    """
    owners, link, file = {getattr(os, "getuid", int)(), 0, root.stat().st_uid}, cache.lstat(), cache.stat()
    if not {link.st_uid, file.st_uid} <= owners or file.st_mode & stat.S_IWOTH:
        return None
    return link.st_ino, link.st_ctime_ns, file.st_ino, file.st_ctime_ns


def load_cached(tree: Tree, listing: Listing, channels: int, size: int, cache: Path) -> tuple[Tensor, Tensor]:
    """Pixels of the train and test images, from the cache file where it was made from these very files.

    Files are told by their names, sizes and dates. The cached pixels are mapped into memory, not copied. A cache that
    others can have written is made anew.
    Damage inside them is not looked for. Where the cache cannot be written, a line says so.
    """
    names = [[name for name, _ in split] for split in (listing.train, listing.test)]
    stamps = [(name, tree.stamps[name]) for split in names for name in split]
    key = hashlib.sha256(repr((DECODED, channels, size, stamps)).encode()).hexdigest()
    try:
        before = _safe_stamp(cache, tree.root)
        cached = unpickle.load_torch(cache, mmap=True)
        whole = all(cached[part].dtype == torch.uint8 and cached[part].shape == (len(split), channels, size, size)
                    for part, split in zip(("train", "test"), names, strict=True))
        if cached["key"] == key and whole and before and before == _safe_stamp(cache, tree.root):
            return cached["train"], cached["test"]
    except Exception:  # no cache or a damaged one: it is made anew
        pass
    train, test = (decode(tree, split, channels, size) for split in names)
    if READ_ONLY.get():
        return train, test
    try:
        files.write_whole(cache, lambda file: torch.save({"key": key, "train": train, "test": test}, file))
    except (UserError, RuntimeError):  # torch.save turns what the system refuses into RuntimeError
        say(f"note: {cache} cannot be written, so the images will be decoded at each start", file=sys.stderr)
    return train, test
