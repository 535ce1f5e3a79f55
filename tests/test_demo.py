"""demo.py with a few iterations in place of a hundred: the files it leaves and the table it prints."""

import re
import shlex
import signal

import numpy as np

import children
import demo
from utils import storage

SHORT = {"Iteration": 2, "eval_interval": 1, "num_eval": 2, "epoch_eval_train": 1, "batch_real": 16, "trained_bs": 16,
         "model_train_steps": 1}


def test_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DEFAULTS", demo.DEFAULTS | SHORT)
    monkeypatch.setattr(demo, "WHOLE_SET_EPOCHS", 0)
    monkeypatch.setattr("sys.argv", ["demo.py"])
    demo.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^(\S.*?) +(\d+)   ([\d.]+ \+- [\d.]+ %)$", printed.split("trained on")[1], re.M)
    compared = ["random real images", "random 2x2 formation (the start)", "BACON"]
    assert [row[:2] for row in rows] == [*((what, ipc) for ipc in ("1", "10") for what in compared),
                                         ("whole training set (1 epochs)", "143")]
    assert "(2 networks)" in printed
    left_in = tmp_path / "result" / "demo"
    for ipc, row in ((1, rows[2]), (10, rows[5])):
        name = f"BACON_digits_ConvNetW32_{ipc}ipc"
        record = storage.load(left_in / f"res_{name}.pt")
        accuracies = record["accs_all_exps"]["ConvNetW32"]
        assert record["meta"]["iteration"] == [2] and len(accuracies) == 2
        assert row[2] == f"{100 * np.mean(accuracies):.2f} +- {100 * np.std(accuracies):.2f} %"
        for left in (f"res_{name}.pt", f"vis_{name}_exp0_iter2.png"):
            assert str(left_in / left) in printed and (left_in / left).exists()
    curve = left_in / "demo_accuracy.png"
    assert str(curve) in printed and curve.read_bytes().startswith(b"\x89PNG")


def test_command_that_it_prints_when_stopped_continues_it(tmp_path):
    stop = children.Events(children.send(signal.SIGTERM), "step of experiment", 2)
    line = children.run(tmp_path, script="demo.py", prepare=stop, expect=143).error().splitlines()[-1]
    words = shlex.split(line.split("continue with: ")[1])
    assert words[:2] == ["python3", "demo.py"]
    child = children.run(tmp_path, *words[2:], script="demo.py", prepare=stop, expect=143)
    assert "resumed: 0 of 1 experiments are finished, the next is at iteration 2" in child.output()
