"""Writes a saved set in the form that other projects read: formations expanded, float32 or 8-bit pixels.

    python3 -u export.py ../Distilled/MNIST/BACON_ipc10.pt --to dm --out exported

dm: one .pt, {"data": [[images, labels], ...]} of all experiments, normalised. mtt: images_best.pt, labels_best.pt and
lr_best.pt, normalised; soft labels as logits, as DATM trains on. ddranking: images.pt and labels.pt, normalised. npz:
images in 8 bits, channels last, and labels. png: <class number>/<image>.png.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils import storage
from utils.options import as_path, new_parser, whole_number
from utils.system import files
from utils.system.errors import UserError
from utils.system.reporting import reported

SMALLEST = 1e-30  # a probability whose logarithm is still finite


def save_dm(saved: dict, sets: list[tuple[Tensor, Tensor]], experiment: int, out: Path) -> str:
    storage.save(out / "set.pt", {"data": [list(pair) for pair in sets], "accs_all_exps": saved["accs_all_exps"]})
    return "set.pt"


def save_mtt(saved: dict, sets: list[tuple[Tensor, Tensor]], experiment: int, out: Path) -> str:
    images, labels = sets[experiment]
    if labels.is_floating_point():
        labels = labels.clamp(min=SMALLEST).log()
    storage.save(out / "images_best.pt", images)
    storage.save(out / "labels_best.pt", labels)
    storage.save(out / "lr_best.pt", torch.tensor(float(saved["meta"].get("options", {}).get("lr_net", 0.01))))
    return "images_best.pt, labels_best.pt, lr_best.pt"


def save_ddranking(saved: dict, sets: list[tuple[Tensor, Tensor]], experiment: int, out: Path) -> str:
    for name, part in zip(("images", "labels"), sets[experiment], strict=True):
        storage.save(out / f"{name}.pt", part)
    return "images.pt, labels.pt"


def in_8_bits(saved: dict, images: Tensor) -> np.ndarray:
    """Normalised images -> uint8 (N, H, W, C)."""
    if "mean" not in saved["meta"]:
        raise UserError("--to: pixels are wanted, and the set does not say how its images were normalised; take dm, "
                        "mtt or ddranking")
    pixels = storage.pixels(images, saved["meta"])
    return (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def save_npz(saved: dict, sets: list[tuple[Tensor, Tensor]], experiment: int, out: Path) -> str:
    images, labels = sets[experiment]
    pixels = in_8_bits(saved, images)
    files.write_whole(out / "set.npz", lambda file: np.savez(file, images=pixels, labels=labels.numpy()))
    return "set.npz"


def save_png(saved: dict, sets: list[tuple[Tensor, Tensor]], experiment: int, out: Path) -> str:
    images, labels = sets[experiment]
    if labels.is_floating_point():
        print("note: folders hold no soft labels; the class of the highest is taken", flush=True)
        labels = labels.argmax(dim=1)
    for k, (image, label) in enumerate(zip(in_8_bits(saved, images), labels.tolist(), strict=True)):
        folder = files.make_folder(out / f"{label:05}", "--out")
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        files.write_whole(folder / f"{k:05}.png", lambda file, picture=picture: picture.save(file, "PNG"))
    return f"{len(images)} images by class number"


FORMS = {"dm": save_dm, "mtt": save_mtt, "ddranking": save_ddranking, "npz": save_npz, "png": save_png}


def export(path: Path, to: str, out: Path, experiment: int = 0, formation: int = 1) -> str:
    """Writes a set into the new or empty folder `out`, and returns what is there. UserError as `storage.load`."""
    saved = storage.load(path)
    sets = [(images.contiguous(), labels.contiguous()) for images, labels in storage.ready(saved, formation)]
    if experiment >= len(sets):
        raise UserError(f"--experiment {experiment}: {path} has experiments 0 to {len(sets) - 1}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} is there already; name a new or an empty folder")
    return FORMS[to](saved, sets, experiment, files.make_folder(out, "--out"))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("set", type=as_path, help="saved set")
    parser.add_argument("--to", choices=FORMS, required=True, help="form")
    parser.add_argument("--out", type=as_path, required=True, help="new folder for it")
    parser.add_argument("--experiment", type=whole_number(0), default=0, help="which set of the file; dm takes all")
    parser.add_argument("--aug", action="store_true", help="its images are 2x2 formations (ours say so themselves)")
    options = parser.parse_args()
    with reported(alone=True):
        done = export(options.set, options.to, options.out, options.experiment, 2 if options.aug else 1)
        print(f"exported: {options.out}: {done}")


if __name__ == "__main__":
    main()
