"""The first run, in about two minutes on two cores: distils the bundled digits, then compares the sets with
real images of the same count, with the formation that distillation starts from, and with all the data.

    python3 -u demo.py

Leaves the sets, their pictures and the accuracy curve in the folder that it names at the end.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from BACON_digits import DEFAULTS
from torch import Tensor

from utils import data as datasets
from utils import evaluation, experiment, options, storage
from utils.distill import initial_images
from utils.draws import Draws

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

WHOLE_SET_EPOCHS = 30


@dataclass
class Row:
    what: str
    stored: int
    accuracies: list[float]


def accuracy_of(images: Tensor, formation: int, data: datasets.RealData, args, name: str) -> list[float]:
    """Accuracies of networks trained on stored images (K, ipc, C, H, W)."""
    labels = torch.arange(data.num_classes).repeat_interleave(images.shape[1])
    expanded, labels = storage.expand(images.flatten(0, 1), labels, formation)
    return evaluation.evaluate(expanded, labels, data, args.model, args, Draws(args.seed), (name,))


def compare(ipc: int) -> tuple[list[Row], "experiment.Record"]:
    """Distils at one IPC and evaluates it, random real images and the start by the same protocol."""
    args = options.parse(__doc__, ["--ipc", str(ipc)], **DEFAULTS)
    record = experiment.run(args)
    data, draws = record.data, Draws(args.seed)
    random = accuracy_of(initial_images(data, draws, ipc), 1, data, args, "random")
    start = accuracy_of(initial_images(data, draws, ipc, aug=True), 2, data, args, "start")
    return [Row("random real images", ipc, random),
            Row("random 2x2 formation (the start)", ipc, start),
            Row("BACON", ipc, record.accuracies(record.last))], record


def whole_set() -> Row:
    args = options.parse(__doc__, ["--epoch_eval_train", str(WHOLE_SET_EPOCHS)], **DEFAULTS)
    data = datasets.load(args.dataset, args.data_path)
    accuracies = evaluation.evaluate(data.normalise(data.images), data.labels, data, args.model, args,
                                     Draws(args.seed), ("whole",))
    return Row(f"whole training set ({WHOLE_SET_EPOCHS} epochs)", len(data.labels) // data.num_classes, accuracies)


def plot(records: list, path: Path) -> None:
    """Accuracy against iteration, one line per IPC, with the standard deviation over networks."""
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for record in records:
        lines = storage.read_json_lines(record.metrics_path)
        mean, std = (100 * np.array([line[key] for line in lines]) for key in ("mean", "std"))
        axes.errorbar([line["iteration"] for line in lines], mean, std, marker="o", capsize=3,
                      label=f"IPC {record.args.ipc}")
    axes.set(xlabel="iteration", ylabel="test accuracy, %", title="BACON on 8x8 digits")
    axes.legend()
    axes.grid(alpha=0.3)
    storage.write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
    pyplot.close(figure)


def main() -> None:
    rows, records = [], []
    for ipc in (1, 10):
        compared, record = compare(ipc)
        rows += compared
        records.append(record)
    rows.append(whole_set())
    curve = records[0].args.save_path / "demo_accuracy.png"
    plot(records, curve)
    print(f"\n{'trained on':36} images per class   test accuracy ({len(rows[0].accuracies)} networks)")
    for row in rows:
        print(f"{row.what:36} {row.stored:16}   {experiment.percent(row.accuracies)}")
    for record in records:
        print(f"\nIPC {record.args.ipc}: set {record.set_path.resolve()}")
        print(f"       picture {record.picture_path(0, record.last[0]['iteration']).resolve()}")
    print(f"\naccuracy curve: {curve.resolve()}")


if __name__ == "__main__":
    main()
