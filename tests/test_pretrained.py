"""Networks trained beforehand: how pretrain.py makes them, and what --pool does with them."""

import json
import random
import shutil
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import benchmark
import children
from conftest import ROOT, SHORT, TINY, call_script
from formats import Payload
from test_distributed import start_ranks
from utils import checkpoint, experiment, methods, networks, options, pretrained, storage
from utils.commands import compare
from utils.data import load
from utils.distill import Distillation
from utils.reference import PretrainedLoop
from utils.system.errors import UserError

TRAIN = ["--dataset", "digits", "--model", "ConvNetW32", "--networks", 2, "--steps", 6, "--stages", 0, 3, 6,
         "--trained_bs", 16, "--save_path", "pretrained"]
FOLDER = "pretrained/digits_ConvNetW32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks as pretrain.py leaves them."""
    path = tmp_path_factory.mktemp("networks")
    children.run(path, *TRAIN, script="pretrain.py")
    return path / FOLDER


def stages(path):
    return {stage["step"]: stage for stage in pretrained.read(path)["stages"]}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        ours[step]["accuracy"] == theirs[step]["accuracy"] and all(
            torch.equal(ours[step]["weights"][name], tensor) for name, tensor in theirs[step]["weights"].items())
        for step in theirs)


def test_stages_are_those_of_a_literal_training(folder, digits):
    """A plain loop from the same seed and batches: bit by bit after each stage, with the accuracy of its batches."""
    data, draws = digits(), pretrained.Draws(0)
    for number in (0, 1):
        network = networks.get_network("ConvNetW32", *data.network_shape, draws.network_seed("pretrained", number))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        kept, right = stages(folder / f"network_00{number}.pt"), 0
        assert list(kept) == [0, 3, 6] and kept[0]["accuracy"] == 0
        for step in range(6):
            assert step not in kept or all(torch.equal(kept[step]["weights"][name], value)
                                           for name, value in network.state_dict().items())
            rng = pretrained.generator(0, "pretraining batch", number, step)
            rows = torch.as_tensor(rng.choice(len(data.labels), 16, replace=False))
            logits = network(data.normalise(data.images[rows]))
            right += (logits.argmax(dim=1) == data.labels[rows]).sum().item()
            optimizer.zero_grad()
            F.cross_entropy(logits, data.labels[rows]).backward()
            optimizer.step()
        assert kept[6]["accuracy"] == pytest.approx(100 * right / 96)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(kept[6]["weights"][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind, nth", [
    ("step of network 0", 4), ("step of network 1", 2), ("flush network_000.partial", 2), ("flush network_000.pt", 1),
    ("rename to network_001.pt", 1)])
def test_killed_training_leaves_the_same_networks(kind, nth, folder, tmp_path):
    children.run(tmp_path, *TRAIN, script="pretrain.py", expect=-9, prepare=_Kill(kind, nth))
    children.run(tmp_path, *TRAIN, script="pretrain.py", prepare=_Often())
    assert {p.name for p in (tmp_path / FOLDER).iterdir()} == {p.name for p in folder.iterdir()}
    for path in folder.glob("*.pt"):
        assert same(stages(tmp_path / FOLDER / path.name), stages(path))


def test_seconds_of_a_training_go_on_where_it_was_killed(folder, tmp_path):
    """A network's file says them, and a comparison adds up those of all."""
    children.run(tmp_path, *TRAIN, script="pretrain.py", expect=-9, prepare=_Kill("step of network 1", 5))
    partial = tmp_path / FOLDER / "network_001.partial"
    content = pretrained.read(partial)
    assert 0 < content["seconds"] < 60
    pretrained.write(partial, content | {"seconds": 1000.0})
    children.run(tmp_path, *TRAIN, script="pretrain.py", prepare=_Often())
    first, second = (pretrained.read(tmp_path / FOLDER / f"network_00{k}.pt") for k in (0, 1))
    assert 0 < first["seconds"] < 60 and 1000 < second["seconds"] < 1060
    options = Namespace(pool=tmp_path / FOLDER, pool_networks=None)
    assert pretrained.seconds(options) == first["seconds"] + second["seconds"]
    del second["seconds"]  # as an older version left it
    pretrained.write(tmp_path / FOLDER / "network_001.pt", second)
    assert pretrained.seconds(options) is None


