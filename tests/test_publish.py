"""The sets in Distilled/ and how they come there."""

import hashlib
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import children
import publish
import utils
from conftest import ROOT, TINY, call_script, run_script
from utils import storage
from utils.system import files
from utils.system.errors import UserError

CARDS = sorted((ROOT / "Distilled").glob("*/*.json"))
QUICK = ["--num_eval", 2, "--epoch_eval_train", 1]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_card_describes_its_set(path):
    card, content = json.loads(path.read_text()), path.with_suffix(".pt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == card["sha256"] and len(content) == card["bytes"]
    assert content.find(b"/work/") == content.find(b"/tmp/") == -1 and "/tmp/" not in path.read_text()
    meta = storage.load(path.with_suffix(".pt"))["meta"]
    assert "data" not in torch.load(path.with_suffix(".pt"), weights_only=True)
    assert all(meta[name] == card[name] for name in ("method", "dataset", "ipc", "model", "seed", "iteration"))
    images, labels = utils.load_synthetic(path.with_suffix(".pt"))
    assert len(images) == len(labels) == len(meta["class_names"]) * meta["ipc"] * meta["formation"] ** 2


def test_page_is_that_of_the_cards():
    page = (ROOT / "Distilled" / "README.md").read_text()
    assert page == publish.page(ROOT / "Distilled")
    assert utils.load_synthetic(ROOT / "Code" / re.search(r'load_synthetic\("(.+)"\)', page).group(1))


def test_page_has_cards_alone_and_notes_within_their_cells(tmp_path):
    """Not the records of runs in the same folder, which are .json files, too."""
    card = json.loads(CARDS[0].read_text()) | {"note": "a | b\nc"}
    for name, content in (("set.json", json.dumps(card)), ("set.pt", ""), ("options.json", "{}")):
        files.write_text(files.make_folder(tmp_path / card["dataset"]) / name, content)
    *_, line, row = publish.page(tmp_path).splitlines()
    assert row.startswith(f"| {card['dataset']} (a \\| b c) | [") and line.startswith("| --- |")


def test_page_says_which_evaluations_do_not_mirror():
    page = (ROOT / "Distilled" / "README.md").read_text()
    rows = {path: next(row for row in page.splitlines() if f"({path}.pt)" in row)
            for path in ("MNIST/BACON_ipc10", "MNIST/FastBACON_ipc10", "CIFAR10/FastBACON_ipc10")}
    assert ["(3, not mirrored)" in row for row in rows.values()] == [False, True, False]
    assert ["(3)" in row for row in rows.values()] == [True, False, True]


def test_smallest_set_reaches_its_accuracy(tmp_path):
    path = ROOT / "Distilled" / "digits" / "BACON_ipc1.pt"
    call_script("evaluate.py", "--synthetic", path, "--save_path", tmp_path)
    line, = files.read_json_lines(tmp_path / "evaluate.jsonl")
    expected, = json.loads(path.with_suffix(".json").read_text())["evaluation"]
    assert line["mean"] == pytest.approx(expected["mean"], abs=expected["std"])


def test_8_bits_move_a_value_by_half_a_step_at_most():
    noise = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = noise * torch.tensor([1, 10, 0]).view(3, 1, 1)
    record = {"data": [[images[:4], torch.zeros(4).long()], [images[4:], torch.ones(2).long()]],
              "accs_all_exps": {}, "meta": {"formation": 1}}
    small = storage.packed(record)
    assert "data" not in small, "other readers would train on codes"
    loaded = storage.validated(small)["data"]
    old = storage.validated({"data": small["codes"], "accs_all_exps": {}, "meta": small["meta"]})["data"]
    assert all(torch.equal(new[0], was[0]) for new, was in zip(loaded, old, strict=True)), "older files load"
    step = torch.tensor(small["meta"]["packed"]["step"]).view(3, 1, 1)
    for (image, label), (was, was_label) in zip(loaded, record["data"], strict=True):
        assert image.dtype == torch.float32 and torch.equal(label, was_label)
        assert ((image - was).abs() <= step * 0.5001).all()
    assert [pair[0].dtype for pair in small["codes"]] == [torch.uint8] * 2
    assert record["data"][0][0].dtype == torch.float32, "the record itself is left alone"


def test_command_without_the_machine():
    given = ["/home/me/Code/BACON_mnist.py", "--data_path=/home/me", "--ipc", "10", "--save_path", "device", "--resume",
             "auto", "--dsa_strategy=none", "--method", "resume"]
    assert publish.shared_command(given) == "python3 -u BACON_mnist.py --ipc 10 --dsa_strategy=none --method resume"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    call_script("BACON_digits.py", *TINY, "--ipc", 1, "--num_exp", 2, "--save_path", folder)
    return folder / "res_BACON_digits_ConvNetW32_1ipc.pt"


def test_publish(finished, tmp_path):
    call_script("publish.py", finished, "--to", tmp_path, *QUICK)
    card = json.loads((tmp_path / "digits" / "BACON_ipc1.json").read_text())
    small, = card["evaluation"]
    assert len(small["accuracies"]) == 4 and small["epoch_eval_train"] == 1, "two sets, two networks each"
    assert str(finished.parent) not in json.dumps(card) and "--Iteration 2" in card["command"]
    assert card["evaluated by"] == "python3 -u evaluate.py --synthetic BACON_ipc1.pt --num_eval 2 --epoch_eval_train 1"
    made = files.read_json_lines(finished.parent / finished.stem.removeprefix("res_") / "metrics.jsonl")
    assert card["seconds"] == [line["seconds"] for line in made if line["iteration"] == 2] and len(card["seconds"]) == 2
    assert card["peak_gb"] == max(line["peak_gb"] for line in made)
    assert "evaluation in float32" not in card
    assert f"| {100 * small['mean']:.2f} ± {100 * small['std']:.2f} (4) |" in (tmp_path / "README.md").read_text()
    before, after = (utils.load_synthetic(path)[0] for path in (finished, tmp_path / "digits" / "BACON_ipc1.pt"))
    assert 0 < (before - after).abs().max() < (before.max() - before.min()) / 255
    again = tmp_path / "again"
    call_script("evaluate.py", "--synthetic", tmp_path / "digits" / "BACON_ipc1.pt", *QUICK, "--save_path", again)
    line, = files.read_json_lines(again / "evaluate.jsonl")
    assert np.allclose(line["accuracies"], small["accuracies"], atol=0.02)
    content = (tmp_path / "digits" / "BACON_ipc1.pt").read_bytes()
    done = call_script("publish.py", finished, "--to", tmp_path, *QUICK, expect=2)
    assert "BACON_ipc1.pt is there already" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "digits" / "BACON_ipc1.pt").read_bytes() == content


