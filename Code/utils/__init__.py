"""Dataset distillation with BACON: networks, augmentation, losses and the loop that the scripts share."""

from .api import Distilled, distil, evaluate
from .storage import load_synthetic
from .system.errors import UserError

__all__ = ["Distilled", "UserError", "distil", "evaluate", "load_synthetic"]
