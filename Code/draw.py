"""Draws the pictures of the pages from distilled sets with their cards.

    python3 -u draw.py --synthetic ../Distilled/MNIST/BACON_ipc1.pt ../Distilled/MNIST/BACON_ipc10.pt --data_path data

leaves Fig/sets_MNIST.png: sets of one data set beside real images of its classes.

    python3 -u draw.py --synthetic ../Distilled/CIFAR10/BACON_ipc10.pt --data_path data --random 30.69 --start 42.62

leaves those of README: the set beside real images, Fig/hero.png, and the method, Fig/method.png. The accuracy of a set
is that of its card. --random and --start are accuracies in % by the same protocol: of random real images, and of the
random formation that distillation started from. They come from

    python3 -u BACON_cifar10.py --method random --ipc 10 --model ConvNet --num_exp 1 --num_eval 3 \\
        --epoch_eval_train 200 --compile --save_path result/random
    python3 -u BACON_cifar10.py --method random --aug --ipc 10 --model ConvNet --num_exp 1 --num_eval 3 \\
        --epoch_eval_train 200 --precision bf16 --compile --save_path result/start
"""

import json
from argparse import Namespace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from torch import Tensor

from utils import augment, data, paper, storage
from utils.distill import initial_images
from utils.draws import Draws
from utils.figures import INK, PAPER, SERIES, STYLE
from utils.options import as_path, finite_number, new_parser
from utils.system import files
from utils.system.errors import UserError
from utils.system.reporting import reported

PER_INCH = 160  # pixels: 1,600 of the pictures' 10 inches, twice the width of a page on GitHub
FIG = Path(__file__).resolve().parents[1] / "Fig"
CLASSES, PER_CLASS = 5, 4  # of the hero picture, and images of each
ROWS = 10  # most classes of the picture of several sets
REAL, SYNTHETIC, MUTED = SERIES[2], SERIES[0], "#60656c"
TURN = (0.9, 0.5, 0.5)  # draws of the rotation that the drawing shows
UPPER, LOWER = 29.7, 13.4  # where the drawing has real and synthetic images


def parse() -> Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--synthetic", type=as_path, nargs="+", required=True, help="sets with their cards beside them")
    parser.add_argument("--data_path", type=as_path, default="data", help="folder of the data sets")
    parser.add_argument("--random", type=finite_number(0, 100), help="accuracy in %% of random real images")
    parser.add_argument("--start", type=finite_number(0, 100), help="accuracy in %% of the random formation")
    parser.add_argument("--save_path", type=as_path, default=FIG, help="folder for the pictures")
    options = parser.parse_args()
    if (options.random is None) != (options.start is None):
        parser.error("--random, --start: README's pictures show both; give both, or neither")
    if options.random is not None and len(options.synthetic) > 1:
        parser.error("--synthetic: README's pictures show one set; name one, or leave --random and --start out")
    return options


def read_card(path: Path) -> dict:
    """What the pictures say of a set, from the card beside it; UserError where there is none."""
    try:
        card = json.loads(files.read_text(path.with_suffix(".json")))
        found = card["evaluation"][0]
        return {"note": card["note"], "model": found["model"], "accuracy": 100 * float(found["mean"]),
                "epochs": found["epoch_eval_train"] + 1}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"--synthetic {path}: its card, .json, is missing or damaged; name a set that publish.py "
                        "left") from None


def load_real(path: Path, meta: dict, data_path: Path) -> data.RealData:
    """The data set that a set was made from; UserError where it is another."""
    real = data.load(meta["dataset"], data_path)
    if real.class_names != meta["class_names"]:
        raise UserError(f"--data_path {data_path}: its classes are not those of {path}; name the folder of the data "
                        "set that it was made from")
    return real


