"""Every reader on truncated, bit-flipped and random files: a UserError in one line, or images; nothing else.

INPUTS files for each reader, from one seed, so that a failure comes again. Nothing in a file is run: the
readers of pickles refuse every name that is not on their list (test_sources.py, test_evaluate.py).
"""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import formats
from utils import data, storage
from utils.data import image_files
from utils.system.errors import UserError

INPUTS = 500


def mutate(content, rng):
    """A damaged copy: cut short, some bits flipped, a run of bytes replaced, or all of it random."""
    damaged = bytearray(content)
    kind = rng.integers(4)
    if kind == 0:
        return bytes(damaged[:rng.integers(len(damaged))])
    if kind == 1:
        for place in rng.integers(len(damaged), size=rng.integers(1, 20)):
            damaged[place] ^= 1 << rng.integers(8)
    elif kind == 2:
        start, length = rng.integers(len(damaged)), rng.integers(1, 100)
        damaged[start:start + length] = rng.bytes(length)
    else:
        return rng.bytes(rng.integers(1, 2000))
    return bytes(damaged)


def idx(folder):
    formats.write_idx(folder, "MNIST", 1, 1)
    return folder / "MNIST" / "raw" / "train-images-idx3-ubyte", lambda: data.load("MNIST", folder)


def idx_labels(folder):
    formats.write_idx(folder, "MNIST", 1, 1)
    return folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", lambda: data.load("MNIST", folder)


def mat(folder):
    formats.write_svhn(folder, 1, 1)
    return folder / "train_32x32.mat", lambda: data.load("SVHN", folder)


def cifar10(folder):
    formats.write_cifar10(folder, 1, 1)
    return folder / "cifar-10-batches-py" / "data_batch_3", lambda: data.load("CIFAR10", folder)


def cifar100(folder):
    formats.write_cifar100(folder, 1, 1)
    return folder / "cifar-100-python" / "meta", lambda: data.load("CIFAR100", folder)


def zipped(folder):
    formats.zip_folder(formats.write_tiny(folder / "source", 1, classes=2), folder / "tiny-imagenet-200.zip")
    return folder / "tiny-imagenet-200.zip", lambda: data.load("TinyImageNet", folder)


def annotations(folder):
    written = formats.write_tiny(folder, 1, classes=2)
    return written / "val" / "val_annotations.txt", lambda: data.load("TinyImageNet", folder)


def picture(suffix):
    def write(folder):
        image, _ = formats.images_and_labels(1, 1)
        path = folder / f"image{suffix}"
        Image.fromarray(image[0]).save(path)
        return path, lambda: image_files.decode(image_files.Tree(folder), [path.name], 3, 32)

    return write


def record():
    return {"data": [[torch.randn(2, 1, 8, 8), torch.arange(2)]], "accs_all_exps": {"ConvNet": [0.5]},
            "meta": {"formation": 1, "mean": [0.5], "std": [0.5]}}


def pt(folder):
    torch.save(record(), folder / "set.pt")
    return folder / "set.pt", lambda: storage.load(folder / "set.pt")


def pkl(folder):
    with (folder / "set.pkl").open("wb") as file:
        pickle.dump(tuple(record()["data"][0]), file)
    return folder / "set.pkl", lambda: storage.load(folder / "set.pkl")


def image_cache(folder):
    """Damage to a cache is never fatal; inside the pixels, which are mapped and not read, it is not looked for."""
    formats.write_class_folders(folder / "mine" / "train", *formats.images_and_labels(2, 5, 8), ["a", "b"])
    expected = data.load("folder", folder / "mine", im_size=8).images
    cache = folder / "cache_mine_8.pt"

    def read():
        loaded = data.load("folder", folder / "mine", im_size=8).images
        assert loaded.shape == expected.shape

    return cache, read


READERS = {"idx images": idx, "idx labels": idx_labels, "mat": mat, "CIFAR-10 pickle": cifar10,
           "CIFAR-100 pickle": cifar100, "zip": zipped, "annotations": annotations, "png": picture(".png"),
           "jpg": picture(".jpg"), "pt": pt, "pkl": pkl, "image cache": image_cache}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_end_in_one_line(reader, tmp_path, capsys):
    path, read = READERS[reader](tmp_path)
    read()
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for turn in range(INPUTS):
        path.write_bytes(mutate(content, rng))
        try:
            read()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), turn
            assert len(str(error)) < 1000, turn
    assert refused > INPUTS / 4 or reader == "image cache"


def test_zip_entries_stay_inside(tmp_path):
    """Nothing is unpacked, so an entry named ../x is a name and no place."""
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        image = io.BytesIO()
        Image.new("RGB", (64, 64)).save(image, "PNG")
        for name in ("../../owned.png", "/owned.png", "t/train/n1/../../../../owned.png", "t/train/n1/images/a.png"):
            archive.writestr(name, image.getvalue())
        archive.writestr("t/val/val_annotations.txt", "../../../owned.png\tn1\n")
        archive.writestr("t/words.txt", "n1\tname\n")
    with pytest.raises(UserError, match="is not there"):
        data.load("TinyImageNet", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-imagenet-200.zip"}


def test_annotations_do_not_lead_out_of_the_folder(tmp_path):
    folder = formats.write_tiny(tmp_path, 1, classes=2)
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    (folder / "val" / "val_annotations.txt").write_text("../../../secret.png\tn00000000\n")
    with pytest.raises(UserError, match="is not there"):
        data.load("TinyImageNet", tmp_path)
