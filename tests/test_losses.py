"""Losses against the figures of the published functions, values and gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import losses, methods

FIGURES = json.loads((Path(__file__).parent / "figures" / "losses.json").read_text())
LOSSES = {
    "total_variation": losses.total_variation,
    "negative_log_likelihood": losses.negative_log_likelihood,
    "clip_published": losses.clip_prior,
    "clip_embedding": lambda s, r: losses.clip_prior(s, r, on="embedding"),
    "bacon_published": losses.bacon_loss,
    "bacon_embedding": lambda s, r: losses.bacon_loss(s, r, prior_clip="embedding"),
    "mean_matching": losses.mean_matching,
}


def embeddings(case, dtype):
    rng = np.random.default_rng(case["seed"])
    z_syn = rng.standard_normal((case["n_syn"], case["D"]), dtype=np.float32)
    z_real = 0.5 * rng.standard_normal((case["n_real"], case["D"]), dtype=np.float32) + np.float32(0.1)
    return torch.from_numpy(z_syn).to(dtype), torch.from_numpy(z_real).to(dtype)


def value_and_gradient(loss, z_syn, z_real):
    z_syn = z_syn.clone().requires_grad_()
    value = loss(z_syn, z_real)
    value.backward()
    return value.item(), z_syn.grad


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("case", ["case0", "case1"])
@pytest.mark.parametrize("name", LOSSES)
def test_published_figures(name, case, dtype, tolerance):
    figures = FIGURES[case][str(dtype).removeprefix("torch.")][name]
    value, gradient = value_and_gradient(LOSSES[name], *embeddings(FIGURES[case], dtype))
    # The published clip term is rounding noise around 0: at most 3.4e-11, its gradient at most 3.7e-13.
    assert value == pytest.approx(figures["value"], rel=tolerance, abs=4e-11)
    assert gradient.double().norm().item() == pytest.approx(figures["grad_l2"], rel=tolerance, abs=4e-13)
    assert gradient[0, :4].tolist() == pytest.approx(figures["grad_row0_first4"], rel=tolerance * 10, abs=1e-9)
    assert (gradient == gradient[0]).all()


@pytest.mark.parametrize("where", FIGURES["far_from_mean_float64"])
def test_likelihood_is_finite_far_from_the_mean(where):
    """In float32, where the published density underflows (14 sigma and beyond), the float64 figure still holds."""
    figures = FIGURES["far_from_mean_float64"][where]
    z_syn, z_real = embeddings(FIGURES["case0"], torch.float32)
    z_real[:, 3] = 0
    z_syn[:, 3] = float(where)
    value, gradient = value_and_gradient(losses.negative_log_likelihood, z_syn, z_real)
    assert value == pytest.approx(figures["value"], rel=1e-5)
    assert gradient.double().norm().item() == pytest.approx(figures["grad_l2"], rel=1e-5)


@pytest.mark.parametrize("name", FIGURES["feature3_zero_in_both"])
def test_dead_feature(name):
    figures = FIGURES["feature3_zero_in_both"][name]
    z_syn, z_real = embeddings(FIGURES["case0"], torch.float32)
    z_syn[:, 3] = z_real[:, 3] = 0
    value, gradient = value_and_gradient(LOSSES[name], z_syn, z_real)
    assert value == pytest.approx(figures["value"], rel=1e-5)
    assert gradient[0, :4].tolist() == pytest.approx(figures["grad_row0_first4"], rel=1e-5)


def test_clip_on_embeddings_leaves_dead_features_out():
    """The published formula divides 0 by 0 there."""
    z_syn, z_real = embeddings(FIGURES["case0"], torch.float64)
    alive = value_and_gradient(LOSSES["clip_embedding"], z_syn[:, :12], z_real[:, :12])[0]
    z_syn[:, 12:] = z_real[:, 12:] = 0
    value, gradient = value_and_gradient(LOSSES["clip_embedding"], z_syn, z_real)
    assert value == pytest.approx(alive * 12 / 16)
    assert gradient.isfinite().all() and (gradient[:, 12:] == 0).all()


OF_DISTRIBUTIONS = {"maximum_mean_discrepancy": losses.maximum_mean_discrepancy,
                    "characteristic_function": losses.characteristic_function}


@pytest.mark.parametrize("name", [*LOSSES, *OF_DISTRIBUTIONS])
def test_batched_over_classes(name):
    loss = (LOSSES | OF_DISTRIBUTIONS)[name]
    torch.manual_seed(0)
    z_syn, z_real = torch.randn(5, 3, 16, dtype=torch.float64), torch.randn(5, 8, 16, dtype=torch.float64)
    one_by_one = torch.stack([loss(s, r) for s, r in zip(z_syn, z_real, strict=True)])
    torch.testing.assert_close(loss(z_syn, z_real), one_by_one, rtol=1e-12, atol=1e-12)


def pairs_of(z_syn, z_real):
    """Two lists of embeddings and the mean squared distance over all pairs of different ones."""
    both = [*z_syn, *z_real]
    distances = [((x - y) ** 2).sum() for i, x in enumerate(both) for j, y in enumerate(both) if i != j]
    return list(z_syn), list(z_real), sum(distances) / len(distances)


def test_maximum_mean_discrepancy_is_its_definition():
    rng = np.random.default_rng(0)
    z_syn, z_real = rng.standard_normal((4, 7)), 1 + rng.standard_normal((6, 7))
    syn, real, mean = pairs_of(z_syn, z_real)

    def kernel(x, y):
        return sum(np.exp(-((x - y) ** 2).sum() / (b * mean)) for b in (1 / 4, 1 / 2, 1, 2, 4))

    def average(first, second):
        return sum(kernel(x, y) for x in first for y in second) / (len(first) * len(second))

    expected = average(syn, syn) + average(real, real) - 2 * average(syn, real)
    found = losses.maximum_mean_discrepancy(torch.from_numpy(z_syn), torch.from_numpy(z_real))
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_characteristic_function_is_its_definition():
    """Amplitude and phase as NCFM has them: (|a| - |b|)^2 + 2 (|a| |b| - Re(a b*)) is |a - b|^2."""
    rng = np.random.default_rng(0)
    z_syn, z_real = rng.standard_normal((4, 7)), 1 + rng.standard_normal((6, 7))
    syn, real, mean = pairs_of(z_syn, z_real)
    drawn = torch.randn(7, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy().T
    expected = []
    for t in drawn * np.sqrt(2 / mean):
        a, b = (np.mean([np.exp(1j * t @ z) for z in side]) for side in (syn, real))
        amplitude, phase = (abs(a) - abs(b)) ** 2, 2 * (abs(a) * abs(b) - (a * b.conjugate()).real)
        expected.append(np.sqrt(amplitude + phase))
    found = losses.characteristic_function(torch.from_numpy(z_syn), torch.from_numpy(z_real))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-10)


@pytest.mark.parametrize("name", OF_DISTRIBUTIONS)
def test_distances_of_distributions_end_at_equality(name):
    """Equal embeddings have distance 0 and a finite gradient; so have embeddings that are all one point."""
    z = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for syn, real in ((z, z.repeat(2, 1)), (torch.ones(3, 6), torch.ones(4, 6))):
        value, gradient = value_and_gradient(OF_DISTRIBUTIONS[name], syn, real)
        assert value == pytest.approx(0, abs=1e-6) and gradient.isfinite().all()


@pytest.mark.parametrize("method, name", [("MMD", "maximum_mean_discrepancy"), ("CF", "characteristic_function")])
def test_their_methods(method, name):
    z_syn, z_real = torch.randn(2, 3, 6), torch.randn(2, 5, 6)
    value, = methods.METHODS[method].objective(z_syn, z_real, None).values()
    torch.testing.assert_close(value, OF_DISTRIBUTIONS[name](z_syn, z_real))


@pytest.mark.parametrize("name", ["total_variation", "negative_log_likelihood", "clip_embedding", "mean_matching",
                                  *OF_DISTRIBUTIONS])
def test_gradient_is_that_of_finite_differences(name):
    loss = (LOSSES | OF_DISTRIBUTIONS)[name]
    torch.manual_seed(0)
    z_syn = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    z_real = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    if name not in OF_DISTRIBUTIONS:  # in which d, a mean of the synthetic embeddings too, counts as a constant
        assert torch.autograd.gradcheck(lambda s: loss(s, z_real), z_syn)
    loss(z_syn, z_real).backward()
    assert z_real.grad is None, "the real embeddings are constants"


def test_unknown_clip_prior_is_refused():
    with pytest.raises(ValueError, match="published"):
        losses.clip_prior(torch.zeros(2, 2), torch.zeros(2, 2), on="images")


def test_likelihood_of_the_deviation_itself():
    rng = torch.Generator().manual_seed(0)
    z_real = torch.randn(20, 5, generator=rng, dtype=torch.float64) * torch.tensor([0, 0.01, 0.5, 1, 3])
    z_syn = torch.randn(4, 5, generator=rng, dtype=torch.float64)
    expected = torch.distributions.Normal(z_real.mean(0), z_real.std(0).clamp(min=0.1)).log_prob(z_syn.mean(0)).sum()
    assert losses.negative_log_likelihood(z_syn, z_real, "std").item() == pytest.approx(-expected.item(), rel=1e-12)
    assert losses.bacon_loss(z_syn, z_real, tv_weight=0, clip_weight=0, sigma="std").item() == pytest.approx(
        -expected.item(), rel=1e-12)
