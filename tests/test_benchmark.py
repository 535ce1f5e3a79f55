"""benchmark.py as users run it; what it times is not asserted, for that is the machine's."""

import json
import subprocess

import pytest
import torch

import formats
from benchmark import first_classes
from conftest import call_script
from utils import figures
from utils.system import distributed

SMALL = ["--dataset", "digits", "--model", "ConvNetW32", "--ipc", 1, "--batch_real", 16, "--no_compile",
         "--rounds", 1]
TRAINED = ["--trained_bs", 16, "--model_train_steps", 1]


@pytest.fixture
def in_this_process(monkeypatch):
    """The loops are timed by the same command lines, without the seconds that new processes take to start."""
    monkeypatch.setattr(subprocess, "run", lambda command, **_: call_script(*command[1:]))


def test_table_and_json_of_dm(in_this_process, tmp_path):
    """DM brings its recipe: no formation, a fresh network in place of pool training, and a literal loop of its own."""
    done = call_script("benchmark.py", *SMALL, "--method", "DM", "--save_path", tmp_path)
    result = json.loads((tmp_path / "benchmark_DM_digits_ConvNetW32_1ipc_fp32.json").read_text())
    assert result["options"]["aug"] is False
    assert set(result["phases"]) == {"iteration", "image update", "evaluation epoch", "test pass"}
    assert result["copy"] > 1e8 and result["matmul"]["fp32"] > 1e8
    for phase, row in result["phases"].items():
        line, = (line for line in done.stdout.splitlines() if line.startswith(f"{phase} "))
        assert f"{1e3 * row['engine']:.1f}" in line and row["ratio"] == pytest.approx(row["reference"] / row["engine"])
    assert 0.5 < result["phases"]["image update"]["share"] <= result["phases"]["iteration"]["share"] == 1


@pytest.mark.parametrize("loop", ["engine", "reference"])
def test_phases_of_bacon(loop):
    done = call_script("benchmark.py", *SMALL, *TRAINED, "--only", loop)
    seconds = json.loads(done.stdout)
    assert set(seconds) == {"image update", "pool training", "evaluation epoch", "test pass"}
    assert all(value > 1e-3 for value in seconds.values())


def test_growth(tmp_path):
    done = call_script("benchmark.py", *SMALL, *TRAINED, "--growth", "--save_path", tmp_path)
    points = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert [(point["classes"], point["ipc"]) for point in points] == [(10, 10), (10, 1), (10, 10), (10, 50)]
    assert all(point["seconds"]["image update"] > 0 for point in points)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert "digits has no 50 classes" in done.stdout


def test_accuracy_against_seconds(in_this_process, tmp_path, monkeypatch):
    """The literal loop has BACON's accuracies, as many times later as its iteration takes longer."""
    curve = [{"iteration": 5, "mean": 0.5, "std": 0.0, "seconds": 10.0}]
    row = {"method": "BACON", "network": "ConvNetW32", "ipc": 1, "iterations": 5, "curve": curve,
           "options": {"dataset": "digits"}}
    path = tmp_path / "compare.json"
    path.write_text(json.dumps({"rows": [row, row | {"ipc": 10}, row | {"method": "DM"}]}))
    drawn = []
    monkeypatch.setattr(figures, "save_png", lambda figure, path: drawn.append(figure))
    call_script("benchmark.py", *SMALL, *TRAINED, "--accuracy", path, "--save_path", tmp_path)
    ratio = json.loads((tmp_path / "benchmark_BACON_digits_ConvNetW32_1ipc_fp32.json").read_text())["phases"][
        "iteration"]["ratio"]
    axes, = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["BACON, literal loop", "BACON", "DM"]
    assert [line.get_xdata()[0] for line in axes.lines[::3]] == pytest.approx([10 * ratio, 10, 10])


@pytest.mark.parametrize("rows, named", [("[]", "has no BACON of digits, ConvNetW32, IPC 1"), ("[{}]", "damaged"),
                                         ('[{"network": "ConvNetW32", "ipc": 1, "options": {"dataset": "digits"}, '
                                          '"method": "BACON", "curve": [{"iteration": 1, "mean": 0.5, "std": 0}]}]',
                                          "damaged")])
def test_a_comparison_of_something_else_is_one_line(rows, named, tmp_path):
    (tmp_path / "compare.json").write_text(f'{{"rows": {rows}}}')
    line, = call_script("benchmark.py", *SMALL, "--accuracy", tmp_path / "compare.json", expect=2).stderr.splitlines()
    assert named in line and str(tmp_path) in line


def test_growth_beyond_the_data_is_left_out(tmp_path):
    images, labels = formats.images_and_labels(10, 20, 16, 1)
    formats.write_class_folders(tmp_path / "few" / "train", images, labels, list("0123456789"), ".png")
    flags = ["--dataset", "folder", "--im_size", 16, "--data_path", tmp_path / "few", "--save_path", tmp_path]
    done = call_script("benchmark.py", *SMALL, *TRAINED, *flags, "--growth")
    assert "10 classes, 50 images per class: left out (--ipc 50: class" in done.stdout
    points = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert [(point["classes"], point["ipc"]) for point in points] == [(10, 10), (10, 1), (10, 10)]


def test_several_processes_time_the_engine_alone(monkeypatch):
    monkeypatch.setattr(distributed, "started_by_torchrun", lambda: True)
    error, = call_script("benchmark.py", *SMALL, expect=2).stderr.splitlines()
    assert error == "benchmark.py: error: torchrun: several processes can time the engine alone; add --only engine"


def test_first_classes(digits):
    data = digits()
    few = first_classes(data, 3)
    assert few.num_classes == 3 and few.class_sizes == data.class_sizes[:3]
    assert torch.equal(few.images, data.images[data.labels < 3]) and int(few.test_labels.max()) == 2


@pytest.mark.parametrize("method, flags", [("herding", []), ("utils.methods:_mean", []),
                                           ("utils.methods:_mean", ["--only", "reference"])])
def test_method_that_cannot_be_timed_is_one_line(method, flags, tmp_path):
    """One without iterations, and one of one's own, of which there is no literal loop."""
    done = call_script("benchmark.py", *SMALL, "--method", method, *flags, "--save_path", tmp_path, expect=2)
    assert len(done.stderr.splitlines()) == 1 and f"--method {method}" in done.stderr and not done.stdout


def test_compiling_that_fails_is_one_line_and_not_timed(monkeypatch):
    def compile_nothing(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    flags = [flag for flag in SMALL if flag != "--no_compile"]
    done = call_script("benchmark.py", *flags, "--compile", "--only", "engine", expect=2)
    assert done.stderr.startswith("benchmark.py: error: --compile: PyTorch cannot compile here (no compiler)")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
