"""The published loop, written literally: class by class, one optimizer over all images, two passes of the
synthetic images, gradients of the network's parameters and all. Slow on purpose: the engine of
`utils/distill.py` is held against it (test_distill.py) and timed against it (Code/benchmark.py).

It takes every random decision from the same `Draws`, and shares with the engine only what has tests of
its own: networks, augmentation operations and losses on (N, D) embeddings.
"""

import math

import torch
import torch.nn.functional as F

from . import augment, losses
from .draws import Draws
from .networks import get_network
from .pretrained import Pretrained


class ErrorMeter:
    """Running accuracy in percent, 0 while empty."""

    def __init__(self):
        self.correct, self.n = 0, 0

    def add(self, logits, labels):
        self.correct += (logits.argmax(1) == labels).sum().item()
        self.n += len(labels)

    def value(self):
        return 100.0 * self.correct / self.n if self.n else 0.0


def dsa(images, operations, parameters, label):
    """One operation for the whole batch, the same for the real and the synthetic images of a class."""
    if not operations:
        return images
    u = torch.as_tensor(parameters[label], dtype=images.dtype, device=images.device).expand(len(images), 3)
    return augment.OPERATIONS[operations[label]](images, u)


class ReferenceLoop:
    """`step` is one iteration; `image_syn` is (K*ipc, C, H, W), class by class."""

    def __init__(self, data, options, experiment=0):
        self.data, self.options = data, options
        self.draws = Draws(options.seed, experiment)
        self.num_classes = data.num_classes
        self.image_syn = self.initialise()
        if options.optim == "sgd":
            self.optimizer_img = torch.optim.SGD([self.image_syn], lr=options.lr_img, momentum=0.5)
        else:
            self.optimizer_img = torch.optim.Adam([self.image_syn], lr=options.lr_img)
        self.nets, self.optimizers, self.meters, self.built = [], [], [], 0
        for _ in range(3):
            self.add_network()

    def initialise(self):
        ipc, (channel, height, width) = self.options.ipc, self.data.image_shape
        image_syn = torch.zeros(self.num_classes * ipc, channel, height, width, dtype=self.data.dtype,
                                device=self.data.device)
        tiled = self.options.aug and self.options.init == "real"
        positions = self.draws.initial(self.data.class_sizes, 4 if tiled else 1, ipc)
        for c in range(self.num_classes):
            real = [self.data.batch(self.data.class_rows[c][positions[s, c]]) for s in range(len(positions))]
            target = image_syn[c * ipc:(c + 1) * ipc]
            if tiled:
                half_h, half_w = height // 2, width // 2
                small = [F.interpolate(r, scale_factor=0.5, mode="bilinear", align_corners=False) for r in real]
                target[:, :, :half_h, :half_w] = small[0]
                target[:, :, half_h:, :half_w] = small[1]
                target[:, :, :half_h, half_w:] = small[2]
                target[:, :, half_h:, half_w:] = small[3]
            else:
                target[:] = real[0]
        return image_syn.requires_grad_(True)

    def add_network(self):
        channel, *size = self.data.image_shape
        net = get_network(self.options.model, channel, self.num_classes, tuple(size),
                          self.draws.network_seed("pool", self.built)).to(self.data.device, self.data.dtype)
        extra = {"momentum": 0.9, "weight_decay": 5e-4} if self.options.net_decay else {}
        self.nets.append(net)
        self.optimizers.append(torch.optim.SGD(net.parameters(), lr=self.options.lr_net, **extra))
        self.meters.append(ErrorMeter())
        self.built += 1

    def reset_meters(self):
        for meter in self.meters:
            meter.__init__()

    def step(self, it):
        if it % self.options.net_generate_interval == 0:
            for _ in range(self.options.net_push_num):
                if len(self.nets) == self.options.net_num:
                    for queue in (self.nets, self.optimizers, self.meters):
                        queue.pop(0)
                self.add_network()
        chosen = self.chosen(it)
        for ol in range(self.options.outer_loop):
            self.update(chosen, it, ol)
            self.train_networks(it * self.options.outer_loop + ol)

    def chosen(self, it):
        return self.draws.matching_networks(it, len(self.nets), self.options.train_net_num)

    def update(self, chosen, it, ol):
        for n, k in enumerate(chosen):
            self.update_images(k, it, ol * len(chosen) + n)

    def update_images(self, k, it, update):
        options, net = self.options, self.nets[k]
        net.eval()
        strategy = augment.parse_strategy(options.dsa_strategy)
        positions = self.draws.real_images(it, update, self.data.class_sizes, options.batch_real)
        operations, parameters = self.draws.siamese(it, update, strategy, self.num_classes)
        for c in range(self.num_classes):
            img_real = self.data.batch(self.data.class_rows[c][positions[c]])
            img_syn = self.image_syn[c * options.ipc:(c + 1) * options.ipc]
            if options.aug:
                img_syn = augment.expand_formation(img_syn)
            img_real, img_syn = dsa(img_real, operations, parameters, c), dsa(img_syn, operations, parameters, c)
            select = options.ipc == 1 and not options.aug and options.ipc1_real > 0
            if select:
                labels = torch.full((len(img_real),), c, device=img_real.device)
                entropy = F.cross_entropy(net(img_real).detach(), labels, reduction="none")
                img_real = img_real[entropy.topk(options.ipc1_real, largest=False).indices]
            output_real = net.embed(img_real, options.embed_last).detach()
            output_syn = net.embed(img_syn, options.embed_last)
            loss = self.match(output_syn, output_real)
            if options.syn_ce:
                labels = torch.full((len(img_syn),), c, device=img_syn.device)
                logits = net(img_syn)
                if not (select and logits.argmax(dim=1).item() == c):
                    loss = loss + options.ce_weight * self.meters[k].value() * F.cross_entropy(logits, labels)
            self.optimizer_img.zero_grad()
            loss.backward()
            self.optimizer_img.step()

    def match(self, output_syn, output_real):
        options = self.options
        if options.method == "IDM":
            return losses.mean_matching(output_syn, output_real)
        return (options.nll_weight * losses.negative_log_likelihood(output_syn, output_real, options.sigma)
                + options.tv_weight * losses.total_variation(output_syn, output_real)
                + options.clip_weight * losses.clip_prior(output_syn, output_real, options.prior_clip))

    def train_networks(self, turn):
        chosen = self.draws.trained_networks(turn, len(self.nets), self.options.fetch_net_num)
        for n, k in enumerate(chosen):
            net = self.nets[k].train()
            for s in range(self.options.model_train_steps):
                rows = self.draws.training_batch(turn, n, s, len(self.data.labels), self.options.trained_bs)
                labels = self.data.labels[torch.as_tensor(rows, device=self.data.device)]
                logits = net(self.data.batch(rows))
                self.meters[k].add(logits, labels)
                self.optimizers[k].zero_grad()
                F.cross_entropy(logits, labels).backward()
                self.optimizers[k].step()


