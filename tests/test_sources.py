"""The readers of every data set format: what they give, the cache, and what they say of files that are wrong."""

import errno
import os
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import DataLoader

import formats
from conftest import SHARED, needs_shared_data
from utils import data
from utils.data import class_order, image_files, sources
from utils.data.normalisation import statistics
from utils.system.errors import UserError


def by_label(images, labels):
    """Sum of the pixels of each class, which tells whether images kept their labels; images (N, ...)."""
    images, labels = torch.as_tensor(np.asarray(images)).flatten(1).double(), torch.as_tensor(np.asarray(labels))
    return torch.zeros(int(labels.max()) + 1, dtype=torch.double).index_add_(0, labels, images.sum(dim=1))


WRITERS = {
    "MNIST": (lambda folder: formats.write_idx(folder, "MNIST", 7), 10, 28, 1),
    "FashionMNIST": (lambda folder: formats.write_idx(folder, "FashionMNIST", 7), 10, 28, 1),
    "SVHN": (lambda folder: formats.write_svhn(folder, 7), 10, 32, 3),
    "CIFAR10": (lambda folder: formats.write_cifar10(folder, 7), 10, 32, 3),
    "CIFAR100": (lambda folder: formats.write_cifar100(folder, 7), 100, 32, 3),
}

PUBLISHED = {  # mean and std of the published scripts
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2861,), (0.3530,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "TinyImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@pytest.mark.parametrize("name", ["digits", *(pytest.param(name, marks=needs_shared_data)
                                              for name in ("MNIST", "FashionMNIST"))])
def test_normalised_images_have_mean_0_and_deviation_1(name):
    images = data.load(name, SHARED / "data")
    normalised = images.normalise(images.images).double()
    assert abs(normalised.mean()) < 5e-4 and abs(normalised.std() - 1) < 5e-4
    (mean,), (std,) = statistics(images.images)
    assert mean == pytest.approx(images.mean[0], abs=1e-4) and std == pytest.approx(images.std[0], abs=1e-4)


@pytest.mark.parametrize("name", WRITERS)
def test_published_format(name, tmp_path):
    write, classes, size, channels = WRITERS[name]
    write(tmp_path)
    loaded = data.load(name, tmp_path)
    images, labels = formats.images_and_labels(classes, 7, size, channels, seed=7)
    assert loaded.images.shape == (7 * classes, channels, size, size) and loaded.images.dtype == torch.uint8
    assert loaded.class_sizes == [7] * classes and len(loaded.class_names) == classes
    assert torch.equal(loaded.images.permute(0, 2, 3, 1), torch.from_numpy(images))
    assert loaded.labels.tolist() == labels.tolist()
    assert (loaded.mean, loaded.std) == PUBLISHED[name]
    assert loaded.test_labels.bincount().tolist() == [1 if classes == 100 else 2] * classes


def test_a_failed_download_leaves_what_came_and_no_empty_folder(tmp_path):
    def download(root):
        for folder in ("some/raw", "none/raw"):
            (root / folder).mkdir(parents=True)
        (root / "some/raw/images").write_bytes(b"whole")
        raise ConnectionError("no network")

    (tmp_path / "old").mkdir()
    source = sources.Source((0.5,), (0.5,), 28, None, ("some/raw/images", "none/raw/labels"), download)
    for data_path in (tmp_path, tmp_path / "new/path"):
        with pytest.raises(UserError, match="no network"):
            source.load("TEST", data_path, 28)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not any(path.glob("*"))) == [
        "new/path/some/raw/images", "old", "some/raw/images"]
    source = sources.Source((0.5,), (0.5,), 28, None, ("a/b/absent",), lambda root: (root / "a/b").mkdir(parents=True))
    with pytest.raises(UserError, match="TEST"):
        source.load("TEST", tmp_path / "gone/path", 28)
    assert not (tmp_path / "gone").exists()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return formats.write_tiny(tmp_path_factory.mktemp("tiny"), 3, classes=20)


@pytest.mark.parametrize("zipped", [False, True])
def test_tiny_imagenet(zipped, tiny_folder, tmp_path):
    (formats.zip_folder if zipped else os.symlink)(tiny_folder, tmp_path / f"tiny-imagenet-200{'.zip' * zipped}")
    loaded = data.load("TinyImageNet", tmp_path)
    assert loaded.images.shape == (60, 3, 64, 64) and loaded.test_images.shape == (20, 3, 64, 64)
    assert loaded.class_names == [f"name{k}" for k in range(20)]
    assert (loaded.mean, loaded.std) == PUBLISHED["TinyImageNet"]
    for images, labels, count in ((loaded.images, loaded.labels, 3), (loaded.test_images, loaded.test_labels, 1)):
        expected = by_label(*formats.images_and_labels(20, count, 64, seed=count))
        torch.testing.assert_close(by_label(images, labels), expected, rtol=5e-3, atol=0)  # JPEG loses a little
    assert not any(path.is_dir() and not path.is_symlink() for path in tmp_path.iterdir()), "something was unpacked"


