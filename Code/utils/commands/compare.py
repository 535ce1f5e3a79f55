"""Compares methods on one data set with one budget: the same engine, flags and evaluation for all.

    python3 -u compare.py --dataset MNIST --methods random "random --aug" DM IDM BACON "BACON --tv_weight 0" \\
        --ipcs 1 10 --seeds 0 1 2 --Iteration 1000

Each of --methods may carry flags of its own. Further flags are those of the entry scripts and hold for all;
without more, they are those of the published MNIST command. A method's recipe (DM has no formation, say) comes
before them. With --minutes the budget is time: every method gets as many iterations as fit, timed once at the start,
less the time that networks trained beforehand (--pool) took; the plot is against seconds. Finished runs are not
repeated, so an interrupted comparison goes on where it stopped. Leaves compare.md, compare.json and compare.png in
--save_path.
"""

import argparse
import contextlib
import json
import re
import time
from pathlib import Path

import numpy as np

from .. import checkpoint, experiment, methods, pretrained, run_files, storage, summary
from ..data import load_data, sources
from ..distill import Distillation
from ..options import (
    MOST_SEED,
    PUBLISHED_MNIST,
    build_parser,
    drop_dead_flags,
    finite_number,
    parse_options,
    whole_number,
)
from ..summary import in_a_cell, table_cell
from ..system import device, files, memory
from ..system.errors import UserError, needed_for, say
from ..system.reporting import reported

SEVERAL = {"method": "methods", "ipc": "ipcs", "seed": "seeds"}  # flags of one run, and what names them here
FOR_ALL = SEVERAL | {"dataset": "dataset", "name": "name", "save_path": "save_path"}  # not for a method alone
TIMED_SECONDS, TIMED_ITERATIONS = 10, 3  # to learn how long an iteration takes


def is_done(options) -> bool:
    """Whether a run of these options has been completed; UserError where the set is of other options."""
    folder, wanted = run_files.run_folder(options), run_files.plain(options)
    path = run_files.set_path(folder)
    if not (path.exists() and run_files.metrics_path(folder).exists()):
        return False
    with run_files.undamaged(path):
        meta = storage.load(path)["meta"]
        if differ := checkpoint.differences(meta["options"], wanted):
            raise UserError(f"--save_path: {path} was made with {differ}; choose another folder")
        return run_files.is_finished(meta["iteration"], wanted)


def summarise(method: str, cells: list[argparse.Namespace]) -> list[dict]:
    """A row for each evaluated network: a method at one IPC over the finished runs of all seeds.

    Accuracies are those of every network, in 0..1; seconds are those of making one set, without evaluations, and
    "network_seconds" those of training the networks of --pool, once for all sets. UserError or, where files are not of
    one run, ValueError or KeyError.
    """
    sets, lines, rows = [], [], []
    networks = {"network_seconds": network_seconds(cells[0])} if cells[0].pool else {}
    for folder in map(run_files.run_folder, cells):
        with run_files.undamaged(folder):
            sets.append(storage.load(run_files.set_path(folder)))
            lines += run_files.read_metrics(folder)
    for network in sets[0]["accs_all_exps"]:
        accuracies = [a for one in sets for a in one["accs_all_exps"][network]]
        own = [line for line in lines if line["model"] == network]
        ends = [line for line in own if line["iteration"] == cells[0].Iteration]
        if [accuracy for line in ends for accuracy in line["accuracies"]] != accuracies:
            raise ValueError(f"the metrics.jsonl of a run of {method} at IPC {cells[0].ipc} is not of its set")
        rows.append({"method": method, "ipc": cells[0].ipc, "network": network, "iterations": cells[0].Iteration,
                     **summary.mean_and_std(accuracies), "accuracies": accuracies,
                     "seconds": round(float(np.mean([line["seconds"] for line in ends])), 1), **networks,
                     "curve": summary.curve(own), "options": sets[0]["meta"]["options"]})
    return rows


def network_seconds(options) -> float | None:
    """How long the networks of finished runs were trained; None where no file says it, or these are gone meanwhile."""
    with contextlib.suppress(UserError):
        return pretrained.seconds(options)
    return None


def table(dataset: str, rows: list[dict]) -> str:
    lines = [f"| {dataset} | images per class | iterations | network | test accuracy, % | networks | seconds per set |",
             "| --- | --: | --: | --- | --: | --: | --: |"]
    lines += [f"| {in_a_cell(row['method'])} | {row['ipc']} | {row['iterations']} | {in_a_cell(row['network'])} | "
              f"{table_cell(row['accuracies'])} | {len(row['accuracies'])} | {row['seconds']:.0f}{once(row)} |"
              for row in rows]
    return "\n".join(lines) + "\n"