class PretrainedLoop(ReferenceLoop):
    """The same on networks trained beforehand: no growth, no training, an accuracy that stands."""

    def __init__(self, data, options):
        super().__init__(data, options)
        stages = Pretrained(data, self.draws, options).members
        self.nets = [stage.network.requires_grad_(True) for stage in stages]
        self.meters = [KnownAccuracy(stage.percent.item()) for stage in stages]

    def step(self, it):
        options = self.options
        if options.lr_decay == "cosine":
            self.optimizer_img.param_groups[0]["lr"] = (
                0.5 * options.lr_img * (1 + math.cos(math.pi * it / options.Iteration)))
        chosen = self.chosen(it)
        for ol in range(options.outer_loop):
            self.update(chosen, it, ol)


class KnownAccuracy(ErrorMeter):
    def __init__(self, percent):
        super().__init__()
        self.percent = percent

    def value(self):
        return self.percent


class ReferenceDM:
    """Distribution matching, written as in its authors' `main_DM.py`: in every iteration a fresh random network
    in train mode, the losses of all classes summed up, one step of the optimizer. `image_syn` as above."""

    def __init__(self, data, options, experiment=0):
        self.data, self.options = data, options
        self.draws = Draws(options.seed, experiment)
        positions = self.draws.initial(data.class_sizes, 1, options.ipc)[0]
        self.image_syn = torch.cat([data.batch(data.class_rows[c][positions[c]]) for c in range(data.num_classes)])
        self.image_syn.requires_grad_(True)
        self.optimizer_img = torch.optim.SGD([self.image_syn], lr=options.lr_img, momentum=0.5)

    def step(self, it):
        data, options = self.data, self.options
        channel, *size = data.image_shape
        net = get_network(options.model, channel, data.num_classes, tuple(size),
                          self.draws.network_seed("pool", it + 1)).to(data.device, data.dtype)
        net.train()
        for param in list(net.parameters()):
            param.requires_grad = False
        positions = self.draws.real_images(it, 0, data.class_sizes, options.batch_real)
        strategy = augment.parse_strategy(options.dsa_strategy)
        operations, parameters = self.draws.siamese(it, 0, strategy, data.num_classes)
        loss = torch.tensor(0.0, dtype=data.dtype, device=data.device)
        images_real_all, images_syn_all = [], []
        for c in range(data.num_classes):
            img_real = data.batch(data.class_rows[c][positions[c]])
            img_syn = self.image_syn[c * options.ipc:(c + 1) * options.ipc]
            images_real_all.append(dsa(img_real, operations, parameters, c))
            images_syn_all.append(dsa(img_syn, operations, parameters, c))
        if "BN" not in options.model:
            for img_real, img_syn in zip(images_real_all, images_syn_all, strict=True):
                output_real = net.features(img_real).flatten(1).detach()
                output_syn = net.features(img_syn).flatten(1)
                loss += torch.sum((torch.mean(output_real, dim=0) - torch.mean(output_syn, dim=0)) ** 2)
        else:  # all classes in one batch, of which the normalisation takes its statistics
            output_real = net.features(torch.cat(images_real_all)).flatten(1).detach()
            output_syn = net.features(torch.cat(images_syn_all)).flatten(1)
            loss += torch.sum((torch.mean(output_real.reshape(data.num_classes, options.batch_real, -1), dim=1)
                               - torch.mean(output_syn.reshape(data.num_classes, options.ipc, -1), dim=1)) ** 2)
        self.optimizer_img.zero_grad()
        loss.backward()
        self.optimizer_img.step()


