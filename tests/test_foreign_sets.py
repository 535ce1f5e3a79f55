"""Sets in the forms of other projects: what they are taken for, and what is refused."""

import pickle
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import call_script
from utils import load_synthetic, storage
from utils.commands import evaluate
from utils.data import load
from utils.system.errors import UserError


@pytest.fixture(scope="module")
def data():
    return load("digits", "")


@pytest.fixture(scope="module")
def pair(data):
    """Two normalised images of each class."""
    rows = torch.cat([torch.nonzero(data.labels == k)[:2, 0] for k in range(10)])
    return data.normalise(data.images[rows]), data.labels[rows]


def one_hot(labels):
    return torch.nn.functional.one_hot(labels, 10)


def read(path, data, pixels=None, labels=None):
    record = storage.load(path, labels, raw=True)
    options = Namespace(synthetic=path, pixels=pixels)
    sets = evaluate.stored_sets(options, record, data)
    evaluate.say_taken_for(options, record, data)
    return storage.ready({**record, "data": sets})


FORMS = {
    "DM": lambda images, labels: {"data": [[images, labels]]},
    "flat data": lambda images, labels: {"data": [images, labels]},
    "NumPy arrays": lambda images, labels: {"data": [[images.numpy(), labels.numpy()]]},
    "one-hot": lambda images, labels: {"data": [[images, one_hot(labels)]]},
    "one-hot floats": lambda images, labels: {"data": [[images, one_hot(labels).float()]]},
    "int32": lambda images, labels: {"data": [[images, labels.int()]]},
    "column": lambda images, labels: {"data": [[images, labels[:, None]]]},
    "uint8 column": lambda images, labels: {"data": [(images, labels[:, None].to(torch.uint8))]},
    "float labels": lambda images, labels: {"data": [[images, labels.float()]]},
    "double": lambda images, labels: {"data": [[images.double(), labels]]},
    "list": lambda images, labels: [images, labels],
    "tuple": lambda images, labels: (images, labels),
    "list of pairs": lambda images, labels: [[images, labels]],
    "dict": lambda images, labels: {"images": images, "labels": labels},
    "dict of arrays": lambda images, labels: {"X": images.numpy(), "y": labels.numpy()},
    "image_syn": lambda images, labels: {"image_syn": images, "label_syn": labels, "lr": 1},
    "no channel": lambda images, labels: [images[:, 0], labels],
    "image by image": lambda images, labels: list(zip(images, labels.tolist(), strict=True)),
    "a list of images": lambda images, labels: {"images": list(images), "labels": labels.tolist()},
    "centred one-hot": lambda images, labels: [images, one_hot(labels) - 0.1],
    "channels last": lambda images, labels: [images.permute(0, 2, 3, 1).contiguous(), labels],
}


