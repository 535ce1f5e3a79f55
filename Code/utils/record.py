"""The files that a run leaves: sets, pictures, metrics, losses, options, and its checkpoints."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import augment, checkpoint, evaluation, pretrained, storage
from .data import RealData
from .run_files import (
    best_path,
    check_metrics,
    circumstances,
    losses_path,
    metrics_path,
    options_path,
    picture_path,
    plain,
    run_folder,
    set_path,
)
from .summary import mean_and_std, percent
from .system import distributed, files, logs, memory
from .system.errors import UserError, needed_for, say

LOSS_LINES = 200  # lines of an experiment in losses.jsonl


@dataclass
class EvaluatedSet:
    """An evaluated set: images as stored, labels, its iteration, accuracies by network, soft labels as expanded."""

    images: Tensor
    labels: Tensor
    iteration: int
    accuracies: dict[str, list[float]]
    soft: Tensor | None = None

    def mean(self) -> float:
        """The mean accuracy of all its networks, in 0..1."""
        return float(np.mean(list(self.accuracies.values())))


def accuracies_of(entries: list[EvaluatedSet], model: str) -> list[float]:
    """The accuracies of one network over all experiments."""
    return [accuracy for entry in entries for accuracy in entry.accuracies[model]]


class Record:
    """What a run leaves: the last and the best sets, pictures, metrics.jsonl, losses.jsonl and the options.

    "best" is chosen on test accuracy, as the published scripts do; the result is the last.
    """

    def __init__(self, options, data: RealData):
        self.options, self.data = options, data
        self.checksum = data.checksum()
        self.models = evaluation.models(options.eval_mode, options.model)
        self.folder = files.make_folder(run_folder(options))
        self.set_path = set_path(self.folder)
        self.best_path = best_path(self.folder)
        self.metrics_path = metrics_path(self.folder)
        self.losses_path = losses_path(self.folder)
        self.last: list[EvaluatedSet] = []
        self.best: list[EvaluatedSet] = []
        self.metrics: list[dict] = []
        self.losses: list[dict] = []
        self.unread: list[tuple[int, int, dict[str, Tensor]]] = []  # experiment, iteration, terms on the device
        self.saved_options = plain(options)
        self.saved_options.pop("resume")  # a resumed run leaves the same set
        import torchvision  # here, as in `add`, because it takes seconds that --help does not have

        self.versions = {"python": platform.python_version(), "torch": str(torch.__version__),
                         "torchvision": torchvision.__version__, "numpy": np.__version__}
        self.tensorboard = None
        self.checkpointed = time.monotonic()

    def keep_networks(self, state: dict | None) -> None:
        """Notes which networks of --pool all experiments take: those that the run began with."""
        if self.options.pool:
            names = distributed.broadcast_object(lambda: pretrained.names_for(self.options, state and state["options"]))
            self.options.pool_files = self.saved_options["pool_files"] = names

    def begin(self, state: dict | None) -> None:
        """Makes the folder ready for a new run, or puts it back to where the checkpoint `state` was written."""
        results = self.set_path.name, self.best_path.name, picture_path(self.folder, "*", "*").name
        if state:
            if state["data"] != self.checksum:
                raise UserError(f"--data_path {self.options.data_path}: its images are not those that the run began "
                                "with; bring them back, or start a new run with another --save_path")
            with checkpoint.fitting():
                self.last, self.best = ([self._restored(entry) for entry in state[kind]] for kind in ("last", "best"))
                if self.last:
                    storage.validated(self.saved())
                self._check_lines(state["metrics"], state["losses"])
            self.metrics, self.losses = state["metrics"], state["losses"]
            checkpoint.settle(self.folder)
            say(f"resumed: {state['experiment']} of {self.options.num_exp} experiments are finished, the next is at "
                f"iteration {state['iteration']}")
        else:
            files.remove(self.folder, *checkpoint.NAMES, *checkpoint.EARLIER)
            files.remove(self.options.save_path, *results)
        files.remove_temporary(self.folder, "*")
        files.remove_temporary(self.options.save_path, *results)
        files.write_json(options_path(self.folder), {
            **circumstances(self.data.device), "options": self.saved_options, "versions": self.versions})
        files.write_json_lines(self.metrics_path, self.metrics)
        files.write_json_lines(self.losses_path, self.losses)
        if self.last:
            self._save_sets()
        if self.options.tensorboard:
            self._begin_tensorboard()

    def _check_lines(self, metrics: list[dict], losses: list[dict]) -> None:
        """ValueError, KeyError or TypeError where these are not the metrics and losses of this run."""
        check_metrics(metrics)
        options, means = self.options, ("mean", "std", "best_mean")
        right = all(type(count) is int and 0 <= count <= most for line in metrics + losses for count, most in (
            (line["experiment"], options.num_exp), (line["iteration"], options.Iteration)))
        for line in metrics:
            known = {"experiment", "iteration", "model", "accuracies", "best_iteration", "seconds", "peak_gb", *means}
            right &= (line.keys() == known and line["model"] in self.models
                      and all(type(line[name]) is float and 0 <= line[name] <= 1 for name in means)
                      and len(line["accuracies"]) == options.num_eval and isinstance(line["peak_gb"], float | None))
        for line in losses:
            right &= line.keys() == {"experiment", "iteration", "terms"} and all(
                type(name) is str and type(value) is float for name, value in line["terms"].items())
        if not right:
            raise ValueError("its metrics or losses are not of this run")

    def _restored(self, entry: dict) -> EvaluatedSet:
        """An evaluated set of a checkpoint; ValueError where it is none of this run."""
        kept, options = EvaluatedSet(**entry), self.options
        _, labels = storage.labelled(torch.empty(self.data.num_classes, options.ipc))
        if kept.images.shape != (len(labels), *self.data.image_shape) or kept.images.dtype != torch.float32 or not (
                kept.images.isfinite().all() and torch.equal(kept.labels, labels)):
            raise ValueError("its sets have other images or labels")
        right = all(len(own) == options.num_eval and all(0 <= accuracy <= 1 for accuracy in own)
                    for own in kept.accuracies.values())
        if not right or list(kept.accuracies) != self.models or not 0 <= kept.iteration <= options.Iteration:
            raise ValueError("the accuracies of its sets are not of this run")
        return kept

    @distributed.main_process_only
    def _begin_tensorboard(self) -> None:
        """Its files are written anew, so that a resumed run has no point twice."""
        with needed_for("--tensorboard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        for path in self.folder.glob("events.out.tfevents.*"):
            files.remove(self.folder, path.name)
        self.tensorboard = SummaryWriter(self.folder)
        self._add_terms(self.losses)
        for line in self.metrics:
            self._add_point(line)

    def has(self, experiment: int, iteration: int) -> bool:
        """Whether this set has been evaluated."""
        return len(self.last) > experiment and self.last[experiment].iteration == iteration

    def checkpoint_is_due(self) -> bool:
        """Whether --checkpoint_minutes have passed since the last checkpoint."""
        return time.monotonic() - self.checkpointed >= 60 * self.options.checkpoint_minutes

    def checkpoint(self, experiment: int, iteration: int = 0, seconds: float = 0.0,
                   distillation: dict | None = None) -> None:
        """Keeps all that is needed to go on with this experiment after `iteration` updates.

        distillation: what `Distillation.state` gives; None where the experiment has not begun.
        """
        self._read_losses()
        checkpoint.write(self.folder, {
            "options": self.saved_options, "data": self.checksum, "experiment": experiment, "iteration": iteration,
            "seconds": seconds, "distillation": distillation, "metrics": self.metrics, "losses": self.losses,
            "last": [vars(entry) for entry in self.last], "best": [vars(entry) for entry in self.best]})
        self.checkpointed = time.monotonic()

    def keep_losses(self, experiment: int, iteration: int, terms: dict[str, Tensor]) -> None:
        """Keeps the terms of about LOSS_LINES iterations. They stay on the device until the next checkpoint."""
        if iteration % max(1, self.options.Iteration // LOSS_LINES) == 0:
            self.unread.append((experiment, iteration, terms))

    def _read_losses(self) -> None:
        lines = [{"experiment": experiment, "iteration": iteration,
                  "terms": {name: value.item() for name, value in terms.items()}}
                 for experiment, iteration, terms in self.unread]
        self.losses += lines
        self.unread.clear()
        files.write_json_lines(self.losses_path, self.losses)
        self._add_terms(lines)

    def add(self, evaluated: EvaluatedSet, experiment: int, seconds: float) -> None:
        """Keeps an evaluated set and writes it: as the last of its experiment, and as the best where it is."""
        from . import pictures

        self._keep(evaluated, experiment)
        pictures.save_picture(self.picture_path(experiment, evaluated.iteration), self.data.pixels(evaluated.images),
                              self.options.ipc)
        self._log(experiment, seconds)
        self._save_sets()

    def _keep(self, entry: EvaluatedSet, experiment: int) -> None:
        if len(self.last) == experiment:
            self.last.append(entry)
            self.best.append(entry)
        self.last[experiment] = entry
        if entry.mean() > self.best[experiment].mean():
            self.best[experiment] = entry

    def _save_sets(self) -> None:
        """The result is the last file of an evaluation: where it is, so is all else."""
        storage.save(self.best_path, self._contents(self.best, "best on test accuracy"))
        storage.save(self.set_path, self.saved())

    def _log(self, experiment: int, seconds: float) -> None:
        entry, best = self.last[experiment], self.best[experiment]
        peak = memory.memory_peak(self.data.device)
        for model, accuracies in entry.accuracies.items():
            self.metrics.append({
                "experiment": experiment, "iteration": entry.iteration, "model": model, "accuracies": accuracies,
                **mean_and_std(accuracies),
                "best_mean": mean_and_std(best.accuracies[model])["mean"], "best_iteration": best.iteration,
                "seconds": round(seconds, 1), "peak_gb": peak and round(peak, 2)})
            self._add_point(self.metrics[-1])
            say(f"experiment {experiment + 1}/{self.options.num_exp} iteration {entry.iteration}: "
                f"{percent(accuracies)} ({len(accuracies)} {model}), {logs.clock(seconds)}")
        files.write_json_lines(self.metrics_path, self.metrics)

    def _add_point(self, line: dict) -> None:
        if self.tensorboard:
            tag = f"accuracy/{line['model']}/experiment{line['experiment']}"
            with files.writing(self.folder):
                self.tensorboard.add_scalar(tag, line["mean"], line["iteration"])
                picture = self.picture_path(line["experiment"], line["iteration"])
                if line["model"] == self.models[0] and picture.exists():
                    from . import pictures

                    self.tensorboard.add_image(f"set/experiment{line['experiment']}", pictures.read_picture(picture),
                                               line["iteration"])
                self.tensorboard.flush()

    def _add_terms(self, lines: list[dict]) -> None:
        """Terms of the loss and, under `pool`, the training accuracy of the pool in percent."""
        if self.tensorboard:
            with files.writing(self.folder):
                for line in lines:
                    for term, value in line["terms"].items():
                        self.tensorboard.add_scalar(f"{term}/experiment{line['experiment']}", value, line["iteration"])
                self.tensorboard.flush()

    def saved(self) -> dict:
        """The sets of the last iteration as their file has them."""
        return self._contents(self.last, "last")

    def _contents(self, entries: list[EvaluatedSet], chosen: str) -> dict:
        options, data = self.options, self.data
        soft = {"soft_labels": [entry.soft for entry in entries]} if options.soft_labels else {}
        return {
            "data": [[entry.images, entry.labels] for entry in entries], **soft,
            "accs_all_exps": {model: accuracies_of(entries, model) for model in self.models},
            "meta": {"method": options.method, "dataset": options.dataset, "ipc": options.ipc, "model": options.model,
                     "formation": augment.formation(options.aug), "mean": list(data.mean), "std": list(data.std),
                     "class_names": data.class_names, "seed": options.seed, "chosen": chosen,
                     "zca": vars(data.whitening.to("cpu")) if data.whitening else None,
                     "iteration": [entry.iteration for entry in entries], "options": self.saved_options,
                     "version": self.versions},
        }

    def picture_path(self, experiment: int, iteration: int) -> Path:
        """Where the picture of an evaluated set is."""
        return picture_path(self.folder, experiment, iteration)

    def end(self) -> None:
        """Drops the checkpoint before the last, and prints the result, the best beside it, and where the files are."""
        for model in self.models:
            last, best = accuracies_of(self.last, model), accuracies_of(self.best, model)
            say(f"result: {percent(last)} (last iteration, {len(last)} {model} over {len(self.last)} experiments)")
            say(f"best:   {percent(best)} (iteration chosen on test accuracy)")
        say(f"set: {self.set_path}  best set: {self.best_path}  run: {self.folder}")
        files.remove(self.folder, checkpoint.PREVIOUS)
