"""--max_batch follows free memory, changes no result, and a run says how much memory it took."""

import re

import pytest
import torch

from conftest import ROOT, TINY, call_script
from utils import checkpoint, evaluation, pretrained, run_files, storage
from utils.distill import Distillation
from utils.draws import generator
from utils.networks import get_network
from utils.networks.batches import BatchRunner
from utils.system import files, memory, unpickle
from utils.system.errors import LacksMemory

CPU = torch.device("cpu")


def set_free_memory(monkeypatch, free: float):
    monkeypatch.setattr(memory, "free_memory", lambda of: free)


def kept_by_one_image(network) -> int:
    """Bytes of the outputs of the layers of a ConvNet, for one image."""
    sizes = []
    for layer in network.features:
        layer.register_forward_hook(lambda layer, given, out: sizes.append(out.nbytes))
    network(torch.zeros(1, 3, 32, 32))
    return sum(sizes)


@pytest.mark.parametrize("name", ["ConvNet", "ConvNetW32"])
def test_as_many_as_fit_and_no_more_than_is_fast(name, monkeypatch):
    network = get_network(name, 3, 10, 32).eval()
    image, layers = torch.zeros(1, 3, 32, 32), kept_by_one_image(get_network(name, 3, 10, 32))
    for free in (2e8, 1e8):
        set_free_memory(monkeypatch, free)
        assert 0.5 < memory.batch_that_fits(network, image) * memory.PASSES_IN_MEMORY * layers / free < 2
    set_free_memory(monkeypatch, 0)
    assert memory.batch_that_fits(network, image) == 1
    set_free_memory(monkeypatch, float("inf"))
    assert memory.batch_that_fits(network, image) == 512


@pytest.mark.parametrize("name", ["MLP", "LeNet", "AlexNetBN", "VGG11BN", "ResNet18BN_AP", "ConvNetLN"])
def test_every_family_is_measured(name, monkeypatch):
    """And none is changed by it: batch normalisation keeps its statistics."""
    network = get_network(name, 3, 10, 32, seed=0).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    set_free_memory(monkeypatch, 1e6)
    assert 1 <= memory.batch_that_fits(network, torch.zeros(1, 3, 32, 32)) < 512
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_free_memory_of_this_machine():
    assert 1e7 < memory.free_memory(CPU) < 1e14


CACHED = "anon 100\ninactive_file 30\nactive_file 20\ntotal_inactive_file 60\ntotal_active_file 40\n"
NO_LIMIT, TIGHT, WIDE = ({"memory.max": most, "memory.current": 300, "memory.stat": CACHED}
                         for most in ("max", 100, 900))
V1 = {"memory.limit_in_bytes": 900, "memory.usage_in_bytes": 300, "memory.stat": CACHED}
V1_LESS = V1 | {"memory.limit_in_bytes": 500}
NO_STAT = {name: V1[name] for name in V1 if name != "memory.stat"}


@pytest.mark.parametrize("own, groups, left", [
    ("0::/", {}, float("inf")), ("0::/", {"": NO_LIMIT}, float("inf")), ("0::/", {"": WIDE}, 650),
    ("0::/", {"": TIGHT}, 0),
    ("0::/job_1/step_0", {"job_1/step_0": NO_LIMIT, "job_1": WIDE, "job_2": TIGHT}, 650),
    ("0::/job_1/step_0", {"job_1/step_0": WIDE, "job_1": TIGHT}, 0), ("0::/elsewhere", {"": WIDE}, 650),
    ("9:name=systemd:/\n4:memory:/\n0::/", {"memory": V1}, 700), ("4:memory:/", {"memory": NO_STAT}, float("inf")),
    ("4:memory:/a:b/step", {"memory": V1, "memory/a:b": V1_LESS}, 300), ("5:devices:/", {"memory": V1}, float("inf"))])
