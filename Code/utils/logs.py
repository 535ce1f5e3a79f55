"""What a person sees while a run works: progress bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

PLAIN_SECONDS = 10.0  # between plain lines


class Progress:
    """Progress of one piece of work, as a bar on a terminal and as plain lines elsewhere.

    `update(details)` counts one step; `details` is called only when something is about to be shown, so
    that reading numbers off a GPU does not make every step wait.
    """

    def __init__(self, name: str, total: int, start: int = 0, unit: str = "it", images_per_step: int = 0):
        self.name, self.total, self.unit, self.images_per_step = name, total, unit, images_per_step
        self.done, self.start, self.begun = start, start, time.monotonic()
        self.shown = self.begun
        self.terminal = sys.stdout.isatty()
        self.bar = tqdm(total=total, initial=start, desc=name, unit=unit, file=sys.stdout, leave=False,
                        dynamic_ncols=True, disable=not self.terminal)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def update(self, details: Callable[[], dict[str, float]] = dict):
        self.done += 1
        now = time.monotonic()
        if self.terminal:
            if now - self.shown >= self.bar.mininterval:
                self.shown = now
                self.bar.set_postfix_str(self._text(details(), now), refresh=False)
            self.bar.update()
        elif now - self.shown >= PLAIN_SECONDS:
            self.shown = now
            rate = (self.done - self.start) / (now - self.begun)
            left = clock((self.total - self.done) / rate)
            print(f"{self.name} {self.done}/{self.total} {self._text(details(), now)} left {left}", flush=True)

    def _text(self, details: dict[str, float], now: float) -> str:
        words = [f"{name} {value:.4g}" for name, value in details.items()]
        if self.images_per_step:
            words.append(f"{self.images_per_step * (self.done - self.start) / (now - self.begun):.0f} images/s")
        return " ".join(words)


def clock(seconds: float) -> str:
    """90 -> 1:30"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
