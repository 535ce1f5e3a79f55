"""evaluate.py on every kind of saved set, and what its measures are."""

import errno
import json
import math
import pickle
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from torchvision.utils import save_image

import formats
from conftest import TINY, call_script, run_script
from utils import evaluation, fair, storage
from utils.commands import evaluate
from utils.data import load
from utils.distill import Distillation, initial_images
from utils.draws import Draws
from utils.system import files
from utils.system.errors import UserError

QUICK = ["--num_eval", 2, "--epoch_eval_train", 1]


@pytest.fixture(scope="module")
def digits_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    call_script("BACON_digits.py", *TINY, "--ipc", 2, "--num_exp", 2, "--lr_net", 0.02, "--save_path", folder)
    return folder / "res_BACON_digits_ConvNetW32_2ipc.pt"


def test_our_set_by_the_protocol_it_was_made_with(digits_set, tmp_path):
    done = run_script("evaluate.py", "--synthetic", digits_set, "--save_path", tmp_path)
    line, = files.read_json_lines(tmp_path / "evaluate.jsonl")
    assert len(line["accuracies"]) == 10, "two sets, five networks each"
    assert (line["model"], line["lr_net"], line["epoch_eval_train"]) == ("ConvNetW32", 0.02, 2)
    assert f"{100 * line['mean']:.2f} +- {100 * line['std']:.2f} %" in done.stdout
    call_script("evaluate.py", "--synthetic", digits_set, "--save_path", tmp_path, *QUICK, "--num_eval", 1,
                "--eval_mode", "C")
    lines = files.read_json_lines(tmp_path / "evaluate.jsonl")[1:]
    assert [line["model"] for line in lines] == ["ConvNetW32", "ConvNet"]
    assert {line["epoch_eval_train"] for line in lines} == {1}


def test_folders_go_by_names_or_else_by_numbers(tmp_path, capsys):
    """Also where the names are numbers: 1, 2, 10 are classes 0, 1, 2 in their order."""
    images, labels = formats.images_and_labels(3, 4, 16, 1)
    images, labels = images[np.argsort(labels)], np.sort(labels)
    names = ["1", "2", "10"]
    for split in ("train", "test"):
        formats.write_class_folders(tmp_path / "data" / split, images, labels, names, ".png")
    data = load("folder", tmp_path / "data", im_size=16)
    assert data.class_names == names
    for folder, folders in (("named", names), ("numbered", ["0", "1", "2"]),
                            ("padded", ["00000", "00001", "00002"]), ("prefixed", ["new000", "new001", "new002"])):
        formats.write_class_folders(tmp_path / folder, images, labels, folders, ".png")
        read, found = evaluate.image_folder(tmp_path / folder, data)
        for k in range(3):
            assert torch.equal(read[found == k], data.normalise(data.images[data.labels == k]))
        said = capsys.readouterr().out
        assert f"{folders[0]} = 1, {folders[1]} = 2, {folders[2]} = 10" in said


