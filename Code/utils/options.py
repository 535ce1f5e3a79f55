"""Every command-line flag, once: name, default, help, and the check that refuses a bad value in one line."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import augment, evaluation, methods, networks, run_files
from .data import sources
from .networks import batches
from .system import memory
from .system.errors import UserError, in_one_line

# Flags of the published scripts that nothing there reads. They are taken so that its commands run.
DEAD_FLAGS = ("net_train_real", "no_net_train_real", "mismatch_lambda", "dis_metric", "inner_loop", "last",
              "mismatch_type", "weight_layer_index", "conf_path", "local_num", "local_weight")


# What the published MNIST commands set beside the flags' own defaults; where benchmark.py and compare.py start.
PUBLISHED_MNIST = {"dataset": "MNIST", "model": "ConvNet", "ipc": 10, "lr_img": 0.2, "num_eval": 5,
                   "net_decay": True, "embed_last": 1000, "syn_ce": True, "ce_weight": 0.5, "train_net_num": 1,
                   "aug": True}
MOST_SEED = 2**32 - 1  # that scikit-learn takes


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.endswith("=--"):  # of which argparse makes an empty list
                self.error(f"{word}: no value; give one")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {in_one_line(message)}\n")


def accepted_by(check: Callable[[str], object]) -> Callable[[str], str]:
    """An argparse type: text that `check` takes without a UserError or ValueError."""
    def accept(text: str) -> str:
        try:
            check(text)
        except (UserError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return accept


def _at_most(high: float) -> str:
    return "" if high == float("inf") else f" and at most {high:.0f}"


def whole_number(low: int, high: float = float("inf")):
    """An argparse type: whole numbers from `low` to `high`."""
    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}{_at_most(high)}")
        return value

    return check


def finite_number(low: float, high: float = float("inf"), above: bool = False):
    """An argparse type: finite numbers from `low`, or above it, to `high`."""
    def check(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or value == float("inf") or (above and value == low):
            least = f"{'above' if above else 'of at least'} {low:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {least}{_at_most(high)}")
        return value

    return check


def as_path(text: str) -> Path:
    """An argparse type: a path, with ~ for the home folder, which no shell puts in after an equals sign."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    return Path(os.path.expanduser(text))


def checkpoint_to_resume(text: str) -> str:
    """An argparse type: "auto" or a path."""
    return text if text == "auto" else str(as_path(text))


class _Imported(argparse.Action):
    """--dataset: imports module:source, for the command line alone; a default, which may come from a file, is not."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            sources.imported(values)
        except UserError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, values)


def give_name(parser: Parser, options: argparse.Namespace,
              folder_of: Callable[[argparse.Namespace], Path] | None = None) -> None:
    """Fills in --name for one's own data; ends the program where a data set has a name already.

    folder_of: the folder of such options; where one is there from before data had names, they stay "folder".
    """
    usual = sources.own_name(options.dataset, options.data_path)
    if usual is None and options.name:
        parser.error(f"--name {options.name}: {options.dataset} has its name; leave it out")
    before = replaced(options, name="folder")
    if options.dataset == "folder" and not options.name and folder_of and folder_of(before).is_dir():
        usual = "folder"
    options.name = options.name or usual


def check_pool_network(name: str) -> None:
    """UserError or ValueError for a network that images cannot be matched on."""
    if networks.check_name(name) not in networks.CONVNETS:
        raise ValueError(f"{name} has no embedding to match; choose a ConvNet variant")


def switch(flag: Callable, name: str, default: bool, help: str):
    """Adds --name and, as the published scripts spell it, --no_name; --no-name, too."""
    flag(f"--{name}", action="store_true", default=default, help=help)
    flag(f"--no_{name}", f"--no-{name}", dest=name, action="store_false", default=argparse.SUPPRESS,
         help=f"no --{name}")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, and the commands of a script's docstring as they stand."""


