"""What a person sees while a run works."""

import fcntl
import io
import os
import re
import signal
import struct
import sys
import termios
import time
from functools import partial

import pytest

import children
from conftest import TINY
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
    monkeypatch.setattr(logs, "BAR_SECONDS", 0)
    with logs.Progress("run", 10, first=4, images_per_step=8) as progress:
        time.sleep(0.2)  # tqdm draws no more than ten times a second
        progress.update(lambda: {"nll": 2.5}, steps=2)
        bar = screen.getvalue().split("\r")[-1]
        assert bar.startswith("run  60%") and "6/10 it, left 0:00 nll 2.5 " in bar and "images/s" in bar
    assert not screen.getvalue().split("\r")[-1].strip()


def use_terminal(path: str, act=None):
    """In a child: its output goes to this terminal, and every step draws all numbers of a bar."""
    for stream in (1, 2):
        os.dup2(os.open(path, os.O_WRONLY | os.O_NOCTTY), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1, closefd=False) for stream in (1, 2))
    logs.BAR_SECONDS = 0
    if act:
        children.Events(act, "step of experiment 1/1", 4)()


def on_terminal(folder, columns: int, *flags, act=None) -> tuple[str, int]:
    """All that a run writes to a terminal of so many columns, and its exit code."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = children.start(folder, *flags, prepare=partial(use_terminal, os.ttyname(theirs), act))
    os.set_blocking(ours, False)
    written = b""
    while child.process.exitcode is None:  # by which it also notices the end
        child.process.join(0.01)
        while part := _read(ours):
            written += part
    os.close(theirs)
    os.close(ours)
    return written.decode(), child.process.exitcode


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return b""


def lines_shown(written: str, columns: int) -> list[str]:
    """The lines that a terminal shows in the end; those that it wrapped are joined again."""
    rows, column = [[""] * columns], 0
    joined = [False]
    for part in re.findall(r"\x1b\[K|.", written, re.S):
        if part == "\r":
            column = 0
        elif part == "\n":
            rows.append([""] * columns)
            joined.append(False)
            column = 0
        elif part == "\x1b[K":
            rows[-1][column:] = [""] * (columns - column)
        else:
            assert part.isprintable(), repr(part)
            if column == columns:
                rows.append([""] * columns)
                joined.append(True)
                column = 0
            rows[-1][column] = part
            column += 1
    text = ""
    for row, wrapped in zip(rows, joined, strict=True):
        text += ("" if wrapped else "\n") + "".join(letter or " " for letter in row)
    return [line.rstrip() for line in text.split("\n") if line.strip()]


RUN = [*TINY, "--Iteration", 8, "--eval_interval", 7]
LINES = [r"estimate: .* to the end, 2 iterations of .*, not counting 2 evaluations, .*; peak memory so far \d.*",
         r"experiment 1/1 iteration 7: \d.* \(2 ConvNetW32\), 0:\d\d",
         r"estimate: .* to the end, 1 iteration of .*, 1 evaluation of .*; peak memory so far \d.*",
         r"experiment 1/1 iteration 8: \d.* \(2 ConvNetW32\), 0:\d\d",
         r"result: .* \(last iteration, 2 ConvNetW32 over 1 experiments\)",
         r"best:   .* \(iteration chosen on test accuracy\)", r"set: \S+  best set: \S+  run: \S+",
         r"peak memory: \S+ GB"]


@pytest.mark.parametrize("columns", [80, 110, 160])
def test_lines_beside_a_bar_are_whole(columns, tmp_path):
    """At every width the screen keeps the lines of a log and nothing of the bars, which fit and have room to move."""
    written, code = on_terminal(tmp_path, columns, *RUN)
    shown = lines_shown(written, columns)
    assert code == 0 and len(shown) == len(LINES), shown
    for line, expected in zip(shown, LINES, strict=True):
        assert re.fullmatch(expected, line), line
    bars = re.findall(r"\r((?:experiment|evaluation)[^\r\n]*%\|([^|]*)\|[^\r\n]*)", written)
    assert len(bars) > 8 and all(len(bar.rstrip()) < columns and len(moving) >= 10 for bar, moving in bars)
    assert any("left " in bar and " nll " in bar for bar, _ in bars)
    assert columns == 110 or any("images/s" in bar for bar, _ in bars) == (columns == 160)  # at 110: as digits fit


def test_a_signal_leaves_whole_lines_beside_a_bar(tmp_path):
    written, code = on_terminal(tmp_path, 80, *RUN, act=children.send(signal.SIGTERM))
    shown = lines_shown(written, 80)
    assert code == 128 + signal.SIGTERM and len(shown) == 2, shown
    assert shown[0] == "stopping as soon as the work is kept; Ctrl-C stops at once"
    assert shown[1].startswith("BACON_digits.py: stopped by SIGTERM; continue with: ")


def test_a_line_in_parts_and_a_warning_stay_above_the_bar(monkeypatch):
    """As print and warnings write them."""
    screen = Terminal()
    output, errors = logs.Output(screen), logs.Output(screen)
    monkeypatch.setattr(sys, "stdout", output)
    with logs.Progress("run", 10) as progress:
        progress.update()
        print("one", 2, end=" ")
        print("three")
        print("a warning", file=errors)
        assert lines_shown(screen.getvalue(), 80)[:2] == ["one 2 three", "a warning"]
        assert lines_shown(screen.getvalue(), 80)[2].startswith("run ")
    print("the end")
    assert lines_shown(screen.getvalue(), 80) == ["one 2 three", "a warning", "the end"]
