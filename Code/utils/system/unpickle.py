"""Reading pickles of others without running what is in them: tensors, arrays and plain containers only.

No object of NumPy or torch sees what a pickle says of it before it is checked here: a dtype is one of PLAIN, and the
sizes of an array or tensor are those of the bytes that it holds. A file gives no more than WORTH times its size, and
no dict with keys that could be chosen so that each looks at all others (KEYS).
"""

import collections
import contextlib
import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import torch

from . import files

PLAIN = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}  # dtypes without objects in them
WORTH = 4  # elements and items for each byte of a file, at most: of bits kept as bytes, of grey spread over channels
LEAST = 2**16  # such items that any file may have
KEYS = 10_000  # that are numbers, in a file: others could have one hash, and n of them take n * n steps
TOO_MUCH = f"it unfolds to more than {WORTH} values for each of its bytes"


class _Dtype:
    """In place of numpy.dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *_):
        if code not in PLAIN:
            raise pickle.UnpicklingError(f"it holds an array of {str(code)[:20]!r}, not of plain numbers")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple):
        if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array that is not of plain numbers")
        self.order = state[1]

    def array(self, content: bytes, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
        values = np.frombuffer(content, np.dtype(self.order + self.code))
        if math.prod(shape) != len(values) or min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"it holds an array of {len(values)} values as {tuple(shape)}")
        return values.reshape(shape, order="F" if fortran else "C")


def _dtype(code: str | bytes, *_) -> _Dtype:
    return _Dtype(code.decode("latin1") if isinstance(code, bytes) else code)


def _scalar(dtype: _Dtype, content: bytes | str) -> np.generic:
    return dtype.array(_as_bytes(content), (), False)[()]


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return dtype.array(_as_bytes(content), shape, order == "F").copy()  # of bytes, which may not be written


def _as_bytes(content: bytes | str) -> bytes:
    """What Python 2 wrote comes as text, in latin1."""
    content = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array that is not of plain numbers")
    return bytes(content)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as protocols 0 to 2 write them."""
    return text.encode("latin1")


