"""Memory: how much is free, how many images fit into it, what to say when it is too little."""

import contextlib
import ctypes
import sys
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

try:
    import resource
except ImportError:  # on Windows
    resource = None

from . import distributed
from .errors import UserError, is_out_of_memory, reason

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
MOST_IMAGES = {"cpu": 512, "cuda": 2048, "mps": 512}  # in one pass; on a CPU more is no faster, a GPU was not measured
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # limits of groups, and the groups of this one
PASSES_IN_MEMORY = 4  # what the graph keeps, its gradients, real images beside synthetic ones, all else


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


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still take; infinite where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(available, left_to_groups(CGROUPS, OWN_CGROUPS)) / distributed.world_size()


def left_to_groups(root: Path, own: Path) -> float:
    """Bytes that the limits of this process's control groups leave (a container's, a batch job's); infinite without."""
    left = float("inf")
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):  # of cgroup v2, v1; a limit holds for all groups below it
            folders = accumulate([root / controllers, *Path(group).parts[1:]], Path.joinpath)
            left = min(left, *map(_left_to_group, folders))
    return left


def _left_to_group(folder: Path) -> float:
    """Bytes that the limit of one control group leaves, those of cached files included."""
    for limit, used, total in (("memory.max", "memory.current", ""),  # of cgroup v2, then v1
                               ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")):
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            stat = (folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # not there, or "max"
            continue
        files = f"{total}inactive_file ", f"{total}active_file "
        return max(0, most - taken + sum(int(line.split()[1]) for line in stat if line.startswith(files)))
    return float("inf")


def memory_peak(device: torch.device) -> float | None:
    """The most memory that this process has held so far, in GB: of the GPU, or else of the machine.

    None where the system does not tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def batch_that_fits(network: nn.Module, image: Tensor) -> int:
    """How many images like this one (1, C, H, W) to take through a network at once where --max_batch does not say.

    As many as free memory holds with what their graph keeps for the backward pass, at most MOST_IMAGES: on a
    CPU, free memory decides only where it is short. On a GPU it is a power of two, so that a compiled network meets
    few sizes. The network should be in evaluation mode.
    """
    own, kept = {weight.data_ptr() for weight in network.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor.detach()

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(image.detach().requires_grad_())
    each = PASSES_IN_MEMORY * sum(size for place, size in kept.items() if place not in own)
    count = int(max(1, min(MOST_IMAGES[image.device.type], free_memory(image.device) / each)))
    return 2 ** (count.bit_length() - 1) if image.device.type == "cuda" else count


def peak_in_words(device: torch.device) -> str:
    """The same, to be printed."""
    peak = memory_peak(device)
    return "not known on this system" if peak is None else f"{peak:.2f} GB"


@contextlib.contextmanager
def enough_memory(max_batch: int | None, resumable: bool = False, lower: tuple[str, ...] = ()):
    """Around work: too little memory becomes a UserError that says which options need less.

    max_batch: what --max_batch says. resumable: the command takes --resume. lower: other flags whose value counts.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        again = "continue with --resume auto and" if resumable else "start anew with"
        smaller = f"a lower --max_batch (now {max_batch})" if max_batch else "--max_batch 64, or lower"
        flags = " or ".join(f"--{name}" for name in lower)
        more = f"; if that is not enough, start anew with a lower {flags}" if flags else ""
        raise UserError(f"out of memory ({reason(error)}); {again} {smaller}, which "
                        f"leaves the method as it is{more}") from None