def moved(folder, into):
    """Images of val sorted into <into> by their class."""
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        target = folder / "val" / into.format(wnid)
        target.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(target / name)


@pytest.mark.parametrize("layout", ["{}", "{}/images", "twice", "flat", "windows", "macos"])
def test_tiny_imagenet_in_other_layouts(layout, tmp_path):
    folder = formats.write_tiny(tmp_path / "made", 2, classes=4)
    wanted = data.load("TinyImageNet", tmp_path / "made")
    place = tmp_path / "tiny-imagenet-200"
    if layout.startswith("{}"):
        moved(folder, layout)
        (folder / "val" / "val_annotations.txt").unlink()
        folder.rename(place)
    elif layout == "twice":
        place.mkdir()
        folder.rename(place / folder.name)
    else:
        top, sep = ("" if layout == "flat" else f"{folder.name}/"), "\\" if layout == "windows" else "/"
        with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    entry = zipfile.ZipInfo("x")
                    entry.filename = (top + file.relative_to(folder).as_posix()).replace("/", sep)
                    archive.writestr(entry, file.read_bytes())
            if layout == "macos":
                archive.writestr(f"__MACOSX/{folder.name}/train/._n00000000", b"x")
    found = data.load("TinyImageNet", tmp_path)
    assert found.class_names == wanted.class_names and torch.equal(found.images, wanted.images)
    torch.testing.assert_close(by_label(found.test_images, found.test_labels),
                               by_label(wanted.test_images, wanted.test_labels), rtol=0, atol=0)


def test_part_of_tiny_imagenet_is_said(tiny_folder, tmp_path, capsys):
    os.symlink(tiny_folder, tmp_path / "tiny-imagenet-200")
    data.load("TinyImageNet", tmp_path)
    assert "labels are those of the 20 folders of train/, not of the 200 published ones" in capsys.readouterr().out


def test_tiny_imagenet_whose_labels_are_not_certain_is_named(tmp_path):
    folder = formats.write_tiny(tmp_path, 1, classes=2)
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"val/ has images in images, and val/val_annotations\.txt .* is not there"):
        data.load("TinyImageNet", tmp_path)


def test_zip_is_read_by_several_processes(tmp_path, monkeypatch):
    """None inherits it open: they would move each other's position. Nor could it be sent to them, as pickling shows."""
    def loader(images, **settings):
        pickle.dumps(images)
        batch, _ = settings["collate_fn"]([images[0]])
        assert isinstance(batch, np.ndarray), "a tensor would go through shared memory"
        images.tree.close()
        return DataLoader(images, **settings)

    monkeypatch.setattr(image_files, "DataLoader", loader)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    monkeypatch.setattr(image_files, "FILES_PER_WORKER", 100)
    folder = formats.write_tiny(tmp_path, 30, classes=10)
    formats.zip_folder(folder, tmp_path / "set.zip")
    loaded = []
    for root in (folder, tmp_path / "set.zip"):
        tree = image_files.Tree(root)
        names = [name for name, _ in image_files.list_tiny_imagenet(tree).train]
        loaded.append(image_files.decode(tree, names, 3, 64))
    assert len(loaded[0]) == 300 and torch.equal(*loaded)


