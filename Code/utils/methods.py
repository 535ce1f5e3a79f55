"""What --method names: an objective, where the images start, and the options that belong to the method.

One engine runs them all; this table is what tells them apart.
"""

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from . import losses, selections
from .system.errors import UserError
from .system.imports import import_named


@dataclass(frozen=True)
class Method:
    """A method as a table entry.

    objective: function of (z_syn (C, N, D), z_real (C, M, D), options) -> named terms, each (C,), one value for
        each of C classes; their sum is minimised. None: the images are those that the method starts from.
    select: function of (features (n, D), count, seed) -> positions of `count` real images of a class;
        None: the images start from what --init says.
    recipe: options that make the method what it is, over an entry script's defaults.
    recipe_on: more of the recipe on single data sets, by their names.
    defaults: other defaults of its published script, under an entry script's.
    needs_pool: it is meant for networks trained beforehand, so --pool must name them.
    A flag that is given comes before recipe and defaults.
    """

    objective: Callable | None = None
    select: Callable | None = None
    recipe: dict = field(default_factory=dict)
    recipe_on: dict[str, dict] = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)
    needs_pool: bool = False

    def on(self, dataset: str) -> "Method":
        """The method with the recipe that it has on a data set."""
        return replace(self, recipe=self.recipe | self.recipe_on.get(dataset, {}))


def bacon(z_syn: Tensor, z_real: Tensor, options) -> dict[str, Tensor]:
    """BACON's objective with the weights of the command line; `losses.bacon_terms` says what it is."""
    return losses.bacon_terms(z_syn, z_real, nll_weight=options.nll_weight, tv_weight=options.tv_weight,
                              clip_weight=options.clip_weight, prior_clip=options.prior_clip, sigma=options.sigma)


def _mean(z_syn: Tensor, z_real: Tensor, options) -> dict[str, Tensor]:
    return {"mean": losses.mean_matching(z_syn, z_real)}


def _mmd(z_syn: Tensor, z_real: Tensor, options) -> dict[str, Tensor]:
    return {"mmd": losses.maximum_mean_discrepancy(z_syn, z_real)}


def _cf(z_syn: Tensor, z_real: Tensor, options) -> dict[str, Tensor]:
    return {"cf": losses.characteristic_function(z_syn, z_real)}


# Distribution matching: one fresh random network in every iteration, one step for all classes.
# Source: DM (Zhao and Bilen, arXiv 2110.04181), the defaults of its published `main_DM.py`.
_DM = Method(
    _mean,
    recipe={"net_start": 1, "net_num": 1, "net_generate_interval": 1, "train_net_num": 1, "model_train_steps": 0,
            "embed_last": 1000, "visits": "joint", "lr_img": 1.0, "aug": False, "syn_ce": False, "ipc1_real": 0,
            "pool": None},
    defaults={"model": "ConvNet", "eval_interval": 2000, "eval_start": True})

# Real images, chosen once. The network whose features they are chosen by is a pool of one, trained beforehand.
_RANDOM = {"Iteration": 0, "init": "real", "aug": False, "ipc1_real": 0}
_SELECTION = {**_RANDOM, "net_start": 1, "fetch_net_num": 1, "model_train_steps": 2000, "net_decay": True,
              "embed_last": 1000}

# BACON's objective on networks trained beforehand, with what gave most in docs/pretrained.md, chosen on --validation:
# cross-entropy helps on CIFAR-10, a tenth of it on clothes, none of it on digits; and a mirrored digit is no digit.
_NO_FLIP = {"dsa_strategy": "color_crop_cutout_scale_rotate"}
_DIGITS = _NO_FLIP | {"syn_ce": False}
_FAST_BACON = Method(
    bacon, needs_pool=True,
    recipe={"aug": True, "lr_img": 0.2, "embed_last": 1000, "syn_ce": True, "ce_weight": 0.5, "train_net_num": 1,
            "net_decay": True, "sigma": "std", "Iteration": 300, "ipc1_real": 0},
    recipe_on={"MNIST": _DIGITS, "digits": _DIGITS, "FashionMNIST": {"ce_weight": 0.05}, "SVHN": _NO_FLIP},
    defaults={"model": "ConvNet"})

METHODS = {
    "BACON": Method(bacon),
    "FastBACON": _FAST_BACON,
    "IDM": Method(_mean),  # its published commands, in Command.txt, are nearly BACON's
    "DM": _DM,
    "MMD": Method(_mmd),
    "CF": Method(_cf),
    "random": Method(recipe=_RANDOM),
    "herding": Method(select=selections.herding, recipe=_SELECTION),
    "kcenter": Method(select=selections.k_center, recipe=_SELECTION),
    "kmeans": Method(select=selections.k_means, recipe=_SELECTION),
}


TAKEN = "ce", "pool"  # what the engine itself calls a term and an accuracy


def find(name: str) -> Method:
    """The method of this name, or the user's own: `module:function`, imported from the current directory.

    The function is an objective as `Method` describes it, or gives one tensor (C,); it runs under the flags'
    general defaults. A `Method` in its place brings a recipe with it. UserError where there is none.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise UserError(f"unknown method {name!r}; known: {', '.join(METHODS)}, or your own as module:function")
    found = import_named(name)
    if isinstance(found, Method):
        return found
    try:
        with contextlib.suppress(ValueError):  # of a callable that does not tell its arguments
            inspect.signature(found).bind("z_syn", "z_real", "options")
    except TypeError:  # not callable, or not with these
        raise UserError(f"{name!r} is neither a function of (z_syn, z_real, options) nor a Method") from None
    return Method(found)


def named_terms(result: dict[str, Tensor] | Tensor, classes: int) -> dict[str, Tensor]:
    """What an objective returned, as named terms; UserError for anything but one float for each class."""
    terms = dict(result) if isinstance(result, dict) else {"loss": result}
    for term, value in terms.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != (classes,) or not value.is_floating_point():
            raise UserError(f"--method: the objective's {term} is {shape}, not a tensor of floats ({classes},): "
                            f"one value for each of {classes} classes")
        if term in TAKEN:
            raise UserError(f"--method: the objective has a term {term!r}, as the engine has; give it another name")
    if terms and not any(value.requires_grad for value in terms.values()):
        raise UserError("--method: no term of the objective has a gradient; compute one from z_syn (z_real has none)")
    return terms
