"""The scripts as users run them: what they leave, that a seed decides it, and what they say of bad input."""

import functools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

import formats
import utils
from conftest import CODE, ROOT, SHARED, SHORT, TINY, call_script, needs_shared_data, run_script
from utils import options, storage
from utils.distill import Distillation
from utils.system import files
from utils.system.errors import UserError

RUN = "BACON_digits_ConvNetW32_2ipc"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The folder that one small run with two experiments leaves, and what it printed."""
    folder = tmp_path_factory.mktemp("result")
    done = run_script("BACON_digits.py", *TINY, "--num_exp", 2, "--ipc", 2, "--save_path", folder, "--tensorboard")
    return folder, done.stdout


def test_files_of_a_run(result):
    folder, _ = result
    pictures = {f"vis_{RUN}_exp{e}_iter{i}.png" for e in (0, 1) for i in (1, 2)}
    assert {path.name for path in folder.iterdir()} == {RUN, f"res_{RUN}.pt", f"res_{RUN}_best.pt"} | pictures
    left = {path.name.split(".")[0] for path in (folder / RUN).iterdir()}
    assert left == {"metrics", "losses", "options", "events", "checkpoint", "lock"}


def test_saved_set_is_as_promised(result):
    record = torch.load(result[0] / f"res_{RUN}.pt", weights_only=True)
    assert len(record["data"]) == 2
    for images, labels in record["data"]:
        assert images.shape == (20, 1, 16, 16) and images.dtype == torch.float32
        assert labels.tolist() == sorted([*range(10)] * 2) and labels.dtype == torch.int64
    assert not torch.equal(record["data"][0][0], record["data"][1][0])
    accuracies = record["accs_all_exps"]["ConvNetW32"]
    assert len(accuracies) == 4 and all(isinstance(a, float) and 0 <= a <= 1 for a in accuracies)
    meta = record["meta"]
    assert {"method", "dataset", "ipc", "model", "formation", "mean", "std", "class_names", "seed", "iteration",
            "options", "version"} <= set(meta)
    assert (meta["formation"], meta["iteration"], meta["dataset"]) == (2, [2, 2], "digits")


def test_records_of_a_run(result):
    folder, printed = result
    lines = files.read_json_lines(folder / RUN / "metrics.jsonl")
    assert [(line["experiment"], line["iteration"]) for line in lines] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    record, best = (storage.load(folder / f"res_{RUN}{kind}.pt") for kind in ("", "_best"))
    for experiment in (0, 1):
        own = [line for line in lines if line["experiment"] == experiment]
        slots = slice(2 * experiment, 2 * experiment + 2)
        assert record["accs_all_exps"]["ConvNetW32"][slots] == own[-1]["accuracies"]
        top = max(own, key=lambda line: line["mean"])
        assert best["accs_all_exps"]["ConvNetW32"][slots] == top["accuracies"]
        assert best["meta"]["iteration"][experiment] == own[-1]["best_iteration"]
    saved = json.loads((folder / RUN / "options.json").read_text())
    assert saved["options"]["ipc"] == 2 and saved["versions"]["torch"] == torch.__version__
    mean = 100 * sum(record["accs_all_exps"]["ConvNetW32"]) / 4
    assert f"result: {mean:.2f} +-" in printed and "best:" in printed and str(folder) in printed


def test_load_synthetic_expands_the_formation(result):
    path = result[0] / f"res_{RUN}.pt"
    images, labels = utils.load_synthetic(path, experiment=1)
    assert images.shape == (80, 1, 16, 16) and labels.tolist() == sorted([*range(10)] * 2) * 4
    stored = storage.load(path)["data"][1][0]
    tile = torch.nn.functional.interpolate(stored[:1, :, :8, :8], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(images[:1], tile)


def test_one_seed_decides_everything(tmp_path):
    sets = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        call_script("BACON_digits.py", *TINY, "--ipc", 1, "--seed", seed, "--save_path", tmp_path / name)
        sets.append(storage.load(tmp_path / name / "res_BACON_digits_ConvNetW32_1ipc.pt"))
    assert torch.equal(sets[0]["data"][0][0], sets[1]["data"][0][0])
    assert sets[0]["accs_all_exps"] == sets[1]["accs_all_exps"]
    assert not torch.equal(sets[0]["data"][0][0], sets[2]["data"][0][0])


def test_ten_lines_of_the_readme(result):
    """The README's loading example, run as it stands but for the path, and the test that follows it."""
    block, test = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[:2]
    code = re.sub(r'"[^"]*\.pt"', repr(str(result[0] / f"res_{RUN}.pt")), block)
    assert code != block and len(block.strip().splitlines()) <= 10
    done = subprocess.run([sys.executable, "-c", code + test], cwd=CODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(re.search(r"0\.\d+", done.stdout).group()) < 1


PUBLISHED = [line.split()[2:] for line in (ROOT / "Command.txt").read_text().splitlines()
             if line.startswith("python3 -u BACON_") and "--method" not in line]
FIXTURES = {
    "MNIST": lambda folder: formats.write_idx(folder, "MNIST", 50),
    "FashionMNIST": lambda folder: formats.write_idx(folder, "FashionMNIST", 50),
    "SVHN": lambda folder: formats.write_svhn(folder, 50),
    "CIFAR10": lambda folder: formats.write_cifar10(folder, 50),
    "CIFAR100": lambda folder: formats.write_cifar100(folder, 10),
    "TinyImageNet": lambda folder: formats.write_tiny(folder, 2),
}


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    """A function that gives the folder of a small data set in the published format."""
    @functools.cache
    def folder(dataset):
        path = tmp_path_factory.mktemp(dataset)
        FIXTURES[dataset](path)
        return path

    return folder


@pytest.mark.parametrize("command", PUBLISHED, ids=lambda command: f"{command[0]} {command[6]}")
def test_published_command(command, fixtures, tmp_path):
    """As it stands, with shortening flags appended; with fewer images per class where there are many classes."""
    dataset, ipc = command[2], int(command[6])
    ipc = min(ipc, {"CIFAR100": 2, "TinyImageNet": 1}.get(dataset, 50))
    done = call_script(*command, *TINY, "--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0, "--ipc", ipc,
                      "--data_path", fixtures(dataset), "--save_path", tmp_path)
    assert "result:" in done.stdout and "--net_train_real, --mismatch_lambda: no effect" in done.stderr
    record = storage.load(tmp_path / f"res_BACON_{dataset}_ConvNetW32_{ipc}ipc.pt")
    shapes = {"MNIST": (10, 1, 28), "FashionMNIST": (10, 1, 28), "CIFAR100": (100, 3, 32), "TinyImageNet": (200, 3, 64)}
    classes, channels, size = shapes.get(dataset, (10, 3, 32))
    assert record["data"][0][0].shape == (classes * ipc, channels, size, size)
    assert len(list(tmp_path.glob("vis_*.png"))) == 1


def test_the_published_commands_are_all_there():
    assert len(PUBLISHED) == 17
    counts = Counter(command[0] for command in PUBLISHED)
    assert counts == {"BACON_mnist.py": 3, "BACON_f_mnist.py": 3, "BACON_SVHN.py": 3, "BACON_cifar10.py": 3,
                      "BACON_cifar100.py": 3, "BACON_tiny.py": 2}
    if SHARED.is_dir():
        reference = (SHARED / "reference" / "commands.txt").read_text().splitlines()
        assert [line.split()[2:] for line in reference] == PUBLISHED


def test_truncated_data_is_one_line(tmp_path):
    formats.write_idx(tmp_path, "MNIST", 1, 1)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    error, = call_script("BACON_mnist.py", "--data_path", tmp_path, "--save_path", tmp_path / "result",
                         expect=2).stderr.splitlines()
    assert str(tmp_path) in error and path.name in error and "delete those that are damaged" in error
    assert not (tmp_path / "result").exists()


@needs_shared_data
def test_published_command_on_real_data(tmp_path):
    command = next(command for command in PUBLISHED if command[:7:2] == ["BACON_mnist.py", "MNIST", "ConvNet", "10"])
    short = [*SHORT, "--Iteration", 1, "--num_eval", 1]
    call_script(*command, *short, "--data_path", SHARED / "data", "--save_path", tmp_path)
    accuracy, = storage.load(tmp_path / "res_BACON_MNIST_ConvNetW32_10ipc.pt")["accs_all_exps"]["ConvNetW32"]
    assert accuracy > 0.2  # after three epochs


@pytest.mark.parametrize("size, channels", [(96, 3), (28, 3), (64, 1)])
def test_folder_of_the_users_images(size, channels, tmp_path):
    images, labels = formats.images_and_labels(2, 10, 40, channels)
    formats.write_class_folders(tmp_path / "mine" / "train", images, labels, ["cats", "dogs"], ".jpg")
    done = call_script("BACON_folder.py", *TINY, "--aug", "--im_size", size, "--data_path",
                       tmp_path / "mine", "--save_path", tmp_path)
    assert "16 training and 4 test images" in done.stdout
    record = storage.load(tmp_path / "res_BACON_folder_ConvNetW32_1ipc.pt")
    assert record["data"][0][0].shape == (2, channels, size, size) and record["meta"]["class_names"] == ["cats", "dogs"]


def test_soft_labels(tmp_path):
    """Half class, half what the pool says; the set keeps its classes and brings the labels that evaluation takes."""
    flags = [*TINY, "--aug", "--soft_labels", 0.5, "--lr_net", 0.03, "--save_path", tmp_path]
    call_script("BACON_digits.py", *flags)
    path = tmp_path / "res_BACON_digits_ConvNetW32_1ipc.pt"
    record = torch.load(path, weights_only=True)
    (images, classes), (soft,) = record["data"][0], record["soft_labels"]
    assert classes.tolist() == list(range(10)) and soft.shape == (40, 10) and soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(40))
    own = soft[torch.arange(40), classes.repeat(4)]
    assert (own >= 0.5).all() and (own < 1).all() and own.std() > 0
    loaded, labels = utils.load_synthetic(path)
    assert torch.equal(labels, soft) and torch.equal(loaded, storage.expand(images, classes, 2)[0])
    call_script("BACON_digits.py", *flags, "--resume", "auto")
    assert torch.equal(torch.load(path, weights_only=True)["soft_labels"][0], soft)

    evaluate = ["--save_path", tmp_path, "--num_eval", 1, "--epoch_eval_train", 30]
    call_script("evaluate.py", "--synthetic", path, *evaluate)
    record["soft_labels"] = [soft.roll(1, dims=1)]
    storage.save(tmp_path / "rolled.pt", record)
    call_script("evaluate.py", "--synthetic", tmp_path / "rolled.pt", *evaluate)
    right, rolled = files.read_json_lines(tmp_path / "evaluate.jsonl")
    assert right["mean"] > 0.3 > rolled["mean"]
    record["soft_labels"] = [soft[:3]]
    storage.save(tmp_path / "short.pt", record)
    error, = call_script("evaluate.py", "--synthetic", tmp_path / "short.pt", expect=2).stderr.splitlines()
    assert "short.pt" in error and "soft labels" in error
    error, = call_script("BACON_digits.py", "--soft_labels", 2, expect=2).stderr.splitlines()
    assert "--soft_labels" in error