@needs_shared_data
def test_real_tiny_imagenet_pictures_are_those_of_the_files(tmp_path):
    """A class of the real subset, unpacked, against Pillow reading the same files."""
    import tarfile
    with tarfile.open(SHARED / "data" / "tiny-imagenet-200_subset.tar.xz") as archive:
        members = []
        for member in archive:  # the files of a class stand together near the start of the archive
            if member.isfile() and "/train/" in member.name and member.name.endswith("JPEG"):
                members.append(member)
            if len(members) == 20:
                break
        archive.extractall(tmp_path, members, filter="data")
    files = sorted(tmp_path.rglob("*.JPEG"))
    tree = image_files.Tree(tmp_path)
    pixels = image_files.decode(tree, [path.relative_to(tmp_path).as_posix() for path in files], 3, 64)
    for path, image in zip(files, pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name, folder, channels, size", [("CIFAR10", "cifar10", 3, 32), ("MNIST", "MNIST", 1, 28)])
def test_image_folder_comes_before_the_published_files(name, folder, channels, size, tmp_path):
    names = class_order.NAMES[name][::-1]
    for split, count in (("train", 4), ("test", 2)):
        images = formats.images_and_labels(10, count, size, channels)
        formats.write_class_folders(tmp_path / folder / split, *images, names)
    linked = tmp_path / folder / "train" / names[0]
    linked.symlink_to(linked.rename(tmp_path / "elsewhere"))
    loaded = data.load(name, tmp_path)
    assert loaded.class_names == names[::-1] and loaded.images.shape == (40, channels, size, size)
    images, labels = formats.images_and_labels(10, 4, size, channels)
    assert torch.equal(by_label(loaded.images, loaded.labels), by_label(images, 9 - labels))
    assert data.load(name, tmp_path, im_size=16).images.shape == (40, channels, 16, 16)


SPELLINGS = {
    "names": ("FashionMNIST", ["tshirt", "Trousers", "pullover", "dress", "coat", "sandals", "SHIRT", "sneaker", "bags",
                               "ankle_boot"]),
    "names with signs": ("FashionMNIST", [*(name.replace("/", "_") for name in class_order.NAMES["FashionMNIST"])]),
    "numbers": ("FashionMNIST", [f"class_{k}" for k in range(10)]),
    "padded": ("CIFAR10", [f"{k:05}" for k in range(10)]),
    "both": ("CIFAR10", [f"{k}_{name}" for k, name in enumerate(class_order.CIFAR10)]),
    "usual names": ("CIFAR10", ["plane", "car", "birds", "cats", "deer", "dogs", "frog", "horse", "ship", "truck"]),
    "words": ("MNIST", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]),
    "hundred numbers": ("CIFAR100", [str(k) for k in range(100)]),
    "wnids": ("TinyImageNet", [f"n{wnid}" for wnid, _ in class_order._TINY]),
    "200 names": ("TinyImageNet", [name.upper().replace(" ", "_") for _, name in class_order._TINY]),
    "wnids of ten": ("CIFAR10", ["n02691156", "n02958343", "n01503061", "n02121620", "n02430045", "n02084071",
                                 "n01639765", "n02374451", "n04194289", "n04490091"]),
    "10 is 0": ("SVHN", ["10", *map(str, range(1, 10))]),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_folders_have_the_labels_of_the_published_order(spelling):
    dataset, folders = SPELLINGS[spelling]
    assert class_order.published(dataset, sorted(folders)) == {name: k for k, name in enumerate(folders)}


@pytest.mark.parametrize("dataset", class_order.NAMES)
def test_every_published_name_is_its_own_class(dataset):
    names = class_order.NAMES[dataset]
    assert list(class_order.published(dataset, names).values()) == list(range(len(names)))
    assert len(names) == {"CIFAR100": 100, "TinyImageNet": 200}.get(dataset, 10)


@pytest.mark.parametrize("change, named", [
    ({"bag": "handbag"}, "handbag cannot be matched"), ({"bag": "shirts"}, "SHIRT, shirts are the same class"),
    ({"bag": None}, "train/ has no images of Bag"), ({"bag": "8"}, "8 cannot be matched")])
def test_folders_that_are_no_published_classes_are_refused_with_both_lists(change, named, tmp_path):
    names = [change.get(name, name) for name in [*SPELLINGS["names"][1][:8], "bag", "boots"]]
    images, labels = formats.images_and_labels(10, 1, 28, 1)
    for part in ("train", "test"):
        kept = [k for k, label in enumerate(labels) if names[label] is not None]
        formats.write_class_folders(tmp_path / "fashionmnist" / part, images[kept], labels[kept],
                                    [name if name else "" for name in names])
    with pytest.raises(UserError, match=named) as refused:
        data.load("FashionMNIST", tmp_path)
    if "handbag" in named:
        assert all(name in str(refused.value) for name in (*names, *class_order.NAMES["FashionMNIST"]))


def test_train_and_test_folders_may_be_spelled_differently(tmp_path):
    for part, count, names in (("train", 2, SPELLINGS["names"][1]), ("test", 3, [f"{k:02}" for k in range(10)])):
        formats.write_class_folders(tmp_path / "FashionMNIST" / part,
                                    *formats.images_and_labels(10, count, 28, 1, seed=count), names)
    loaded = data.load("FashionMNIST", tmp_path)
    assert loaded.class_names == class_order.NAMES["FashionMNIST"]
    for images, labels, count in ((loaded.images, loaded.labels, 2), (loaded.test_images, loaded.test_labels, 3)):
        assert torch.equal(by_label(images, labels), by_label(*formats.images_and_labels(10, count, 28, 1, seed=count)))


@pytest.mark.parametrize("form", ["{}", "{:03}", "class {}", "n{:08}"])
def test_numbers_sort_as_numbers_in_a_folder_of_ones_own(form, tmp_path):
    names = [form.format(k) for k in range(12)]
    formats.write_class_folders(tmp_path / "train", *formats.images_and_labels(12, 5, 8), names)
    assert data.load("folder", tmp_path, im_size=8).class_names == names


def test_second_start_reads_only_the_cache(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    formats.write_class_folders(folder / "train", *formats.images_and_labels(2, 10), ["a", "b"])
    first = data.load("folder", folder)
    decode = image_files.decode
    monkeypatch.setattr(image_files, "decode", None)  # calling it would fail
    second = data.load("folder", folder)
    assert torch.equal(first.images, second.images) and torch.equal(first.test_images, second.test_images)
    monkeypatch.setattr(image_files, "decode", decode)
    changed = next((folder / "train" / "a").iterdir())
    Image.new("RGB", (32, 32), "white").save(changed)
    third = data.load("folder", folder)
    assert torch.cat([third.images, third.test_images]).flatten(1).eq(255).all(dim=1).sum() == 1
    cache, = tmp_path.glob("cache_*")
    cache.write_bytes(cache.read_bytes()[:1000])
    assert torch.equal(data.load("folder", folder).images, third.images)


def test_cache_that_cannot_be_written_is_only_noted(tmp_path, capsys):
    formats.write_class_folders(tmp_path / "photos" / "train", *formats.images_and_labels(2, 10), ["a", "b"])
    (tmp_path / "cache_photos_32.pt").mkdir()
    assert len(data.load("folder", tmp_path / "photos").images) == 16
    assert "cache_photos_32.pt" in capsys.readouterr().err


def test_common_formats_sizes_and_modes(tmp_path):
    """Red squares in any format and mode come out red; what is not square is filled and cut at the centre."""
    folder = tmp_path / "train" / "red"
    folder.mkdir(parents=True)
    red = Image.new("RGB", (50, 20), (200, 0, 0))
    for suffix in ("png", "bmp", "tiff", "webp", "jpg", "ppm", "JPEG", "gif", "jpe", "jfif"):
        red.save(folder / f"image.{suffix}", quality=100)
    for mode in ("RGBA", "P", "CMYK"):
        red.convert(mode, palette=Image.Palette.ADAPTIVE).save(folder / f"{mode}.tiff")
    (folder / "notes.txt").write_text("no image")
    red.quantize().save(folder / "clear.png", transparency=bytes(256))
    (folder / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / ".hidden" / "image.png").write_bytes(b"no image")
    tree = image_files.Tree(tmp_path)
    clear = image_files.decode(tree, ["train/red/clear.png"], 3, 32)
    assert (clear == 255).all(), "white shows through, never the colour below"
    (folder / "clear.png").unlink()
    tree = image_files.Tree(tmp_path)
    names, folders = image_files.images_by_folder(tree, "train/")
    assert len(names) == 13 and set(folders) == {"red"}
    warnings.simplefilter("error")  # pytest puts it back
    pixels = image_files.decode(tree, names, 3, 32)
    target = torch.tensor([200, 0, 0]).reshape(3, 1, 1)
    assert (pixels.int() - target).abs().max() <= 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "RGB", "P"])
