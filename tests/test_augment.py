"""DSA and the formation against the figures of the published functions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import augment

FIGURES = json.loads((Path(__file__).parent / "figures" / "augment.json").read_text())


def images(seed=3, shape=(2, 3, 8, 8)):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def uniform(name, draws, siamese, side=8):
    """Uniform draws (2, 3) that give the published draws; crop and cutout drew integers."""
    u = torch.zeros(2, 3, dtype=torch.float64)
    for k, values in enumerate(draws):
        values = torch.tensor(values, dtype=torch.float64)
        if name in ("crop", "cutout"):
            low, high = FIGURES["ranges"][str(side)][name]
            values = (values - low + 0.5) / (high - low)
        u[:, k] = values[0] if siamese else values
    return u.float()


def check(out, figures):
    assert out.double().sum().item() == pytest.approx(figures["sum"], rel=1e-5, abs=1e-4)
    assert out.double().norm().item() == pytest.approx(figures["l2"], rel=1e-5)
    assert out[1].double().sum().item() == pytest.approx(figures["sample1_sum"], rel=1e-5, abs=1e-4)
    assert np.allclose(out[0, 0, :2, :4], figures["corner"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, figures", [(name, f) for name, all_ in FIGURES["forced"].items() for f in all_])
def test_forced_examples(name, figures):
    check(getattr(augment, name)(images(), uniform(name, figures["draws"], figures["siamese"])), figures)


@pytest.mark.parametrize("figures", FIGURES["seeded"], ids=lambda f: f["chosen"])
def test_seeded_examples(figures):
    name = figures["chosen"]
    check(augment.OPERATIONS[name](images(), uniform(name, figures["draws"], figures["siamese"])), figures)


@pytest.mark.parametrize("side", FIGURES["ranges"])
def test_ranges_of_crop_and_cutout(side):
    """The extreme draws give the extreme shifts and holes, for every side in the figures."""
    figures, n = FIGURES["ranges"][side], int(side)
    column = torch.arange(1, n + 1).float().reshape(1, 1, n, 1).expand(1, 1, n, n)
    for draw, shift in ((0.0, figures["crop"][0]), (1 - 1e-6, figures["crop"][1] - 1)):
        expected = [i + shift + 1 if 0 <= i + shift < n else 0 for i in range(n)]
        u = torch.tensor([[draw, 0.5, 0]])
        assert augment.crop(column, u)[0, 0, :, n // 2].tolist() == expected
    low, high = figures["cutout"]
    for offset, (first, last) in figures["zeroed_rows"].items():
        u = torch.full((1, 3), (int(offset) - low + 0.5) / (high - low))
        rows = (augment.cutout(torch.ones(1, 1, n, n), u)[0, 0] == 0).any(dim=1).nonzero().flatten().tolist()
        assert rows == list(range(first, last + 1))


def test_classes_are_augmented_apart_and_alike_within():
    x = torch.randn(6, 4, 3, 8, 8)
    names, u = list(augment.OPERATIONS), np.random.default_rng(0).random((6, 3))
    names = [names[k] for k in (5, 0, 3, 0, 2, 1)]
    out = augment.augment_classes(x, names, u)
    for k, name in enumerate(names):
        alone = augment.OPERATIONS[name](x[k], torch.tensor(u[k]).float().expand(4, 3))
        torch.testing.assert_close(out[k], alone, rtol=0, atol=0)
    assert augment.augment_classes(x, [], u) is x


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_differentiable(name):
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: augment.OPERATIONS[name](x, u), x)


def test_one_channel_saturation_does_nothing():
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(augment.saturation(x, torch.rand(2, 3)), x)


def test_expand_formation():
    figures = FIGURES["expand_formation"]
    out = augment.expand_formation(images(4, (2, 3, 32, 32)))
    assert out.double().sum().item() == pytest.approx(figures["sum"], rel=1e-5)
    assert out.double().norm().item() == pytest.approx(figures["l2"], rel=1e-6)
    for image, expected in zip(out, figures["per_output"], strict=True):
        assert image.double().sum().item() == pytest.approx(expected["sum"], rel=1e-5)
        assert image[0, 0, :4].tolist() == pytest.approx(expected["channel0_row0_first4"], rel=1e-5, abs=1e-6)
        assert image[0, 1, :4].tolist() == pytest.approx(expected["channel0_row1_first4"], rel=1e-5, abs=1e-6)
    assert torch.tensor(figures["labels_in"]).repeat(4).tolist() == figures["labels_out"]


def test_make_formation():
    figures = FIGURES["make_formation"]
    tiles = images(4, (4, 2, 3, 32, 32))
    out = augment.make_formation(tiles)
    assert out.double().sum().item() == pytest.approx(figures["sum"], rel=1e-5)
    assert out.double().norm().item() == pytest.approx(figures["l2"], rel=1e-6)
    for name, (row, column) in {"channel0_row0_first4": (0, 0), "channel0_row16_first4": (16, 0),
                                "channel0_row0_cols16_19": (0, 16), "channel0_row16_cols16_19": (16, 16)}.items():
        assert out[0, 0, row, column:column + 4].tolist() == pytest.approx(figures[name], rel=1e-5, abs=1e-6)
    expanded = augment.expand_formation(out)
    assert expanded.double().sum().item() == pytest.approx(figures["then_expanded"]["sum"], rel=1e-5)
    assert expanded[0, 0, 0, :4].tolist() == pytest.approx(
        figures["then_expanded"]["output0_channel0_row0_first4"], rel=1e-5)


def test_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="blur"):
        augment.parse_strategy("color_blur")
    assert augment.parse_strategy("none") == []
