"""Data of one's own: images for BACON_folder.py, sources as module:source, and what they are called."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

import formats
from conftest import CODE, SHORT, TINY, call_script
from utils import checkpoint, data, storage
from utils import report_page as report
from utils.data import sources
from utils.system.errors import UserError


@pytest.mark.parametrize("size, channels", [(96, 3), (28, 3), (64, 1)])
def test_folder_of_the_users_images(size, channels, tmp_path):
    images, labels = formats.images_and_labels(2, 10, 40, channels)
    formats.write_class_folders(tmp_path / "mine" / "train", images, labels, ["cats", "dogs"], ".jpg")
    done = call_script("BACON_folder.py", *TINY, "--aug", "--im_size", size, "--data_path",
                       tmp_path / "mine", "--save_path", tmp_path)
    assert "16 training and 4 test images" in done.stdout
    record = storage.load(tmp_path / "res_BACON_mine_ConvNetW32_1ipc.pt")
    assert record["data"][0][0].shape == (2, channels, size, size) and record["meta"]["class_names"] == ["cats", "dogs"]


def test_names_of_files_and_classes_forge_no_lines(tmp_path):
    """Newlines and terminal escapes, in all that is printed and in a comparison's table."""
    forged, odd = "\nresult: 99.99 +- 0.00 %", "cat\x1b[2J\nresult: 99.99 +- 0.00 %\x1b[A"
    formats.write_class_folders(tmp_path / "mine" / "train", *formats.images_and_labels(2, 10, 16), [odd, "dog"])
    formats.write_class_folders(tmp_path / "mine" / "test", *formats.images_and_labels(1, 4, 16), ["dog"])
    (tmp_path / "mine" / "train" / "dog" / f"{forged}.txt").touch()
    target = tmp_path / f"to{forged}"
    flags = ["--data_path", tmp_path / "mine", "--save_path", target]
    done = [call_script("BACON_folder.py", *TINY, "--im_size", 16, *flags),
            call_script("evaluate.py", "--synthetic", target / "res_BACON_mine_ConvNetW32_1ipc.pt", "--num_eval", 1,
                        "--epoch_eval_train", 0, *flags),
            call_script("report.py", target, "--quick"),
            call_script("evaluate.py", "--synthetic", tmp_path / "mine" / "train", "--dataset", "digits", expect=2),
            call_script("BACON_folder.py", *TINY, "--resume", tmp_path / forged, *flags, expect=2)]
    assert json.loads((target / "evaluate.jsonl").read_text())["name"] == "mine"
    said = "".join(one.stdout + one.stderr for one in done)
    assert "\x1b" not in said and "99.99" in said and r"cat\x1b[2J\nresult: 99.99" in said
    assert all(line.startswith(("result: ", "best:   ")) != ("99.99" in line) for line in said.splitlines()
               if line.startswith("result:") or "99.99" in line)
    assert all(len(one.stderr.splitlines()) == 1 for one in done[3:])


def test_a_class_of_one_image_has_no_deviation(tmp_path):
    for k, place in enumerate(("train/a", "train/b", "train/b", "test/a", "test/b")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(1, 8, 8), tmp_path / place / f"{k}.png")
    flags = [*TINY, "--im_size", 8, "--data_path", tmp_path, "--save_path", tmp_path / "result"]
    error, = call_script("BACON_folder.py", *flags, expect=2).stderr.splitlines()
    assert "class 'a' of test_a_class" in error and "has one training image" in error
    call_script("BACON_folder.py", *flags, "--method", "IDM")


OWN = """
import torch
from utils.data.sources import Arrays, Source

def read(data_path, size):
    images = torch.arange(40, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(40, 1, 8, 8).contiguous()
    labels = torch.arange(40) % 2
    return Arrays(images, labels, images[:4], labels[:4], ["a", "b"])

shapes = Source((0.3,), (0.2,), 8, read)
print("the module runs")
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module `own_shapes` in the current directory, and nothing of it afterwards."""
    (tmp_path / "own_shapes.py").write_text(OWN)
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_shapes", None)