def test_set_made_under_another_order_of_classes():
    """As from named folders that were sorted: its labels are those of its own names."""
    data = load("digits", "")
    names = [str(k) for k in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    options = Namespace(dataset="digits", data_path="", device="cpu", im_size=None, zca=False, seed=0, synthetic="s.pt",
                        validation=False)
    loaded = evaluate.load_test_data(options, {"class_names": names, "dataset": "digits"})
    assert loaded.class_names == names
    assert [names[k] for k in loaded.test_labels.tolist()] == [str(k) for k in data.test_labels.tolist()]
    assert [names[k] for k in loaded.labels.tolist()] == [str(k) for k in data.labels.tolist()]
    spelled = evaluate.load_test_data(options, {"class_names": [*"210", *"3456789"], "dataset": "folder"})
    assert spelled.class_names[0] == "2"
    for wrong, source in ((["zero", *"123456789"], "folder"), (["a", *"123456789"], "digits"), ([*"012"], "digits")):
        with pytest.raises(UserError, match="--dataset digits"):
            evaluate.load_test_data(options, {"class_names": wrong, "dataset": source})


def test_foreign_pixels_are_not_taken_for_normalised_images(tmp_path):
    torch.save({"data": [[torch.ones(2, 1, 16, 16, dtype=torch.uint8), torch.arange(2)]]}, tmp_path / "bytes.pt")
    torch.save({"data": [[torch.linspace(0, 1, 512).reshape(2, 1, 16, 16), torch.arange(2)]]}, tmp_path / "floats.pt")
    for name, named in (("bytes.pt", "its images are torch.uint8, not normalised"),
                        ("floats.pt", "float32 from 0 to 1")):
        line, = call_script("evaluate.py", "--synthetic", tmp_path / name, "--dataset", "digits",
                            expect=2).stderr.splitlines()
        assert name in line and named in line and "--pixels" in line


def test_our_sets_bring_their_normalisation(digits_set):
    line, = call_script("evaluate.py", "--synthetic", digits_set, "--zca", expect=2).stderr.splitlines()
    assert line.startswith("evaluate.py: error: --zca: ") and str(digits_set) in line


def test_fair_reading_where_real_images_are_few(tmp_path):
    """A set with more images of a class than there are real ones: random images are all of these, which is said."""
    images, labels = formats.images_and_labels(2, 20, 16, 1)
    for split, part in (("train", slice(None, None, 2)), ("test", slice(1, None, 2))):
        formats.write_class_folders(tmp_path / "data" / split, images[part], labels[part], ["a", "b"], ".png")
    formats.write_class_folders(tmp_path / "set", images, labels, ["a", "b"], ".png")
    flags = ["--dataset", "folder", "--data_path", tmp_path / "data", "--im_size", 16, "--model", "ConvNetW32"]
    flags += ["--synthetic", tmp_path / "set", "--save_path", tmp_path, "--num_eval", 1, "--epoch_eval_train", 0]
    done = call_script("evaluate.py", *flags, "--fair", "--epoch_whole_train", 0)
    a, b = (int((labels[::2] == k).sum()) for k in range(2))
    said, = [line for line in done.stdout.splitlines() if line.startswith("--fair: ")]
    assert f"random images are all that there are of a ({a} of 20), b ({b} of 20)" in said
    assert f"random real images, {min(a, b)} to {max(a, b)} per class" in done.stdout or a == b


def test_fair_reading(digits_set, digits, make_options, tmp_path):
    done = call_script("evaluate.py", "--synthetic", digits_set, "--save_path", tmp_path, *QUICK, "--fair",
                      "--epoch_whole_train", 0)
    lines = files.read_json_lines(tmp_path / "evaluate.jsonl")
    mean = {(line["trained_on"], line["dsa_strategy"] != "none"): line["mean"] for line in lines}
    random, whole = "random real images, 2 per class", "whole training set, 1 passes"
    assert set(mean) == {("the set", True), ("the set", False), (random, True), (random, False),
                         ("random 2x2 formations, 2 per class", True), (whole, True), (whole, False)}
    said = [line for line in done.stdout.splitlines() if "networks," in line]
    assert ["no DSA" in line for line in said] == [line["dsa_strategy"] == "none" for line in lines]
    assert all(len(line["accuracies"]) == (2 if line["trained_on"] == whole else 4) for line in lines)
    data, options = digits(), Namespace(**vars(make_options("--lr_net", 0.02)) | lines[0] | {"num_eval": 1})
    for name, aug in ((random, False), ("random 2x2 formations, 2 per class", True)):
        images = initial_images(data, Draws(0), 2, aug=aug).flatten(0, 1)
        ready = storage.expand(images, torch.arange(10).repeat_interleave(2), 2 if aug else 1)
        first, = evaluation.evaluate(*ready, data, "ConvNetW32", options, Draws(0), ("evaluate.py", name))
        assert first == next(line for line in lines if line["trained_on"] == name)["accuracies"][0]
    gain, plain = (mean["the set", dsa] - mean[random, dsa] for dsa in (True, False))
    robust = 100 * (math.exp((gain + plain) / 2) - math.exp(-1)) / (math.e - math.exp(-1))
    printed = [float(re.search(r" (-?\d+\.\d+) \((lower|higher) is better", line)[1])
               for line in done.stdout.splitlines() if "is better" in line]
    recovery = mean[whole, True] - mean["the set", True]
    labels = 100 * (math.exp((gain - recovery) / 2) - math.exp(-1)) / (math.e - math.exp(-1))
    assert printed == pytest.approx([100 * recovery, 100 * gain, 100 * plain, labels, robust], abs=0.006)


@pytest.fixture
def read_fairly(make_options, tmp_path):
    """A function that gives what `fair.read` would train on, by name and --dsa_strategy."""
    options = make_options("--num_eval", 2, "--save_path", tmp_path, "--epoch_eval_train", 0)
    options.epoch_whole_train = 0

    def read(saved, formation=1, label=None):
        trained_on = {}

        def add(name, model, count, make, **changes):
            trained_on[name, changes.get("dsa_strategy")] = [make(k) for k in range(count)]
            return 0.5

        fair.read(add, options, load("digits", ""), "ConvNetW32", saved, formation, 0.5, label)
        return trained_on

    return read


def random_set(sizes):
    return [torch.randn(sum(sizes), 1, 16, 16), torch.arange(10).repeat_interleave(torch.tensor(sizes))]


def test_random_images_are_as_many_of_each_class_as_the_set_stores(read_fairly):
    """Of each experiment, and all of a class that has fewer; a 2x2 formation counts as one image."""
    data = load("digits", "")
    most = data.class_sizes[1]
    counts = [[3, most + 9, 0, 2, 2, 2, 2, 2, 2, 2], [1] * 10]
    trained_on = read_fairly({"data": [random_set(sizes) for sizes in counts], "meta": {}}, 2)
    expected = [[3, most, *counts[0][2:]]] * 2 + [counts[1]] * 2
    for kind, tiles in (("real images", 1), ("2x2 formations", 4)):
        random = trained_on[f"random {kind}, 1 to {most} per class", None]
        assert [labels.bincount(minlength=10).tolist() for _, labels in random] == [
            [tiles * count for count in sizes] for sizes in expected]
        assert all(len(images) == len(labels) for images, labels in random)
    images, labels = trained_on[f"random real images, 1 to {most} per class", "none"][0]
    for k in range(10):
        real = {image.numpy().tobytes() for image in data.normalise(data.images[data.labels == k])}
        drawn = {image.numpy().tobytes() for image in images[labels == k]}
        assert drawn <= real and (len(drawn) == (labels == k).sum() or len(real) < data.class_sizes[k])


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    call_script("pretrain.py", "--dataset", "digits", "--model", "ConvNetW32", "--networks", 2, "--steps", 20,
                "--stages", 10, 20, "--trained_bs", 64, "--save_path", folder)
    return folder / "digits_ConvNetW32"


def test_soft_labels_are_compared_with_soft_labels(read_fairly, networks, make_options, capsys):
    """Those of random images are as a run would give them: parts of the mean prediction of networks of --pool."""
    data, sizes = load("digits", ""), [2] * 10
    saved = {"data": [random_set(sizes)], "meta": {"options": {"soft_labels": 0.25}},
             "soft_labels": [torch.full((20, 10), 0.1)]}
    options = make_options("--pool", networks, "--soft_labels", 0.25, "--soft_stages", 20, "--Iteration", 2)
    label = fair.pool_labels(options, data, fair.parts_of("set.pt", saved))
    trained_on = read_fairly(saved, label=label)
    assert "0.25 parts mean prediction of 2 networks (ConvNetW32, after 20 steps)" in capsys.readouterr().out
    (images, labels), *_ = trained_on["random real images, 2 per class with soft labels", "none"]
    classes = torch.arange(10).repeat_interleave(2)
    torch.testing.assert_close(labels, Distillation(data, options).soft_labels(images, classes))
    torch.testing.assert_close(labels.sum(1), torch.ones(20))
    assert [labels.dim() for _, labels in trained_on["the set with hard labels", None]] == [1]
    assert "random real images, 2 per class", None not in trained_on


def test_soft_labels_without_a_pool(digits_set, networks, tmp_path):
    """What needs soft labels of random images is left out, and said; the rest is with hard labels on both sides."""
    record = storage.load(digits_set)
    storage.save(tmp_path / "set.pt", record | {"data": record["data"][:1], "soft_labels": [torch.full((80, 10), 0.1)]})
    flags = ["--synthetic", tmp_path / "set.pt", "--save_path", tmp_path, "--num_eval", 1, "--epoch_eval_train", 0,
             "--fair", "--epoch_whole_train", 0]
    lines = call_script("evaluate.py", *flags).stdout.splitlines()
    measures = [line for line in lines if line.startswith("ConvNetW32: ")]
    assert len(measures) == 2 and "hard-label recovery (HLR)" in measures[0] and "lower is better" in measures[0]
    assert "left out" in measures[1] and "--pool" in measures[1] and "left out" in lines[0]
    assert any("random real images, 2 per class with hard labels" in line for line in lines)
    accuracy = {line["trained_on"]: line["mean"] for line in files.read_json_lines(tmp_path / "evaluate.jsonl")
                if line["dsa_strategy"] != "none"}
    recovery = accuracy["whole training set, 1 passes"] - accuracy["the set with hard labels"]
    assert f"(HLR) {100 * recovery:.2f} " in measures[0]
    with_pool = call_script("evaluate.py", *flags, "--pool", networks).stdout
    assert "label-robust score (LRS)" in with_pool and "left out" not in with_pool


def test_a_pool_that_nothing_needs_is_one_line(digits_set, networks, tmp_path):
    common = ["--synthetic", digits_set, "--save_path", tmp_path]
    for flags, named in ((["--pool", networks], "add --fair"), (["--fair", "--pool", networks], "has no soft labels"),
                         (["--fair", "--soft_stages", 3], "--pool")):
        line, = call_script("evaluate.py", *common, *flags, expect=2).stderr.splitlines()
        assert named in line
    assert not (tmp_path / "evaluate.jsonl").exists()


def test_folders_go_by_the_names_of_classes_before_their_numbers(tmp_path):
    images, labels = formats.images_and_labels(12, 2, 16, 1)
    names = [str(k) for k in range(1, 13)]
    for part in ("train", "test"):
        formats.write_class_folders(tmp_path / "mine" / part, images, labels, names)
    data = load("folder", tmp_path / "mine", im_size=16)
    assert data.class_names == names
    read = evaluate.image_folder(tmp_path / "mine" / "test", data)
    assert torch.equal(read[1], data.test_labels) and torch.equal(read[0], data.normalise(data.test_images))


@pytest.fixture
def published(digits_set, tmp_path):
    """The same set in the forms in which the published projects save theirs."""
    images, labels = storage.load(digits_set)["data"][0]
    with (tmp_path / "acc_0.5.pkl").open("wb") as file:
        pickle.dump((images.requires_grad_(), labels), file)
    images = images.detach()
    accuracies = {"ConvNet": list(np.array([0.5, 0.25]))}  # NumPy scalars, which torch.load refuses by default
    torch.save({"data": [[images, labels]], "accs_all_exps": accuracies}, tmp_path / "dm.pt")
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "pngs" / str(label.item())).mkdir(parents=True, exist_ok=True)
        save_image(image * 0.3186 + 0.3054, tmp_path / "pngs" / str(label.item()) / f"{k}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["acc_0.5.pkl", "dm.pt", "pngs"])
def test_sets_of_others(name, published, digits_set):
    """The images are the same, so with the same protocol the accuracies are (but for what PNG rounds)."""
    flags = ["--dataset", "digits", "--model", "ConvNetW32", "--lr_net", 0.02, "--aug", *QUICK, "--num_eval", 1]
    accuracies = []
    for synthetic, place in ((published / name, "other"), (digits_set, "ours")):
        call_script("evaluate.py", "--synthetic", synthetic, "--save_path", published / place, *flags)
        line, = files.read_json_lines(published / place / "evaluate.jsonl")
        accuracies.append(line["accuracies"][0])
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03 if name == "pngs" else 0)
    if name == "dm.pt":
        assert storage.load(published / name)["accs_all_exps"] == {"ConvNet": [0.5, 0.25]}


