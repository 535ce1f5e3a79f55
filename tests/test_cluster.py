"""The scripts for a cluster in docs/usage.md, with stand-ins for SLURM's commands, and torchrun on two machines."""

import re
import shlex
import socket
import subprocess
import sys

import pytest
import torch

import children
from conftest import CODE, ROOT
from test_distributed import SINGLY, result

pytestmark = pytest.mark.slow

FLAGS = [*SINGLY, "--Iteration", 12, "--eval_interval", 12, "--num_eval", 1]
LOGGED = "requeued"
# What stands in place of SLURM's: srun runs the command here, and where `signal` is there sends it once work is kept.
STAND_INS = {
    "srun": """
"$@" &
work=$!; echo $work > work
if [ -e signal ]; then
    until ls result/*/checkpoint_previous.ckpt > /dev/null 2>&1; do sleep 0.1; done
    case $(cat signal) in script) kill -USR1 $PPID;; *) kill -$(cat signal) $work;; esac
    rm signal
fi
wait $work
""",
    "scancel": "kill -TERM $(cat work)\n",
    "scontrol": f'if [ $1 = show ]; then echo 127.0.0.1; else echo $2 > {LOGGED}; fi\n',
    "torchrun": f'exec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n',
    "python3": f'exec {shlex.quote(sys.executable)} "$@"\n',
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def scripts(tmp_path):
    """The scripts of the page, for a tiny run on one machine, with the stand-ins before all other commands."""
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "usage.md").read_text(), re.S)
              if "#SBATCH" in block]
    flags = shlex.join([str(CODE / "BACON_digits.py"), *map(str, FLAGS)])
    here = [re.sub(r"BACON_\w+\.py .*?(?= --resume)", lambda _: flags, block).replace("29500", str(free_port()))
            .replace("--nnodes=2 --nproc_per_node=4", "--nnodes=1 --nproc_per_node=2") for block in blocks]
    assert len(here) == 2 and all("BACON_digits" in block for block in here)
    return here


def run(script, folder):
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here",
                   "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)


@pytest.mark.parametrize("which, signal, code", [(0, "USR1", 138), (0, "TERM", 143), (1, "script", None)])
def test_a_job_is_queued_again_until_it_is_finished(which, signal, code, scripts, tmp_path):
    (tmp_path / "signal").write_text(signal)
    done = run(scripts[which], tmp_path)
    assert (tmp_path / LOGGED).read_text() == "7\n", done.stderr
    assert code is None or done.returncode == code
    assert "continue with: " in done.stderr and done.stderr.count("--resume auto") == 1
    (tmp_path / LOGGED).unlink()
    done = run(scripts[which], tmp_path)
    assert done.returncode == 0 and "resumed: " in done.stdout and "result: " in done.stdout, done.stderr
    assert not (tmp_path / LOGGED).exists()
    done = run(scripts[which].replace("--num_exp 1", "--num_exp 0"), tmp_path)
    assert done.returncode != 0 and not (tmp_path / LOGGED).exists(), "a mistake is not tried again"


def test_torchrun_on_two_machines_gives_the_set_of_one_process(tmp_path):
    """Two agents that meet on this one, each with a process."""
    port = free_port()
    agents = [subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d",
         f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=7", "BACON_digits.py", *map(str, SINGLY),
         "--save_path", tmp_path / "result"], cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)]
    outputs = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("result: " in output for output, _ in outputs) == 1
    children.run(tmp_path / "alone", *SINGLY)
    (images, lines), (expected, expected_lines) = result(tmp_path), result(tmp_path / "alone")
    assert torch.equal(images, expected) and lines == expected_lines
