"""Networks trained on real images once, kept at several stages of their training, for many distillations.

A folder holds them, a file for each network: `network_000.pt`, `network_001.pt` and so on. What is said of the
images and the training stands in each, so that a run refuses networks that are not of its data.
"""

import io
import math
import time
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .data import RealData
from .draws import Draws, choose, generator
from .networks import get_network
from .networks.batches import BatchRunner, is_compiled, restore_momentum, sgd
from .system import files, unpickle
from .system.device import send
from .system.errors import LacksMemory, UserError, memory_for, reason, say
from .system.logs import Progress

FORM = "BACON network trained beforehand, 1"
KEPT_EVERY = 100  # steps after which a network that is being trained is written; a run that is killed loses these
COUNTED = 50  # training batches before a stage whose accuracy is that stage's
# What must be the same in a network's file and in the run that takes it, and what to say of it.
OF_THE_DATA = {"model": "--model", "shape": "--im_size (or the data set)", "zca": "--zca", "checksum": "images",
               "mean": "normalisation", "std": "normalisation", "classes": "classes"}


def about_data(data: RealData, options) -> dict:
    """What a network's file says of the images it was trained on, and of what it is."""
    return {"dataset": options.dataset, "model": options.model, "shape": list(data.image_shape),
            "zca": bool(options.zca),
            "classes": data.num_classes, "mean": list(data.mean), "std": list(data.std), "checksum": data.checksum()}


def file_of(folder: Path, number: int) -> Path:
    """Where a folder keeps a network."""
    return folder / f"network_{number:03}.pt"


def checksum(value, so_far: int = 0) -> int:
    """A CRC-32 of nested dicts and lists of tensors and plain values: tells damaged files, and networks from others."""
    if isinstance(value, Tensor):
        return zlib.crc32(value.contiguous().numpy().tobytes(), checksum(list(value.shape), so_far))
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        for part in value:
            so_far = checksum(part, so_far)
        return so_far
    return zlib.crc32(repr(value).encode(), so_far)


def write(path: Path, content: dict) -> None:
    """Writes a network's file, whole or not at all. UserError where the system refuses."""
    buffer = io.BytesIO()
    torch.save({"form": FORM, "checksum": checksum(content), "content": content}, buffer)
    files.write_whole(path, lambda file: file.write(buffer.getbuffer()))


def read(path: Path) -> dict:
    """A network's file, tensors on the CPU; nothing in it is run. UserError where it is damaged or something else."""
    try:
        with memory_for(path):
            found = unpickle.load_torch(path)
        content = found["content"]
        if found["form"] != FORM or found["checksum"] != checksum(content):
            raise ValueError("its checksum does not match")
        _check_content(content, finished=path.suffix == ".pt")
    except LacksMemory:
        raise
    except Exception as error:  # torch and pickle raise many kinds
        why = reason(error).split("\n")[0]
        if why.startswith("Weights only"):
            why = "it holds more than tensors and plain values, which could run code"
        raise UserError(f"{path}: not a network that pretrain.py left ({why}); remove it and run pretrain.py "
                        "again") from None
    return content