def stored_images(saved: dict, real: data.RealData) -> dict[str, Tensor]:
    """Pixels (K, ipc, C, H, W) in 0..1 of random real images, of the start and of the distilled set."""
    meta = saved["meta"]
    draws, ipc, classes = Draws(meta["seed"]), meta["ipc"], len(meta["class_names"])
    sets = {"random": real.pixels(initial_images(real, draws, ipc).flatten(0, 1)),
            "start": real.pixels(initial_images(real, draws, ipc, aug=True).flatten(0, 1)),
            "distilled": storage.pixels(saved["data"][0][0], meta)}
    return {name: pixels.unflatten(0, (classes, ipc)) for name, pixels in sets.items()}


def picture(image: Tensor) -> np.ndarray:
    """Pixels (C, H, W) -> (H, W, 3), as matplotlib shows them."""
    return image.expand(3, *image.shape[1:]).permute(1, 2, 0).numpy()


def new_axes(width: float, height: float) -> Axes:
    """Axes over a whole figure of this size in inches, with a unit of a tenth of an inch."""
    axes = Figure(figsize=(width, height), facecolor=PAPER).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    axes.set_axis_off()
    return axes


def save(axes: Axes, path: Path) -> None:
    files.write_whole(path, lambda file: axes.figure.savefig(file, format="png", dpi=PER_INCH))
    print(path)


def thumbnail(axes: Axes, image: Tensor, x: float, y: float, side: float) -> None:
    axes.imshow(picture(image), extent=(x, x + side, y, y + side), interpolation="nearest", zorder=3)
    axes.add_patch(Polygon([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], fill=False, edgecolor=PAPER,
                           linewidth=1.2, zorder=3))


def image_blocks(axes: Axes, blocks: list[Tensor], names: list[str], left: float, top: float, side: float,
                 gap: float) -> list[float]:
    """Draws blocks of images (K, n, C, H, W) side by side, a class a row behind its name; the middle x of each."""
    middles = []
    for r, name in enumerate(names):
        axes.text(left - 1, top - (r + 0.5) * side, name, ha="right", va="center", fontsize=9)
    for images in blocks:
        for r, row in enumerate(images):
            for c, image in enumerate(row):
                thumbnail(axes, image, left + c * side, top - (r + 1) * side, side)
        middles.append(left + images.shape[1] * side / 2)
        left += images.shape[1] * side + gap
    return middles


@matplotlib.rc_context(STYLE)
def hero(images: dict[str, Tensor], accuracies: dict[str, float], class_names: list[str], about: str) -> Axes:
    """Three blocks of images, a class a row, with the accuracy of a network trained on such a set under each."""
    axes, side, left, top = new_axes(10, 4.9), 6.9, 9.4, 44.6
    titles = {"random": "random real images", "start": "random 2×2 formation: the start", "distilled": "distilled"}
    rows = np.linspace(0, len(class_names) - 1, CLASSES).round().astype(int)
    middles = image_blocks(axes, [images[name][rows, :PER_CLASS] for name in titles], [class_names[k] for k in rows],
                           left, top, side, gap=2)
    for middle, (name, title) in zip(middles, titles.items(), strict=True):
        axes.text(middle, top + 1, title, ha="center", fontsize=10.5)
        best = name == "distilled"
        axes.text(middle, top - CLASSES * side - 4.2, f"{accuracies[name]:.1f} %", ha="center", fontsize=17,
                  weight="bold", color=SYNTHETIC if best else INK)
    axes.text(50, 1.2, about, ha="center", fontsize=9, color=MUTED)
    return axes


@matplotlib.rc_context(STYLE)
def beside_real(blocks: dict[str, Tensor], class_names: list[str]) -> Axes:
    """Blocks of images (K, n, C, H, W), of which a title says what they are, for the same classes."""
    columns = sum(images.shape[1] for images in blocks.values())
    side = 86 / (columns + 0.5 * len(blocks))
    axes, top = new_axes(10, side * len(class_names) / 10 + 0.6), side * len(class_names) + 1
    middles = image_blocks(axes, list(blocks.values()), class_names, 11, top, side, gap=side / 2)
    for middle, title in zip(middles, blocks, strict=True):
        axes.text(middle, top + 1, title, ha="center", fontsize=9)
    return axes


