"""Puts finished sets into a folder to share: 8-bit images, a card that says all about each, a table of all.

    python3 -u publish.py result/res_BACON_MNIST_ConvNet_10ipc.pt --to published --data_path data

A set becomes <to>/<dataset>/<method>_ipc<k>.pt with its card, .json, beside it; one that is there stays. The set in 8
bits is evaluated by evaluate.py, by the protocol of its own run, and the command in the card gives its accuracy again.
Flags of evaluate.py may follow the sets; where they change that protocol, the set as it was is evaluated, too. One that
loses in 8 bits more than the standard deviation between networks, and more than half a point, is refused.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from utils import paper, storage
from utils.data import sources
from utils.options import as_path, new_parser
from utils.run_files import (
    data_name,
    folder_of,
    in_file_names,
    is_finished,
    metrics_path,
    options_path,
    read_metrics,
    undamaged,
)
from utils.summary import in_a_cell, mean_and_std, percent, table_cell
from utils.system import files
from utils.system.errors import UserError, in_one_line, reason, say
from utils.system.reporting import reported

TITLE = "# Distilled sets"
INTRODUCTION = """
Made by the commands in the cards (`.json`), written by `Code/publish.py`. In Python, from `Code/`, ready to train on:

    import utils
    images, labels = utils.load_synthetic("{example}")

Accuracies are mean and standard deviation over (n) networks, by the protocol of the set's own run; "not mirrored" where
their augmentation (DSA) does not flip images. The command that gives one again is "evaluated by" in the card. Images
are stored in 8 bits, and that set is evaluated; a card whose accuracy is of the set before that says so ("trained_on").
"""
PROTOCOL = ("num_eval", "precision")  # options of a run that evaluate.py does not take from the set
OWN_MACHINE = ("data_path", "save_path", "resume", "device")  # options that say nothing to others


def evaluated(path: Path, flags: list[str]) -> list[dict]:
    """What evaluate.py finds of a set: a line for each network. Ends the program where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-u", Path(__file__).with_name("evaluate.py"), *flags, "--synthetic",
                               path, "--save_path", folder], check=False)
        if done.returncode:
            sys.exit(done.returncode)
        return files.read_json_lines(Path(folder) / "evaluate.jsonl")


def protocol(run: dict, flags: list[str]) -> list[str]:
    """The flags for evaluate.py that make its protocol that of a run with these options, but for those in `flags`."""
    given = names_of(flags)
    own = [word for name in PROTOCOL if run.get(name) is not None and name not in given
           for word in (f"--{name}", str(run[name]))]
    compiled = ["--compile"] if run.get("compile") and not given & {"compile", "no_compile"} else []
    return [*own, *compiled, *flags]


def names_of(flags: list[str]) -> set[str]:
    """The names of flags among these words, without --."""
    return {word.partition("=")[0].removeprefix("--") for word in flags if word.startswith("--")}


def from_code(target: Path) -> str:
    """How commands in Code/ name a published set; outside this project only by its name."""
    code = Path(__file__).resolve().parent
    inside = target.resolve().is_relative_to(code.parent)
    return os.path.relpath(target.resolve(), code) if inside else target.name


def shared_command(command: list[str]) -> str:
    """A command line without what belongs to the machine that it ran on."""
    words, skipped = [Path(command[0]).name], False
    for word in command[1:]:
        flag, joined, _ = word.partition("=")
        own = not skipped and flag.startswith("--") and flag.removeprefix("--") in OWN_MACHINE
        if not skipped and not own:
            words.append(word)
        skipped = own and not joined
    return f"python3 -u {shlex.join(words)}"


