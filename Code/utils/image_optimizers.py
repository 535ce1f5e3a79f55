"""The optimizers of the images: all classes at once, with the result of the published visits one after another.

The published loop has one optimizer for the images of all K classes and steps after each class. So the images of a
class also move by momentum at the steps of the others, where their gradient is zero. Here these steps are added up.
"""

import torch
from torch import Tensor


class VisitedSGD:
    """SGD with momentum on images (K, ...), as if each of the K classes were visited in turn.

    In one round, every one of K steps has a gradient for one class and zero for the others. Call
    `before()` to bring each class to where it is at its own visit, take the gradient there, then `step`.
    `STATE` names what it remembers between rounds.
    """

    STATE = ("velocity",)

    def __init__(self, images: Tensor, lr: float, momentum: float = 0.5):
        self.images, self.lr, self.momentum = images, lr, momentum
        self.velocity = torch.zeros_like(images)
        earlier = torch.arange(len(images), dtype=images.dtype, device=images.device)
        self.earlier = earlier.reshape(-1, *[1] * (images.dim() - 1))

    def _coast(self, steps: Tensor):
        """`steps` (per class) steps with zero gradient: v <- m v, x <- x - lr v, summed up."""
        decay = self.momentum ** steps
        self.images -= self.lr * self.momentum * (1 - decay) / (1 - self.momentum) * self.velocity
        self.velocity *= decay

    def before(self):
        """Brings the images of each class, in place, to where they are at the class's own visit."""
        self._coast(self.earlier)

    def step(self, gradient: Tensor):
        """The rest of the round. gradient (K, ...): that of each class at its own visit."""
        self.velocity.mul_(self.momentum).add_(gradient)
        self.images -= self.lr * self.velocity
        self._coast(len(self.images) - 1 - self.earlier)


class VisitedAdam:
    """Adam under the same visits as `VisitedSGD`. Its steps with zero gradient are taken one by one."""

    STATE = ("mean", "square", "steps")

    def __init__(self, images: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.images, self.lr, self.betas, self.eps = images, lr, betas, eps
        self.mean, self.square = torch.zeros_like(images), torch.zeros_like(images)
        self.steps = 0

    def _step(self, classes: slice, count: int, gradient: Tensor | float):
        beta1, beta2 = self.betas
        mean, square = self.mean[classes], self.square[classes]
        mean.mul_(beta1).add_((1 - beta1) * gradient)
        square.mul_(beta2).add_((1 - beta2) * gradient * gradient)
        denominator = (square / (1 - beta2 ** count)).sqrt() + self.eps
        self.images[classes] -= self.lr / (1 - beta1 ** count) * mean / denominator

    def before(self):
        """As `VisitedSGD.before`."""
        for visit in range(len(self.images) - 1):
            self._step(slice(visit + 1, None), self.steps + visit + 1, 0.0)

    def step(self, gradient: Tensor):
        """As `VisitedSGD.step`."""
        for visit in range(len(self.images)):
            if visit:
                self._step(slice(None, visit), self.steps + visit + 1, 0.0)
            self._step(slice(visit, visit + 1), self.steps + visit + 1, gradient[visit:visit + 1])
        self.steps += len(self.images)


OPTIMIZERS = {"sgd": VisitedSGD, "adam": VisitedAdam}
