"""A run that is killed or stopped at any moment goes on, and ends as if nothing had happened."""

import io
import json
import os
import shlex
import shutil
import signal
import stat
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import children
from conftest import TINY, call_script
from formats import Payload
from test_hostile_files import mutate
from utils import checkpoint, data, storage
from utils.distill import Distillation
from utils.system import files, signals
from utils.system.errors import UserError

RUN = "BACON_digits_ConvNetW32_1ipc"
FLAGS = [*TINY, "--num_exp", 2, "--Iteration", 4, "--eval_interval", 2, "--num_eval", 1, "--net_generate_interval", 2,
         "--save_path", "result", "--checkpoint_minutes", 0]
RESUME = [*FLAGS, "--resume", "auto"]


def left(folder):
    """All that a run leaves, by file name, without what tells of clocks, of memory and of the command line."""
    found = {}
    for path in sorted((folder / "result").rglob("*")):
        name = str(path.relative_to(folder / "result"))
        if path.name == "metrics.jsonl":
            found[name] = [json.loads(line) | {"seconds": None, "peak_gb": None}
                           for line in path.read_text().splitlines()]
        elif path.name == "options.json":
            found[name] = json.loads(path.read_text()) | {"command": None, "date": None}
        else:
            found[name] = path.is_dir() or path.name == "checkpoint.ckpt" or path.read_bytes()
    return found