@pytest.mark.parametrize("suffix", [".pkl", ".pt"])
def test_malicious_set_runs_nothing(suffix, tmp_path):
    path = tmp_path / f"set{suffix}"
    content = (formats.Payload(tmp_path / "owned"), torch.zeros(1))
    path.write_bytes(pickle.dumps(content))
    if suffix == ".pt":
        torch.save({"data": [content]}, path)
    done = call_script("evaluate.py", "--synthetic", path, "--save_path", tmp_path, expect=2)
    assert len(done.stderr.splitlines()) == 1 and str(path) in done.stderr and "could run code" in done.stderr
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False) if suffix == ".pt" else pickle.loads(path.read_bytes())
    assert (tmp_path / "owned").exists(), "the payload does not work, so the test shows nothing"


def test_a_tensor_inside_a_pickle_is_no_way_in(tmp_path):
    """torch pickles a storage as bytes that torch.load reads; a payload in there must not run either."""

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (pickle.dumps(formats.Payload(tmp_path / "owned")),)

    path = tmp_path / "set.pkl"
    path.write_bytes(pickle.dumps((Nested(), torch.zeros(1))))
    with pytest.raises(UserError):
        storage.load(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.9])
def test_a_set_that_is_cut_off_says_so(part, digits_set, tmp_path):
    content = digits_set.read_bytes()
    (tmp_path / "set.pt").write_bytes(content[:int(part * len(content))])
    with pytest.raises(UserError, match=r"set\.pt: not a readable synthetic set \(it is damaged or incomplete\); name"):
        storage.load(tmp_path / "set.pt")


