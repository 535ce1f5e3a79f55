"""How a batch goes through a network: its precision, whether it is compiled, and the size of its parts."""

import functools
import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG_RUN = 1000  # iterations from which compiling, which takes a minute at first, pays on a CPU
LONG_TRAINING = 40_000  # images from which it pays for evaluation: 1,001 epochs on 40, the published IPC 1
CACHE_SIZED = 32  # most images in one part; the activations of more leave a CPU's cache between layers


def _classify(network: nn.Module, images: Tensor, bf16: bool) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return network(images).to(images.dtype)


def _embed_and_classify(network: nn.Module, images: Tensor, bf16: bool, last: int) -> tuple[Tensor, Tensor]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        embedding, logits = network.embed_and_classify(images, last)
    return embedding.to(images.dtype), logits.to(images.dtype)


@functools.cache
def compile_once(function):
    """One compiled function serves all networks of a kind; where there is no compiler, the function itself."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.cache_size_limit = 64  # sizes and kinds of networks; PyTorch 2.6 has it by this name alone
    for name in ("torch._dynamo", "torch._inductor", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # so that falling back is quiet
    return torch.compile(function, dynamic=False)


def sgd(network: nn.Module, lr: float, decay: bool = True) -> torch.optim.SGD:
    """The published optimizer of networks: with `decay`, momentum 0.9 and weight decay 5e-4."""
    return torch.optim.SGD(network.parameters(), lr, **({"momentum": 0.9, "weight_decay": 5e-4} if decay else {}))


@torch.no_grad()
def restore_momentum(optimizer: torch.optim.SGD, saved: dict) -> None:
    """Puts back the momentum of what `optimizer.state_dict()` gave. All else in it is what options say, and stays.

    Raises ValueError for the momentum of another network.
    """
    for k, weight in enumerate(optimizer.param_groups[0]["params"]):
        momentum = saved["state"].get(k, {}).get("momentum_buffer")
        if momentum is None:  # before the first step
            continue
        if momentum.shape != weight.shape:
            raise ValueError(f"the momentum of its networks has a shape {tuple(momentum.shape)}, not "
                             f"{tuple(weight.shape)}")
        optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(momentum)


def is_compiled(choice: bool | None, device: torch.device, iterations: int, trained: int = 0) -> bool:
    """Whether networks are compiled: the choice of --compile, or where there is none, in long work on a CPU.

    iterations: of the run. trained: images that go through each evaluated network in training.
    """
    if choice is not None:
        return choice
    return device.type == "cpu" and (iterations >= LONG_RUN or trained >= LONG_TRAINING)


class BatchRunner:
    """Takes batches through networks at a --precision, compiled or not.

    Whatever the precision, parameters, results, losses and optimizers keep the type of the images.
    """

    def __init__(self, device: torch.device, precision: str | None, compiled: bool):
        on_cpu = device.type == "cpu"
        self.compiled, self.bf16 = compiled, precision == "bf16"
        self.largest = CACHE_SIZED if compiled and on_cpu else None
        channels_last = device.type == "cuda" or (on_cpu and compiled)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = precision in (None, "tf32")
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    def prepare(self, network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Moves the network, in place, to the device and into the layout that suits it; returns it."""
        return network.to(device, dtype, memory_format=self.layout)

    def parts(self, network: nn.Module, batch: Tensor) -> tuple[Tensor, ...]:
        """The batch in parts; whole where batch normalisation takes statistics of all images, in training."""
        if not self.largest:
            return (batch,)
        shared = network.training and any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
        return (batch,) if shared else batch.split(self._part_size(len(batch)))

    def _part_size(self, count: int) -> int:
        """Images of each part: a divisor of `count`, so that no rest is left, unless that makes parts too small."""
        return next((size for size in range(self.largest, self.largest // 2, -1) if count % size == 0), self.largest)

    def _each(self, function, network: nn.Module, images: Tensor, *more) -> Iterator:
        """The results of a function for each part.

        The last part may be smaller; it is not compiled. Each new size would cost seconds, and which code a size goes
        through must not depend on the sizes before it, or a resumed run would round differently.
        """
        parts = self.parts(network, images)
        for part in parts:
            run = compile_once(function) if self.compiled and len(part) == len(parts[0]) else function
            yield run(network, part.contiguous(memory_format=self.layout), self.bf16, *more)

    def classify(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W)."""
        return torch.cat(list(self._each(_classify, network, images)))

    def embed_and_classify(self, network: nn.Module, images: Tensor, last: int) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) and logits (N, num_classes) of images (N, C, H, W)."""
        embeddings, logits = zip(*self._each(_embed_and_classify, network, images, last), strict=True)
        return torch.cat(embeddings), torch.cat(logits)

    def train_step(self, network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor,
                   labels: Tensor) -> Tensor:
        """One step on the mean cross-entropy of images (N, C, H, W), labels (N,) or probabilities (N, num_classes).

        Returns the logits (N, num_classes) before it.
        """
        logits = []
        optimizer.zero_grad()
        # Gradients of the parts add up to that of the whole batch's mean.
        for out, wanted in zip(self._each(_classify, network, images), self.parts(network, labels), strict=True):
            (F.cross_entropy(out, wanted, reduction="sum") / len(labels)).backward()
            logits.append(out.detach())
        optimizer.step()
        return torch.cat(logits)