def once(row: dict) -> str:
    """What a row's cell of seconds says of networks trained beforehand."""
    if "network_seconds" not in row:
        return ""
    seconds = row["network_seconds"]
    return f", and {'unknown' if seconds is None else f'{seconds:.0f}'} once for networks"


def plot(dataset: str, rows: list[dict], path: Path, against: str = "iteration") -> None:
    """Accuracy against "iteration" or "seconds", a panel for each IPC and network; a line for what is not iterated.

    Seconds of a method on networks trained beforehand begin after those of the networks, which a dotted line shows.
    """
    from matplotlib.figure import Figure

    from .. import figures

    panels = list(dict.fromkeys((row["ipc"], row["network"]) for row in rows))
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for k, row in enumerate(row for row in rows if (row["ipc"], row["network"]) == panel):
            look = {"color": f"C{k}", "label": row["method"]}
            if row["iterations"]:
                after = (row.get("network_seconds") or 0) if against == "seconds" else 0
                figures.plot_curve(axes, row["curve"], against, after, **look)
                if after:
                    axes.hlines(100 * row["curve"][0]["mean"], 0, after, colors=look["color"], linestyles="dotted")
            else:
                axes.axhline(100 * row["mean"], linestyle="--", linewidth=1, **look)
        figures.label_x(axes, against)
        axes.set(ylabel="test accuracy, %", title=f"{dataset}, {panel[1]}, IPC {panel[0]}")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14))  # below, for methods have flags
    figures.save_png(figure, path)


def cell(method: str, ipc: int, seed: int, shared: argparse.Namespace) -> argparse.Namespace:
    """The options of one run: the method with its own flags, then what all runs share."""
    words = method.split()
    for flag, instead in FOR_ALL.items():
        if any(word.partition("=")[0] == f"--{flag}" for word in words):
            raise UserError(f"--methods {method!r}: --{flag} cannot be a method's own; give --{instead} for all")
    name = re.sub(r"[^\w.-]", "_", "_".join(word.removeprefix("--") for word in words))
    folder = shared.save_path / f"{name}_{ipc}ipc_seed{seed}"
    flags = ["--method", *words, "--ipc", str(ipc), "--seed", str(seed), "--save_path", str(folder),
             "--resume", "auto"]
    return parse_options(__doc__, flags, **vars(shared))


def affordable(options, minutes: float) -> int:
    """How many iterations of a run fit in `minutes` on this machine, after one to warm up; at least 1."""
    memory.keep_freed_memory()
    distillation = Distillation(load_data(options), options)
    distillation.step(0)
    begun, done = time.monotonic(), 0
    while time.monotonic() - begun < min(TIMED_SECONDS, 6 * minutes):
        for _ in range(TIMED_ITERATIONS):
            done += 1
            distillation.step(done)
        distillation.check_finite()  # which waits for a GPU
    return max(1, int(60 * minutes * done / (time.monotonic() - begun)))


