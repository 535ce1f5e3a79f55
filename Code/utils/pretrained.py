"""Networks trained on real images once, kept at several stages of their training, for many distillations.

A folder holds them, a file for each network: `network_000.pt`, `network_001.pt` and so on. What is said of the
images and the training stands in each, so that a run refuses networks that are not of its data.
"""

import fcntl
import io
import warnings
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import files
from utils.data import RealData
from utils.device import send
from utils.draws import Draws, choose, generator
from utils.errors import UserError, reason
from utils.logs import Progress
from utils.networks import get_network
from utils.passes import Passes

FORM = "BACON pretrained network 1"
KEPT_EVERY = 100  # steps after which a network that is being trained is written; a run that is killed loses these
COUNTED = 50  # training batches before a stage whose accuracy is that stage's
# What must be the same in a network's file and in the run that takes it, and what to say of it.
OF_THE_DATA = {"model": "--model", "shape": "--im_size (or the data set)", "zca": "--zca", "checksum": "images",
               "mean": "normalisation", "std": "normalisation", "classes": "classes"}


def about_data(data: RealData, options) -> dict:
    """What a network's file says of the images it was trained on, and of what it is."""
    return {"dataset": data.name, "model": options.model, "shape": list(data.image_shape), "zca": bool(options.zca),
            "classes": data.num_classes, "mean": list(data.mean), "std": list(data.std), "checksum": data.checksum()}


def file_of(folder: Path, number: int) -> Path:
    return folder / f"network_{number:03}.pt"


def checksum(stages: list[dict]) -> int:
    """A CRC-32 of steps, accuracies and weights: tells damaged files, and networks from others."""
    value = 0
    for stage in stages:
        value = zlib.crc32(repr((stage["step"], stage["accuracy"])).encode(), value)
        for name, tensor in stage["weights"].items():
            value = zlib.crc32(tensor.contiguous().numpy(), zlib.crc32(name.encode(), value))
    return value