def encoded(state):
    return b"".join(checkpoint.encode(state))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    children.run(folder, *FLAGS, prepare=children.Events())
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed after the third iteration of its first experiment."""
    folder = tmp_path_factory.mktemp("killed")
    children.run(folder, *FLAGS, expect=-9, prepare=children.Events(children.kill, "step of experiment", 3))
    return folder


def checkpoints(folder):
    return folder / "result" / RUN


def test_whole_run_is_worth_killing(whole):
    assert {path.split("/")[-1] for path in left(whole)} == {
        RUN, "checkpoint.ckpt", "lock", "losses.jsonl", "metrics.jsonl", "options.json", f"res_{RUN}.pt",
        f"res_{RUN}_best.pt", *(f"vis_{RUN}_exp{e}_iter{i}.png" for e in (0, 1) for i in (2, 4))}
    lines = left(whole)[f"{RUN}/metrics.jsonl"]
    assert [(line["experiment"], line["iteration"]) for line in lines] == [(0, 2), (0, 4), (1, 2), (1, 4)]
    losses = files.read_json_lines(whole / "result" / RUN / "losses.jsonl")
    assert [(line["experiment"], line["iteration"]) for line in losses] == [(e, i) for e in (0, 1) for i in range(4)]
    assert all(line["terms"].keys() == {"nll", "tv", "clip", "ce", "pool"} for line in losses)
    assert len((whole / "events").read_text().splitlines()) > 100
    assert all(path.stat().st_mode & stat.S_IROTH for path in (whole / "result").rglob("*")), "others cannot read them"


def test_checkpoints_do_not_change_a_run(whole, tmp_path):
    children.run(tmp_path, *FLAGS, "--checkpoint_minutes", 1000)
    ours, theirs = (storage.load(folder / "result" / f"res_{RUN}.pt")["data"] for folder in (tmp_path, whole))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind, nth", [
    ("flush checkpoint_new.ckpt", 10), ("rename to checkpoint.ckpt", 11), ("flush metrics", 3),
    ("flush res_.*_best.pt", 2), ("flush vis_", 3), ("step of evaluation", 5), ("pool training", 10)])
def test_killed_run_ends_as_if_nothing_had_happened(whole, kind, nth, tmp_path):
    """Killed before the nth event of each kind; a file that is being written then is left half-written."""
    child = children.run(tmp_path, *FLAGS, expect=-9, prepare=children.Events(children.kill, kind, nth))
    assert "result:" not in child.output()
    child = children.run(tmp_path, *RESUME)
    assert "result:" in child.output() and not child.error()
    assert left(tmp_path) == left(whole)


@pytest.mark.slow
@pytest.mark.parametrize("k", range(20))
def test_killed_at_a_moment_of_the_clock(whole, k, tmp_path):
    """About k twentieths through a run."""
    begun = time.monotonic()
    children.run(tmp_path / "timed", *FLAGS)
    seconds = time.monotonic() - begun
    child = children.start(tmp_path, *FLAGS)
    time.sleep(seconds * (k + 0.5) / 20)
    child.process.kill()
    child.wait()
    children.run(tmp_path, *RESUME)
    assert left(tmp_path) == left(whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_compiled_run(precision, tmp_path):
    """Batches of 80 go in a compiled part and a rest, which must not depend on what was compiled before."""
    flags = [*FLAGS, "--compile", "--precision", precision, "--trained_bs", 80]
    children.run(tmp_path / "whole", *flags)
    children.run(tmp_path / "killed", *flags, expect=-9, prepare=children.Events(children.kill, "pool training", 7))
    children.run(tmp_path / "killed", *flags, "--resume", "auto")
    assert left(tmp_path / "killed") == left(tmp_path / "whole")


def test_killed_before_the_last_rename(whole, tmp_path):
    """Nothing is left to do but to give the last checkpoint its name."""
    last = (whole / "events").read_text().splitlines().count("rename to checkpoint.ckpt")
    children.run(tmp_path, *FLAGS, expect=-9, prepare=children.Events(children.kill, "rename to checkpoint.ckpt", last))
    assert (tmp_path / "result" / RUN / checkpoint.NEW).exists()
    children.run(tmp_path, *RESUME)
    assert left(tmp_path) == left(whole)


def test_run_killed_again_and_again(whole, tmp_path):
    """Every attempt gets a little further and is killed, until one reaches the end."""
    attempts = 0
    while children.start(tmp_path, *RESUME, prepare=children.Events(children.kill, nth=45)).wait():
        attempts += 1
        assert attempts < 20
    assert attempts >= 3
    assert left(tmp_path) == left(whole)


@pytest.mark.parametrize("optim", ["sgd", "adam"])
def test_checkpoint_holds_all_that_the_next_iteration_depends_on(digits, make_options, optim, tmp_path):
    """Momentum, or Adam's two means; a pool that drops members; running accuracies."""
    options = make_options("--optim", optim, "--net_num", 3, "--net_generate_interval", 1, "--net_decay", "--syn_ce")
    whole, resumed = Distillation(digits(), options), Distillation(digits(), options)
    for iteration in range(2):
        whole.step(iteration)
    torch.save(whole.state(), tmp_path / "state.pt")
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for iteration in range(2, 4):
        ours, theirs = resumed.step(iteration), whole.step(iteration)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(resumed.images, whole.images)


@pytest.mark.parametrize("number, code, kind, nth, iteration", [
    (signal.SIGTERM, 143, "pool training", 3, 2), (signal.SIGINT, 130, "step of evaluation", 5, 4),
    (signal.SIGUSR1, 138, "pool training", 1, 1), (signal.SIGHUP, 129, "pool training", 2, 1)])
def test_signal_keeps_the_work_and_says_how_to_go_on(whole, number, code, kind, nth, iteration, tmp_path):
    """The iteration is finished; an evaluation is not, because it can take hours: it is done again."""
    child = children.run(tmp_path, *FLAGS, "--checkpoint_minutes", 1000, expect=code,
                         prepare=children.Events(children.send(number), kind, nth))
    assert checkpoint.read(checkpoints(tmp_path) / checkpoint.LAST)["iteration"] == iteration
    note, line = child.error().splitlines()
    assert note == "stopping as soon as the work is kept; Ctrl-C stops at once"
    assert line.startswith(f"BACON_digits.py: stopped by {number.name}; continue with: python3 BACON_digits.py ")
    children.run(tmp_path, *shlex.split(line.split("BACON_digits.py ")[-1]), "--checkpoint_minutes", 0)
    assert left(tmp_path) == left(whole)


