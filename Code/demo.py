"""The first run, in about two minutes on two cores: distils the bundled digits, then compares the sets with
real images of the same count, with the formation that distillation starts from, and with all the data.

    python3 -u demo.py

Leaves the sets, their pictures and the accuracy curve in the folder that it names at the end.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from utils import defaults, evaluation, experiment, storage, summary
from utils.data import RealData, load_data
from utils.distill import initial_images
from utils.draws import Draws
from utils.options import new_parser, parse_options
from utils.record import Record, accuracies_of
from utils.summary import percent
from utils.system.reporting import reported

DEFAULTS = defaults.of("digits")
WHOLE_SET_EPOCHS = 20


@dataclass
class Row:
    what: str
    stored: int
    accuracies: list[float]


def accuracy_of(images: Tensor, formation: int, data: RealData, options, name: str) -> list[float]:
    """Accuracies of networks trained on stored images (K, ipc, C, H, W)."""
    ready = storage.expand(*storage.labelled(images), formation)
    return evaluation.evaluate(*ready, data, options.model, options, Draws(options.seed), (name,))


def compare(ipc: int, flags: list[str]) -> tuple[list[Row], Record]:
    """Distils at one IPC and evaluates it, random real images and the start by the same protocol."""
    options = parse_options(__doc__, ["--ipc", str(ipc), *flags], **DEFAULTS)
    record = experiment.run(options)
    data, draws = record.data, Draws(options.seed)
    random = accuracy_of(initial_images(data, draws, ipc), 1, data, options, "random")
    start = accuracy_of(initial_images(data, draws, ipc, aug=True), 2, data, options, "start")
    return [Row("random real images", ipc, random),
            Row("random 2x2 formation (the start)", ipc, start),
            Row("BACON", ipc, accuracies_of(record.last, options.model))], record


def whole_set() -> Row:
    options = parse_options(__doc__, ["--epoch_eval_train", str(WHOLE_SET_EPOCHS)], **DEFAULTS)
    data = load_data(options)
    accuracies = evaluation.evaluate(data.normalise(data.images), data.labels, data, options.model, options,
                                     Draws(options.seed), ("whole",))
    return Row(f"whole training set ({WHOLE_SET_EPOCHS + 1} epochs)", len(data.labels) // data.num_classes, accuracies)


def plot(compared: list[tuple[list[Row], Record]], path: Path) -> None:
    """Accuracy against iteration from the start on, with the standard deviation over networks."""
    from matplotlib.figure import Figure  # here, because these take a second that --help does not have

    from utils import figures

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for k, ((random, start, _), record) in enumerate(compared):
        points = summary.curve([{"iteration": 0, "seconds": 0.0, "accuracies": start.accuracies}, *record.metrics])
        figures.plot_curve(axes, points, color=f"C{k}", label=f"BACON, IPC {record.options.ipc}")
        axes.axhline(100 * np.mean(random.accuracies), linestyle="--", color=f"C{k}",
                     label=f"random real images, IPC {record.options.ipc}")
    axes.set(xlabel="iteration (0 is the random 2x2 formation)", ylabel="test accuracy, %")
    axes.set_title("scikit-learn's digits, ConvNetW32")
    axes.legend()
    axes.grid(alpha=0.3)
    figures.save_png(figure, path)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--save_path", default="result/demo", help="folder for sets, pictures and the files of runs")
    parser.add_argument("--resume", choices=("auto",), default="auto", help="it goes on where it was stopped")
    options = parser.parse_args()
    compared = [compare(ipc, ["--save_path", options.save_path, "--resume", options.resume]) for ipc in (1, 10)]
    records = [record for _, record in compared]
    rows = [row for rows, _ in compared for row in rows] + [whole_set()]
    curve = records[0].options.save_path / "demo_accuracy.png"
    plot(compared, curve)
    print(f"\n{'trained on':36} images per class   test accuracy ({len(rows[0].accuracies)} networks)")
    for row in rows:
        print(f"{row.what:36} {row.stored:16}   {percent(row.accuracies)}")
    for record in records:
        print(f"\nIPC {record.options.ipc}: set {record.set_path.resolve()}")
        print(f"       picture {record.picture_path(0, record.last[0].iteration).resolve()}")
    print(f"\naccuracy curve: {curve.resolve()}")


if __name__ == "__main__":
    with reported(alone=True):
        main()