def test_transparent_pixels_are_white(mode, channels, tmp_path):
    """The left half is opaque and dark, the right one transparent with a hidden colour."""
    image, how = Image.new("RGBA", (8, 8), (40, 40, 40, 255)), {}
    image.paste((200, 200, 200, 0), (4, 0, 8, 8))
    if mode in ("L", "RGB"):
        image, how = image.convert(mode), {"transparency": 200 if mode == "L" else (200, 200, 200)}
    elif mode == "P":
        image = image.convert("RGB").quantize(2)
        how = {"transparency": image.getpixel((7, 7))}
    else:
        image = image.convert(mode)
    image.save(tmp_path / "image.png", **how)
    pixels = image_files.decode(image_files.Tree(tmp_path), ["image.png"], channels, 8)
    assert (pixels[..., :4] == 40).all() and (pixels[..., 4:] == 255).all()


@pytest.mark.parametrize("kind, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_refused_in_every_mode(kind, channels, tmp_path):
    rows = np.full((8, 8, channels), 4660, ">u2")

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content)
                                        + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bits a channel"):
        image_files.decode(image_files.Tree(tmp_path), ["deep.png"], 3, 8)


@pytest.mark.parametrize("magic, channels", [(b"P6", 3), (b"P5", 1)])
def test_16_bits_in_a_ppm(magic, channels, tmp_path):
    (tmp_path / "deep.ppm").write_bytes(magic + b" 4 4 65535\n" + bytes(16 * channels * 2))
    with pytest.raises(UserError, match="more than 8 bits"):
        image_files.decode(image_files.Tree(tmp_path), ["deep.ppm"], 3, 4)


@pytest.mark.parametrize("suffix", ["tif", "webp", "png", "gif"])
def test_several_pages_are_refused_and_a_phones_picture_is_not(suffix, tmp_path):
    images, _ = formats.images_and_labels(2, 2, 8)
    frames = [Image.fromarray(image) for image in images]
    frames[0].save(tmp_path / f"pages.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=rf"pages\.{suffix} has several pages or frames"):
        image_files.decode(image_files.Tree(tmp_path), [f"pages.{suffix}"], 3, 8)
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert image_files.decode(image_files.Tree(tmp_path), ["phone.jpg"], 3, 8).shape == (1, 3, 8, 8)


def write_other_mnist(folder, rows=28, columns=28, label=None):
    formats.write_idx(folder, "MNIST", 1)
    images, labels = (folder / "MNIST" / "raw" / f"train-{part}-ubyte" for part in ("images-idx3", "labels-idx1"))
    images.write_bytes(struct.pack(">4i", 2051, 10, rows, columns) + (bytes(range(250)) * 40)[:10 * rows * columns])
    if label is not None:
        labels.write_bytes(labels.read_bytes()[:-1] + bytes([label]))


def test_published_files_of_another_shape_or_with_other_labels(tmp_path):
    cases = {"size": (lambda folder: write_other_mnist(folder, 20, 20),
                      r"its images are \(1, 20, 20\), not \(1, 28, 28\)"),
             "sides": (lambda folder: write_other_mnist(folder, 28, 14), r"\(1, 28, 14\)"),
             "label": (lambda folder: write_other_mnist(folder, label=10), "labels .*10")}
    for name, (write, named) in cases.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match=named):
            data.load("MNIST", tmp_path / name)