def test_second_ctrl_c_ends_at_once(whole, tmp_path):
    """Even while the first one's checkpoint is being written, of which then the one before stays whole."""
    children.run(tmp_path, *FLAGS, expect=-signal.SIGINT, prepare=children.Events(
        children.send(signal.SIGINT, signal.SIGINT), "flush checkpoint_new", 5))
    assert checkpoint.read(checkpoints(tmp_path) / checkpoint.LAST)
    children.run(tmp_path, *RESUME)
    assert left(tmp_path) == left(whole)


def ctrl_c_while_loading():
    data.real_data.load = lambda *_: os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_before_the_run_begins(tmp_path):
    child = children.run(tmp_path, *FLAGS, expect=130, prepare=ctrl_c_while_loading)
    assert child.error() == "BACON_digits.py: stopped by Ctrl-C\n" and not (tmp_path / "result").exists()


def test_no_signals_are_taken_outside_the_main_thread_nor_under_nohup():
    def enter():
        with signals.Interrupts() as interrupts:
            seen.append(interrupts.before)

    seen, thread = [], threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [{}]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    enter()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and signal.SIGHUP not in seen[1]
    signal.signal(signal.SIGHUP, before)


def test_signals_are_as_before_after_a_run():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.Interrupts():
        assert [signal.getsignal(number) for number in signals.SIGNALS] != before
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_command_that_continues_a_continued_run_is_the_same(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python3", "BACON_digits.py", "--save_path", "my sets"])
    command = signals.resume_command()
    assert command == "python3 BACON_digits.py --save_path 'my sets' --resume auto"
    for again in (shlex.split(command), ["python3", "BACON_digits.py", "--resume", "auto", "--save_path", "my sets"],
                  ["python3", "BACON_digits.py", "--resume=there/checkpoint.ckpt", "--save_path", "my sets"]):
        monkeypatch.setattr(sys, "orig_argv", again)
        assert signals.resume_command() == command


def copy(killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return checkpoints(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:len(content) // 2],
                                    lambda content: content[:5000] + b"!" + content[5001:]],
                         ids=["truncated", "changed"])
def test_damaged_checkpoint_falls_back_to_the_one_before(whole, killed, damage, tmp_path):
    last = copy(killed, tmp_path) / checkpoint.LAST
    last.write_bytes(damage(last.read_bytes()))
    child = children.run(tmp_path, *RESUME)
    note, = [line for line in child.output().splitlines() if line.startswith("note: ")]
    assert "checkpoint.ckpt: damaged" in note and "the checkpoint before" in note
    assert left(tmp_path) == left(whole)


def refused(tmp_path, *flags):
    """The one line that a run says when it is refused, and that it touches nothing."""
    def content():
        return {path: path.read_bytes() for path in (tmp_path / "result").rglob("*") if path.is_file()}

    before = content()
    line, = children.run(tmp_path, *flags, expect=2).error().splitlines()
    assert content() == before
    return line


def test_run_of_an_older_version_is_continued(whole, killed, tmp_path):
    """Its checkpoints have other names, and lack options that came later."""
    folder = copy(killed, tmp_path)
    for name, earlier in zip(checkpoint.NAMES, checkpoint.EARLIER, strict=True):
        if (folder / name).exists():
            state = checkpoint.read(folder / name)
            for option in ("net_start", "eval_start"):
                del state["options"][option]
            state["options"]["eval_mode"] = "SS"
            (folder / earlier).write_bytes(b"".join(checkpoint.encode(state)))
            (folder / name).unlink()
    children.run(tmp_path, *RESUME)
    assert left(tmp_path) == left(whole)


def test_two_damaged_checkpoints_are_refused(killed, tmp_path):
    folder = copy(killed, tmp_path)
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (folder / name).write_bytes(b"damaged")
    assert "checkpoint_previous.ckpt: damaged" in refused(tmp_path, *RESUME)
    assert "checkpoint_previous.ckpt: damaged" in refused(tmp_path, *FLAGS, "--resume", folder / checkpoint.LAST)
    assert "No such file" in refused(tmp_path, *FLAGS, "--resume", folder / "none.pt")


@pytest.mark.parametrize("flags", [["--seed", 1], ["--lr_img", 0.3], ["--Iteration", 6, "--batch_real", 8]],
                         ids=lambda flags: " ".join(map(str, flags)))
def test_options_that_change_the_run_are_refused_by_name(killed, flags, tmp_path):
    copy(killed, tmp_path)
    line = refused(tmp_path, *RESUME, *flags)
    assert all(str(word) in line for word in flags)


def test_seconds_are_counted_on(killed, tmp_path):
    last = copy(killed, tmp_path) / checkpoint.LAST
    last.write_bytes(encoded(checkpoint.read(last) | {"seconds": 1000.0}))
    children.run(tmp_path, *RESUME)
    seconds = [line["seconds"] for line in files.read_json_lines(checkpoints(tmp_path) / "metrics.jsonl")]
    assert seconds[1] >= 1000 > max(seconds[2:])


def test_number_of_experiments_may_change(whole, killed, tmp_path):
    """A finished run takes more of them, and an unfinished one fewer, but those that have sets stay."""
    one, more = [*FLAGS, "--num_exp", 1], copy(killed, tmp_path / "more")
    children.run(tmp_path / "more", *one, "--resume", "auto")
    only, _ = storage.load(whole / "result" / f"res_{RUN}.pt")["data"]
    assert torch.equal(storage.load(more.parent / f"res_{RUN}.pt")["data"][0][0], only[0])
    children.run(tmp_path / "more", *RESUME)
    assert left(tmp_path / "more") == left(whole)
    assert "--num_exp 2 (not 1)" in refused(tmp_path / "more", *one, "--resume", "auto")


def test_unfinished_run_is_not_overwritten(killed, tmp_path):
    copy(killed, tmp_path)
    line = refused(tmp_path, *FLAGS)
    assert "--save_path" in line and "--resume auto" in line


def test_path_elsewhere_does_not_overwrite_a_run(killed, tmp_path):
    copy(killed, tmp_path)
    assert "checkpoints of its own" in refused(tmp_path, *FLAGS, "--resume", checkpoints(killed) / checkpoint.LAST)


def test_finished_run(whole, tmp_path):
    """--resume leaves it as it is, or brings its set back; without, a new one of the same options takes its place, as
    in the published code."""
    copy(whole, tmp_path)
    (tmp_path / "result" / f"res_{RUN}.pt").unlink()
    child = children.run(tmp_path, *RESUME)
    assert "2 of 2 experiments are finished" in child.output() and left(tmp_path) == left(whole)
    child = children.run(tmp_path, *FLAGS, expect=-9, prepare=children.Events(children.kill))
    assert not list(checkpoints(tmp_path).glob("checkpoint*")), "the finished run's checkpoint is still there"


def test_resume_from_a_path_in_another_folder(whole, killed, tmp_path):
    """With options that may change; sets, metrics and records appear in the new folder."""
    children.run(tmp_path, *FLAGS, "--resume", checkpoints(killed) / checkpoint.LAST, "--save_path", "other",
                 "--max_batch", 40, "--tensorboard")
    assert (tmp_path / "other" / RUN / "metrics.jsonl").read_text().count("\n") == 4
    ours, theirs = storage.load(tmp_path / "other" / f"res_{RUN}.pt"), storage.load(whole / "result" / f"res_{RUN}.pt")
    for (images, _), (expected, _) in zip(ours["data"], theirs["data"], strict=True):
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-2)


