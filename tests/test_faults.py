"""What goes wrong while a run works: it ends with one line, and what was kept before stays whole."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import children
from conftest import CODE, TINY
from utils import checkpoint, losses
from utils.distill import Distillation
from utils.system import files
from utils.system.errors import UserError, is_out_of_memory

RUN = "BACON_digits_ConvNetW32_1ipc"
FLAGS = [*TINY, "--Iteration", 4, "--eval_interval", 2, "--num_eval", 1, "--save_path", "result"]
OFTEN = [*FLAGS, "--checkpoint_minutes", 0]
RESUME = [*FLAGS, "--resume", "auto"]


def error_line(child):
    line, = child.error().splitlines()
    assert line.startswith("BACON_digits.py: error: ")
    return line


def last_checkpoint(folder):
    return checkpoint.read(folder / "result" / RUN / checkpoint.LAST)


def hidden_files(folder):
    return [path.name for path in folder.rglob(".*")]


def fill_disk(event):
    """No file can grow beyond 6,000 bytes: a disk that is full in the middle of a write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


@pytest.mark.parametrize("kind, nth, named", [
    ("flush checkpoint_new", 1, "checkpoint_new.ckpt"), ("picture", 1, f"vis_{RUN}_exp0_iter2.png"),
    ("flush res_.*_best", 1, f"res_{RUN}.pt")])
def test_full_disk(kind, nth, named, tmp_path):
    child = children.run(tmp_path, *OFTEN, expect=2, prepare=children.Events(fill_disk, kind, nth))
    assert named in error_line(child) and "--resume auto" in error_line(child)
    assert last_checkpoint(tmp_path)["iteration"] >= 1 and not hidden_files(tmp_path)
    assert "result:" in children.run(tmp_path, *RESUME).output()


def lose_folder(event):
    shutil.move("result", "elsewhere")


def replace_folder(event):
    lose_folder(event)
    Path("result").write_text("a file")


@pytest.mark.parametrize("act", [lose_folder, replace_folder])
def test_vanished_folder(act, tmp_path):
    child = children.run(tmp_path, *OFTEN, expect=2, prepare=children.Events(act, "pool training", 4))
    assert f"result/{RUN}" in error_line(child)
    children.run(tmp_path, *FLAGS, "--save_path", "elsewhere", "--resume", "auto")


def break_loss(class_name: int, value: float):
    """Makes the total variation of one class this value, from the second iteration on."""
    original, calls = losses.total_variation, []

    def broken(z_syn, z_real):
        calls.append(1)
        terms = original(z_syn, z_real)
        wrong = torch.arange(len(terms)) == class_name
        return torch.where(wrong, value, terms) if len(calls) > 1 else terms

    losses.total_variation = broken


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("minutes", [0, 1000])
def test_loss_that_is_not_finite(value, minutes, tmp_path):
    child = children.run(tmp_path, *FLAGS, "--Iteration", 10, "--eval_interval", 5, "--checkpoint_minutes", minutes,
                         "--max_batch", 1000, prepare=partial(break_loss, 3, value), expect=2)
    line = error_line(child)
    assert "iteration 1:" in line and "class '3'" in line and f"tv {value:g}" in line and "nll " in line
    kept = list((tmp_path / "result").rglob("checkpoint*.ckpt"))
    assert len(kept) == (minutes == 0)
    assert all(checkpoint.read(path)["iteration"] == 1 for path in kept)


def test_images_that_are_not_finite_are_not_kept(tmp_path):
    """A step so long that the images overflow, although the loss before it was finite."""
    child = children.run(tmp_path, *OFTEN, "--optim", "adam", "--lr_img", 1e38, expect=2)
    assert "iteration 0:" in error_line(child) and "--lr_img" in error_line(child)
    assert not list((tmp_path / "result").rglob("checkpoint*.ckpt"))


