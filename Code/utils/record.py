"""What a run leaves: sets, pictures, metrics, losses and options, and the words for an accuracy."""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from utils import checkpoint, device, evaluation, files, logs, processes, storage
from utils.data import RealData
from utils.distill import Distillation
from utils.errors import UserError

LOSS_LINES = 200  # lines of an experiment in losses.jsonl


def in_file_names(method: str) -> str:
    """A method as names of files have it; not all systems take the colon of one's own."""
    return method.replace(":", ".")


def run_name(args) -> str:
    """What the files of a run are called by."""
    return f"{in_file_names(args.method)}_{args.dataset}_{args.model}_{args.ipc}ipc"


def run_folder(args) -> Path:
    """The folder with the records of a run."""
    return args.save_path / run_name(args)


def set_path(records: Path) -> Path:
    """The set of the run whose records are in this folder."""
    return records.with_name(f"res_{records.name}.pt")


def metrics_path(records: Path) -> Path:
    """The accuracies of the run whose records are in this folder, a line for each network of each evaluation."""
    return records / "metrics.jsonl"


def records_of(path: Path) -> Path:
    """The folder with the records of the run that made this set."""
    return path.with_name(path.stem.removeprefix("res_"))


def is_finished(iterations: list[int], options: dict) -> bool:
    """Whether sets of these iterations, one for each experiment, are all that a run of these options is to make."""
    return iterations == [options["Iteration"]] * options["num_exp"]