def test_resumed_tensorboard_has_every_point_once(killed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    copy(killed, tmp_path)
    children.run(tmp_path, *RESUME, "--tensorboard", expect=-9,
                 prepare=children.Events(children.kill, "step of experiment 2/2", 3))
    children.run(tmp_path, *RESUME, "--tensorboard")
    events = EventAccumulator(str(checkpoints(tmp_path)), size_guidance={"images": 0}).Reload()
    points = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    losses = files.read_json_lines(checkpoints(tmp_path) / "losses.jsonl")
    for e in (0, 1):
        assert points.pop(f"accuracy/ConvNetW32/experiment{e}") == [2, 4]
        for term in losses[0]["terms"]:
            assert points.pop(f"{term}/experiment{e}") == [line["iteration"] for line in losses
                                                           if line["experiment"] == e]
        shown = events.Images(f"set/experiment{e}")
        assert [picture.step for picture in shown] == [2, 4]
        path, = (tmp_path / "result").glob(f"vis_*_exp{e}_iter4.png")
        with Image.open(path) as saved, Image.open(io.BytesIO(shown[-1].encoded_image_string)) as there:
            assert np.array_equal(np.array(saved.convert("RGB")), np.array(there))
    assert not points and {"nll", "tv", "pool"} <= losses[0]["terms"].keys()


def read_or_refuse(path, content):
    """What the reader makes of these bytes: a state, or None after a UserError of one line."""
    path.write_bytes(content)
    try:
        return checkpoint.read(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


SMALL = {"options": {"ipc": 1}, "data": 7, "experiment": 0, "iteration": 2, "seconds": 1.5, "last": [], "best": [],
         "metrics": [{"mean": 0.5}], "losses": [],
         "distillation": {"images": torch.zeros(3, 4), "pool": [torch.ones(2)]}}


def test_five_hundred_damaged_checkpoints(tmp_path):
    assert read_or_refuse(tmp_path / "c.pt", encoded(SMALL))["iteration"] == 2
    rng = np.random.default_rng(0)
    for _ in range(500):
        content = mutate(encoded(SMALL), rng)
        assert read_or_refuse(tmp_path / "c.pt", content) is None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_five_hundred_forged_checkpoints(tmp_path):
    """Damaged, but with the checksum put right: what the checksum is not there to catch runs no code either."""
    rng = np.random.default_rng(0)
    payload = encoded(SMALL).split(b"\n", 1)[1]
    for _ in range(500):
        content = mutate(payload, rng)
        read_or_refuse(tmp_path / "c.pt", checkpoint.header(content) + content)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    content = encoded(SMALL | {"metrics": [Payload(tmp_path / "owned")]})
    assert read_or_refuse(tmp_path / "c.pt", content) is None
    assert not (tmp_path / "owned").exists()
    torch.load(io.BytesIO(content.split(b"\n", 1)[1]), weights_only=False)
    assert (tmp_path / "owned").exists(), "it would have run"


def forged_optimizer(**values):
    """A change to a checkpoint: the momentum of its images."""
    return lambda state: state["distillation"]["optimizer"].update(values)


def forged_member(part, key, value):
    """A change to a checkpoint: of the first network of its pool."""
    def change(state):
        member = state["distillation"]["pool"]["members"][0]
        (member if part is None else member[part])[key] = value
    return change


def forged_metrics(**values):
    return lambda state: state["metrics"][0].update(values)


def forged_last(**values):
    return lambda state: state["last"][0].update(values)


NAN, SHAPE = float("nan"), (10, 1, 1, 16, 16)
FORGED = [
    {"experiment": "1"}, {"last": [{"images": 1}]}, {"metrics": None}, {"iteration": 99}, {"experiment": -1},
    {"seconds": NAN}, {"best": []}, {"distillation": {"images": torch.zeros(2)}}, {"metrics": [5]},
    {"losses": [{"terms": torch.ones(2)}]}, {"metrics": [{1: 2}]}, {"metrics": [{"x": 1}]}, {"losses": [{}]},
    *(forged_metrics(**line) for line in ({"more": 1}, {"std": 2.0}, {"accuracies": []}, {"model": "other"},
                                          {"iteration": 9}, {"experiment": -1})),
    lambda state: state["options"].update(seed=torch.zeros(2)), lambda state: state["options"].update({5: 5}),
    lambda state: state["distillation"]["pool"].update(members=[]),
    lambda state: state["distillation"]["pool"].update(created=-1),
    lambda state: state["distillation"].update(images=torch.zeros(SHAPE, dtype=torch.float64)),
    *(forged_optimizer(velocity=value) for value in (
        torch.zeros(1), torch.zeros(10, 1, 1, 16, 8), torch.full(SHAPE, NAN), torch.zeros(SHAPE, dtype=torch.cfloat),
        torch.zeros(SHAPE).to_sparse(), 5, None)),
    lambda state: state["distillation"].update(optimizer={}),
    forged_member("optimizer", "state", {0: {"momentum_buffer": torch.zeros(1)}}),
    forged_member("optimizer", "state", {0: {"momentum_buffer": 5}}), forged_member("optimizer", "state", [1]),
    forged_member("network", "classifier.weight", torch.zeros(1)), forged_member(None, "seen", -1),
    forged_member(None, "seen", 1.5), forged_member(None, "correct", torch.zeros(3)),
    forged_member(None, "correct", torch.tensor(NAN)),
    forged_last(images=torch.full((10, 1, 16, 16), NAN)), forged_last(images=torch.zeros(1, 1, 16, 16)),
    forged_last(labels=torch.zeros(10, dtype=torch.int64)), forged_last(accuracies={"ConvNetW32": [1.5]}),
    forged_last(accuracies={"ConvNetW32": [NAN]}), forged_last(accuracies={}), forged_last(iteration=-1)]


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("change", FORGED, ids=range(len(FORGED)))
def test_checkpoint_that_does_not_fit_is_one_line(killed, change, tmp_path):
    """One whose checksum is right."""
    last = copy(killed, tmp_path) / checkpoint.LAST
    state = checkpoint.read(last)
    state.update(change) if isinstance(change, dict) else change(state)
    last.write_bytes(encoded(state))
    (checkpoints(tmp_path) / checkpoint.PREVIOUS).unlink()
    line, = call_script("BACON_digits.py", *RESUME, "--save_path", last.parents[1], expect=2).stderr.splitlines()
    assert "checkpoint" in line


@pytest.mark.parametrize("forge", [
    lambda state: state["optimizer"].update(velocity=torch.zeros(1)),
    lambda state: state["optimizer"].update(velocity=0.0),
    lambda state: state["pool"]["members"][0].update(correct=torch.zeros(3)),
    lambda state: next(iter(state["pool"]["members"][0]["optimizer"]["state"].values())).update(
        momentum_buffer=torch.zeros(1))], ids=range(4))
def test_forged_states_of_optimizers_do_not_fit(digits, make_options, forge):
    """They would be broadcast, or fail an iteration later."""
    options = make_options("--net_decay", "--fetch_net_num", 3)
    distillation = Distillation(digits(), options)
    distillation.step(0)
    state = distillation.state()
    forge(state)
    with pytest.raises(UserError, match="does not fit this run"), checkpoint.fitting():
        Distillation(digits(), options).restore(state)


def test_what_options_decide_is_not_taken_from_a_checkpoint(whole, killed, tmp_path):
    """Such as learning rates, and what has a gradient."""
    last = copy(killed, tmp_path) / checkpoint.LAST
    state = checkpoint.read(last)
    forged_member("optimizer", "param_groups", [{"lr": NAN, "params": [0]}])(state)
    state["distillation"]["images"].requires_grad_()
    state["distillation"]["optimizer"]["velocity"].requires_grad_()
    last.write_bytes(encoded(state))
    children.run(tmp_path, *RESUME)
    assert left(tmp_path) == left(whole)
