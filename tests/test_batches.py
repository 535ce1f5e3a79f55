"""Precision and compilation change the speed of a pass and its rounding, nothing else."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import CODE, TINY
from utils import evaluation, options
from utils.distill import Distillation
from utils.draws import Draws
from utils.networks import get_network
from utils.networks.batches import BatchRunner, is_compiled

CPU = torch.device("cpu")


def step(data, make_options, *flags):
    """Images after two iterations on 10 classes of 66 synthetic and 70 real images: passes of 32, and a rest."""
    flags = ["--ipc", 2, "--aug", "--syn_ce", "--batch_real", 70, "--trained_bs", 70, *flags]
    engine = Distillation(data, make_options(*flags))
    for iteration in range(2):
        terms = engine.step(iteration)
    return engine.images, terms


@pytest.mark.slow
def test_compiled_and_not_compiled_agree(digits, make_options):
    data = digits()
    eager, _ = step(data, make_options, "--no_compile")
    compiled, _ = step(data, make_options, "--compile")
    assert not torch.equal(eager, compiled), "nothing was compiled"
    apart = (eager - compiled).abs().reshape(10, -1).amax(dim=1)
    assert (apart <= 1e-4).sum() >= 8 and apart.max() <= 1e-2, apart


def test_bf16_is_near_and_keeps_losses_in_fp32(digits, make_options):
    data = digits()
    exact, _ = step(data, make_options)
    rounded, terms = step(data, make_options, "--precision", "bf16")
    assert {value.dtype for value in terms.values()} == {torch.float32} and rounded.dtype == torch.float32
    start = Distillation(data, make_options("--ipc", 2, "--aug")).images
    assert 1e-4 < (exact - rounded).norm() / (exact - start).norm() < 0.3


@pytest.mark.parametrize("flags, expected", [("", True), ("--Iteration 1000", True), ("--Iteration 999", False),
                                             ("--no_compile", False), ("--Iteration 999 --compile", True)])
def test_long_runs_are_compiled_on_a_cpu(flags, expected):
    given = options.parse_options("", flags.split())
    assert is_compiled(given.compile, CPU, given.Iteration) is expected


@pytest.mark.parametrize("flags, trained, expected", [
    ("", 40_000, True), ("", 39_999, False), ("--no_compile", 10**9, False), ("--compile", 0, True)])
def test_long_evaluations_are_compiled_on_a_cpu(flags, trained, expected):
    """By the images that one network is trained on, so that it depends on the options and the set alone."""
    assert is_compiled(options.parse_options("", flags.split()).compile, CPU, 0, trained) is expected


def test_evaluation_says_how_long_it_is(digits, make_options, monkeypatch):
    """40 images for 1,001 epochs, the published IPC 1 with a formation, are a long one."""
    lengths = []

    def keep(choice, device, iterations, trained):
        lengths.append(trained)
        raise InterruptedError

    monkeypatch.setattr(evaluation, "is_compiled", keep)
    data = digits()
    with pytest.raises(InterruptedError):
        evaluation.evaluate(data.images[:40], data.labels[:40], data, "MLP", make_options(), Draws(0), ("test",))
    assert lengths == [40_040]


def test_batch_normalisation_sees_whole_batches():
    """In training its statistics are those of the batch, so the batch is not taken in parts."""
    runner = BatchRunner(CPU, "fp32", True)
    batch = torch.zeros(100, 1)
    for name, parts in (("ConvNetBN", 1), ("ConvNet", 4)):
        network = get_network(name, 1, 10, 16)
        assert len(runner.parts(network, batch)) == parts
        assert len(runner.parts(network.eval(), batch)) == 4


@pytest.mark.parametrize("count, sizes", [
    (10, [10]), (40, [20, 20]), (256, [32] * 8), (100, [25] * 4), (400, [25] * 16), (70, [32, 32, 6]),
    (0, [])])
def test_parts_are_alike_where_they_can_be(count, sizes):
    """So that one compilation serves all; a rest is not compiled."""
    runner = BatchRunner(CPU, "fp32", True)
    parts = runner.parts(get_network("MLP", 1, 10, 8), torch.zeros(count, 1))
    assert [len(part) for part in parts if len(part)] == sizes


@pytest.mark.parametrize("compiled, noted", [(False, []), (True, [32, 32])])
def test_only_whole_parts_are_compiled(compiled, noted, monkeypatch):
    """On a processor, and with the colours of a pixel side by side."""
    sizes, layouts = [], set()

    def compile_(function):
        return lambda network, part, bf16: (sizes.append(len(part)), function(network, part, bf16))[1]

    class Pass(torch.nn.Module):
        def forward(self, x):
            layouts.add(x.stride())
            return x

    monkeypatch.setattr("utils.networks.batches.compile_once", compile_)
    images = torch.arange(70.0).reshape(70, 1, 1, 1).expand(70, 3, 4, 5).contiguous()
    runner = BatchRunner(CPU, "fp32", compiled)
    assert torch.equal(runner.classify(Pass(), images), images)
    assert sizes == noted and layouts == {(60, 1, 15, 3) if compiled else (60, 20, 5, 1)}


@pytest.fixture
def tf32_as_before():
    """Puts the process's settings back."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("precision, convolutions, products", [
    (None, True, False), ("fp32", False, False), ("tf32", True, True), ("bf16", False, False)])
def test_tf32_on_a_gpu_is_as_pytorch_has_it_unless_asked_for(precision, convolutions, products, tf32_as_before):
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False  # PyTorch's defaults
    BatchRunner(torch.device("cuda"), precision, False)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (convolutions, products)


@pytest.mark.slow
def test_without_a_compiler_the_run_goes_on_quietly(tmp_path):
    environment = os.environ | {"CXX": "/nonexistent/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "BACON_digits.py", *TINY, "--compile", "--save_path", tmp_path], cwd=CODE,
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "result:" in done.stdout