def plain(args) -> dict:
    """The options as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def circumstances(of: torch.device) -> dict[str, str | list[str]]:
    """What a figure needs beside it: the command, the machine and the date."""
    return {"command": sys.argv, "machine": device.describe(of), "date": time.strftime("%Y-%m-%d")}


class Record:
    """What a run leaves: the last and the best sets, pictures, metrics.jsonl, losses.jsonl and the options.

    "best" is chosen on test accuracy, as the published scripts do; the result is the last.
    """

    def __init__(self, args, data: RealData):
        self.args, self.data = args, data
        self.checksum = data.checksum()
        self.models = evaluation.models(args.eval_mode, args.model)
        self.name = run_name(args)
        self.folder = files.make_folder(run_folder(args))
        self.set_path = set_path(self.folder)
        self.best_path = args.save_path / f"res_{self.name}_best.pt"
        self.metrics_path = metrics_path(self.folder)
        self.losses_path = self.folder / "losses.jsonl"
        self.last: list[Entry] = []
        self.best: list[Entry] = []
        self.metrics: list[dict] = []
        self.losses: list[dict] = []
        self.unread: list[tuple[int, int, dict[str, Tensor]]] = []  # experiment, iteration, terms on the device
        self.options = plain(args)
        self.options.pop("resume")  # a resumed run leaves the same set
        self.versions = {"python": platform.python_version(), "torch": str(torch.__version__),
                         "torchvision": torchvision.__version__, "numpy": np.__version__}
        self.tensorboard = None
        self.checkpointed = time.monotonic()

    def begin(self, state: dict | None) -> None:
        """Makes the folder ready for a new run, or puts it back to where the checkpoint `state` was written."""
        results = self.set_path.name, self.best_path.name, f"vis_{self.name}_exp*_iter*.png"
        if state:
            if state["data"] != self.checksum:
                raise UserError(f"--data_path {self.args.data_path}: its images are not those that the run began with; "
                                "bring them back, or start a new run with another --save_path")
            with checkpoint.fitting():
                self.last, self.best = ([Entry(**entry) for entry in state[kind]] for kind in ("last", "best"))
            self.metrics, self.losses = state["metrics"], state["losses"]
            checkpoint.settle(self.folder)
            print(f"resumed: {state['experiment']} of {self.args.num_exp} experiments are finished, the next is at "
                  f"iteration {state['iteration']}", flush=True)
        else:
            files.remove(self.folder, *checkpoint.NAMES)
            files.remove(self.args.save_path, *results)
        files.remove_temporary(self.folder, "*")
        files.remove_temporary(self.args.save_path, *results)
        files.write_json(self.folder / "options.json", {
            **circumstances(self.data.device), "options": self.options, "versions": self.versions})
        files.write_json_lines(self.metrics_path, self.metrics)
        files.write_json_lines(self.losses_path, self.losses)
        if self.last:
            self._save_sets()
        if self.args.tensorboard:
            self._begin_tensorboard()

    @processes.first_only
    def _begin_tensorboard(self) -> None:
        """Its records are written anew, so that a resumed run has no point twice."""
        from torch.utils.tensorboard import SummaryWriter
        for path in self.folder.glob("events.out.tfevents.*"):
            path.unlink()
        self.tensorboard = SummaryWriter(self.folder)
        for line in self.metrics:
            self._add_point(line)

    def has(self, experiment: int, iteration: int) -> bool:
        """Whether this set has been evaluated."""
        return len(self.last) > experiment and self.last[experiment].iteration == iteration

    def checkpoint_is_due(self) -> bool:
        return time.monotonic() - self.checkpointed >= 60 * self.args.checkpoint_minutes

    def checkpoint(self, experiment: int, iteration: int = 0, seconds: float = 0.0,
                   distillation: dict | None = None) -> None:
        """Keeps all that is needed to go on with this experiment after `iteration` updates.

        distillation: what `Distillation.state` gives; None where the experiment has not begun.
        """
        self._read_losses()
        checkpoint.write(self.folder, {
            "options": self.options, "data": self.checksum, "experiment": experiment, "iteration": iteration,
            "seconds": seconds, "distillation": distillation, "metrics": self.metrics, "losses": self.losses,
            "last": [vars(entry) for entry in self.last], "best": [vars(entry) for entry in self.best]})
        self.checkpointed = time.monotonic()

    def note_losses(self, experiment: int, iteration: int, terms: dict[str, Tensor]) -> None:
        """Keeps the terms of about LOSS_LINES iterations of an experiment; until a checkpoint nobody waits for them."""
        if iteration % max(1, self.args.Iteration // LOSS_LINES) == 0:
            self.unread.append((experiment, iteration, terms))

    def _read_losses(self) -> None:
        self.losses += [{"experiment": experiment, "iteration": iteration,
                         "terms": {name: value.item() for name, value in terms.items()}}
                        for experiment, iteration, terms in self.unread]
        self.unread.clear()
        files.write_json_lines(self.losses_path, self.losses)

    def evaluate(self, distillation: Distillation, experiment: int, iteration: int, seconds: float,
                 on_epoch: Callable[[], None]) -> None:
        """Evaluates the current set and saves it: as the last, and as the best where it is."""
        args, data = self.args, self.data
        stored, labels = storage.labelled(distillation.images.float().cpu())
        images, targets = storage.expand(stored, labels, 2 if args.aug else 1)
        soft = distillation.soft_labels(images, targets).float().cpu() if args.soft_labels else None
        targets = targets if soft is None else soft
        networks = len(self.models) * sum(processes.own(turn) for turn in range(args.num_eval))
        epochs = networks * (args.epoch_eval_train + 1)
        with logs.Progress(f"evaluation at iteration {iteration}", epochs, unit="epoch") as progress:
            def count_epoch():
                progress.update()
                on_epoch()

            accuracies = {model: evaluation.evaluate(images, targets, data, model, args, distillation.draws,
                                                     (iteration,), count_epoch)
                          for model in self.models}
        self._keep(Entry(stored.clone(), labels, iteration, accuracies, soft), experiment)
        storage.save_picture(self.picture_path(experiment, iteration), data.pixels(stored), args.ipc)
        self._log(experiment, seconds)
        self._save_sets()

    def _keep(self, entry: "Entry", experiment: int) -> None:
        if len(self.last) == experiment:
            self.last.append(entry)
            self.best.append(entry)
        self.last[experiment] = entry
        if entry.mean() > self.best[experiment].mean():
            self.best[experiment] = entry

    def _save_sets(self) -> None:
        """The result is the last file of an evaluation: where it is, so is all else."""
        storage.save(self.best_path, self._contents(self.best, "best on test accuracy"))
        storage.save(self.set_path, self._contents(self.last, "last"))

    def _log(self, experiment: int, seconds: float) -> None:
        entry, best = self.last[experiment], self.best[experiment]
        for model, accuracies in entry.accuracies.items():
            self.metrics.append({
                "experiment": experiment, "iteration": entry.iteration, "model": model, "accuracies": accuracies,
                "mean": float(np.mean(accuracies)), "std": float(np.std(accuracies)),
                "best_mean": float(np.mean(best.accuracies[model])), "best_iteration": best.iteration,
                "seconds": round(seconds, 1), "peak_gb": round(device.memory_peak(self.data.device), 2)})
            self._add_point(self.metrics[-1])
            print(f"experiment {experiment + 1}/{self.args.num_exp} iteration {entry.iteration}: {percent(accuracies)} "
                  f"({len(accuracies)} {model}), {logs.clock(seconds)}", flush=True)
        files.write_json_lines(self.metrics_path, self.metrics)

    def _add_point(self, line: dict) -> None:
        if self.tensorboard:
            tag = f"accuracy/{line['model']}/experiment{line['experiment']}"
            with files.writing(self.folder):
                self.tensorboard.add_scalar(tag, line["mean"], line["iteration"])
                self.tensorboard.flush()

    def _contents(self, entries: list["Entry"], chosen: str) -> dict:
        args, data = self.args, self.data
        soft = {"soft_labels": [entry.soft for entry in entries]} if args.soft_labels else {}
        return {
            "data": [[entry.images, entry.labels] for entry in entries], **soft,
            "accs_all_exps": {model: accuracies_of(entries, model) for model in self.models},
            "meta": {"method": args.method, "dataset": args.dataset, "ipc": args.ipc, "model": args.model,
                     "formation": 2 if args.aug else 1, "mean": list(data.mean), "std": list(data.std),
                     "class_names": data.class_names, "seed": args.seed, "chosen": chosen,
                     "zca": vars(data.whitening.to("cpu")) if data.whitening else None,
                     "iteration": [entry.iteration for entry in entries], "options": self.options,
                     "version": self.versions},
        }

    def picture_path(self, experiment: int, iteration: int) -> Path:
        return self.args.save_path / f"vis_{self.name}_exp{experiment}_iter{iteration}.png"

    def end(self) -> None:
        """Drops the checkpoint before the last, and prints the result, the best beside it, and where the files are."""
        files.remove(self.folder, checkpoint.PREVIOUS)
        for model in self.models:
            last, best = accuracies_of(self.last, model), accuracies_of(self.best, model)
            print(f"result: {percent(last)} (last iteration, {len(last)} {model} over {len(self.last)} experiments)")
            print(f"best:   {percent(best)} (iteration chosen on test accuracy)")
        print(f"set: {self.set_path}  best set: {self.best_path}  records: {self.folder}")


@dataclass
class Entry:
    """An evaluated set: images as stored, labels, its iteration, accuracies by network, soft labels as expanded."""

    images: Tensor
    labels: Tensor
    iteration: int
    accuracies: dict[str, list[float]]
    soft: Tensor | None = None

    def mean(self) -> float:
        return float(np.mean(list(self.accuracies.values())))


def accuracies_of(entries: list[Entry], model: str) -> list[float]:
    """The accuracies of one network over all experiments."""
    return [accuracy for entry in entries for accuracy in entry.accuracies[model]]


def table_cell(accuracies: list[float]) -> str:
    """Mean and population standard deviation in percent, as the published scripts report them."""
    return f"{100 * np.mean(accuracies):.2f} ± {100 * np.std(accuracies):.2f}"


def percent(accuracies: list[float]) -> str:
    """The same as `table_cell`, in ASCII."""
    return table_cell(accuracies).replace("±", "+-") + " %"
