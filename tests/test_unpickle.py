"""Pickles: what honest projects write is read as it was; what is forged is refused before NumPy or torch see it."""

import io
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

import formats
from utils import storage
from utils.system import unpickle
from utils.system.errors import UserError

IMAGES, LABELS = torch.randn(10, 1, 8, 8), torch.arange(10)


def text(value):
    """The opcodes of a string."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def named(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


DTYPE = named("numpy", "dtype")
EMPTY = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\0\x85" + text("b") + b"\x87R"
FLOAT = DTYPE + text("f4") + b"K\0K\1\x87R"


def array(shape, dtype, content):
    sizes = b"".join(map(number, shape)) + bytes([0x84 + len(shape)])
    return EMPTY + b"(K\1" + sizes + dtype + b"\x89" + content + b"tb"


ONE_HASH = b"".join(b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N" for k in range(10**5))
HOSTILE = {
    "dtype with an object field": DTYPE + text("V8") + b"K\0K\1\x87R(K\3" + text("|") + b"N" + text("f") + b"\x85}"
    + text("f") + DTYPE + text("O") + b"K\0K\1\x87RK\0\x86s" + b"K\x08K\1K?tb",
    "plain dtype made one of objects": FLOAT + b"(K\3" + text("|") + b"N" + text("f") + b"\x85}K\x08K\1K?tb",
    "dtype of objects": array([1], DTYPE + text("O8") + b"K\0K\1\x87R", b"]" + text("a") + b"a"),
    "array larger than its bytes": array([10**6], FLOAT, b"C\x04abcd"),
    "array of negative sizes": array([-1], FLOAT, b"C\x04abcd"),
    "array over a number of bytes": array([1], FLOAT, number(10**10)),
    "array of an array": EMPTY + EMPTY + b"b",
    "scalar of objects": named("numpy.core.multiarray", "scalar") + DTYPE + text("O") + b"\x85RC\x08abcdefgh\x86R",
    "function built upon": named("torch._utils", "_rebuild_tensor_v2") + b"N}" + text("__defaults__") + b"Ns\x86b",
    "class built upon": named("collections", "OrderedDict") + b"}" + text("update") + b"Nsb",
    "numpy.ndarray called": named("numpy", "ndarray") + number(10**9) + b"\x85\x85R",
    "memo of 2**31": b"Nr\xff\xff\xff\x7f",
    "memo whose numbers are far apart": b"".join(b"Nr" + struct.pack("<I", k << 17) for k in range(2**10)),
    "bytearray of 2**35": b"\x96" + struct.pack("<Q", 2**35),
    "code": named("os", "system") + text("true") + b"\x85R",
    "ten lists in ten lists, ten times": b"]" + b"".join(
        b"q" + bytes([k]) + b"](" + 10 * (b"h" + bytes([k])) + b"e" for k in range(10)),
    "copies of a text": text("x" * 10**5) + b"q\0(" + 10**5 * (
        named("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R") + b"l",
    "tensors as a set": b"\x8f(" + b"K\1\x90", "keys as a set": b"(K\1\x91",
    "keys of one hash": b"}(" + ONE_HASH + b"u", "the same, one by one": b"}" + ONE_HASH.replace(b"N", b"Ns"),
    "the same, in the oldest form": b"(" + ONE_HASH + b"d",
    "the same, in order": named("collections", "OrderedDict") + b"(" + ONE_HASH.replace(b"N", b"N\x86") + b"l\x85R",
    "a key that is too deep to hash": b"})" + 10**5 * b"\x85" + b"Ns",
    "lists in lists": 10**5 * b"]" + (10**5 - 1) * b"a"}
FOR_TORCH = [what for what in HOSTILE if what.startswith(("keys of", "the same", "a key", "lists in", "memo whose"))]


@pytest.fixture
def short_of_memory():
    """2 GB more than there are, so that a bomb shows at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 10**9, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused_at_once(what, tmp_path, short_of_memory):
    content, begun = b"\x80\x03" + HOSTILE[what] + b".", time.process_time()
    if what != "lists in lists":  # which are no set, but plain
        with pytest.raises((pickle.UnpicklingError, EOFError, LookupError, ValueError, MemoryError)):
            unpickle.load(io.BytesIO(content))
    (tmp_path / "set.pkl").write_bytes(b"\x80\x03(" + HOSTILE[what] + b"l.")
    with pytest.raises(UserError, match=r"set\.pkl: not a readable synthetic set"):
        storage.load(tmp_path / "set.pkl")
    assert time.process_time() - begun < 10


