"""A run: the experiments of one command line, each distilled, evaluated and saved."""

import contextlib
import time
from collections.abc import Callable

import torch
from torch import Tensor

from . import augment, checkpoint, distill, evaluation, storage
from .command_line import in_words
from .data import RealData, load_data, sources
from .distill import Distillation
from .forecast import Forecast, is_evaluated
from .networks import get_network
from .options import parse_options, published_options
from .record import EvaluatedSet, Record
from .system import device, distributed, files, logs, memory
from .system.errors import UserError, say
from .system.reporting import reported
from .system.signals import Interrupts, Stopped

# Options that move no accuracy, but for chance: how a run is made, the seed, and how many sets and networks are tried.
BESIDE = (*checkpoint.FREE_ON_RESUME, "seed", "num_exp", "num_eval", "eval_start")


def main(description: str, **defaults) -> None:
    """An entry script: parses the command line and runs it."""
    with reported():
        run(parse_options(description, **defaults))


def run(options) -> Record:
    """Runs all experiments of a parsed command line, or what is left of them, and returns what they left."""
    memory.keep_freed_memory()
    with distributed.process_group(device.find(options.device)), memory_accounted(options, resumable=True):
        with distributed.main_process_first():
            data = load_data(options)
        check(options, data)
        say_differences(options)
        record = Record(options, data)
        with files.locked(record.folder), Interrupts() as interrupts:
            state = distributed.broadcast_object(
                lambda: checkpoint.find(record.folder, options.resume, record.saved_options))
            record.keep_networks(state)
            record.begin(state)
            forecast = Forecast(options, data.device)
            for experiment in range(state["experiment"] if state else 0, options.num_exp):
                distil(experiment, record, interrupts, forecast, state)
                state = None
            record.end()
    return record


def say_differences(options) -> None:
    """Prints in what moves numbers a run differs from the published setting of its data set and IPC, if it does."""
    published = published_options(options.method, options.dataset, options.ipc)
    if published is None:
        return
    published.im_size = options.im_size and sources.find(options.dataset).size
    if not distill.selected(published) and not distill.selected(options):
        published.ipc1_real = options.ipc1_real
    differ = [f"--{name} {in_words(value)} -> {in_words(vars(options)[name])}"
              for name, value in vars(published).items() if name not in BESIDE and value != vars(options)[name]]
    if differ:
        say(f"note: not the published setting (published -> here): {', '.join(differ)}; --published sets all "
            "that is not given")


@contextlib.contextmanager
def memory_accounted(options, resumable: bool):
    """Around the work of a command line: says which options need less memory, and prints the peak at its end.

    At its start, it prints that --precision bf16 is slow here, if it is.
    """
    device.say_if_slow(device.find(options.device), options.precision)
    lower = tuple(name for name in ("trained_bs", "batch_train", "batch_real", "im_size")
                  if getattr(options, name, None))
    with device.all_operations(), memory.enough_memory(options.max_batch, resumable, lower):
        yield
    say(f"peak memory: {memory.peak_in_words(device.find(options.device))}")


def check(options, data: RealData) -> None:
    """UserError where options, data and networks do not go together, before anything is computed or written."""
    distill.check(data, options)
    check_networks([options.model, *evaluation.models(options.eval_mode, options.model)], data)


def check_networks(models: list[str], data: RealData) -> None:
    """UserError where a network does not fit the images."""
    for model in models:
        with torch.device("meta"):  # where a network costs nothing
            get_network(model, *data.network_shape)


def distil(experiment: int, record: Record, interrupts: Interrupts, forecast: Forecast, state: dict | None) -> None:
    """One experiment: --Iteration updates, evaluated on the way and at the end.

    state: the checkpoint to go on from, if it is one of this experiment.
    """
    options = record.options
    first, begun = 0, time.monotonic()
    distillation = Distillation(record.data, options, experiment)
    if state and state["distillation"]:
        with checkpoint.fitting():
            distillation.restore(state["distillation"])
            if state["iteration"] and not distillation.pool.members:
                raise ValueError("its pool is empty")
        first, begun = state["iteration"], begun - state["seconds"]

    progress = logs.Progress(f"experiment {experiment + 1}/{options.num_exp}", options.Iteration, first=first,
                             images_per_step=distillation.images_per_step())

    def seconds() -> float:
        return time.monotonic() - begun - progress.paused_for  # without evaluations

    def save(iteration: int) -> None:
        distillation.check_finite()
        record.checkpoint(experiment, iteration, seconds(), distillation.state())

    with progress:
        for iteration in range(first, options.Iteration + 1):
            if is_evaluated(options, iteration) and not record.has(experiment, iteration):
                distillation.check_finite()
                took = seconds()
                try:
                    with progress.paused():
                        started = time.monotonic()
                        record.add(evaluate_set(distillation, iteration, record.models, interrupts.check), experiment,
                                   took)
                        forecast.evaluated(experiment, iteration, time.monotonic() - started)
                except Exception:  # such as a signal or too little memory
                    if not record.has(experiment, iteration):
                        save(iteration)
                    raise
                distillation.pool.reset_accuracies()
                if iteration < options.Iteration:
                    save(iteration)
            if iteration < options.Iteration:
                terms = distillation.step(iteration)
                record.keep_losses(experiment, iteration, terms)
                progress.update(lambda terms=terms: shown(distillation, terms))
                forecast.iterated(experiment, iteration + 1, seconds, distillation.check_finite)
                stopping = distributed.all_reduce_max(interrupts.received)
                if stopping or record.checkpoint_is_due():
                    save(iteration + 1)
                if stopping:
                    distributed.barrier()  # that the first has written
                    raise Stopped(stopping)
    record.checkpoint(experiment + 1)


def evaluate_set(distillation: Distillation, iteration: int, models: list[str],
                 on_epoch: Callable[[], None]) -> EvaluatedSet:
    """Trains networks on the current images, and tests them. `on_epoch` is called after each epoch of each network."""
    options, data = distillation.options, distillation.data
    stored, labels = storage.labelled(distillation.images.float().cpu())
    images, targets = storage.expand(stored, labels, augment.formation(options.aug))
    soft = distillation.soft_labels(images, targets).float().cpu() if options.soft_labels else None
    if soft is not None and not soft.isfinite().all():
        raise UserError(f"--soft_labels {options.soft_labels:g}: a network of the pool has diverged, so its labels are "
                        "not finite; start anew with another --save_path and a lower --lr_net")
    networks = len(models) * sum(distributed.is_own_turn(turn) for turn in range(options.num_eval))
    with logs.Progress(f"evaluation at iteration {iteration}", networks * (options.epoch_eval_train + 1),
                       unit="epoch") as progress:
        def count_epoch():
            progress.update()
            on_epoch()

        accuracies = {model: evaluation.evaluate(images, targets if soft is None else soft, data, model, options,
                                                 distillation.draws, (iteration,), count_epoch)
                      for model in models}
    return EvaluatedSet(stored.clone(), labels, iteration, accuracies, soft)


def shown(distillation: Distillation, terms: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of a progress line. While the device is waited for, losses that are not finite are found, too."""
    distillation.check_finite()
    return {name: value.item() for name, value in terms.items()}
