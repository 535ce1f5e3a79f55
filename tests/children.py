"""Runs of scripts in forked children, which cost no start of Python: imports are done once, in the server.

A child can be prepared to meet a fault: a signal at a chosen moment, a full disk, a loss that is not finite.
"""

import multiprocessing
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sklearn.datasets
import sklearn.model_selection  # noqa: F401, as in the line above: loading the digits imports them
import torch

from utils import pictures, pool
from utils.commands import evaluate  # noqa: F401, for what the scripts import
from utils.system import logs

TESTS = Path(__file__).resolve().parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["children"])
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent / "Code")])  # the server's


@dataclass
class Child:
    """A run in a process of its own; `wait` gives its exit code (negative: the signal that ended it)."""

    process: multiprocessing.Process
    folder: Path
    name: str

    def wait(self, seconds: float = 120) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the child hangs"
        return self.process.exitcode

    def output(self) -> str:
        return (self.folder / f"{self.name}stdout").read_text()

    def error(self) -> str:
        return (self.folder / f"{self.name}stderr").read_text()


def start(folder: Path, *flags, prepare: Callable[[], None] | None = None, name: str = "",
          environment: dict[str, str] | None = None, script: str = "BACON_digits.py") -> Child:
    """Starts `<script> <flags>` in `folder`, after a call of `prepare` in the child."""
    folder.mkdir(exist_ok=True)
    process = SERVER.Process(target=_child, args=(folder, [script, *map(str, flags)], prepare, name,
                                                  environment or {}))
    process.start()
    return Child(process, folder, name)


def run(folder: Path, *flags, prepare: Callable[[], None] | None = None, expect: int = 0,
        script: str = "BACON_digits.py") -> Child:
    """Runs to the end and checks the exit code."""
    child = start(folder, *flags, prepare=prepare, script=script)
    assert child.wait() == expect, child.output() + child.error()
    return child


def _child(folder: Path, command: list[str], prepare: Callable[[], None] | None, name: str,
           environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name + stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is off where a shell started the tests with &
    sys.argv, sys.orig_argv = command, ["python3", *command]
    if prepare:
        prepare()
    runpy.run_module(Path(command[0]).stem, run_name="__main__")


class Events:
    """Counts what a run does (steps, trainings, writings) and does `act(event)` before the nth one of a kind.

    kind: a regular expression that matches the start of the event's name. Without `act`, the names of all
    events are written, a line each, to the file `events`.
    """

    def __init__(self, act: Callable[[str], None] | None = None, kind: str = "", nth: int = 1):
        self.act, self.kind, self.left = act, kind, nth

    def __call__(self):
        """Puts itself into the functions that a run goes through."""
        self._before(logs.Progress, "update", lambda bar, *_: f"step of {bar.name}")
        self._before(pool.Pool, "train_member", lambda *_: "pool training")
        self._before(pictures, "save_image", lambda *_, **__: "picture")
        self._before(os, "fsync", lambda handle: f"flush {_base(os.readlink(f'/proc/self/fd/{handle}'))}")
        self._before(os, "replace", lambda source, target: f"rename to {_base(target)}")

    def _before(self, place, name: str, describe: Callable[..., str]):
        original = getattr(place, name)

        def counted(*arguments, **named):
            self._happens(describe(*arguments, **named))
            return original(*arguments, **named)

        setattr(place, name, counted)

    def _happens(self, event: str):
        if self.act is None:
            with open("events", "a") as file:
                file.write(event + "\n")
        elif re.match(self.kind, event):
            self.left -= 1
            if self.left == 0:
                self.act(event)


def _base(path) -> str:
    return os.path.basename(path).removeprefix(".")


def kill(event: str) -> None:
    """Ends this process without warning; a file that is being written is left half-written."""
    if event.startswith("flush "):
        temporary, = Path().rglob(f".{event.removeprefix('flush ')}")
        os.truncate(temporary, temporary.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def send(*numbers: int) -> Callable[[str], None]:
    """An act that sends these signals to this process."""
    return partial(_send, numbers)


def _send(numbers: tuple[int, ...], event: str) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