def replaced(path, old, new, compression=zipfile.ZIP_STORED):
    """The .pt file with some bytes of its pickle replaced."""
    parts = {entry.filename: zipfile.ZipFile(path).read(entry) for entry in zipfile.ZipFile(path).infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            assert not name.endswith("data.pkl") or old in content
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("new_form", [True, False])
@pytest.mark.parametrize("what", FOR_TORCH)
def test_hostile_pickles_do_not_reach_torch(what, new_form, tmp_path, short_of_memory):
    """In both forms that torch.save has had."""
    path, begun = tmp_path / "set.pt", time.process_time()
    torch.save(7, path, _use_new_zipfile_serialization=new_form)
    honest, forged = b"\x80\x02K\x07.", b"\x80\x02" + HOSTILE[what] + b"."
    if new_form:
        replaced(path, honest, forged)
    else:
        assert path.read_bytes().count(honest) == 1
        path.write_bytes(path.read_bytes().replace(honest, forged))
    with pytest.raises(UserError, match=r"set\.pt: not a readable synthetic set"):
        storage.load(path)
    assert time.process_time() - begun < 15


@pytest.mark.parametrize("old, new", [
    (b"K\x10tq", b"K\x20tq"), (b"K\x10\x85q", b"K\x20\x85q"), (b"K\x10\x85q", b"K\x10K\x02\x86q"),
    (b"K\x01\x85q", b"K\x02\x85q"), (b"K\x01\x85q", b"J\xff\xff\xff\xff\x85q"), (b"QK\x00", b"QK\x04"),
    (b"QK\x00", b"QJ\xff\xff\xff\xff")], ids=["values", "size", "sizes", "stride", "back", "offset", "before"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_tensor_is_within_what_is_stored_of_it(old, new, mmap, tmp_path, monkeypatch):
    """Whatever the version of torch compares: it does not see the file."""
    path = tmp_path / "set.pt"
    torch.save({"images": torch.arange(16.0), "labels": torch.arange(16.0)}, path)
    assert torch.equal(unpickle.load_torch(path, mmap)["images"], torch.arange(16.0))
    replaced(path, old, new)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises((pickle.UnpicklingError, ValueError), match=r"bytes of a tensor|values as|argument 2"):
        unpickle.load_torch(path, mmap)


@pytest.mark.filterwarnings("ignore:Duplicate")
@pytest.mark.parametrize("name", ["archive/data.pkl", "Archive/DATA.pkl", "other/data.pkl"])
def test_two_parts_of_one_name(name, tmp_path):
    """Readers of zip differ in which of them they take."""
    torch.save(torch.zeros(1000), tmp_path / "archive.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "a") as archive:
        archive.writestr(name, b"N.")
    with pytest.raises(pickle.UnpicklingError, match="two of its parts have one name"):
        unpickle.load_torch(tmp_path / "archive.pt")


@pytest.mark.parametrize("case", ["expanded", "compressed", "named often", "dtype", "too many"])
def test_hostile_sets_are_refused_at_once(case, tmp_path, short_of_memory):
    path, begun = tmp_path / "set.pt", time.process_time()
    if case == "expanded":
        torch.save({"data": [[torch.zeros(1, dtype=torch.float16).expand(10**6, 3, 32, 32), torch.zeros(1).long()
                              .expand(10**6)]]}, path)
    elif case == "compressed":
        torch.save({"data": [[torch.zeros(10**5, 1, 16, 16), torch.zeros(10**5).long()]]}, path)
        replaced(path, b"data", b"data", zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 10**7
    elif case == "named often":
        torch.save({"data": [[torch.zeros(10, 1, 100, 100).byte(), torch.zeros(10).long()]] * 10**5,
                    "meta": {"packed": {"low": [0.0], "step": [1.0]}}}, path)
    elif case == "dtype":
        torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, path)
        replaced(path, b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8")
    else:
        values = [0.5] * 10**5
        torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": {str(k): values for k in range(10**3)}}, path)
    with pytest.raises(UserError, match=r"set\.pt: not a readable synthetic set"):
        storage.load(path)
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("protocol", range(6))
def test_plain_content_is_read_as_it_was(protocol):
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.integers(0, 100, (3, 4, 5)), code) for code in sorted(unpickle.PLAIN)]
    arrays += [arrays[0][:0], np.asfortranarray(arrays[1]), arrays[2].astype(">i4"), np.float32([])]
    content = {"arrays": arrays, "twice": [arrays[0], arrays[0]], "scalar": np.float32(0.5), "ordered":
               OrderedDict(a=1, b=b"\xff\x00"), "tuple": (1, 2.5, None, True, "ü" * 300, 2**70), "tensor": IMAGES[::2]}
    loaded = unpickle.load(io.BytesIO(pickle.dumps(content, protocol)))
    for before, after in zip(arrays, loaded["arrays"], strict=True):
        assert before.dtype.newbyteorder("=") == after.dtype.newbyteorder("=") and np.array_equal(before, after)
    assert loaded["twice"][0] is loaded["twice"][1] and torch.equal(loaded["tensor"], IMAGES[::2])
    assert all(content[name] == loaded[name] for name in ("scalar", "ordered", "tuple"))


@pytest.mark.parametrize("new_form", [True, False])
def test_sets_of_others_with_numpy_scalars(new_form, tmp_path):
    """In both forms that torch.save has had."""
    accuracies = {"ConvNet": [np.float64(0.5), np.float32(0.25), 1.0]}
    torch.save({"data": [[IMAGES, LABELS]], "accs_all_exps": accuracies}, tmp_path / "set.pt",
               _use_new_zipfile_serialization=new_form)
    record = storage.load(tmp_path / "set.pt")
    assert record["accs_all_exps"] == {"ConvNet": [0.5, 0.25, 1.0]} and torch.equal(record["data"][0][0], IMAGES)


def test_forged_names_of_classes_do_not_reach_numpy(tmp_path):
    """CIFAR's batches.meta with a dtype that holds an object field."""
    from utils import data
    formats.write_cifar10(tmp_path, 2)
    for what in ("dtype with an object field", "plain dtype made one of objects"):
        (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"\x80\x03" + HOSTILE[what] + b".")
        with pytest.raises(UserError, match="not of plain numbers"):
            data.load("CIFAR10", tmp_path)