def new_parser(description: str) -> Parser:
    """A parser without flags."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def build_parser(description: str, defaults: dict) -> Parser:
    """The parser of an entry script; `defaults` holds what differs from the defaults below."""
    parser = new_parser(description)
    _add_task(parser)
    add_data(parser)
    _add_images(parser)
    _add_loss(parser)
    _add_pool(parser)
    _add_run(parser)
    add_evaluation(parser)
    group = parser.add_argument_group("accepted for the published commands, without effect there and here")
    for name in DEAD_FLAGS:
        group.add_argument(f"--{name}", nargs="?", const=True, default=argparse.SUPPRESS, help="no effect")
    parser.set_defaults(**defaults)
    return parser


def _add_task(parser: Parser):
    flag = parser.add_argument_group("task").add_argument
    flag("--method", type=accepted_by(methods.find), default="BACON",
         help=f"{', '.join(methods.METHODS)}, or your own objective as module:function")
    flag("--model", type=accepted_by(check_pool_network), default="ConvNet_GBN",
         help="ConvNet variant of the pool, and of evaluation mode S")
    flag("--ipc", type=whole_number(1), default=50, help="synthetic images per class")
    switch(flag, "aug", False, "each stored image is a 2x2 formation of half-size images")
    flag("--num_exp", type=whole_number(1), default=5, help="experiments, each a set of its own")


def add_data(parser: Parser):
    """The flags of what is read and computed on, shared with evaluate.py."""
    flag = parser.add_argument_group("data and machine").add_argument
    flag("--dataset", type=accepted_by(sources.check_form), action=_Imported, default="MNIST",
         help=f"{', '.join(sources.SOURCES)}, or your own Source as module:source")
    flag("--name", type=accepted_by(sources.check_own_name),
         help="what your own data are called in names of files, tables, cards and reports; None: as their folder or "
              "source")
    flag("--data_path", type=as_path, default="data",
         help="folder of the data sets; images in <data_path>/<dataset>/{train,test}/<class>/ are taken in "
              "place of the published files, and what is missing is downloaded")
    flag("--im_size", type=whole_number(1), help="side that images are resized to; None: the data set's own")
    switch(flag, "zca", False, "whiten the images (ZCA)")
    flag("--save_path", type=as_path, default="result", help="folder for sets, pictures and the files of runs")
    flag("--seed", type=whole_number(0, MOST_SEED), default=0, help="decides every random draw of the run")
    flag("--validation", action="store_true",
         help="leave the test images alone, as for choosing options: a fifth of the training images of each class, "
              "the same under every --seed, is kept for testing in their place")
    flag("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: cuda where there is one")
    flag("--max_batch", type=whole_number(1),
         help=f"images per network pass; None: as many as free memory holds, at most {memory.MOST_IMAGES['cpu']:,} on "
              f"a CPU and {memory.MOST_IMAGES['cuda']:,} on a GPU")
    flag("--precision", choices=("fp32", "tf32", "bf16"),
         help="of convolutions and matrix products; None: fp32, but on a GPU tf32 for convolutions, as PyTorch has it; "
              "bf16: by autocast, with statistics and losses in fp32")
    flag("--compile", action="store_true", default=None,
         help=f"compile the networks; None: on a CPU, in runs of {batches.LONG_RUN:,} iterations or more, and for "
              f"evaluated networks that are trained on {batches.LONG_TRAINING:,} images or more, all epochs together")
    flag("--no_compile", dest="compile", action="store_false", default=argparse.SUPPRESS, help="never do")


def _add_images(parser: Parser):
    flag = parser.add_argument_group("synthetic images").add_argument
    flag("--Iteration", type=whole_number(0), default=20000, help="iterations; 0 evaluates the starting set")
    flag("--init", choices=("real", "whole", "noise"), default="real",
         help="what the images start from: real images, with --aug four small ones in each stored image; whole: one "
              "real image in each stored image, with --aug too; or noise")
    flag("--optim", choices=("sgd", "adam"), default="sgd", help="optimizer of the images; adam steps class by class")
    flag("--lr_img", type=finite_number(0, above=True), default=1.0, help="learning rate of the images")
    flag("--lr_decay", choices=("none", "cosine"), default="none",
         help="cosine: the images' learning rate falls to 0 over --Iteration")
    flag("--outer_loop", type=whole_number(1), default=1, help="image updates per iteration")
    flag("--visits", choices=("each", "joint"), default="each",
         help="a step of the images after each class, or one for all classes together (DM)")
    flag("--batch_real", type=whole_number(2), default=256, help="real images per class and update")
    flag("--ipc1_real", type=whole_number(0), default=0,
         help="with --ipc 1 and without --aug: match on this many of them, those with the lowest cross-entropy, and "
              "add cross-entropy only for misclassified synthetic images; 0: no such selection")
    flag("--soft_labels", type=finite_number(0, 1), default=0.0,
         help="part of the pool's mean prediction in the labels that networks are evaluated with; 0: classes alone")
    flag("--aug_num", type=int, choices=(1,), default=1, help="augmentations per batch")
    flag("--ij_selection", choices=("random",), default="random", help="how networks are chosen for matching")


def _add_loss(parser: Parser):
    flag = parser.add_argument_group("loss").add_argument
    flag("--nll_weight", type=finite_number(0), default=1.0, help="BACON: weight of the likelihood")
    flag("--sigma", choices=("published", "std"), default="published",
         help="BACON: standard deviation of the likelihood: exp(std of the real embeddings) as published, or the std "
              "itself")
    flag("--tv_weight", type=finite_number(0), default=0.8, help="BACON: weight of the total variation prior")
    flag("--clip_weight", type=finite_number(0), default=0.2, help="BACON: weight of the CLIP prior")
    flag("--prior_clip", choices=("published", "embedding"), default="published",
         help="BACON: the CLIP prior on softmaxed mean embeddings as published (always 0), or on the embeddings")
    switch(flag, "syn_ce", False, "add cross-entropy of the synthetic images on the pool network")
    flag("--ce_weight", type=finite_number(0), default=0.1,
         help="weight of the cross-entropy, times the pool network's accuracy in percent")
    flag("--embed_last", type=int, default=-1,
         help="feature layers of the embedding, as the end of a slice: 1000 all, -1 without the final pooling")


def _add_pool(parser: Parser):
    flag = parser.add_argument_group("pool of networks trained on real images").add_argument
    flag("--net_start", type=whole_number(1), default=3, help="networks in the pool at the start")
    flag("--net_num", type=whole_number(1), default=100,
         help="networks in the full pool; the oldest leaves, but as published never where this is below --net_start")
    flag("--net_generate_interval", type=whole_number(1), default=30, help="iterations between fresh networks")
    flag("--net_push_num", type=whole_number(1), default=1, help="fresh networks each time")
    flag("--train_net_num", type=whole_number(1), default=2, help="networks the images are matched on per outer loop")
    flag("--net_begin", type=whole_number(0), default=0, help="first pool position to match on, if over 10 remain")
    flag("--net_end", type=whole_number(0), default=100000, help="end of the pool positions to match on")
    flag("--fetch_net_num", type=whole_number(1), default=2, help="networks trained per iteration")
    flag("--model_train_steps", type=whole_number(0), default=10, help="training steps of each of these")
    flag("--trained_bs", type=whole_number(1), default=256, help="batch size of these steps")
    switch(flag, "net_decay", False, "train the pool with momentum 0.9 and weight decay 5e-4")
    flag("--pool", type=as_path, metavar="PATH",
         help="folder of networks that pretrain.py trained: they take the place of the pool, no network is trained, "
              "and the training accuracy kept with each weighs the cross-entropy; None: as published")
    flag("--pool_stages", type=whole_number(0), nargs="+", metavar="STEPS",
         help="with --pool: match on its networks after this many steps; None: after all that are kept")
    flag("--ce_stages", type=whole_number(0), nargs="+", metavar="STEPS",
         help="with --pool: take the cross-entropy from networks after so many steps; None: from that matched on")
    flag("--soft_stages", type=whole_number(0), nargs="+", metavar="STEPS",
         help="with --pool: take soft labels from networks after so many steps; None: as --pool_stages")
    flag("--pool_networks", type=whole_number(1), metavar="N", help="with --pool: its first N networks; None: all")


def _add_run(parser: Parser):
    flag = parser.add_argument_group("run").add_argument
    flag("--eval_interval", type=whole_number(1), default=100,
         help="iterations between evaluations; as published, each resets the accuracies of the pool, which weigh the "
              "cross-entropy, so it changes the images")
    switch(flag, "eval_start", False, "evaluate the images that the run starts from, too")
    flag("--checkpoint_minutes", type=finite_number(0), default=10.0,
         help="minutes between checkpoints; there is one after each evaluation, too")
    flag("--resume", metavar="PATH", type=checkpoint_to_resume,
         help="go on from this checkpoint, or auto: from the last in the result folder, if there is one")
    flag("--tensorboard", action="store_true", help="also write TensorBoard files")


def add_evaluation(parser: Parser):
    """The flags of the evaluation protocol, shared with evaluate.py."""
    flag = parser.add_argument_group("evaluation").add_argument
    flag("--eval_mode", choices=tuple(evaluation.MODES), default="S",
         help="networks to evaluate with: S, SS the one named by --model; C that and ConvNet; others vary the "
              "family (M), normalisation (B, N), width (W), depth (D), activation (A) or pooling (P)")
    flag("--num_eval", type=whole_number(1), default=20, help="fresh networks per evaluation")
    flag("--epoch_eval_train", type=whole_number(0), default=1000, help="epochs to train an evaluated network, less 1")
    flag("--batch_train", type=whole_number(1), default=256, help="batch size of its training")
    flag("--lr_net", type=finite_number(0, above=True), default=0.01, help="its learning rate, and that of the pool")
    flag("--dsa_strategy", type=accepted_by(augment.parse_strategy), default="color_crop_cutout_flip_scale_rotate",
         help="augmentations of DSA, joined by _, in distillation and evaluation; none for none")


def _check(parser: Parser, options: argparse.Namespace, method: methods.Method):
    """Refuses options that make no sense together."""
    if method.objective is None and options.Iteration:
        parser.error(f"--Iteration {options.Iteration}: --method {options.method} chooses its images once; "
                     "leave --Iteration out")
    if method.select and options.net_start != 1:
        parser.error(f"--net_start {options.net_start}: --method {options.method} chooses by the features of one "
                     "network; leave --net_start out")
    if networks.has_batch_norm(options.model) and options.visits != "joint":
        parser.error(f"--model {options.model}: batch normalisation mixes the classes of a batch, so it goes with a "
                     "joint step (--method DM) alone; choose another ConvNet variant")
    _check_pool(parser, options, method)
    trained = options.model_train_steps and (options.Iteration or method.select)
    if options.soft_labels and not options.pool and not trained:
        parser.error(f"--soft_labels {options.soft_labels:g}: under --method {options.method}, --model_train_steps "
                     f"{options.model_train_steps} and --Iteration {options.Iteration} no pool is trained to take them "
                     "from; leave --soft_labels out")
    weights = (options.nll_weight, options.tv_weight, options.clip_weight, options.syn_ce and options.ce_weight)
    if method.objective is methods.bacon and not any(weights):
        parser.error("--nll_weight, --tv_weight, --clip_weight: all are 0, so nothing is optimised; give one a weight")


def _check_pool(parser: Parser, options: argparse.Namespace, method: methods.Method):
    """Ends the program where --pool, or a flag that goes with it, does not go with the rest."""
    if options.pool and "pool" in method.recipe:
        parser.error(f"--pool: --method {options.method} matches on fresh networks, which are its method; leave --pool "
                     "out")
    if options.pool and networks.has_batch_norm(options.model):
        parser.error(f"--model {options.model}: batch normalisation would change the networks of --pool; choose "
                     "another ConvNet variant, or leave --pool out")
    if method.needs_pool and not options.pool:
        parser.error(f"--method {options.method}: it matches on networks trained beforehand; make them with "
                     f"pretrain.py --dataset {options.dataset} --model {options.model}, and name their folder with "
                     "--pool")
    for name in ("pool_stages", "ce_stages", "soft_stages", "pool_networks"):
        if getattr(options, name) and not options.pool and "pool" not in method.recipe:
            parser.error(f"--{name}: it chooses among networks trained beforehand; name their folder with --pool")
    if options.ce_stages and not options.syn_ce and method.objective:
        parser.error("--ce_stages: there is no cross-entropy to take from them; add --syn_ce")
    if options.soft_stages and not options.soft_labels:
        parser.error("--soft_stages: there are no soft labels to take from them; add --soft_labels")


def parse_options(description: str, arguments: list[str] | None = None,
          add_flags: Callable[[Parser], None] = lambda parser: None, by_method: dict[str, dict] | None = None,
          **defaults) -> argparse.Namespace:
    """Parses and checks the command line; a bad one ends the program with one line and exit code 2.

    `add_flags` adds those that a script has for itself; `by_method` holds its defaults under single methods.

    An option is the flag that is given, or else the method's recipe, the script's default, the method's
    default, the general one.
    """
    parser = build_parser(description, defaults)
    add_flags(parser)
    known = vars(parser.parse_args([])).keys()
    name = _method_named(parser, arguments)
    method = methods.find(name)
    unknown = (method.defaults | method.recipe).keys() - known
    if unknown:
        parser.error(f"--method {name}: unknown in its recipe: {', '.join(sorted(unknown))}")
    parser.set_defaults(**method.defaults | defaults | (by_method or {}).get(name, {}) | method.recipe)
    options = parser.parse_args(arguments)
    _check(parser, options, method)
    give_name(parser, options, run_files.run_folder)
    drop_dead_flags(parser, options)
    return options


def _method_named(parser: Parser, arguments: list[str] | None) -> str:
    """What --method says, before all else is parsed, because the other defaults (and --help) depend on it."""
    first = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--method", type=accepted_by(methods.find), default=parser.get_default("method"))
    return first.parse_known_args(arguments)[0].method


def replaced(options: argparse.Namespace, **changes) -> argparse.Namespace:
    """A copy of the options with these changes."""
    return argparse.Namespace(**vars(options) | changes)


def drop_dead_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Takes the DEAD_FLAGS that were given out of the options, with a note."""
    dead = [f"--{name}" for name in DEAD_FLAGS if vars(options).pop(name, None) is not None]
    if dead:
        print(f"{parser.prog}: note: {', '.join(dead)}: no effect, as in the published scripts", file=sys.stderr)
