"""The report of runs as one page: what report.py writes."""

import glob
import json
import os
import re
import shlex
import time
from argparse import Namespace
from pathlib import Path

import jinja2
import numpy as np
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from torch import Tensor

from . import augment, evaluation, figures, networks, paper, pictures, storage, summary
from .commands.evaluate import check_size, load_test_data
from .data import RealData, sources
from .distill import initial_images
from .draws import Draws
from .options import build_parser, published_options, replaced
from .run_files import (
    data_name,
    is_finished,
    losses_path,
    options_path,
    picture_path,
    read_metrics,
    set_path,
    undamaged,
)
from .summary import table_cell
from .system import files, logs, memory
from .system.errors import UserError, in_one_line

FOLDER = "report_files"  # of the pictures of report.md
PAGE_BYTES = 8_000_000  # of pixels, shared out among the views of the sets on a page
PER_LINE = 10  # images of a class in a line
OPEN_CLASSES = 10  # classes that are shown without unfolding the rest, or by colour
STEPS = 6  # pictures of the change
REAL_POINTS, SYNTHETIC_POINTS = 500, 400  # of the embeddings
SPARED = {"batch_real": "real images per class", "model_train_steps": "steps of pool training",
          "trained_bs": "images in such a step"}  # options that a shorter run may lower


def checked_options(saved: dict) -> dict:
    """The options of a run as its command line would have them; ValueError for a value that no flag takes."""
    parser = build_parser("", {})
    known = vars(parser.parse_args([]))
    used = {name: value for name, value in saved.items() if name in known and value is not None}
    odd = [action.dest for action in parser._actions if action.dest in used and (
        used[action.dest] not in action.choices if action.choices
        else isinstance(used[action.dest], bool) != (action.nargs == 0)
        or not isinstance(used[action.dest], str | int | float))]
    if odd or not isinstance(saved["method"], str):
        raise ValueError(f"--{(odd or ['method'])[0]} has a value that no run has")

    def refuse(message: str):
        raise ValueError(message)

    parser.error = refuse
    parser.set_defaults(**{name: value if isinstance(value, bool) else str(value)  # so that the flags' types check it
                           for name, value in used.items() if name != "method"})  # which could name code
    return vars(parser.parse_args([])) | {"method": saved["method"]}


class Run:
    """What a run left; `folder` is its folder with options.json."""

    def __init__(self, folder: Path, given: dict):
        self.folder, self.path = folder, set_path(folder)
        saved, about = storage.load(self.path), json.loads(files.read_text(options_path(folder)))
        self.meta, self.accuracies = saved["meta"], saved["accs_all_exps"]
        self.stored, self.labels = saved["data"][0]
        self.ready = storage.ready(saved)[0]
        if len(self.stored) != len(self.meta["class_names"]) * self.meta["ipc"] or (
                about["options"]["ipc"] != self.meta["ipc"]):
            raise ValueError(f"its set has {len(self.stored)} images, not those of its classes and IPC")
        self.options = Namespace(**checked_options(about["options"]) | given | {"synthetic": self.path})
        self.command, self.machine, self.date = shlex.join(about["command"]), about["machine"], about["date"]
        self.versions = ", ".join(f"{name} {version}" for name, version in self.meta["version"].items())
        self.metrics = read_metrics(folder)
        self.losses = files.read_json_lines(losses_path(folder))
        self.class_names, self.formation = list(map(in_one_line, self.meta["class_names"])), self.meta["formation"]
        self.iterations = self.meta["iteration"]
        self.protocol_epochs = about["options"]["epoch_eval_train"]
        self.paper = paper.accuracy(self.options.method, self.options.dataset, self.options.ipc)
        self.rows = self._rows()

    @property
    def title(self) -> str:
        return f"{self.options.method} on {data_name(self.options)}, IPC {self.options.ipc}"

    def unfinished(self) -> str:
        """Where an unfinished run stands, else nothing."""
        options = self.options
        if is_finished(self.iterations, vars(options)):
            return ""
        return (f"unfinished: experiment {len(self.iterations)} of {options.num_exp} at iteration "
                f"{self.iterations[-1]:,} of {options.Iteration:,}")

    def shortened(self) -> str:
        """In what the run is less than the paper's, else nothing."""
        options, words = self.options, []
        if 0 < options.Iteration < paper.ITERATIONS:
            words.append(f"{options.Iteration:,} of {paper.ITERATIONS:,} iterations")
        if options.Iteration:
            whole = published_options(options.method, options.dataset, options.ipc)
            words += [f"{own:,} of {most:,} {what}" for name, what in SPARED.items()
                      if (own := getattr(options, name)) < (most := getattr(whole, name, 0))]
        if networks.CONVNETS[options.model].get("width", paper.WIDTH) < paper.WIDTH:
            words.append(f"narrower network {options.model}")
        if self.protocol_epochs < paper.EPOCHS:
            words.append(f"{self.protocol_epochs + 1:,} of {paper.EPOCHS + 1:,} epochs of evaluation")
        return "shortened: " + ", ".join(words) if words else ""

    def _rows(self) -> list[dict[str, str]]:
        """The lines of the table, one for each evaluated network, all in words."""
        options, rows = self.options, []
        for network, values in self.accuracies.items():
            own = [line for line in self.metrics if line["model"] == network]
            last = {line["experiment"]: line for line in own}.values()
            best = [a for end in last for line in own for a in line["accuracies"]
                    if (line["experiment"], line["iteration"]) == (end["experiment"], end["best_iteration"])]
            rows.append({
                "dataset": data_name(options), "method": options.method, "ipc": str(options.ipc), "network": network,
                "formation": "2×2 formation" if self.formation == 2 else "",
                "iterations": f"{options.Iteration:,}" if options.Iteration else "none",
                "accuracy": table_cell(values), "networks": f"{len(values)} network{'s' * (len(values) > 1)}",
                "best": table_cell(best) if best else "–", "paper": f"{self.paper:g}" if self.paper else "–",
                "time": duration(np.mean([line["seconds"] for line in last])) if last else "–",
                "machine": self.machine, "date": self.date,
                "notes": "; ".join(filter(None, (self.unfinished(), self.shortened())))})
        return rows

    def pictures(self) -> dict[int, Path]:
        """The picture of the first experiment's set at each evaluated iteration."""
        pattern = picture_path(self.folder, 0, "*").name
        start = len(pattern.removesuffix("*.png"))
        found = {int(path.stem[start:]): path for path in self.path.parent.glob(pattern)}
        return dict(sorted(found.items()))