def publish(path: Path, to: Path, note: str, flags: list[str]) -> None:
    """Evaluates a set as it is and in 8 bits, and writes the latter below `to` with its card."""
    saved = storage.load(path)
    meta = saved["meta"]
    if meta.get("chosen") != "last":
        raise UserError(f"{path}: not the result of a run, but chosen on test accuracy, or of another project; publish "
                        "res_<...>ipc.pt")
    if not is_finished(meta["iteration"], meta["options"]):
        raise UserError(f"{path}: its run is not finished; continue it with --resume auto, then publish")
    target = named_by(path, meta, to)
    run_folder = folder_of(path)
    try:
        run = json.loads(files.read_text(options_path(run_folder)))
        command, about = shared_command(run["command"]), {name: run[name] for name in ("machine", "date", "versions")}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise UserError(f"{path}: options.json of its run is damaged or not in {run_folder}; publish a set where its "
                        "run left it") from None
    about |= cost(run_folder, meta)
    refuse_to_replace(target)
    whole = {} if names_of(flags) - set(OWN_MACHINE) else saved["accs_all_exps"]
    flags = protocol(meta["options"], flags)
    meta["options"] = {name: value for name, value in meta["options"].items() if name not in OWN_MACHINE}
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "packed.pt"
        storage.save(small, storage.packed(saved))
        if meta["model"] not in whole:  # a run may have tested other networks
            whole = {line["model"]: line["accuracies"] for line in evaluated(path, flags)}
        content, lines = small.read_bytes(), evaluated(small, flags)
    for line in lines:
        refuse_loss(path, line["model"], whole[line["model"]], line["accuracies"])
    files.make_folder(target.parent, "--to")
    refuse_to_replace(target)  # which has had minutes to come there
    files.write_whole(target, lambda file: file.write(content))
    files.write_json(target.with_suffix(".json"), {
        "set": target.name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
        "dataset": called(meta),
        **{name: meta[name] for name in ("method", "ipc", "model", "formation", "seed", "iteration")},
        "note": note, "command": command, **about, "chosen": meta["chosen"],
        "accuracies of its run": saved["accs_all_exps"],
        "evaluated by": shared_command(["evaluate.py", "--synthetic", from_code(target), *flags]),
        "evaluation": without_path(lines)})
    say(f"published: {target}, with its card")


def cost(run_folder: Path, meta: dict) -> dict:
    """Seconds of making each set, without evaluations, and peak memory; UserError for records of another run."""
    with undamaged(metrics_path(run_folder)):
        ends = {line["experiment"]: line for line in read_metrics(run_folder)
                if line["iteration"] == meta["options"]["Iteration"]}
        return {"seconds": [ends[k]["seconds"] for k in range(len(meta["iteration"]))],
                "peak_gb": max((line["peak_gb"] for line in ends.values() if line["peak_gb"]), default=None)}


def refuse_loss(path: Path, model: str, before: list[float], after: list[float]) -> None:
    """UserError where a set has lost accuracy in 8 bits."""
    whole, small = mean_and_std(before), mean_and_std(after)
    if whole["mean"] - small["mean"] > max(whole["std"], small["std"], 0.005):
        raise UserError(f"{path}: in 8 bits {model} reaches {percent(after)}, before {percent(before)}; it is not "
                        "published")


def named_by(path: Path, meta: dict, to: Path) -> Path:
    """Where a set of this `meta` is published; UserError where that is not of the names and numbers of a run."""
    method, ipc, dataset = meta.get("method"), meta.get("ipc"), called(meta)
    if not isinstance(method, str) or not re.fullmatch(r"\w+(\.\w+)*(:\w+)?", method) or (
            dataset is None or type(ipc) is not int or not 0 < ipc < 10**9):
        raise UserError(f"{path}: its data set, method or IPC is none that a run can have; make the set again")
    return to / dataset / f"{in_file_names(method)}_ipc{ipc}.pt"


def called(meta: dict) -> str | None:
    """What the data of a set are called, in names of files, too; None where that is nothing a run would call them."""
    dataset, name = meta.get("dataset"), meta["options"].get("name")
    try:
        sources.check_form(dataset)
        if name is not None:
            sources.check_own_name(name)
    except (UserError, TypeError):
        return None
    return data_name(Namespace(dataset=dataset, name=name if sources.own_name(dataset, Path()) else None))


