"""--method: recipes, users' own objectives, the terms of the loss, and real images chosen as a set."""

import re
import shlex
import sys

import numpy as np
import pytest
import torch

import utils
from conftest import CODE, ROOT, TINY, run_script
from utils import data, experiment, methods, options, pool, selections, storage
from utils.distill import Distillation, expand_classes
from utils.paper import PAPER
from utils.system.errors import UserError

# What the authors' `main_DM.py` does without any flag but --dataset and --ipc.
DM = {"model": "ConvNet", "Iteration": 20000, "lr_img": 1.0, "batch_real": 256, "batch_train": 256, "init": "real",
      "dsa_strategy": "color_crop_cutout_flip_scale_rotate", "lr_net": 0.01, "epoch_eval_train": 1000, "num_exp": 5,
      "num_eval": 20, "eval_interval": 2000, "aug": False, "syn_ce": False, "optim": "sgd", "visits": "joint",
      "net_start": 1, "net_num": 1, "net_generate_interval": 1, "eval_start": True, "model_train_steps": 0,
      "embed_last": 1000, "outer_loop": 1, "train_net_num": 1}


# In what the commands of IDM's authors differ from BACON's.
IDM = {("CIFAR100", "50"): {"model_train_steps": 10}, ("TinyImageNet", "1"): {"init": "whole"},
       ("TinyImageNet", "10"): {"init": "whole", "model_train_steps": 10},
       ("TinyImageNet", "50"): {"init": "whole", "eval_interval": 1000, "ce_weight": 0.8, "model_train_steps": 50}}


def parsed(*flags, **defaults):
    return vars(options.parse_options("", [str(flag) for flag in flags], **defaults))


def test_dm_is_as_published():
    args = parsed("--method", "DM", "--ipc", 10, dataset="MNIST")
    assert {name: args[name] for name in DM} == DM


def test_a_flag_comes_before_the_recipe_and_the_recipe_before_the_script():
    script = {"dataset": "digits", "model": "ConvNetW32", "aug": True, "eval_interval": 50}
    args = parsed("--method", "DM", **script)
    assert (args["aug"], args["model"], args["eval_interval"]) == (False, "ConvNetW32", 50)
    args = parsed("--method", "DM", "--aug", "--lr_img", 5, "--model", "ConvNetD2", **script)
    assert (args["aug"], args["lr_img"], args["model"]) == (True, 5, "ConvNetD2")
    assert not parsed("--no-aug", **script)["aug"]


def test_soft_labels_may_come_from_any_pool_that_is_trained():
    for flags in ([], ["--method", "IDM"], ["--method", "herding"], ["--method", "DM", "--model_train_steps", 5]):
        assert parsed("--soft_labels", 0.5, *flags)["soft_labels"] == 0.5


def test_idm_differs_from_bacon_in_its_objective_alone():
    bacon, idm = parsed(), parsed("--method", "IDM")
    assert {name for name in bacon if bacon[name] != idm[name]} == {"method"}


@pytest.mark.parametrize("method", ["IDM", "DM"])
def test_commands_of_every_table_cell(method):
    """One for each cell of BACON, and Tiny-ImageNet at 50. IDM's authors publish other steps and weights for some, DM's
    no flip of digits, and CIFAR-10 at 100."""
    lines = (ROOT / "Command.txt").read_text().splitlines()
    own = [shlex.split(line)[3:] for line in lines if f".py --method {method} " in line]
    published = [shlex.split(line)[3:] for line in lines if line.startswith("python3") and "--method" not in line]

    def cell(words):
        return words[words.index("--dataset") + 1], words[words.index("--ipc") + 1]

    last = published[-1].copy()
    last[last.index("--ipc") + 1] = "50"
    published.append(last)
    if method == "DM":
        more = own.pop(12)
        assert cell(more) == ("CIFAR10", "100") and parsed(*more)["lr_img"] == 10
    assert [cell(words) for words in own] == [cell(words) for words in published] and len(own) == 18
    assert {(dataset, str(ipc)) for dataset in PAPER[method] for ipc in PAPER[method][dataset]} <= set(map(cell, own))
    for words, theirs in zip(own, published, strict=True):
        args, bacon = parsed(*words), parsed(*theirs)
        digits = {"dsa_strategy": "color_crop_cutout_scale_rotate"} if cell(words)[0] in ("MNIST", "SVHN") else {}
        expected = {"DM": DM | {"num_eval": 5} | digits,
                    "IDM": bacon | {"method": "IDM"} | IDM.get(cell(words), {})}[method]
        assert args["method"] == method and {name: args[name] for name in expected} == expected


