"""Evaluates a saved synthetic set: trains fresh networks on it and tests them on the real test images.

    python3 -u evaluate.py --synthetic result/res_BACON_MNIST_ConvNet_10ipc.pt --eval_mode M
    python3 -u evaluate.py --synthetic a_set_of_DM.pt --dataset CIFAR10 --fair

Takes our sets, and those of other projects: .pt files and .pkl checkpoints (those made with --aug need it here, too),
.npz files, pairs of images and labels, and folders of images by class. A line says what they were taken for. Our sets
bring the protocol they were made with, and a pair its learning rate; flags override it.
"""

import contextlib
import os
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import augment, evaluation, fair, foreign_sets, networks, storage
from ..command_line import Parser, accepted_by, as_path, new_parser, whole_number
from ..data import RealData, class_order, image_files, load_data
from ..draws import Draws
from ..experiment import check_networks, memory_accounted
from ..options import add_data, add_evaluation, give_name, replaced
from ..summary import mean_and_std, percent
from ..system import device, files, logs, memory
from ..system.errors import UserError, memory_for, say
from ..system.reporting import reported

PROTOCOL = ("dataset", "im_size", "model", "lr_net", "epoch_eval_train", "batch_train", "dsa_strategy", "seed")


def parse() -> tuple[Namespace, dict]:
    """The command line, with the protocol of the set for what it does not say, and the set as it is read."""
    parser = new_parser(__doc__)
    group = parser.add_argument_group("what to evaluate")
    group.add_argument("--synthetic", type=as_path, required=True,
                       help="a set of any of the forms that are read, or a folder <class>/<image>")
    group.add_argument("--labels", type=as_path, help="file of its labels, where they are not with its images")
    group.add_argument("--fair", action="store_true",
                       help="add random real images, the formation's start and the whole training set, all but the "
                            "start also without augmentation, and DD-Ranking's measures")
    group.add_argument("--epoch_whole_train", type=whole_number(0), default=30,
                       help="with --fair: epochs on the whole training set, less 1")
    group.add_argument("--pool", type=as_path, metavar="PATH",
                       help="with --fair, of a set with soft labels: folder of networks that pretrain.py trained, "
                            "which give random images theirs")
    group.add_argument("--soft_stages", type=whole_number(0), nargs="+", metavar="STEPS",
                       help="with --pool: networks after so many steps (default: all that are kept)")
    add_protocol(parser)
    first = parser.parse_args()
    path = first.synthetic
    pictures = os.path.isdir(path) and not foreign_sets.parts(path)
    saved = {"data": [], "meta": {}} if pictures else storage.load(path, first.labels, raw=True)
    used = saved["meta"].get("options", {})
    parser.set_defaults(**{name: str(used[name]) for name in PROTOCOL  # as if they were flags, so that they are checked
                           if used.get(name) is not None})
    options = parser.parse_args()
    give_name(parser, options)
    if options.pixels and ("mean" in saved["meta"] or pictures):
        parser.error(f"--pixels: {path} says itself what its images are; leave it out")
    if options.zca and "mean" in saved["meta"]:
        parser.error(f"--zca: {path} brings its own normalisation; leave it out")
    if os.path.isdir(path) and saved["data"] and foreign_sets.is_whitened(path) and not options.zca:
        parser.error(f"--zca: {path} has {foreign_sets.WHITENED}*, which MTT leaves beside whitened images; add --zca, "
                     "or name the file of images, and that of labels with --labels")
    if options.pool and not options.fair:
        parser.error("--pool: it labels the random images of --fair; add --fair, or leave it out")
    if options.soft_stages and not options.pool:
        parser.error("--soft_stages: it chooses among networks trained beforehand; name their folder with --pool")
    return options, saved


def add_protocol(parser: Parser) -> None:
    """The flags of what a set's images are, and of how it is evaluated."""
    group = parser.add_argument_group("its images, and the network", "What the set does not say itself.")
    group.add_argument("--pixels", choices=foreign_sets.UNITS,
                       help="what the values of another project's images are, where that is not clear")
    group.add_argument("--aug", action="store_true", help="its images are 2x2 formations (ours say so themselves)")
    group.add_argument("--model", type=accepted_by(networks.check_name, networks.NETWORKS), default="ConvNet",
                       help="network of mode S")
    add_data(parser)
    add_evaluation(parser)
    parser.set_defaults(num_eval=5, Iteration=0)


def check_size(options, images: Tensor) -> None:
    """UserError where a set's images are not of the size that the data set would be brought to."""
    size = options.im_size
    if size and images.shape[2:] != (size, size):
        raise UserError(f"--im_size {size}: {options.synthetic} has images {tuple(images.shape[1:])}; name the side "
                        "that it was made with")