def test_own_source_in_every_script(own_module):
    own = ["--dataset", "own_shapes:shapes", "--save_path", own_module / "result", "--device", "cpu"]
    call_script(str(CODE / "BACON_mnist.py"), *TINY, *own, cwd=own_module)
    path = own_module / "result" / "res_BACON_shapes_ConvNetW32_1ipc.pt"
    assert storage.load(path)["meta"]["dataset"] == "own_shapes:shapes"
    done = call_script(str(CODE / "evaluate.py"), "--synthetic", path, *own, "--num_eval", 1, "--epoch_eval_train", 0,
                       cwd=own_module)
    assert "ConvNetW32" in done.stdout
    call_script(str(CODE / "pretrain.py"), *own[:2], "--save_path", own_module / "networks", "--networks", 1, "--steps",
                2, "--stages", 2, "--model", "ConvNetW32", "--trained_bs", 8, cwd=own_module)
    assert (own_module / "networks" / "shapes_ConvNetW32" / "network_000.pt").is_file()
    done = call_script(str(CODE / "compare.py"), *own[:2], "--save_path", own_module / "compared", "--methods",
                       "random", "--ipcs", 1, *SHORT, "--Iteration", 0, cwd=own_module)
    assert "| shapes |" in done.stdout
    report = call_script(str(CODE / "report.py"), own_module / "result", "--quick", "--save_path",
                         own_module / "report", cwd=own_module)
    assert report.returncode == 0 and "shapes" in (own_module / "report" / "report.md").read_text()


def test_no_file_can_name_a_module_that_is_imported(own_module, monkeypatch):
    """The options of a set, of a run and of a card say which data set it was; only the command line imports."""
    images, labels = torch.randn(2, 1, 8, 8), torch.arange(2)
    options = {"dataset": "own_shapes:shapes", "method": "own_shapes:shapes", "model": "ConvNetW32"}
    meta = {"dataset": "own_shapes:shapes", "method": "own_shapes:shapes", "options": options}
    storage.save(own_module / "set.pt", {"data": [[images, labels]], "accs_all_exps": {}, "meta": meta})
    done = call_script(str(CODE / "evaluate.py"), "--synthetic", own_module / "set.pt", cwd=own_module, expect=2)
    error, = done.stderr.splitlines()
    assert "unknown data set 'own_shapes:shapes'" in error and "name your own with --dataset" in error
    for call in (lambda: data.load("own_shapes:shapes", ""), lambda: sources.find("own_shapes:shapes"),
                 lambda: sources.check_form("own_shapes:shapes")):
        with contextlib.suppress(UserError):
            call()
    assert "own_shapes" not in sys.modules and "runs" not in done.stdout
    monkeypatch.chdir(own_module)
    assert sources.imported("own_shapes:shapes").size == 8, "the module cannot be imported, so the test shows nothing"


def test_no_run_can_name_a_module_that_is_imported(own_module):
    with contextlib.suppress(ValueError):
        report.checked_options({"dataset": "own_shapes:shapes", "method": "own_shapes:shapes"})
    assert "own_shapes" not in sys.modules


@pytest.mark.parametrize("name, named", [("own_shapes:nothing", "cannot import"), ("nowhere:shapes", "cannot import"),
                                         ("own_shapes:read", "is function, not a Source"),
                                         ("a b:c", "unknown data set")])
def test_name_that_is_no_source(name, named, own_module):
    done = call_script(str(CODE / "BACON_mnist.py"), "--dataset", name, cwd=own_module, expect=2)
    assert named in done.stderr and len(done.stderr.splitlines()) == 1


IMAGES, LABELS = torch.arange(128, dtype=torch.uint8).reshape(8, 1, 4, 4), torch.arange(8) % 2
RIGHT = (IMAGES, LABELS, IMAGES[:2], LABELS[:2], ["a", "b"])


@pytest.mark.parametrize("place, wrong, named", [
    (0, IMAGES.float(), r"torch\.float32 \(8, 1, 4, 4\), not uint8"), (0, IMAGES.numpy(), "images are of type ndarray"),
    (0, IMAGES.permute(0, 2, 3, 1), r"\(4, 4, 1\), not"), (0, IMAGES[:, 0], r"\(8, 4, 4\), not uint8"),
    (0, IMAGES.repeat(1, 2, 1, 1), r"\(2, 4, 4\), not"), (2, IMAGES[:2, :, :2, :2], r"\(1, 2, 2\), not"),
    (1, LABELS[:, None], r"int64 \(8, 1\), not int64 \(N,\)"), (1, LABELS.float(), "float32"),
    (1, LABELS[1:], "7 labels"),
    (1, LABELS + 1, "labels 1, 2 in 2 classes"), (1, LABELS * 0, "no training images of b"),
    (4, ["a", "a"], "not all different"), (4, "ab", "class names ab are"), (4, None, "class names")])
def test_what_an_own_source_returns_is_checked(place, wrong, named, monkeypatch):
    returned = [*RIGHT]
    returned[place] = wrong
    monkeypatch.setitem(sources.SOURCES, "own:shapes", sources.Source((0.3,), (0.2,), 4, lambda *_: tuple(returned)))
    with pytest.raises(UserError, match=named) as refused:
        data.load("own:shapes", "")
    assert "internet" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("changes, named", [({"mean": (0.3, 0.3)}, "mean is"), ({"std": (0.0,)}, "std is"),
                                            ({"mean": None}, "do not go together"), ({"mean": (0.3,) * 3}, "do not go"),
                                            ({"size": 0}, "size 0"), ({"read": None}, "read None"),
                                            ({"mean": (76.5,)}, "0..1")])