def box(axes: Axes, x: float, y: float, width: float, height: float, color: str = INK) -> None:
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1", linewidth=1,
                                  edgecolor=color, facecolor="white", zorder=1))


def arrow(axes: Axes, *points: tuple[float, float], color: str = INK) -> None:
    """Lines from point to point, with a head at the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=color, linewidth=1.4, solid_capstyle="round", zorder=2)
    axes.annotate("", points[-1], points[-2], zorder=2,
                  arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0,
                              "mutation_scale": 13})


def embeddings(axes: Axes, x: float, y: float, color: str, count: int, spread: float) -> None:
    """A cloud of points with its mean; for real images also the circle of a standard deviation."""
    points = np.random.default_rng(0).normal(size=(count, 2)) * spread
    points -= points.mean(axis=0)
    axes.scatter(x + points[:, 0], y + points[:, 1], s=13, color=color, alpha=0.45, linewidths=0, zorder=3)
    axes.scatter(x, y, s=75, color=color, marker="X", edgecolors=PAPER, linewidths=0.8, zorder=4)
    if color == REAL:
        axes.add_patch(Circle((x, y), 1.5 * spread, fill=False, edgecolor=color, linestyle=(0, (3, 2)), zorder=3))


def inputs(axes: Axes, real: Tensor, stored: Tensor) -> None:
    """Real images (N, C, H, W) of a class and a stored formation, before and after the same rotation."""
    tiles = augment.expand_formation(stored[None])
    turned = [augment.rotate(images[:1] - 0.5, torch.tensor([TURN]))[0] + 0.5 for images in (real, tiles)]
    for k, image in enumerate(real[:3].flip(0)):
        thumbnail(axes, image, 4.5 - 0.9 * k, 24.4 + 0.9 * k, 9)
    thumbnail(axes, stored, 3.6, 8.9, 9)
    axes.text(8.1, 36.6, "real images\nof one class", ha="center", color=REAL, weight="bold")
    axes.text(8.1, 4.5, "synthetic images,\neach of four parts", ha="center", color=SYNTHETIC, weight="bold")
    box(axes, 18.4, 8, 11, 27)
    axes.text(23.9, 21.5, "the same\nrandom\naugmentation\n(DSA)", ha="center", va="center")
    for image, y, color in ((turned[0], UPPER, REAL), (turned[1], LOWER, SYNTHETIC)):
        arrow(axes, (14.2, y), (18, y), color=color)
        arrow(axes, (29.8, y), (33.4, y), color=color)
        thumbnail(axes, image.clamp(0, 1), 33.8, y - 4, 8)
        arrow(axes, (42.2, y), (45.6, y), color=color)


def network(axes: Axes) -> None:
    axes.add_patch(Polygon([(46, 6), (57, 12), (57, 31), (46, 37)], facecolor="white", edgecolor=INK, linewidth=1,
                           joinstyle="round", zorder=1))
    axes.text(51.5, 21.5, "a network\nof the pool", ha="center", va="center")
    axes.text(51.5, 38.3, "trained on real images\nbeside the distillation", ha="center", color=MUTED)


def objective(axes: Axes) -> None:
    """The embeddings and the loss between their means."""
    for y, color, count, spread in ((UPPER, REAL, 60, 2.1), (LOWER, SYNTHETIC, 12, 1.7)):
        arrow(axes, (57.4, y), (61, y), color=color)
        embeddings(axes, 66.5, y, color, count, spread)
        arrow(axes, (72, y), (75.6, y), color=color)
    axes.text(66.5, 21.5, "embeddings z\nand their mean", ha="center", va="center", color=MUTED)
    axes.text(66.5, UPPER + 4.4, "$\\sigma$", ha="center", color=REAL, fontsize=12, parse_math=True)
    box(axes, 76, 8, 22, 27)
    for y, text, weight in ((31.6, "loss of the class", "bold"), (27.2, "likelihood", "bold"),
                            (19.4, "prior", "bold")):
        axes.text(87, y, text, ha="center", weight=weight)
    axes.text(87, 23.6, "$-\\log\\,N(\\bar z_{syn};\\ \\bar z_{real},\\ \\sigma)$", ha="center", fontsize=11,
              parse_math=True)
    axes.text(87, 16.1, "0.8 TV + 0.2 CLIP", ha="center")
    axes.text(87, 10.6, "and cross-entropy\nwith --syn_ce", ha="center", color=MUTED)


@matplotlib.rc_context(STYLE | {"font.size": 10})
def method(real: Tensor, stored: Tensor) -> Axes:
    """How the images of one class are updated: from real images (N, C, H, W) and a stored formation to the loss."""
    axes = new_axes(10, 4.3)
    inputs(axes, real, stored)
    network(axes)
    objective(axes)
    arrow(axes, (87, 7.7), (87, 1.6), (16.2, 1.6), (16.2, 10.2), (13.1, 10.2), color=SYNTHETIC)
    axes.text(51.5, 2.4, "the gradient moves the synthetic images alone", ha="center", color=SYNTHETIC, weight="bold")
    return axes


def draw_sets(options) -> None:
    """Sets of one data set beside its real images, which are those of the first set's random start."""
    sets = {path: storage.load(path) for path in options.synthetic}
    first = next(iter(sets.values()))["meta"]
    if other := [path for path, saved in sets.items() if saved["meta"]["dataset"] != first["dataset"]]:
        raise UserError(f"--synthetic {other[0]}: not made from {first['dataset']}, as the first; name sets of one "
                        "data set")
    real = load_real(options.synthetic[0], first, options.data_path)
    rows = np.linspace(0, real.num_classes - 1, min(real.num_classes, ROWS)).round().astype(int)
    chosen = real.pixels(initial_images(real, Draws(first["seed"]), PER_CLASS).flatten(0, 1))
    blocks = {"real images": chosen.unflatten(0, (real.num_classes, PER_CLASS))[rows]}
    for path, saved in sets.items():
        meta = saved["meta"]
        stored = storage.pixels(saved["data"][0][0], meta).unflatten(0, (real.num_classes, meta["ipc"]))
        title = f"{meta['method']}, IPC {meta['ipc']}\n{read_card(path)['accuracy']:.1f} %"
        blocks[title] = stored[rows, :PER_CLASS]
    files.make_folder(options.save_path)
    save(beside_real(blocks, [real.class_names[k] for k in rows]), options.save_path / f"sets_{first['dataset']}.png")