def test_other_images_are_refused_on_resume(tmp_path):
    torch.manual_seed(0)
    for k, place in enumerate(("train/a", "train/b", "test/a", "test/b") * 4):
        (tmp_path / "folder" / place).mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(1, 8, 8), tmp_path / "folder" / place / f"{k}.png")
    flags = [*TINY, "--im_size", 8, "--batch_real", 2, "--data_path", tmp_path / "folder", "--save_path",
             tmp_path / "result", "--resume", "auto"]
    call_script("BACON_folder.py", *flags)
    assert "1 of 1 experiments are finished" in call_script("BACON_folder.py", *flags).stdout
    save_image(torch.rand(1, 8, 8), tmp_path / "folder" / "train" / "a" / "0.png")
    error, = call_script("BACON_folder.py", *flags, expect=2).stderr.splitlines()
    assert "--data_path" in error and "not those that the run began with" in error


def test_defaults_are_those_of_each_published_script(fixtures, tmp_path):
    """num_eval is 1 in BACON's CIFAR-10 script, and 20 in all others. Only the CIFAR-10 scripts of BACON and IDM
    select real images at --ipc 1."""
    for script, expected in (("BACON_cifar10.py", (1, 2560)), ("BACON_SVHN.py", (20, 0)), ("BACON_tiny.py", (20, 0)),
                             ("BACON_cifar10.py --method IDM", (20, 2560)), ("BACON_cifar10.py --method DM", (20, 0))):
        text = re.sub(r"\s+", " ", call_script(*script.split(), "--help").stdout)
        values = tuple(int(re.search(rf"--{flag} [A-Z][A-Z0-9_]+ .*?\(default: (\d+)\)", text).group(1))
                       for flag in ("num_eval", "ipc1_real"))
        assert values == expected
    done = call_script("BACON_cifar10.py", "--ipc", 1, "--data_path", fixtures("CIFAR10"), "--save_path", tmp_path,
                       expect=2)
    assert "--ipc1_real 2560" in done.stderr and len(done.stderr.splitlines()) == 1


