"""Every reader on truncated, bit-flipped and random files: a UserError in one line, or images; nothing else.

500 files for each reader (100 where one takes long), 2,000 in the slow mode, from one seed, so that a failure comes
again; each in little memory and time. Nothing in a file is run: the readers of pickles refuse every name that is not on
their list (test_sources.py, test_evaluate.py).
"""

import bz2
import contextlib
import copy
import functools
import io
import json
import os
import pickle
import resource
import shutil
import struct
import tempfile
import time
import urllib.request
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import formats
import publish
from conftest import ROOT, TINY, call_script
from utils import checkpoint, data, pictures, pretrained, report_page, run_files, storage
from utils.commands import compare
from utils.data import image_files, sources
from utils.system import files
from utils.system.errors import UserError

INPUTS = [500, pytest.param(2000, marks=pytest.mark.slow)]
SLOWER = {"image cache": 5, "options.json": 5, "metrics.jsonl": 5, "losses.jsonl": 5, "set of a run": 5,
          "metrics.jsonl, drawn": 25, "losses.jsonl, drawn": 25}  # times
ODD = [None, True, -1, 0, 10**30, 1e308, float("nan"), "", "x", "\x1b[2J\n", [], [1], {}, {"x": 1}]  # in JSON
SECONDS, BYTES = 10, 3 * 10**8  # for each, of the CPU, and more than before


def mutate(content, rng):
    """A damaged copy: cut short, some bits flipped, a run of bytes replaced, or all of it random."""
    damaged = bytearray(content)
    kind = rng.integers(4)
    if content.startswith(b"{") and rng.integers(2):
        return mutate_json(content, rng)
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


