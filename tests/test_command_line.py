"""How the scripts explain their flags, and what they take for a misspelt one."""

import re

import pytest

from conftest import CODE, call_script
from utils import command_line, options
from utils.data import sources
from utils.methods import METHODS
from utils.networks import CONVNETS
from utils.system.errors import UserError

SCRIPTS = sorted(path.name for path in CODE.glob("*.py"))
ENTRY = [script for script in SCRIPTS if script.startswith("BACON_")]
NEEDED = {"evaluate.py": ["--synthetic PATH"], "compare.py": ["--methods METHODS [METHODS ...]"],
          "export.py": ["set", "--to {dm,mtt,ddranking,npz,png}", "--out PATH"], "publish.py": ["sets [sets ...]"],
          "report.py": ["RESULT_FOLDER [RESULT_FOLDER ...]"],
          "draw.py": ["--synthetic PATH [PATH ...]"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_short_and_readable(script, monkeypatch):
    """One line of usage with what is needed; no flag without effect; no default that is a Python value."""
    monkeypatch.setenv("COLUMNS", "80")
    text = call_script(script, "--help").stdout
    usage = text.split("\n\n")[0]
    assert usage == " ".join(["usage:", script, *NEEDED.get(script, []), "[flags]"])
    assert not re.search(r"\b(None|True|False)\b|SUPPRESS|no effect", text)
    flags = re.findall(r"(?m)^  (--\w+)", text)
    assert not set(flags) & {f"--{name}" for name in (*options.DEAD_FLAGS, "aug_num", "ij_selection")}
    assert not re.search(r"\(default: [^()]*\) \(default: ", re.sub(r"\s+", " ", text))
    if script == "compare.py":  # which refuses these
        assert not set(flags) & {"--method", "--ipc", "--seed", "--published", "--resume"}
    if script in ENTRY:
        assert len(text.splitlines()) < 180 and flags[:4] == ["--published", "--method", "--ipc", "--model"]
        groups = re.findall(r"(?m)^(\w[\w ]*):\n  ([A-Z].*\.)\n\n  --", text)
        assert [title for title, _ in groups] == ["what to make", "data and files", "machine", "evaluation", "run",
                                                  "synthetic images", "loss", "pool"]


def test_help_has_the_defaults_of_the_method():
    text = call_script("BACON_mnist.py", "--method", "dm", "--help").stdout
    assert re.search(r"--eval_start, --no_eval_start\s+[^-]*\(default: on\)", text)
    assert re.search(r"--eval_interval N [^(]*\(default: 2000\)", re.sub(r"\s+", " ", text))


def test_hidden_flags_are_taken_and_checked(capsys):
    made = options.parse_options("", ["--aug_num", "1", "--ij_selection", "random", "--dis_metric", "ours"])
    assert made.aug_num == 1 and "--dis_metric: no effect" in capsys.readouterr().err
    with pytest.raises(UserError, match="--aug_num"):
        options.parse_options("", ["--aug_num", "2"])


@pytest.mark.parametrize("flag, spelling, name", [
    ("dataset", "cifar10", "CIFAR10"), ("dataset", "CIFAR-10", "CIFAR10"), ("dataset", "mnist", "MNIST"),
    ("dataset", "fashion-mnist", "FashionMNIST"), ("dataset", "Fashion_MNIST", "FashionMNIST"),
    ("dataset", "fmnist", "FashionMNIST"), ("dataset", "tiny-imagenet", "TinyImageNet"),
    ("dataset", "tiny", "TinyImageNet"), ("dataset", "svhn", "SVHN"), ("dataset", "Digits", "digits"),
    ("method", "bacon", "BACON"), ("method", "Idm", "IDM"), ("method", "k-means", "kmeans"),
    ("method", "k_center", "kcenter"), ("model", "convnet", "ConvNet"), ("model", "convnetw32", "ConvNetW32")])
def test_names_are_understood_however_they_are_spelled(flag, spelling, name):
    assert getattr(options.parse_options("", [f"--{flag}={spelling}"]), flag) == name


@pytest.mark.parametrize("known, also", [(sources.SOURCES, options.DATASETS_ALSO), (METHODS, {}), (CONVNETS, {})])
def test_every_name_stands_for_itself(known, also):
    """Where two differ in underscores alone, too."""
    taken = command_line.accepted_by(str, known, also)
    assert [taken(name) for name in known] == list(known)
    assert [taken(text) for text in also] == list(also.values()) and set(also.values()) <= set(known)


@pytest.mark.parametrize("script", ["BACON_digits.py", "evaluate.py", "pretrain.py", "benchmark.py"])
def test_a_flag_that_is_unknown_is_answered_with_one_that_is_known(script):
    given = {"evaluate.py": ["--synthetic", "none.pt"]}.get(script, [])
    error, = call_script(script, *given, "--data-paht", "x", expect=2).stderr.splitlines()
    assert error.endswith("unrecognized arguments: --data-paht x; did you mean --data_path?")


@pytest.mark.parametrize("command, meant", [
    (["pretrain.py", "--model", "ConvNetW33"], "ConvNetW32"), (["pretrain.py", "--dataset", "cifar11"], "CIFAR10"),
    (["evaluate.py", "--synthetic", "none.pt", "--model", "RestNet18"], "ResNet18"),
    (["compare.py", "--methods", "BACNO"], "BACON")])
def test_names_are_answered_in_every_script(command, meant):
    error, = call_script(*command, expect=2).stderr.splitlines()
    assert error.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize("flags, meant", [
    (["--iterations", "5"], "--Iteration"), (["--lr-img=3"], "--lr_img"), (["--Aug"], "--aug"),
    (["--dataset", "cifar11"], "CIFAR10"), (["--dataset", "MINST"], "MNIST"), (["--method", "Bacons"], "BACON"),
    (["--model", "ConvNetW33"], "ConvNetW32"), (["--quux", "5"], None), (["--dataset", "birds"], None),
    (["word"], None), (["--nope"], None), (["--mismatch_lamda", "5"], None)])
def test_what_was_meant(flags, meant):
    """Only what resembles it, and never a flag without effect."""
    with pytest.raises(UserError) as refused:
        options.parse_options("", flags)
    error, = str(refused.value).splitlines()
    assert flags[-1].partition("=")[0] in error
    assert error.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in error