def test_protocol_is_that_of_the_run():
    run = {"num_eval": 3, "precision": "bf16", "compile": True, "epoch_eval_train": 100}
    assert publish.protocol(run, []) == ["--num_eval", "3", "--precision", "bf16", "--compile"]
    assert publish.protocol(run, ["--precision=fp32", "--no_compile"]) == [
        "--num_eval", "3", "--precision=fp32", "--no_compile"]
    assert publish.protocol({"num_eval": 5, "precision": None, "compile": None}, []) == ["--num_eval", "5"]


def test_command_of_a_card_names_the_set_from_code(tmp_path):
    assert publish.from_code(ROOT / "Distilled" / "MNIST" / "BACON_ipc1.pt") == "../Distilled/MNIST/BACON_ipc1.pt"
    assert publish.from_code(tmp_path / "BACON_ipc1.pt") == "BACON_ipc1.pt"


def test_set_that_comes_meanwhile_is_not_replaced(finished, tmp_path, monkeypatch):
    target = tmp_path / "digits" / "BACON_ipc1.pt"

    def meanwhile(path, flags):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"another")
        return [{"model": "ConvNetW32", "accuracies": [0.99]}]

    monkeypatch.setattr(publish, "evaluated", meanwhile)
    with pytest.raises(UserError, match="is there already"):
        publish.publish(finished, tmp_path, "", [])
    assert target.read_bytes() == b"another"


@pytest.mark.parametrize("flags, evaluations", [(["--data_path", "data"], 1), (["--num_eval=2"], 2)],
                         ids=["as_its_run", "otherwise"])