def test_general_defaults_are_the_published_ones():
    """Those of all published scripts."""
    published = {"model": "ConvNet_GBN", "Iteration": 20000, "num_exp": 5, "epoch_eval_train": 1000, "batch_train": 256,
                 "lr_net": 0.01, "lr_img": 1, "init": "real", "optim": "sgd", "embed_last": -1, "train_net_num": 2,
                 "fetch_net_num": 2, "net_num": 100, "net_generate_interval": 30, "net_push_num": 1,
                 "model_train_steps": 10, "trained_bs": 256, "batch_real": 256, "ce_weight": 0.1, "tv_weight": 0.8,
                 "clip_weight": 0.2, "aug_num": 1, "ij_selection": "random", "syn_ce": False, "net_decay": False,
                 "aug": False, "ipc": 50, "eval_mode": "S", "zca": False}
    ours = vars(options.parse_options("", []))
    assert {name: ours[name] for name in published} == published


def test_flags_may_be_negated_as_published(capsys):
    for name in ("aug", "syn_ce", "net_decay", "zca"):
        for spelling in (f"--no_{name}", f"--no-{name}"):
            assert vars(options.parse_options("", [f"--{name}"]))[name]
            assert not vars(options.parse_options("", [spelling], **{name: True}))[name]
    options.parse_options("", ["--no_net_train_real"])
    assert "--no_net_train_real: no effect" in capsys.readouterr().err


