"""Exported sets, read back by copies of what the other projects do with their files, and by evaluate.py."""

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

import export
import utils
from conftest import ROOT, call_script
from utils import storage
from utils.system.errors import UserError

SET = ROOT / "Distilled" / "digits" / "BACON_ipc1.pt"


def read_dm(folder):
    """DM's and IDM's: torch.load(path)["data"], a list of [images, labels]."""
    image_syn, label_syn = torch.load(folder / "set.pt", weights_only=True)["data"][0]
    return image_syn, label_syn


def read_mtt(folder):
    """MTT's and DATM's: images_best.pt, labels_best.pt and lr_best.pt."""
    assert float(torch.load(folder / "lr_best.pt", weights_only=True)) > 0
    return (torch.load(folder / f"{name}_best.pt", weights_only=True) for name in ("images", "labels"))


def read_ddranking(folder):
    return (torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu") for name in ("images", "labels"))


def read_npz(folder):
    with np.load(folder / "set.npz", allow_pickle=False) as content:
        images, labels = content["images"], content["labels"]
    assert images.dtype == np.uint8 and images.shape[3] == 1
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels)


def read_png(folder):
    """RDED's and SRe2L's: torchvision's ImageFolder, classes in the order of the folders' names."""
    samples = [(torch.from_numpy(np.array(image.convert("L")))[None], label) for image, label in ImageFolder(folder)]
    return torch.stack([image for image, _ in samples]).float() / 255, torch.tensor([label for _, label in samples])


READERS = {"dm": read_dm, "mtt": read_mtt, "ddranking": read_ddranking, "npz": read_npz, "png": read_png}


def by_class(images, labels):
    order = sorted(range(len(labels)), key=lambda k: (int(labels[k]), images[k].flatten().tolist()))
    return images[order], labels[order]


@pytest.mark.parametrize("form", READERS)
def test_exported_set_is_what_others_expect(form, tmp_path):
    done = call_script("export.py", SET, "--to", form, "--out", tmp_path / form)
    assert str(tmp_path / form) in done.stdout
    images, labels = utils.load_synthetic(SET)
    read, found = READERS[form](tmp_path / form)
    if form in ("npz", "png"):
        images = (255 * storage.pixels(images, storage.load(SET)["meta"])).round() / 255
        (images, labels), (read, found) = by_class(images, labels), by_class(read, found)
    assert torch.equal(read, images) and torch.equal(found, labels)
    assert read.dtype == torch.float32 and found.dtype == torch.int64
    line, = call_script("export.py", SET, "--to", form, "--out", tmp_path / form, expect=2).stderr.splitlines()
    assert "--out: " in line and "is there already" in line


def test_soft_labels(tmp_path):
    soft = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    torch.save({"data": [[torch.randn(6, 1, 8, 8), soft]]}, tmp_path / "soft.pt")
    for form in ("dm", "mtt", "ddranking"):
        export.export(tmp_path / "soft.pt", form, tmp_path / form)
        _, labels = READERS[form](tmp_path / form)
        torch.testing.assert_close(labels.softmax(1) if form == "mtt" else labels, soft)
        path = tmp_path / form / "set.pt" if form == "dm" else tmp_path / form
        torch.testing.assert_close(utils.load_synthetic(path)[1], soft)
    with pytest.raises(UserError, match="does not say how its images were normalised"):
        export.export(tmp_path / "soft.pt", "png", tmp_path / "png")
    with pytest.raises(UserError, match="--experiment 1"):
        export.export(tmp_path / "soft.pt", "dm", tmp_path / "second", experiment=1)
