"""What a run leaves is called: the names of its files, and what options.json says of it."""

import sys
import time
from pathlib import Path

import torch

from .system import device


def in_file_names(method: str) -> str:
    """A method as names of files have it; not all systems take the colon of one's own."""
    return method.replace(":", ".")


def run_name(options) -> str:
    """What the files of a run are called by."""
    return f"{in_file_names(options.method)}_{options.dataset}_{options.model}_{options.ipc}ipc"


def run_folder(options) -> Path:
    """The folder with the records of a run."""
    return options.save_path / run_name(options)


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


def plain(options) -> dict:
    """The options as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def circumstances(of: torch.device) -> dict[str, str | list[str]]:
    """What a figure needs beside it: the command, the machine and the date."""
    return {"command": sys.argv, "machine": device.describe(of), "date": time.strftime("%Y-%m-%d")}
