"""Checkpoints: all that a run needs in order to go on after it was stopped or killed, at whatever moment.

A run keeps the last two in its folder. A file is one line of text with the SHA-256 of what follows, and then
what torch.save writes. It holds no random state, because draws have none (draws.py).
"""

import contextlib
import hashlib
import io
import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from .system import distributed, files, unpickle
from .system.errors import LacksMemory, UserError, is_out_of_memory, memory_for, reason, say

# Flags that leave the result as it is (but for rounding), so that they may change where a run is resumed.
FREE_ON_RESUME = ("data_path", "save_path", "device", "max_batch", "compile", "resume", "checkpoint_minutes",
                  "tensorboard", "name", "pool_files")  # the last is no flag: networks that a run began with

# Newest first. The first is there only where a run was killed between the two renames of `write`.
NAMES = NEW, LAST, PREVIOUS = "checkpoint_new.ckpt", "checkpoint.ckpt", "checkpoint_previous.ckpt"
EARLIER = tuple(name.replace(".ckpt", ".pt") for name in NAMES)  # of older runs
CONTENT = {"options": dict, "data": int, "experiment": int, "iteration": int, "seconds": float,
           "distillation": dict | None, "last": list, "best": list, "metrics": list, "losses": list}


@distributed.main_process_only
def write(folder: Path, state: dict) -> None:
    """Writes a folder's last checkpoint; the one that was the last becomes the one before.

    At every moment at least one whole checkpoint bears one of NAMES, once there was one.
    """
    files.write_whole(folder / NEW, lambda file: file.writelines(encode(state)))
    settle(folder)
    files.remove(folder, *EARLIER)


@distributed.main_process_only
def settle(folder: Path) -> None:
    """The renames that end a `write`, which may have been killed before or between them."""
    if not (folder / NEW).exists():
        return
    with files.writing(folder / LAST):
        if (folder / LAST).exists():
            os.replace(folder / LAST, folder / PREVIOUS)
        os.replace(folder / NEW, folder / LAST)


def encode(state: dict) -> tuple[bytes, memoryview]:
    """A checkpoint file: its first line and the rest, which may be gigabytes."""
    content = io.BytesIO()
    torch.save(state, content)
    return header(content.getbuffer()), content.getbuffer()


def header(content) -> bytes:
    """The line before the content that torch.save wrote."""
    return b"BACON checkpoint 1, SHA-256 " + hashlib.sha256(content).hexdigest().encode() + b"\n"


def read(path: Path) -> dict:
    """A checkpoint, tensors on the CPU. Nothing in it is executed. UserError where it is missing or damaged.

    LacksMemory, a UserError, where there is too little memory for it.
    """
    try:
        with files.open_regular(path) as file:
            first, content = file.read(len(header(b""))), io.BytesIO(file.read())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except MemoryError as error:
        raise LacksMemory(path, error) from None
    if first != header(content.getbuffer()):
        raise UserError(f"{path}: damaged, or not a checkpoint (its checksum does not match)")
    try:
        with memory_for(path):
            state = unpickle.load_torch(content)
    except LacksMemory:
        raise
    except Exception as error:  # whatever torch.load makes of bytes that someone forged
        raise UserError(f"{path}: not a checkpoint ({reason(error)})") from None
    if not isinstance(state, dict) or state.keys() != CONTENT.keys() or not all(
            isinstance(state[name], kind) for name, kind in CONTENT.items()):
        raise UserError(f"{path}: not a checkpoint of this version")
    if min(state["experiment"], state["iteration"]) < 0 or not 0 <= state["seconds"] < math.inf:
        raise UserError(f"{path}: not a checkpoint of a run (its counts cannot be)")
    try:
        json.dumps([dict(**state["options"]), *(dict(**line) for line in state["metrics"] + state["losses"])])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a checkpoint of a run ({reason(error)})") from None
    return state