def test_bad_input_is_one_line(digits_set, published):
    wrong_class = published / "wrong"
    formats.write_class_folders(wrong_class, *formats.images_and_labels(1, 1, 16, 1), ["eleven"])
    broken, odd = published / "broken" / "0", published / "odd.pt"
    broken.mkdir(parents=True)
    (broken / "gone.png").symlink_to("nowhere.png")
    torch.save({"data": [[torch.randn(10, 1, 7, 7), torch.arange(10)]]}, odd)
    digits = ["--dataset", "digits"]
    for flags, named in [([], "--synthetic"), (["--synthetic", broken.parent, *digits], "gone.png"),
                         (["--synthetic", odd, *digits, "--im_size", 7, "--aug"], "--aug"),
                         (["--synthetic", "none.pt"], "none.pt"),
                         (["--synthetic", digits_set, "--model", "Net"], "Net"),
                         (["--synthetic", published / "dm.pt", "--dataset", "SVHN", "--data_path", "none"], "none"),
                         (["--synthetic", wrong_class, "--dataset", "digits"], "eleven"),
                         (["--synthetic", digits_set, "--eval_mode", "M"], "VGG11")]:
        done = call_script("evaluate.py", "--save_path", published, *flags, expect=2)
        assert len(done.stderr.splitlines()) == 1 and named in done.stderr and not done.stdout, done.stderr