def draw_readme(options) -> None:
    """README's two pictures, of one set."""
    path, = options.synthetic
    saved, card = storage.load(path), read_card(path)
    meta = saved["meta"]
    if meta["ipc"] < PER_CLASS or meta["formation"] != 2:
        raise UserError(f"--synthetic {path}: README's pictures show 2x2 formations, {PER_CLASS} of a class; name a "
                        "set of more images, made with --aug")
    real = load_real(path, meta, options.data_path)
    images = stored_images(saved, real)
    note = f" ({card['note']})" if card["note"] else ""
    about = (f"{meta['dataset']}{note}, {meta['ipc']} images per class, {meta['iteration'][0]:,} of "
             f"{paper.ITERATIONS:,} iterations.\nTest accuracy of {card['model']} trained on such a set alone, "
             f"{card['epochs']:,} of {paper.EPOCHS + 1:,} epochs.")
    accuracies = {"random": options.random, "start": options.start, "distilled": card["accuracy"]}
    files.make_folder(options.save_path)
    save(hero(images, accuracies, real.class_names, about), options.save_path / "hero.png")
    save(method(images["random"][-3, 1:], images["distilled"][-3, 0]), options.save_path / "method.png")


def main() -> None:
    options = parse()
    (draw_sets if options.random is None else draw_readme)(options)


if __name__ == "__main__":
    with reported(alone=True):
        main()
