"""Dataset distillation with BACON: networks, augmentation, losses and the loop that the scripts share."""

from .storage import load_synthetic

__all__ = ["load_synthetic"]