def refuse_to_replace(target: Path) -> None:
    """UserError where there is a set, or another file in place of its card."""
    if any(os.path.lexists(path) for path in (target, target.with_suffix(".json"))):
        raise UserError(f"--to: {target} is there already; delete it and its card, or choose another folder")


def without_path(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "synthetic"} for line in lines]


def page(to: Path) -> str:
    """What the folder's README.md says: how to load a set, and a table of all cards."""
    cards = cards_in(to)
    example = in_one_line(os.path.relpath(cards[0].with_suffix(".pt"), Path(__file__).parent))
    rows = ["| data set | set | IPC | iterations | network | epochs | test accuracy, % | kB |",
            "| --- | --- | --: | --: | --- | --: | --: | --: |"]
    rows += [row for path in cards for row in rows_of(path)]
    return "\n".join([TITLE, INTRODUCTION.format(example=example), *rows]) + "\n"


def cards_in(to: Path) -> list[Path]:
    return sorted(path for path in to.glob("*/*.json") if path.with_suffix(".pt").exists())


def rows_of(path: Path) -> list[str]:
    """What the table says of the set with this card; UserError where it is none."""
    try:
        card = json.loads(files.read_text(path))
        note = in_a_cell(card["note"])
        dataset = f"{in_a_cell(card['dataset'])} ({note})" if note else in_a_cell(card["dataset"])
        name, folder = in_a_cell(path.stem), in_a_cell(path.parent.name)
        return [f"| {dataset} | [{name}.pt]({folder}/{name}.pt) | {int(card['ipc'])} | "
                f"{', '.join(str(int(turn)) for turn in card['iteration'])} of {paper.ITERATIONS:,} | "
                f"{in_a_cell(line['model'])} | {line['epoch_eval_train'] + 1:,} of {paper.EPOCHS + 1:,} | "
                f"{table_cell(line['accuracies'])} ({len(line['accuracies'])}{not_mirrored(line)}) | "
                f"{card['bytes'] / 1000:.0f} |"
                for line in card["evaluation"]]
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"--to: {path} is no card of a set ({reason(error)}); remove it and its set, or choose another "
                        "folder") from None


def not_mirrored(line: dict) -> str:
    """What the table says of an evaluation without mirrored images, which gives digits another accuracy."""
    return "" if "flip" in line["dsa_strategy"] else ", not mirrored"


def refuse_other_page(readme: Path) -> None:
    """UserError where the page would replace one that is not its own."""
    try:
        with files.open_regular(readme) as file:
            text = file.read(len(TITLE.encode())).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):  # the latter is named where something is written
        return
    except OSError as error:
        raise UserError(f"--to: {readme} cannot be read ({error.strerror}); choose another folder") from None
    if not text.startswith(TITLE):
        raise UserError(f"--to: {readme} is another page, which the table would replace; choose another folder")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("sets", nargs="+", type=as_path, help="res_*.pt files, where their runs left them")
    parser.add_argument("--to", type=as_path, default=Path(__file__).resolve().parents[1] / "Distilled",
                        help="folder to share")
    parser.add_argument("--note", default="", help="what else is to be known of the data set")
    options, flags = parser.parse_known_args()
    if "--fair" in flags:
        parser.error("--fair: a card holds accuracies of the set alone; leave it out")
    for path in options.sets:
        if path.suffix != ".pt":  # the value of a flag of evaluate.py, which this parser does not know
            parser.error(f"{path}: not a .pt file; name the sets first, then the flags of evaluate.py")
    refuse_other_page(options.to / "README.md")
    for path in cards_in(options.to):  # before anything is written
        rows_of(path)
    for path in options.sets:
        publish(path, options.to, options.note, flags)
        files.write_text(options.to / "README.md", page(options.to))


if __name__ == "__main__":
    with reported(alone=True):
        main()