def _check_content(content: dict, finished: bool) -> None:
    """ValueError, KeyError, TypeError or AttributeError where this is not what `write` is given."""
    if missing := {"data", "training", "versions", "number", "done", "stages"} - content.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    said, stages = content["data"], content["stages"]
    counts = [content["number"], content["done"], *(stage["step"] for stage in stages)]
    if type(stages) is not list or len(stages) < finished or not all(type(count) is int and count >= 0
                                                                     for count in counts):
        raise ValueError("its stages or counts are none")
    if not isinstance(said.get("model", ""), str) or not isinstance(content["training"], dict):
        raise ValueError("what it says of itself is damaged")
    for stage in stages:
        if not all(type(name) is str and tensor.is_floating_point() and tensor.isfinite().all()
                   for name, tensor in stage["weights"].items()):
            raise ValueError("its weights are not finite, or no numbers of a network")
        if not 0 <= stage["accuracy"] <= 100:
            raise ValueError("its accuracy is no percentage")
    if not 0 <= content.get("seconds", 0.0) < math.inf:
        raise ValueError("its seconds are none")


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
    UserError where a file there is damaged or of another training, and where the weights are not finite.
    """
    path = file_of(folder, number)
    with files.lock(folder / f".{path.name}.lock") as held:
        if not held:
            return False
        files.remove_temporary(folder, path.name, _partial(path).name)
        kept = _kept(path, number, data, options)
        if not (kept and path.exists()):
            Training(path, number, data, options, kept).run()
    return True


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _kept(path: Path, number: int, data: RealData, options) -> dict | None:
    """What is there of a network, finished or not. UserError where it is of other images or another training."""
    kept = next((read(p) for p in (path, _partial(path)) if p.exists()), None)
    if kept:
        check_fits(path, kept["data"], about_data(data, options), "--save_path")
        now = training(options)
        if differ := [f"--{name} {value}" for name, value in kept["training"].items() if value != now.get(name)]:
            raise UserError(f"--save_path: {path} was made with {', '.join(differ)}; choose another folder, or give "
                            "the same flags")
    return kept


class Training:
    """One network that is being trained, its stages so far, and its last training batches."""

    def __init__(self, path: Path, number: int, data: RealData, options, kept: dict | None):
        self.path, self.number, self.data, self.options = path, number, data, options
        self.runner = BatchRunner(data.device, options.precision, options.compile)
        seed = Draws(options.seed).network_seed("pretrained", number)
        self.network = get_network(options.model, *data.network_shape, seed)
        self.runner.prepare(self.network, data.device, data.dtype)
        self.optimizer = sgd(self.network, options.lr_net, options.net_decay)
        self.batch = min(options.trained_bs, len(data.labels))
        self.stages, self.done, self.right = [], 0, deque(maxlen=COUNTED)
        self.begun = time.monotonic()
        if kept:
            self._restore(kept)
        elif 0 in options.stages:
            self._keep_stage()

    def _restore(self, kept: dict) -> None:
        try:
            self.network.load_state_dict(kept["network"])
            restore_momentum(self.optimizer, kept["optimizer"])
            self.stages, self.done = kept["stages"], kept["done"]
            self.begun -= kept.get("seconds", 0.0)
            self.right.extend(torch.tensor(min(self.batch, int(value))) for value in kept["right"])
            if [stage["step"] for stage in self.stages] != [k for k in self.options.stages if k <= self.done]:
                raise ValueError("its stages are not those of its steps")
        except Exception as error:  # of a forged file, whose checksum is right
            raise UserError(f"{_partial(self.path)}: does not fit this training ({reason(error)}); remove it and start "
                            "again") from None

    def run(self) -> None:
        """Trains to the end, keeps it every KEPT_EVERY steps, and writes the finished network."""
        steps = self.options.steps
        self.network.train()
        with Progress(f"network {self.number}", steps, "step", self.done, self.batch) as progress:
            while self.done < steps:
                self._step()
                progress.update(lambda: {"accuracy": self._accuracy()})
                if self.done in self.options.stages:
                    self._keep_stage()
                if self.done % KEPT_EVERY == 0 and self.done < steps:
                    self._write(_partial(self.path), right=[int(value) for value in self.right],
                                network=self.network.state_dict(), optimizer=self.optimizer.state_dict())
        self._write(self.path)
        _partial(self.path).unlink(missing_ok=True)
        say(f"{self.path}: " + ", ".join(f"{s['step']} steps {s['accuracy']:.1f} %" for s in self.stages))

    def _step(self) -> None:
        count = len(self.data.labels)
        rng = generator(self.options.seed, "pretraining batch", self.number, self.done)
        rows = choose(rng, count, self.batch)
        labels = self.data.labels[send(rows, self.data.device)]
        logits = self.runner.train_step(self.network, self.optimizer, self.data.batch(rows), labels)
        self.right.append((logits.argmax(dim=1) == labels).sum())
        self.done += 1

    def _accuracy(self) -> float:
        """Percent of the last COUNTED batches that were right as they were trained on; 0 before the first."""
        return 100 * float(sum(self.right)) / (self.batch * max(1, len(self.right)))

    def _keep_stage(self) -> None:
        state = self.network.state_dict()
        weights = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise UserError(f"network {self.number}: its weights are not finite after {self.done} steps; choose a "
                            "lower --lr_net")
        self.stages.append({"step": self.done, "accuracy": self._accuracy(), "weights": weights})

    def _write(self, path: Path, **unfinished) -> None:
        write(path, {"data": about_data(self.data, self.options), "training": training(self.options),
                     "versions": {"torch": str(torch.__version__), "numpy": np.__version__}, "number": self.number,
                     "done": self.done, "seconds": time.monotonic() - self.begun, "stages": self.stages,
                     **_on_cpu(unfinished)})


def _on_cpu(value):
    """Nested dicts and lists, their tensors on the CPU."""
    if isinstance(value, dict):
        return {name: _on_cpu(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_on_cpu(part) for part in value]
    return value.cpu() if isinstance(value, Tensor) else value


def training(options) -> dict:
    """The options that decide a network's weights beside its images and number."""
    return {name: getattr(options, name) for name in
            ("seed", "steps", "stages", "trained_bs", "lr_net", "net_decay", "precision")}


# Matching on them


def _paths(folder: Path) -> list[Path]:
    """The files of a folder's networks; UserError where there are none."""
    paths = sorted(folder.glob("network_*.pt"))
    if not paths:
        raise UserError(f"--pool {folder}: no networks there (network_000.pt and so on); make them with "
                        "pretrain.py, or leave --pool out")
    return paths


def chosen(options) -> list[Path]:
    """The files of the networks that a run matches on: those that it began with, where it has begun (`pool_files`), or
    all of --pool, or its first --pool_networks. UserError where they are not there."""
    paths, names = _paths(Path(options.pool)), getattr(options, "pool_files", None)
    if names is not None:
        known = {path.name: path for path in paths}
        if missing := [name for name in names if name not in known]:
            raise UserError(f"--pool {options.pool}: {', '.join(missing)}, which the run began with, is not there; "
                            "bring back its networks")
        return [known[name] for name in names]
    if options.pool_networks and len(paths) < options.pool_networks:
        raise UserError(f"--pool_networks {options.pool_networks}: {options.pool} has {len(paths)}; choose at most "
                        "that many, or make more with pretrain.py")
    return paths[:options.pool_networks]


