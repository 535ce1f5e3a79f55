"""DSA, differentiable Siamese augmentation, and the 2x2 formation.

Each operation is a pure function of images (N, C, H, W) and uniform draws u (N, 3) in [0, 1): the same
draws give the same transformation, which is what makes the augmentation Siamese. Images are normalised,
so the fill value 0 is the data set's mean colour, and nothing is clipped.

Source: DSA (Zhao and Bilen, arXiv 2102.08259) with the strengths of the published BACON scripts.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .system.device import send

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_RATIO, CUTOUT_RATIO = 0.125, 0.5
SCALE_RATIO, ROTATE_DEGREES = 1.2, 15.0


def _column(u: Tensor, k: int) -> Tensor:
    return u[:, k].reshape(-1, 1, 1, 1)


def _integers(u: Tensor, low: int, high: int) -> Tensor:
    """Integers low..high, both included, from uniform draws."""
    return (u * (high - low + 1)).floor().long() + low


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Adds (u0 - 0.5) to every pixel."""
    return x + (_column(u, 0) - 0.5) * BRIGHTNESS


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Moves each pixel from (factor 0) or away from (up to 2) its mean over the channels."""
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * (_column(u, 0) * SATURATION) + mean


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Scales the distance to the image's mean by 0.5 to 1.5."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (_column(u, 0) + CONTRAST) + mean


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, saturation and contrast, from u0, u1 and u2."""
    return contrast(saturation(brightness(x, u), u[:, 1:]), u[:, 2:])


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shifts by up to an eighth of the side along each axis, zeros move in: out[i, j] = x[i + tx, j + ty]."""
    height, width = x.shape[2:]

    def source(side: int, draw: Tensor) -> Tensor:
        limit = math.floor(side * CROP_RATIO + 0.5)
        index = torch.arange(side, device=x.device) + _integers(draw, -limit, limit).unsqueeze(1)
        return index.clamp(-1, side) + 1

    rows, columns = source(height, u[:, 0]), source(width, u[:, 1])
    padded = F.pad(x, (1, 1, 1, 1))
    return padded.take_along_dim(rows[:, None, :, None], dim=2).take_along_dim(columns[:, None, None, :], dim=3)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Zeroes a square hole of half the side, centred anywhere."""

    def kept(side: int, draw: Tensor) -> Tensor:
        hole = math.floor(side * CUTOUT_RATIO + 0.5)
        start = _integers(draw, 0, side - hole % 2) - hole // 2
        distance = torch.arange(side, device=x.device) - start.unsqueeze(1)
        return (distance < 0) | (distance >= hole)

    rows, columns = kept(x.shape[2], u[:, 0]), kept(x.shape[3], u[:, 1])
    return x * (rows[:, None, :, None] | columns[:, None, None, :])


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirrors left and right where u0 < 0.5."""
    return torch.where(_column(u, 0) < 0.5, x.flip(3), x)


def _affine(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Resamples with the matrix ((a, b), (c, d)), bilinearly, zeros outside."""
    zero = torch.zeros_like(a)
    theta = torch.stack([torch.stack([a, b, zero], 1), torch.stack([c, d, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Scales width and height independently by 1/1.2 to 1.2; a factor above 1 shrinks the content."""
    low = 1 / SCALE_RATIO
    sx, sy = (u[:, k] * (SCALE_RATIO - low) + low for k in (0, 1))
    return _affine(x, sx, torch.zeros_like(sx), torch.zeros_like(sx), sy)


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Rotates by -15 to 15 degrees."""
    angle = (u[:, 0] - 0.5) * math.radians(2 * ROTATE_DEGREES)
    return _affine(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


OPERATIONS = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def parse_strategy(strategy: str) -> list[str]:
    """`color_crop_flip` -> its operations; `none` -> []. ValueError for an unknown operation."""
    if strategy.lower() == "none":
        return []
    names = strategy.split("_")
    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise ValueError(f"unknown operation {unknown[0]!r}; known: {', '.join(OPERATIONS)}, or none")
    return names


def augment_classes(x: Tensor, operations: list[str], u: np.ndarray) -> Tensor:
    """Siamese augmentation of many classes at once: one operation and one draw for each class.

    x: (K, N, C, H, W), the N images of each of K classes; operations: K names; u: (K, 3).
    Returns the same shape. With no operations, x itself.
    """
    if not operations:
        return x
    draws = send(u, x.device, x.dtype).repeat_interleave(x.shape[1], dim=0).unflatten(0, x.shape[:2])
    out = torch.empty_like(x)
    for name in dict.fromkeys(operations):
        rows = send(np.flatnonzero(np.equal(operations, name)), x.device)
        out[rows] = OPERATIONS[name](x[rows].flatten(0, 1), draws[rows].flatten(0, 1)).unflatten(0, (len(rows), -1))
    return out


def formation(aug: bool) -> int:
    """Tiles along each side of a stored image: 2 with --aug, else 1."""
    return 2 if aug else 1


def tiles(aug: bool) -> int:
    """Images that come of each stored one."""
    return formation(aug) ** 2


def make_formation(tiles: Tensor) -> Tensor:
    """Four sets of images, (4, N, C, H, W), halved and put together as N images of 2x2 tiles.

    The sets go top left, bottom left, top right, bottom right. H and W must be even.
    """
    small = F.avg_pool2d(tiles.flatten(0, 1), 2).unflatten(0, tiles.shape[:2])
    left, right = torch.cat([small[0], small[1]], dim=2), torch.cat([small[2], small[3]], dim=2)
    return torch.cat([left, right], dim=3)


def expand_formation(images: Tensor) -> Tensor:
    """N images of 2x2 tiles -> 4N images, each tile enlarged to full size (differentiable).

    All top left tiles come first, then bottom left, top right, bottom right, so labels follow as
    `labels.repeat(4)`. Source: published `number_sign_augment`. H and W must be even.
    """
    height, width = images.shape[2] // 2, images.shape[3] // 2
    left, right = images[..., :width], images[..., width:]
    tiles = [left[:, :, :height], left[:, :, height:], right[:, :, :height], right[:, :, height:]]
    return F.interpolate(torch.cat(tiles), scale_factor=2, mode="bilinear", align_corners=False)
