"""What a run says it will take, and that it is slow here."""

import re
from argparse import Namespace

import pytest
import torch

from conftest import TINY, call_script
from utils import forecast
from utils.system import device, memory


@pytest.fixture
def clock(monkeypatch):
    """A run of 100 iterations whose time is set; what it prints is with 1.5 GB."""
    monkeypatch.setattr(memory, "memory_peak", lambda device: 1.5)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1.6e9)

    class Clock:
        now, waited = 0.0, 0

        def __call__(self):
            return self.now

        def wait(self):
            self.waited += 1

        def forecast(self, **changes):
            options = {"Iteration": 100, "num_exp": 2, "eval_interval": 50, "eval_start": False} | changes
            return forecast.Forecast(Namespace(**options), torch.device("cpu"))

        def iterate(self, told, seconds, experiment=0):
            """Iterations of these seconds each."""
            for done, taken in enumerate(seconds, 1):
                self.now += taken
                told.iterated(experiment, done, self, self.wait)

    return Clock()


def test_after_the_first_iterations(clock, capsys):
    """The first is left out. Once, and the device is waited for twice."""
    clock.iterate(clock.forecast(), [60, *[0.5] * 20])
    assert capsys.readouterr().out == ("estimate: 1:37 min to the end, 194 iterations of 0.5 s, not counting 4 "
                                       "evaluations, not timed yet; peak memory so far 1.50 GB\n")
    assert clock.waited == 2


def test_iterations_that_take_long_are_not_waited_for(clock, capsys):
    clock.iterate(clock.forecast(num_exp=1), [27, 27])
    said = capsys.readouterr().out
    assert said.startswith("estimate: 44:06 min to the end, 98 iterations of 27 s, not counting 2 evaluations")
    assert "shorter" not in said


def test_what_takes_days_says_what_is_shorter(clock, capsys):
    clock.iterate(clock.forecast(Iteration=20000, num_exp=5, eval_interval=20000), [27, 27])
    said = capsys.readouterr().out
    assert "31.2 days to the end, 99,998 iterations of 27 s, not counting 5 evaluations" in said
    assert "shorter with a lower --Iteration" in said and "--model ConvNetW32" in said and said.count("\n") == 1


def test_after_the_first_evaluation(clock, capsys):
    told = clock.forecast()
    clock.iterate(told, [0.5] * 50)
    capsys.readouterr()
    told.evaluated(0, 50, 100.0)
    assert capsys.readouterr().out == ("estimate: 6:15 min to the end, 150 iterations of 0.5 s, 3 evaluations of 1:40 "
                                       "min; peak memory so far 1.50 GB\n")
    told.evaluated(0, 100, 100.0)
    assert not capsys.readouterr().out


def test_nothing_is_said_where_nothing_was_timed(clock, capsys):
    """After the last iteration, before the only evaluation."""
    clock.iterate(clock.forecast(Iteration=2, num_exp=1), [1, 1])
    assert capsys.readouterr().out == ""


def test_an_evaluation_before_the_iterations_is_counted_with_them(clock, capsys):
    told = clock.forecast(num_exp=1, eval_start=True)
    told.evaluated(0, 0, 10.0)
    said = capsys.readouterr().out
    assert "20 s to the end, 2 evaluations of 10 s, not counting 100 iterations, not timed yet" in said
    clock.iterate(told, [1.0] * 7)
    assert "1:54 min to the end, 94 iterations of 1 s, 2 evaluations of 10 s;" in capsys.readouterr().out


def test_a_set_without_iterations(clock, capsys):
    told = clock.forecast(Iteration=0, num_exp=3)
    told.evaluated(0, 0, 10.0)
    assert capsys.readouterr().out.startswith("estimate: 20 s to the end, 2 evaluations of 10 s; peak")
    clock.forecast(Iteration=0, num_exp=1).evaluated(0, 0, 10.0)
    assert not capsys.readouterr().out, "nothing is left"


def test_few_iterations_are_timed_all(clock, capsys):
    clock.iterate(clock.forecast(Iteration=3), [1, 2, 4])
    assert "9 s to the end, 3 iterations of 3 s, not counting 2 evaluations" in capsys.readouterr().out


def test_each_experiment_has_a_clock_of_its_own(clock, capsys):
    """As one that was resumed before its last iteration, which cannot be timed."""
    told = clock.forecast(num_exp=3)
    clock.iterate(told, [1])
    clock.now = 0
    clock.iterate(told, [1, *[2] * 5], experiment=1)
    assert "196 iterations of 2 s" in capsys.readouterr().out


def test_much_memory_says_what_is_smaller(clock, capsys, monkeypatch):
    """More than half of what there is."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 1.4e9)
    clock.iterate(clock.forecast(), [1.0] * 6)
    assert "1.50 GB; smaller with a lower --max_batch" in capsys.readouterr().out
    monkeypatch.setattr(memory, "memory_peak", lambda device: None)  # on a system that does not tell
    clock.iterate(clock.forecast(), [1.0] * 6)
    assert "not known on this system\n" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, words", [(0.01234, "0.0123 s"), (59.4, "59.4 s"), (59.7, "1:00 min"),
                                            (3599.6, "1:00:00 h"), (170_000, "47:13:20 h"), (200_000, "2.3 days")])
def test_lasting(seconds, words):
    assert forecast.lasting(seconds) == words


def test_a_log_has_both_lines(tmp_path):
    """Whose parts add up."""
    flags = [*TINY, "--Iteration", 9, "--eval_interval", 8, "--save_path", tmp_path]
    said = call_script("BACON_digits.py", *flags).stdout
    lines = [line for line in said.splitlines() if line.startswith("estimate: ")]
    number = r"([\d.e-]+) s"
    first, = re.findall(rf"{number} to the end, 3 iterations of {number}, not counting 2 evaluations", lines[0])
    second, = re.findall(rf"{number} to the end, 1 iteration of {number}, 1 evaluation of {number};", lines[1])
    whole, each, (together, one, evaluation) = *map(float, first), map(float, second)
    assert len(lines) == 2 and each == one and whole == pytest.approx(3 * each, rel=0.01)
    assert together == pytest.approx(one + evaluation, rel=0.01)


@pytest.mark.parametrize("flags, slow", [
    ("flags\t\t: fpu sse4_2 avx2 avx512f", True), ("Features\t: fp asimd crc32", True), ("bogomips : 4800", False),
    ("flags\t\t: fpu avx512f avx512_bf16", False), ("flags : amx_bf16 amx_tile", False),
    ("Features : asimd bf16", False)])
def test_bf16_without_instructions_for_it_is_said_to_be_slow(flags, slow, tmp_path, monkeypatch, capsys):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : some CPU\n{flags}\n")
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    for precision in (None, "fp32", "tf32"):
        device.say_if_slow(torch.device("cpu"), precision)
    device.say_if_slow(torch.device("cuda"), "bf16")
    assert not capsys.readouterr().out
    device.say_if_slow(torch.device("cpu"), "bf16")
    assert capsys.readouterr().out.startswith("note: --precision bf16: this CPU") == slow
    assert device.cpu_model() == "some CPU"
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "none")
    device.say_if_slow(torch.device("cpu"), "bf16")
    assert not capsys.readouterr().out
