"""What a run will take: a line after its first iterations, and another after its first evaluation."""

from collections.abc import Callable

import torch

from .system import memory
from .system.errors import say
from .system.logs import clock

TIMED, ENOUGH_SECONDS = 5, 5.0  # iterations that are timed after the first, which prepares much, or how long
DAY = 86_400
SHORTER = "; shorter with a lower --Iteration, --num_exp, --num_eval or --im_size, or with --model ConvNetW32"
SMALLER = "; smaller with a lower --max_batch, --trained_bs, --batch_real or --im_size, or with --model ConvNetW32"


def is_evaluated(options, iteration: int) -> bool:
    """Whether a run evaluates its images as they are after so many iterations."""
    if iteration == options.Iteration:
        return True
    return iteration % options.eval_interval == 0 if iteration else options.eval_start


def lasting(seconds: float) -> str:
    """1.23 s, 1:30 min, 5:00:00 h, 3.1 days"""
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    if seconds < 2 * DAY:
        return f"{clock(seconds)} {'h' if seconds >= 3599.5 else 'min'}"
    return f"{seconds / DAY:.1f} days"


class Forecast:
    """Times the first iterations and the first evaluation of a run, and prints what all that are left will take."""

    def __init__(self, options, device: torch.device):
        self.options, self.device = options, device
        self.experiment, self.counted, self.begun = -1, 0, 0.0
        self.iteration: float | None = None  # seconds of one
        self.evaluation: float | None = None

    def iterated(self, experiment: int, done: int, seconds: Callable[[], float], wait: Callable[[], None]) -> None:
        """After an iteration of an experiment, of which `done` are done.

        seconds: a clock that stands still in evaluations. wait: for the device, so that the clock is right.
        """
        if self.iteration is not None:
            return
        self.counted = self.counted + 1 if experiment == self.experiment else 0
        self.experiment = experiment
        if self.counted == 0:
            wait()
            self.begun = seconds()
        elif self.counted >= min(TIMED, self.options.Iteration - 1) or seconds() - self.begun >= ENOUGH_SECONDS:
            wait()
            self.iteration = (seconds() - self.begun) / self.counted
            self._say(experiment, done, done)

    def evaluated(self, experiment: int, done: int, seconds: float) -> None:
        """After an evaluation that took so long, when `done` iterations of an experiment are done."""
        if self.evaluation is None:
            self.evaluation = seconds
            self._say(experiment, done, done + 1)

    def _say(self, experiment: int, done: int, next_evaluated: int) -> None:
        options = self.options
        more, whole = options.num_exp - experiment - 1, range(options.Iteration + 1)
        iterations = options.Iteration - done + more * len(whole[1:])
        evaluations = sum(is_evaluated(options, k) * (more + (k >= next_evaluated)) for k in whole)
        seconds, known, unknown = 0.0, [], []
        for count, what, each in ((iterations, "iteration", self.iteration),
                                  (evaluations, "evaluation", self.evaluation)):
            words = f"{count:,} {what}{'s' * (count > 1)}"
            if count and each is not None:
                seconds += count * each
                known.append(f"{words} of {lasting(each)}")
            elif count:
                unknown.append(f"not counting {words}, not timed yet")
        if not known:
            return
        say(f"estimate: {lasting(seconds)} to the end, {', '.join(known + unknown)}; peak memory so far "
            f"{memory.peak_in_words(self.device)}{SHORTER * (seconds >= DAY)}{SMALLER * self._is_much()}")

    def _is_much(self) -> bool:
        """Whether the peak is more than half of the memory that this process can have."""
        peak = memory.memory_peak(self.device)
        return peak is not None and 1e9 * peak > memory.free_memory(self.device)
