"""Parquet files as Hugging Face stores image data sets: encoded images, labels, and the names of the classes."""

import bisect
import itertools
import json
import os
import re
from pathlib import Path

from ..system import files
from ..system.errors import UserError, reason, say
from .arrays import MOST_COMPRESSED, VALIDATION
from .class_order import composed, listed, own
from .image_files import Listing

OLDEST = 15  # the first version of pyarrow in which reading a file cannot run code
# Which part of a data set the words in a file's name, or in that of its folder, stand for.
WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
         "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION, "dev": VALIDATION}
LEAST_BYTES, LEAST_ROWS = 16, 4096  # of a file for each row, beyond so many; equal images and labels take none
LONGEST = 1000  # bytes of a label
IMAGE, LABEL = ("image", "img"), ("label", "fine_label")  # what the columns are called, where there are several


def files_in(root: Path) -> list[str]:
    """The Parquet files of a data set: that file, or those in a folder, by relative name; none where it has none."""
    if root.suffix.lower() == ".parquet" and not root.is_dir():
        return [root.name]
    found = [path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() == ".parquet"]
    return sorted(path.as_posix() for path in found if not any(part.startswith((".", "__")) for part in path.parts))


def _part(name: str) -> str | None:
    """Which part of the data set a file has, by the words of its name or else of its folders."""
    for piece in reversed(name.lower().removesuffix(".parquet").split("/")):
        parts = {WORDS[word] for word in re.split(r"[^a-z]+", piece) if word in WORDS}
        if parts:
            return parts.pop() if len(parts) == 1 else None
    return None


