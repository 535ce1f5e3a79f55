"""A run: the experiments of one command line, each distilled, evaluated and saved."""

import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from utils import data as datasets
from utils import device, evaluation, logs, options, storage
from utils.data import RealData
from utils.distill import Distillation
from utils.errors import UserError


def main(description: str, **defaults) -> None:
    """An entry script: parses the command line, runs it, and turns bad input into one line and exit code 2."""
    try:
        run(options.parse(description, **defaults))
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args) -> "Record":
    """Runs all experiments of a parsed command line and returns what they left."""
    device.keep_freed_memory()
    data = datasets.load(args.dataset, args.data_path, device.choose(args.device))
    record = Record(args, data)
    for experiment in range(args.num_exp):
        distil(Distillation(data, args, experiment), experiment, record)
    record.report()
    return record


def distil(distillation: Distillation, experiment: int, record: "Record") -> None:
    """One experiment: --Iteration updates, evaluated on the way and at the end."""
    args = distillation.options
    name = f"experiment {experiment + 1}/{args.num_exp}"
    images = args.train_net_num * args.outer_loop * distillation.data.num_classes * (
        args.batch_real + args.ipc * (4 if args.aug else 1))
    images += args.fetch_net_num * args.model_train_steps * args.trained_bs
    begun = time.monotonic()
    with logs.Progress(name, args.Iteration, images_per_step=images) as progress:
        for iteration in range(args.Iteration + 1):
            if iteration == args.Iteration or (iteration and iteration % args.eval_interval == 0):
                record.evaluate(distillation, experiment, iteration, time.monotonic() - begun)
                distillation.pool.reset_accuracies()
            if iteration < args.Iteration:
                terms = distillation.step(iteration)
                progress.update(lambda terms=terms: {key: value.item() for key, value in terms.items()})


class Record:
    """What a run leaves: the last and the best sets, pictures, metrics.jsonl and the options.

    "best" is chosen on test accuracy, as the published scripts do; the result is the last.
    """

    def __init__(self, args, data: RealData):
        self.args, self.data = args, data
        self.name = f"{args.method}_{args.dataset}_{args.model}_{args.ipc}ipc"
        self.folder = storage.make_folder(args.save_path / self.name)
        self.set_path = args.save_path / f"res_{self.name}.pt"
        self.best_path = args.save_path / f"res_{self.name}_best.pt"
        self.metrics_path = self.folder / "metrics.jsonl"
        storage.write_whole(self.metrics_path, lambda file: None)
        self.last: list[dict] = []
        self.best: list[dict] = []
        self.options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        self.versions = {"python": platform.python_version(), "torch": torch.__version__,
                         "torchvision": torchvision.__version__, "numpy": np.__version__}
        storage.write_json(self.folder / "options.json", {
            "command": sys.argv, "options": self.options, "versions": self.versions,
            "machine": machine(data.device), "date": time.strftime("%Y-%m-%d")})
        self.tensorboard = None
        if args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.tensorboard = SummaryWriter(self.folder)

    def evaluate(self, distillation: Distillation, experiment: int, iteration: int, seconds: float) -> None:
        """Evaluates the current set and saves it: as the last, and as the best where it is."""
        args, data = self.args, self.data
        stored = distillation.images.flatten(0, 1).detach().float().cpu().clone()
        labels = torch.arange(data.num_classes).repeat_interleave(args.ipc)
        images, targets = storage.expand(stored.to(data.device, data.dtype), labels.to(data.device),
                                         2 if args.aug else 1)
        with logs.Progress(f"evaluation at iteration {iteration}", args.num_eval * (args.epoch_eval_train + 1),
                           unit="epoch") as progress:
            accuracies = evaluation.evaluate(images, targets, data, args.model, args, distillation.draws,
                                             (iteration,), on_epoch=progress.update)
        entry = {"images": stored, "labels": labels, "iteration": iteration, "accuracies": accuracies}
        self._keep(entry, experiment)
        storage.save_picture(self.picture_path(experiment, iteration), data.pixels(stored), args.ipc)
        line = {"experiment": experiment, "iteration": iteration, "model": args.model, "accuracies": accuracies,
                "mean": float(np.mean(accuracies)), "std": float(np.std(accuracies)),
                "best_mean": float(np.mean(self.best[experiment]["accuracies"])),
                "best_iteration": self.best[experiment]["iteration"], "seconds": round(seconds, 1)}
        storage.append_json(self.metrics_path, line)
        if self.tensorboard:
            self.tensorboard.add_scalar(f"accuracy/experiment{experiment}", line["mean"], iteration)
            self.tensorboard.flush()
        print(f"experiment {experiment + 1}/{args.num_exp} iteration {iteration}: {percent(accuracies)} "
              f"({len(accuracies)} {args.model}), {logs.clock(seconds)}", flush=True)

    def picture_path(self, experiment: int, iteration: int) -> Path:
        return self.args.save_path / f"vis_{self.name}_exp{experiment}_iter{iteration}.png"

    def _keep(self, entry: dict, experiment: int) -> None:
        if len(self.last) == experiment:
            self.last.append(entry)
            self.best.append(entry)
        self.last[experiment] = entry
        if np.mean(entry["accuracies"]) > np.mean(self.best[experiment]["accuracies"]):
            self.best[experiment] = entry
        storage.save(self.set_path, self._contents(self.last, "last"))
        storage.save(self.best_path, self._contents(self.best, "best on test accuracy"))

    def _contents(self, entries: list[dict], chosen: str) -> dict:
        args, data = self.args, self.data
        return {
            "data": [[entry["images"], entry["labels"]] for entry in entries],
            "accs_all_exps": {args.model: [accuracy for entry in entries for accuracy in entry["accuracies"]]},
            "meta": {"method": args.method, "dataset": args.dataset, "ipc": args.ipc, "model": args.model,
                     "formation": 2 if args.aug else 1, "mean": list(data.mean), "std": list(data.std),
                     "class_names": data.class_names, "seed": args.seed, "chosen": chosen,
                     "iteration": [entry["iteration"] for entry in entries], "options": self.options,
                     "version": self.versions},
        }

    def accuracies(self, entries: list[dict]) -> list[float]:
        return [accuracy for entry in entries for accuracy in entry["accuracies"]]

    def report(self) -> None:
        """The closing lines: the result, the best beside it, and where the files are."""
        last, best = self.accuracies(self.last), self.accuracies(self.best)
        print(f"result: {percent(last)} (last iteration, {len(last)} {self.args.model}, "
              f"{len(self.last)} experiments)")
        print(f"best:   {percent(best)} (iteration chosen on test accuracy)")
        print(f"set: {self.set_path}  best set: {self.best_path}  records: {self.folder}")


def percent(accuracies: list[float]) -> str:
    """Mean and population standard deviation in percent, as the published scripts report them."""
    return f"{100 * np.mean(accuracies):.2f} +- {100 * np.std(accuracies):.2f} %"


def machine(of: torch.device) -> str:
    """The machine in words: the GPU's name, or the number of CPU threads."""
    if of.type == "cuda":
        return torch.cuda.get_device_name(of)
    return f"{platform.machine()} {of.type}, {torch.get_num_threads()} threads"