class _Often:
    """Keeps networks every second step, in a child."""

    def __call__(self):
        pretrained.KEPT_EVERY = 2


class _Kill(_Often):
    def __init__(self, *when):
        self.when = when

    def __call__(self):
        super().__call__()
        children.Events(children.kill, *self.when)()


def test_more_networks_are_added_and_others_left_alone(folder, tmp_path):
    children.run(tmp_path, *TRAIN, "--networks", 1, script="pretrain.py")
    first = (tmp_path / FOLDER / "network_000.pt").stat().st_mtime_ns
    children.run(tmp_path, *TRAIN, script="pretrain.py")
    assert (tmp_path / FOLDER / "network_000.pt").stat().st_mtime_ns == first
    assert same(stages(tmp_path / FOLDER / "network_001.pt"), stages(folder / "network_001.pt"))


@pytest.mark.parametrize("flags, words", [
    (["--lr_net", 0.1], "was made with --lr_net 0.01"), (["--seed", 1], "was made with --seed 0"),
    (["--model", "ConvNetBN"], "--model ConvNetBN"),
    (["--steps", 9], "the last of --stages is 6"), (["--stages", 7], "later than --steps 6")])
def test_training_refuses_in_one_line(flags, words, folder):
    done = call_script("pretrain.py", *TRAIN[:-1], folder.parent, *flags, expect=2)
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """Networks that know something, narrow."""
    path = tmp_path_factory.mktemp("older")
    children.run(path, "--dataset", "digits", "--model", "ConvNetW32", "--networks", 2, "--steps", 40, "--stages", 20,
                 40, "--trained_bs", 64, script="pretrain.py")
    return path / FOLDER


@pytest.mark.parametrize("flags", [
    [], ["--method", "IDM"], ["--pool_stages", 40, "--train_net_num", 2], ["--lr_decay", "cosine", "--Iteration", 5],
    ["--optim", "adam", "--lr_img", 0.01, "--lr_decay", "cosine", "--Iteration", 5], ["--sigma", "std"],
    ["--outer_loop", 2], ["--pool_networks", 1]], ids=lambda flags: " ".join(map(str, flags)))
def test_engine_equals_literal_loop_on_the_same_networks(flags, older, digits, make_options):
    data = digits(torch.float64)
    chosen = make_options("--ipc", 2, "--aug", "--syn_ce", "--pool", older, *flags)
    engine, reference = Distillation(data, chosen), PretrainedLoop(data, chosen)
    start = engine.images.clone()
    for it in range(4):
        terms = engine.step(it)
        reference.step(it)
        assert terms["ce"] > 0 and "pool" not in terms
    assert (engine.images - start).abs().max() > 1e-3
    torch.testing.assert_close(engine.images.flatten(0, 1), reference.image_syn.detach(), rtol=0, atol=1e-8)


def test_cross_entropy_of_other_stages(older, digits, make_options):
    """With no term but the cross-entropy, matching young networks and judging by old ones is as judging by these."""
    data, only = digits(torch.float64), ["--nll_weight", 0, "--tv_weight", 0, "--clip_weight", 0, "--pool_networks", 1]
    common = ["--ipc", 2, "--syn_ce", "--ce_weight", 0.5, "--pool", older, *only]
    ends = []
    for flags in (["--pool_stages", 20, "--ce_stages", 40], ["--pool_stages", 40], ["--pool_stages", 20]):
        engine = Distillation(data, make_options(*common, *flags))
        engine.step(0)
        engine.step(1)
        ends.append(engine.images)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)
    assert not torch.allclose(ends[0], ends[2], atol=1e-4)


