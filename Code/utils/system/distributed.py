"""Several processes: `torchrun --nproc_per_node=N BACON_*.py ...` shares the work of a run among N of them.

Every process makes the same random draws, so no image is ever sent. A process computes the gradients of its own
classes, trains its own networks of the pool, and evaluates its own share of networks. Collectives (gloo, NCCL) give
everyone the rest. All processes hold the same state; the main process, of rank 0, writes the files. In a run of one
process, nothing here does anything.
"""

import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import UserError, is_out_of_memory, reason

JOINING = timedelta(minutes=5)  # to find the others, who are started together
PR_SET_PDEATHSIG = 1  # of Linux' prctl.h
PATIENCE = timedelta(days=1)  # an evaluation that others wait for takes long; a process that ends is noticed at once


class ProcessLost(Exception):
    """Another process of the run has ended, so this one cannot go on."""

    exit_code = 1


def started_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def world_size() -> int:
    """The number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextlib.contextmanager
def process_group(device: torch.device):
    """Around a run: joins the other processes, if torchrun started any. Only the main process prints."""
    if not started_by_torchrun():
        yield
        return
    backend = "cpu:gloo"
    if device.type == "cuda":
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise UserError(f"torchrun: {here} processes on a machine with {gpus} GPUs; start at most one for each GPU")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    _end_with_parent("SIGKILL")  # a process that waits for others in here hears no other signal
    _check_torchrun()
    with _others_alive():
        dist.init_process_group(backend, timeout=JOINING)
        _set_timeout(PATIENCE)
    _end_with_parent("SIGTERM")  # on which a run keeps its work
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()


def _check_torchrun() -> None:
    """ProcessLost where torchrun had ended before `_end_with_parent`: then nobody answers where processes meet."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # a process of the run is to answer there
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(place, timeout=JOINING.total_seconds()).close()
    except OSError as error:
        raise ProcessLost(f"process {os.environ['RANK']}: torchrun has ended ({reason(error)}); start it "
                          "again") from None


def _end_with_parent(name: str) -> None:
    """From now on this signal comes when the process that started this one ends: torchrun. On Linux alone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, getattr(signal, name))


def _set_timeout(timeout: timedelta) -> None:
    """Of all that the processes wait for from now on."""
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(timeout)
    else:  # of older versions of PyTorch
        dist.distributed_c10d._set_pg_timeout(timeout)


@contextlib.contextmanager
def _others_alive():
    """Around a collective: that another process has ended becomes a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ProcessLost(f"process {rank()}: another process of this run has ended ({reason(error)}); continue with "
                          "--resume auto and any number of processes") from None


def own_classes(classes: int) -> slice:
    """The classes whose gradients this process computes. UserError where there are fewer than processes."""
    if world_size() > classes:
        raise UserError(f"torchrun: {world_size()} processes cannot share {classes} classes; start at most {classes}")
    return slice(classes * rank() // world_size(), classes * (rank() + 1) // world_size())


def is_own_turn(turn: int) -> bool:
    """Whether this process does the turn-th of several equal pieces of work."""
    return turn % world_size() == rank()


def all_reduce(*tensors: Tensor) -> None:
    """Replaces each tensor by its sum over the processes."""
    if world_size() > 1:
        with _others_alive():
            for tensor in tensors:
                dist.all_reduce(tensor)


def broadcast(list_tensors: Callable[[], list[Tensor]], turn: int) -> None:
    """Copies to every process the tensors of the one that did the turn-th piece of work, in one message."""
    if world_size() > 1:
        tensors = list_tensors()
        message = torch.cat([tensor.flatten() for tensor in tensors])
        with _others_alive():
            dist.broadcast(message, turn % world_size())
        for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def all_reduce_max(number: int) -> int:
    """The largest of the processes' numbers. It is exchanged on the CPU, so that no GPU is waited for."""
    if world_size() == 1:
        return number
    numbers = torch.tensor(number)
    with _others_alive():
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def barrier() -> None:
    """Waits until every process has called this."""
    all_reduce_max(0)


def main_process_only(function: Callable[..., None]) -> Callable[..., None]:
    """Decorates a function that only the main process runs, such as one that writes a file."""

    @functools.wraps(function)
    def only(*arguments, **named) -> None:
        if rank() == 0:
            function(*arguments, **named)

    return only


@contextlib.contextmanager
def main_process_first():
    """Around work that the main process does first, such as a download that the others then find done."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def broadcast_object(decide: Callable[[], object]):
    """What `decide` returns in the main process, which alone calls it; every process gets it."""
    if world_size() == 1:
        return decide()
    answer = [decide() if rank() == 0 else None]
    with _others_alive():
        dist.broadcast_object_list(answer, 0, device=torch.device("cpu"))
    return answer[0]