class Pictures(torch.utils.data.Dataset):
    """Test images, normalised one by one as they are asked for."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data.test_labels)

    def __getitem__(self, k):
        return self.data.normalise(self.data.test_images[k]), self.data.test_labels[k]


def evaluate_synset(net, images, labels, options, rng):
    """The published training of an evaluated network: a DataLoader, an epoch function, a new optimizer halfway."""
    dataset = torch.utils.data.TensorDataset(images, labels)
    strategy, lr = augment.parse_strategy(options.dsa_strategy), options.lr_net
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    net.train()
    for ep in range(options.epoch_eval_train + 1):
        order = rng.permutation(len(labels)).tolist()
        for img, lab in torch.utils.data.DataLoader(dataset, batch_size=options.batch_train, sampler=order):
            if strategy:
                operation = augment.OPERATIONS[strategy[rng.integers(len(strategy))]]
                img = operation(img, torch.as_tensor(rng.random((len(img), 3))).to(img))
            loss = F.cross_entropy(net(img), lab)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if ep == options.epoch_eval_train // 2 + 1:
            lr *= 0.1
            optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def accuracy_on_test_images(net, data):
    """The published test: batches of 256 from a DataLoader, with a graph that nobody uses."""
    net.eval()
    correct = 0
    for img, lab in torch.utils.data.DataLoader(Pictures(data), batch_size=256):
        correct += (net(img).argmax(1) == lab).sum().item()
    return correct / len(data.test_labels)
