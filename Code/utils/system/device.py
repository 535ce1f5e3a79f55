"""The device to compute on, and the machine in words."""

import contextlib
import platform
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import UserError, reason

CPUINFO = Path("/proc/cpuinfo")


def find(name: str) -> torch.device:
    """--device as a torch.device, auto: cuda if it is there, else cpu; UserError where it is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        raise UserError(f"--device {name}: not available on this machine; use --device cpu or auto")
    return torch.device(name)


@contextlib.contextmanager
def all_operations():
    """Around work: an operation that PyTorch lacks on Apple's GPUs becomes a UserError that says what does it."""
    try:
        yield
    except NotImplementedError as error:
        if "MPS" not in str(error):
            raise
        raise UserError(f"--device mps: {reason(error)}; start again with PYTORCH_ENABLE_MPS_FALLBACK=1 in the "
                        "environment, so that the CPU does it, or with --device cpu") from None


def send(array: np.ndarray, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The array as a tensor on a device; a GPU is not waited for, as it would be without pinned memory."""
    tensor = torch.as_tensor(array, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def describe(device: torch.device) -> str:
    """The machine in words: the GPU's name, or the CPU's and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_model()} ({device.type}, {threads} thread{'s' * (threads > 1)})"


def cpu_model() -> str:
    """The CPU's model, or where the system does not say it, its architecture."""
    return _about_cpu("model name") or platform.processor() or platform.machine()


def _about_cpu(*names: str) -> str:
    """What Linux says of the first CPU under one of these names; empty where it does not."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def say_if_slow(of: torch.device, precision: str | None) -> None:
    """Prints that bf16 is slow where a CPU has no instructions for it, as far as the system tells."""
    flags = _about_cpu("flags", "Features").split()  # of x86, of ARM
    if of.type == "cpu" and precision == "bf16" and flags and not any("bf16" in flag for flag in flags):
        print("note: --precision bf16: this CPU has no instructions for it and takes about ten times as long; "
              "leave it out", flush=True)