def mutate_json(content, rng):
    """A copy of JSON, or of its lines, in which one value has become another, or is gone."""
    whole = content.startswith(b"{\n")
    documents = [json.loads(part) for part in ([content] if whole else content.splitlines())]
    place = documents[rng.integers(len(documents))]
    while True:
        key = list(place)[rng.integers(len(place))] if isinstance(place, dict) else int(rng.integers(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.integers(3) == 0:
            break
        place = place[key]
    if rng.integers(5):
        place[key] = ODD[rng.integers(len(ODD))]
    else:
        del place[key]
    return "\n".join(map(json.dumps, documents)).encode()


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


def rows_of_parquet(folder):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    image, path = io.BytesIO(), folder / "train.parquet"
    Image.effect_noise((8, 8), 50).save(image, "PNG")
    parquet.write_table(pyarrow.table({"image": [image.getvalue()] * 10, "label": 5 * ["a", "b"]}), path,
                        row_group_size=5)
    return path, lambda: data.load("folder", folder, im_size=8)


def picture(suffix):
    def write(folder):
        image, _ = formats.images_and_labels(1, 1)
        path = folder / f"image{suffix}"
        Image.fromarray(image[0]).save(path, **({"compression": "tiff_lzw"} if suffix == ".tif" else {}))
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


def pair_of_arrays(folder):
    np.savez(folder / "set.npz", images=record()["data"][0][0].numpy(), labels=np.arange(2))
    return folder / "set.npz", lambda: storage.load(folder / "set.npz")


def array(folder):
    np.save(folder / "images.npy", record()["data"][0][0].numpy())
    np.save(folder / "labels.npy", np.arange(2))
    return folder / "images.npy", lambda: storage.load(folder)


def own_arrays(folder):
    images, labels = formats.images_and_labels(2, 5, 8)
    np.savez(folder / "mine.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return folder / "mine.npz", lambda: data.load("folder", folder / "mine.npz", im_size=8)


def tiny_tensors(folder):
    images, labels = (torch.from_numpy(part) for part in formats.images_and_labels(2, 2, 64))
    images = images.permute(0, 3, 1, 2).contiguous()
    torch.save({"images_train": images, "labels_train": labels, "images_val": images, "labels_val": labels,
                "classes": ["a", "b"]}, folder / "tinyimagenet.pt")
    return folder / "tinyimagenet.pt", lambda: data.load("TinyImageNet", folder)


def state(folder):
    """What is in a checkpoint, whose checksum is put right."""
    path = folder / "content"
    torch.save({"options": {"ipc": 1}, "data": 1, "experiment": 0, "iteration": 5, "seconds": 0.5, "metrics": [],
                "distillation": {"images": torch.zeros(2, 1, 3)}, "last": [], "best": [], "losses": []}, path)

    def read():
        if not path.is_file():
            return checkpoint.read(path)
        content = path.read_bytes()
        (folder / "checkpoint.ckpt").write_bytes(checkpoint.header(content) + content)
        return checkpoint.read(folder / "checkpoint.ckpt")

    return path, read


def trained_network(folder):
    path = folder / "network_000.pt"
    pretrained.write(path, {"data": {}, "training": {}, "versions": {}, "number": 0, "done": 1, "stages": [
        {"step": 1, "accuracy": 50.0, "weights": {"w": torch.zeros(20)}}]})
    return path, lambda: pretrained.read(path)


def card(folder):
    (folder / "digits").mkdir()
    for kind in ("json", "pt"):
        shutil.copy(ROOT / "Distilled" / "digits" / f"BACON_ipc1.{kind}", folder / "digits")
    return folder / "digits" / "BACON_ipc1.json", lambda: publish.page(folder)


def budget(folder):
    path = folder / "budget.json"
    files.write_json(path, {"options": {"ipc": 1, "lr_img": 0.2}, "iterations": {"BACON, IPC 1": 5}})
    return path, lambda: compare.kept_budget(path, {"ipc": 1, "lr_img": 0.2})


def of_a_run(find, show=False):
    """A file of a run, read as report.py does; show: also drawn."""
    def write(folder):
        place, = (path.parent for path in shutil.copytree(finished_run(), folder / "result").glob("*/options.json"))

        def read():
            with run_files.undamaged(place):
                run = report_page.Run(place, {})
            if show:
                report_page.section(1, run, 10**5, quick=True)

        return find(place), read

    return write


@functools.cache
def finished_run():
    """The folder that a short run left."""
    folder = Path(tempfile.mkdtemp())
    call_script("BACON_digits.py", *TINY, "--save_path", folder)
    return folder


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
           **{kind: picture(f".{kind}") for kind in ("jpg", "gif", "bmp", "ppm", "tif", "webp")}, "pt": pt, "pkl": pkl,
           "npz": pair_of_arrays, "npy": array, "npz of data": own_arrays, "tinyimagenet.pt": tiny_tensors,
           "checkpoint": state, "network": trained_network, "parquet": rows_of_parquet, "card": card,
           "budget.json": budget,
           "options.json": of_a_run(run_files.options_path), "metrics.jsonl": of_a_run(run_files.metrics_path),
           "losses.jsonl": of_a_run(run_files.losses_path), "set of a run": of_a_run(run_files.set_path),
           "metrics.jsonl, drawn": of_a_run(run_files.metrics_path, show=True),
           "losses.jsonl, drawn": of_a_run(run_files.losses_path, show=True), "image cache": image_cache}


@contextlib.contextmanager
def short_of_memory(more):
    """Leaves this process so many bytes more than it has."""
    before, pages = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("count", INPUTS)
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_end_in_one_line(reader, count, tmp_path, capfd):
    """Each within SECONDS and BYTES, and nothing on standard error but that line."""
    path, read = READERS[reader](tmp_path)
    read()
    count = count // SLOWER.get(reader, 1) if count == 500 or "drawn" in reader else count
    content, rng, refused = path.read_bytes(), np.random.default_rng(count), 0
    with short_of_memory(BYTES), warnings.catch_warnings(record=True, action="always") as warned:
        for turn in range(count):
            path.write_bytes(mutate(content, rng))
            begun = time.process_time()
            try:
                read()
            except UserError as error:
                refused += 1
                assert "\n" not in str(error), turn
                assert len(str(error)) < 1000, turn
            assert time.process_time() - begun < SECONDS, turn
    assert refused > count / 4 or reader == "image cache"
    assert not warned and not capfd.readouterr().err  # neither of Python nor of a library beneath it


def measured(function):
    """What it raises, in less than 20 seconds of the CPU and 1 GB more than there was."""
    begun = time.process_time()
    with short_of_memory(10**9), pytest.raises(UserError) as error:
        function()
    assert time.process_time() - begun < 20 and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("read", [files.read_text, publish.rows_of])
def test_a_record_larger_than_any_run_leaves_is_not_read(read, tmp_path):
    """One of 100 GB, which take no place on the disk."""
    with open(tmp_path / "card.json", "wb") as file:
        file.truncate(10**11)
    with short_of_memory(10**9), pytest.raises((OSError, UserError), match="too large"):
        read(tmp_path / "card.json")


def png(path, width, height):
    """A PNG of zeros: a thousandth of their size."""
    deflate, lines = zlib.compressobj(), height
    content = b""
    while lines:
        content, lines = content + deflate.compress(bytes((1 + width) * min(lines, 1000))), lines - min(lines, 1000)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content + deflate.flush())
                     + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/stdin", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_not_waited_for(reader, kind, tmp_path, monkeypatch):
    path, read = READERS[reader](tmp_path)
    read()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(kind)
    monkeypatch.setattr(urllib.request, "urlopen", None)  # nothing is downloaded in its place
    if reader == "image cache":
        if kind == "folder":
            return
        read()
    else:
        measured(read)


@pytest.mark.parametrize("side", [8_000, 40_000])
def test_images_of_too_many_pixels(side, tmp_path):
    png(tmp_path / "large.png", side, side)
    assert (tmp_path / "large.png").stat().st_size < 2_000_000
    tree = image_files.Tree(tmp_path)
    words = measured(lambda: image_files.decode(tree, ["large.png"], 3, 32))
    assert f"{side} x {side} pixels, more than 50,000,000" in words or "exceeds limit" in words  # of Pillow
    assert "picture" in measured(lambda: pictures.load_picture(tmp_path / "large.png", (1, 28, 28), 10, 100))


def test_only_documented_formats_are_opened(tmp_path):
    """An EPS starts Ghostscript, whatever its name says."""
    image = Image.new("RGB", (8, 8))
    for kind in ("EPS", "PCX", "TGA", "ICO", "PDF", "SGI", "DDS", "JPEG2000"):
        image.save(tmp_path / f"{kind}.png", kind)
        assert "of no known format" in measured(
            lambda kind=kind: image_files.decode(image_files.Tree(tmp_path), [f"{kind}.png"], 3, 8))
    for kind in ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "MPO", "GIF"):
        image.save(tmp_path / f"{kind}.png", kind)
        assert image_files.decode(image_files.Tree(tmp_path), [f"{kind}.png"], 3, 8).shape == (1, 3, 8, 8)