def test_only_its_own_command_replaces_a_finished_run(tmp_path, monkeypatch):
    """It leaves nothing of the one before, whose set would pass for its own until it has one."""
    name = "BACON_digits_ConvNetW32_1ipc"
    call_script("BACON_digits.py", *TINY, "--save_path", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for flags, named in ((["--eval_mode", "M"], "VGG11 does not fit images of 16x16"),
                         (["--sigma", "std"], "holds a finished run with --sigma published (not std)"),
                         (["--seed", 1, "--im_size", 15, "--aug"], "--no-aug"), (["--ipc1_real", 17], "--ipc1_real"),
                         (["--resume", "elsewhere"], "elsewhere")):
        error, = call_script("BACON_digits.py", *TINY, "--save_path", tmp_path, *flags, expect=2).stderr.splitlines()
        assert named in error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def fail(*_):
        raise UserError("on purpose")

    monkeypatch.setattr(Distillation, "step", fail)
    call_script("BACON_digits.py", *TINY, "--save_path", tmp_path, expect=2)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "lock", "losses.jsonl", "metrics.jsonl", "options.json"}
    assert not (tmp_path / name / "metrics.jsonl").read_text()


def test_a_class_of_one_image_has_no_deviation(tmp_path):
    for k, place in enumerate(("train/a", "train/b", "train/b", "test/a", "test/b")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(1, 8, 8), tmp_path / place / f"{k}.png")
    flags = [*TINY, "--im_size", 8, "--data_path", tmp_path, "--save_path", tmp_path / "result"]
    error, = call_script("BACON_folder.py", *flags, expect=2).stderr.splitlines()
    assert "class 'a' of folder has one training image" in error
    call_script("BACON_folder.py", *flags, "--method", "IDM")


