"""Matching losses between the embeddings of a class's synthetic and real images.

Every loss takes `z_syn` (N, D) and `z_real` (M, D) and returns a scalar. With one more leading dimension, (C, N, D) and
(C, M, D), it returns one value for each of the C classes, (C,). The real embeddings are constants. All but the maximum
mean discrepancy and the characteristic function compare the means alone, so every row of `z_syn` has the same gradient.
"""

import math

import torch
from torch import Tensor

LEAST_SIGMA = 0.1
BANDWIDTHS = 0.25, 0.5, 1.0, 2.0, 4.0  # of the Gaussian kernels, times the mean squared distance
FREQUENCIES = 1024  # at which characteristic functions are compared


def _mean_difference(z_syn: Tensor, z_real: Tensor) -> Tensor:
    return z_syn.mean(dim=-2) - z_real.detach().mean(dim=-2)


def negative_log_likelihood(z_syn: Tensor, z_real: Tensor, sigma: str = "published") -> Tensor:
    """-log N(mean z_syn; mean z_real, sigma), summed over features.

    sigma="published": exp(std of z_real). sigma="std": the std itself, at least LEAST_SIGMA, so that features that
    hardly vary over the real images count more.

    The published function evaluates the density and takes its log, which underflows in float32 about 14
    sigma from the mean; this is the same quantity in closed form, finite everywhere.

    Source: BACON, likelihood term of the objective; published `utils.py`. Needs M >= 2 real rows
    (the standard deviation is the unbiased one).
    """
    std = z_real.detach().std(dim=-2)
    if sigma not in ("published", "std"):
        raise ValueError(f'negative_log_likelihood: sigma must be "published" or "std", not {sigma!r}')
    log_sigma = std.clamp(min=LEAST_SIGMA).log() if sigma == "std" else std
    scaled = _mean_difference(z_syn, z_real) / log_sigma.exp()
    return 0.5 * z_syn.shape[-1] * math.log(2 * math.pi) + (log_sigma + 0.5 * scaled.square()).sum(dim=-1)


def total_variation(z_syn: Tensor, z_real: Tensor) -> Tensor:
    """Half the L1 distance of the mean embeddings. Source: BACON, TV prior; published `utils.py`."""
    return 0.5 * _mean_difference(z_syn, z_real).abs().sum(dim=-1)


def clip_prior(z_syn: Tensor, z_real: Tensor, on: str = "published") -> Tensor:
    """Mean squared excess of the standardised mean difference outside [0, 1].

    on="published": as the published scripts call it, on the softmax of the two mean embeddings, whose
        means are both exactly 1/D. The value is rounding noise (below 1e-10) and so is the gradient.
    on="embedding": the same formula feature by feature on the embeddings; features that are constant
        over the real batch (dead units) have no standard deviation and are left out.

    Source: BACON, CLIP prior; published `utils.py` (`clip_function`).
    """
    if on == "published":
        p_syn = z_syn.mean(dim=-2).softmax(dim=-1)
        p_real = z_real.detach().mean(dim=-2).softmax(dim=-1)
        standardised = (p_syn.mean(dim=-1) - p_real.mean(dim=-1)) / p_real.std(dim=-1)
        return (standardised - standardised.clamp(0, 1)).square()
    if on == "embedding":
        std = z_real.detach().std(dim=-2)
        alive = std > 0
        standardised = _mean_difference(z_syn, z_real) * alive / torch.where(alive, std, 1)
        return (standardised - standardised.clamp(0, 1)).square().mean(dim=-1)
    raise ValueError(f'clip_prior: on must be "published" or "embedding", not {on!r}')


def bacon_terms(z_syn: Tensor, z_real: Tensor, *, nll_weight: float = 1.0, tv_weight: float = 0.8,
                clip_weight: float = 0.2, prior_clip: str = "published", sigma: str = "published") -> dict[str, Tensor]:
    """The weighted terms of BACON's objective by name; a term with weight 0 is left out."""
    terms = {}
    if nll_weight:
        terms["nll"] = nll_weight * negative_log_likelihood(z_syn, z_real, sigma)
    if tv_weight:
        terms["tv"] = tv_weight * total_variation(z_syn, z_real)
    if clip_weight:
        terms["clip"] = clip_weight * clip_prior(z_syn, z_real, on=prior_clip)
    return terms


def bacon_loss(z_syn: Tensor, z_real: Tensor, **weights) -> Tensor:
    """BACON's objective: likelihood + 0.8 TV + 0.2 CLIP; `weights` as in `bacon_terms`."""
    return sum(bacon_terms(z_syn, z_real, **weights).values())


def mean_matching(z_syn: Tensor, z_real: Tensor) -> Tensor:
    """Squared L2 distance of the mean embeddings.

    Source: DM (Zhao and Bilen, arXiv 2110.04181), eq. 5; IDM (Zhao et al., CVPR 2023).
    """
    return _mean_difference(z_syn, z_real).square().sum(dim=-1)


def _squared_distances(z_syn: Tensor, z_real: Tensor) -> tuple[Tensor, Tensor]:
    """Between all N + M embeddings, (..., N + M, N + M), and their mean over different ones, a constant (..., 1, 1)."""
    both = torch.cat([z_syn, z_real.detach()], dim=-2)
    norms, count = both.square().sum(dim=-1), both.shape[-2]
    squared = (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * both @ both.mT).clamp(min=0)
    mean = squared.detach().sum(dim=(-2, -1), keepdim=True) / (count * (count - 1))
    return squared, mean.clamp(min=torch.finfo(mean.dtype).tiny)


def maximum_mean_discrepancy(z_syn: Tensor, z_real: Tensor) -> Tensor:
    """Squared maximum mean discrepancy under a sum of Gaussian kernels exp(-|x - y|^2 / b).

    b is each of BANDWIDTHS times the mean squared distance of the embeddings, synthetic and real together.
    Source: M3D (Zhang et al., arXiv 2312.15927), eq. 8, with its Gaussian kernel.
    """
    squared, mean = _squared_distances(z_syn, z_real)
    kernel = sum(torch.exp(-squared / (factor * mean)) for factor in BANDWIDTHS)
    syn, real = slice(0, z_syn.shape[-2]), slice(z_syn.shape[-2], None)
    return (kernel[..., syn, syn].mean(dim=(-2, -1)) + kernel[..., real, real].mean(dim=(-2, -1))
            - 2 * kernel[..., syn, real].mean(dim=(-2, -1)))


def characteristic_function(z_syn: Tensor, z_real: Tensor) -> Tensor:
    """Mean distance |phi_syn(t) - phi_real(t)| of the characteristic functions phi(t) = mean of exp(i t.z).

    t: FREQUENCIES draws of N(0, 2 / d), always the same ones; d is the mean squared distance of the embeddings.
    Source: NCFM (Wang et al., arXiv 2502.20653), amplitude and phase in equal parts; there a network learns t.
    """
    mean = _squared_distances(z_syn.detach(), z_real)[1]
    drawn = torch.randn(z_syn.shape[-1], FREQUENCIES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = drawn.to(z_syn) * (2 / mean).sqrt()
    syn, real = z_syn @ t, z_real.detach() @ t
    cos, sin = (f(syn).mean(dim=-2) - f(real).mean(dim=-2) for f in (torch.cos, torch.sin))
    return (cos.square() + sin.square() + torch.finfo(cos.dtype).tiny).sqrt().mean(dim=-1)
