"""What several tests share: real images small enough to be quick, and the command line of a tiny run."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import options
from utils.data import RealData, load

if not os.environ.get("BACON_TEST_GPU"):  # tests are of the CPU, but for one in test_gpu.py
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a run leaves it alone under nohup, and so would those of the tests
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what it starts with &
torch.set_num_threads(1)  # two test processes share two cores
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "Code"
SHARED = ROOT.parent / "shared"
needs_shared_data = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no real data beside the checkout")

SHORT = ["--Iteration", "2", "--eval_interval", "1", "--num_exp", "1", "--num_eval", "2", "--epoch_eval_train", "2",
         "--batch_real", "16", "--model_train_steps", "1", "--trained_bs", "16", "--model", "ConvNetW32"]
TINY = ["--ipc", "1", *SHORT]


def run_script(script: str, *arguments, cwd: Path = CODE, expect: int = 0) -> subprocess.CompletedProcess:
    """Runs a script of Code/ as a user does, in a process of its own, and checks its exit code."""
    done = subprocess.run([sys.executable, script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=240, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def call_script(script: str, *arguments, cwd: Path = CODE, expect: int = 0) -> subprocess.CompletedProcess:
    """The same within this process, which saves the seconds that importing PyTorch takes."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, sys.argv = sys.argv, [script, *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    assert code == expect, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(script, code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def digits():
    """A function that loads the bundled digits in a given dtype."""

    def load_digits(dtype: torch.dtype = torch.float32) -> RealData:
        data = load("digits", "")
        data.dtype = dtype
        return data

    return load_digits


@pytest.fixture
def make_options():
    """A function that builds the options of a small run on the digits from flags."""

    def make(*flags):
        return options.parse_options("", [str(flag) for flag in flags], dataset="digits", model="ConvNetW32", ipc=1,
                                     lr_img=0.2, batch_real=16, trained_bs=16, model_train_steps=2, embed_last=1000,
                                     compile=False)

    return make
