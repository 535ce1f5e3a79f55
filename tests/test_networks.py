"""Networks against the figures of the published ones: parameters, shapes, logits, embeddings."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.networks import NETWORKS, get_network
from utils.system.errors import UserError

FIGURES = json.loads((Path(__file__).parent / "figures" / "networks.json").read_text())
QUICK = [name for name in FIGURES if name in NETWORKS and name not in ("ConvNetNP", "ConvNetKIP")]
CASES = [(name, size) for name in QUICK for size, figures in FIGURES[name]["sizes"].items()
         if "unsupported" not in figures and (size != "C3_N200_S64" or name in ("ConvNet", "ConvNet_4"))]
CASES += [("ConvNetNP", "C1_N10_S28"), ("ConvNetKIP", "C1_N10_S28")]


def build(name, size):
    channel, classes, side = map(int, re.fullmatch(r"C(\d+)_N(\d+)_S(\d+)", size).groups())
    network = get_network(name, channel, classes, side).double().eval()
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            values = 0.05 * np.sin(0.01 * np.arange(parameter.numel()) + k)
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    x = np.random.default_rng(7).standard_normal((2, channel, side, side)).astype(np.float32)
    return network, torch.from_numpy(x).double()


@pytest.mark.parametrize("name, size", CASES)
@torch.no_grad()
def test_published_figures(name, size):
    figures = FIGURES[name]["sizes"][size]
    network, x = build(name, size)
    assert sum(p.numel() for p in network.parameters()) == figures["parameter_count"]
    for kind, tolerance in (("logits_float64", 6e-6), ("logits_float32", 1e-5)):
        if kind in figures:
            expected = np.array(figures[kind])
            rounding = 10 * figures["max_abs_difference_float32_vs_float64"]
            difference = np.abs(network(x)[:, :expected.shape[1]].numpy() - expected).max()
            assert difference <= tolerance * figures["max_abs_logit"] + rounding * (kind == "logits_float32")
    for last, kind in ((1000, "embedding_last_1000"), (-1, "embedding_last_minus1")):
        if kind in figures:
            embedding = network.embed(x, last)
            assert list(embedding.shape) == figures[kind].get("shape", list(embedding.shape))
            assert embedding.norm().item() == pytest.approx(figures[kind]["l2"], rel=1e-5)
            assert embedding.sum().item() == pytest.approx(figures[kind]["sum"], rel=1e-5)


def test_every_published_network_is_there():
    assert set(FIGURES) - {"recipe"} <= set(NETWORKS)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name in FIGURES and name != "ConvNetD6"])
def test_state_dict_is_the_published_one(name):
    state = get_network(name, 3, 10, 32).state_dict()
    assert [[key, list(value.shape)] for key, value in state.items()] == FIGURES[name]["state_dict"]


@pytest.mark.parametrize("last", [1000, -1, -2, 5])
def test_one_pass_gives_embedding_and_logits(last):
    network, x = build("ConvNetW32", "C3_N10_S32")
    embedding, logits = network.embed_and_classify(x, last)
    torch.testing.assert_close(embedding, network.embed(x, last))
    torch.testing.assert_close(logits, network(x))


@pytest.mark.parametrize("channel, side", [(1, 8), (1, 32), (3, 28), (3, 64), (3, 96), (3, 128), (1, 28)])
def test_other_image_sizes(channel, side):
    assert get_network("ConvNetW32", channel, 7, side)(torch.zeros(2, channel, side, side)).shape == (2, 7)
    assert get_network("ConvNetW32", channel, 7, (side, side + 8))(
        torch.zeros(2, channel, side, side + 8)).shape == (2, 7)


@pytest.mark.parametrize("name", ["MLP", "LeNet", "AlexNet", "VGG11", "ResNet18", "ResNet18BN_AP"])
@pytest.mark.parametrize("channel, side", [(3, 64), (1, 32), (3, 48)])
def test_other_families_at_other_sizes(name, channel, side):
    """Published ones only take 28x28 grey and 32x32 colour."""
    network = get_network(name, channel, 7, side)
    assert network(torch.zeros(2, channel, side, side)).shape == (2, 7)


def test_fresh_batch_statistics():
    for key, value in get_network("ResNet18BN", 3, 10, 32).state_dict().items():
        if key.endswith("running_mean"):
            assert (value == 0).all(), key


def test_seed_decides_the_weights_and_leaves_the_global_state_alone():
    before = torch.random.get_rng_state()
    first, second, other = (get_network("ConvNetW32", 1, 10, 28, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_refusals():
    with pytest.raises(UserError, match="ConvNetX"):
        get_network("ConvNetX", 3, 10, 32)
    for name, side in (("ConvNetD6", 32), ("ResNet18", 16), ("LeNet", 8)):
        with pytest.raises(UserError, match=f"{name} does not fit images of {side}x{side}"):
            get_network(name, 3, 10, side)


@pytest.mark.parametrize("name", ["ConvNetNP", "ConvNet_FullyConv"])
def test_values_that_are_normalised_alone(name):
    """All of them would be 0, and so would what is learnt from them."""
    with pytest.raises(UserError, match=f"{name} does not fit images of 1x1: .* choose another network"):
        get_network(name, 3, 10, 1)
    assert get_network(name, 3, 10, 2) and get_network(name, 1, 10, 1), "the latter are padded"
