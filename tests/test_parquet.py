"""Parquet files as Hugging Face stores image data sets."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import formats
from utils import data
from utils.data import image_files, parquet
from utils.system.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
NAMES = ["cat", "dog", "fox"]


def encoded(array, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(array.squeeze()).save(content, kind)
    return content.getvalue()


def write(path, images, labels, image="image", label="label", names=NAMES, features=None, rows=4, how=None, **more):
    """Images (N, H, W, C) or encoded ones, in small row groups, with the metadata of the library `datasets`."""
    import pyarrow.parquet

    contents = [one if isinstance(one, bytes | None) else encoded(one) for one in images]
    columns = {image: pyarrow.array([{"bytes": one, "path": f"{k}.png"} for k, one in enumerate(contents)]),
               label: pyarrow.array([int(one) if isinstance(one, np.integer) else one for one in labels]), **more}
    features = features or {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), path, row_group_size=rows,
                                **how or {})


def same(images, arrays):
    return torch.equal(images, torch.from_numpy(arrays).permute(0, 3, 1, 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["data/{}-00000-of-00001.parquet", "{}.parquet", "default/{}/0000.parquet",
                                  "mine-{}.parquet"])
@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("picture", "kind")])
def test_as_hugging_face_stores_them(columns, form, channels, tmp_path):
    train, test = (formats.images_and_labels(3, count, 8, channels, seed=count) for count in (5, 2))
    for part, content in (("train", train), ("test", test)):
        write(tmp_path / form.format(part), *content, *columns)
    loaded = data.load("folder", tmp_path, im_size=8)
    assert same(loaded.images, train[0]) and same(loaded.test_images, test[0])
    assert loaded.labels.tolist() == train[1].tolist() and loaded.test_labels.tolist() == test[1].tolist()
    assert loaded.class_names == NAMES


def test_several_files_in_order_and_by_several_processes(tmp_path, monkeypatch):
    images, labels = formats.images_and_labels(3, 20, 8)
    for k in range(3):
        write(tmp_path / f"train-{k:05}-of-00003.parquet", images[20 * k:20 * k + 20], labels[20 * k:20 * k + 20])
    table = parquet.Table(tmp_path, parquet.files_in(tmp_path))
    names = [name for name, _ in table.listing().train]
    pickle.dumps(table)
    monkeypatch.setattr(image_files, "FILES_PER_WORKER", 20)
    monkeypatch.setattr(image_files, "BATCH_BYTES", 8 * 8 * 3 * 7)
    assert same(image_files.decode(table, names, 3, 8), images)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"of the 3 files train-00000-of-00003\.parquet \.\.\. 2 are there"):
        data.load("folder", tmp_path, im_size=8)


def test_one_file_is_split_and_cached(tmp_path, capsys, monkeypatch):
    images, labels = formats.images_and_labels(3, 10, 8)
    write(tmp_path / "pictures.parquet", images, labels)
    first = data.load("folder", tmp_path / "pictures.parquet", im_size=8)
    assert first.class_sizes == [8] * 3 and "split into 24 training and 6 test images" in capsys.readouterr().out
    monkeypatch.setattr(image_files, "decode", None)  # calling it would fail
    assert torch.equal(data.load("folder", tmp_path / "pictures.parquet", im_size=8).images, first.images)


def test_names_as_labels_and_numbers_without_names(tmp_path):
    images, labels = formats.images_and_labels(3, 4, 8)
    write(tmp_path / "names/train.parquet", images, [NAMES[k] for k in labels], names=None)
    write(tmp_path / "numbers/train.parquet", images, labels, names=None)
    for folder, names in (("names", NAMES), ("numbers", ["0", "1", "2"])):
        assert data.load("folder", tmp_path / folder, im_size=8).class_names == names


@pytest.mark.parametrize("test, parts", [("test", "validation-"), ("validation", "")])
def test_parts_that_are_not_used_are_counted(test, parts, tmp_path, capsys):
    images, labels = formats.images_and_labels(3, 4, 8)
    for name in ("train", "validation", "extra", *(["test"] * (test == "test"))):
        write(tmp_path / f"{name}-00000-of-00001.parquet", images, labels)
    assert len(data.load("folder", tmp_path, im_size=8).test_labels) == 12
    said = capsys.readouterr().out
    assert f"{24 if parts else 12} images are left out: those of " in said and "extra-00000" in said
    assert ("test images are those for validation" in said) == (test == "validation")


def test_hidden_test_labels_are_no_labels(tmp_path, capsys):
    images, labels = formats.images_and_labels(3, 5, 8)
    write(tmp_path / "train.parquet", images, labels)
    write(tmp_path / "test.parquet", images, np.full(15, -1))
    assert data.load("folder", tmp_path, im_size=8).class_sizes == [4] * 3
    assert "hidden (-1)" in capsys.readouterr().out


def deep(count=12):
    return [encoded(np.full((8, 8), 999, np.uint16))] * count


PICTURES, LABELS = formats.images_and_labels(3, 4, 8)
REFUSED = {
    "columns": ({"label": "a", "b": [1] * 12, "names": None}, r"labels is not clear; it has image .*a \(int64\), b"),
    "images": ({"image": "a", "b": [b"1"] * 12}, r"images is not clear; it has a .*b \(binary\)"),
    "16 bits": ({"images": deep()}, r"train\.parquet, row 0 has more than 8 bits a channel"),
    "damaged": ({"images": [*PICTURES[:11], b"GIF89a"]}, r"train\.parquet, row 11 is not a readable image"),
    "path alone": ({"images": [*PICTURES[:11], None]}, "row 11 is not a readable image .it has no bytes"),
    "no label": ({"labels": [*LABELS[:11], None]}, r"row 11: its label is None"),
    "other label": ({"labels": [*LABELS[:11], 3]}, r"row 11: its label is 3, which is none of the classes cat, dog"),
    "gap": ({"labels": [2 * k for k in LABELS], "names": None}, r"without a gap, and they are 0, 2, 4"),
    "names": ({"names": ["cat", "cat", "dog"]}, "not all different names"),
    "empty class": ({"names": [*NAMES, "elk"]}, "no training images of elk: 1 of 4 classes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_clear_or_wrong_is_one_line(kind, tmp_path):
    changes, named = REFUSED[kind]
    write(tmp_path / "train.parquet", **{"images": PICTURES, "labels": LABELS} | {
        name: pyarrow.array(value) if name == "b" else value for name, value in changes.items()})
    with pytest.raises(UserError, match=named) as refused:
        data.load("folder", tmp_path, im_size=8)
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_files_that_do_not_go_together(tmp_path):
    for name, names in (("train", NAMES), ("test", NAMES[::-1])):
        write(tmp_path / "names" / f"{name}.parquet", PICTURES, LABELS, names=names)
    for name in ("one/train", "two/train"):
        write(tmp_path / "two" / f"{name}.parquet", PICTURES, LABELS)
    for name in ("a", "b", "test"):
        write(tmp_path / "parts" / f"{name}.parquet", PICTURES, LABELS)
    for folder, named in (("names", "name their classes differently"), ("two", "several data sets, in one, two"),
                          ("parts", "which of a.parquet, b.parquet, test.parquet are for training")):
        with pytest.raises(UserError, match=named):
            data.load("folder", tmp_path / folder, im_size=8)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        data.load("folder", tmp_path / "damaged.parquet")


@pytest.mark.parametrize("kind", ["rows", "labels"])
def test_rows_and_labels_that_take_no_bytes(kind, tmp_path):
    """Equal ones stand once in a file: a million images, or a thousand labels of a million letters."""
    import pyarrow.parquet

    rows, labels = {"rows": (10**6, ["a", "b"]), "labels": (1000, ["a" * 10**6, "b"])}[kind]

    def repeated(values):
        return pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.arange(rows, dtype=np.int32) % len(values)), values)

    table = pyarrow.table({"image": repeated([encoded(PICTURES[0])]), "label": repeated(labels)})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", compression="zstd", store_schema=False)
    with pytest.raises(UserError, match="less than 16 bytes for each" if kind == "rows" else "longer than 1000"):
        data.load("folder", tmp_path, im_size=8)


def test_a_damaged_row_group_is_read_once(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", PICTURES, LABELS, rows=6)
    table = parquet.Table(tmp_path, parquet.files_in(tmp_path))
    names, calls = [name for name, _ in table.listing().train], []
    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", lambda *_: calls.append(1) and 1 / 0)
    with pytest.raises(UserError, match="12 images are wrong"):
        image_files.decode(table, names, 3, 8)
    assert len(calls) == 2


def test_bomb_and_missing_or_old_pyarrow(tmp_path, monkeypatch):
    write(tmp_path / "bomb" / "train.parquet", PICTURES, LABELS, zeros=pyarrow.array([bytes(2**20)] * 12),
          how={"compression": "zstd", "use_dictionary": False})
    with pytest.raises(UserError, match="more than 100 times the size"):
        data.load("folder", tmp_path / "bomb")
    write(tmp_path / "train.parquet", PICTURES, LABELS)
    monkeypatch.setattr(pyarrow, "__version__", "14.0.0")
    with pytest.raises(UserError, match=r"pyarrow 14\.0\.0 may run code"):
        data.load("folder", tmp_path / "train.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow") as refused:
        data.load("folder", tmp_path / "train.parquet")
    assert "\n" not in str(refused.value)


def test_pictures_beside_parquet_files_are_counted(tmp_path, capsys):
    images, labels = formats.images_and_labels(3, 5, 8)
    write(tmp_path / "train.parquet", images, labels)
    formats.write_class_folders(tmp_path / "train", images, labels, NAMES)
    assert data.load("folder", tmp_path, im_size=8).class_sizes == [4] * 3
    assert "15 files are left out: 15 images" in capsys.readouterr().out