BAD_INPUT = [
    (["--seed", "4294967296"], "--seed"),
    (["--dataset", "CIFAR11"], "CIFAR11"),
    (["--model", "ConvNetX"], "ConvNetX"),
    (["--model", "ConvNetD6"], "ConvNetD6"),
    (["--dsa_strategy", "color_blur"], "blur"),
    (["--method", "BACONS"], "BACONS"),
    (["--ipc", "0"], "--ipc"),
    (["--ipc", "many"], "--ipc"),
    (["--ipc", "140"], "--ipc 140"),
    (["--batch_real", "1"], "--batch_real"),
    (["--lr_img", "nan"], "--lr_img"),
    (["--lr_img", "0"], "--lr_img"),
    (["--device", "cuda"], "--device cuda"),
    (["--data_path", ""], "--data_path"),
    (["--method", "herding", "--net_start", "5"], "--net_start 5"),
    (["--iterations", "5"], "--iterations"),
    (["--save_path", "/dev/null/result"], "/dev/null/result"),
    (["--dataset", "MNIST", "--data_path", "/dev/null/data"], "/dev/null/data"),
]


@pytest.mark.parametrize("flags, named", BAD_INPUT, ids=[" ".join(flags) for flags, _ in BAD_INPUT])
def test_bad_input_is_one_line(flags, named, tmp_path):
    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = call_script("BACON_digits.py", "--save_path", tmp_path / "result", *flags, expect=2)
    error = done.stderr.splitlines()
    assert len(error) == 1 and error[0].startswith("BACON_digits.py: error: ") and named in error[0], done.stderr
    assert not done.stdout and not list(tmp_path.rglob("*.pt"))


def test_missing_data_without_a_network_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "BACON_mnist.py", "--data_path", tmp_path / "none", "--save_path",
                           tmp_path / "result"], cwd=CODE, capture_output=True, text=True, check=False,
                          env={"PATH": "", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert str(tmp_path / "none") in done.stderr and "train" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [command for command in PUBLISHED if command[6] == "10"], ids=" ".join)
def test_help_shows_the_published_command_as_it_is_typed(command):
    text = call_script(command[0], "--help").stdout
    shown, = re.findall(r"^    python3 -u ((?:.*\\\n)*.*)", text, re.M)
    shown = shown.replace("\\\n", " ").split()[1:]
    assert vars(options.parse_options("", shown)) == vars(options.parse_options("", command[1:]))


def test_home_folder_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = options.parse_options("", ["--save_path=~/result", "--data_path", "a~b", "--resume=~/run/checkpoint.ckpt"])
    assert (args.save_path, args.data_path) == (Path("/home/me/result"), Path("a~b"))
    assert args.resume == "/home/me/run/checkpoint.ckpt"


def test_benchmark_and_compare_start_from_the_published_command():
    command, = (command for command in PUBLISHED if command[:7:2] == ["BACON_mnist.py", "MNIST", "ConvNet", "10"])
    published = vars(options.parse_options("", command[1:]))
    assert vars(options.parse_options("", [], **options.PUBLISHED_MNIST)) == published


@pytest.mark.parametrize("script", ["evaluate.py", "report.py", "compare.py", "publish.py", "demo.py"])
def test_scripts_that_torchrun_cannot_share_say_so(script, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    flags = ["--to", "none", "none.pt"] if script == "publish.py" else []
    error, = call_script(script, *flags, expect=2).stderr.splitlines()
    assert error == f"{script}: error: torchrun: this script runs in one process alone; start it with python3"


@pytest.mark.parametrize("word", ["--outer_loop=--", "--data_path=--", "--method=--"])
def test_two_dashes_are_no_value(word, make_options, capsys):
    """argparse makes an empty list of them."""
    with pytest.raises(SystemExit) as end:
        make_options(word)
    assert end.value.code == 2 and f"{word}: no value" in capsys.readouterr().err
