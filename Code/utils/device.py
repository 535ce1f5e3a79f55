"""The machine: which device to compute on, and settings that make it fast."""

import contextlib
import ctypes
import platform
import sys
from pathlib import Path

import torch

from utils.errors import UserError, reason

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory instead of handing it back to the system.

    Activations of tens of megabytes are allocated anew at every step; by default each comes from fresh
    pages, and clearing them costs a third of the time on a CPU. Does nothing on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def choose(name: str) -> torch.device:
    """--device as a torch.device; UserError where it is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UserError(f"--device {name}: not available on this machine; use --device cpu or auto")
    return torch.device(name)


def describe(device: torch.device) -> str:
    """The machine in words: the GPU's name, or the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()} ({device.type}, {threads} thread{'s' * (threads > 1)})"


def processor() -> str:
    """The processor's model, or where the system does not say it, its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error))  # what the CPU's allocator says


@contextlib.contextmanager
def memory_explained(max_batch: int):
    """Around a run: too little memory becomes a UserError that says which flags lower the need."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory ({reason(error)}); continue with --resume auto and a lower --max_batch (now "
                        f"{max_batch}), which leaves the method as it is; if that is not enough, start anew with a "
                        "lower --trained_bs, --batch_train or --batch_real") from None
