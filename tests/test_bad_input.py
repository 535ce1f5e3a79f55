"""Bad input is one line that names the flag or file, with exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import formats
from conftest import CODE, call_script
from utils import options
from utils.system.errors import UserError


def test_truncated_data_is_one_line(tmp_path):
    formats.write_idx(tmp_path, "MNIST", 1, 1)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    error, = call_script("BACON_mnist.py", "--data_path", tmp_path, "--save_path", tmp_path / "result",
                         expect=2).stderr.splitlines()
    assert str(tmp_path) in error and path.name in error and "delete those files that are damaged" in error
    assert not (tmp_path / "result").exists()


BAD_INPUT = [
    (["--seed", "4294967296"], "--seed"),
    (["--dataset", "CIFAR11"], "CIFAR11"),
    (["--model", "ConvNetX"], "ConvNetX"),
    (["--model", "ConvNetD6"], "ConvNetD6"),
    (["--dsa_strategy", "color_blur"], "blur"),
    (["--method", "BACONS"], "BACONS"),
    (["--ipc", "0"], "--ipc"),
    (["--ipc", "many"], "--ipc"),
    (["--ipc", "140"], "--ipc 140"),
    (["--batch_real", "1"], "--batch_real"),
    (["--lr_img", "nan"], "--lr_img"),
    (["--lr_img", "0"], "--lr_img"),
    (["--device", "cuda"], "--device cuda"),
    (["--data_path", ""], "--data_path"),
    (["--method", "herding", "--net_start", "5"], "--net_start 5"),
    (["--iterations", "5"], "--iterations"),
    (["--save_path", "/dev/null/result"], "/dev/null/result"),
    (["--dataset", "MNIST", "--data_path", "/dev/null/data"], "/dev/null/data"),
]


@pytest.mark.parametrize("flags, named", BAD_INPUT, ids=[" ".join(flags) for flags, _ in BAD_INPUT])
def test_bad_input_is_one_line(flags, named, tmp_path):
    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = call_script("BACON_digits.py", "--save_path", tmp_path / "result", *flags, expect=2)
    error = done.stderr.splitlines()
    assert len(error) == 1 and error[0].startswith("BACON_digits.py: error: ") and named in error[0], done.stderr
    assert not done.stdout and not list(tmp_path.rglob("*.pt"))


def test_missing_data_without_a_network_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "BACON_mnist.py", "--data_path", tmp_path / "none", "--save_path",
                           tmp_path / "result"], cwd=CODE, capture_output=True, text=True, check=False,
                          env={"PATH": "", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path / "none") in done.stderr and "train" in done.stderr
    assert not (tmp_path / "none").exists()


def test_home_folder_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = options.parse_options("", ["--save_path=~/result", "--data_path", "a~b", "--resume=~/run/checkpoint.ckpt"])
    assert (args.save_path, args.data_path) == (Path("/home/me/result"), Path("a~b"))
    assert args.resume == "/home/me/run/checkpoint.ckpt"


@pytest.mark.parametrize("script", ["evaluate.py", "report.py", "compare.py", "publish.py", "demo.py"])
def test_scripts_that_torchrun_cannot_share_say_so(script, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    flags = ["--to", "none", "none.pt"] if script == "publish.py" else []
    error, = call_script(script, *flags, expect=2).stderr.splitlines()
    assert error == f"{script}: error: torchrun: this script runs in one process alone; start it with python3"


@pytest.mark.parametrize("word", ["--outer_loop=--", "--data_path=--", "--method=--"])
def test_two_dashes_are_no_value(word, make_options):
    """argparse makes an empty list of them."""
    with pytest.raises(UserError, match=f"{word}: no value"):
        make_options(word)
