"""Figures of a run with one look: SVG that takes its colours from the page around it, light or dark, and PNG."""

import base64
import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from . import summary
from .paper import ITERATIONS
from .system import files

INK, PAPER = "#1c2024", "#fdfdfc"  # of text and background; in SVG the page's own take their place
SERIES = ["#3e7bfa", "#e5634d", "#2c9f72", "#b264d6", "#c98a0c", "#159fb3", "#de5f9c", "#7d8b23", "#8a7a66", "#6d70e8"]
SHADES = LinearSegmentedColormap.from_list("shades", [(*to_rgb(SERIES[0]), alpha) for alpha in (0, 1)])
STYLE = {"font.size": 9, "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
         "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
         "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none",
         "figure.facecolor": PAPER, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "",
         "axes.formatter.limits": (-3, 5)}
TERMS = {"nll": "likelihood", "tv": "total variation", "clip": "CLIP", "ce": "cross-entropy",
         "mean": "squared distance of the means", "pool": "accuracy of the pool, %"}
NAMED = 20  # classes whose names fit beside a confusion matrix
GAP = 1  # pixels around images


def plot_curve(axes, points: list[dict], against: str = "iteration", after: float = 0, **look) -> None:
    """Accuracy in % against "iteration" or "seconds", from what `curve` gives; it begins `after` so many of them."""
    x, mean, std = (np.array([point[name] for point in points]) for name in (against, "mean", "std"))
    axes.errorbar(after + x, 100 * mean, 100 * std, marker="o", markersize=3, capsize=2, **look)


def _new(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def label_x(axes, against: str = "iteration") -> None:
    """Iterations or seconds along x; there is no tick between two of them, also where there is one point alone."""
    axes.set(xlabel=against)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)


@matplotlib.rc_context(STYLE)
def accuracies(lines: list[dict], paper: float | None) -> Figure:
    """Accuracy against iteration for each evaluated network, beside the paper's number in % where there is one."""
    figure, axes = _new(4.4, 2.9)
    for color, model in zip(SERIES, dict.fromkeys(line["model"] for line in lines), strict=False):
        plot_curve(axes, summary.curve([line for line in lines if line["model"] == model]), color=color, label=model)
    if paper:
        axes.axhline(paper, color=INK, linestyle=(0, (4, 3)), linewidth=0.9,
                     label=f"the paper, {ITERATIONS:,} iterations")
    axes.set(ylabel="test accuracy, %")
    label_x(axes)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best", fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def losses(lines: list[dict], term: str) -> Figure:
    """One term of the loss against iteration, a line for each experiment."""
    figure, axes = _new(2.6, 1.75)
    for experiment in dict.fromkeys(line["experiment"] for line in lines):
        own = [line for line in lines if line["experiment"] == experiment and term in line["terms"]]
        axes.plot([line["iteration"] for line in own], [line["terms"][term] for line in own], linewidth=1,
                  color=SERIES[experiment % len(SERIES)])
    label_x(axes)
    return figure


@matplotlib.rc_context(STYLE)
def embeddings(points: np.ndarray, labels: np.ndarray, real: np.ndarray, class_names: list[str]) -> Figure:
    """Points (N, 2) of classes (N,): where `real`, faint dots, else framed squares; a name where its dots lie."""
    figure, axes = _new(4.4, 4.2)
    size = 20 if (~real).sum() <= 100 else 9
    for k in range(len(class_names)):
        color, own = SERIES[k % len(SERIES)], labels == k
        axes.scatter(*points[own & ~real].T, s=size, color=color, marker="s", edgecolors=INK, linewidths=0.5, alpha=0.9)
        axes.scatter(*points[own & real].T, s=7, color=color, alpha=0.6, linewidths=0)
    named = np.unique(labels[real])
    middles = np.array([np.median(points[(labels == k) & real], axis=0) for k in named])
    box = {"boxstyle": "round,pad=0.2", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
    for place, k in zip(_apart(middles, np.ptp(points, axis=0)), named, strict=True):
        axes.text(*place, _short(class_names[k]), ha="center", va="center", fontsize=8.5, weight="bold", bbox=box)
    axes.set_axis_off()
    return figure


def _apart(places: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Places (K, 2) of names, moved up and down until none covers another."""
    width, height = 0.24 * extent[0], 0.055 * extent[1]
    places = places[order := places[:, 1].argsort()].copy()
    for k in range(1, len(places)):
        for below in places[:k]:
            if abs(places[k, 0] - below[0]) < width:
                places[k, 1] = max(places[k, 1], below[1] + height)
    return places[order.argsort()]


@matplotlib.rc_context(STYLE)
def confusion(shares: np.ndarray, class_names: list[str]) -> Figure:
    """The confusion matrix (K, K), a true class a row, in % of it."""
    figure, axes = _new(4.4, 4.2)
    axes.imshow(shares, cmap=SHADES, vmin=0, vmax=100, interpolation="none")
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(class_names) <= NAMED:
        names = [_short(name) for name in class_names]
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(len(names)), names)
        for row, column in np.argwhere(shares >= 0.5):
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7.5,
                      color="white" if shares[row, column] > 60 else INK)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


def save_png(figure: Figure, path: Path) -> None:
    files.write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))


def svg(figure: Figure, name: str) -> str:
    """The <svg> element, with the page's colours and font; `name` keeps its ids apart from those of others."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True,
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = text.getvalue()[text.getvalue().index("<svg"):]
    width, height = 96 * figure.get_size_inches()
    element = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>",
                     rf'<svg xmlns:xlink="http://www.w3.org/1999/xlink" \1 width="{width:.0f}" height="{height:.0f}">',
                     element, count=1)
    element = re.sub(r"font: ((?:\w+ )?)([\d.]+)px [^;\"]*", r"font: \1 \2px inherit", element)
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
    return element.replace(INK, "currentColor").replace(PAPER, "var(--paper)")


def png(pixels: Tensor, per_row: int) -> bytes:
    """Images (N, C, H, W) with pixels in 0..1 as a PNG, pixel by pixel, framed in a grey that is half transparent."""
    from torchvision.transforms.functional import to_pil_image  # here, because it takes seconds

    from . import pictures

    opaque = F.pad(pixels.mul(255).round().int(), (0, 0, 0, 0, 0, 1), value=255)  # one channel more
    sheet = pictures.grid(opaque, per_row, GAP, between=-1)
    frame = torch.tensor([128] * pixels.shape[1] + [80], dtype=torch.int).reshape(-1, 1, 1)
    file = io.BytesIO()
    to_pil_image(torch.where(sheet < 0, frame, sheet).byte()).save(file, format="png", optimize=True)
    return file.getvalue()


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
