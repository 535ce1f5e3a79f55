"""Other ways to a layer give its values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from utils.networks import fast_layers


def case(images: int, channels: int, height: int, width: int, kernels: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, height, width, generator=generator, dtype=dtype)
    weight = torch.randn(kernels, channels, 3, 3, generator=generator, dtype=dtype) / (3 * channels**0.5)
    return x.requires_grad_(), weight.requires_grad_(), generator


def results(out, x, weight, generator):
    """Values and gradients for a random gradient of the output."""
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return out, *torch.autograd.grad(out, (x, weight), grad)


def apart(own, exact) -> list[float]:
    """Relative distance of each result."""
    return [((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in zip(own, exact, strict=True)]


@pytest.mark.parametrize("height, width", [(8, 8), (16, 12), (9, 11), (7, 10)])
@pytest.mark.parametrize("dtype, most", [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_winograd(height, width, dtype, most):
    x, weight, generator = case(2, 5, height, width, 3)
    exact = results(F.conv2d(x, weight, padding=1), x, weight, generator)
    x, weight, generator = case(2, 5, height, width, 3)
    x, weight = (t.detach().to(dtype).requires_grad_() for t in (x, weight))
    out = fast_layers.Winograd.apply(x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0)).permute(0, 3, 1, 2)
    assert max(apart(results(out, x, weight, generator), exact)) < most


@pytest.mark.parametrize("channels, padding", [(1, (3, 3)), (3, (1, 2))])
def test_patches(channels, padding):
    x, weight, generator = case(2, channels, 8, 9, 4)
    bias = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    grad = torch.randn(2, 4, 6 + 2 * padding[0], 7 + 2 * padding[1], generator=generator, dtype=torch.float64)
    exact = F.conv2d(x, weight, bias, padding=padding)
    out = fast_layers.convolve_by_patches(x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0), bias, padding)
    out = out.permute(0, 3, 1, 2)
    own, exact = ((values, *torch.autograd.grad(values, (x, weight, bias), grad)) for values in (out, exact))
    assert max(apart(own, exact)) < 1e-14


@pytest.mark.parametrize("height, width", [(8, 6), (7, 9)])
def test_pooling(height, width, monkeypatch):
    x, _, generator = case(2, 3, height, width, 1)
    grad = torch.randn(2, 3, height // 2, width // 2, generator=generator, dtype=torch.float64)
    layer = fast_layers.AvgPool2d()
    exact = layer(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.grad_fn.name() != exact.grad_fn.name(), "the same way"
    own, exact = ((values, *torch.autograd.grad(values, x, grad)) for values in (out, exact))
    assert max(apart(own, exact)) < 1e-15


@pytest.mark.parametrize("channels, size, bf16, another_way", [
    (64, 8, False, True), (64, 8, True, False), (64, 4, False, False), (32, 8, False, False),
    (1, 8, False, False), (1, 8, True, True)])
def test_which_way_is_taken(channels, size, bf16, another_way, monkeypatch):
    """Only where it is compiled; by tracing, which takes no compiler."""
    taken = []
    for name in ("convolve_by_tiles", "convolve_by_patches"):
        own = getattr(fast_layers, name)
        monkeypatch.setattr(fast_layers, name, lambda *given, own=own: taken.append(own) or own(*given))
    layer, x = fast_layers.Conv2d(channels, 8, 3, padding=1), torch.randn(1, channels, size, size)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        direct = layer(x)
        assert not taken
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        out = layer(x)
    assert bool(taken) is another_way
    assert max(apart([out], [direct])) < (1e-2 if bf16 else 1e-5)


def test_compiled():
    x, weight, generator = case(2, 64, 8, 8, 8, torch.float32)
    layer = fast_layers.Conv2d(64, 8, 3, padding=1)
    layer.weight = torch.nn.Parameter(weight.detach())
    compiled = results(torch.compile(layer)(x), x, layer.weight, generator)
    generator = case(2, 64, 8, 8, 8, torch.float32)[-1]
    direct = results(layer(x), x, layer.weight, generator)
    assert not torch.equal(compiled[0], direct[0]), "nothing was compiled"
    assert max(apart(compiled, direct)) < 5e-6