@pytest.mark.parametrize("labels, shape", [((0, 1), (32, 32, 3, 2)), ((1, 11), (32, 32, 3, 2)),
                                           ((1.5, 2), (32, 32, 3, 2)), ((1, 2), (16, 16, 3, 2)),
                                           ((1, 2), (32, 32, 1, 2))])
def test_mat_of_another_shape_or_with_other_labels(labels, shape, tmp_path):
    formats.write_svhn(tmp_path, 1)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": np.array(labels)[:, None]})
    with pytest.raises(UserError, match=r"(not 1 to 10|not .3, 32, 32. as published)"):
        data.load("SVHN", tmp_path)


def test_class_names_of_a_pickle_are_all_different(tmp_path):
    formats.write_cifar10(tmp_path, 1)
    path = tmp_path / "cifar-10-batches-py" / "batches.meta"
    for names in (["cat"] * 10, [*"abcdefghi", ""], [*"abcdefghi", 3]):
        path.write_bytes(pickle.dumps({"label_names": names}))
        with pytest.raises(UserError, match=r"class names .* are not all different names"):
            data.load("CIFAR10", tmp_path)


def medical(classes=9, channels=3):
    """MedMNIST's form: channels last, labels (N, 1) of uint8."""
    parts = {}
    for part, count in (("train", 8), ("val", 1), ("test", 2)):
        images, labels = formats.images_and_labels(classes, count, 28, channels, seed=count)
        parts |= {f"{part}_images": images if channels == 3 else images[..., 0],
                  f"{part}_labels": labels[:, None].astype(np.uint8)}
    return parts


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_as_medmnist_publishes_it(channels, tmp_path, capsys):
    content = medical(channels=channels)
    np.savez(tmp_path / "medical.npz", **content)
    loaded = data.load("folder", tmp_path / "medical.npz", im_size=28)
    assert loaded.images.shape == (72, channels, 28, 28) and loaded.class_names == [str(k) for k in range(9)]
    wanted = torch.from_numpy(content["train_images"].reshape(72, 28, 28, channels))
    assert torch.equal(loaded.images.permute(0, 2, 3, 1), wanted)
    assert loaded.labels.tolist() == content["train_labels"].flatten().tolist()
    assert loaded.test_labels.tolist() == content["test_labels"].flatten().tolist()
    assert "9 images for validation are left out" in capsys.readouterr().out
    assert data.load("folder", tmp_path / "medical.npz").image_shape == (channels, 32, 32)
    np.savez(tmp_path / "train.npz", **{name: part for name, part in content.items() if name.startswith("train")})
    assert len(data.load("folder", tmp_path / "train.npz", im_size=28).test_labels) == 15


@pytest.mark.parametrize("change, named", [
    ({"train_images": np.zeros((72, 28, 28, 3))}, "train_images are float64"),
    ({"train_images": np.zeros((72, 3, 28, 28), np.uint8)}, r"train_images are uint8 \(72, 3, 28, 28\)"),
    ({"test_labels": np.zeros((18, 5), np.uint8)}, r"test_labels are uint8 \(18, 5\)"),
    ({"train_labels": np.full((72, 1), 0.5)}, "whole number"), ({"train_labels": np.full((72, 1), 3)}, "without a gap"),
    ({"test_labels": np.full((18, 1), 9)}, "labels 9 in 9 classes; make the parts for training and testing alike"),
    ({"train_labels": np.full((72, 1), np.nan)}, "whole number"),
    ({"train_labels": None}, "no train_images with train_labels"),
    ({"train_labels": np.array([open] * 72)}, "allow_pickle=False")])
def test_npz_of_another_form_is_named(change, named, tmp_path):
    content = medical() | change
    np.savez(tmp_path / "m.npz", **{name: part for name, part in content.items() if part is not None})
    with pytest.raises(UserError, match=named) as refused:
        data.load("folder", tmp_path / "m.npz")
    assert "\n" not in str(refused.value) and "m.npz" in str(refused.value)


def test_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    formats.write_class_folders(tmp_path / "train", *formats.images_and_labels(2, 10), ["a", "b"])
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) == "a":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"train/a: cannot be read \(Permission denied\)"):
        data.load("folder", tmp_path)


def test_class_names_can_be_written(tmp_path):
    """Whatever the bytes of a folder's name."""
    names = [os.fsdecode(b"cl\xff"), "b"]
    formats.write_class_folders(tmp_path / "train", *formats.images_and_labels(2, 10), names)
    assert data.load("folder", tmp_path).class_names == ["b", "cl\ufffd"]


