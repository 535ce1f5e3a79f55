"""A run: the experiments of one command line, each distilled, evaluated and saved."""

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from utils import data as datasets
from utils import device, evaluation, logs, options, storage
from utils.data import RealData
from utils.distill import Distillation
from utils.errors import in_one_line


def main(description: str, **defaults) -> None:
    """An entry script: parses the command line, runs it, and turns bad input into one line and exit code 2."""
    with in_one_line():
        run(options.parse(description, **defaults))


def run(args) -> "Record":
    """Runs all experiments of a parsed command line and returns what they left."""
    device.keep_freed_memory()
    data = load_data(args)
    record = Record(args, data)
    for experiment in range(args.num_exp):
        distil(data, args, experiment, record)
    record.report()
    return record


def load_data(args) -> RealData:
    """The data set that a command line names, on its device."""
    return datasets.load(args.dataset, args.data_path, device.choose(args.device), args.im_size, args.zca, args.seed)


def distil(data: RealData, args, experiment: int, record: "Record") -> None:
    """One experiment: --Iteration updates, evaluated on the way and at the end."""
    begun = time.monotonic()
    distillation = Distillation(data, args, experiment)
    with logs.Progress(f"experiment {experiment + 1}/{args.num_exp}", args.Iteration,
                       images_per_step=distillation.images_per_step()) as progress:
        for iteration in range(args.Iteration + 1):
            if iteration == args.Iteration or (iteration and iteration % args.eval_interval == 0):
                with progress.paused():
                    seconds = time.monotonic() - begun - progress.paused_for  # without earlier evaluations
                    record.evaluate(distillation, experiment, iteration, seconds)
                distillation.pool.reset_accuracies()
            if iteration < args.Iteration:
                terms = distillation.step(iteration)
                progress.update(lambda terms=terms: {name: value.item() for name, value in terms.items()})


def run_name(args) -> str:
    """What the files of a run are called by."""
    return f"{args.method.replace(':', '.')}_{args.dataset}_{args.model}_{args.ipc}ipc"


