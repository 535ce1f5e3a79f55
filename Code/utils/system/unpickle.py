"""Reading pickles of others without running what is in them: tensors, arrays and plain containers only."""

import collections
import io
import pickle
from typing import Any, BinaryIO

import numpy as np
import torch


def _storage(content: bytes) -> Any:
    """What torch pickles a tensor's storage as; torch's own function for this would run what is inside."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


# What NumPy pickles arrays and scalars as, wherever this version of it keeps these functions.
_reconstruct, _scalar = np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]

ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes, as protocols 0 to 2 write them
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}

# The same for torch.load(weights_only=True), which knows tensors, but not the NumPy scalars of older sets.
NUMPY_SCALARS = [(np.dtype, "numpy.dtype"), type(np.dtype(np.float64)), type(np.dtype(np.float32)),
                 (ALLOWED["_codecs", "encode"], "_codecs.encode"),
                 *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not loaded because it could run code")
        return ALLOWED[module, name]


def load(file: BinaryIO, encoding: str = "latin1") -> Any:
    """The content of a pickle made of tensors, NumPy arrays and plain containers.

    Raises pickle.UnpicklingError for anything else, before it is run, and whatever pickle raises for a
    damaged file.
    """
    return _Unpickler(file, encoding=encoding).load()