def test_grey_images_have_one_channel_and_a_split_is_stratified(tmp_path, capsys):
    images, labels = formats.images_and_labels(3, 20, 40, 1)
    formats.write_class_folders(tmp_path / "train", images, labels, ["a", "b", "c"])
    loaded = data.load("folder", tmp_path, im_size=24, seed=1)
    assert loaded.images.shape == (48, 1, 24, 24)
    assert loaded.test_labels.bincount().tolist() == [4, 4, 4]
    assert "48 training and 12 test images" in capsys.readouterr().out
    assert torch.equal(data.load("folder", tmp_path, im_size=24, seed=1).images, loaded.images)
    assert not torch.equal(data.load("folder", tmp_path, im_size=24, seed=2).images, loaded.images)
    normalised = loaded.normalise(loaded.images)
    assert abs(normalised.mean()) < 1e-4 and abs(normalised.std() - 1) < 1e-3


def bad_folder(tmp_path, change):
    formats.write_class_folders(tmp_path / "train", *formats.images_and_labels(2, 5), ["a", "b"])
    change(tmp_path)
    with pytest.raises(UserError) as error:
        data.load("folder", tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    return str(error.value)


def test_wrong_folders_are_one_line(tmp_path):
    def first(folder):
        return min((folder / "train" / "a").iterdir())

    def other_class(folder):
        formats.write_class_folders(folder / "test", *formats.images_and_labels(1, 2), ["c"])

    def one_image_left(folder):
        for path in (folder / "train" / "a").iterdir():
            if path != first(folder):
                path.unlink()

    def sixteen_bits(folder):
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "train" / "a" / "deep.png")

    def flat_test(folder):
        (folder / "test").mkdir()
        first(folder).rename(folder / "test" / first(folder).name)

    def several(folder):
        for name in ("val", "dev"):
            formats.write_class_folders(folder / name, *formats.images_and_labels(2, 5), ["a", "b"])

    def empty_class(folder):
        (folder / "train" / "c").mkdir()
        (folder / "train" / "c" / "photo.heic").write_bytes(b"no image")

    def of_one_colour(folder):
        for path in folder.rglob("*.png"):
            Image.new("RGB", (8, 8), (3, 4, 5)).save(path)

    assert "test/ has images, but not as test/<class>/" in bad_folder(tmp_path / "flat", flat_test)
    assert "which of the folders dev, train, val" in bad_folder(tmp_path / "several", several)
    assert "train/c has no images that are read" in bad_folder(tmp_path / "empty", empty_class)
    assert "one and the same colour" in bad_folder(tmp_path / "constant", of_one_colour)
    assert "test/c" in bad_folder(tmp_path / "class", other_class)
    assert "too few" in bad_folder(tmp_path / "few", one_image_left)
    broken = bad_folder(tmp_path / "broken", lambda folder: first(folder).write_bytes(b"PNG"))
    assert "train/a/" in broken and "not a readable image" in broken
    assert "deep.png" in bad_folder(tmp_path / "deep", sixteen_bits)
    with pytest.raises(UserError, match="nothing: no such folder; name that of your images"):
        data.load("folder", tmp_path / "nothing")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no images in train/<class>/; sort .*, or name the folder above these"):
        data.load("folder", tmp_path / "nothing")


def folders(root, *names):
    """A few images in each of these folders."""
    for k, name in enumerate(names):
        formats.write_class_folders(root, *formats.images_and_labels(1, 3, 8, seed=k), [name])
    return root


@pytest.mark.parametrize("layout, named", [
    (["trainA/a", "trainA/b", "holdA/a", "holdA/b"], "each of the folders holdA, trainA has folders a, b in it"),
    (["train/train/a", "train/train/b", "train/test/a", "train/test/b"], "each of the folders test, train has"),
    (["train/a/images", "train/a/masks", "train/b/images", "train/b/masks"], "has folders images, masks in it"),
    (["seg_train/seg_train/a", "seg_test/seg_test/a"], "but in seg_test, seg_train; sort the images"),
    (["train/train/a", "train/train/b"], "all images are of one class, train"), (["train/a"], "of one class, a")])
def test_parts_are_not_taken_for_classes(layout, named, tmp_path):
    with pytest.raises(UserError, match=named):
        data.load("folder", folders(tmp_path, *layout))


def test_folders_within_classes_are_said(tmp_path, capsys):
    folders(tmp_path, "train/pet/cat", "train/pet/dog", "train/car/images", "test/pet", "test/car")
    assert data.load("folder", tmp_path, im_size=8).class_sizes == [3, 6]
    assert "all folders within pet are taken as of that class (1 such classes)" in capsys.readouterr().out


def test_words_of_parts_in_names_of_classes(tmp_path):
    assert data.load("folder", folders(tmp_path, "valley", "tester"), im_size=8).class_names == ["tester", "valley"]


@pytest.mark.parametrize("extra, named", [
    ("test/a/x.tga", "test/ has files, but no images that are read"), ("x.csv", "no labels are read from x.csv: sort"),
    ("d.npz", "name d.npz itself")])
def test_what_is_there_instead_of_images_is_named(extra, named, tmp_path):
    folders(tmp_path, *(["train/a", "train/b"] if extra.startswith("test") else ["images"]))
    (tmp_path / extra).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / extra).write_bytes(b"x")
    with pytest.raises(UserError, match=named):
        data.load("folder", tmp_path)