def test_entries_of_a_zip_and_files_that_are_too_large(tmp_path, monkeypatch):
    formats.zip_folder(formats.write_tiny(tmp_path / "source", 1, classes=2), tmp_path / "tiny-imagenet-200.zip")
    with (zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "a", zipfile.ZIP_DEFLATED) as archive,
          archive.open("tiny-imagenet-200/train/n00000000/images/a.png", "w") as entry):
        for _ in range(300):
            entry.write(bytes(2**20))
    assert "more than 100 times as large" in measured(lambda: data.load("TinyImageNet", tmp_path))
    monkeypatch.setattr(image_files, "MOST_COMPRESSED", 10**9)
    assert "larger than 256 MiB" in measured(lambda: data.load("TinyImageNet", tmp_path))


def test_a_zip_whose_entries_share_their_bytes(tmp_path):
    """Each unfolds within the limits: a thousand names of one entry of 20 MB."""
    path = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t/train/n1/images/0000.png", bytes(20_000_000))
        entry, = archive.infolist()
        for k in range(1, 1000):
            again = copy.copy(entry)
            again.filename = f"t/train/n1/images/{k:04}.png"
            archive.filelist.append(again)
    assert path.stat().st_size < 200_000
    assert "more than 100 times as large" in measured(lambda: data.load("TinyImageNet", tmp_path))