@pytest.mark.parametrize("flags, terms", [
    (["--tv_weight", 0, "--clip_weight", 0], {"nll"}),
    (["--clip_weight", 0], {"nll", "tv"}),
    (["--tv_weight", 0, "--prior_clip", "embedding"], {"nll", "clip"}),
    (["--nll_weight", 0], {"tv", "clip"}),
    (["--nll_weight", 0, "--tv_weight", 0, "--clip_weight", 0, "--syn_ce"], {"ce"}),
    (["--method", "IDM", "--nll_weight", 0, "--tv_weight", 0, "--clip_weight", 0], {"mean"}),
], ids=lambda value: " ".join(map(str, sorted(value, key=str) if isinstance(value, set) else value)))
def test_a_weight_of_zero_leaves_a_term_out(digits, make_options, flags, terms):
    distillation = Distillation(digits(), make_options("--lr_img", 0.1, *flags))
    assert set(distillation.step(0)) - {"pool"} == terms
    start = distillation.images.clone()
    distillation.step(1)
    assert not torch.equal(distillation.images, start) and distillation.images.isfinite().all()


def test_weights_scale_their_terms(digits, make_options):
    def terms(*flags):
        flags = ["--prior_clip", "embedding", *flags]
        return Distillation(digits(torch.float64), make_options("--train_net_num", 1, *flags)).step(0)

    plain, doubled = terms(), terms("--nll_weight", 2, "--tv_weight", 1.6, "--clip_weight", 0.4)
    for name in ("nll", "tv", "clip"):
        assert doubled[name].item() == pytest.approx(2 * plain[name].item())


BAD = [
    (["--method", "mine"], "--method", "module:function"),
    (["--method", "nowhere:loss"], "--method", "nowhere.py belongs in the current directory"),
    (["--method", "own_file:missing"], "--method", "missing"),
    (["--method", "own_file:number"], "--method", "own_file:number"),
    (["--method", "own_file:typo"], "--method", "lr_imge"),
    (["--method", "broken:loss"], "--method", "broken:loss"),
    (["--method", "own_file:scalar", "--batch_real", "64", "--no_compile"], "--method", "(10,)"),
    (["--method", "own_file:few"], "--method", "(z_syn, z_real, options)"),
    (["--method", "own_file:nothing", "--batch_real", "64", "--no_compile"], "--method", "no terms"),
    (["--method", "own_file:whole", "--batch_real", "64", "--no_compile"], "--method", "floats"),
    (["--method", "own_file:taken", "--batch_real", "64", "--no_compile"], "--method", "'ce'"),
    (["--method", "own_file:fixed", "--batch_real", "64", "--no_compile"], "--method", "no term"),
    (["--nll_weight", "0", "--tv_weight", "0", "--clip_weight", "0"], "--nll_weight", "--tv_weight"),
    (["--method", "herding", "--Iteration", "1"], "--Iteration 1", "herding"),
    (["--method", "DM", "--soft_labels", "0.5"], "--soft_labels 0.5", "--method DM"),
    (["--method", "random", "--soft_labels", "1"], "--soft_labels 1", "--method random"),
    (["--Iteration", "0", "--soft_labels", "1"], "--soft_labels 1", "--Iteration 0"),
    (["--method", "herding", "--ipc", "60", "--aug"], "--ipc 60", "240"),
    (["--model", "ConvNetBN"], "--model ConvNetBN", "--method DM"),
    (["--method", "DM", "--model", "ConvNetBN", "--batch_real", "140"], "--model ConvNetBN", "--batch_real 13"),
]


