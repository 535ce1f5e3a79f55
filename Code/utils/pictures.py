"""Pictures of sets: a PNG with the images of a class in each row, and back."""

from pathlib import Path

import torch.nn.functional as F
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import make_grid, save_image

from .system import files
from .system.errors import UserError, reason

GAP = 2  # pixels around the images of a picture


def save_picture(path: Path, pixels: Tensor, per_row: int) -> None:
    """Writes images (N, C, H, W) with pixels in 0..1 as a PNG grid, small ones enlarged to see their pixels."""
    factor = _enlargement(pixels.shape[-1])
    enlarged = pixels.cpu().repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    files.write_whole(path, lambda file: save_image(grid(enlarged, per_row, GAP), file, format="png"))


def read_picture(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """A whole picture that `save_picture` wrote: uint8 (3, H, W); size: (width, height) that it must have.

    UserError where it is damaged, or of another size, which is seen before it is unpacked.
    """
    try:
        with files.open_regular(path) as opened, PngImageFile(opened) as file:  # Image.open refuses very large ones
            if size and file.size != size:
                raise ValueError(f"{file.width} x {file.height} pixels, not {size[0]} x {size[1]}")
            return pil_to_tensor(file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises
        raise UserError(f"{path}: not a picture of this set ({reason(error)}); remove it") from None


def grid(images: Tensor, per_row: int, gap: int, between: float = 0.0) -> Tensor:
    """Images (N, C, H, W) side by side, with `gap` pixels of the value `between` around each."""
    sheet = make_grid(images, nrow=per_row, padding=gap, pad_value=between)
    return sheet if len(images) > 1 else F.pad(sheet, [gap] * 4, value=between)  # make_grid puts none around one image


def load_picture(path: Path, shape: tuple[int, int, int], per_row: int, count: int) -> Tensor:
    """The images (count, C, H, W), pixels in 0..1, of a picture that `save_picture` wrote.

    Raises UserError for a picture that is damaged or of another shape.
    """
    factor = _enlargement(shape[2])
    height, width = (factor * side + GAP for side in shape[1:])
    picture = read_picture(path, (per_row * width + GAP, -(-count // per_row) * height + GAP))[:shape[0]].float() / 255
    rows = (picture.shape[1] - GAP) // height
    cells = picture[:, GAP:, GAP:].reshape(shape[0], rows, height, per_row, width)
    return cells.permute(1, 3, 0, 2, 4).flatten(0, 1)[..., :height - GAP:factor, :width - GAP:factor]


def _enlargement(side: int) -> int:
    return max(1, 64 // side)
