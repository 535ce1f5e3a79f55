"""Writes a saved set in the form that other projects read: formations expanded, float32 or 8-bit pixels.

    python3 -u export.py ../Distilled/MNIST/BACON_ipc10.pt --to dm --out exported

dm: one .pt, {"data": [[images, labels], ...]} of all experiments, normalised. mtt: images_best.pt, labels_best.pt and
lr_best.pt, normalised; soft labels as logits, as DATM trains on. ddranking: images.pt, labels.pt and lr.pt, the same
but class by class, as many of each. npz: images in 8 bits, channels last, and labels. png: <class number>/<image>.png.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils import storage
from utils.data.normalisation import per_channel
from utils.options import as_path, new_parser, whole_number
from utils.system import files
from utils.system.errors import UserError, say
from utils.system.reporting import reported

SMALLEST = 1e-30  # a probability whose logarithm is still finite
# Mean and standard deviation that MTT, DATM and DD-Ranking normalise with: for CIFAR-100, too, those of CIFAR-10.
_CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STATISTICS = {"CIFAR10": _CIFAR, "CIFAR100": _CIFAR, "TinyImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def as_there(saved: dict, images: Tensor) -> Tensor:
    """Normalised images (N, C, H, W) with the STATISTICS of those projects; says where it cannot know them."""
    meta = saved["meta"]
    own, theirs = (meta.get("mean"), meta.get("std")), STATISTICS.get(meta.get("dataset"))
    if meta.get("zca"):
        say("note: its images are whitened; say --zca there, too (use_zca in DD-Ranking)")
    elif theirs is None or own == (None, None):
        say(f"note: values are as they were, {images.min():.4g} to {images.max():.4g}; see that they are normalised "
            "as there")
    elif tuple(map(tuple, own)) != theirs:
        (mean, std), (to_mean, to_std) = ([per_channel(part, images) for part in pair] for pair in (own, theirs))
        images = (images * std + mean - to_mean) / to_std
    return images


def save_dm(saved: dict, sets: list[tuple[Tensor, Tensor]], out: Path) -> str:
    storage.save(out / "set.pt", {"data": [list(pair) for pair in sets], "accs_all_exps": saved["accs_all_exps"]})
    return "set.pt"


def _save_parts(saved: dict, images: Tensor, labels: Tensor, out: Path, ending: str) -> str:
    """Images, labels (soft ones as logits) and the learning rate of the set's protocol, a file each."""
    if labels.is_floating_point():
        labels = labels.clamp(min=SMALLEST).log()
    lr = torch.tensor(float(saved["meta"].get("options", {}).get("lr_net", 0.01)))
    for name, part in (("images", as_there(saved, images)), ("labels", labels), ("lr", lr)):
        storage.save(out / f"{name}{ending}.pt", part.contiguous())
    return ", ".join(f"{name}{ending}.pt" for name in ("images", "labels", "lr"))


def save_mtt(saved: dict, images: Tensor, labels: Tensor, classes: Tensor, out: Path) -> str:
    return _save_parts(saved, images, labels, out, "_best")


def save_ddranking(saved: dict, images: Tensor, labels: Tensor, classes: Tensor, out: Path) -> str:
    """Its scores take the first ipc images for class 0, the next for class 1 and so on, whatever the labels say."""
    sizes = classes.bincount().tolist()
    if min(sizes) < max(sizes):
        raise UserError(f"--to ddranking: as many images of each class are wanted, and the set has {min(sizes)} to "
                        f"{max(sizes)}; take another form")
    order = classes.argsort(stable=True)
    return f"{_save_parts(saved, images[order], labels[order], out, '')}; ipc {sizes[0]}"


def in_8_bits(saved: dict, images: Tensor) -> np.ndarray:
    """Normalised images -> uint8 (N, H, W, C)."""
    if "mean" not in saved["meta"]:
        raise UserError("--to: pixels are wanted, and the set does not say how its images were normalised; take dm, "
                        "mtt or ddranking")
    pixels = storage.pixels(images, saved["meta"])
    return (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def save_npz(saved: dict, images: Tensor, labels: Tensor, classes: Tensor, out: Path) -> str:
    pixels = in_8_bits(saved, images)
    files.write_whole(out / "set.npz", lambda file: np.savez(file, images=pixels, labels=labels.numpy()))
    return "set.npz"


def save_png(saved: dict, images: Tensor, labels: Tensor, classes: Tensor, out: Path) -> str:
    if labels.is_floating_point():
        say("note: folders hold no soft labels; the classes are taken")
    for k, (image, label) in enumerate(zip(in_8_bits(saved, images), classes.tolist(), strict=True)):
        folder = files.make_folder(out / f"{label:05}", "--out")
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        files.write_whole(folder / f"{k:05}.png", lambda file, picture=picture: picture.save(file, "PNG"))
    return f"{len(images)} images by class number"


ONE_SET = {"mtt": save_mtt, "ddranking": save_ddranking, "npz": save_npz, "png": save_png}


def export(path: Path, to: str, out: Path, experiment: int = 0, formation: int = 1) -> str:
    """Writes a set into the new or empty folder `out`, and returns what is there. UserError as `storage.load`."""
    saved = storage.load(path)
    sets = [(images.contiguous(), labels.contiguous()) for images, labels in storage.ready(saved, formation)]
    if experiment >= len(sets):
        raise UserError(f"--experiment {experiment}: {path} has experiments 0 to {len(sets) - 1}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} is there already; name a new or an empty folder")
    files.make_folder(out, "--out")
    if to == "dm":
        if saved["meta"].get("zca"):
            say("note: its images are whitened; test images are to be, too, which DM's code does not do")
        return save_dm(saved, sets, out)
    if len(sets) > 1:
        say(f"note: --experiment {experiment} of 0 to {len(sets) - 1} alone is exported")
    _, classes = storage.expand(*saved["data"][experiment], saved["meta"].get("formation", formation))
    return ONE_SET[to](saved, *sets[experiment], classes, out)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("set", type=as_path, help="saved set")
    parser.add_argument("--to", choices=("dm", *ONE_SET), required=True, help="form")
    parser.add_argument("--out", type=as_path, required=True, help="new folder for it")
    parser.add_argument("--experiment", type=whole_number(0), default=0, help="which set of the file; dm takes all")
    parser.add_argument("--aug", action="store_true", help="its images are 2x2 formations (ours say so themselves)")
    options = parser.parse_args()
    done = export(options.set, options.to, options.out, options.experiment, 2 if options.aug else 1)
    say(f"exported: {options.out}: {done}")


if __name__ == "__main__":
    with reported(alone=True):
        main()
