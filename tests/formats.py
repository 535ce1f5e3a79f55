"""Writes small data sets in the published formats, to test the readers with."""

import pickle
import struct
import zipfile

import numpy as np
import scipy.io
from PIL import Image


def images_and_labels(classes, per_class, size=32, channels=3, seed=0):
    """uint8 (N, size, size, channels) and labels (N,), shuffled; the colour tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    noise = rng.integers(0, 40, (len(labels), size, size, channels))
    colour = rng.integers(0, 215, (classes, 1, 1, channels))
    return (noise + colour[labels]).astype(np.uint8), labels


def write_idx(folder, name, per_class, test_per_class=2):
    """MNIST and Fashion-MNIST: <name>/raw/*-ubyte."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", per_class), ("t10k", test_per_class)):
        images, labels = images_and_labels(10, count, 28, 1, seed=count)
        header = struct.pack(">4i", 2051, len(images), 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2i", 2049, len(labels))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def write_svhn(folder, per_class, test_per_class=2):
    for split, count in (("train", per_class), ("test", test_per_class)):
        images, labels = images_and_labels(10, count, seed=count)
        labels = np.where(labels == 0, 10, labels)
        scipy.io.savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})


def _write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def _rows(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar10(folder, per_class, test_per_class=2):
    folder = folder / "cifar-10-batches-py"
    images, labels = images_and_labels(10, per_class, seed=per_class)
    for k, rows in enumerate(np.array_split(np.arange(len(labels)), 5), start=1):
        _write_pickle(folder / f"data_batch_{k}", {"data": _rows(images[rows]), "labels": labels[rows].tolist()})
    images, labels = images_and_labels(10, test_per_class, seed=test_per_class)
    _write_pickle(folder / "test_batch", {"data": _rows(images), "labels": labels.tolist()})
    _write_pickle(folder / "batches.meta", {"label_names": [f"name{k}" for k in range(10)]})


def write_cifar100(folder, per_class, test_per_class=1):
    folder = folder / "cifar-100-python"
    for split, count in (("train", per_class), ("test", test_per_class)):
        images, labels = images_and_labels(100, count, seed=count)
        _write_pickle(folder / split, {"data": _rows(images), "fine_labels": labels.tolist()})
    _write_pickle(folder / "meta", {"fine_label_names": [f"name{k}" for k in range(100)]})


def write_tiny(folder, per_class, classes=200, test_per_class=1):
    """Tiny-ImageNet's folder layout. Returns the lossless train and test images with their labels."""
    folder = folder / "tiny-imagenet-200"
    wnids = [f"n{k:08}" for k in range(classes)]
    images, labels = images_and_labels(classes, per_class, 64, seed=per_class)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "train" / wnids[label] / "images" / f"{wnids[label]}_{k}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)
    (folder / "val" / "images").mkdir(parents=True)
    images, labels = images_and_labels(classes, test_per_class, 64, seed=test_per_class)
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / "val" / "images" / f"val_{k}.JPEG", quality=95)
    lines = [f"val_{k}.JPEG\t{wnids[label]}\t0\t0\t63\t63" for k, label in enumerate(labels)]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "words.txt").write_text("\n".join(f"{wnid}\tname{k}, other" for k, wnid in enumerate(wnids)) + "\n")
    return folder


def write_class_folders(folder, images, labels, names, suffix=".png"):
    """<folder>/<class>/<number>.png"""
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label] / f"{k:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)


def zip_folder(folder, path):
    """Everything below a folder, under its name, in a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))


class Payload:
    """Unpickling this with Python's own pickle creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")