def load_test_data(options, meta: dict) -> RealData:
    """The data set, normalised as the synthetic set was, and split as it was where it has no test images."""
    data = load_data(replaced(options, seed=meta.get("seed", options.seed)))
    wanted = meta.get("class_names", data.class_names)
    if data.class_names != wanted:
        source = meta.get("dataset", "others")
        labels = class_labels(data, wanted, f"--dataset {options.dataset}: {options.synthetic} was made from {source}",
                              spelled=source == options.dataset)
        if len(labels) != data.num_classes:
            raise UserError(f"--dataset {data.name}: {options.synthetic} was made from {len(labels)} of its classes; "
                            "name a --data_path that has these alone")
        data = in_order(data, labels)
    if "mean" in meta:
        data.mean, data.std, data.whitening = tuple(meta["mean"]), tuple(meta["std"]), storage.whitening(meta)
    return data.to(data.device)


def class_labels(data: RealData, names: list[str], about: str, spelled: bool = True) -> dict[str, int]:
    """The label in the data of each of these names of classes or folders; UserError, with both lists, for others.

    All are names of classes; or, where `spelled`, all are spellings of the published classes or all numbers.
    """
    known, labels = {class_order.composed(name): k for k, name in enumerate(data.class_names)}, {}
    if known.keys() >= {class_order.composed(name) for name in names}:
        return {name: known[class_order.composed(name)] for name in names}
    if spelled and data.class_names == class_order.NAMES.get(data.name):
        with contextlib.suppress(UserError):
            return class_order.published(data.name, names)
    elif spelled:
        labels = class_order.numbers(names) or {}
    if not labels or max(labels.values()) >= data.num_classes or len(set(labels.values())) < len(names):
        raise UserError(f"{about}: its classes {class_order.listed(names)} are not those of {data.name}, "
                        f"{class_order.listed(data.class_names)}; name the data set that it was made from, or call "
                        f"the folders as these classes or 0 to {data.num_classes - 1}")
    return labels


def in_order(data: RealData, labels: dict[str, int]) -> RealData:
    """The data with its classes in the order and under the names of these, whose labels so far are given."""
    places = torch.tensor([list(labels.values()).index(k) for k in range(data.num_classes)])
    return replace(data, labels=places[data.labels.cpu()], test_labels=places[data.test_labels.cpu()],
                   class_names=list(labels)).to(data.device)


def image_folder(path: Path, data: RealData) -> tuple[Tensor, Tensor]:
    """Images below <path>/<class>/, where all classes go by their names, or else all by numbers. Prints the order."""
    tree = image_files.Tree(path)
    names, folders = image_files.images_by_folder(tree)
    if not names:
        raise UserError(f"{path}: no images in <class>/; name the folders after classes "
                        f"({', '.join(data.class_names[:3])}, ...) or 0, 1, ...")
    try:
        image_files.look_within(tree, "", names, folders)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    known = class_labels(data, class_order.own(sorted(set(folders))), str(path))
    pairs = [f"{folder} = {data.class_names[k]}" for folder, k in sorted(known.items(), key=lambda pair: pair[1])]
    labels = torch.tensor([known[folder] for folder in folders])
    say(f"{path}: folders as classes, in this order: {class_order.listed(pairs)}; "
        f"{foreign_sets.counts(labels, data.class_names)}")
    image_files.say_what_is_left_out(tree, names, ("",))
    try:
        images = image_files.decode(tree, names, data.image_shape[0], data.image_shape[1])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    foreign_sets.say_what_changes(path, map(tree.read, names), data.image_shape)
    return data.normalise(images.to(data.device)), labels


def stored_sets(options, saved: dict, data: RealData) -> list[tuple[Tensor, Tensor]]:
    """Images and labels as stored, one pair for each experiment; UserError where they do not fit the data."""
    sets = saved["data"] or [image_folder(options.synthetic, data)]
    for images, labels in sets:
        if images.shape[1:] != data.image_shape or not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
            raise UserError(f"--dataset {data.name}: {options.synthetic} has images {tuple(images.shape[1:])} of "
                            f"classes {int(labels.min())} to {int(labels.max())}, not {data.image_shape} of "
                            f"{data.num_classes} classes; name the data set, and the --im_size, that it was made from")
    for width in [*saved.get("widths", []), *(soft.shape[1] for soft in saved.get("soft_labels", []))]:
        if width not in (0, data.num_classes):
            raise UserError(f"--dataset {data.name}: {options.synthetic} has labels of {width} classes, not "
                            f"{data.num_classes}; name the data set that it was made from")
    if "mean" in saved["meta"] or not saved["data"]:
        return sets
    return [[foreign_sets.normalised(images, data, options.pixels, options.synthetic), labels]
            for images, labels in sets]