@pytest.mark.parametrize("suffix", ["pt", "pkl"])
@pytest.mark.parametrize("form", FORMS)
def test_form_is_read(form, suffix, pair, data, tmp_path, capsys):
    path = tmp_path / f"set.{suffix}"
    content = FORMS[form](*pair)
    torch.save(content, path) if suffix == "pt" else path.write_bytes(pickle.dumps(content))
    (images, labels), = read(path, data)
    assert torch.equal(images, pair[0]) and torch.equal(labels, pair[1])
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert "2 images of each of 10 of 10 classes" in capsys.readouterr().out
    assert torch.equal(load_synthetic(path)[0], pair[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, pair, data, tmp_path):
    torch.save({"data": [[pair[0].to(dtype), pair[1]]]}, tmp_path / "half.pt")
    (images, _), = read(tmp_path / "half.pt", data)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, pair[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("names", [("images_best", "labels_best", "lr_best"), ("images", "labels", "lr"),
                                   ("images_5000", "labels_5000", "lr_5000")])
def test_folder_of_images_labels_and_learning_rate(names, pair, data, tmp_path, capsys):
    logits = 8 * one_hot(pair[1]).float()
    for name, part in zip(names, (pair[0], logits, torch.tensor(0.03)), strict=True):
        torch.save(part, tmp_path / f"{name}.pt")
    (images, labels), = read(tmp_path, data)
    assert torch.equal(images, pair[0])
    torch.testing.assert_close(labels, logits.softmax(1))
    assert "soft labels (20, 10), logits" in capsys.readouterr().out
    assert storage.load(tmp_path)["meta"] == {"options": {"lr_net": 0.03}}
    (images, labels), = read(tmp_path / f"{names[0]}.pt", data, labels=tmp_path / f"{names[1]}.pt")
    assert torch.equal(images, pair[0]) and labels.shape == (20, 10)


def test_learning_rate_of_a_pair_is_used_unless_a_flag_says_otherwise(pair, tmp_path, monkeypatch):
    for name, part in (("images_best", pair[0]), ("labels_best", pair[1]), ("lr_best", torch.tensor(0.03))):
        torch.save(part, tmp_path / f"{name}.pt")
    for flags, expected in (([], 0.03), (["--lr_net", "0.5"], 0.5)):
        monkeypatch.setattr("sys.argv", ["evaluate.py", "--synthetic", str(tmp_path), *flags])
        assert evaluate.parse()[0].lr_net == expected


def test_learning_rate_beside_images_and_labels(pair, data, tmp_path, capsys):
    for content in ({"image_syn": pair[0], "label_syn": pair[1], "syn_lr": torch.tensor([0.03])}, [*pair, 0.03]):
        torch.save(content, tmp_path / "set.pt")
        read(tmp_path / "set.pt", data)
        assert storage.load(tmp_path / "set.pt")["meta"] == {"options": {"lr_net": 0.03}}
        assert "learning rate 0.03" in capsys.readouterr().out


def test_what_is_left_out_is_said(pair, data, tmp_path, capsys):
    """Of hard and soft labels the soft ones are taken; a test set is no part of a distilled one."""
    soft = one_hot(pair[1]) * 0.9 + 0.01
    for content, named in (
            ({"images": pair[0], "labels": pair[1], "soft_labels": soft, "seed": 3}, "left out: labels, seed"),
            ({"train_images": pair[0], "y": pair[1], "test_images": pair[0]}, "left out: test_images"),
            ([*pair, {"method": "mine"}], "left out: 1 parts behind images and labels")):
        torch.save(content, tmp_path / "set.pt")
        (_, labels), = read(tmp_path / "set.pt", data)
        assert named in capsys.readouterr().out and labels.dim() == (2 if "seed" in named else 1)


def test_names_of_classes_say_what_labels_mean(pair, tmp_path):
    torch.save({"images": pair[0], "labels": pair[1], "classes": [*"9876543210"]}, tmp_path / "set.pt")
    record = storage.load(tmp_path / "set.pt")
    options = Namespace(dataset="digits", data_path="", device="cpu", im_size=None, zca=False, seed=0,
                        synthetic="set.pt", validation=False)
    assert evaluate.load_test_data(options, record["meta"]).class_names == [*"9876543210"]


@pytest.mark.parametrize("scale", [100, 1])
def test_soft_labels_in_percent(scale, pair, data, tmp_path):
    soft = torch.rand(20, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    torch.save([pair[0], (scale * soft).half()], tmp_path / "set.pt")
    torch.testing.assert_close(read(tmp_path / "set.pt", data)[0][1], soft, atol=1e-3, rtol=0)


def test_probabilities_stay_as_they_are(pair, data, tmp_path):
    soft = torch.rand(20, 10, generator=torch.Generator().manual_seed(0))
    soft /= soft.sum(1, keepdim=True)
    torch.save({"data": [[pair[0], soft]]}, tmp_path / "soft.pt")
    (_, labels), = read(tmp_path / "soft.pt", data)
    torch.testing.assert_close(labels, soft)
    record = storage.load(tmp_path / "soft.pt")
    (images, labels), = storage.ready(record, 2)
    assert images.shape == (80, 1, 16, 16)
    torch.testing.assert_close(labels, soft.repeat(4, 1))


def test_npz(pair, data, tmp_path):
    np.savez_compressed(tmp_path / "set.npz", images=pair[0].numpy(), labels=pair[1].numpy()[:, None])
    (images, labels), = read(tmp_path / "set.npz", data)
    assert torch.equal(images, pair[0]) and torch.equal(labels, pair[1])
    np.savez(tmp_path / "objects.npz", images=np.array([open], dtype=object), labels=pair[1].numpy())
    with pytest.raises(UserError, match="allow_pickle=False"):
        storage.load(tmp_path / "objects.npz")


UNITS = {"0..1": lambda pixels: pixels, "0..255": lambda pixels: 255 * pixels, "-1..1": lambda pixels: 2 * pixels - 1}


@pytest.mark.parametrize("unit", UNITS)
def test_pixels_are_not_taken_for_normalised_images(unit, pair, data, tmp_path):
    path = tmp_path / "set.pt"
    torch.save([UNITS[unit](data.pixels(pair[0])), pair[1]], path)
    with pytest.raises(UserError, match=r"say what they are with --pixels, one of normalised, 0\.\.1, 0\.\.255"):
        read(path, data)
    (images, _), = read(path, data, unit)
    torch.testing.assert_close(images, pair[0], atol=1e-5, rtol=0)
    wrong = next(name for name in ("0..255", "0..1") if name != unit)
    with pytest.raises(UserError, match=f"are not --pixels {wrong}"):
        read(path, data, wrong)
    assert torch.equal(read(path, data, "normalised")[0][0], UNITS[unit](data.pixels(pair[0])))


@pytest.mark.parametrize("unit", ["0..1", "scaled down"])
def test_pixels_that_go_beyond_their_range_are_not_taken_either(unit, pair, data, tmp_path):
    """As distilled ones do; a few values below 0 do not make them normalised images."""
    values = data.pixels(pair[0]) - 0.03 if unit == "0..1" else 0.1 * pair[0]
    torch.save([values, pair[1]], tmp_path / "set.pt")
    with pytest.raises(UserError, match=r"all but a hundredth of them are above -0\.0.*--pixels"):
        read(tmp_path / "set.pt", data)


@pytest.mark.parametrize("low, high", [(-0.95, 0.93), (-1.03, 1.01)])
def test_pixels_from_minus_1_to_1_that_miss_the_ends(low, high, pair, data, tmp_path):
    pixels = data.pixels(pair[0])
    torch.save([low + (high - low) * pixels, pair[1]], tmp_path / "set.pt")
    with pytest.raises(UserError, match="these may be pixels from -1 to 1"):
        read(tmp_path / "set.pt", data)
    torch.save([pixels, pair[1]], tmp_path / "set.pt")
    with pytest.raises(UserError, match=r"from 0 to 1 are not --pixels -1\.\.1"):
        read(tmp_path / "set.pt", data, "-1..1")


def test_another_scale_is_said(pair, data, tmp_path, capsys):
    """As of pixels from -1 to 1 and a bit more, or of whitened images."""
    torch.save([2 * data.pixels(pair[0]) - 1.05, pair[1]], tmp_path / "set.pt")
    read(tmp_path / "set.pt", data)
    said = capsys.readouterr().out
    assert said.startswith(f"note: {tmp_path / 'set.pt'}: mean -0.") and "--pixels" in said and "--zca" in said
    torch.save(list(pair), tmp_path / "set.pt")
    read(tmp_path / "set.pt", data)
    assert "note" not in capsys.readouterr().out


def test_8_bits(pair, data, tmp_path):
    torch.save([(255 * data.pixels(pair[0])).round().to(torch.uint8), pair[1]], tmp_path / "set.pt")
    with pytest.raises(UserError, match=r"torch\.uint8, not normalised"):
        read(tmp_path / "set.pt", data)
    torch.testing.assert_close(read(tmp_path / "set.pt", data, "0..255")[0][0], pair[0], atol=1e-5, rtol=0)


def test_classes_that_are_missing_are_named(pair, data, tmp_path, capsys):
    keep = pair[1] < 5
    torch.save({"data": [[pair[0][keep], pair[1][keep]]]}, tmp_path / "piece.pt")
    done = call_script("evaluate.py", "--synthetic", tmp_path / "piece.pt", "--dataset", "digits", "--num_eval", 1,
                       "--epoch_eval_train", 0, "--save_path", tmp_path)
    taken, result = [line for line in done.stdout.splitlines() if "classes" in line]
    assert "none of 5, 6, 7, 8, 9" in taken and "images of 5 of 10 classes" in result
    torch.save({"data": [[pair[0][3:], pair[1][3:]]]}, tmp_path / "uneven.pt")
    read(tmp_path / "uneven.pt", data)
    assert "1 to 2 images of each of 9 of 10 classes, none of 0" in capsys.readouterr().out


def test_two_experiments(pair, data, tmp_path):
    torch.save({"data": [list(pair), list(pair)], "accs_all_exps": {"ConvNet": [0.5]}}, tmp_path / "set.pt")
    assert len(read(tmp_path / "set.pt", data)) == 2


REFUSED = {
    "no set": ({"weights": 1}, "no `data`, nor images and labels, but weights"),
    "images alone": (torch.randn(2, 1, 16, 16), "name its labels with --labels"),
    "a number": (3, "it is a int"),
    "counts": ([torch.randn(3, 1, 16, 16), torch.arange(2)], r"images \(3, 1, 16, 16\) with labels \(2,\)"),
    "parts of classes": ([torch.randn(2, 1, 16, 16), torch.tensor([0, 0.5])], "not whole numbers"),
    "no numbers": ([torch.randn(2, 1, 16, 16) / 0, torch.arange(2)], "not finite"),
    "nothing": ({"data": []}, "no `data`"),
    "soft labels of others": ([torch.randn(2, 1, 16, 16), 5 * torch.rand(2, 7)], "labels of 7 classes, not 10"),
    "one-hot of others": ([torch.randn(2, 1, 16, 16), torch.eye(7)[:2]], "labels of 7 classes, not 10"),
    "some soft": ({"data": [[torch.randn(2, 1, 16, 16), torch.arange(2)],
                            [torch.randn(2, 1, 16, 16), 9 * torch.rand(2, 10)]]}, "some of its experiments have soft"),
    "flat": ([torch.randn(2, 1, 16, 16), torch.rand(2, 10) - 0.5], "nor logits, for their softmax is flat"),
    "sparse": ([torch.randn(2, 1, 16, 16).to_sparse(), torch.arange(2)], "no plain tensors"),
    "learning rate": ({"images": torch.randn(2, 1, 16, 16), "labels": torch.arange(2), "lr": -0.1}, "no learning rate"),
    "other classes": ([torch.randn(2, 1, 16, 16), torch.tensor([3, 10])], "classes 3 to 10"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_refused_is_named_with_the_forms(form, data, tmp_path):
    content, named = REFUSED[form]
    torch.save(content, tmp_path / "set.pt")
    with pytest.raises(UserError, match=named) as refused:
        read(tmp_path / "set.pt", data)
    assert "\n" not in str(refused.value) and "set.pt" in str(refused.value)
    assert "classes" in named or "name one of these forms" in str(refused.value)


def test_arrays_of_other_machines_and_without_names(pair, data, tmp_path):
    for path, content in (("positional.npz", {"arr_0": pair[0].numpy(), "arr_1": pair[1].numpy()}),
                          ("swapped.npz", {"images": pair[0].numpy().astype(">f4"),
                                           "labels": pair[1].numpy().astype(">u2")})):
        np.savez(tmp_path / path, **content)
        (images, labels), = read(tmp_path / path, data)
        assert torch.equal(images, pair[0]) and torch.equal(labels, pair[1])
    np.savez(tmp_path / "words.npz", images=pair[0].numpy(), labels=np.array(["zero"] * 20))
    with pytest.raises(UserError, match=r"no plain numbers.*name one of these forms"):
        storage.load(tmp_path / "words.npz")


def test_whitened_set_of_mtt_wants_its_flag(pair, tmp_path, monkeypatch):
    for name in ("images_best", "images_zca_best"):
        torch.save(pair[0], tmp_path / f"{name}.pt")
    torch.save(pair[1], tmp_path / "labels_best.pt")
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--synthetic", str(tmp_path), "--dataset", "digits"])
    with pytest.raises(UserError, match="--zca: "):
        evaluate.parse()
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--synthetic", str(tmp_path), "--dataset", "digits", "--zca"])
    assert torch.equal(evaluate.parse()[1]["data"][0][0], pair[0])


def test_pictures_of_another_size_or_colour(data, tmp_path, capsys):
    for k in range(10):
        for name, size, blue in (("large", 32, 0), ("colour", 16, 9)):
            (tmp_path / name / str(k)).mkdir(parents=True)
            grey = np.full((size, size), 20 * k, np.uint8)
            Image.fromarray(np.stack([grey, grey, grey + blue], 2)).save(tmp_path / name / str(k) / "0.png")
    for name, said in (("large", "10 images of 32x32 are scaled to 16x16\n"),
                       ("colour", "10 images in colour become grey")):
        evaluate.image_folder(tmp_path / name, data)
        assert said in capsys.readouterr().out


def test_labels_beside_folders_of_pictures_are_said_to_be_left_out(data, tmp_path, capsys):
    for k in range(10):
        (tmp_path / str(k)).mkdir()
        Image.fromarray(data.images[k, 0].numpy()).save(tmp_path / str(k) / "0.png")
    torch.save(torch.eye(10), tmp_path / "labels.pt")
    evaluate.image_folder(tmp_path, data)
    assert "1 files are left out: 1 of types that are not read (.pt); such as labels.pt" in capsys.readouterr().out


def test_folder_of_several_sets_is_refused(data, tmp_path):
    for name in ("1/0", "1/1", "5/0", "5/1"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(data.images[0, 0].numpy()).save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match="each of the folders 1, 5 has folders 0, 1 in it"):
        evaluate.image_folder(tmp_path, data)


def test_order_of_ones_own_classes_is_said(pair, data, tmp_path, capsys):
    torch.save(list(pair), tmp_path / "set.pt")
    read(tmp_path / "set.pt", data)
    assert "are taken for" not in capsys.readouterr().out
    read(tmp_path / "set.pt", replace(data, name="mine", class_names=list("abcdefghij")))
    assert "labels 0 to 9 are taken for a, b, c, d, e, f, g, h, i, j, the classes of mine" in capsys.readouterr().out


def test_folder_that_is_not_clear(pair, tmp_path):
    torch.save(pair[0], tmp_path / "images_1.pt")
    with pytest.raises(UserError, match=r"it has no labels\*\.pt"):
        storage.load(tmp_path)
    torch.save(pair[1], tmp_path / "labels_2.pt")
    with pytest.raises(UserError, match=r"which of images_1\.pt, labels_2\.pt belong together"):
        storage.load(tmp_path)
    (tmp_path / "labels_2.pt").unlink()
    for name in ("images_2", "labels_1"):
        torch.save(pair[0], tmp_path / f"{name}.pt")
    with pytest.raises(UserError, match=r"images_1\.pt, images_2\.pt .* --labels"):
        storage.load(tmp_path)
