"""Several processes give the set of one, and end together."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

import children
from conftest import CODE, TINY, run_script
from utils import checkpoint, storage
from utils.system import distributed, files
from utils.system.errors import UserError

RUN = "BACON_digits_ConvNetW32_2ipc"
FLAGS = [*TINY, "--ipc", 2, "--Iteration", 4, "--eval_interval", 2, "--num_eval", 3, "--save_path", "result",
         "--checkpoint_minutes", 0]
# One class at a time, so that however the classes are shared out, the same batches go through a network.
SINGLY = [*FLAGS, "--max_batch", 8]


def start_ranks(folder, count, *flags, prepare=None, in_rank=0):
    """`count` processes of one run, started as torchrun does; `prepare` is called in one of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [children.start(folder, *flags, prepare=prepare if rank == in_rank else None, name=f"rank{rank}",
                           environment={"WORLD_SIZE": f"{count}", "RANK": f"{rank}", "LOCAL_RANK": f"{rank}",
                                        "LOCAL_WORLD_SIZE": f"{count}",
                                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
                                        "TORCHELASTIC_RUN_ID": "test"})
            for rank in range(count)]


def result(folder):
    """Images (K, ipc, ...) and the lines of metrics.jsonl, without the times, and losses.jsonl."""
    (images, _), = storage.load(folder / "result" / f"res_{RUN}.pt")["data"]
    lines, losses = (files.read_json_lines(folder / "result" / RUN / f"{name}.jsonl")
                     for name in ("metrics", "losses"))
    return images.unflatten(0, (10, 2)), [line | {"seconds": None, "peak_gb": None} for line in lines] + losses


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    children.run(folder, *SINGLY)
    return folder


@pytest.mark.parametrize("count", [2, 3])
def test_same_batches_give_the_same_bits(alone, count, tmp_path):
    """Three networks are evaluated and two trained in an iteration, so three processes do unequal work."""
    ranks = start_ranks(tmp_path, count, *SINGLY)
    assert [rank.wait() for rank in ranks] == [0] * count, ranks[0].error()
    (images, lines), (expected, expected_lines) = result(tmp_path), result(alone)
    assert torch.equal(images, expected) and lines == expected_lines
    assert "result:" in ranks[0].output() and not any(rank.output() for rank in ranks[1:])


def test_other_batches_give_the_same_set_but_for_rounding(alone, tmp_path):
    """Classes in one batch differ with their number of processes; tolerances as in test_distill.py."""
    ranks = start_ranks(tmp_path, 2, *FLAGS)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].error()
    apart = (result(tmp_path)[0] - result(alone)[0]).abs().flatten(1).amax(dim=1)
    assert (apart <= 1e-4).sum() >= 8 and apart.max() <= 1e-2, apart


@pytest.mark.parametrize("kind, victim", [("pool training", 0), ("step of evaluation", 2)])
def test_killed_process_ends_the_others(alone, kind, victim, tmp_path):
    """And the run goes on with another number of processes."""
    ranks = start_ranks(tmp_path, 3, *SINGLY, prepare=children.Events(children.kill, kind, 2), in_rank=victim)
    assert ranks.pop(victim).wait() == -9
    begun = time.monotonic()
    assert [rank.wait(60) for rank in ranks] == [1, 1] and time.monotonic() - begun < 60
    for rank in ranks:
        assert "another process of this run has ended" in rank.error() and "--resume auto" in rank.error()
        assert len(rank.error().splitlines()) == 1
    ranks = start_ranks(tmp_path, 2, *SINGLY, "--resume", "auto")
    assert [rank.wait() for rank in ranks] == [0, 0] and ranks[0].output().startswith("resumed: ")
    assert torch.equal(result(tmp_path)[0], result(alone)[0])


def wait_a_second():
    distributed.JOINING = timedelta(seconds=1)


def test_a_process_does_not_wait_long_for_others_that_never_come(tmp_path):
    begun = time.monotonic()
    first, second = start_ranks(tmp_path, 2, *SINGLY, prepare=wait_a_second)
    second.process.kill()
    assert first.wait(60) == 1 and time.monotonic() - begun < 60
    line, = [line for line in first.error().splitlines() if "error: " in line]
    assert "another process of this run has ended" in line


def test_a_process_whose_torchrun_has_ended_before_it_ends_too(tmp_path):
    """While it imported PyTorch, say: where torchrun answered, nobody does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    child = children.start(tmp_path, *SINGLY, environment={
        "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}", "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert child.wait(60) == 1
    line, = child.error().splitlines()
    assert "process 1: torchrun has ended (" in line and not (tmp_path / "result").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "middle"])
def test_processes_end_with_torchrun(moment, tmp_path):
    flags = [*map(str, SINGLY), "--Iteration", "10000", "--eval_interval", "10000", "--save_path", tmp_path / "result"]
    run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "BACON_digits.py",
                            *flags], cwd=CODE, stderr=subprocess.DEVNULL)
    workers = []
    while len(workers) < 2 or not (moment == "start" or (tmp_path / "result" / RUN / "checkpoint.ckpt").exists()):
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert run.poll() is None
        time.sleep(0.1)
    run.kill()
    run.wait()
    begun = time.monotonic()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() - begun < 60
        time.sleep(0.1)
    if moment == "middle":
        assert checkpoint.read(tmp_path / "result" / RUN / "checkpoint.ckpt")["iteration"] >= 1


def test_signal_to_one_process_stops_all(alone, tmp_path):
    ranks = start_ranks(tmp_path, 2, *SINGLY, prepare=children.Events(children.send(signal.SIGTERM), "pool training"))
    assert [rank.wait() for rank in ranks] == [143, 143]
    line, = ranks[0].error().splitlines()
    assert "continue with: torchrun --nproc_per_node=2 BACON_digits.py" in line
    children.run(tmp_path, *shlex.split(line.split("BACON_digits.py ")[-1]))
    assert torch.equal(result(tmp_path)[0], result(alone)[0])


def test_more_processes_than_classes_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 11)
    with pytest.raises(UserError, match="at most 10"):
        distributed.own_classes(10)


@pytest.mark.slow
def test_torchrun(tmp_path):
    """The real thing: a process is killed, all ends within a minute, and a run of one process goes on from there."""
    flags = [*map(str, SINGLY), "--Iteration", "100", "--eval_interval", "100", "--save_path", tmp_path / "result"]
    run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "BACON_digits.py",
                            *flags], cwd=CODE, text=True, stderr=subprocess.PIPE)
    while not (tmp_path / "result" / RUN / "checkpoint_previous.ckpt").exists():
        assert run.poll() is None
        time.sleep(0.1)
    workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 1 and "another process of this run has ended" in error, error
    run_script("BACON_digits.py", *flags, "--resume", "auto")
    children.run(tmp_path / "alone", *flags, "--save_path", "result")
    assert torch.equal(result(tmp_path)[0], result(tmp_path / "alone")[0])