class Table:
    """The rows of Parquet files as encoded images, by names such as "test.parquet, row 3" (from 0).

    It is to `image_files.decode` what a `Tree` of files is. Raises UserError where the files are not of this form.
    """

    def __init__(self, root: Path, names: list[str]):
        self.root, self.folder = root, root if root.is_dir() else root.parent
        self.names = names
        self.column = {}  # file -> that of its images
        self.stamps = {}  # row -> what tells that it is the same
        self._values = {}  # file -> where the encoded images are in that column
        self._places = {}  # row -> file and its number there
        self._opened = None  # the file that was read last, and where its row groups start
        self._group = self._rows = None  # the row group that was read last: its file and rows, and its images

    def close(self) -> None:
        """Before other processes take it."""
        self._opened = self._group = self._rows = None

    def read(self, name: str) -> bytes:
        """The encoded image of a row."""
        file, row = self._places[name]
        if self._group is None or self._group[0] != file or row not in self._group[1]:
            self._read_group(file, row)
        if self._rows is None:
            raise ValueError("its row group is damaged")
        content = self._rows[row - self._group[1].start].as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if not content:
            raise ValueError("it has no bytes, and no other file is read")
        return content

    def _read_group(self, file: str, row: int) -> None:
        if self._opened is None or self._opened[0] != file:
            opened = _open(self.folder / file, self._values[file])
            self._opened = file, opened, [0, *itertools.accumulate(
                opened.metadata.row_group(k).num_rows for k in range(opened.num_row_groups))]
        _, opened, starts = self._opened
        k = bisect.bisect_right(starts, row) - 1
        self._group, self._rows = (file, range(starts[k], starts[k + 1])), None  # one that is damaged is read once
        self._rows = opened.read_row_group(k, [self.column[file]])[self.column[file]]

    def listing(self) -> Listing:
        """Which rows make up the data set; says what is left out."""
        parts = self._parts()
        contents = {part: [self._content(name) for name in names] for part, names in parts.items() if part}
        train = contents["train"]
        names = self._class_names(contents)
        test = next((part for part in ("test", VALIDATION) if part in contents and any(
            label != -1 for _, labels, _ in contents[part] for label in labels)), None)
        if test != "test" and "test" in contents:
            say(f"{self.root.name}: the labels of the test images are hidden (-1)")
        if test == VALIDATION:
            say(f"{self.root.name}: the test images are those for validation")
        left = {name: rows for part, content in contents.items() if part not in ("train", test)
                for name, (rows, _, _) in zip(parts[part], content, strict=True)}
        left |= {name: self._open(name).metadata.num_rows for name in parts.get(None, ())}
        if left:
            say(f"{self.root.name}: {sum(left.values())} images are left out: those of {listed(list(left), 5)}")
        return Listing(self._rows_of(parts["train"], train, names),
                       self._rows_of(parts[test], contents[test], names) if test else [], names)

    def _parts(self) -> dict[str | None, list[str]]:
        """The files of train, test and validation; under None those of which the name does not say."""
        parts = {}
        for name in self.names:
            parts.setdefault(_part(name), []).append(name)
        if "train" not in parts:
            if len(parts.get(None, ())) != 1 and set(parts) != {None}:
                raise UserError(f"which of {listed(self.names)} are for training is not clear; call them train-<...>"
                                ".parquet and test-<...>.parquet")
            parts["train"] = parts.pop(None)
        for part, names in parts.items():
            folders = sorted({os.path.dirname(name) for name in names})
            if part and len(folders) > 1:
                raise UserError(f"it has several data sets, in {listed(folders)}; name one of these folders")
            shards = [match.groups() for name in names if (match := re.search(r"-(\d+)-of-(\d+)", name))]
            numbers = sorted(int(number) for number, _ in shards)
            if part and shards and (len({total for _, total in shards}) > 1 or len(shards) < len(names)
                                    or numbers != list(range(int(shards[0][1])))):
                raise UserError(f"of the {int(shards[0][1])} files {names[0]} ... {len(shards)} are there; bring all")
        return parts

    def _open(self, name: str):
        return _open(self.folder / name)

    def _content(self, name: str) -> tuple[int, list, list[str] | None]:
        """Count, labels and class names of a file; notes its column of images."""
        opened = self._open(name)
        features = _features(opened)
        self.column[name], label = _columns(name, opened.schema_arrow, features)
        struct = opened.schema_arrow.field(self.column[name]).type.num_fields
        self._values[name] = f"{self.column[name]}.bytes" if struct else self.column[name]
        labels = _labels(self.folder / name, label)
        odd = next((k for k, value in enumerate(labels) if not isinstance(value, int | str)), None)
        if odd is not None:
            raise UserError(f"{name}, row {odd}: its {label} is {labels[odd]!r}, no label; remove the row")
        names = features.get(label, {}).get("names")
        return len(labels), labels, names if isinstance(names, list) else None

    def _class_names(self, contents: dict[str, list]) -> list[str]:
        """Names of the classes: those in the files, or the labels themselves. UserError where files differ."""
        every = [content for part in contents.values() for content in part]
        named = [names for _, _, names in every if names is not None]
        if any(names != named[0] for names in named):
            raise UserError(f"its files name their classes differently: {listed(named[0])}, and "
                            f"{listed(next(names for names in named if names != named[0]))}; bring files of one data "
                            "set")
        if named:
            return [str(name) for name in named[0]]
        values = {label for _, labels, _ in contents["train"] for label in labels}
        if all(isinstance(value, int) for value in values):
            if values != set(range(len(values))):
                raise UserError(f"its labels are to be 0, 1, ... without a gap, and they are {listed(sorted(values))}; "
                                "number the classes anew")
            return [str(k) for k in range(len(values))]
        return own(sorted({composed(str(value)) for value in values}))

    def _rows_of(self, names: list[str], contents: list, classes: list[str]) -> list[tuple[str, int]]:
        """(row, label) of each image."""
        found, index = [], {name: k for k, name in enumerate(classes)}
        for name, (_, labels, _) in zip(names, contents, strict=True):
            status = (self.folder / name).stat()
            for row, value in enumerate(labels):
                label = index.get(composed(value), -1) if isinstance(value, str) else value
                if not 0 <= label < len(classes):
                    raise UserError(f"{name}, row {row}: its label is {value}, which is none of the classes "
                                    f"{listed(classes)}; remove the row")
                key = f"{name}, row {row}"
                self._places[key] = name, row
                self.stamps[key] = status.st_size, status.st_mtime_ns, self.column[name]
                found.append((key, label))
        return found