def test_records_do_not_go_through_a_link(digits_set, tmp_path):
    mine, result = tmp_path / "mine", tmp_path / "result"
    mine.write_text("mine")
    result.mkdir()
    (result / "evaluate.jsonl").symlink_to(mine)
    done = call_script("evaluate.py", "--synthetic", digits_set, "--save_path", result, *QUICK, expect=2)
    line, = done.stderr.splitlines()
    assert "evaluate.jsonl: cannot be written" in line and mine.read_text() == "mine"
    assert "networks" not in done.stdout  # found before any was trained


def test_a_full_disk_is_one_line(digits_set, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "open_to_append", full)
    done = call_script("evaluate.py", "--synthetic", digits_set, "--save_path", tmp_path, *QUICK, expect=2)
    error, = done.stderr.splitlines()
    assert "evaluate.jsonl: cannot be written" in error and "start again" in error and "networks" in done.stdout


def test_forged_protocol_is_one_line(digits_set, tmp_path):
    record = storage.load(digits_set)
    for name, value in (("lr_net", "fast"), ("model", ["ConvNet"]), ("epoch_eval_train", 0.5), ("dataset", {})):
        forged = record | {"meta": record["meta"] | {"options": record["meta"]["options"] | {name: value}}}
        storage.save(tmp_path / "set.pt", forged)
        done = call_script("evaluate.py", "--synthetic", tmp_path / "set.pt", "--save_path", tmp_path, expect=2)
        assert len(done.stderr.splitlines()) == 1 and f"--{name}" in done.stderr


