"""Every command-line flag, once: name, default, help, and the check that refuses a bad value in one line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from . import augment, defaults, evaluation, methods, networks, published, run_files
from .command_line import (
    Parser,
    accepted_by,
    as_path,
    checkpoint_to_resume,
    finite_number,
    new_parser,
    switch,
    whole_number,
)
from .data import sources
from .networks import batches
from .system import memory
from .system.errors import UserError, say

# Flags of the published scripts that nothing there reads. They are taken so that its commands run.
DEAD_FLAGS = ("net_train_real", "no_net_train_real", "mismatch_lambda", "dis_metric", "inner_loop", "last",
              "mismatch_type", "weight_layer_index", "conf_path", "local_num", "local_weight")
# Where benchmark.py and compare.py start.
PUBLISHED_MNIST = {"dataset": "MNIST", "ipc": 10} | published.setting("BACON", "MNIST", 10)
DATASETS_ALSO = {"fmnist": "FashionMNIST", "tiny": "TinyImageNet", "tinyimagenet200": "TinyImageNet"}
MOST_SEED = 2**32 - 1  # that scikit-learn takes


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


def build_parser(description: str, defaults: dict) -> Parser:
    """The parser of an entry script; `defaults` holds what differs from the defaults below."""
    parser = new_parser(description)
    _add_task(parser)
    add_data(parser)
    add_evaluation(parser)
    _add_run(parser)
    _add_images(parser)
    _add_loss(parser)
    _add_pool(parser)
    for name in DEAD_FLAGS:
        parser.add_argument(f"--{name}", nargs="?", const=True, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(**defaults)
    return parser


def _add_task(parser: Parser):
    flag = parser.add_argument_group(
        "what to make", "The flags most used. Defaults alone are seldom the papers' setting.").add_argument
    flag("--published", action="store_true", default=argparse.SUPPRESS,
         help="the published command's setting for this --method, data set and --ipc; flags beside it replace its own")
    flag("--method", type=accepted_by(methods.find, methods.METHODS), default="BACON",
         help=f"{', '.join(methods.METHODS)}, or your own objective as module:function")
    flag("--ipc", type=whole_number(1), default=50, help="synthetic images per class")
    flag("--model", type=accepted_by(check_pool_network, networks.CONVNETS), default="ConvNet_GBN",
         help="ConvNet variant of the pool, and of evaluation mode S")
    switch(flag, "aug", False, "each stored image is a 2x2 formation of half-size images")
    flag("--Iteration", type=whole_number(0), default=20000, help="iterations; 0 evaluates the starting set")
    flag("--lr_img", type=finite_number(0, above=True), default=1.0, help="learning rate of the images")
    flag("--num_exp", type=whole_number(1), default=5, help="experiments, each a set of its own")


def add_data(parser: Parser):
    """The flags of what is read and computed on, shared with evaluate.py."""
    flag = parser.add_argument_group("data and files", "What is read, and where results go.").add_argument
    flag("--dataset", type=accepted_by(sources.check_form, sources.SOURCES, DATASETS_ALSO), action=_Imported,
         default="MNIST", help=f"{', '.join(sources.SOURCES)}, or your own as module:source")
    flag("--name", type=accepted_by(sources.check_own_name),
         help="what your own data are called in names of files, tables and cards (default: as their folder or source)")
    flag("--data_path", type=as_path, default="data",
         help="folder of the data sets, published files or <dataset>/{train,test}/<class>/; what is missing is "
              "downloaded")
    flag("--save_path", type=as_path, default="result", help="folder for sets, pictures and the files of runs")
    flag("--seed", type=whole_number(0, MOST_SEED), default=0, help="decides every random draw of the run")
    flag("--im_size", type=whole_number(1), help="side that images are resized to (default: the data set's own)")
    switch(flag, "zca", False, "whiten the images (ZCA)")
    flag("--validation", action="store_true",
         help="for choosing options: test on a fifth of the training images, always the same, which is kept for that")
    _add_machine(parser)


def _add_machine(parser: Parser):
    flag = parser.add_argument_group("machine", "Speed and memory. They change results by rounding alone.").add_argument
    flag("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto: cuda where there is one")
    flag("--max_batch", type=whole_number(1),
         help=f"images per network pass (default: what memory holds, at most {memory.MOST_IMAGES['cpu']:,} on a CPU, "
              f"{memory.MOST_IMAGES['cuda']:,} on a GPU)")
    flag("--precision", choices=("fp32", "tf32", "bf16"),
         help="of convolutions and matrix products; statistics and losses are fp32 (default: fp32, but on a GPU tf32 "
              "for convolutions)")
    switch(flag, "compile", None,
           f"compile the networks (default: on a CPU from {batches.LONG_RUN:,} iterations on, and to evaluate from "
           f"{batches.LONG_TRAINING:,} images on, all epochs together)")


def add_evaluation(parser: Parser):
    """The flags of the evaluation protocol, shared with evaluate.py."""
    flag = parser.add_argument_group(
        "evaluation", "Fresh networks are trained on a set and tested on real images.").add_argument
    flag("--num_eval", type=whole_number(1), default=20, help="fresh networks per evaluation")
    flag("--epoch_eval_train", type=whole_number(0), default=1000, help="epochs to train an evaluated network, less 1")
    flag("--eval_mode", choices=tuple(evaluation.MODES), default="S",
         help="networks to evaluate with: S, SS that of --model; C that and ConvNet; others vary family (M), "
              "normalisation (B, N), width (W), depth (D), activation (A), pooling (P)")
    flag("--batch_train", type=whole_number(1), default=256, help="batch size to train an evaluated network")
    flag("--lr_net", type=finite_number(0, above=True), default=0.01,
         help="learning rate of evaluated networks, and of the pool")
    flag("--dsa_strategy", type=accepted_by(augment.parse_strategy), default="color_crop_cutout_flip_scale_rotate",
         help="augmentations of DSA, joined by _, in distillation and evaluation; none for none")


def _add_run(parser: Parser):
    flag = parser.add_argument_group("run", "When a run evaluates, and how it goes on after a stop.").add_argument
    flag("--eval_interval", type=whole_number(1), default=100,
         help="iterations between evaluations; each resets the accuracies that weigh the cross-entropy, as published")
    switch(flag, "eval_start", False, "evaluate at iteration 0, too")
    flag("--resume", metavar="PATH", type=checkpoint_to_resume,
         help="go on from this checkpoint; auto: from the last in the result folder, if any")
    flag("--checkpoint_minutes", type=finite_number(0), default=10.0,
         help="minutes between checkpoints; each evaluation leaves one, too")
    flag("--tensorboard", action="store_true", help="also write TensorBoard files")


def _add_images(parser: Parser):
    flag = parser.add_argument_group("synthetic images", "What they start from, and how they move.").add_argument
    flag("--init", choices=("real", "whole", "noise"), default="real",
         help="start: real images, with --aug four in each stored image; whole: one in each, with --aug, too; or noise")
    flag("--optim", choices=("sgd", "adam"), default="sgd", help="optimizer of the images")
    flag("--lr_decay", choices=("none", "cosine"), default="none",
         help="cosine: --lr_img falls to 0 over --Iteration")
    flag("--outer_loop", type=whole_number(1), default=1, help="image updates per iteration")
    flag("--visits", choices=("each", "joint"), default="each",
         help="a step after each class, or one for all classes together (DM)")
    flag("--batch_real", type=whole_number(2), default=256, help="real images per class and update")
    flag("--ipc1_real", type=whole_number(0), default=0,
         help="with --ipc 1 and without --aug: match on so many real images, of the lowest cross-entropy, and add "
              "cross-entropy only for misclassified synthetic images; 0: on all")
    flag("--soft_labels", type=finite_number(0, 1), default=0.0,
         help="share of the pool's mean prediction in the labels, 0 to 1; 0: classes alone")
    flag("--aug_num", type=int, choices=(1,), default=1, help=argparse.SUPPRESS)  # no other value is published
    flag("--ij_selection", choices=("random",), default="random", help=argparse.SUPPRESS)


def _add_loss(parser: Parser):
    flag = parser.add_argument_group("loss", "The weights of its terms, and variants. A weight of 0 leaves a term "
                                             "out.").add_argument
    switch(flag, "syn_ce", False, "add cross-entropy of the synthetic images")
    flag("--ce_weight", type=finite_number(0), default=0.1,
         help="weight of the cross-entropy, times the network's accuracy in percent")
    flag("--nll_weight", type=finite_number(0), default=1.0, help="BACON: weight of the likelihood")
    flag("--tv_weight", type=finite_number(0), default=0.8, help="BACON: weight of the total variation prior")
    flag("--clip_weight", type=finite_number(0), default=0.2, help="BACON: weight of the CLIP prior")
    flag("--sigma", choices=("published", "std"), default="published",
         help="BACON: of the likelihood: exp(std of the real embeddings) as published, or that std")
    flag("--prior_clip", choices=("published", "embedding"), default="published",
         help="BACON: the CLIP prior on softmaxed means as published (always 0), or on the embeddings")
    flag("--embed_last", type=int, metavar="N", default=-1,
         help="layers of the embedding, as the end of a slice: 1000 all, -1 without the last pooling")


def _add_pool(parser: Parser):
    flag = parser.add_argument_group("pool", "The networks that images are matched on.").add_argument
    flag("--train_net_num", type=whole_number(1), default=2, help="networks the images are matched on per outer loop")
    flag("--model_train_steps", type=whole_number(0), default=10, help="training steps of each network in an iteration")
    flag("--fetch_net_num", type=whole_number(1), default=2, help="networks trained per iteration")
    flag("--trained_bs", type=whole_number(1), default=256, help="batch size of the pool's training steps")
    switch(flag, "net_decay", False, "train the pool with momentum 0.9 and weight decay 5e-4")
    flag("--net_num", type=whole_number(1), default=100,
         help="networks in the full pool, where the oldest leaves; below --net_start it never does, as published")
    flag("--net_start", type=whole_number(1), default=3, help="networks in the pool at the start")
    flag("--net_generate_interval", type=whole_number(1), default=30, help="iterations between fresh networks")
    flag("--net_push_num", type=whole_number(1), default=1, help="fresh networks each time")
    flag("--net_begin", type=whole_number(0), default=0, help="first pool position to match on, if over 10 remain")
    flag("--net_end", type=whole_number(0), default=100000, help="end of the pool positions to match on")
    flag("--pool", type=as_path,
         help="networks of pretrain.py, which take the place of the pool; none is trained")
    flag("--pool_stages", type=whole_number(0), nargs="+", metavar="STEPS",
         help="with --pool: match on networks after so many steps (default: all that are kept)")
    flag("--ce_stages", type=whole_number(0), nargs="+", metavar="STEPS",
         help="with --pool: cross-entropy of networks after so many steps (default: of that matched on)")
    flag("--soft_stages", type=whole_number(0), nargs="+", metavar="STEPS",
         help="with --pool: soft labels of networks after so many steps (default: as --pool_stages)")
    flag("--pool_networks", type=whole_number(1), help="with --pool: its first N networks (default: all)")


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
          **of_script) -> argparse.Namespace:
    """Parses and checks the command line; a bad one ends the program with one line and exit code 2.

    `add_flags` adds those that a script has for itself; `by_method` holds its defaults under single methods.

    An option is the flag that is given, or else under --published its setting, the method's recipe, the script's
    default, the method's default, the general one.
    """
    parser = build_parser(description, of_script)
    add_flags(parser)
    known = vars(parser.parse_args([])).keys()
    first = _said_first(parser, arguments, method=parser.get_default("method"), dataset=parser.get_default("dataset"))
    name, method = first.method, methods.find(first.method).on(first.dataset)
    unknown = (method.defaults | method.recipe).keys() - known
    if unknown:
        parser.error(f"--method {name}: unknown in its recipe: {', '.join(sorted(unknown))}")
    parser.set_defaults(**method.defaults | of_script | (by_method or {}).get(name, {}) | method.recipe)
    options = parser.parse_args(arguments)
    if "published" in options:
        parser.set_defaults(**_published_setting(parser, options))
        options = parser.parse_args(arguments)
        del options.published  # the run is that of the flags that it stands for
    _check(parser, options, method)
    give_name(parser, options, run_files.run_folder)
    drop_dead_flags(parser, options)
    return options


def parse_any(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """As `parse_options`, with the defaults of the script of the data set that --dataset names. It has to be there."""
    dataset = _said_first(Parser(), arguments, dataset=None).dataset
    options = parse_options(description, arguments, **defaults.of(dataset) if dataset else {})  # which may be --help
    if dataset is None:
        raise UserError(f"--dataset: name one of {', '.join(sources.SOURCES)}")
    return options


def _published_setting(parser: Parser, options: argparse.Namespace) -> dict:
    """What --published stands for; ends the program where nothing is published."""
    setting = published.setting(options.method, options.dataset, options.ipc)
    if setting is None:
        parser.error(f"--published: nothing is published for --method {options.method} --dataset {options.dataset} "
                     f"--ipc {options.ipc}; there is {published.listed(options.method)}")
    return setting


def published_options(method: str, dataset: str, ipc: int) -> argparse.Namespace | None:
    """The options of a published command; None where there is none."""
    if published.setting(method, dataset, ipc) is None:
        return None
    return parse_options("", ["--published", "--method", method, "--dataset", dataset, "--ipc", str(ipc)])


def _said_first(parser: Parser, arguments: list[str] | None, **defaults) -> argparse.Namespace:
    """What --method and --dataset say, before all else is parsed: the other defaults (and --help) depend on them."""
    first = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--method", type=accepted_by(methods.find, methods.METHODS))
    add_data(first)
    first.set_defaults(**defaults)
    return first.parse_known_args(arguments)[0]


def replaced(options: argparse.Namespace, **changes) -> argparse.Namespace:
    """A copy of the options with these changes."""
    return argparse.Namespace(**vars(options) | changes)


def drop_dead_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Takes the DEAD_FLAGS that were given out of the options, with a note."""
    dead = [f"--{name}" for name in DEAD_FLAGS if vars(options).pop(name, None) is not None]
    if dead:
        say(f"{parser.prog}: note: {', '.join(dead)}: no effect, as in the published scripts", file=sys.stderr)