def test_files_that_are_no_data_set(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"x.npy: not a folder, \.zip, \.npz or \.parquet"):
        data.load("folder", tmp_path / "x.npy")


@pytest.mark.parametrize("sep", "/\\")
def test_empty_class_in_a_zip(sep, tmp_path):
    with zipfile.ZipFile(tmp_path / "my.zip", "w") as archive:
        for name in ("my/train/a/0.png", "my/train/b/0.png", "my/train/c/"):
            entry = zipfile.ZipInfo("x")
            entry.filename = name.replace("/", sep)
            archive.writestr(entry, b"")
    with pytest.raises(UserError, match="train/c has no images that are read"):
        data.load("folder", tmp_path / "my.zip")


def test_empty_folder_for_testing_and_thumbnails_of_a_server(tmp_path, capsys):
    folders(tmp_path, "train/a", "train/b", "test/a", "test/b", "train/a/@eaDir/0.png", "test/$RECYCLE.BIN")
    (tmp_path / "test" / "c").mkdir()
    assert data.load("folder", tmp_path, im_size=8).class_sizes == [3, 3]
    line, = capsys.readouterr().out.splitlines()
    assert "1 folders in test/ have no images that are read: c" in line


def test_folder_of_a_published_data_set_in_another_spelling(tmp_path):
    names = class_order.NAMES["CIFAR10"]
    folders(tmp_path / "cifar-10", *(f"{part}/{name}" for part in ("train", "test") for name in names))
    assert data.load("CIFAR10", tmp_path).class_names == names


TEST_FOLDERS = ["testing", "Testing", "Val", "Valid", "Validation", "TEST", "test_set", "test_images", "dev",
                "evaluation"]


@pytest.mark.parametrize("train, test", [*(("train", name) for name in TEST_FOLDERS), ("Training", "Testing")])
def test_folder_for_testing_under_another_name(train, test, tmp_path, capsys):
    for part, count in ((train, 5), (test, 2)):
        formats.write_class_folders(tmp_path / part, *formats.images_and_labels(3, count, 8), ["a", "b", "c"])
    loaded = data.load("folder", tmp_path, im_size=8)
    assert loaded.class_sizes == [5] * 3 and loaded.test_labels.bincount().tolist() == [2] * 3
    assert f"the test images are those in {test}/" in capsys.readouterr().out


def test_classes_without_train_folder_are_split(tmp_path):
    formats.write_class_folders(tmp_path, *formats.images_and_labels(3, 10, 8), ["a", "b", "c"])
    assert data.load("folder", tmp_path, im_size=8).class_sizes == [8] * 3


