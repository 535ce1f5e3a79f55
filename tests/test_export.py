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
    """DD-Ranking's: images.pt, labels.pt and lr.pt; hard labels are also those that its scores assume by position."""
    images, labels, lr = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("images", "labels", "lr"))
    assert float(lr) > 0
    ipc = len(images) // 10
    assumed = torch.tensor(np.array([np.ones(ipc) * i for i in range(10)]), dtype=torch.long).view(-1)
    assert labels.is_floating_point() or torch.equal(labels, assumed)
    return images, labels


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
    assert form != "ddranking" or "; ipc 4" in done.stdout
    if form in ("npz", "png"):
        images = (255 * storage.pixels(images, storage.load(SET)["meta"])).round() / 255
    if form in ("npz", "png", "ddranking"):
        (images, labels), (read, found) = by_class(images, labels), by_class(read, found)
    assert torch.equal(read, images) and torch.equal(found, labels)
    assert read.dtype == torch.float32 and found.dtype == torch.int64
    line, = call_script("export.py", SET, "--to", form, "--out", tmp_path / form, expect=2).stderr.splitlines()
    assert "--out: " in line and "is there already" in line


def test_soft_labels(tmp_path):
    """DATM and DD-Ranking take the softmax of what they read, so they get logits; the latter class by class."""
    soft = (torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) / 9 + torch.eye(3).repeat(2, 1)).softmax(1)
    torch.save({"data": [[torch.randn(6, 1, 8, 8), soft]]}, tmp_path / "soft.pt")
    for form in ("dm", "mtt", "ddranking"):
        export.export(tmp_path / "soft.pt", form, tmp_path / form)
        images, labels = READERS[form](tmp_path / form)
        order = [0, 3, 1, 4, 2, 5] if form == "ddranking" else range(6)
        assert torch.equal(images, utils.load_synthetic(tmp_path / "soft.pt")[0][order])
        torch.testing.assert_close(labels if form == "dm" else labels.softmax(1), soft[order])
        path = tmp_path / form / "set.pt" if form == "dm" else tmp_path / form
        torch.testing.assert_close(utils.load_synthetic(path)[1], soft[order])
    with pytest.raises(UserError, match="does not say how its images were normalised"):
        export.export(tmp_path / "soft.pt", "png", tmp_path / "png")
    with pytest.raises(UserError, match="--experiment 1"):
        export.export(tmp_path / "soft.pt", "dm", tmp_path / "second", experiment=1)


def test_sets_are_normalised_as_there(tmp_path):
    """MTT and DD-Ranking normalise CIFAR-100 with the statistics of CIFAR-10."""
    pixels = torch.rand(100, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    normalised = [(values - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None] for values, m, s in (
        (pixels, mean, std), (pixels, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))]
    storage.save(tmp_path / "set.pt", {"data": [[normalised[0], torch.arange(100)]],
                                       "meta": {"dataset": "CIFAR100", "mean": list(mean), "std": list(std)}})
    for form, expected in (("dm", normalised[0]), ("mtt", normalised[1]), ("ddranking", normalised[1])):
        export.export(tmp_path / "set.pt", form, tmp_path / form)
        name = {"dm": "set.pt", "mtt": "images_best.pt", "ddranking": "images.pt"}[form]
        images = torch.load(tmp_path / form / name, weights_only=True)
        torch.testing.assert_close(images["data"][0][0] if form == "dm" else images, expected)


def test_ddranking_wants_as_many_of_each_class(tmp_path):
    torch.save([torch.randn(5, 1, 8, 8), torch.tensor([0, 0, 1, 2, 2])], tmp_path / "uneven.pt")
    with pytest.raises(UserError, match=r"--to ddranking: as many images of each class are wanted, and .* 1 to 2"):
        export.export(tmp_path / "uneven.pt", "ddranking", tmp_path / "out")


def test_what_an_export_leaves_to_the_reader_is_said(tmp_path, capsys):
    images, labels = torch.randn(2, 1, 2, 2), torch.arange(2)
    whitening = {"mean": torch.zeros(1, 4), "matrix": torch.eye(4), "inverse": torch.eye(4)}
    storage.save(tmp_path / "two.pt", {"data": [[images, labels]] * 2, "meta": {"mean": [0.0], "std": [1.0],
                                                                                "zca": whitening}})
    export.export(tmp_path / "two.pt", "npz", tmp_path / "npz", experiment=1)
    assert capsys.readouterr().out == "note: --experiment 1 of 0 to 1 alone is exported\n"
    export.export(tmp_path / "two.pt", "dm", tmp_path / "dm")
    assert capsys.readouterr().out.startswith("note: its images are whitened; test images are to be, too")