def write(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save({"form": FORM, "checksum": checksum(content["stages"])} | content, buffer)
    files.write_whole(path, lambda file: file.write(buffer.getbuffer()))


def read(path: Path) -> dict:
    """A network's file, tensors on the CPU. Nothing in it is executed. UserError where it is damaged or no such file."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it is about to refuse
            content = torch.load(file, map_location="cpu", weights_only=True)
        if content["form"] != FORM or content["checksum"] != checksum(content["stages"]):
            raise ValueError("its checksum does not match")
        for stage in content["stages"]:
            if not all(tensor.isfinite().all() for tensor in stage["weights"].values()):
                raise ValueError("its weights are not finite")
            if not 0 <= stage["accuracy"] <= 100:
                raise ValueError("its accuracy is no percentage")
        [content[name] for name in ("data", "training", "number", "done")]
    except Exception as error:  # torch and pickle raise many kinds
        why = reason(error).split("\n")[0]
        if why.startswith("Weights only"):
            why = "it holds more than tensors and plain values, which could run code"
        raise UserError(f"{path}: not a network that pretrain.py left ({why}); remove it and run pretrain.py "
                        "again") from None
    return content


def check_fits(path: Path, said: dict, wanted: dict, flag: str) -> None:
    """UserError where a network's images, or the network itself, are not those of the run."""
    if said.get("dataset") != wanted["dataset"]:
        raise UserError(f"{flag}: {path} was trained on {said.get('dataset')}, not on {wanted['dataset']}; name the "
                        "folder of this data set, or make one with pretrain.py")
    for name, word in OF_THE_DATA.items():
        if said.get(name) != wanted[name]:
            both = "" if name == "checksum" else f" {said.get(name)}, not {wanted[name]}"
            other = "other images" if name == "checksum" else f"another {word.removeprefix('--')}:"
            raise UserError(f"{flag}: {path} was trained with {other}{both}; name the folder of such networks, or make "
                            "one with pretrain.py and the same flags")


# Training them


def default_stages(steps: int) -> list[int]:
    """--steps, its half, the half of that and so on, down to 100."""
    stages = [steps]
    while stages[-1] // 2 >= 100:
        stages.append(stages[-1] // 2)
    return sorted(stages)


def train(folder: Path, number: int, data: RealData, options) -> bool:
    """Trains one network to the end and keeps its stages, or what is left of it; False where another process does.

    All is decided by --seed and the network's number, so that a killed run, gone on with, leaves the same network.
    """
    path = file_of(folder, number)
    with files.writing(path):
        lock = (folder / f".{path.name}.lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        files.remove_temporary(folder, path.name, _partial(path).name)
        _train(path, number, data, options)
    return True


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _train(path: Path, number: int, data: RealData, options) -> None:
    said = {"data": about_data(data, options), "training": training(options), "number": number}
    kept = next((read(p) for p in (path, _partial(path)) if p.exists()), None)
    if kept:
        check_fits(path, kept["data"], said["data"], "--save_path")
        if differ := [f"--{name} {value}" for name, value in kept["training"].items()
                      if value != said["training"].get(name)]:
            raise UserError(f"--save_path: {path} was made with {', '.join(differ)}; choose another folder, or give the "
                            "same flags")
    if kept and kept["done"] == options.steps and path.exists():
        return
    passes, draws = Passes(options, data.device), Draws(options.seed)
    network = get_network(options.model, *data.network_shape, draws.network_seed("pretrained", number))
    passes.prepare(network, data.device, data.dtype)
    optimizer = new_optimizer(network, options)
    stages, done, right = [], 0, deque(maxlen=COUNTED)
    if kept:
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        stages, done = kept["stages"], kept["done"]
        right.extend(torch.tensor(value) for value in kept["right"])
    if not stages and 0 in options.stages:
        stages.append(_stage(network, 0, 0.0))
    network.train()
    batch = min(options.trained_bs, len(data.labels))
    with Progress(f"network {number}", options.steps, "step", done, batch) as progress:
        for step in range(done, options.steps):
            rows = choose(generator(options.seed, "pretraining batch", number, step), len(data.labels), batch)
            labels = data.labels[send(rows, data.device)]
            logits = passes.train_step(network, optimizer, data.batch(rows), labels)
            right.append((logits.argmax(dim=1) == labels).sum())
            progress.update(lambda: {"accuracy": _accuracy(right, batch)})
            if step + 1 in options.stages:
                stages.append(_stage(network, step + 1, _accuracy(right, batch)))
            if (step + 1) % KEPT_EVERY == 0 and step + 1 < options.steps:
                write(_partial(path), said | {
                    "stages": stages, "done": step + 1, "right": [int(value) for value in right],
                    "network": network.state_dict(), "optimizer": optimizer.state_dict()})
    if not all(tensor.isfinite().all() for tensor in stages[-1]["weights"].values()):
        raise UserError(f"network {number}: its weights are not finite after {options.steps} steps; choose a lower "
                        "--lr_net")
    write(path, said | {"stages": stages, "done": options.steps})
    _partial(path).unlink(missing_ok=True)
    print(f"{path}: " + ", ".join(f"{s['step']} steps {s['accuracy']:.1f} %" for s in stages), flush=True)


def training(options) -> dict:
    """The options that decide a network's weights beside its images and number."""
    return {name: getattr(options, name) for name in
            ("seed", "steps", "stages", "trained_bs", "lr_net", "net_decay", "precision")}


def new_optimizer(network: nn.Module, options) -> torch.optim.Optimizer:
    decay = {"momentum": 0.9, "weight_decay": 5e-4} if options.net_decay else {}
    return torch.optim.SGD(network.parameters(), lr=options.lr_net, **decay)


def _accuracy(right: deque, batch: int) -> float:
    return 100 * float(sum(right)) / (batch * len(right))


def _stage(network: nn.Module, step: int, accuracy: float) -> dict:
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    return {"step": step, "accuracy": accuracy, "weights": weights}


# Matching on them


@dataclass
class Stage:
    """A network as it was after `step` steps of its training; it takes the place of a pool's member."""

    network: nn.Module
    number: int
    step: int
    percent: Tensor  # its training accuracy then

    def accuracy(self) -> Tensor:
        return self.percent


class Pretrained:
    """Networks of a folder in place of a pool that is trained beside the images; nothing here changes in a run."""

    def __init__(self, data: RealData, draws: Draws, options):
        self.draws, self.options, self.data = draws, options, data
        self.passes = Passes(options, data.device)
        contents = self._read(Path(options.pool))
        self.checksum = zlib.crc32(repr([content["checksum"] for content in contents]).encode())
        self.known = sorted({stage["step"] for content in contents for stage in content["stages"]})
        wanted = {"pool_stages": options.pool_stages or self.known}
        wanted |= {name: getattr(options, name) or [] for name in ("ce_stages", "soft_stages")}
        for name, steps in wanted.items():
            if missing := sorted(set(steps) - set(self.known)):
                raise UserError(f"--{name} {' '.join(map(str, missing))}: {options.pool} has networks after "
                                f"{', '.join(map(str, self.known))} steps; choose among these")
        used = set().union(*wanted.values()) | {self.known[-1]}
        stages = [self._stage(content, stage) for content in contents for stage in content["stages"]
                  if stage["step"] in used]
        self.members, self.judges, self.labellers = (
            [stage for stage in stages if stage.step in wanted[name]] for name in wanted)
        self.oldest = next(stage for stage in stages if stage.step == self.known[-1])

    def _read(self, folder: Path) -> list[dict]:
        paths = sorted(folder.glob("network_*.pt"))[:self.options.pool_networks]
        if not paths:
            raise UserError(f"--pool {folder}: no networks there (network_000.pt and so on); make them with pretrain.py, "
                            "or leave --pool out")
        if self.options.pool_networks and len(paths) < self.options.pool_networks:
            raise UserError(f"--pool_networks {self.options.pool_networks}: {folder} has {len(paths)}; choose at most "
                            "that many, or make more with pretrain.py")
        contents, wanted = [read(path) for path in paths], about_data(self.data, self.options)
        for path, content in zip(paths, contents, strict=True):
            check_fits(path, content["data"], wanted, "--pool")
        return contents

    def _stage(self, content: dict, stage: dict) -> Stage:
        data = self.data
        with torch.device("meta"):  # whose weights come from the file
            network = get_network(self.options.model, *data.network_shape)
        network.to_empty(device="cpu")
        try:
            network.load_state_dict(stage["weights"])
        except RuntimeError as error:
            raise UserError(f"--pool {self.options.pool}: network {content['number']} does not fit {self.options.model} "
                            f"({reason(error)}); make it again with pretrain.py") from None
        self.passes.prepare(network, data.device, data.dtype).eval().requires_grad_(False)
        return Stage(network, content["number"], stage["step"],
                     torch.tensor(stage["accuracy"], dtype=data.dtype, device=data.device))

    def state(self) -> dict:
        """What a checkpoint keeps: which networks these are, not the networks."""
        return {"pretrained": self.checksum}

    def restore(self, state: dict):
        if state != self.state():
            raise UserError(f"--pool {self.options.pool}: its networks are not those that the run began with; bring "
                            "them back (--pool_networks leaves later ones out)")

    def grow(self, iteration: int):
        pass

    def reset_accuracies(self):
        pass

    def matching(self, iteration: int) -> list[Stage]:
        """--train_net_num of all networks at their --pool_stages."""
        chosen = self.draws.matching_networks(iteration, len(self.members), self.options.train_net_num)
        return [self.members[k] for k in chosen]

    def judge(self, member: Stage, iteration: int, update: int) -> Stage:
        """The network that gives the cross-entropy: the one matched on, or one of --ce_stages."""
        if not self.judges:
            return member
        return self.judges[self.draws.judging_network(iteration, update, len(self.judges))]

    def labelling(self) -> list[Stage]:
        """The networks whose mean prediction --soft_labels takes."""
        return self.labellers or self.members

    def for_features(self) -> Stage:
        """The network that real images are chosen by: the first, at its oldest."""
        return self.oldest
