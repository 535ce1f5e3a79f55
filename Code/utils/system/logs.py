"""What a person sees while a run works: progress bars on a terminal, plain lines elsewhere."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

PLAIN_SECONDS, BAR_SECONDS = 10.0, 1.0  # between plain lines, and between the numbers of a bar


class Output:
    """A stream whose loss does not end the work: where its reader has gone or its disk is full, output is dropped.

    note: where one line says so; of standard error itself nothing can.
    """

    def __init__(self, stream: TextIO, note: TextIO | None = None):
        self.stream, self.note = stream, note
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of letters that its encoding lacks

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
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


class Progress:
    """Progress of one piece of work, as a bar on a terminal and as plain lines elsewhere.

    total: steps in all, of which `first` were done before. unit: what the bar calls one. images_per_step: to show
    images per second, which 0 leaves out.

    `update(details)` counts a step, or several; `details` is called only when something is about to be shown, so
    that reading numbers off a GPU does not make every step wait.
    """

    def __init__(self, name: str, total: int, unit: str = "it", first: int = 0, images_per_step: int = 0):
        self.name, self.total, self.first, self.images_per_step = name, total, first, images_per_step
        self.done, self.paused_for = 0, 0.0
        self.begun = self.shown = time.monotonic()
        self.bar = tqdm(total=total, initial=first, desc=name, unit=unit, file=sys.stdout, leave=False,
                        dynamic_ncols=True, disable=not sys.stdout.isatty())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    @contextlib.contextmanager
    def paused(self):
        """Around other work in between, which is not to count in images per second."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.paused_for += time.monotonic() - begun

    def update(self, details: Callable[[], dict[str, float]] = dict, steps: int = 1):
        """Counts steps, and shows the progress where that is due; `details` gives numbers to show beside it."""
        self.done += steps
        now = time.monotonic()
        due = now - self.shown >= (PLAIN_SECONDS if self.bar.disable else BAR_SECONDS)
        if due:
            self.shown = now
            text = self._text(details(), now - self.begun - self.paused_for)
            if self.bar.disable:
                done = self.first + self.done
                left = clock((now - self.begun) / self.done * (self.total - done))
                words = [self.name, f"{done}/{self.total}", text, f"left {left}"]
                print(" ".join(filter(None, words)), flush=True)
            else:
                self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(steps)

    def _text(self, details: dict[str, float], seconds: float) -> str:
        words = [f"{name} {value:.4g}" for name, value in details.items()]
        if self.images_per_step:
            words.append(f"{self.images_per_step * self.done / seconds:.0f} images/s")
        return " ".join(words)


def clock(seconds: float) -> str:
    """90 -> 1:30"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