def test_set_of_another_data_set_is_one_line(digits_set, tmp_path):
    formats.write_cifar10(tmp_path, 2)
    done = call_script("evaluate.py", "--synthetic", digits_set, "--dataset", "CIFAR10", "--data_path", tmp_path,
                      "--save_path", tmp_path, expect=2)
    assert len(done.stderr.splitlines()) == 1 and "--dataset CIFAR10" in done.stderr and "digits" in done.stderr


def test_set_that_does_not_fit_its_classes_is_one_line(digits_set, tmp_path):
    """Soft or hard labels of more classes than the data set has, labels that are none, a mean of other channels."""
    record = storage.load(digits_set)
    names, sets = record["meta"]["class_names"], record["data"]

    def soft(classes, dtype=torch.float32):
        return {"soft_labels": [torch.full((80, classes), 1 / classes).to(dtype)] * 2}

    def hard(by):
        return {"data": [[images, labels + by] for images, labels in sets]}

    def meta(**changes):
        return {"meta": record["meta"] | changes}

    forged = [(soft(11), "(80, 11)"), (soft(11) | meta(class_names=[*names, "ten"]), "its classes"),
              (soft(10, torch.int64), "int64"), (hard(1), "1 to 10"), (hard(-1), "-1 to 8"),
              ({"meta": {"class_names": names[1:]}}, "of its classes"), (meta(mean=[0.5] * 3), "mean"),
              (meta(mean=[]), "mean"), (meta(mean=[float("nan")]), "not finite and positive"),
              (meta(std=[0.0]), "not finite and positive"), (meta(std=[-0.3]), "not finite and positive"),
              ({"soft_labels": [torch.ones(80, 10)] * 2}, "no probabilities"),
              ({"soft_labels": [torch.full((80, 10), 0.1) - 0.2 * torch.eye(10)[:1]] * 2}, "no probabilities")]
    for changes, named in forged:
        storage.save(tmp_path / "set.pt", record | changes)
        done = call_script("evaluate.py", "--synthetic", tmp_path / "set.pt", "--dataset", "digits", "--save_path",
                           tmp_path, expect=2)
        line, = done.stderr.splitlines()
        assert "set.pt" in line and named in line and not done.stdout


def test_whitened_set_brings_its_whitening(tmp_path):
    formats.write_svhn(tmp_path, 6)
    call_script("BACON_SVHN.py", *TINY, "--im_size", 16, "--zca", "--data_path", tmp_path, "--save_path", tmp_path)
    path = tmp_path / "res_BACON_SVHN_ConvNetW32_1ipc.pt"
    record = torch.load(path, weights_only=True)
    assert record["meta"]["zca"]["inverse"].shape == (768, 768)
    images = storage.load(path)["data"][0][0]
    shown = storage.pixels(images, record["meta"])
    assert images.abs().max() > 1.5 and 0.1 < shown.mean() < 0.9
    call_script("evaluate.py", "--synthetic", path, "--data_path", tmp_path, "--save_path", tmp_path, *QUICK)
    assert json.loads((tmp_path / "evaluate.jsonl").read_text())["im_size"] == 16
    matrix, mean = (record["meta"]["zca"][name] for name in ("matrix", "mean"))
    for forged in ({"matrix": matrix[:700]}, {"matrix": matrix / 0}, {"inverse": matrix[:, 1:]}, {"mean": mean[:, 1:]}):
        storage.save(path, record | {"meta": record["meta"] | {"zca": record["meta"]["zca"] | forged}})
        with pytest.raises(UserError, match="not a readable synthetic set"):
            storage.load(path)