ZEROS = 10**8
PACKED = {"deflated": (zipfile.ZIP_DEFLATED, functools.cache(lambda: zlib.compress(bytes(ZEROS), wbits=-15))),
          "bzip2": (zipfile.ZIP_BZIP2, functools.cache(lambda: bz2.compress(bytes(ZEROS))))}


@pytest.mark.parametrize("kind", ["deflated", "bzip2"])
@pytest.mark.parametrize("name", ["tiny-imagenet-200.zip", "set.pt", "set.npz"])
def test_parts_of_a_zip_that_unfold_to_more_than_they_say(name, kind, tmp_path):
    """100 bytes are said."""
    entry = {"set.pt": "archive/data.pkl", "set.npz": "images.npy"}.get(name, "t/train/n00000000/images/a.png")
    number, pack = PACKED[kind]
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr(entry, pack())
        archive.writestr("t/val/val_annotations.txt", "a.png\tn00000000\n")
        archive.writestr("t/val/images/a.png", b"")
        said = archive.getinfo(entry)
        said.compress_type, said.file_size, said.CRC = number, 100, 0
    content = bytearray((tmp_path / name).read_bytes())
    content[8:10] = number.to_bytes(2, "little")  # also in the part's own header
    (tmp_path / name).write_bytes(content)
    with short_of_memory(ZEROS // 2), pytest.raises(UserError, match=r"Bad CRC-32|nor deflated|torch\.save packs none"):
        data.load("TinyImageNet", tmp_path) if "tiny" in name else storage.load(tmp_path / name)


def test_many_pages_are_not_counted(tmp_path):
    """Which takes n * n steps in TIFF: each entry stands before the next one."""
    tags = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 3, 1), (279, 4, 1)]
    page = b"\10\0" + b"".join(struct.pack("<2H2I", tag, kind, 1, value) for tag, kind, value in tags)
    pages = b"".join(page + struct.pack("<I", 16 + (k + 1) * (len(page) + 4)) for k in range(50_000))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 16) + bytes(8) + pages)
    begun = time.process_time()
    assert "has several pages" in measured(lambda: image_files.decode(image_files.Tree(tmp_path), ["a.tif"], 3, 8))
    assert time.process_time() - begun < 2


def test_many_frames_are_not_counted(tmp_path):
    content = io.BytesIO()
    Image.new("P", (1, 1)).save(content, "GIF")
    content = content.getvalue()
    (tmp_path / "a.gif").write_bytes(content[:-1] + 10**5 * content[content.index(b","):-1] + b";")
    tree = image_files.Tree(tmp_path)
    assert "has several pages or frames" in measured(lambda: image_files.decode(tree, ["a.gif"], 3, 8))


@pytest.mark.parametrize("dtype, shape", [
    ("'<f4'", "(1000000000000,)"), ("'<f4'", "(4294967296, 4294967296, 2)"), ("'<f4'", "(-1,)"), ("'<f4'", "(2, 0)"),
    ("'|V0'", "(1000000000000,)"), ("'<U100000000'", "(1000,)"), ("'|O'", "(1,)"), ("[('a', '<f4')]", "(25,)"),
    ("'<f4'", 3000 * "(" + 3000 * ")")], ids=lambda value: value[:20])
def test_arrays_that_claim_to_be_others(dtype, shape, tmp_path):
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)
    path = tmp_path / "images.npy"
    path.write_bytes(content)
    np.save(tmp_path / "labels.npy", np.arange(2))
    measured(lambda: storage.load(tmp_path))
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        for name in ("images.npy", "labels.npy"):
            archive.write(tmp_path / name, name)
    measured(lambda: storage.load(tmp_path / "set.npz"))