class Record:
    """What a run leaves: the last and the best sets, pictures, metrics.jsonl and the options.

    "best" is chosen on test accuracy, as the published scripts do; the result is the last.
    """

    def __init__(self, args, data: RealData):
        self.args, self.data = args, data
        self.models = evaluation.models(args.eval_mode, args.model)
        self.name = run_name(args)
        self.folder = storage.make_folder(args.save_path / self.name)
        self.set_path = args.save_path / f"res_{self.name}.pt"
        self.best_path = args.save_path / f"res_{self.name}_best.pt"
        self.metrics_path = self.folder / "metrics.jsonl"
        storage.write_whole(self.metrics_path, lambda file: None)
        self.last: list[Entry] = []
        self.best: list[Entry] = []
        self.options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        self.versions = {"python": platform.python_version(), "torch": str(torch.__version__),
                         "torchvision": torchvision.__version__, "numpy": np.__version__}
        storage.write_json(self.folder / "options.json", {
            "command": sys.argv, "options": self.options, "versions": self.versions,
            "machine": device.describe(data.device), "date": time.strftime("%Y-%m-%d")})
        self.tensorboard = None
        if args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.tensorboard = SummaryWriter(self.folder)

    def evaluate(self, distillation: Distillation, experiment: int, iteration: int, seconds: float) -> None:
        """Evaluates the current set and saves it: as the last, and as the best where it is."""
        args, data = self.args, self.data
        stored = distillation.images.flatten(0, 1).float().cpu()
        labels = torch.arange(data.num_classes).repeat_interleave(args.ipc)
        images, targets = storage.expand(stored, labels, 2 if args.aug else 1)
        epochs = len(self.models) * args.num_eval * (args.epoch_eval_train + 1)
        with logs.Progress(f"evaluation at iteration {iteration}", epochs, unit="epoch") as progress:
            accuracies = {model: evaluation.evaluate(images, targets, data, model, args, distillation.draws,
                                                     (iteration,), on_epoch=progress.update)
                          for model in self.models}
        self._keep(Entry(stored.clone(), labels, iteration, accuracies), experiment)
        storage.save_picture(self.picture_path(experiment, iteration), data.pixels(stored), args.ipc)
        self._log(experiment, seconds)

    def _keep(self, entry: "Entry", experiment: int) -> None:
        if len(self.last) == experiment:
            self.last.append(entry)
            self.best.append(entry)
        self.last[experiment] = entry
        if entry.mean() > self.best[experiment].mean():
            self.best[experiment] = entry
        storage.save(self.set_path, self._contents(self.last, "last"))
        storage.save(self.best_path, self._contents(self.best, "best on test accuracy"))

    def _log(self, experiment: int, seconds: float) -> None:
        entry, best = self.last[experiment], self.best[experiment]
        for model, accuracies in entry.accuracies.items():
            storage.append_json(self.metrics_path, {
                "experiment": experiment, "iteration": entry.iteration, "model": model, "accuracies": accuracies,
                "mean": float(np.mean(accuracies)), "std": float(np.std(accuracies)),
                "best_mean": float(np.mean(best.accuracies[model])), "best_iteration": best.iteration,
                "seconds": round(seconds, 1)})
            if self.tensorboard:
                tag = f"accuracy/{model}/experiment{experiment}"
                self.tensorboard.add_scalar(tag, float(np.mean(accuracies)), entry.iteration)
                self.tensorboard.flush()
            print(f"experiment {experiment + 1}/{self.args.num_exp} iteration {entry.iteration}: {percent(accuracies)} "
                  f"({len(accuracies)} {model}), {logs.clock(seconds)}", flush=True)

    def _contents(self, entries: list["Entry"], chosen: str) -> dict:
        args, data = self.args, self.data
        return {
            "data": [[entry.images, entry.labels] for entry in entries],
            "accs_all_exps": {model: self.accuracies(entries, model) for model in self.models},
            "meta": {"method": args.method, "dataset": args.dataset, "ipc": args.ipc, "model": args.model,
                     "formation": 2 if args.aug else 1, "mean": list(data.mean), "std": list(data.std),
                     "class_names": data.class_names, "seed": args.seed, "chosen": chosen,
                     "zca": vars(data.whitening.to("cpu")) if data.whitening else None,
                     "iteration": [entry.iteration for entry in entries], "options": self.options,
                     "version": self.versions},
        }

    def accuracies(self, entries: list["Entry"], model: str) -> list[float]:
        """The accuracies of one network over all experiments."""
        return [accuracy for entry in entries for accuracy in entry.accuracies[model]]

    def picture_path(self, experiment: int, iteration: int) -> Path:
        return self.args.save_path / f"vis_{self.name}_exp{experiment}_iter{iteration}.png"

    def report(self) -> None:
        """The closing lines: the result, the best beside it, and where the files are."""
        for model in self.models:
            last, best = self.accuracies(self.last, model), self.accuracies(self.best, model)
            print(f"result: {percent(last)} (last iteration, {len(last)} {model} over {len(self.last)} experiments)")
            print(f"best:   {percent(best)} (iteration chosen on test accuracy)")
        print(f"set: {self.set_path}  best set: {self.best_path}  records: {self.folder}")


@dataclass
class Entry:
    """An evaluated set: images as stored, labels, its iteration, and accuracies by network."""

    images: Tensor
    labels: Tensor
    iteration: int
    accuracies: dict[str, list[float]]

    def mean(self) -> float:
        return float(np.mean(list(self.accuracies.values())))


def percent(accuracies: list[float]) -> str:
    """Mean and population standard deviation in percent, as the published scripts report them."""
    return f"{100 * np.mean(accuracies):.2f} +- {100 * np.std(accuracies):.2f} %"
