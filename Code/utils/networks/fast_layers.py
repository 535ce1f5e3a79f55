"""Layers that are faster than PyTorch's compiled on a CPU or in bf16 on a GPU: the same but for rounding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4  # pixels along a side of the output that one tile gives; its input has two more
# Winograd's F(4x4, 3x3), a fourth of the multiplications: with g a kernel, d a tile of the input and * by element,
# the output is A^T [(G g G^T) * (B^T d B)] A. Source: Lavin and Gray, arXiv 1509.09308.
INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
         (0, 4, 0, -5, 0, 1))  # B^T
KERNEL = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
          (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # G
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))  # A^T
WIDE, SMALLEST = 64, 8  # input channels and pixels along a side from which tiles pay
NARROW = 4  # at most so many input channels are few


def _transpose(matrix) -> tuple:
    return tuple(zip(*matrix, strict=True))


def _times(matrix, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """A matrix of numbers times a column of tensors, written out so that compilation makes one loop of it."""
    return [sum(factor * part for factor, part in zip(row, parts, strict=True) if factor) for row in matrix]


def _transform(matrix, x: Tensor) -> Tensor:
    """M x M^T over the first two dimensions of x."""
    x = torch.stack(_times(matrix, x.unbind(0)))
    return torch.stack(_times(matrix, x.unbind(1)), dim=1)


def _tiles(x: Tensor, size: int) -> Tensor:
    """Squares of `size` at every TILE pixels of images (N, H, W, C): (size, size, N, rows, columns, C).

    By strides, because compilation then stores the images first; else it computes a pixel anew for each tile.
    """
    (count, height, width, channels), (image, row, pixel, channel) = x.shape, x.stride()
    rows, columns = ((side - size) // TILE + 1 for side in (height, width))
    return x.as_strided((size, size, count, rows, columns, channels),
                        (row, pixel, image, TILE * row, TILE * pixel, channel))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product at each of the 36 places: (6, 6, ..., M) and (6, 6, M, K) to (6, 6, ..., K)."""
    return torch.bmm(a.reshape(36, -1, a.shape[-1]), b.flatten(0, 1)).view(*a.shape[:-1], b.shape[-1])


def convolve_by_tiles(x: Tensor, kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N, H, W, M) padded by one pixel, with kernels (3, 3, M, K): (N, H, W, K); and the transformed input."""
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 1, 1 + -width % TILE, 1, 1 + -height % TILE))
    tiles = _transform(INPUT, _tiles(x, TILE + 2))
    out = _transform(OUTPUT, _products(tiles, _transform(KERNEL, kernels)))
    return out.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)[:, :height, :width], tiles


class Winograd(torch.autograd.Function):
    """Images (N, H, W, M), kernels (3, 3, M, K); so is what its backward pass gives."""

    @staticmethod
    def forward(ctx, x: Tensor, kernels: Tensor) -> Tensor:
        out, tiles = convolve_by_tiles(x, kernels)
        ctx.save_for_backward(tiles, kernels)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        tiles, kernels = ctx.saved_tensors
        of_x = of_kernels = None
        if ctx.needs_input_grad[0]:
            of_x, _ = convolve_by_tiles(grad, kernels.flip(0, 1).transpose(2, 3))
        if ctx.needs_input_grad[1]:
            height, width = grad.shape[1:3]
            grad = F.pad(grad, (0, 0, 0, -width % TILE, 0, -height % TILE))
            grad = _transform(_transpose(OUTPUT), _tiles(grad, TILE)).flatten(2, 4).flatten(0, 1)
            products = torch.bmm(tiles.reshape(36, -1, tiles.shape[-1]).transpose(1, 2), grad)
            of_kernels = _transform(_transpose(KERNEL), products.unflatten(0, (6, 6)))
        return of_x, of_kernels


def convolve_by_patches(x: Tensor, kernels: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
    """Images (N, H, W, M) with kernels (3, 3, M, K) and a bias (K,) by one product of matrices: (N, H', W', K)."""
    vertical, horizontal = padding
    x = F.pad(x, (0, 0, horizontal, horizontal, vertical, vertical))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    columns = [x[:, i:i + height, j:j + width] for i in range(3) for j in range(3)]
    columns.append(torch.ones_like(columns[0][..., :1]))
    return torch.cat(columns, dim=3) @ torch.cat([kernels.flatten(0, 2), bias[None]])


def _compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.compiler.is_compiling()


def _bf16() -> bool:
    return torch.is_autocast_enabled("cpu")


class Conv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 with a bias, faster where it is compiled on a CPU.

    In fp32 and for many input channels by Winograd's tiles. For few, oneDNN is slow at the gradient of the bias,
    which is added outside, and in bf16 at that of the kernels, which therefore multiply a matrix of patches.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if not _compiled(x):
            return super()._conv_forward(x, weight, bias)
        images, kernels = x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0)
        if _bf16() and self.in_channels <= NARROW:
            return convolve_by_patches(images, kernels, bias, self.padding).permute(0, 3, 1, 2)
        if self.in_channels <= NARROW:
            return super()._conv_forward(x, weight, None) + bias[:, None, None]
        if not _bf16() and self.in_channels >= WIDE and min(x.shape[2:]) >= SMALLEST and self.padding == (1, 1):
            return Winograd.apply(images, kernels).permute(0, 3, 1, 2) + bias[:, None, None]
        return super()._conv_forward(x, weight, bias)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that on a GPU has its output in bf16 under autocast, where its input is.

    PyTorch's would be fp32 there, and so would all up to the next convolution: more than twice the memory traffic.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda" or x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class AvgPool2d(nn.AvgPool2d):
    """Average pooling of 2x2 pixels, faster where it is compiled on a CPU in bf16.

    As a mean its gradient is simple enough to become one loop with those of the layers before it. In fp32, tiles
    that follow would take the mean many times.
    """

    def __init__(self):
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        if not (_compiled(x) and _bf16()):
            return super().forward(x)
        height, width = (side // 2 for side in x.shape[2:])
        return x[:, :, :2 * height, :2 * width].unflatten(3, (width, 2)).unflatten(2, (height, 2)).mean((3, 5))
