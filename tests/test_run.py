"""What a run leaves, what its seed decides, and when another may take its place."""

import json
import math
import re
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
from torchvision.utils import save_image

import utils
from conftest import CODE, ROOT, TINY, call_script, run_script
from utils import experiment, options, storage
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


def test_seconds_of_a_set_are_without_its_evaluation(tmp_path, monkeypatch):
    evaluate = experiment.evaluate_set

    def slowly(*arguments):
        time.sleep(whole)
        return evaluate(*arguments)

    flags = [*TINY, "--eval_interval", "2", "--dataset", "digits", "--no_compile", "--save_path", str(tmp_path)]
    begun = time.monotonic()
    experiment.run(options.parse_options("", flags))
    whole = time.monotonic() - begun  # of a run without this, data and evaluation included
    monkeypatch.setattr(experiment, "evaluate_set", slowly)
    experiment.run(options.parse_options("", [*flags, "--seed", "1", "--save_path", str(tmp_path / "slow")]))
    lines = files.read_json_lines(next((tmp_path / "slow").glob("*/metrics.jsonl")))
    assert [line["seconds"] < whole for line in lines] == [True]


def test_metrics_and_options_of_a_run(result):
    folder, printed = result
    lines = files.read_json_lines(folder / RUN / "metrics.jsonl")
    assert [(line["experiment"], line["iteration"]) for line in lines] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    record, best = (storage.load(folder / f"res_{RUN}{kind}.pt") for kind in ("", "_best"))
    for number in (0, 1):
        own = [line for line in lines if line["experiment"] == number]
        slots = slice(2 * number, 2 * number + 2)
        assert record["accs_all_exps"]["ConvNetW32"][slots] == own[-1]["accuracies"]
        top = max(own, key=lambda line: line["mean"])
        assert best["accs_all_exps"]["ConvNetW32"][slots] == top["accuracies"]
        assert best["meta"]["iteration"][number] == own[-1]["best_iteration"]
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
    block, test = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1:3]
    code = re.sub(r'"[^"]*\.pt"', repr(str(result[0] / f"res_{RUN}.pt")), block)
    assert code != block and len(block.strip().splitlines()) <= 10
    done = subprocess.run([sys.executable, "-c", code + test], cwd=CODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(re.search(r"0\.\d+", done.stdout).group()) < 1


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


def test_start_is_evaluated_where_it_is_asked_for(tmp_path):
    """As DM's authors do it; the images that follow are the same."""
    sets = []
    for name, flags in (("with", ["--eval_start"]), ("without", [])):
        call_script("BACON_digits.py", *TINY, *flags, "--save_path", tmp_path / name)
        sets.append(storage.load(tmp_path / name / "res_BACON_digits_ConvNetW32_1ipc.pt")["data"][0][0])
        lines = files.read_json_lines(tmp_path / name / "BACON_digits_ConvNetW32_1ipc" / "metrics.jsonl")
        assert [line["iteration"] for line in lines] == [0, 1, 2][not flags:]
    assert torch.equal(*sets)


def test_validation_through_the_scripts(tmp_path):
    """A run and evaluate.py with --validation test on a fifth of the training images, without it on the test images."""
    made = tmp_path / "res_BACON_digits_ConvNetW32_1ipc.pt"
    done = call_script("BACON_digits.py", *TINY, "--num_eval", 1, "--validation", "--save_path", tmp_path)
    flags = ["--synthetic", made, "--num_eval", 1, "--epoch_eval_train", 9, "--save_path", tmp_path]
    split = call_script("evaluate.py", *flags, "--validation")
    whole = call_script("evaluate.py", *flags)
    kept = "no test images: split into 1149 training and 288 test images"
    assert kept in done.stdout and kept in split.stdout and "split" not in whole.stdout
    line = files.read_json_lines(tmp_path / "BACON_digits_ConvNetW32_1ipc" / "metrics.jsonl")[-1]
    evaluated = files.read_json_lines(tmp_path / "evaluate.jsonl")
    assert [entry["validation"] for entry in evaluated] == [True, False]
    assert json.loads((tmp_path / "BACON_digits_ConvNetW32_1ipc" / "options.json").read_text())["options"]["validation"]
    for entry, tested in ((line, 288), *zip(evaluated, (288, 360), strict=True)):
        right = tested * entry["accuracies"][0]
        assert right == pytest.approx(round(right), abs=1e-6), "a share of so many images"


def test_learning_rate_that_falls_through_the_scripts(tmp_path):
    """The images are the engine's under the same schedule, also where the run goes on; another schedule is refused."""
    flags = [*TINY, "--num_eval", 1, "--epoch_eval_train", 0, "--Iteration", 4, "--eval_interval", 4]
    sets = {}
    for decay in ("cosine", "none"):
        call_script("BACON_digits.py", *flags, "--lr_decay", decay, "--save_path", tmp_path / decay)
        sets[decay] = storage.load(tmp_path / decay / "res_BACON_digits_ConvNetW32_1ipc.pt")
    options = Namespace(**sets["cosine"]["meta"]["options"])
    assert options.lr_decay == "cosine"
    engine = Distillation(utils.data.load("digits", ""), options)
    rates = []
    for it in range(4):
        engine.step(it)
        rates.append(engine.optimizer.lr)
    assert rates == pytest.approx([options.lr_img * (1 + math.cos(math.pi * it / 4)) / 2 for it in range(4)])
    assert torch.equal(sets["cosine"]["data"][0][0], engine.images.flatten(0, 1))
    assert not torch.equal(sets["cosine"]["data"][0][0], sets["none"]["data"][0][0])
    line, = call_script("BACON_digits.py", *flags, "--resume", "auto", "--num_exp", 2, "--save_path",
                        tmp_path / "cosine", expect=2).stderr.splitlines()
    assert "--lr_decay cosine (not none)" in line
