"""Signals: a run that is asked to end finishes its iteration, keeps its work and says how to go on."""

import contextlib
import os
import shlex
import signal
import sys
import threading

from . import distributed, logs

# SLURM sends SIGTERM before it preempts, and SIGUSR1 where a job asks for that with --signal.
# Windows lacks the last two.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class Stopped(Exception):
    """A run ended because of a signal. Its exit code is that of a process that the signal ended."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number


class Interrupts:
    """While this context lasts, a signal does not end the process: `check` raises Stopped at the next good moment.

    After the first signal, Ctrl-C ends the process at once, or in a notebook, which would be lost, what the cell does.
    """

    def __init__(self):
        self.received = 0

    def __enter__(self):
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has SIGHUP
        alone = threading.current_thread() is not threading.main_thread()  # where Python hears no signals
        self.before = {number: signal.signal(number, self._remember) for number in heard} if not alone else {}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame):
        self.received = self.received or number
        if distributed.world_size() > 1:  # torchrun passes on what the terminal has already sent
            return
        signal.signal(signal.SIGINT, signal.default_int_handler if logs.in_notebook() else signal.SIG_DFL)
        with contextlib.suppress(OSError):  # print is not for signal handlers
            os.write(2, b"\r\x1b[K" * os.isatty(2) + b"stopping as soon as the work is kept; Ctrl-C stops at once\n")

    def check(self):
        """Raises Stopped if a signal has come."""
        if self.received:
            raise Stopped(self.received)


@contextlib.contextmanager
def ending_on_sigterm():
    """Around a script without checkpoints: SIGTERM ends it as Ctrl-C does, so that its child processes end, too."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resume_command() -> str:
    """The command line that continues this run. Flags of torchrun for several machines are not known here."""
    words = sys.orig_argv
    if distributed.world_size() > 1:
        words = ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", *sys.argv]
    kept = [word for k, word in enumerate(words) if not word.startswith("--resume=")
            and "--resume" not in (word, words[k - 1] if k else "")]
    return shlex.join([*kept, "--resume", "auto"])
