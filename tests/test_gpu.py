"""The path on a GPU: where there is none, by tensors that have a device but no values."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark import first_classes
from utils import evaluation, pool
from utils.data import normalisation
from utils.distill import Distillation
from utils.networks.batches import BatchRunner


class Copies(TorchDispatchMode):
    """Notes copies between devices for which the host would wait."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if function is torch.ops.aten._to_copy.default and args[0].device != out.device:
            waited = not (kwargs.get("non_blocking") and getattr(args[0], "pinned", False))
        else:
            waited = function is torch.ops.aten.index.Tensor and any(
                rows is not None and rows.device != out.device for rows in args[1])
        if waited:
            self.waited.append(tuple(out.shape))
        return out


@pytest.fixture
def fake_gpu(monkeypatch):
    """Where tensors on a GPU have no values; gradients, which PyTorch computes on a real one alone, are zeros."""

    def pin_memory(tensor):
        tensor.pinned = True
        return tensor

    def build(*arguments, own=pool.get_network):
        with torch.device("cuda"):
            return own(*arguments)

    def train_step(self, network, optimizer, images, labels):
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        return self.classify(network, images)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.autograd, "grad", lambda out, of: (torch.zeros_like(of),))
    monkeypatch.setattr(pool, "get_network", build)
    monkeypatch.setattr(evaluation, "get_network", build)
    monkeypatch.setattr(BatchRunner, "prepare", lambda self, network, *_: network)
    monkeypatch.setattr(BatchRunner, "train_step", train_step)
    normalisation.constants.cache_clear()
    with FakeTensorMode():
        try:
            torch.empty(1).to("cuda")
        except RuntimeError:
            pytest.skip("this version of PyTorch wants a GPU even for tensors without values")
        yield
    normalisation.constants.cache_clear()


def on_gpu(data):
    for name in ("images", "labels", "test_images", "test_labels"):
        own = getattr(data, name)
        setattr(data, name, torch.empty(own.shape, dtype=own.dtype, device="cuda"))
    return data


@pytest.mark.parametrize("flags", [
    ["--syn_ce", "--net_decay", "--aug"], ["--ipc", "10", "--sigma", "std", "--prior_clip", "embedding"],
    ["--method", "DM"], ["--method", "IDM", "--optim", "adam", "--visits", "joint"], ["--init", "noise"],
    ["--aug", "--soft_labels", "0.5"]], ids=" ".join)
def test_one_device_and_no_waiting(flags, digits, make_options, request):
    """No operation mixes devices, which PyTorch refuses here as there, and no copy to the GPU is waited for."""
    data, options = digits(), make_options(*flags, "--max_batch", "64", "--epoch_eval_train", "2")
    request.getfixturevalue("fake_gpu")
    distillation = Distillation(on_gpu(data), options)
    images, labels = distillation.images.flatten(0, 1), torch.arange(10, device="cuda").repeat_interleave(options.ipc)
    distillation.step(0)
    network = pool.get_network(options.model, *data.image_shape[:1], 10, data.image_shape[1:], 0)
    with Copies() as copies:
        distillation.step(1)
        evaluation.train(network, images, labels, options, distillation.draws.evaluation("test"),
                         distillation.pool.runner)
    assert not copies.waited
    if options.soft_labels:
        assert distillation.soft_labels(images, labels).device.type == "cuda"
    assert evaluation.predict(network, data, 64, distillation.pool.runner).device.type == "cuda"


def test_activations_stay_in_bf16(fake_gpu, monkeypatch):
    """Where PyTorch's own normalisation would go on in fp32."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    network, types = pool.get_network("ConvNet", 3, 10, 32), []
    for layer in network.features:
        layer.register_forward_hook(lambda layer, x, out: types.append(out.dtype))
    with torch.autocast("cuda", torch.bfloat16):
        network(torch.empty(4, 3, 32, 32, device="cuda"))
    assert types == [torch.bfloat16] * 12


def test_a_copy_that_is_waited_for_is_noticed(fake_gpu):
    with Copies() as copies:
        torch.zeros(2).pin_memory().to("cuda", non_blocking=True)
        assert not copies.waited
        torch.zeros(2).to("cuda", non_blocking=True)
        torch.zeros(3).pin_memory().to("cuda")
        torch.zeros(9, device="cuda")[torch.zeros(4, dtype=torch.long)]
    assert copies.waited == [(2,), (3,), (4,)]


class Operations(TorchDispatchMode):
    """Counts operations, each of which a GPU is sent by itself, but for those that only look at a tensor in another
    way."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optim, as_many", [("sgd", True), ("adam", False)])
def test_as_many_operations_for_ten_classes_as_for_two(optim, as_many, digits, make_options):
    """Nothing visits classes or images one by one, so that Python does not keep a GPU waiting, but for Adam's steps."""
    counts = set()
    for classes, ipc in ((2, 2), (2, 7), (10, 2), (10, 7)):
        options = make_options("--ipc", ipc, "--syn_ce", "--aug", "--dsa_strategy", "scale", "--optim", optim)
        distillation = Distillation(first_classes(digits(), classes), options)
        distillation.step(0)
        with Operations() as operations:
            distillation.step(1)
        counts.add(operations.count)
    assert (len(counts) == 1) == as_many, counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or BACON_TEST_GPU=1 is not set")
def test_on_a_gpu(digits, make_options):
    """The set is the CPU's but for rounding, and PyTorch itself sees nobody wait."""
    sets = []
    for device in ("cpu", "cuda"):
        options = make_options("--syn_ce", "--aug", "--precision", "fp32")
        distillation = Distillation(digits().to(torch.device(device)), options)
        start = distillation.images.cpu().clone()
        distillation.step(0)
        with contextlib.ExitStack() as stack:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
            distillation.step(1)
        sets.append(distillation.images.cpu())
    assert (sets[1] - sets[0]).norm() < 0.01 * (sets[0] - start).norm()