@contextlib.contextmanager
def fitting():
    """Around putting a checkpoint's content in place: what goes wrong becomes a UserError.

    Its checksum was right, so then it was forged or comes from another version.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"--resume: the checkpoint does not fit this run ({reason(error)})") from None


def check_alike(found, own) -> None:
    """ValueError where a value of a checkpoint is not of the kind, shape and type of the one it is to replace.

    Nor may a tensor hold a value that is no number, which no finite images come of, or a count be negative.
    """
    if not isinstance(own, Tensor):
        if type(found) is not int or found < 0:
            raise ValueError("a count of it cannot be")
    elif (found.shape, found.dtype) != (own.shape, own.dtype) or found.isnan().any():
        raise ValueError(f"its {tuple(found.shape)} values of {found.dtype} are not numbers, or not {tuple(own.shape)} "
                         f"of {own.dtype}")


def find(folder: Path, resume: str | None, options: dict) -> dict | None:
    """The state to go on from, or None to start anew.

    resume: "auto" for the last checkpoint of `folder` if it has one, a path, or None to start anew. A run in `folder`
    forbids that if it is unfinished or of other options. Where the file is damaged, the one before is
    taken and a line says so. Options outside FREE_ON_RESUME must be those of the checkpoint, but for --num_exp, which
    may be any number that keeps the experiments with an evaluated set. Raises UserError.
    """
    present = [folder / name for name in (*NAMES, *EARLIER) if (folder / name).exists()]
    if resume is None and present:
        _refuse_to_replace(folder, present[0], options)
    if resume is None or (resume == "auto" and not present):
        return None
    if resume != "auto":
        path = Path(resume)
        if present and path.resolve().parent != folder.resolve():
            raise UserError(f"--resume {path}: {folder} has checkpoints of its own; choose another --save_path")
        known = next((names for names in (NAMES, EARLIER) if path.name in names), (path.name,))
        names = known[known.index(path.name):]
        present = [path] + [path.with_name(name) for name in names[1:] if os.path.exists(path.with_name(name))]
    state, used = _newest_whole(present)
    experiments = max(len(state["last"]), options["num_exp"])  # more or fewer leave those that are there as they are
    if differ := differences(state["options"] | {"num_exp": experiments}, options):
        raise UserError(f"--resume: {used} was made with {differ}; leave these as they were, or start a new run with "
                        "another --save_path")
    if state["iteration"] > options["Iteration"] or len(state["last"]) != len(state["best"]) or (
            len(state["last"]) - state["experiment"] not in (0, 1)):
        raise UserError(f"--resume: {used} has counts that no run of these options has; start anew with another "
                        "--save_path")
    return state


def _refuse_to_replace(folder: Path, last: Path, options: dict) -> None:
    """A run of hours is not to be lost to a command without --resume; only its own may repeat it from the start."""
    try:
        state = read(last)
        finished = state["experiment"] == state["options"].get("num_exp")
    except UserError:
        finished = False
    if not finished:
        raise UserError(f"--save_path: {folder} holds an unfinished run; continue it with --resume auto, or choose "
                        "another folder, or delete that one")
    if differ := differences(state["options"], options):
        raise UserError(f"--save_path: {folder} holds a finished run with {differ}; choose another folder, delete that "
                        "one, or, for another --num_exp alone, go on with --resume auto")


def _newest_whole(paths: list[Path]) -> tuple[dict, Path]:
    for path in paths:
        try:
            return read(path), path
        except LacksMemory:  # it is whole, as far as is known
            raise
        except UserError as error:
            if path == paths[-1]:
                raise UserError(f"--resume: {error}; there is no older one: name another one, or start anew "
                                "with another --save_path") from None
            say(f"note: {error}; going on from the checkpoint before")


def differences(saved: dict, current: dict) -> str:
    """The options outside FREE_ON_RESUME that are not what they were, in words; empty where there are none."""
    saved, current = _completed(saved), _completed(current)
    return ", ".join(f"--{name} {saved.get(name)} (not {current.get(name)})"
                     for name in sorted((saved.keys() | current.keys()) - set(FREE_ON_RESUME))
                     if saved.get(name) != current.get(name))


def _completed(options: dict) -> dict:
    """The options of a run, also of one from before some of them were there, as they acted then."""
    modes = {"SS": "S"}  # two names of one thing
    beforehand = dict.fromkeys(("pool", "pool_stages", "ce_stages", "soft_stages", "pool_networks"))
    return {"net_start": min(3, options.get("net_num", 3)), "eval_start": False, "lr_decay": "none",
            "validation": False, **beforehand, **options,
            "eval_mode": modes.get(options.get("eval_mode"), options.get("eval_mode"))}