def test_own_source_itself_is_checked(changes, named):
    source = sources.Source(**{"mean": (0.3,), "std": (0.2,), "size": 4, "read": lambda *_: RIGHT} | changes)
    with pytest.raises(UserError, match=named):
        source.validated("own:shapes")


def test_what_reads_a_source_may_return_no_arrays(monkeypatch):
    for wrong in (None, IMAGES, RIGHT[:4], 3):
        monkeypatch.setitem(sources.SOURCES, "own:s", sources.Source(None, None, 4, lambda *_, wrong=wrong: wrong))
        with pytest.raises(UserError, match=r"read returned \w+, not Arrays.*mend what its read returns"):
            data.load("own:s", "")


def test_images_of_another_size_than_the_source_says(monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "own:s", sources.Source((0.5,) * 3, (0.5,) * 3, 9, lambda *_: RIGHT))
    with pytest.raises(UserError, match=r"not \(3, 9, 9\) as its Source says; mend that or its read"):
        data.load("own:s", "")


@pytest.mark.parametrize("dataset, path, name", [
    ("folder", "a/my flowers", "my_flowers"), ("folder", "pictures.npz", "pictures"), ("folder", "--x/..;", "folder"),
    ("folder", "MNIST", "MNIST_folder"), ("folder", "日本", "日本"), ("own:shapes", "data", "shapes"),
    ("MNIST", "data", None),
    ("folder", "x" * 300, "x" * 60)])
def test_own_data_are_called_as_their_folder_or_source(dataset, path, name):
    assert sources.own_name(dataset, Path(path)) == name


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "a:b", "mnist", "x" * 61, "a\n", "x.", "\udcff"])
def test_name_is_a_plain_file_name(name):
    with pytest.raises(UserError):
        sources.check_own_name(name)


def test_name_of_published_data_is_theirs(make_options):
    with pytest.raises(UserError, match="--name mine: digits has its name"):
        make_options("--name", "mine")


def test_run_from_before_data_had_names_goes_on(tmp_path):
    formats.write_class_folders(tmp_path / "mine" / "train", *formats.images_and_labels(2, 10, 8), ["a", "b"])
    flags = [*TINY, "--im_size", 8, "--data_path", tmp_path / "mine", "--save_path", tmp_path / "result"]
    call_script("BACON_folder.py", *flags, "--name", "folder")
    run = tmp_path / "result" / "BACON_folder_ConvNetW32_1ipc"
    assert run.is_dir()
    done = call_script("BACON_folder.py", *flags, "--resume", "auto")
    assert "1 of 1 experiments are finished" in done.stdout
    assert not (tmp_path / "result" / "BACON_mine_ConvNetW32_1ipc").exists()
    old = {"method": "BACON", "dataset": "folder", "ipc": 1}
    assert checkpoint.differences(old, old | {"name": "folder"}) == ""


def test_classes_with_few_images_are_named_with_a_way_on(tmp_path):
    for k, count in enumerate((6, 4, 2)):
        images, _ = formats.images_and_labels(1, count, 8)
        for part in ("train", "test"):
            formats.write_class_folders(tmp_path / "tail" / part, images, [0] * count, [f"class_{k}"])
    flags = [*SHORT, "--ipc", 5, "--im_size", 8, "--data_path", tmp_path / "tail", "--save_path", tmp_path / "result"]
    error, = call_script("BACON_folder.py", *flags, expect=2).stderr.splitlines()
    assert "'class_1' 4, 'class_2' 2; choose --ipc 2 or less" in error and "--init noise" in error
    call_script("BACON_folder.py", *flags, "--init", "noise")
    images, labels = storage.load(tmp_path / "result" / "res_BACON_tail_ConvNetW32_5ipc.pt")["data"][0]
    assert labels.bincount().tolist() == [5, 5, 5] and images.isfinite().all()


@pytest.mark.parametrize("links", [{"a/up": ".."}, {"a/again": "../../train"}, {"a/b": "../b", "b/a": "../a"},
                                   {"a/self": "self"}], ids=str)
def test_links_that_lead_in_a_circle_are_named(links, tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        save_image(torch.rand(3, 8, 8), tmp_path / "train" / name / "0.png")
    for name, target in links.items():
        (tmp_path / "train" / name).symlink_to(target)
    with pytest.raises(UserError, match=r"a link back to a folder above it; remove it|Too many levels") as error:
        data.load("folder", tmp_path, im_size=8)
    assert next(iter(links)) in str(error.value) and len(str(error.value)) < 300
