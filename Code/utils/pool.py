"""The pool: networks that are trained on real images while the synthetic images are matched on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import checkpoint
from .data import RealData
from .draws import Draws
from .networks import get_network
from .networks.batches import BatchRunner, is_compiled, restore_momentum, sgd
from .system import distributed
from .system.device import send


@dataclass
class Member:
    """A network of the pool with its optimizer and its running training accuracy."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    correct: Tensor  # stays on the device, so that no step waits for it
    seen: int = 0

    def accuracy(self) -> Tensor:
        """Training accuracy in percent since the last reset, a scalar tensor; 0 before any training."""
        return 100 * self.correct / max(self.seen, 1)

    def reset_accuracy(self):
        """Counts anew, as at every evaluation."""
        self.correct, self.seen = torch.zeros_like(self.correct), 0

    def trained_tensors(self) -> list[Tensor]:
        """What training changes, for `distributed.broadcast`: weights, momentum and the count of right answers."""
        weights = list(self.network.parameters())
        momentum = [self.optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                    for weight in weights if self.optimizer.defaults["momentum"]]
        return [weight.detach() for weight in weights] + momentum + [self.correct]

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "correct": self.correct, "seen": self.seen}

    def restore(self, state: dict):
        """Goes back to a `state()`; ValueError where it is none of such a network."""
        checkpoint.check_alike(state["correct"], self.correct)
        checkpoint.check_alike(state["seen"], self.seen)
        self.network.load_state_dict(state["network"])
        restore_momentum(self.optimizer, state["optimizer"])
        self.correct, self.seen = state["correct"].to(self.correct.device), state["seen"]


class Pool:
    """A queue of networks that grows at intervals, and drops its oldest where it holds --net_num.

    As published, one that starts with more than --net_num (--net_start is 3) never drops any.
    """

    def __init__(self, data: RealData, draws: Draws, options):
        self.data, self.draws, self.options = data, draws, options
        self.runner = BatchRunner(data.device, options.precision,
                                  is_compiled(options.compile, data.device, options.Iteration))
        self.created = 0
        self.members: list[Member] = []
        for _ in range(options.net_start):
            self._add()

    def state(self) -> dict:
        """What a checkpoint keeps of the pool."""
        return {"created": self.created, "members": [member.state() for member in self.members]}

    def restore(self, state: dict):
        """Goes back to a `state()`; the weights of fresh members are overwritten. ValueError where it is none."""
        checkpoint.check_alike(state["created"], self.created)
        self.members.clear()
        for member in state["members"]:
            self._add()
            self.members[-1].restore(member)
        self.created = state["created"]

    def _add(self):
        options, data = self.options, self.data
        seed = self.draws.network_seed("pool", self.created)
        network = get_network(options.model, *data.network_shape, seed)
        self.runner.prepare(network, data.device, data.dtype)
        optimizer = sgd(network, options.lr_net, options.net_decay)
        self.members.append(Member(network, optimizer, torch.zeros((), device=data.device, dtype=data.dtype)))
        self.created += 1

    def grow(self, iteration: int):
        """Adds --net_push_num fresh networks every --net_generate_interval iterations."""
        if iteration % self.options.net_generate_interval:
            return
        for _ in range(self.options.net_push_num):
            if len(self.members) == self.options.net_num:
                self.members.pop(0)
            self._add()

    def reset_accuracies(self):
        """Resets the running accuracy of every network, as the published scripts do at an evaluation."""
        for member in self.members:
            member.reset_accuracy()

    def matching(self, iteration: int) -> list[Member]:
        """The --train_net_num networks to match the images on.

        --net_begin and --net_end restrict the choice only where that leaves more than ten networks.
        """
        within = self.members[self.options.net_begin:self.options.net_end]
        candidates = within if len(within) > 10 else self.members
        chosen = self.draws.matching_networks(iteration, len(candidates), self.options.train_net_num)
        return [candidates[k] for k in chosen]

    def ce_network(self, member: Member, iteration: int, update: int) -> Member:
        """The network that gives the cross-entropy of an image update: the one it matches on."""
        return member

    def labelling(self) -> list[Member]:
        """The networks whose mean prediction --soft_labels takes: all."""
        return self.members

    def for_features(self) -> Member:
        """The network that real images are chosen by: the only one, trained now."""
        self.train(turn=0)
        return self.members[0]

    def train(self, turn: int) -> Tensor:
        """Trains --fetch_net_num networks for --model_train_steps steps; returns their accuracy in percent.

        `turn` counts the calls, so that the draws of each are its own.
        """
        chosen = self.draws.trained_networks(turn, len(self.members), self.options.fetch_net_num)
        for place in filter(distributed.is_own_turn, range(len(chosen))):
            self.train_member(self.members[chosen[place]], turn, place)
        for place, k in enumerate(chosen):
            distributed.broadcast(self.members[k].trained_tensors, place)
            self.members[k].seen += self.options.model_train_steps * min(self.options.trained_bs, len(self.data.labels))
        return torch.stack([self.members[k].accuracy() for k in chosen]).mean()

    def train_member(self, member: Member, turn: int, place: int):
        member.network.train().requires_grad_(True)
        count, batch = len(self.data.labels), self.options.trained_bs
        for step in range(self.options.model_train_steps):
            rows = self.draws.training_batch(turn, place, step, count, batch)
            labels = self.data.labels[send(rows, self.data.device)]
            logits = self.runner.train_step(member.network, member.optimizer, self.data.batch(rows), labels)
            member.correct += (logits.argmax(dim=1) == labels).sum()