@pytest.mark.parametrize("shape, label_count", [
    ((32, 32, 1, 20), 20), ((32, 32, 4, 20), 20), ((0, 0, 3, 20), 20), ((32, 32, 3, 0), 0), ((32, 32, 3), 1),
    ((16, 64, 3, 20), 20), ((1300, 1300, 3, 20), 20),
    pytest.param((32, 32, 3, 150_000), 150_000, marks=pytest.mark.slow)], ids=str)
def test_svhn_of_other_shapes(shape, label_count, tmp_path):
    formats.write_svhn(tmp_path, 2)
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros(shape, np.uint8), "y": np.ones((label_count, 1))},
                     do_compression=True)
    measured(lambda: data.load("SVHN", tmp_path))


def element(kind, content):
    return struct.pack("<2I", kind, len(content)) + content + bytes(-len(content) % 8)


def variable(name, flags, inside=b""):
    """Of a .mat file, in one row and column; flags: its class, 9 for uint8 and 1 for a cell, and 0x800 for complex."""
    parts = [element(6, struct.pack("<2I", flags, 0)), element(5, struct.pack("<2I", 1, 1)), element(1, name), inside]
    return element(14, b"".join(parts))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["cells", "complex"])
def test_svhn_of_nested_cells_or_complex_numbers(kind, packed, tmp_path):
    """The former end the process within SciPy, the latter take 16 bytes a value."""
    formats.write_svhn(tmp_path, 2)
    head = b"".join(element(*part) for part in ((6, struct.pack("<2I", 1, 0)), (5, struct.pack("<2I", 1, 1)), (1, b"")))
    depth = 100_000
    cells = b"".join(struct.pack("<2I", 14, (depth - k) * (len(head) + 8) - 8) + head for k in range(depth))
    labels = variable(b"y", 1, cells) if kind == "cells" else variable(b"y", 0x809, 2 * element(2, b"1"))
    content = [variable(b"X", 9, element(2, b"1")), labels]
    if packed:  # such an element is not filled up
        content = [struct.pack("<2I", 15, len(part)) + part for part in map(zlib.compress, content)]
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"".join(content))
    assert "no array of real numbers" in measured(lambda: data.load("SVHN", tmp_path))


def test_what_torchvision_would_take_in_place_of_mnist_is_not_read(tmp_path):
    idx(tmp_path)
    before = data.load("MNIST", tmp_path).checksum()
    (tmp_path / "MNIST" / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10)), tmp_path / "MNIST/processed" / name)
    assert data.load("MNIST", tmp_path).checksum() == before


@pytest.mark.parametrize("kind", [np.float64, np.int64, object])
def test_svhn_of_other_types(kind, tmp_path):
    """Each value of which takes eight times what the file has for it."""
    formats.write_svhn(tmp_path, 2)
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 2), kind), "y": np.ones((2, 1))})
    words = "no array of real numbers" if kind is object else "not X and y"
    assert words in measured(lambda: data.load("SVHN", tmp_path))


@pytest.mark.parametrize("meta", [
    {"class_names": [1, 2]}, {"class_names": "ab"}, {"seed": "0"}, {"ipc": None}, {"iteration": [1.5]}, {"dataset": 3},
    {"version": []}, {"options": [1]}], ids=str)
def test_meta_of_other_types(meta, tmp_path):
    torch.save(record() | {"meta": record()["meta"] | meta}, tmp_path / "set.pt")
    assert "its `meta` is damaged" in measured(lambda: storage.load(tmp_path / "set.pt"))


@pytest.mark.parametrize("change", [{"train": torch.zeros(1)}, {"train": torch.zeros(10, 3, 8, 7, dtype=torch.uint8)},
                                    {"test": 3}, {"train": torch.zeros(10, 3, 8, 8)}], ids=range(4))
