"""Evaluation: train fresh networks on a synthetic set and test them on the real test set."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from . import augment
from .data import RealData
from .draws import Draws
from .networks import get_network
from .networks.batches import BatchRunner, is_compiled, sgd
from .system import device, distributed, memory


class EvaluationOptions(Protocol):
    """What evaluation takes of a command line; the names are those of the flags."""

    num_eval: int
    epoch_eval_train: int
    batch_train: int
    lr_net: float
    dsa_strategy: str
    max_batch: int | None
    precision: str | None
    compile: bool | None
    Iteration: int


# --eval_mode -> the networks it evaluates; None stands for the one named by --model.
MODES = {
    "S": [None],
    "SS": [None],
    "M": ["MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"],
    "B": ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"],
    "W": ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"],
    "D": ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"],
    "A": ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"],
    "P": ["ConvNetNP", "ConvNetMP", "ConvNetAP"],
    "N": ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"],
    "C": [None, "ConvNet"],
}


def models(mode: str, model: str) -> list[str]:
    """The networks that an evaluation mode tests, each once."""
    return list(dict.fromkeys(name or model for name in MODES[mode]))


def train(network: nn.Module, images: Tensor, labels: Tensor, options: EvaluationOptions, rng: np.random.Generator,
          runner: BatchRunner, on_epoch: Callable[[], None] = lambda: None,
          normalise: Callable[[Tensor], Tensor] = lambda batch: batch):
    """Trains a network on images (N, C, H, W) and labels, (N,) or as probabilities (N, K), by the published protocol.

    The images are normalised, or `normalise` does it to each batch.

    SGD with momentum 0.9 and weight decay 5e-4; `epoch_eval_train` + 1 passes; after pass number
    epoch_eval_train // 2 + 1 (counted from 0) the learning rate falls to a tenth and the momentum starts
    anew. DSA with one operation per batch and one draw per image.
    Source: published `evaluate_synset` and `epoch`.
    """
    strategy = augment.parse_strategy(options.dsa_strategy)
    drop_after, lr = options.epoch_eval_train // 2 + 1, options.lr_net
    optimizer = sgd(network, lr)
    network.train()
    for epoch in range(options.epoch_eval_train + 1):
        order = device.send(rng.permutation(len(labels)), images.device)
        for rows in order.split(options.batch_train):
            batch = normalise(images[rows])
            if strategy:
                operation = augment.OPERATIONS[strategy[rng.integers(len(strategy))]]
                batch = operation(batch, device.send(rng.random((len(rows), 3)), batch.device, batch.dtype))
            runner.train_step(network, optimizer, batch, labels[rows])
        if epoch == drop_after:
            lr /= 10
            optimizer = sgd(network, lr)
        on_epoch()


@torch.no_grad()
def predict(network: nn.Module, data: RealData, max_batch: int | None, runner: BatchRunner) -> Tensor:
    """The class (N,) that the network gives each test image. max_batch: images of a pass, None: as many as fit."""
    network.eval()
    max_batch = max_batch or memory.batch_that_fits(network, data.normalise(data.test_images[:1]))
    return torch.cat([runner.classify(network, data.normalise(images)).argmax(dim=1)
                      for images in data.test_images.split(max_batch)])


def test(network: nn.Module, data: RealData, max_batch: int | None, runner: BatchRunner) -> float:
    """Accuracy in 0..1 on the whole test set."""
    return (predict(network, data, max_batch, runner) == data.test_labels).sum().item() / len(data.test_labels)


def trained_network(images: Tensor, labels: Tensor, data: RealData, model: str, options: EvaluationOptions,
                    draws: Draws, place: tuple[int | str, ...], runner: BatchRunner,
                    on_epoch: Callable[[], None] = lambda: None) -> nn.Module:
    """A fresh network, trained on a set, normalised or uint8, on the data's device.

    `place` makes its draws its own.
    """
    normalise = data.normalise if images.dtype == torch.uint8 else lambda batch: batch.to(data.dtype)
    seed = draws.network_seed("evaluation", model, *place)
    network = get_network(model, *data.network_shape, seed)
    runner.prepare(network, data.device, data.dtype)
    train(network, images, labels, options, draws.evaluation(model, *place), runner, on_epoch, normalise)
    return network


def runner_for(options: EvaluationOptions, data: RealData, labels: Tensor) -> BatchRunner:
    """How networks that are evaluated on a set of these labels are trained and tested."""
    compiled = is_compiled(options.compile, data.device, options.Iteration,
                           trained=len(labels) * (options.epoch_eval_train + 1))
    return BatchRunner(data.device, options.precision, compiled)


def evaluate(images: Tensor, labels: Tensor, data: RealData, model: str, options: EvaluationOptions, draws: Draws,
             place: tuple[int | str, ...], on_epoch: Callable[[], None] = lambda: None) -> list[float]:
    """Test accuracies (0..1) of `num_eval` fresh networks trained on a set, as `train` takes it.

    The images are normalised, or uint8, and their formation is expanded. `place` names this evaluation within
    the run, so that its draws are its own.
    """
    images, labels = images.to(data.device), labels.to(data.device)
    runner = runner_for(options, data, labels)
    accuracies = torch.zeros(options.num_eval, dtype=torch.float64)
    for turn in filter(distributed.is_own_turn, range(options.num_eval)):
        network = trained_network(images, labels, data, model, options, draws, (*place, turn), runner, on_epoch)
        accuracies[turn] = test(network, data, options.max_batch, runner)
    distributed.all_reduce(accuracies)
    return accuracies.tolist()
