"""A run: the experiments of one command line, each distilled, evaluated and saved."""

import contextlib
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from utils import checkpoint, device, distill, evaluation, files, logs, options, processes
from utils import data as datasets
from utils.data import RealData
from utils.distill import Distillation
from utils.errors import UserError
from utils.interrupts import Interrupts, Stopped, ending_on_sigterm
from utils.networks import get_network
from utils.record import Record


def main(description: str, **defaults) -> None:
    """An entry script: parses the command line and runs it."""
    with reported():
        run(options.parse(description, **defaults))


@contextlib.contextmanager
def reported(alone: bool = False):
    """Around a whole script: bad input and signals end it with one line and the exit code that belongs to them.

    alone: it cannot share its work with others, which torchrun would start.
    """
    try:
        if alone and processes.started_by_torchrun():
            raise UserError("torchrun: this script runs in one process alone; start it with python3")
        with (open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(logs.Output(sys.stdout or nowhere)),
              ending_on_sigterm()):
            yield
    except (UserError, processes.Lost) as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if processes.rank() == 0:
            print(f"{Path(sys.argv[0]).name}: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:  # where no `Interrupts` notes it
        print(f"{Path(sys.argv[0]).name}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def run(args) -> Record:
    """Runs all experiments of a parsed command line, or what is left of them, and returns what they left."""
    device.keep_freed_memory()
    with processes.joined(device.choose(args.device)), device.memory_accounted(args):
        with processes.first_goes_first():
            data = load_data(args)
        check(args, data)
        record = Record(args, data)
        with files.locked(record.folder), Interrupts() as interrupts:
            state = processes.first_decides(
                lambda: checkpoint.find(record.folder, args.resume, record.options))
            record.begin(state)
            for experiment in range(state["experiment"] if state else 0, args.num_exp):
                distil(experiment, record, interrupts, state)
                state = None
            record.end()
    return record


def load_data(args) -> RealData:
    """The data set that a command line names, on its device."""
    return datasets.load(args.dataset, args.data_path, device.choose(args.device), args.im_size, args.zca, args.seed,
                         args.validation)


def check(args, data: RealData) -> None:
    """UserError where options, data and networks do not go together, before anything is computed or written."""
    distill.check(data, args)
    check_networks([args.model, *evaluation.models(args.eval_mode, args.model)], data)


def check_networks(models: list[str], data: RealData) -> None:
    """UserError where a network does not fit the images."""
    for model in models:
        with torch.device("meta"):  # where a network costs nothing
            get_network(model, *data.network_shape)


def distil(experiment: int, record: Record, interrupts: Interrupts, state: dict | None) -> None:
    """One experiment: --Iteration updates, evaluated on the way and at the end.

    state: the checkpoint to go on from, if it is one of this experiment.
    """
    args = record.args
    first, begun = 0, time.monotonic()
    distillation = Distillation(record.data, args, experiment)
    if state and state["distillation"]:
        with checkpoint.fitting():
            distillation.restore(state["distillation"])
        first, begun = state["iteration"], begun - state["seconds"]

    progress = logs.Progress(f"experiment {experiment + 1}/{args.num_exp}", args.Iteration, first=first,
                             images_per_step=distillation.images_per_step())

    def seconds() -> float:
        return time.monotonic() - begun - progress.paused_for  # without evaluations

    def save(iteration: int) -> None:
        distillation.check_finite()
        record.checkpoint(experiment, iteration, seconds(), distillation.state())

    with progress:
        for iteration in range(first, args.Iteration + 1):
            due = iteration == args.Iteration or (
                args.eval_start if iteration == 0 else iteration % args.eval_interval == 0)
            if due and not record.has(experiment, iteration):
                distillation.check_finite()
                try:
                    with progress.paused():
                        record.evaluate(distillation, experiment, iteration, seconds(), interrupts.check)
                except Exception:  # such as a signal or too little memory
                    if not record.has(experiment, iteration):
                        save(iteration)
                    raise
                distillation.pool.reset_accuracies()
                if iteration < args.Iteration:
                    save(iteration)
            if iteration < args.Iteration:
                terms = distillation.step(iteration)
                record.note_losses(experiment, iteration, terms)
                progress.update(lambda terms=terms: shown(distillation, terms))
                stopping = processes.agree(interrupts.received)
                if stopping or record.checkpoint_is_due():
                    save(iteration + 1)
                if stopping:
                    processes.wait_for_all()  # that the first has written
                    raise Stopped(stopping)
    record.checkpoint(experiment + 1)


def shown(distillation: Distillation, terms: dict[str, Tensor]) -> dict[str, float]:
    """The numbers of a progress line. While the device is waited for, losses that are not finite are found, too."""
    distillation.check_finite()
    return {name: value.item() for name, value in terms.items()}