def test_a_cache_of_the_right_key_and_wrong_content_is_made_anew(change, tmp_path):
    cache, _ = image_cache(tmp_path)
    before = data.load("folder", tmp_path / "mine", im_size=8)
    torch.save(torch.load(cache, weights_only=True) | change, cache)
    assert data.load("folder", tmp_path / "mine", im_size=8).checksum() == before.checksum()
    assert torch.load(cache, weights_only=True)["train"].dtype == torch.uint8


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("how", ["owner", "link", "writable", "swapped", "own"])
def test_a_cache_of_somebody_else_is_made_anew(how, tmp_path, monkeypatch):
    cache, _ = image_cache(tmp_path)
    before = data.load("folder", tmp_path / "mine", im_size=8)
    content, other = torch.load(cache, weights_only=True), tmp_path / "other.pt"
    content["train"] = 255 - content["train"]
    torch.save(content, other if how in ("link", "swapped") else cache)
    if how == "owner":
        os.chown(cache, 1234, 1234)
    elif how == "writable":
        cache.chmod(0o666)
    elif how == "link":
        cache.unlink()
        cache.symlink_to(other)
        os.chown(cache, 1234, 1234, follow_symlinks=False)
    elif how == "swapped":
        def load(path, mmap):
            """While it is read it is another, before and afterwards what it was."""
            path.rename(tmp_path / "kept")
            other.rename(path)
            content = load_torch(path, mmap)
            path.rename(other)
            (tmp_path / "kept").rename(path)
            return content

        load_torch = image_files.unpickle.load_torch
        monkeypatch.setattr(image_files.unpickle, "load_torch", load)
    same = data.load("folder", tmp_path / "mine", im_size=8).checksum() == before.checksum()
    assert same != (how == "own")  # of which what is inside is not looked at


def test_memory_that_files_lack_is_said_as_such(monkeypatch):
    """No smaller batch would help."""
    source = replace(sources.SOURCES["digits"], read=lambda *_: torch.empty(10**16, dtype=torch.uint8))
    monkeypatch.setitem(sources.SOURCES, "digits", source)
    words = measured(lambda: data.load("digits", "here"))
    assert words.startswith("--data_path here: its files need more memory than there is") and "max_batch" not in words


def test_zip_entries_stay_inside(tmp_path):
    """Nothing is unpacked, so an entry named ../x is a name and no place."""
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
        image = io.BytesIO()
        Image.new("RGB", (64, 64)).save(image, "PNG")
        for name in ("../../owned.png", "/owned.png", "t/train/n1/../../../../owned.png", "t/train/n1/images/a.png"):
            archive.writestr(name, image.getvalue())
        archive.writestr("t/val/val_annotations.txt", "../../../owned.png\tn1\n")
        archive.writestr("t/words.txt", "n1\tname\n")
    with pytest.raises(UserError, match=r"no images in train/<wnid>/, as published"):
        data.load("TinyImageNet", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-imagenet-200.zip"}


def test_annotations_do_not_lead_out_of_the_folder(tmp_path):
    folder = formats.write_tiny(tmp_path, 1, classes=2)
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    (folder / "val" / "val_annotations.txt").write_text("../../../secret.png\tn00000000\n")
    with pytest.raises(UserError, match="is not there"):
        data.load("TinyImageNet", tmp_path)


def test_arrays_of_others_that_are_bombs_or_pipes(tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, images=np.zeros((10**5, 1, 32, 32), np.float32), labels=np.zeros(10**5, np.int64))
    assert "more than 100 times" in measured(lambda: storage.load(path))
    for name in ("pipe.npz", "pipe.npy"):
        os.mkfifo(tmp_path / name)
        measured(lambda name=name: storage.load(tmp_path / name))
    np.savez_compressed(path, images=np.random.randn(10, 1, 8, 8).astype(np.float32), labels=np.arange(10))
    assert storage.load(path)["data"][0][0].shape == (10, 1, 8, 8)