def test_what_is_left_out_is_counted_and_leftovers_are_not(tmp_path, capsys):
    for part, count in (("train", 5), ("test", 2), ("val", 3)):
        formats.write_class_folders(tmp_path / part, *formats.images_and_labels(2, count, 8), ["a", "b"])
    for name in ("train/.DS_Store", "train/a/._000.png", "train/__MACOSX/a/._001.png", "train/a/desktop.ini",
                 "test/.ipynb_checkpoints/x.png", "train/a/Thumbs.db", "readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("train/loose.png", "train/a/photo.heic", "train/a/b/c/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert data.load("folder", tmp_path, im_size=8).class_sizes == [5, 5]
    line, = capsys.readouterr().out.splitlines()
    assert "9 files are left out: 7 images outside" in line and "2 of types that are not read (.heic, .txt)" in line
    for name in ("train/loose.png", "train/a/photo.heic", "train/a/b/c/notes.txt"):
        (tmp_path / name).unlink()
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    data.load("folder", tmp_path, im_size=8)
    assert capsys.readouterr().out == ""


def test_classes_that_are_not_tested_are_named(tmp_path, capsys):
    formats.write_class_folders(tmp_path / "train", *formats.images_and_labels(3, 5, 8), ["a", "b", "c"])
    formats.write_class_folders(tmp_path / "test", *formats.images_and_labels(2, 5, 8), ["a", "b"])
    assert data.load("folder", tmp_path, im_size=8).num_classes == 3
    assert "no test images of c: 1 of 3 classes are not tested" in capsys.readouterr().out


def test_class_names_that_look_alike_are_one(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for part, names in (("train", [composed, "b"]), ("train", [decomposed, "b"]), ("test", [decomposed, "b"])):
        images, labels = formats.images_and_labels(2, 3, 8)
        formats.write_class_folders(tmp_path / part, images, labels, names)
    loaded = data.load("folder", tmp_path, im_size=8)
    assert loaded.class_names == ["b", composed] and loaded.class_sizes == [3, 6]
    assert loaded.test_labels.bincount().tolist() == [3, 3]


def test_damaged_images_are_all_named(tmp_path):
    formats.write_class_folders(tmp_path / "train", *formats.images_and_labels(2, 10, 8), ["a", "b"])
    paths = sorted((tmp_path / "train").rglob("*.png"))
    for path, content in zip(paths, (b"", b"<html>404</html>", paths[2].read_bytes()[:60]), strict=False):
        path.write_bytes(content)
    with pytest.raises(UserError, match="3 images are wrong: ") as refused:
        data.load("folder", tmp_path, im_size=8)
    assert all(path.name in str(refused.value) for path in paths[:3])
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="20 images are wrong: ") as refused:
        data.load("folder", tmp_path, im_size=8)
    assert str(refused.value).count(".png") == 10 and "\n" not in str(refused.value)


def test_tiny_imagenet_as_the_published_script_reads_it(tmp_path):
    """tinyimagenet.pt; another form of it is refused by its name."""
    rng = np.random.default_rng(0)
    content = {"classes": ["n1", "n2"]} | {
        f"{kind}_{part}": torch.from_numpy(rng.integers(0, most, (count, *shape), dtype))
        for part, count in (("train", 6), ("val", 4))
        for kind, most, shape, dtype in (("images", 256, (3, 64, 64), np.uint8), ("labels", 2, (), np.int64))}
    torch.save(content, tmp_path / "tinyimagenet.pt")
    loaded = data.load("TinyImageNet", tmp_path)
    assert loaded.class_names == ["n1", "n2"] and loaded.mean == (0.485, 0.456, 0.406)
    for name in ("images_train", "labels_train", "images_val", "labels_val"):
        read = getattr(loaded, name.replace("_train", "")) if "train" in name else getattr(loaded, f"test_{name[:6]}")
        assert torch.equal(read, content[name])
    for wrong, named in (({"classes": None}, "images_train"),
                         ({"images_val": content["images_val"].float()}, "float32"),
                         ({"labels_train": torch.full((6,), 2)}, "labels")):
        torch.save(content | wrong, tmp_path / "tinyimagenet.pt")
        with pytest.raises(UserError, match=named) as refused:
            data.load("TinyImageNet", tmp_path)
        assert str(refused.value).count("\n") == 0


def test_tiny_imagenet_that_is_wrong_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"neither tiny-imagenet-200/ nor tiny-imagenet-200\.zip"):
        data.load("TinyImageNet", tmp_path)
    folder = formats.write_tiny(tmp_path, 1, classes=2)
    (folder / "val" / "images" / "val_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"val_0\.JPEG .*; unpack or download tiny-imagenet-200\.zip again"):
        data.load("TinyImageNet", tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    with pytest.raises(UserError, match="val_annotations"):
        data.load("TinyImageNet", tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_pickles_run_nothing(name, tmp_path):
    WRITERS[name][0](tmp_path)
    batch = tmp_path / {"CIFAR10": "cifar-10-batches-py/data_batch_2", "CIFAR100": "cifar-100-python/train"}[name]
    batch.write_bytes(pickle.dumps({"data": formats.Payload(tmp_path / "owned")}))
    with pytest.raises(UserError, match=r"io\.open, which is not loaded") as error:
        data.load(name, tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "owned").exists()
    pickle.loads(batch.read_bytes())
    assert (tmp_path / "owned").exists(), "the payload does not work, so the test shows nothing"


def test_checksum_tells_training_and_test_images(digits):
    checksums = {digits().checksum()}
    for name in ("images", "labels", "test_images", "test_labels"):
        changed = digits()
        getattr(changed, name)[0] += 1
        checksums.add(changed.checksum())
    assert len(checksums) == 5


def test_zca_whitens_and_comes_back(tmp_path):
    formats.write_svhn(tmp_path, 30)
    plain, white = data.load("SVHN", tmp_path, im_size=8), data.load("SVHN", tmp_path, im_size=8, zca=True)
    images = white.normalise(white.images)

    def variances(images):
        return torch.linalg.eigvalsh(torch.cov(images.flatten(1).double().T))

    assert images.shape == plain.images.shape and abs(images.mean()) < 1e-3
    before = variances(plain.images / 255)
    torch.testing.assert_close(variances(images), before / (before + 0.1), rtol=0, atol=1e-4)
    torch.testing.assert_close(white.pixels(images), plain.images / 255, rtol=0, atol=1e-3)
    torch.testing.assert_close(plain.pixels(plain.normalise(plain.images)), plain.images / 255, rtol=0, atol=1e-6)
    torch.testing.assert_close(white.batch(np.array([[0, 1], [2, 3]])), images[:4].unflatten(0, (2, 2)))


@pytest.mark.parametrize("error, expected, words", [
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), UserError,
     "its files need more memory than there is"),
    (MemoryError(), UserError, "the whole, undamaged files"),
    (PermissionError(errno.EACCES, "Permission denied", "there"), UserError, "no permission for there; "),
    (RuntimeError("shape"), UserError, "the whole, undamaged files")])
def test_what_is_said_of_reading_that_fails(error, expected, words, monkeypatch, tmp_path):
    """Too little memory is no damage."""
    def read(*_):
        raise error

    monkeypatch.setitem(sources.SOURCES, "mine", sources.Source(None, None, 16, read))
    with pytest.raises(expected, match=words):
        data.load("mine", tmp_path)