def seconds(options) -> float | None:
    """How long the networks that a run matches on were trained, together; None where a file does not say it."""
    each = [read(path).get("seconds") for path in chosen(options)]
    return None if None in each else sum(each)


def names_for(options, begun: dict | None) -> list[str]:
    """The names of these files, for a run to note in its options, so that networks which come later change nothing.

    begun: the options of the run, if it has begun.
    """
    names = (begun or {}).get("pool_files")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError("--resume: the checkpoint names no networks of --pool; start anew with another --save_path")
    return names or [path.name for path in chosen(options)]


def model_of(folder: Path) -> str:
    """The --model that a folder's networks are of."""
    return read(_paths(folder)[0])["data"].get("model", "of an unknown kind")


@dataclass
class Stage:
    """A network as it was after `step` steps of its training; it takes the place of a pool's member."""

    network: nn.Module
    number: int
    step: int
    percent: Tensor  # its training accuracy then

    def accuracy(self) -> Tensor:
        """In percent, a scalar on the device."""
        return self.percent


class Pretrained:
    """Networks of a folder in place of a pool that is trained beside the images; nothing here changes in a run."""

    def __init__(self, data: RealData, draws: Draws, options):
        self.draws, self.options, self.data = draws, options, data
        self.runner = BatchRunner(data.device, options.precision,
                                  is_compiled(options.compile, data.device, options.Iteration))
        contents = self._read(Path(options.pool))
        self.checksum = checksum([content["stages"] for content in contents])
        self.known = sorted({stage["step"] for content in contents for stage in content["stages"]})
        self._choose([self._stage(content, stage) for content in contents for stage in content["stages"]])

    def _choose(self, stages: list[Stage]) -> None:
        """Which of them are matched on, give the cross-entropy, and the soft labels. UserError where there are none."""
        chosen = {}
        for name in ("pool_stages", "ce_stages", "soft_stages"):
            steps = getattr(self.options, name) or []
            if missing := sorted(set(steps) - set(self.known)):
                raise UserError(f"--{name} {' '.join(map(str, missing))}: {self.options.pool} has networks after "
                                f"{', '.join(map(str, self.known))} steps; choose among these")
            chosen[name] = [stage for stage in stages if stage.step in steps]
        self.members, self.ce_networks, self.labellers = chosen.values()
        self.members = self.members or stages
        self.oldest = next(stage for stage in stages if stage.step == self.known[-1])

    def _read(self, folder: Path) -> list[dict]:
        wanted, contents = about_data(self.data, self.options), []
        for path in chosen(self.options):
            contents.append(read(path))
            check_fits(path, contents[-1]["data"], wanted, "--pool")
        return contents

    def _stage(self, content: dict, stage: dict) -> Stage:
        data = self.data
        with torch.device("meta"):  # whose weights come from the file
            network = get_network(self.options.model, *data.network_shape)
        network.to_empty(device="cpu")
        try:
            network.load_state_dict(stage["weights"])
        except RuntimeError as error:
            raise UserError(f"--pool {self.options.pool}: network {content['number']} does not fit "
                            f"{self.options.model} ({reason(error)}); make it again with pretrain.py") from None
        self.runner.prepare(network, data.device, data.dtype).eval().requires_grad_(False)
        return Stage(network, content["number"], stage["step"],
                     torch.tensor(stage["accuracy"], dtype=data.dtype, device=data.device))

    def state(self) -> dict:
        """What a checkpoint keeps: which networks these are, not the networks."""
        return {"pretrained": self.checksum}

    def restore(self, state: dict):
        """Goes on with these networks, of which nothing changes. UserError where they are not those of `state`."""
        if state != self.state():
            raise UserError(f"--pool {self.options.pool}: its networks are not those that the run began with; bring "
                            "them back")

    def grow(self, iteration: int):
        """Adds nothing: all networks are there from the start."""

    def reset_accuracies(self):
        """Leaves the accuracies, which are those of the whole training."""

    def matching(self, iteration: int) -> list[Stage]:
        """--train_net_num of all networks at their --pool_stages."""
        chosen = self.draws.matching_networks(iteration, len(self.members), self.options.train_net_num)
        return [self.members[k] for k in chosen]

    def ce_network(self, member: Stage, iteration: int, update: int) -> Stage:
        """The network that gives the cross-entropy: the one matched on, or one of --ce_stages."""
        if not self.ce_networks:
            return member
        return self.ce_networks[self.draws.judging_network(iteration, update, len(self.ce_networks))]

    def labelling(self) -> list[Stage]:
        """The networks whose mean prediction --soft_labels takes."""
        return self.labellers or self.members

    def for_features(self) -> Stage:
        """The network that real images are chosen by: the first, at its oldest."""
        return self.oldest