def _open(path: Path, images: str = ""):
    """A Parquet file; UserError where it is damaged, unfolds to too much, or pyarrow is not there.

    images: where the values are, of which equal ones are to stay one in memory.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path.name}: Parquet files are read with pyarrow, which is not installed; install it: pip "
                        "install pyarrow") from None
    if int(pyarrow.__version__.split(".")[0]) < OLDEST:
        raise UserError(f"{path.name}: pyarrow {pyarrow.__version__} may run code that a file holds; install version "
                        f"{OLDEST} or later")
    try:
        files.open_regular(path).close()
        opened = pyarrow.parquet.ParquetFile(path, read_dictionary=[images] if images else None)
        groups = [opened.metadata.row_group(k) for k in range(opened.num_row_groups)]
        unfolded, size = sum(group.total_byte_size for group in groups), path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a Parquet file or a folder") from None
    except Exception as error:  # pyarrow raises many kinds
        raise UserError(f"{path.name}: not a readable Parquet file ({reason(error)}); bring it whole") from None
    if sum(group.num_rows for group in groups) > max(LEAST_ROWS, size // LEAST_BYTES):
        raise UserError(f"{path.name}: it has less than {LEAST_BYTES} bytes for each of its rows, which no images have")
    if unfolded > max(MOST_COMPRESSED * size, 2**20):
        raise UserError(f"{path.name}: its content is more than {MOST_COMPRESSED} times the size of the file")
    return opened


def _labels(path: Path, column: str) -> list:
    """The labels of a file; UserError where they are damaged, or longer than a name, which a file can repeat."""
    import pyarrow.compute

    try:
        labels = _open(path, column).read([column])[column]  # each text once
        for chunk in labels.chunks:
            texts = getattr(chunk, "dictionary", None)
            if texts is not None and (pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py() or 0) > LONGEST:
                raise ValueError(f"a label is longer than {LONGEST} letters")
        return labels.to_pylist()
    except UserError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise UserError(f"{path.name}: its {column} cannot be read ({reason(error)}); bring it whole") from None


def _features(opened) -> dict[str, dict]:
    """What Hugging Face's metadata say of each column, without those that are damaged."""
    try:
        features = json.loads((opened.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _columns(name: str, schema, features: dict[str, dict]) -> tuple[str, str]:
    """The columns of images and labels; UserError with the list of columns where that is not clear."""
    import pyarrow.types as types

    def is_image(kind) -> bool:
        struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return types.is_binary(kind) or types.is_large_binary(kind) or struct

    def is_label(column) -> bool:
        return types.is_integer(column.type) or types.is_string(column.type) or types.is_large_string(column.type)

    images = [column.name for column in schema if is_image(column.type)]
    classes = [column.name for column in schema if features.get(column.name, {}).get("_type") == "ClassLabel"]
    labels = classes or [column.name for column in schema if is_label(column)]
    found = []
    for what, among, usual in (("images", images, IMAGE), ("labels", labels, LABEL)):
        known = [column for column in among if column.lower() in usual]
        if len(known) != 1 and len(among) != 1:
            columns = [f"{column.name} ({str(column.type)[:40]})" for column in schema]
            raise UserError(f"{name}: which column has the {what} is not clear; it has {listed(columns)}; call them "
                            "image (encoded images) and label")
        found.append(known[0] if len(known) == 1 else among[0])
    if len(classes) > 1:
        say(f"{name}: labels are {found[1]}, and {listed([one for one in classes if one != found[1]])} is left out")
    return found[0], found[1]
