"""What the scripts do, to be called from Python: keyword arguments are named as the flags, and have their defaults."""

import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import experiment, storage
from .command_line import as_words, new_parser
from .commands import evaluate as evaluate_command
from .methods import Method
from .options import build_parser, parse_any
from .system import logs
from .system.errors import UserError
from .system.signals import Stopped


@dataclass(frozen=True)
class Distilled:
    """What a run left.

    images, labels: the set of its first experiment, ready to train on as `load_synthetic` gives it, which gives those
        of the others from `path`, too.
    accuracies: by network, in 0..1, of every network that was trained on the sets of the last iteration.
    path: the saved set. meta: what it says of itself, such as class names, mean, std and options.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    accuracies: dict[str, list[float]]
    path: Path
    meta: dict = field(repr=False)

    def pixels(self) -> Tensor:
        """The images (N, C, H, W) as pixels in 0..1, to look at."""
        return storage.pixels(self.images, self.meta)


def distil(dataset: str, **flags) -> Distilled:
    """Distils a data set as its script does: `distil("digits", ipc=10)` is `BACON_digits.py --ipc 10`.

    flags: those of the scripts. A switch is True or False: aug=False is --no_aug. `method` may also be your own
    objective itself, a function at the top level of a module or notebook, or a `methods.Method` beside it.

    Writes the files of a run to `save_path` ("result"), and prints its lines. Raises UserError where a script would end
    with exit code 2. In the main thread, Ctrl-C or a notebook's interrupt keeps the work and raises KeyboardInterrupt,
    and other signals raise Stopped; resume="auto" goes on.
    """
    if callable(flags.get("method")) or isinstance(flags.get("method"), Method):
        flags["method"] = _name_of(flags["method"])
    options = parse_any("", as_words(build_parser("", {}), {"dataset": dataset, **flags}))
    try:
        with logs.above_bars():
            record = experiment.run(options)
    except Stopped as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt('the work is kept; resume="auto" goes on') from None
        raise
    saved = record.saved()
    images, labels = storage.ready(saved)[0]
    return Distilled(images, labels, saved["accs_all_exps"], record.set_path, saved["meta"])


def _name_of(method: Callable | Method) -> str:
    """module:name, as --method takes it; UserError for what cannot be found by that again."""
    function = method.objective if isinstance(method, Method) else method
    module = getattr(function, "__module__", None)
    for name, found in list(vars(sys.modules.get(module, object)).items()):
        if found is method:
            return f"{module}:{name}"
    raise UserError(f"method={getattr(function, '__qualname__', function)}: define it, with def or as a Method beside "
                    "its function, at the top level of a module or notebook")


def evaluate(images: Tensor | np.ndarray | list, labels: Tensor | np.ndarray | list, **flags) -> dict[str, list[float]]:
    """Trains fresh networks on a set and tests them on the real test images of a data set, as evaluate.py does.

    images (N, C, H, W): normalised, or what `pixels` says; aug=True where they are 2x2 formations. labels: (N,), or
    (N, K) for probabilities. Both are tensors, arrays or lists. flags: those of evaluate.py, but for what names a set
    and --fair: dataset="CIFAR10", model="ConvNet", num_eval=5, epoch_eval_train=1000. Nothing is written but to a
    `save_path` that is given.

    Returns the test accuracies, in 0..1, of the networks by name. Raises UserError where evaluate.py would end with
    exit code 2.
    """
    parser = new_parser("")
    evaluate_command.add_protocol(parser)
    parser.set_defaults(save_path=None, synthetic="the set", fair=False)
    options = parser.parse_args(as_words(parser, flags))
    with logs.above_bars():
        results = evaluate_command.run(options, _saved(images, labels))
    return {line["model"]: line["accuracies"] for line in results}


def _tensor(part: Tensor | np.ndarray | list) -> Tensor:
    """A tensor on the CPU, also of arrays whose strides or order of bytes PyTorch lacks, and of lists of either."""
    if isinstance(part, list | tuple) and any(isinstance(item, Tensor | np.ndarray) for item in part):
        return torch.stack([_tensor(item) for item in part])
    if isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part):
        raise ValueError("a masked array has values that are none; fill them in")
    if isinstance(part, np.ndarray):
        part = np.ascontiguousarray(part, part.dtype.newbyteorder("="))
    return torch.as_tensor(part).detach().cpu()


def _saved(images: Tensor | np.ndarray | list, labels: Tensor | np.ndarray | list) -> dict:
    """A set in memory as `storage.load` gives one of others; UserError where it is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of arrays that cannot be written to
            pair = [_tensor(part) for part in (images, labels)]
        return storage.validated({"data": [pair]}, raw=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"images, labels: not a set ({error})") from None
