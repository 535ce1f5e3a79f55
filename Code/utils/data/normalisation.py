"""Normalised images and back: mean and standard deviation per channel, and ZCA whitening."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ..system.errors import needed_for


@dataclass
class Whitening:
    """ZCA whitening of images of D = C * H * W values: mean (1, D), matrix and its inverse (D, D)."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def fit(cls, images: Tensor) -> "Whitening":
        """Fits kornia's ZCAWhitening to images (N, C, H, W), with the eps of MTT's loader."""
        with needed_for("--zca", "kornia"):
            from kornia.enhance import ZCAWhitening  # here, because it takes seconds

        fitted = ZCAWhitening(eps=0.1, compute_inv=True).fit(images)
        return cls(fitted.mean_vector, fitted.transform_matrix, fitted.transform_inv)

    def __call__(self, images: Tensor) -> Tensor:
        return ((images.flatten(1) - self.mean) @ self.matrix).reshape(images.shape)

    def undo(self, images: Tensor) -> Tensor:
        """Whitened images (N, C, H, W) -> pixels in 0..1, but for rounding."""
        return (images.flatten(1) @ self.inverse.to(images) + self.mean.to(images)).reshape(images.shape)

    def to(self, device: torch.device) -> "Whitening":
        return Whitening(self.mean.to(device), self.matrix.to(device), self.inverse.to(device))


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """A value for each channel, to be combined with images (..., C, H, W) like `like`."""
    return constants(tuple(values), like.dtype, like.device)


@functools.cache
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once, because making them anew would wait for a GPU at every batch."""
    return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)


def to_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...],
              whitening: Whitening | None = None) -> Tensor:
    """Normalised images (N, C, H, W) -> pixels in 0..1, clipped."""
    if whitening is not None:
        images = whitening.undo(images)
    return (images * per_channel(std, images) + per_channel(mean, images)).clamp(0, 1)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the pixels, in 0..1, of uint8 images (N, C, H, W)."""
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = [torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
              for channel in images.unbind(1)]
    means = [(share * values).sum().item() for share in shares]
    stds = [(share * (values - mean).square()).sum().sqrt().item()
            for share, mean in zip(shares, means, strict=True)]
    return tuple(means), tuple(max(std, 1e-3) for std in stds)
