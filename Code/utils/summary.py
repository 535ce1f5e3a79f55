"""Accuracies in short: mean and population standard deviation over networks, as the published scripts report them."""

import numpy as np

from .system.errors import in_one_line


def mean_and_std(accuracies: list[float]) -> dict[str, float]:
    """{"mean", "std"} of accuracies in 0..1."""
    return {"mean": float(np.mean(accuracies)), "std": float(np.std(accuracies))}


def table_cell(accuracies: list[float]) -> str:
    """Mean and standard deviation in percent."""
    mean, std = mean_and_std(accuracies).values()
    return f"{100 * mean:.2f} ± {100 * std:.2f}"


def percent(accuracies: list[float]) -> str:
    """The same as `table_cell`, in ASCII."""
    return table_cell(accuracies).replace("±", "+-") + " %"


def in_a_cell(text: object) -> str:
    """Text in one line, which does not end a cell of a table in Markdown."""
    return in_one_line(" ".join(str(text).split())).replace("|", r"\|")


def curve(lines: list[dict]) -> list[dict]:
    """Lines of metrics.jsonl -> a point for each iteration: mean and standard deviation over networks, mean seconds."""
    points = []
    for iteration in dict.fromkeys(line["iteration"] for line in lines):
        own = [line for line in lines if line["iteration"] == iteration]
        points.append({"iteration": iteration, "seconds": float(np.mean([line["seconds"] for line in own])),
                       **mean_and_std([accuracy for line in own for accuracy in line["accuracies"]])})
    return points