def _tensor(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> torch.Tensor:
    """A part of what is stored, which as_strided holds within it; not one value many times over."""
    if math.prod(size) > WORTH * len(storage):
        raise pickle.UnpicklingError(f"it holds a tensor of {len(storage)} values as {tuple(size)}")
    return storage.as_strided(size, stride, offset)


def _storage(content: bytes) -> torch.Tensor:
    """What torch pickles a tensor's storage as; torch's own function for this would run what is inside."""
    storage = load_torch(io.BytesIO(content))
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("it holds no tensor where one should be")
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _ndarray(*_):
    raise pickle.UnpicklingError("it holds an array that is not made as NumPy makes it")


class _Function:
    """A function that a pickle can call, but not build upon: it would set what is inside."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable):
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments):
        return self._call(*arguments)

    def __setattr__(self, *_):
        raise pickle.UnpicklingError("it changes a function")


def _reconstruct(kind, *_) -> np.ndarray:
    """An array that the state which follows it in the pickle fills."""
    if kind is not _NDARRAY:
        _ndarray()
    return np.empty(0)


_NDARRAY = _Function(_ndarray)
_MADE = ("multiarray", "_reconstruct", _reconstruct), ("multiarray", "scalar", _scalar), (
    "numeric", "_frombuffer", _frombuffer)  # what NumPy pickles arrays and scalars as
_NUMPY = {("numpy", "ndarray"): _NDARRAY, ("numpy", "dtype"): _Function(_dtype),
          **{(f"numpy.{core}.{module}", name): _Function(function) for core in ("core", "_core")
             for module, name, function in _MADE}}
ALLOWED = {("_codecs", "encode"): _Function(_encode), ("__builtin__", "bytes"): _Function(lambda: b""),
           ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
           ("torch.storage", "_load_from_bytes"): _Function(_storage), **_NUMPY}


class _Array:
    """In place of numpy.ndarray under torch.load, which would let a pickle build upon a real one."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, content = state
        self.value = dtype.array(_as_bytes(content), shape, fortran).copy()  # of bytes, which may not be written


# The same for torch.load(weights_only=True), which knows tensors, but not NumPy's scalars and arrays.
NUMPY = [(ALLOWED["numpy", "dtype"], "numpy.dtype"), (_Dtype, "the stand-in of numpy.dtype"),
         (_NDARRAY, "numpy.ndarray"), (_Array, "the stand-in of numpy.ndarray"),
         (ALLOWED["_codecs", "encode"], "_codecs.encode"),
         *((ALLOWED[f"numpy.{core}.multiarray", "scalar"], f"numpy.{core}.multiarray.scalar")
           for core in ("core", "_core")),
         *((_Function(lambda *_: _Array()), f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]


class _Memo(dict):
    """What a pickle refers to by number, counted from 0, or from 1 by Python 2; others could have one hash."""

    def __setitem__(self, number: int, value: Any) -> None:
        if number > len(self) + 1:
            raise pickle.UnpicklingError("it numbers its parts as no pickle does")
        super().__setitem__(number, value)


class _Unpickler(pickle._Unpickler):
    """The one in Python: that in C makes room for whatever number of objects or bytes a pickle names."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    dispatch.pop(pickle.ADDITEMS[0])  # of sets; it would add tensors
    dispatch.pop(pickle.FROZENSET[0])

    def __init__(self, file: BinaryIO, encoding: str, size: int):
        super().__init__(file, encoding=encoding)
        self.memo, self.left, self.keys_left = _Memo(), max(LEAST, WORTH * size), KEYS

    def _check_keys(self, keys: list) -> None:
        """Of a dict, before it has them: texts, whose hashes nobody knows beforehand, and few numbers."""
        self.keys_left -= sum(not isinstance(key, str | bytes) for key in keys)
        if self.keys_left < 0 or not all(isinstance(key, str | bytes | int | float | np.generic | None)
                                           for key in keys):
            raise pickle.UnpicklingError(f"the keys of its dicts are no texts, nor at most {KEYS:,} numbers")

    def load_setitem(self):
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self):
        self._check_keys(self.stack[::2])
        super().load_dict()

    def _ordered_dict(self, pairs: Any = ()) -> collections.OrderedDict:
        pairs = list(pairs)
        self._check_keys([key for key, _ in pairs])
        return collections.OrderedDict(pairs)

    def _spend(self, *parts) -> None:
        """What is copied counts, because a pickle can name the same thing again and again."""
        self.left -= sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray | list | tuple))
        if self.left < 0:
            raise pickle.UnpicklingError(TOO_MUCH)

    def load_reduce(self):
        self._spend(*self.stack[-1])
        super().load_reduce()

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(self._ordered_dict)
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not loaded because it could run code")
        return ALLOWED[module, name]

    def load_build(self):
        state, instance = self.stack.pop(), self.stack[-1]
        if type(instance) is np.ndarray:
            _, shape, dtype, fortran, content = state
            self._spend(content)
            whole = dtype.array(_as_bytes(content), shape, fortran)
            instance.__setstate__((1, shape, whole.dtype, fortran, _as_bytes(content)))
        elif type(instance) is _Dtype:
            instance.__setstate__(state)
        elif type(instance) is not collections.OrderedDict:  # whose state says nothing of what it holds
            raise pickle.UnpicklingError(f"it changes a {type(instance).__name__}")

    def load_bytearray8(self):
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def load(file: BinaryIO, encoding: str = "latin1") -> Any:
    """The content of a pickle made of tensors, NumPy arrays and plain containers.

    Raises pickle.UnpicklingError for anything else, before it is run, and whatever pickle raises for a
    damaged file.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return within(_Unpickler(file, encoding, size).load(), size)


BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
         "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1, "QUInt8": 1, "QInt8": 1, "QInt32": 4,
         "QUInt4x2": 1, "QUInt2x4": 1}  # of a value, by the kinds of storage that torch.save writes


class _Stored(NamedTuple):
    """In place of a storage of torch: how many values it has."""

    values: int


class _Look(_Unpickler):
    """Goes through a pickle of torch.save before torch does, and makes nothing of it but plain containers.

    Versions of torch differ in what they compare. records: the bytes that each storage has by its key; None where it
    is not known, and all of them have at most `size`.
    """

    dispatch: ClassVar = dict(_Unpickler.dispatch)

    def __init__(self, file: BinaryIO, size: int, records: dict[str, int] | None):
        super().__init__(file, "latin1", size)
        self.records, self.bytes_left, self.seen = records, size, {}

    def find_class(self, module: str, name: str):
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return BYTES[name.removesuffix("Storage")]
        made = {"OrderedDict": self._ordered_dict, "Counter": self._ordered_dict, "set": self._refused,
                "_rebuild_tensor_v2": self._tensor, "_rebuild_tensor": self._tensor}
        return made.get(name, self._nothing)

    def _nothing(self, *_):
        """In place of all else, which is torch's to refuse."""

    def _refused(self, *_):
        raise pickle.UnpicklingError("it holds a set")

    def persistent_load(self, said: tuple) -> _Stored:
        """What a tensor says of its storage: ("storage", type, key, device, number of values, ...)."""
        _, each, key, _, values = said[:5]
        wanted = values * each
        if self.records is not None and self.records.get(str(key)) != wanted:
            raise pickle.UnpicklingError(f"it holds {self.records.get(str(key))} bytes of a tensor as {wanted}")
        self.bytes_left -= max(0, wanted - self.seen.get(key, 0))
        self.seen[key] = max(wanted, self.seen.get(key, 0))
        if self.bytes_left < 0 or values < 0:
            raise pickle.UnpicklingError("its tensors are larger than the file")
        return _Stored(values)

    def _tensor(self, stored: _Stored, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_) -> None:
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or (math.prod(size) and last >= stored.values):
            raise pickle.UnpicklingError(f"it holds a tensor of {stored.values} values as {tuple(size)}")

    def load_build(self):
        self.stack.pop()

    def load_newobj(self):
        self.stack[-2:] = [None]

    def load_setitem(self):
        self._check_keys(self.stack[-2:-1])
        del self.stack[-2:]

    def load_setitems(self):
        self._check_keys(self.pop_mark()[::2])

    def load_append(self):
        self.stack.pop()

    def load_appends(self):
        self.pop_mark()

    dispatch |= {pickle.BUILD[0]: load_build, pickle.NEWOBJ[0]: load_newobj, pickle.SETITEM[0]: load_setitem,
                 pickle.SETITEMS[0]: load_setitems, pickle.APPEND[0]: load_append, pickle.APPENDS[0]: load_appends}


def _checked_size(file: BinaryIO) -> int:
    """The bytes of a file that torch.save wrote; UnpicklingError where its parts would take more, or do not fit."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(4) == b"PK\3\4":
        with zipfile.ZipFile(file) as archive:
            parts = {entry.filename.lower().partition("/")[2]: entry.file_size for entry in archive.infolist()}
            if any(entry.compress_type for entry in archive.infolist()) or sum(parts.values()) > size:
                raise pickle.UnpicklingError("its parts are larger than the file, or packed as torch.save packs none")
            if len(parts) < len(archive.infolist()):
                raise pickle.UnpicklingError("two of its parts have one name")
            written, = (entry for entry in archive.infolist() if entry.filename.partition("/")[2] == "data.pkl")
            records = {name.removeprefix("data/"): count for name, count in parts.items() if name.startswith("data/")}
            _Look(io.BytesIO(archive.read(written)), size, records).load()
    else:
        file.seek(0)
        for _ in range(5):  # three of the form, what was saved, the keys of storages
            _Look(file, size, None).load()
    file.seek(0)
    return size


def load_torch(file: BinaryIO | Path, mmap: bool = False) -> Any:
    """What torch.save wrote, on the CPU; with mmap, of the file at a path, mapped into memory.

    Raises pickle.UnpicklingError for more than tensors and plain values, and whatever torch raises for a damaged file.
    """
    with files.open_regular(file) if isinstance(file, Path) else contextlib.nullcontext(file) as source:
        size = _checked_size(source)
    with torch.serialization.safe_globals(NUMPY), warnings.catch_warnings(action="ignore"):  # of what it refuses
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    return _with_arrays(within(content, size))


def _with_arrays(content: Any) -> Any:
    """The same with NumPy's arrays in place of their stand-ins."""
    if isinstance(content, dict):
        return type(content)((key, _with_arrays(value)) for key, value in content.items())
    if type(content) in (list, tuple):
        return type(content)(map(_with_arrays, content))
    return content.value if isinstance(content, _Array) else content


def _count(part: Any) -> int:
    """How many values a tensor or array has, or letters a text."""
    if isinstance(part, torch.Tensor):
        return part.numel()
    return part.size if isinstance(part, np.ndarray) else len(part) if isinstance(part, str | bytes) else 1


def within(content: Any, size: int) -> Any:
    """What came of a file of `size` bytes, or UnpicklingError where it is more than such a file can hold.

    A part that is named often counts each time, because each time it is gone through.
    """
    waiting, left = [content], max(LEAST, WORTH * size)
    while waiting:
        part = waiting.pop()
        parts = [*part.keys(), *part.values()] if isinstance(part, dict) else (
            part if isinstance(part, list | tuple | set | frozenset) else [])
        left -= max(1, len(parts), _count(part))
        if left < 0:
            raise pickle.UnpicklingError(TOO_MUCH)
        waiting.extend(parts)
    return content