@pytest.mark.parametrize("flags, named, also", BAD, ids=[" ".join(flags) for flags, _, _ in BAD])
def test_bad_input_is_one_line(flags, named, also, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_file.py").write_text(
        "from utils.methods import Method\nnumber = 3\nscalar = lambda z_syn, z_real, options: z_syn.mean()\n"
        "nothing = lambda z_syn, z_real, options: {}\nfew = lambda z_syn, z_real: z_syn.mean()\n"
        "whole = lambda z_syn, z_real, options: z_syn.argmax(-1).sum(-1)\n"
        "taken = lambda z_syn, z_real, options: {'ce': z_syn.mean((1, 2))}\n"
        "fixed = lambda z_syn, z_real, options: z_real.mean((1, 2))\n"
        "typo = Method(scalar, recipe={'lr_imge': 1})\n")
    (tmp_path / "broken.py").write_text("def loss(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["BACON_digits.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        experiment.main("", dataset="digits", model="ConvNetW32")
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(error) == 1 and error[0].startswith("BACON_digits.py: error: "), error
    assert named in error[0] and also in error[0]
    assert not list(tmp_path.rglob("*.pt"))


def test_own_objective_of_the_readme(tmp_path):
    """README's file and command as they stand, on small settings; DM's recipe holds, with BACON's terms."""
    section = (ROOT / "README.md").read_text().split("## Your own objective")[1]
    block = re.search(r"```python\n(.*?)```", section, re.S).group(1)
    assert len(block.strip().splitlines()) < 15
    (tmp_path / "mine.py").write_text(block)
    command = shlex.split(re.search(r"python3 -u (BACON_digits.py --method mine:.*)", section).group(1))
    run_script(CODE / command[0], *command[1:], *TINY, "--save_path", "result", cwd=tmp_path)
    record = storage.load(next((tmp_path / "result").glob("res_mine.*ipc.pt")))
    recipe = methods.METHODS["DM"].recipe | {"model_train_steps": 1}  # TINY gives that flag
    assert {name: record["meta"]["options"][name] for name in recipe} == recipe
    assert record["meta"]["formation"] == 1 and record["meta"]["method"].startswith("mine:")


def test_own_function_is_the_built_in_one(digits, make_options, tmp_path, monkeypatch):
    """The same objective, given as a tensor from a file of one's own, gives the same images."""
    (tmp_path / "own_objective.py").write_text(
        "from utils.losses import mean_matching\n\n\ndef idm(z_syn, z_real, options):\n"
        "    return mean_matching(z_syn, z_real)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sets = []
    for method in ("own_objective:idm", "IDM", "BACON"):
        distillation = Distillation(digits(), make_options("--method", method, "--syn_ce"))
        distillation.step(0)
        sets.append(distillation.images)
    assert torch.equal(sets[0], sets[1]) and not torch.equal(sets[0], sets[2])


def test_terms_may_differ_from_call_to_call(digits, make_options, tmp_path, monkeypatch):
    """And a loss that is not finite is found all the same."""
    (tmp_path / "changing.py").write_text(
        "calls = []\n\n\ndef terms(z_syn, z_real, options):\n    calls.append(None)\n"
        "    mean = z_syn.mean((1, 2))\n"
        "    return [{'a': mean}, {'a': mean, 'b': mean}, {'b': mean / 0}][len(calls) - 1]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    distillation = Distillation(digits(), make_options("--method", "changing:terms", "--train_net_num", 1))
    assert distillation.step(0).keys() | {"b"} == distillation.step(1).keys()
    distillation.check_finite()
    with pytest.raises(UserError, match=r"iteration 2: the loss of class '0' \(b (-?inf|nan)\)"):
        distillation.step(2)
        distillation.check_finite()


def blobs():
    """Three groups of 40, 30 and 20 points around distant centres."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0, 0], [20, 0], [0, 20]], [40, 30, 20], axis=0)
    return torch.from_numpy(centres + rng.standard_normal((90, 2)))


@pytest.mark.parametrize("choose", [selections.herding, selections.k_center, selections.k_means])
def test_choices_are_distinct_and_repeatable(choose):
    for count in (1, 3, 90):
        chosen = choose(blobs(), count, 0)
        assert len(set(chosen.tolist())) == count and set(chosen.tolist()) <= set(range(90))
        assert (chosen == choose(blobs(), count, 0)).all()


@pytest.mark.parametrize("choose", [selections.herding, selections.k_center, selections.k_means])
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_choices_are_distinct_among_equals(choose):
    points = torch.tensor([[0.0, 1.0], [3.0, 2.0]]).repeat_interleave(5, dim=0)
    assert len(set(choose(points, 4, 0).tolist())) == 4


@pytest.mark.parametrize("choose", [selections.k_center, selections.k_means])
def test_every_group_is_represented(choose):
    assert {np.searchsorted([40, 70], k, side="right") for k in choose(blobs(), 3, 0)} == {0, 1, 2}


def test_herding_is_greedy_in_the_mean():
    points, chosen = blobs().numpy(), []
    for _ in range(12):
        means = [np.inf if k in chosen else
                 np.linalg.norm(points[[*chosen, k]].mean(axis=0) - points.mean(axis=0)) for k in range(90)]
        chosen.append(int(np.argmin(means)))
    assert selections.herding(blobs(), 12, 0).tolist() == chosen


def test_k_center_takes_the_farthest():
    points = torch.tensor([[0.0], [1.0], [4.0], [5.0], [11.0]])  # of mean 4.2
    assert selections.k_center(points, 4, 0).tolist() == [2, 4, 0, 1]


def test_selection_is_by_the_features_of_a_trained_network(digits, make_options):
    data = digits(torch.float64)
    flags = ["--method", "herding", "--ipc", 3, "--model_train_steps", 2, "--trained_bs", 64]
    engine = Distillation(data, make_options(*flags))
    member, = engine.pool.members
    assert member.seen == 128
    for rows, images in zip(data.class_rows, engine.images, strict=True):
        chosen = selections.herding(member.network.embed(data.batch(rows)), 3, 0)
        assert torch.equal(images, data.batch(rows[chosen]))


@pytest.mark.parametrize("method", ["random", "herding", "kcenter", "kmeans"])
def test_a_selection_is_a_set_of_real_images(digits, make_options, method):
    """Each stored image is a real one of its class, none twice; with --aug, each tile is one."""
    data = digits(torch.float64)
    for flags in ([], ["--aug"]):
        args = make_options("--method", method, "--ipc", 3, "--model_train_steps", 2, *flags)
        images = Distillation(data, args).images
        assert images.shape == (10, 3, 1, 16, 16)
        if args.aug:
            small = torch.nn.functional.avg_pool2d(data.normalise(data.images), 2)
            real = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
            images = expand_classes(images)
        else:
            real = data.normalise(data.images)
        for k in range(10):
            distance = torch.cdist(images[k].flatten(1), real[data.class_rows[k]].flatten(1))
            assert distance.min(dim=1).values.max() < 1e-6
            if method != "random" or not args.aug:
                assert len(set(distance.argmin(dim=1).tolist())) == len(images[k])


def test_saved_selection_is_read_like_any_set(tmp_path):
    flags = [*TINY, "--Iteration", 0, "--method", "kmeans", "--aug", "--ipc", 2, "--save_path", tmp_path]
    experiment.run(options.parse_options("", [str(flag) for flag in flags], dataset="digits"))
    path = tmp_path / "res_kmeans_digits_ConvNetW32_2ipc.pt"
    images, labels = utils.load_synthetic(path)
    assert images.shape == (80, 1, 16, 16) and labels.bincount().tolist() == [8] * 10
    assert storage.load(path)["meta"]["iteration"] == [0]


def test_a_network_that_diverged_is_named_at_its_place(make_options, monkeypatch):
    """Its features or soft labels are not taken."""
    monkeypatch.setattr(pool.Pool, "train", lambda self, turn: [
        parameter.data.fill_(float("nan")) for member in self.members for parameter in member.network.parameters()])
    real = data.load("digits", "")
    method = next(name for name, method in methods.METHODS.items() if method.select)
    with pytest.raises(UserError, match=rf"--method {method}: .* not finite; choose a lower --lr_net"):
        Distillation(real, make_options("--method", method, "--Iteration", 0))
    distillation = Distillation(real, make_options("--soft_labels", 0.5, "--Iteration", 1))
    distillation.pool.train(turn=0)
    with pytest.raises(UserError, match=r"--soft_labels 0\.5: .* not finite"):
        experiment.evaluate_set(distillation, 1, ["ConvNetW32"], on_epoch=lambda: None)