def test_networks_and_draws(older, digits, make_options):
    pools = [Distillation(digits(), make_options("--pool", older, "--seed", seed, "--soft_labels", 0.5, "--soft_stages",
                                                 40, "--train_net_num", 1)).pool for seed in (0, 0, 1)]
    chosen = [[(m.number, m.step) for it in range(30) for m in pool.matching(it)] for pool in pools]
    assert chosen[0] == chosen[1] != chosen[2] and set(chosen[0]) == {(0, 20), (0, 40), (1, 20), (1, 40)}
    assert [(m.number, m.step) for m in pools[0].labelling()] == [(0, 40), (1, 40)]
    assert 0 < pools[0].members[0].percent < pools[0].members[1].percent <= 100
    assert pools[0].for_features().step == 40
    assert pools[0].state().keys() == {"pretrained"}, "a checkpoint holds no networks"


RUN = [*TINY, "--Iteration", 4, "--eval_interval", 2, "--num_eval", 1, "--syn_ce", "--soft_labels", 0.5,
       "--checkpoint_minutes", 0, "--save_path", "result"]


def finished(folder):
    return storage.load(folder / "result" / "res_BACON_digits_ConvNetW32_1ipc.pt")


@pytest.fixture(scope="module")
def whole(older, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    children.run(path, *RUN, "--pool", older)
    return path


@pytest.mark.parametrize("nth", [2, 4])
def test_resumed_run_is_bit_identical(nth, older, whole, tmp_path):
    children.run(tmp_path, *RUN, "--pool", older, expect=-9,
                 prepare=children.Events(children.kill, "step of experiment", nth))
    size = (tmp_path / "result" / "BACON_digits_ConvNetW32_1ipc" / "checkpoint.ckpt").stat().st_size
    assert size < 150_000, "a checkpoint holds no networks"
    children.run(tmp_path, *RUN, "--pool", older, "--resume", "auto")
    ours, theirs = finished(tmp_path), finished(whole)
    assert torch.equal(ours["data"][0][0], theirs["data"][0][0])
    assert torch.equal(ours["soft_labels"][0], theirs["soft_labels"][0])
    assert ours["accs_all_exps"] == theirs["accs_all_exps"]


def test_run_does_not_go_on_with_other_networks(older, folder, tmp_path):
    link = tmp_path / "networks"
    link.symlink_to(older)
    children.run(tmp_path, *RUN, "--pool", link, expect=-9,
                 prepare=children.Events(children.kill, "step of experiment", 3))
    link.unlink()
    link.symlink_to(folder)
    child = children.run(tmp_path, *RUN, "--pool", link, "--resume", "auto", expect=2)
    assert "not those that the run began with" in child.error()


def test_a_run_keeps_the_networks_that_it_began_with(older, tmp_path):
    """Through all experiments, also where it is killed and resumed, whatever is added in between."""
    pool = tmp_path / "pool"
    shutil.copytree(older, pool)
    flags = [*RUN, "--num_exp", 2, "--pool", pool]
    whole, late = tmp_path / "whole", tmp_path / "late"
    children.run(whole, *flags)
    children.run(late, *flags, expect=-9, prepare=_AddedThenKilled(pool))
    assert len(list(pool.glob("*.pt"))) == 3
    children.run(late, *flags, "--resume", "auto")
    ours, theirs = finished(late), finished(whole)
    for (images, _), (expected, _) in zip(ours["data"], theirs["data"], strict=True):
        assert torch.equal(images, expected)
    assert ours["meta"]["options"]["pool_files"] == ["network_000.pt", "network_001.pt"]
    children.run(late, *flags)  # the same command, anew, is no other one, and takes what is there now
    assert len(finished(late)["meta"]["options"]["pool_files"]) == 3
    (pool / "network_001.pt").unlink()
    line, = children.run(whole, *flags, "--num_exp", 3, "--resume", "auto", expect=2).error().splitlines()
    assert "network_001.pt, which the run began with, is not there" in line


class _AddedThenKilled:
    """In a child: a network comes into the folder, before the first in order, as the first experiment goes on; the run
    is killed in the second."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        children.Events(self.add, "step of experiment 1/2")()
        children.Events(children.kill, "step of experiment 2/2", 2)()

    def add(self, event):
        (self.folder / "network_000_more.pt").write_bytes((self.folder / "network_001.pt").read_bytes())


def test_runs_of_a_comparison_share_the_networks(older, tmp_path):
    pool = tmp_path / "pool"
    shutil.copytree(older, pool)
    flags = ["--dataset", "digits", "--ipcs", 1, *SHORT, "--num_eval", 1, "--epoch_eval_train", 0, "--pool", pool,
             "--save_path", tmp_path]
    call_script("compare.py", "--methods", "BACON", *flags)
    shutil.copy(pool / "network_001.pt", pool / "network_002.pt")
    call_script("compare.py", "--methods", "BACON", "IDM", *flags)
    sets = [storage.load(path)["meta"] for path in tmp_path.glob("*/res_*ipc.pt")]
    assert {meta["method"] for meta in sets} == {"BACON", "IDM"}
    assert all(meta["options"]["pool_files"] == ["network_000.pt", "network_001.pt"] for meta in sets)


@pytest.mark.parametrize("flags, words", [
    (["--pool", "nowhere"], "make them with pretrain.py"),
    (["--model", "ConvNetW64"], "another model: ConvNetW32, not ConvNetW64"), (["--im_size", 20], "im_size"),
    (["--zca"], "zca"), (["--validation"], "other images"), (["--pool_stages", 7], "--pool_stages 7"),
    (["--pool_networks", 3], "has 2"), (["--method", "DM"], "leave --pool out"),
    (["--no-syn_ce", "--ce_stages", 40], "--syn_ce"), (["--model", "ConvNetBN"], "--model ConvNetBN"),
    (["--soft_stages", 40], "--soft_labels")])
def test_refused_in_one_line(flags, words, older, tmp_path):
    done = call_script("BACON_digits.py", *TINY, "--pool", older, "--save_path", tmp_path, *flags, expect=2)
    assert words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_stages_without_a_pool_are_refused(tmp_path):
    assert "--pool" in call_script("BACON_digits.py", *TINY, "--pool_stages", 3, expect=2).stderr


def damage(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:len(content) // 2])
    elif how == "flipped":
        at = content.index(next(iter(stages(path)[40]["weights"].values())).numpy().tobytes())
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
    elif how == "code":
        torch.save(Payload(path.with_name("ran")), path)
    else:
        torch.save({"other": 1}, path)


@pytest.mark.parametrize("how", ["cut", "flipped", "code", "other"])
def test_damaged_network_is_refused(how, older, tmp_path):
    for path in older.glob("*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "network_001.pt", how)
    with pytest.raises(UserError, match=r"network_001\.pt: not a network") as error:
        pretrained.read(tmp_path / "network_001.pt")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def forged_stage(**values):
    return lambda content: content["stages"][-1].update(values)


@pytest.mark.parametrize("forge", [
    lambda content: content.update(stages=[]), lambda content: content.update(data=[1]),
    lambda content: content["data"].update(model=5), lambda content: content.update(data={}), forged_stage(step="1"),
    forged_stage(step=-1), lambda content: content["stages"][-1].pop("step"), forged_stage(weights={1: torch.zeros(1)}),
    forged_stage(weights={"w": torch.zeros(1, dtype=torch.cfloat)}), forged_stage(weights={"w": torch.zeros(1).long()}),
    forged_stage(accuracy=torch.ones(2)), lambda content: content.update(number="\x1b[2J"),
    lambda content: content.update(seconds="1"), lambda content: content.update(seconds=float("inf"))], ids=range(14))
def test_forged_network_of_a_right_checksum_is_refused(forge, older, tmp_path):
    shutil.copytree(older, tmp_path / "pool")
    path = tmp_path / "pool" / "network_000.pt"
    content = pretrained.read(path)
    forge(content)
    pretrained.write(path, content)
    flags = ["--method", "FastBACON", *TINY, "--pool", tmp_path / "pool", "--save_path", tmp_path / "result"]
    line, = call_script("BACON_digits.py", *flags, expect=2).stderr.splitlines()
    assert "network_000.pt" in line


def test_flipped_bytes_are_noticed_or_change_nothing(folder, tmp_path):
    """In a finished file at any place, and in a network that is half trained."""
    content, rng = (folder / "network_000.pt").read_bytes(), random.Random(0)
    expected, path, refused = pretrained.read(folder / "network_000.pt"), tmp_path / "network_000.pt", 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert pretrained.checksum(pretrained.read(path)) == pretrained.checksum(expected)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: not a network") and "\n" not in str(error)
    assert refused > 150


def test_commands_of_the_documentation(tmp_path):
    """The first two, as printed."""
    lines = (ROOT / "docs" / "pretrained.md").read_text().splitlines()
    first, second = [line.split()[2:] for line in lines if line.startswith("    python3 -u ")][:2]
    children.run(tmp_path, *first[1:], script=first[0])
    assert "result:" in children.run(tmp_path, *second[1:], script=second[0]).output()


def test_several_processes_share_the_networks(folder, tmp_path):
    """Three at once: each network is trained by one, and all are those of a single process."""
    running = [children.start(tmp_path, *TRAIN, script="pretrain.py", name=f"process{k}") for k in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0], running[0].error()
    assert sum(process.output().count("6 steps") for process in running) == 2
    for path in folder.glob("*.pt"):
        assert same(stages(tmp_path / FOLDER / path.name), stages(path))


def test_two_processes_give_the_set_of_one(older, whole, tmp_path):
    """One class at a time, so that the same batches go through a network."""
    flags = [*RUN, "--pool", older, "--max_batch", 8]
    children.run(tmp_path / "alone", *flags)
    ranks = start_ranks(tmp_path / "both", 2, *flags)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].error()
    ours, theirs = finished(tmp_path / "both"), finished(tmp_path / "alone")
    assert torch.equal(ours["data"][0][0], theirs["data"][0][0])
    torch.testing.assert_close(ours["data"][0][0], finished(whole)["data"][0][0], rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", ["kmeans", "herding", "kcenter", "random", "IDM"])
def test_other_methods_take_them(method, older, tmp_path):
    flags = [*TINY, "--num_eval", 1, *["--Iteration", 0] * (method not in ("IDM",))]
    done = call_script("BACON_digits.py", *flags, "--method", method, "--pool", older, "--soft_labels", 0.5,
                       "--save_path", tmp_path)
    assert "result:" in done.stdout


@pytest.mark.slow
def test_benchmark_has_no_row_of_pool_training(older, tmp_path, monkeypatch, capsys):
    flags = ["--dataset", "digits", "--model", "ConvNetW32", "--ipc", "1", "--batch_real", "16", "--no_compile",
             "--rounds", "1", "--pool", str(older), "--save_path", str(tmp_path), "--precision", "fp32"]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *flags])
    monkeypatch.setattr(benchmark, "matmul_rate", lambda *of: 1e9)  # in bf16 it takes minutes where that is emulated
    benchmark.main()
    result = json.loads((tmp_path / "benchmark_BACON_digits_ConvNetW32_1ipc_fp32.json").read_text())
    assert set(result["phases"]) == {"iteration", "image update", "evaluation epoch", "test pass"}
    assert result["phases"]["image update"]["share"] == 1 and "pool training" not in capsys.readouterr().out


@pytest.mark.parametrize("flags, word", [(["--ce_stages", 40], "--only engine"), (["--growth"], "leave --pool out")])
def test_benchmark_refuses_in_one_line(flags, word, older, tmp_path):
    done = call_script("benchmark.py", "--dataset", "digits", "--model", "ConvNetW32", "--pool", older, *flags,
                       "--save_path", tmp_path, expect=2)
    assert word in done.stderr and len(done.stderr.splitlines()) == 1


def test_compare_leaves_dm_its_fresh_networks(older, tmp_path):
    done = call_script("compare.py", "--dataset", "digits", "--methods", "DM", "BACON", "--ipcs", 1, *SHORT,
                       "--num_eval", 1, "--pool", older, "--pool_stages", 40, "--save_path", tmp_path)
    assert "| DM |" in done.stdout and "| BACON |" in done.stdout


def test_fast_bacon_is_bacon_with_its_recipe(older, tmp_path):
    """The same images, to the bit, as BACON with the flags of the recipe; a flag that is given comes before it."""
    shared = ["--pool", older, *TINY, "--num_eval", 1, "--Iteration", 3, "--save_path", tmp_path]
    call_script("BACON_digits.py", "--method", "FastBACON", *shared)
    recipe = methods.METHODS["FastBACON"].on("digits").recipe | {"Iteration": 3}
    flags = [word for name, value in recipe.items()
             for word in ([f"--{'no_' * (not value)}{name}"] if isinstance(value, bool) else [f"--{name}", value])]
    call_script("BACON_digits.py", "--method", "BACON", *shared, *flags)
    fast, flagged = (storage.load(tmp_path / f"res_{method}_digits_ConvNetW32_1ipc.pt")
                     for method in ("FastBACON", "BACON"))
    assert torch.equal(fast["data"][0][0], flagged["data"][0][0]) and fast["meta"]["options"]["sigma"] == "std"
    assert fast["meta"]["method"] == "FastBACON" and fast["meta"]["iteration"] == [3]


@pytest.mark.parametrize("script, ce, mirrored", [("mnist", None, False), ("f_mnist", 0.05, True),
                                                  ("SVHN", 0.5, False), ("cifar10", 0.5, True)])
def test_fast_bacon_on_a_data_set(script, ce, mirrored, older, monkeypatch):
    """As its entry script and compare.py take it, if no flag says otherwise."""
    monkeypatch.setattr(experiment, "run", lambda options: found.append(options))
    found, flags = [], ["--method", "FastBACON", "--pool", older, "--ipc", 10]
    call_script(f"BACON_{script}.py", *flags)
    call_script(f"BACON_{script}.py", *flags, "--dsa_strategy", "crop", "--no_syn_ce" if ce else "--syn_ce")
    shared = options.parse_options("", ["--pool", str(older)], dataset=found[0].dataset)
    del shared.method, shared.ipc, shared.seed
    found.append(compare.cell("FastBACON", 10, 0, shared))
    assert [one.syn_ce for one in found] == [bool(ce), not ce, bool(ce)]
    assert not ce or {one.ce_weight for one in found} == {ce}
    assert ["flip" in one.dsa_strategy for one in found] == [mirrored, False, mirrored]


def test_fast_bacon_wants_networks():
    error, = call_script("BACON_mnist.py", "--method", "FastBACON", expect=2).stderr.splitlines()
    assert "pretrain.py --dataset MNIST --model ConvNet, and name their folder with --pool" in error


def test_published_options_are_as_without_this(make_options):
    chosen = make_options()
    assert (chosen.pool, chosen.lr_decay, chosen.validation) == (None, "none", False)
    assert options.parse_options("", ["--method", "DM"]).pool is None


def test_run_from_before_these_options_resumes(make_options):
    """Its options lack them; it acted as their defaults say, and with other values it is refused."""
    new = ("pool", "pool_stages", "ce_stages", "soft_stages", "pool_networks", "lr_decay", "validation")
    before = {name: value for name, value in vars(make_options()).items() if name not in new}
    assert checkpoint.differences(before, vars(make_options())) == ""
    assert checkpoint.differences(before, vars(make_options("--lr_decay", "cosine"))) == "--lr_decay none (not cosine)"


def test_validation_leaves_the_test_images_alone():
    whole, split = load("digits", ""), load("digits", "", validation=True, seed=5)
    again = load("digits", "", validation=True)
    assert len(split.labels) + len(split.test_labels) == len(whole.labels)
    assert torch.equal(split.test_images, again.test_images) and split.checksum() == again.checksum()
    test = {image.numpy().tobytes() for image in whole.test_images}
    train = {image.numpy().tobytes() for image in whole.images}
    assert all(image.numpy().tobytes() in train - test for image in split.test_images)