@pytest.mark.parametrize("loss, refused", [(0.0, False), (0.004, False), (0.006, True)])
def test_a_set_that_loses_in_8_bits_is_refused(loss, refused, flags, evaluations, finished, tmp_path, monkeypatch):
    """Beside its run's accuracies; with other flags, beside those of the set as it was."""
    saved = storage.load(finished)
    whole = saved["accs_all_exps"]["ConvNetW32"]
    calls = []

    def evaluated(path, flags):
        calls.append(path)
        before = np.mean(whole) if evaluations == 1 else 0.5
        return [{"model": "ConvNetW32", "accuracies": [before - loss * (path != finished)]}]

    monkeypatch.setattr(publish, "evaluated", evaluated)
    monkeypatch.setattr(publish, "mean_and_std", lambda values: {"mean": float(np.mean(values)), "std": 0.0})
    if refused:
        with pytest.raises(UserError, match=r"in 8 bits ConvNetW32 reaches .*; it is not published"):
            publish.publish(finished, tmp_path, "", flags)
        assert not list(tmp_path.iterdir())
    else:
        publish.publish(finished, tmp_path, "", flags)
        assert (tmp_path / "digits" / "BACON_ipc1.pt").is_file()
    assert len(calls) == evaluations


def test_evaluation_ends_with_publish(finished, tmp_path):
    flags = [finished, "--to", tmp_path / "to", "--num_eval", 1, "--epoch_eval_train", 5000]  # a minute
    child = children.start(tmp_path, *flags, script="publish.py")
    begun, evaluation = time.monotonic(), ""
    while not evaluation:
        assert time.monotonic() < begun + 60
        time.sleep(0.05)
        evaluation = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children").read_text().strip()
    time.sleep(1)  # it has begun
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    assert not Path(f"/proc/{evaluation}").exists() and not (tmp_path / "to").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_page_that_never_ends_is_not_read(make, tmp_path):
    make(tmp_path / "README.md")
    line, = call_script("publish.py", "none.pt", "--to", tmp_path, expect=2).stderr.splitlines()
    assert "README.md cannot be read (not a regular file)" in line


def test_page_of_another_is_not_replaced(finished, tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    done = call_script("publish.py", finished, "--to", tmp_path, *QUICK, expect=2)
    assert f"{tmp_path}/README.md is another page" in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    done = call_script("publish.py", finished, "--to", tmp_path, *QUICK, expect=2)
    assert f"{tmp_path}/README.md cannot be read (not a reg" in done.stderr and len(done.stderr.splitlines()) == 1


def test_sets_that_are_not_published(finished, tmp_path):
    alone = tmp_path / finished.name
    alone.write_bytes(finished.read_bytes())
    (tmp_path / "damaged" / finished.stem.removeprefix("res_")).mkdir(parents=True)
    damaged = tmp_path / "damaged" / finished.name
    damaged.write_bytes(finished.read_bytes())
    (damaged.parent / finished.stem.removeprefix("res_") / "options.json").write_text("{}")
    record = storage.load(finished)
    unfinished, other = tmp_path / "unfinished.pt", tmp_path / "other.pt"
    storage.save(unfinished, record | {"meta": record["meta"] | {"iteration": [2, 1]}})
    storage.save(other, record | {"meta": {}})
    best = finished.with_name(f"{finished.stem}_best.pt")
    for path, named in ((best, "chosen on test accuracy"), (unfinished, "not finished"), (other, "another project"),
                        (alone, "options.json"), (damaged, "options.json"), (tmp_path / "none.pt", "no such file")):
        done = call_script("publish.py", path, "--to", tmp_path / "to", *QUICK, expect=2)
        assert named in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("change", [
    {"dataset": "../../outside"}, {"dataset": "/tmp/outside"}, {"dataset": ["MNIST"]}, {"dataset": ""},
    {"method": "../../../outside"}, {"method": "a/b"}, {"method": "BACON\n"}, {"method": None}, {"ipc": "1/../../x"},
    {"ipc": True}, {"ipc": -1}, {"ipc": 10**400}], ids=str)
def test_names_in_a_set_lead_nowhere(change, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "evaluated", lambda path, flags: [{"mean": 0.5, "std": 0.0, "accuracies": [0.5]}])
    record = storage.load(finished)
    records = tmp_path / "runs" / finished.stem.removeprefix("res_")
    records.mkdir(parents=True)
    (records / "options.json").write_bytes((finished.parent / records.name / "options.json").read_bytes())
    path = tmp_path / "runs" / finished.name
    storage.save(path, record | {"meta": record["meta"] | change})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"none that a run can have|`meta` is damaged") as error:
        publish.publish(path, tmp_path / "to", "", [])
    assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_a_file_in_place_of_the_card_is_not_replaced(finished, tmp_path):
    (tmp_path / "digits").mkdir()
    for place in (tmp_path / "mine.json", tmp_path / "digits" / "BACON_ipc1.json"):
        place.write_text("mine")
    done = call_script("publish.py", finished, "--to", tmp_path, *QUICK, expect=2)
    assert "is there already" in done.stderr and (tmp_path / "digits" / "BACON_ipc1.json").read_text() == "mine"
    (tmp_path / "digits" / "BACON_ipc1.json").unlink()
    (tmp_path / "digits" / "BACON_ipc1.json").symlink_to(tmp_path / "mine.json")
    call_script("publish.py", finished, "--to", tmp_path, *QUICK, expect=2)
    assert (tmp_path / "mine.json").read_text() == "mine"