def find_runs(options) -> list[Run]:
    """The runs below the folders, by data set and IPC; UserError where there is none or one is damaged."""
    given = {name: value for name in ("epoch_eval_train", "device", "max_batch")
             if (value := getattr(options, name)) is not None}
    runs = {}
    for folder in options.folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: not a folder; give what a run left in --save_path")
        for run_folder in sorted(path.parent for path in folder.rglob("options.json")):
            if not set_path(run_folder).exists():
                print(f"note: {in_one_line(run_folder)} has no evaluated set yet and is left out", flush=True)
                continue
            with undamaged(run_folder):
                runs[run_folder.resolve()] = Run(run_folder, given)
    if not runs:
        raise UserError(f"{' '.join(map(str, options.folders))}: no run with an evaluated set; give what a run left in "
                        "--save_path")
    return sorted(runs.values(), key=lambda run: (data_name(run.options), run.options.ipc))


def duration(seconds: float) -> str:
    return f"{logs.clock(seconds)} {'h' if seconds >= 3600 else 'min'}"


def views(run: Run, budget: int) -> list[dict]:
    """The set as stored and, of a formation, expanded: for each class its name and images, as many as fit."""
    by_class = [run.stored[run.labels == k] for k in range(len(run.class_names))]
    kinds = [("as stored", 1)] + [("formation expanded", 4)] * (run.formation == 2)
    return [_view(run, by_class, name, tiles, budget // len(kinds)) for name, tiles in kinds]


def _view(run: Run, by_class: list[Tensor], name: str, tiles: int, budget: int) -> dict:
    """A view for the templates; `tiles` images come of each stored one, and `budget` is in bytes."""
    size, classes, ipc = tiles * run.stored[0].numel(), len(by_class), max(map(len, by_class))
    images = max(1, min(ipc, budget // (classes * size)))
    shown = max(1, min(classes, budget // (images * size)))
    rows = []
    for images_of_class in by_class[:shown]:
        chosen = images_of_class[:images]
        if tiles > 1:  # the four of each stored image side by side
            chosen = augment.expand_formation(chosen).unflatten(0, (tiles, -1)).transpose(0, 1).flatten(0, 1)
        rows.append(storage.pixels(chosen, run.meta))
    limits = [f"{images} of {ipc} images"] * (images < ipc) + [f"{shown} of {classes} classes"] * (shown < classes)
    return {"name": name, "rows": list(zip(run.class_names, rows, strict=False)),
            "limits": "shown: " + ", ".join(limits) if limits else ""}


def change(run: Run, start: Tensor | None) -> dict | None:
    """The first image of some classes from the start (K, C, H, W), if it is known, to the end."""
    evaluated, ipc = run.pictures(), run.options.ipc
    picked = np.unique(np.linspace(0, len(evaluated) - 1, STEPS - (start is not None)).round().astype(int))
    steps = {iteration: pictures.load_picture(evaluated[iteration], tuple(run.stored.shape[1:]), ipc,
                                              len(run.stored))[::ipc]
             for iteration in np.array(list(evaluated))[picked].tolist()} if evaluated else {}
    if start is not None and 0 not in steps:
        steps = {0: start} | steps
    if len(steps) < 2:
        return None
    images = torch.stack([step[:OPEN_CLASSES] for step in steps.values()], dim=1)
    points = {point["iteration"]: f"{100 * point['mean']:.1f} %"
              for point in summary.curve([line for line in run.metrics if line["experiment"] == 0])}
    return {"steps": [(f"{step:,}" if step else "start", points.get(step, "")) for step in steps],
            "rows": list(zip(run.class_names, images, strict=False))}


def start_of(run: Run, data: RealData) -> Tensor | None:
    """Pixels of the first image of each class (K, C, H, W) that a distilled set started from."""
    options = run.options
    if not options.Iteration or ":" in options.method:  # a method of one's own may start elsewhere
        return None
    images = initial_images(data, Draws(options.seed), options.ipc, options.init, options.aug)
    return data.pixels(images[:, 0]).cpu()


def analyse(run: Run, data: RealData) -> dict:
    """A network trained on the first experiment's set, with t-SNE of its embeddings and its confusion matrix.

    It is the --model of the run, and the first that evaluated this set where --eval_mode takes it and the protocol is
    the run's.
    """
    options = run.options
    images, targets = (part.to(data.device) for part in run.ready)
    _, labels = storage.expand(run.stored, run.labels, run.formation)
    runner, epochs = evaluation.runner_for(options, data, labels), options.epoch_eval_train + 1
    with logs.Progress(f"network for {run.title}", epochs, unit="epoch") as progress:
        network = evaluation.trained_network(images, targets, data, options.model, options, Draws(options.seed),
                                             (run.iterations[0], 0), runner, progress.update)
    predicted = evaluation.predict(network, data, options.max_batch, runner).cpu()
    wanted, classes = data.test_labels.cpu(), data.num_classes
    shares = confusion_in_percent(wanted, predicted, classes)

    shown = min(classes, OPEN_CLASSES)
    real = first_of_each(wanted, shown, REAL_POINTS // shown)
    synthetic = first_of_each(labels, shown, SYNTHETIC_POINTS // shown)
    points = torch.cat([data.normalise(data.test_images[real.to(data.device)]), images[synthetic.to(data.device)]])
    max_batch = options.max_batch or memory.batch_that_fits(network, points[:1])
    with torch.no_grad():
        embedded = torch.cat([runner.embed_and_classify(network, part, 1000)[0].cpu()
                              for part in points.split(max_batch)]).numpy()
    tsne = TSNE(init="pca", perplexity=min(30, (len(embedded) - 1) / 3), random_state=options.seed)
    classes_of = torch.cat([wanted[real], labels[synthetic]]).numpy()
    return {
        "network": options.model, "epochs": f"{epochs:,}", "tests": f"{len(wanted):,}",
        "accuracy": f"{100 * (predicted == wanted).double().mean():.2f}",
        "real": len(real), "synthetic": len(synthetic),
        "classes": f"the first {shown} of {classes} classes" if shown < classes else "",
        "embeddings": figures.embeddings(tsne.fit_transform(embedded), classes_of,
                                         np.arange(len(points)) < len(real), run.class_names[:shown]),
        "confusion": figures.confusion(shares, run.class_names), "confused": most_confused(shares, run.class_names)}


def first_of_each(labels: Tensor, classes: int, count: int) -> Tensor:
    """Positions of the first `count` of each of the first `classes` classes."""
    return torch.cat([(labels == k).nonzero().flatten()[:count] for k in range(classes)])


def confusion_in_percent(wanted: Tensor, predicted: Tensor, classes: int) -> np.ndarray:
    """The confusion matrix (K, K) of true (N,) and predicted classes (N,): a true class a row, in % of it."""
    counts = confusion_matrix(wanted, predicted, labels=range(classes))
    return 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)


def most_confused(shares: np.ndarray, class_names: list[str]) -> list[tuple[str, str, str]]:
    """Up to three pairs of classes: true, predicted, share of the true one's test images in %."""
    shares = shares * (1 - np.eye(len(shares)))
    order = [np.unravel_index(place, shares.shape) for place in shares.argsort(axis=None)[::-1][:3]]
    return [(class_names[i], class_names[j], f"{shares[i, j]:.1f}") for i, j in order if shares[i, j]]


def data_of(run: Run, data_path: Path | None) -> RealData:
    """The run's data set: from its own --data_path, to which nothing is written, or else from the one that is given."""
    check_size(run.options, run.stored)
    try:
        with sources.reading_only():
            return load_test_data(run.options, run.meta)
    except UserError:
        if data_path is None:
            raise
    return load_test_data(replaced(run.options, data_path=data_path), run.meta)


def section(number: int, run: Run, budget: int, quick: bool, data_path: Path | None = None) -> dict:
    """All that the templates say of a run."""
    start, analysis, why = None, None, "left out by --quick"
    if not quick:
        try:
            with memory.enough_memory(run.options.max_batch):
                data = data_of(run, data_path)
                start, analysis = start_of(run, data), analyse(run, data)
        except UserError as error:
            why = f"left out: {in_one_line(error)}"
            print(f"note: {run.title}: embeddings and confusion are {why}", flush=True)
    with undamaged(run.folder):
        terms = dict.fromkeys(term for line in run.losses for term in line["terms"])
        return {
            "id": f"run{number}", "run": run, "views": views(run, budget), "change": change(run, start),
            "analysis": analysis, "why": why,
            "accuracies": figures.accuracies(run.metrics, run.paper) if run.metrics and run.options.Iteration else None,
            "losses": {figures.TERMS.get(term, term): figures.losses(run.losses, term) for term in terms}}


def strip(pixels: Tensor) -> dict:
    """Images as a data URI, with its width in pixels, enlarged where they are small or few."""
    per_line, side = min(PER_LINE, len(pixels)), pixels.shape[-1]
    scale = max(1, 104 // (side + 2) if per_line < 3 else 64 // side)
    return {"uri": figures.data_uri(figures.png(pixels, per_line)),
            "width": scale * (per_line * (side + figures.GAP) + figures.GAP)}


def save_pictures(part: dict, folder: Path) -> dict[str, str]:
    """Writes what a section shows as PNG files; returns their names by what they show."""
    names = {}

    def path(what: str) -> Path:
        names[what] = f"{part['id']}_{len(names)}_{re.sub(r'[^a-z]+', '_', what.lower()).strip('_')}.png"
        return folder / names[what]

    for view in part["views"]:
        images = torch.cat([pixels for _, pixels in view["rows"]])
        count = len(images) // len(view["rows"])
        pictures.save_picture(path(view["name"]), images, PER_LINE if count % PER_LINE == 0 else count)
    if part["change"]:
        rows = [pixels for _, pixels in part["change"]["rows"]]
        pictures.save_picture(path("change"), torch.cat(rows), len(rows[0]))
    drawn = {"accuracies": part["accuracies"],
             **{f"loss {term}": figure for term, figure in part["losses"].items()},
             **{what: part["analysis"][what] for what in ("embeddings", "confusion") if part["analysis"]}}
    for what, figure in drawn.items():
        if figure:
            figures.save_png(figure, path(what))
    return names


def markdown(text: str) -> str:
    """Text as it is to be read, whatever signs of Markdown or HTML are in it."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", in_one_line(" ".join(str(text).split())))


def check_folder(target: Path) -> None:
    """UserError where the pictures of report.md would land elsewhere, and those there be removed."""
    if (folder := target / FOLDER).is_symlink():
        raise UserError(f"{folder}: a link, which could lead anywhere; remove it, or choose another --save_path")


def write(sections: list[dict], target: Path) -> None:
    """Writes report.html, report.md and the pictures of the latter, and removes those of an earlier report."""
    check_folder(target)
    folder = files.make_folder(target / FOLDER)
    for part in sections:
        part["files"] = save_pictures(part, folder)
    kept = {name for part in sections for name in part["files"].values()}
    files.remove(folder, *(glob.escape(path.name) for path in folder.glob("run*.png") if path.name not in kept))
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
                                   autoescape=jinja2.select_autoescape(["html"]), undefined=jinja2.StrictUndefined,
                                   trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"strip": strip, "markdown": markdown, "svg": figures.svg}
    datasets = ", ".join(dict.fromkeys(data_name(part["run"].options) for part in sections))
    for name in ("report.html", "report.md"):
        text = templates.get_template(name).render(sections=sections, title=f"Distilled sets: {datasets}",
                                                   date=time.strftime("%Y-%m-%d"), open_classes=OPEN_CLASSES,
                                                   iterations=f"{paper.ITERATIONS:,}")
        files.write_text(target / name, text)


def run(options: Namespace) -> None:
    """Reports on the runs that the options of report.py name. UserError where there is none."""
    runs = find_runs(options)
    target = files.make_folder(options.save_path or options.folders[0])
    check_folder(target)  # before hours of work
    memory.keep_freed_memory()
    sections = [section(k, run, PAGE_BYTES // len(runs), options.quick, options.data_path)
                for k, run in enumerate(runs, 1)]
    write(sections, target)
    print(f"{target}: report.html, report.md")