def say_taken_for(options, saved: dict, data: RealData) -> None:
    """The line that says what another project's set was taken for."""
    if saved["data"] and "mean" not in saved["meta"]:
        unit = f"--pixels {options.pixels}" if options.pixels else "normalised"
        say(f"{options.synthetic}: {foreign_sets.describe(saved, data, unit)}")
        if "class_names" not in saved["meta"] and data.class_names != class_order.NAMES.get(data.name):
            say(f"{options.synthetic}: its labels 0 to {data.num_classes - 1} are taken for "
                f"{class_order.listed(data.class_names)}, the classes of {data.name}")


def lacks(sets: list[tuple[Tensor, Tensor]], data: RealData) -> str:
    """What the result's line says of classes that a set has no images of."""
    found = min(len(labels.unique()) for _, labels in sets)
    return f"images of {found} of {data.num_classes} classes" if found < data.num_classes else ""


class Evaluator:
    """Trains and tests networks by the protocol of a command line; prints and keeps each result.

    `results` has a line for each; so has evaluate.jsonl in --save_path, if there is one.
    """

    def __init__(self, options, data: RealData, lacks: str = ""):
        self.options, self.data, self.lacks = options, data, lacks
        self.results: list[dict] = []
        self.results_path = options.save_path and files.make_folder(options.save_path) / "evaluate.jsonl"
        if self.results_path and os.path.lexists(self.results_path):  # what cannot be is found before the work
            with files.writing(self.results_path), files.open_to_append(self.results_path):
                pass

    def add(self, trained_on: str, model: str, count: int, make: Callable[[int], tuple[Tensor, Tensor]],
            **changes) -> float:
        """Mean accuracy (0..1) of num_eval networks on each of `count` sets, under the options and `changes` to them.

        make(k): images and labels of the k-th, ready to train on.
        """
        options = replaced(self.options, **changes)
        begun, epochs = time.monotonic(), count * options.num_eval * (options.epoch_eval_train + 1)
        accuracies = []
        with logs.Progress(f"{model} on {trained_on}", epochs, unit="epoch") as progress:
            for k in range(count):
                accuracies += evaluation.evaluate(*make(k), self.data, model, options, Draws(options.seed, k),
                                                  ("evaluate.py", trained_on), on_epoch=progress.update)
        seconds, short = time.monotonic() - begun, mean_and_std(accuracies)
        augmented = "with DSA" if options.dsa_strategy != "none" else "no DSA"
        lacks = f"; {self.lacks}" if trained_on == "the set" and self.lacks else ""
        say(f"{model:12} {trained_on:36} {augmented:8} {percent(accuracies)} ({len(accuracies)} networks, "
            f"{logs.clock(seconds)}{lacks})")
        self.results.append({
            "synthetic": str(options.synthetic), "trained_on": trained_on, "accuracies": accuracies, **short,
            "seconds": round(seconds, 1),
            **{name: getattr(options, name) for name in ("name", *PROTOCOL, "validation")},
            "model": model, "date": time.strftime("%Y-%m-%d"), "machine": device.describe(self.data.device)})
        if self.results_path:
            files.append_json(self.results_path, self.results[-1])
        return short["mean"]


def prepared_for_fair(options, saved: dict, data: RealData) -> fair.Label | None:
    """What gives random images soft labels, if the set has such and --pool is named; says what --fair cannot do."""
    fair.say_few(options.synthetic, saved["data"], data)
    if "soft_labels" in saved and options.pool:
        return fair.pool_labels(options, data, fair.parts_of(options.synthetic, saved))
    if "soft_labels" in saved:
        say(f"--fair: {options.synthetic} has soft labels; {fair.LEFT_OUT}")
    elif options.pool:
        raise UserError(f"--pool: {options.synthetic} has no soft labels, so random images need none; leave it out")
    return None


def run(options, saved: dict) -> list[dict]:
    """Evaluates a set, as `storage.load` gives it, by these options; returns a line for each result."""
    memory.keep_freed_memory()
    with memory_accounted(options, resumable=False):
        for images, _ in saved["data"]:
            check_size(options, images)
        data = load_test_data(options, saved["meta"])
        formation = saved["meta"].get("formation", augment.formation(options.aug))
        with memory_for(options.synthetic):
            sets = stored_sets(options, saved, data)
            used = {**saved, "data": sets}
            ready = storage.ready(used, formation)
        models = evaluation.models(options.eval_mode, options.model)
        check_networks(models, data)
        say_taken_for(options, saved, data)
        label = prepared_for_fair(options, used, data) if options.fair else None
        evaluator = Evaluator(options, data, lacks(sets, data))
        for model in models:
            accuracy = evaluator.add("the set", model, len(ready), ready.__getitem__)
            if options.fair:
                fair.read(evaluator.add, options, data, model, used, formation, accuracy, label)
    return evaluator.results


def main() -> None:
    """The script: its command line, read and done."""
    with reported(alone=True):
        run(*parse())