@pytest.mark.parametrize("content", [
    b"", b"[]", b"{", b"\xff", b"null", b"[" * 10**5, b'{"note": 1}', b'{"note": "", "dataset": "a", "evaluation": 3}',
    b'{"note": "", "dataset": "a", "ipc": [], "evaluation": [{}]}'], ids=lambda content: content[:20])
def test_a_damaged_card_is_one_line_before_anything_is_written(content, finished, tmp_path):
    other = tmp_path / "MNIST" / "other.json"
    other.parent.mkdir()
    other.write_bytes(content)
    other.with_suffix(".pt").write_text("")
    done = call_script("publish.py", finished, "--to", tmp_path, *QUICK, expect=2)
    line, = done.stderr.splitlines()
    assert f"{other} is no card of a set" in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["MNIST", "other.json", "other.pt"]


def test_names_and_cards_move_no_cursor(tmp_path):
    card = json.loads(CARDS[0].read_text()) | {"note": "a\x1b[2J", "dataset": "\x1b]0;b\x07"}
    files.make_folder(tmp_path / "MNIST")
    (tmp_path / "MNIST" / "a|\n\x1b[A.json").write_text(json.dumps(card))
    (tmp_path / "MNIST" / "a|\n\x1b[A.pt").touch()
    row = publish.page(tmp_path).splitlines()[-1]
    assert all(part in row for part in (r"a\x1b[2J", r"\x1b]0;b\x07", r"a\| \x1b[A.pt"))
    assert publish.page(tmp_path).replace("\n", "").isprintable()


def test_links_of_the_page_are_where_the_sets_are(tmp_path):
    """Whatever the cards say."""
    card = json.loads(CARDS[0].read_text()) | {"set": "../../x.pt", "dataset": "a](http://evil)|\nb"}
    for name, content in (("set.json", json.dumps(card)), ("set.pt", "")):
        files.write_text(files.make_folder(tmp_path / "MNIST") / name, content)
    row = publish.page(tmp_path).splitlines()[-1]
    assert "[set.pt](MNIST/set.pt)" in row and "x.pt" not in row and "\\| b" in row


def test_what_cannot_be_evaluated_is_not_published(finished, tmp_path):
    done = run_script("publish.py", finished, "--to", tmp_path / "to", *QUICK, "--lr_net", 0, expect=2)
    line, = done.stderr.splitlines()
    assert line.startswith("evaluate.py: error: ") and "--lr_net" in line and not (tmp_path / "to").exists()


def test_a_card_holds_the_set_alone(finished, tmp_path):
    """--fair evaluates random images and the whole training set, too."""
    line, = call_script("publish.py", finished, "--to", tmp_path / "to", *QUICK, "--fair", expect=2).stderr.splitlines()
    assert line.startswith("publish.py: error: --fair: ") and not (tmp_path / "to").exists()


def test_sets_come_before_the_flags_of_evaluate(finished, tmp_path):
    done = call_script("publish.py", *QUICK, finished, "--to", tmp_path / "to", expect=2)
    line, = done.stderr.splitlines()
    assert "2: not a .pt file" in line and "sets first" in line and not done.stdout
    assert not (tmp_path / "to").exists()