def test_limits_of_control_groups(own, groups, left, tmp_path, monkeypatch):
    """A container has its limit at the root of what it sees, a batch job below it, in a group that holds others."""
    plain = memory.free_memory(CPU)
    for group, contents in groups.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (tmp_path / group / name).write_text(f"{content}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    assert memory.left_to_groups(tmp_path, tmp_path / "own") == left
    assert memory.free_memory(CPU) == left if left < float("inf") else memory.free_memory(CPU) > plain / 2


def test_short_memory_gives_the_same_images(digits, make_options, monkeypatch):
    data, options = digits(torch.float64), make_options("--ipc", 2, "--aug", "--syn_ce", "--batch_real", 140)

    def images():
        engine = Distillation(data, options)
        engine.step(0)
        return engine.max_batch, engine.images

    plenty, expected = images()
    set_free_memory(monkeypatch, 1e7)
    few, short = images()
    assert plenty == 512 and few < 20
    torch.testing.assert_close(short, expected, rtol=0, atol=1e-10)


def test_short_memory_gives_the_same_accuracy(digits, monkeypatch):
    data, network = digits(), get_network("ConvNetW32", 1, 10, 16, seed=0)
    runner = BatchRunner(CPU, "fp32", False)
    expected = evaluation.test(network, data, None, runner)
    set_free_memory(monkeypatch, 1e7)
    assert evaluation.test(network, data, None, runner) == expected


def test_training_takes_images_that_are_not_normalised_yet(digits, make_options):
    """The whole training set need not be there in float32."""
    data, options = digits(), make_options("--epoch_eval_train", 1)
    runner = BatchRunner(CPU, options.precision, False)
    raw, ready = (get_network("ConvNetW32", 1, 10, 16, seed=0) for _ in range(2))
    evaluation.train(raw, data.images[:80], data.labels[:80], options, generator(0), runner, normalise=data.normalise)
    evaluation.train(ready, data.normalise(data.images[:80]), data.labels[:80], options, generator(0), runner)
    assert all(torch.equal(*pair) for pair in zip(raw.parameters(), ready.parameters(), strict=True))


def printed_peak(done):
    return float(re.search(r"peak memory: (\d+\.\d\d) GB\n$", done.stdout).group(1))


def test_a_run_says_how_much_memory_it_took(tmp_path):
    printed = printed_peak(call_script("BACON_digits.py", *TINY, "--save_path", tmp_path))
    lines = files.read_json_lines(tmp_path / "BACON_digits_ConvNetW32_1ipc" / "metrics.jsonl")
    assert 0.1 < lines[0]["peak_gb"] <= lines[-1]["peak_gb"] <= printed
    done = call_script("evaluate.py", "--synthetic", tmp_path / "res_BACON_digits_ConvNetW32_1ipc.pt", "--save_path",
                       tmp_path, "--num_eval", 1)
    assert printed <= printed_peak(done) + 0.01


def has_no_memory(*_, **__):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


def read_within_a_run(path):
    with run_files.undamaged(path):
        has_no_memory()


@pytest.mark.parametrize("read", [storage.load, checkpoint.read, pretrained.read, read_within_a_run])
def test_a_file_for_which_memory_lacks_is_not_said_to_be_damaged(read, tmp_path, monkeypatch):
    """Nor are batches to blame, nor is somebody told to remove it."""
    path = tmp_path / "file.pt"
    path.write_bytes(checkpoint.header(b"content") + b"content")
    monkeypatch.setattr(unpickle, "load_torch", has_no_memory)
    with pytest.raises(LacksMemory, match=r"file\.pt: it takes more memory than there is \(.*; free some, or") as error:
        read(path)
    assert "\n" not in str(error.value) and "--max_batch" not in str(error.value)


def test_a_checkpoint_for_which_memory_lacks_is_not_given_up(tmp_path, monkeypatch):
    """The one before would fit as little, or lose work."""
    for name in checkpoint.NAMES:
        (tmp_path / name).write_bytes(checkpoint.header(b"content") + b"content")
    monkeypatch.setattr(unpickle, "load_torch", has_no_memory)
    with pytest.raises(LacksMemory, match=checkpoint.NEW):
        checkpoint.find(tmp_path, "auto", {})


def test_a_set_that_does_not_fit_into_memory_earns_no_advice_on_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ready", has_no_memory)
    flags = ["--synthetic", ROOT / "Distilled" / "digits" / "BACON_ipc1.pt", "--num_eval", 1]
    line, = call_script("evaluate.py", *flags, expect=2).stderr.splitlines()
    assert "BACON_ipc1.pt: it takes more memory than there is" in line and "--max_batch" not in line
