"""The engine: the one place where synthetic images are updated.

The published loop visits the classes one after another, while one optimizer holds the images of all of
them and steps after each visit; so a class also moves by momentum at the visits of all the others. Here
all classes go through a network together. A class's gradient depends on its own images alone, so the
images are those of that loop: between visits an optimizer's steps with zero gradient have a closed form.
`utils/reference.py` is the literal loop: read it first, and a test holds this engine against it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import augment, checkpoint, methods, networks
from .data import RealData
from .data.class_order import listed
from .draws import Draws
from .image_optimizers import OPTIMIZERS
from .networks import ConvNet
from .pool import Member, Pool
from .pretrained import Pretrained
from .system import distributed, memory
from .system.errors import UserError

UNCHECKED = 100  # image updates after which the losses are looked at even if nobody asks
REAL_PER_SYNTHETIC = 10  # a real image, which needs no graph, takes less than a tenth of the memory


def check_sizes(data: RealData, ipc: int, aug: bool, init: str = "real"):
    """UserError where classes have fewer images than the set is to start from, or a formation does not fit."""
    few = [f"{name!r} {count}" for name, count in zip(data.class_names, data.class_sizes, strict=True) if count < ipc]
    if few and init != "noise":
        raise UserError(f"--ipc {ipc}: classes of {data.name} with fewer training images: {listed(few)}; choose "
                        f"--ipc {min(data.class_sizes)} or less, add images, leave these classes out, or start from "
                        "--init noise")
    if aug and (data.image_shape[1] % 2 or data.image_shape[2] % 2):
        raise UserError(f"--aug: images of {data.image_shape[1]}x{data.image_shape[2]} cannot be halved; "
                        "choose --no-aug or an even --im_size")


def selected(options) -> int:
    """How many real images of a class --ipc1_real selects, 0: it selects none."""
    return options.ipc1_real if options.ipc == 1 and not options.aug else 0


def check(data: RealData, options):
    """UserError where the options ask of the data what it cannot give."""
    check_sizes(data, options.ipc, options.aug, options.init)
    distributed.own_classes(data.num_classes)
    fewest = min(*data.class_sizes, options.batch_real)
    if selected(options) > fewest:
        raise UserError(f"--ipc1_real {options.ipc1_real}: that many real images of each class are matched at --ipc 1 "
                        f"without --aug, out of only {fewest}; raise --batch_real, or choose --ipc1_real 0")
    if networks.has_batch_norm(options.model):
        if distributed.world_size() > 1:
            raise UserError(f"--model {options.model}: batch normalisation needs all classes in one process; start one")
        if fewest < min(max(data.class_sizes), options.batch_real):
            raise UserError(f"--model {options.model}: batch normalisation needs as many real images of each class, "
                            f"and the smallest has {fewest}; choose --batch_real {fewest}")
    if methods.find(options.method).objective is methods.bacon and fewest < 2:
        name = data.class_names[int(np.argmin(data.class_sizes))]
        raise UserError(f"--method {options.method}: class {name!r} of {data.name} has one training image, of which "
                        "there is no standard deviation; add images, or choose another method")


def initial_images(data: RealData, draws: Draws, ipc: int, init: str = "real", aug: bool = False) -> Tensor:
    """The set that distillation starts from: (K, ipc, C, H, W), normalised.

    init "real": random real images of each class, or with `aug` four half-size ones in each stored image; "whole": one
    real image in each stored image, with `aug` too; "noise": normal noise. Raises UserError as `check_sizes`.
    """
    check_sizes(data, ipc, aug, init)
    if init == "noise":
        noise = draws.noise((data.num_classes, ipc, *data.image_shape))
        return torch.as_tensor(noise, dtype=data.dtype, device=data.device)
    tiled = aug and init == "real"
    return real_set(data, draws.initial(data.class_sizes, augment.tiles(tiled), ipc), tiled)


def real_set(data: RealData, positions: np.ndarray, aug: bool) -> Tensor:
    """The real images at these positions (sets, K, ipc) within each class as a set (K, ipc, C, H, W)."""
    return as_stored(data, positions, aug).unflatten(0, positions.shape[1:])


def as_stored(data: RealData, positions: Sequence[Sequence[np.ndarray]], aug: bool) -> Tensor:
    """The real images at the positions of each set (1, or 4 with aug) and class: (N, C, H, W), class by class."""
    rows = np.stack([np.concatenate([data.class_rows[k][own] for k, own in enumerate(one)]) for one in positions])
    images = data.batch(rows)
    return augment.make_formation(images) if aug else images[0]


def select_positions(select, data: RealData, pool: Pool, options, max_batch: int) -> np.ndarray:
    """Positions (sets, K, ipc) within each class; four sets for a formation, otherwise one.

    The features are those of the pool's one network, which is trained first, or of a network of --pool. UserError
    where a class is too small.
    """
    sets = augment.tiles(options.aug)
    if sets * options.ipc > min(data.class_sizes):
        raise UserError(f"--ipc {options.ipc}: {sets * options.ipc} different images of each class are needed, and "
                        f"{data.name} has classes of {min(data.class_sizes)}; choose fewer")
    network, seed = pool.for_features().network.eval(), pool.draws.network_seed(options.method)
    chosen = []
    with torch.no_grad():
        for rows in data.class_rows:
            parts = np.split(rows, range(max_batch, len(rows), max_batch))
            features = torch.cat([network.embed(data.batch(part), options.embed_last) for part in parts])
            if not features.isfinite().all():
                raise UserError(f"--method {options.method}: the network that the images are chosen by has diverged, "
                                "its features are not finite; choose a lower --lr_net")
            chosen.append(select(features, sets * options.ipc, seed).reshape(sets, options.ipc))
    return np.stack(chosen, axis=1)


def expand_classes(images: Tensor) -> Tensor:
    """Formation of each class expanded: (K, N, C, H, W) -> (K, 4N, C, H, W)."""
    tiles = augment.expand_formation(images.flatten(0, 1)).unflatten(0, (4, *images.shape[:2]))
    return tiles.transpose(0, 1).flatten(1, 2)


@torch.no_grad()
def soft_labels(pool: Pool | Pretrained, parts: float, max_batch: int, classes: int, images: Tensor,
                labels: Tensor) -> Tensor:
    """Labels (N, K) for images (N, C, H, W) of classes (N,): `parts` of the pool's mean prediction, and the class for
    the rest."""
    guess = torch.zeros(len(images), classes, dtype=images.dtype, device=images.device)
    for member in pool.labelling():
        member.network.eval()
        logits = [pool.runner.classify(member.network, part) for part in images.split(max_batch)]
        guess += torch.cat(logits).softmax(dim=1) / len(pool.labelling())
    return parts * guess + (1 - parts) * F.one_hot(labels.to(images.device), classes)


class Distillation:
    """The state of one experiment: images (K, ipc, C, H, W), their optimizer and the pool."""

    def __init__(self, data: RealData, options, experiment: int = 0):
        check(data, options)
        self.data, self.options = data, options
        self.draws = Draws(options.seed, experiment)
        self.method = methods.find(options.method)
        self.pool = (Pretrained if options.pool else Pool)(data, self.draws, options)
        self.max_batch = options.max_batch or memory.batch_that_fits(
            self.pool.members[0].network.eval(), data.normalise(data.images[:1]))
        if self.method.select:
            self.images = real_set(data, select_positions(self.method.select, data, self.pool, options, self.max_batch),
                                   options.aug)
        else:
            self.images = initial_images(data, self.draws, options.ipc, options.init, options.aug)
        # A joint step is the visit of a single class that holds all the images.
        visited = self.images if options.visits == "each" else self.images.unsqueeze(0)
        self.optimizer = OPTIMIZERS[options.optim](visited, options.lr_img)
        self.strategy = augment.parse_strategy(options.dsa_strategy)
        self.selected = selected(options)
        self.batch_norm = networks.has_batch_norm(options.model)  # then all classes go through a network at once
        self.own_classes = distributed.own_classes(data.num_classes)
        self.unchecked: list[tuple[int, dict[str, Tensor]]] = []  # iteration and terms by class of image updates

    def state(self) -> dict:
        """What a checkpoint keeps: all that the next iteration depends on beside the options."""
        return {"images": self.images, "pool": self.pool.state(),
                "optimizer": {name: getattr(self.optimizer, name) for name in self.optimizer.STATE}}

    @torch.no_grad()
    def restore(self, state: dict):
        """Goes back to a `state()` of a run with the same options; ValueError where it is none."""
        checkpoint.check_alike(state["images"], self.images)
        if not state["images"].isfinite().all():
            raise ValueError("its images are not finite")
        self.images.copy_(state["images"])
        for name in self.optimizer.STATE:
            value, own = state["optimizer"][name], getattr(self.optimizer, name)
            checkpoint.check_alike(value, own)
            setattr(self.optimizer, name, own.copy_(value) if isinstance(own, Tensor) else value)
        self.pool.restore(state["pool"])

    def images_per_step(self) -> int:
        """Images that go through networks in one iteration, for the log."""
        options = self.options
        real = sum(min(size, options.batch_real) for size in self.data.class_sizes)
        synthetic = self.data.num_classes * options.ipc * augment.tiles(options.aug)
        trained = 0 if options.pool else options.fetch_net_num * options.model_train_steps * options.trained_bs
        return options.outer_loop * (options.train_net_num * (real + synthetic) + trained)

    def step(self, iteration: int) -> dict[str, Tensor]:
        """One iteration: in each outer loop, updates the images, then trains the pool. Returns scalars for the log.

        Loss terms are sums over updates and means over classes; `pool` is the accuracy in percent of the networks
        that were trained last. They stay on the device until someone reads them.
        """
        self.pool.grow(iteration)
        self.optimizer.lr = self.learning_rate(iteration)
        members, totals = self.pool.matching(iteration), {}  # drawn once, as published, for all outer loops
        for loop in range(self.options.outer_loop):
            for name, value in self.match(members, iteration, loop).items():
                totals[name] = totals.get(name, 0) + value
            if self.options.model_train_steps and not self.options.pool:
                totals["pool"] = self.pool.train(iteration * self.options.outer_loop + loop)
        if len(self.unchecked) >= UNCHECKED:
            self.check_finite()
        return totals

    def match(self, members: list[Member], iteration: int, loop: int = 0) -> dict[str, Tensor]:
        """The image updates of an outer loop, one on each network; returns the loss terms."""
        totals = {}
        for k, member in enumerate(members):
            terms = self.update_images(member, iteration, loop * len(members) + k)
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.mean()
            self.unchecked.append((iteration, terms))
        return totals

    def learning_rate(self, iteration: int) -> float:
        """Of the images: --lr_img, or under --lr_decay cosine from there to 0 over --Iteration."""
        part = iteration / max(1, self.options.Iteration) if self.options.lr_decay == "cosine" else 0
        return self.options.lr_img * (1 + math.cos(math.pi * part)) / 2

    def check_finite(self):
        """UserError if a loss since the last check, or an image now, is not finite. Waits for the device."""
        if not self.unchecked:
            return
        lost = ~torch.stack([sum(terms.values()) for _, terms in self.unchecked]).isfinite().cpu()  # (updates, K)
        lost[-1] |= ~self.images.isfinite().flatten(1).all(dim=1).cpu()
        if lost.any():
            update, k = lost.nonzero()[0].tolist()
            iteration, terms = self.unchecked[update]
            words = ", ".join(f"{name} {value[k]:g}" for name, value in terms.items())
            raise UserError(f"iteration {iteration}: the loss of class {self.data.class_names[k]!r} ({words}) or its "
                            "images are not finite; the last good checkpoint is kept; start anew with another "
                            "--save_path and a lower --lr_img or --lr_net")
        self.unchecked.clear()

    def update_images(self, member: Member, iteration: int, update: int) -> dict[str, Tensor]:
        """One round of class visits on one network; returns the terms by class, each (K,)."""
        data, options = self.data, self.options
        # What is random: the real images of each class, and its one augmentation.
        positions = self.draws.real_images(iteration, update, data.class_sizes, options.batch_real)
        operations, parameters = self.draws.siamese(iteration, update, self.strategy, data.num_classes)
        # The network is fixed: only the images have a gradient.
        member.network.train(self.batch_norm).requires_grad_(False)
        ce_member = self.pool.ce_network(member, iteration, update)
        # Each class goes to where the published loop has it when its turn comes.
        self.optimizer.before()
        # The gradient of each class, as many classes at a time as memory holds.
        gradient, collected = torch.zeros_like(self.images), {}
        for chunk in self._chunks([len(rows) for rows in positions]):
            rows = np.stack([data.class_rows[k][positions[k]] for k in range(chunk.start, chunk.stop)])
            images = self.images[chunk].detach().requires_grad_()
            terms = self._terms(member, ce_member, images, rows, chunk, operations[chunk], parameters[chunk])
            gradient[chunk], = torch.autograd.grad(sum(terms.values()).sum(), images)
            for name, value in terms.items():
                collected.setdefault(name, value.new_zeros(data.num_classes))[chunk] = value.detach()
        # Other processes have the other classes; then all classes step.
        distributed.all_reduce(gradient, *collected.values())
        self.optimizer.step(gradient.view_as(self.optimizer.images))
        return collected

    def _terms(self, member: Member, ce_member: Member, images: Tensor, rows: np.ndarray, chunk: slice,
               operations: list[str], parameters: np.ndarray) -> dict[str, Tensor]:
        """Loss terms (k,) of k classes from their synthetic images (k, ipc, ...) and real rows (k, N)."""
        options, network = self.options, member.network
        # The real side, without a graph.
        real = augment.augment_classes(self.data.batch(rows), operations, parameters)
        z_real = self._embed_real(network, real, chunk)
        # The synthetic side: formations expanded, then the same augmentation as the real images of the class.
        synthetic = expand_classes(images) if options.aug else images
        synthetic = augment.augment_classes(synthetic, operations, parameters)
        classes, count = synthetic.shape[:2]
        z_syn, logits = self.pool.runner.embed_and_classify(network, synthetic.flatten(0, 1), options.embed_last)
        # The objective compares the embeddings.
        terms = methods.named_terms(
            self.method.objective(z_syn.unflatten(0, (classes, count)), z_real, options), classes)
        # As published, cross-entropy counts as much as the network's training accuracy, in percent.
        if options.syn_ce:
            if ce_member is not member:
                logits = self.pool.runner.classify(ce_member.network, synthetic.flatten(0, 1))
            labels = torch.arange(chunk.start, chunk.stop, device=images.device).repeat_interleave(count)
            entropy = F.cross_entropy(logits, labels, reduction="none")
            if self.selected:
                entropy = entropy * (logits.argmax(dim=1) != labels)
            terms["ce"] = options.ce_weight * ce_member.accuracy() * entropy.unflatten(0, (classes, count)).mean(dim=1)
        if not terms:
            raise UserError(f"--method {options.method}: the objective returned no terms")
        return terms

    def soft_labels(self, images: Tensor, labels: Tensor) -> Tensor:
        """Labels (N, K) for expanded images (N, C, H, W) of classes (N,)."""
        return soft_labels(self.pool, self.options.soft_labels, self.max_batch, self.data.num_classes,
                           images.to(self.images), labels)

    @torch.no_grad()
    def _embed_real(self, network: ConvNet, real: Tensor, chunk: slice) -> Tensor:
        """Embeddings (k, N, D) of real images (k, N, ...) of k classes; with --ipc1_real of that many of them."""
        options = self.options
        images = real.flatten(0, 1)
        both = [self.pool.runner.embed_and_classify(network, part, options.embed_last)
                for part in ([images] if self.batch_norm else images.split(self.max_batch))]
        z_real, logits = (torch.cat(parts).unflatten(0, real.shape[:2]) for parts in zip(*both, strict=True))
        if not self.selected:
            return z_real
        labels = torch.arange(chunk.start, chunk.stop, device=real.device).unsqueeze(1).expand(real.shape[:2])
        entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        lowest = entropy.topk(self.selected, dim=1, largest=False).indices
        return z_real.take_along_dim(lowest.unsqueeze(2), dim=1)

    def _chunks(self, real_counts: list[int]) -> list[slice]:
        """Runs of this process's classes to take through a network at once: as many real images each, and
        of the synthetic ones, which need a graph, at most `max_batch` together (or one class)."""
        if self.batch_norm:
            return [self.own_classes]
        synthetic = self.options.ipc * augment.tiles(self.options.aug)
        chunks, start, stop = [], self.own_classes.start, self.own_classes.stop
        for k in range(start + 1, stop + 1):
            cost = max(synthetic, real_counts[start] / REAL_PER_SYNTHETIC) * (k - start + 1)
            if k == stop or cost > self.max_batch or real_counts[k] != real_counts[start]:
                chunks.append(slice(start, k))
                start = k
        return chunks
