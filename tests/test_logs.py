"""What a person sees while a run works."""

import io
import sys
import time

import pytest

from utils.system import logs


def test_progress_of_a_resumed_run_counts_from_the_start(monkeypatch, capsys):
    monkeypatch.setattr(logs, "PLAIN_SECONDS", 0)
    with logs.Progress("run", 10, first=4, images_per_step=8) as progress:
        progress.begun -= 6
        progress.paused_for += 2
        progress.update(steps=2)
    assert capsys.readouterr().out == "run 6/10 4 images/s left 0:12\n"


@pytest.mark.parametrize("seconds, words", [(0, "0:00"), (59.6, "1:00"), (90, "1:30"), (3599.6, "1:00:00"),
                                            (7384, "2:03:04")])
def test_clock(seconds, words):
    assert logs.clock(seconds) == words


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_a_bar_that_goes_away(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.delenv("COLUMNS", raising=False)  # a bar as wide as it likes
    monkeypatch.setattr(logs, "BAR_SECONDS", 0)
    with logs.Progress("run", 10, first=4, images_per_step=8) as progress:
        time.sleep(0.2)  # tqdm draws no more than ten times a second
        progress.update(lambda: {"nll": 2.5}, steps=2)
        bar = screen.getvalue().split("\r")[-1]
        assert bar.startswith("run  60%") and "6/10 it, left 0:00 nll 2.5 " in bar and "images/s" in bar
    assert not screen.getvalue().split("\r")[-1].strip()