def test_iterations_do_not_wait_for_the_device(digits, make_options, monkeypatch):
    """No value is brought to the host in an iteration, which on a GPU would stall it; only `check` does that."""
    distillation = Distillation(digits(), make_options("--syn_ce", "--net_decay", "--aug"))
    distillation.step(0)

    def refuse(*_, **__):
        raise AssertionError("an iteration reads a value off the device")

    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for iteration in range(1, 4):
        distillation.step(iteration)
    with pytest.raises(AssertionError):
        distillation.check_finite()


def take_memory(event):
    """Leaves this process 20 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 20_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_out_of_memory(tmp_path):
    child = children.run(tmp_path, *OFTEN, "--trained_bs", 1400, expect=2,
                         prepare=children.Events(take_memory, "pool training"))
    assert "out of memory" in error_line(child) and "--max_batch 64, or lower" in error_line(child)
    assert all(flag in error_line(child) for flag in ("--resume auto", "--trained_bs", "--batch_train", "--batch_real"))


@pytest.mark.parametrize("script, flags", [("benchmark.py", ["--only", "engine"]),
                                           ("compare.py", ["--methods", "BACON", "--minutes", 0.1])])
def test_out_of_memory_while_timing(script, flags, tmp_path):
    child = children.run(tmp_path, "--dataset", "digits", "--model", "ConvNetW32", "--trained_bs", 1400, "--no_compile",
                         *flags, script=script, expect=2, prepare=children.Events(take_memory, "pool training"))
    line, = child.error().splitlines()
    assert line.startswith(f"{script}: error: out of memory") and "start anew with --max_batch 64, or lower" in line


def test_out_of_memory_in_evaluation_of_a_set(tmp_path):
    """It names the flags that this script has."""
    children.run(tmp_path, *FLAGS)
    child = children.run(tmp_path, "--synthetic", f"result/res_{RUN}.pt", "--model", "ConvNet", "--num_eval", 1,
                         "--epoch_eval_train", 0, script="evaluate.py", expect=2,
                         prepare=children.Events(take_memory, "step of ConvNet on the set"))
    line, = child.error().splitlines()
    assert line.startswith("evaluate.py: error: out of memory") and "--max_batch 64, or lower" in line
    assert line.endswith("a lower --batch_train") and "--resume" not in line


def stop(event):
    os.kill(os.getpid(), signal.SIGSTOP)


def test_second_run_on_a_folder_is_refused(tmp_path):
    """By a lock that the system drops with the process, so that a killed run does not lock its own resumption out."""
    first = children.start(tmp_path, *OFTEN, prepare=children.Events(stop, "pool training", 3))
    deadline = time.monotonic() + 60
    while "State:\tT" not in Path(f"/proc/{first.process.pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (tmp_path / "second").mkdir()
    flags = ["--save_path", tmp_path / "result", "--resume", "auto"]
    child = children.run(tmp_path / "second", *OFTEN, *flags, expect=2)
    assert "another run is writing to" in error_line(child) and str(tmp_path / "result") in error_line(child)
    children.run(tmp_path / "second", *OFTEN, *flags, "--ipc", 2)
    first.process.kill()
    assert first.wait() == -9
    children.run(tmp_path, *RESUME)


def wild_clock():
    """The time of day jumps by up to a year in both directions at each look."""
    jumps = iter(range(10**9))
    original = time.time
    time.time = lambda: original() + (-1) ** next(jumps) * 3e7


def test_clock_changes(tmp_path):
    """What happens when, and how long it took, is asked of a clock that nobody sets."""
    child = children.run(tmp_path, *FLAGS, prepare=wild_clock)
    assert "result:" in child.output() and not child.error()
    lines = (tmp_path / "result" / RUN / "metrics.jsonl").read_text().splitlines()
    assert all(0 <= json.loads(line)["seconds"] < 60 for line in lines)


@pytest.mark.parametrize("into, note", [
    ("> /dev/full", "note: output cannot be written (No space left on device); going on without\n"),
    (">&-", ""), ("", "")], ids=repr)
def test_lost_output_does_not_end_a_run(into, note, tmp_path):
    """Nor do letters that its encoding lacks."""
    run = subprocess.run(["bash", "-c", f'"$@" {into}', "bash", sys.executable, "-u", CODE /
                          "BACON_digits.py", *TINY, "--save_path", tmp_path / "ü"], capture_output=True, text=True,
                         env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False)
    assert (run.returncode, run.stderr) == (0, note), run.stderr
    assert ("\\xfc/" in run.stdout) == (not into)
    assert (tmp_path / "ü" / RUN / "checkpoint.ckpt").exists()


@pytest.mark.parametrize("into", [
    "2>&1 | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", *(pytest.param(into, marks=pytest.mark.slow) for into in (
        "> /dev/full 2>&1", ">&- 2>&-", "2> /dev/full", "> /dev/full 2>&-"))])
def test_both_streams_lost(into, tmp_path):
    """The note about the one is not to end the run at the other; nor does either change how a run ends."""
    def run(*flags):
        command = ["bash", "-c", f'"$@" {into}', "bash", sys.executable, "-u", CODE / "BACON_digits.py", *TINY,
                   "--save_path", tmp_path, *flags]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert checkpoint.read(tmp_path / RUN / checkpoint.LAST)["experiment"] == 1
    done = run("--ipc", 1000)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def lose_both_and_stop(event):
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    os.kill(os.getpid(), signal.SIGTERM)


def test_signal_while_both_streams_are_lost(tmp_path):
    child = children.run(tmp_path, *FLAGS, expect=143, prepare=children.Events(lose_both_and_stop, "pool training", 3))
    assert "Traceback" not in child.error() and last_checkpoint(tmp_path)["iteration"] >= 1
    children.run(tmp_path, *RESUME)


def test_names_do_not_forge_lines_of_output(tmp_path):
    """Nor move the cursor of a terminal."""
    name = "a\nBACON_digits.py: result: 100 %\x1b[2J\u202e\udcff"
    for flags in (["--data_path", tmp_path / name, "--dataset", "folder"], ["--model", name],
                  ["--resume", tmp_path / name]):
        line, = children.run(tmp_path, *FLAGS, *flags, expect=2).error().splitlines()
        assert line.startswith("BACON_digits.py: error: ") and line.isprintable() and "\\x1b[2J" in line


def test_names_do_not_move_the_cursor_in_ordinary_lines(tmp_path):
    output = children.run(tmp_path, *FLAGS, "--save_path", "\x1b[2J\u202eü").output()
    assert f"run: \\x1b[2J\\u202eü/{RUN}" in output and "\x1b" not in output


def test_a_file_that_cannot_be_removed_is_one_line(tmp_path, monkeypatch):
    """Such as where the disk has become read-only."""
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "old").write_text("")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"old: cannot be removed \(Read-only file system\); "):
        files.remove(tmp_path, "o*")


def write_and_be_killed(path):
    files.write_whole(path, lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), signal.SIGKILL)))


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    """Of the same file; not what is being written, nor what others made."""
    path, others = tmp_path / "cache[1].pt", [".cache[1].pt.mine", ".cache[1].pt.0123456Z", ".other.pt.01234567"]
    for name in others:
        (tmp_path / name).touch()
    for _ in range(2):
        child = children.SERVER.Process(target=write_and_be_killed, args=[path])
        child.start()
        child.join(60)
        assert child.exitcode == -9
        assert len(hidden_files(tmp_path)) == 4, "the one before was removed"

    def while_another_writes(file):
        file.write(b"first")
        files.write_text(path, "second")
        assert len(hidden_files(tmp_path)) == 4, "this one stays"

    files.write_whole(path, while_another_writes)
    assert path.read_text() == "first" and sorted(hidden_files(tmp_path)) == sorted(others)


def test_files_are_for_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("words, short", [
    ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
    ("CUDA error: out of memory", True), ("NCCL error: Cuda failure 2 'out of memory'", True),
    ("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True), ("Connection closed by peer", False)])
def test_too_little_memory_is_known_by_its_words(words, short):
    assert is_out_of_memory(RuntimeError(words)) == short
