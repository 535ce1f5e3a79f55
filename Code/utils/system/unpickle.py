"""Reading pickles of others without running what is in them: tensors, arrays and plain containers only.

No object of NumPy or torch sees what a pickle says of it before it is checked here: a dtype is one of PLAIN, and the
sizes of an array or tensor are those of the bytes that it holds. A file gives no more than WORTH times its size.
"""

import collections
import contextlib
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

from . import files

PLAIN = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}  # dtypes without objects in them
WORTH = 4  # elements and items for each byte of a file, at most: of bits kept as bytes, of grey spread over channels
LEAST = 2**16  # such items that any file may have
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
    return dtype.array(_as_bytes(content), shape, order == "F")


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
ALLOWED = {("collections", "OrderedDict"): _Function(collections.OrderedDict),
           ("_codecs", "encode"): _Function(_encode), ("__builtin__", "bytes"): _Function(lambda: b""),
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


class _Unpickler(pickle._Unpickler):
    """The one in Python: that in C makes room for whatever number of objects or bytes a pickle names."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    dispatch.pop(pickle.ADDITEMS[0])  # of sets; it would add tensors

    def __init__(self, file: BinaryIO, encoding: str, size: int):
        super().__init__(file, encoding=encoding)
        self.left = max(LEAST, WORTH * size)

    def _spend(self, *parts) -> None:
        """What is copied counts, because a pickle can name the same thing again and again."""
        self.left -= sum(len(part) for part in parts if isinstance(part, str | bytes | bytearray | list | tuple))
        if self.left < 0:
            raise pickle.UnpicklingError(TOO_MUCH)

    def load_reduce(self):
        self._spend(*self.stack[-1])
        super().load_reduce()

    def find_class(self, module: str, name: str):
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


def _checked_size(file: BinaryIO) -> int:
    """The bytes of a file that torch.save wrote; UnpicklingError where its parts would take more."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(4) == b"PK\3\4":
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise pickle.UnpicklingError("its parts are larger than the file; torch.save compresses nothing")
    file.seek(0)
    return size


def load_torch(file: BinaryIO | Path, mmap: bool = False) -> Any:
    """What torch.save wrote, on the CPU; with mmap, of the file at a path, mapped into memory.

    Raises pickle.UnpicklingError for more than tensors and plain values, and whatever torch raises for a damaged file.
    """
    with files.open_regular(file) if isinstance(file, Path) else contextlib.nullcontext(file) as source:
        size = _checked_size(source)
    with torch.serialization.safe_globals(NUMPY):
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
