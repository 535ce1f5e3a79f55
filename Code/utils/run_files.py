"""The names of the files that a run leaves, and what options.json says of it.

A run has a folder of its own below --save_path. Its sets and pictures lie beside that folder, under the same name.
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import torch

from .system import device, files
from .system.errors import UserError, memory_for, reason


def in_file_names(method: str) -> str:
    """A method or data set as it stands in names of files: not all systems take the colon of module:name."""
    return method.replace(":", ".")


def data_name(options) -> str:
    """What the data of a run are called: its own --name, or that of the data set."""
    return getattr(options, "name", None) or in_file_names(options.dataset)


def run_name(options) -> str:
    """The name of a run of these options: that of its folder, and part of the names of its files."""
    return f"{in_file_names(options.method)}_{data_name(options)}_{options.model}_{options.ipc}ipc"


def run_folder(options) -> Path:
    """The folder of a run of these options."""
    return options.save_path / run_name(options)


def set_path(folder: Path) -> Path:
    """The set that the run of this folder leaves."""
    return folder.with_name(f"res_{folder.name}.pt")


def best_path(folder: Path) -> Path:
    """The set of the run that did best on the test images."""
    return folder.with_name(f"res_{folder.name}_best.pt")


def folder_of(path: Path) -> Path:
    """The folder of the run that left this set."""
    return path.with_name(path.stem.removeprefix("res_"))


def picture_path(folder: Path, experiment: int | str, iteration: int | str) -> Path:
    """The picture of a set; "*" in place of a number makes a pattern for `Path.glob`."""
    return folder.with_name(f"vis_{folder.name}_exp{experiment}_iter{iteration}.png")


def options_path(folder: Path) -> Path:
    """Command, options, versions, machine and date."""
    return folder / "options.json"


def metrics_path(folder: Path) -> Path:
    """Accuracies: a line for each network at each evaluation."""
    return folder / "metrics.jsonl"


def losses_path(folder: Path) -> Path:
    """Loss terms: a line for each of some 200 iterations."""
    return folder / "losses.jsonl"


def read_metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl; KeyError, TypeError or ValueError where they are not as a run writes them."""
    lines = files.read_json_lines(metrics_path(folder))
    check_metrics(lines)
    return lines


def check_metrics(lines: list[dict]) -> None:
    """KeyError, TypeError or ValueError where lines of metrics.jsonl are not as a run writes them."""
    for line in lines:
        counts = [line["experiment"], line["iteration"], line["best_iteration"]]
        numbers = [line["seconds"], *line["accuracies"]]
        if not (line["accuracies"] and all(type(count) is int and count >= 0 for count in counts)
                and all(type(number) is float and 0 <= number < math.inf for number in numbers)
                and max(line["accuracies"]) <= 1 and type(line["model"]) is str):
            raise ValueError("a line of its metrics.jsonl has values that no run writes")


def is_finished(iterations: list[int], options: dict) -> bool:
    """Whether sets of these iterations, one for each experiment, are all that a run of these options is to make."""
    return iterations == [options["Iteration"]] * options["num_exp"]


@contextlib.contextmanager
def undamaged(place: Path):
    """Around reading what a run left: whatever is not as a run leaves it becomes a UserError."""
    try:
        with memory_for(place):
            yield
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"{place}: damaged, or not what a run leaves ({reason(error)}); remove it or run it "
                        "again") from None


def plain(options) -> dict:
    """The options as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def circumstances(of: torch.device) -> dict[str, str | list[str]]:
    """What a measured figure needs beside it: the command, the machine and the date."""
    return {"command": sys.argv, "machine": device.describe(of), "date": time.strftime("%Y-%m-%d")}