def kept_budget(path: Path, wanted: dict) -> dict[str, int]:
    """The iterations by run that an earlier command of these options left; UserError where it had others."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(files.read_text(path))
        iterations, differ = kept["iterations"], checkpoint.differences(kept["options"], wanted)
        if not all(type(count) is int and count > 0 for count in iterations.values()):
            raise ValueError("no iterations")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: damaged; remove it, to time the methods anew, or choose another "
                        "--save_path") from None
    if differ:
        raise UserError(f"--save_path: {path} was timed with {differ}; choose another folder")
    return iterations


def share_networks(runs: list[tuple[str, list[argparse.Namespace]]]) -> None:
    """Lets all runs on networks of one --pool match on those that the first of them began with."""
    begun = {}
    for options in (options for _, cells in runs for options in cells if options.pool):
        path = run_files.set_path(run_files.run_folder(options))
        if path.exists() and options.pool not in begun:
            with run_files.undamaged(path):
                begun[options.pool] = storage.load(path)["meta"]["options"]
    for options in (options for _, cells in runs for options in cells if options.pool):
        options.pool_files = pretrained.names_for(options, begun.get(options.pool))


def left_for_images(options, minutes: float) -> float:
    """What is left of a budget after the networks of --pool were trained; UserError where nothing is."""
    seconds = pretrained.seconds(options) if options.pool else 0.0
    if seconds is None:
        say(f"{options.pool}: its networks do not say how long they were trained, so that is not in the budget")
        return minutes
    if seconds >= 60 * minutes:
        raise UserError(f"--minutes {minutes:g}: training the networks of {options.pool} took {seconds / 60:.1f} "
                        "minutes; raise it, or choose fewer with --pool_networks")
    return minutes - seconds / 60


def set_budget(runs: list[tuple[str, list[argparse.Namespace]]], minutes: float, shared: argparse.Namespace) -> None:
    """Gives each run the iterations that fit in `minutes`; a repeated command finds them in budget.json.

    Networks are compiled only where --compile says so, because the number of iterations is not known beforehand.
    """
    path, wanted = shared.save_path / "budget.json", run_files.plain(shared) | {"minutes": minutes}
    iterations = kept_budget(path, wanted)
    for method, cells in runs:
        name = f"{method}, IPC {cells[0].ipc}"
        if methods.find(cells[0].method).objective is None:
            continue
        for options in cells:
            options.compile = bool(options.compile)
        if name not in iterations:
            iterations[name] = affordable(cells[0], left_for_images(cells[0], minutes))
            files.write_json(path, {"options": wanted, "iterations": iterations})
        say(f"{name}: {iterations[name]} iterations in {minutes:g} minutes")
        for options in cells:
            options.Iteration = iterations[name]


def write_results(rows: list[dict], shared: argparse.Namespace, against: str) -> None:
    """Writes the table, the rows and the plot against "iteration" or "seconds", and prints the table."""
    called = shared.name or sources.own_name(shared.dataset, shared.data_path) or shared.dataset
    files.write_text(shared.save_path / "compare.md", table(called, rows))
    files.write_json(shared.save_path / "compare.json", {
        **run_files.circumstances(device.find(shared.device)), "rows": rows})
    plot(called, rows, shared.save_path / "compare.png", against)
    print("", table(called, rows), sep="\n")
    say(f"{shared.save_path}: compare.md, compare.json, compare.png")


def parse() -> argparse.Namespace:
    """The options that all runs share, with `methods`, `ipcs`, `seeds` and `minutes`."""
    parser = build_parser(__doc__, PUBLISHED_MNIST | {"num_exp": 1})
    parser.add_argument("--methods", nargs="+", required=True, help="methods, each with flags of its own if quoted")
    parser.add_argument("--ipcs", type=whole_number(1), nargs="+", default=[10], help="images per class")
    parser.add_argument("--seeds", type=whole_number(0, MOST_SEED), nargs="+", default=[0],
                        help="a set for each of these seeds")
    parser.add_argument("--minutes", type=finite_number(0, 10**6, above=True),
                        help="distil for so long in place of --Iteration")
    for action in parser._actions:
        if action.dest in (*SEVERAL, "published", "resume"):  # which have no place here
            action.help = argparse.SUPPRESS
    shared = parser.parse_args()
    drop_dead_flags(parser, shared)
    if "published" in shared or any("--published" in method.split() for method in shared.methods):
        parser.error("--published: methods are compared under one setting; leave it out")
    for one, several in SEVERAL.items():
        if getattr(shared, one) != parser.get_default(one):
            parser.error(f"--{one}: name it with --{several}")
    return shared


def run(shared: argparse.Namespace) -> None:
    """Runs what is missing of a comparison, one run after another, and writes its table."""
    with needed_for("compare.py", "matplotlib"):  # found before hours of work
        from .. import figures  # noqa: F401, what `plot` needs, which takes a second that --help does not have
    names, ipcs, seeds, minutes = (vars(shared).pop(name) for name in ("methods", "ipcs", "seeds", "minutes"))
    names, ipcs, seeds = (list(dict.fromkeys(values)) for values in (names, ipcs, seeds))
    runs = [(method, [cell(method, ipc, seed, shared) for seed in seeds]) for ipc in ipcs for method in names]
    with files.locked(files.make_folder(shared.save_path)):
        share_networks(runs)
        with memory.enough_memory(shared.max_batch):
            if minutes:
                set_budget(runs, minutes, shared)
            waiting = [(method, options) for method, cells in runs for options in cells if not is_done(options)]
            for _, options in waiting:  # what cannot run is found before hours of work
                experiment.check(options, load_data(options))
        for k, (method, options) in enumerate(waiting, 1):
            say(f"== run {k}/{len(waiting)}: {method}, IPC {options.ipc}, seed {options.seed}")
            experiment.run(options)
        with run_files.undamaged(shared.save_path):
            rows = [row for method, cells in runs for row in summarise(method, cells)]
        write_results(rows, shared, "seconds" if minutes else "iteration")


def main() -> None:
    """The script: its command line, read and done."""
    with reported(alone=True):
        run(parse())
