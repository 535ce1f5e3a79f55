"""What a person sees while a run works: progress bars on a terminal and in a notebook, plain lines elsewhere."""

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TextIO

from .errors import say

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_SECONDS, BAR_SECONDS = 10.0, 1.0  # between plain lines, and between the numbers of a bar
BAR_WIDTH = 12  # columns that the numbers leave to the bar itself


class Output:
    """A stream whose loss does not end the work: where its reader has gone or its disk is full, output is dropped.

    note: where one line says so; of standard error itself nothing can. Lines that are written while a bar is shown
    stand above it.
    """

    bar: ClassVar["tqdm | None"] = None  # the one that is shown on the terminal

    def __init__(self, stream: TextIO, note: TextIO | None = None):
        self.stream, self.note, self.within_line = stream, note, False
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of letters that its encoding lacks

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        if Output.bar and not self.within_line:
            Output.bar.clear()
        self.draw(text)
        self.within_line = not text.endswith("\n")
        if Output.bar and not self.within_line:
            Output.bar.refresh()

    def draw(self, text: str) -> None:
        """Writes what a bar is made of."""
        with self._outlived():
            self.stream.write(text)

    def flush(self) -> None:
        with self._outlived():
            self.stream.flush()

    @contextlib.contextmanager
    def _outlived(self):
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if self.note:
                print(f"note: output cannot be written ({error.strerror}); going on without", file=self.note,
                      flush=True)


class _Canvas:
    """A stream as a bar writes to it: without making room for the bar."""

    def __init__(self, stream: TextIO):
        self.stream, self.write = stream, getattr(stream, "draw", stream.write)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextlib.contextmanager
def without_lines_of_libraries():
    """Around a call into a library that writes to standard error itself, past Python: what it writes is dropped."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        for handle in (kept, nowhere):
            os.close(handle)


def in_notebook() -> bool:
    """Whether output goes to a cell of a Jupyter notebook."""
    return type(getattr(sys.stdout, "stream", sys.stdout)).__module__.startswith("ipykernel")


@contextlib.contextmanager
def above_bars():
    """Around work that is called from Python: the lines that it prints stand above its bars.

    One thread alone replaces sys.stdout. Of two, the last to end would put back what the other had put there.
    """
    if isinstance(sys.stdout, Output):
        yield
        return
    with contextlib.redirect_stdout(Output(sys.stdout)):
        yield


def bar_class() -> type | None:
    """What draws a bar where the output goes: tqdm's for a terminal or a notebook; None where lines are printed.

    It is imported here because none is needed for lines, and then tqdm need not be installed.
    """
    if not sys.stdout.isatty() and not in_notebook():
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # where a notebook has no widgets, of which it warns
            from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm


class Progress:
    """Progress of one piece of work, as a bar on a terminal or in a notebook and as plain lines elsewhere.

    total: steps in all, of which `first` were done before. unit: what the bar calls one. images_per_step: to show
    images per second, which 0 leaves out.

    `update(details)` counts a step, or several; `details` is called only when something is about to be shown, so
    that reading numbers off a GPU does not make every step wait.
    """

    def __init__(self, name: str, total: int, unit: str = "it", first: int = 0, images_per_step: int = 0):
        self.name, self.total, self.first, self.images_per_step = name, total, first, images_per_step
        self.done, self.paused_for = 0, 0.0
        self.begun = self.shown = time.monotonic()
        draw = bar_class()
        self.bar = draw and draw(
            total=total, initial=first, desc=name, unit=unit, file=_Canvas(sys.stdout), leave=False, miniters=1,
            position=0, ncols=None if in_notebook() else self._columns(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}{postfix}")

    def __enter__(self):
        self._show()
        return self

    def __exit__(self, *_):
        Output.bar = None
        if self.bar is not None:
            self.bar.close()

    def _show(self):
        Output.bar = self.bar

    @contextlib.contextmanager
    def paused(self):
        """Around other work in between, which is not to count in images per second and may show a bar of its own."""
        begun, Output.bar = time.monotonic(), None
        if self.bar is not None:
            self.bar.clear()
        try:
            yield
        finally:
            self.paused_for += time.monotonic() - begun
            self._show()
            if self.bar is not None:
                self.bar.refresh()

    def update(self, details: Callable[[], dict[str, float]] = dict, steps: int = 1):
        """Counts steps, and shows the progress where that is due; `details` gives numbers to show beside it."""
        self.done += steps
        now = time.monotonic()
        due = now - self.shown >= (PLAIN_SECONDS if self.bar is None else BAR_SECONDS)
        if due:
            self.shown = now
            done = self.first + self.done
            left = f"left {clock((now - self.begun) / self.done * (self.total - done))}"
            words = self._words(details(), now - self.begun - self.paused_for)
            if self.bar is None:
                say(" ".join([self.name, f"{done}/{self.total}", *words, left]))
            else:
                self._fit([left, *words])
        if self.bar is not None:
            self.bar.update(steps)

    def _words(self, details: dict[str, float], seconds: float) -> list[str]:
        words = [f"{name} {value:.4g}" for name, value in details.items()]
        return words + [f"{self.images_per_step * self.done / seconds:.0f} images/s"] * bool(self.images_per_step)

    def _fit(self, words: list[str]):
        """Puts as many of the words beside the bar as its line holds; in a notebook all."""
        if self.bar.ncols is not None:
            self.bar.ncols = self._columns()
            room = self.bar.ncols - BAR_WIDTH - len(f"{self.name} 100%|| {self.total}/{self.total} {self.bar.unit}, ")
            while words and len(" ".join(words)) > room:
                words.pop()
        self.bar.set_postfix_str(" ".join(words), refresh=False)

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(sys.stdout.fileno()).columns
        except OSError:  # no terminal
            columns = 0
        return (columns or 80) - 1  # a full line would move the cursor on


def clock(seconds: float) -> str:
    """90 -> 1:30"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
