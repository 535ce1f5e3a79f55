"""The published commands run unmodified, --published stands for them, and the defaults are those of the scripts."""

import contextlib
import functools
import io
import re
from collections import Counter

import pytest

import formats
from conftest import ROOT, SHARED, SHORT, TINY, call_script, needs_shared_data
from utils import experiment, options, published, storage
from utils.system.errors import UserError

ALL = [line.split()[2:] for line in (ROOT / "Command.txt").read_text().splitlines() if line.startswith("python3 -u")]
PUBLISHED = [command for command in ALL if "--method" not in command]


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


@needs_shared_data
def test_published_command_on_real_data(tmp_path):
    command = next(command for command in PUBLISHED if command[:7:2] == ["BACON_mnist.py", "MNIST", "ConvNet", "10"])
    short = [*SHORT, "--Iteration", 1, "--num_eval", 1]
    call_script(*command, *short, "--data_path", SHARED / "data", "--save_path", tmp_path)
    accuracy, = storage.load(tmp_path / "res_BACON_MNIST_ConvNetW32_10ipc.pt")["accs_all_exps"]["ConvNetW32"]
    assert accuracy > 0.2  # after three epochs


def test_defaults_are_those_of_each_published_script(fixtures, tmp_path):
    """num_eval is 1 in BACON's CIFAR-10 script, and 20 in all others. Only the CIFAR-10 scripts of BACON and IDM
    select real images at --ipc 1."""
    for script, expected in (("BACON_cifar10.py", (1, 2560)), ("BACON_SVHN.py", (20, 0)), ("BACON_tiny.py", (20, 0)),
                             ("BACON_cifar10.py --method IDM", (20, 2560)), ("BACON_cifar10.py --method DM", (20, 0))):
        text = re.sub(r"\s+", " ", call_script(*script.split(), "--help").stdout)
        values = tuple(int(re.search(rf"--{flag} N .*?\(default: (\d+)\)", text).group(1))
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


def own_defaults(script: str) -> dict:
    """The defaults of a script for published data that are not those of all."""
    return {"by_method": {"BACON": {"num_eval": 1}}, "ipc1_real": 2560} if script == "BACON_cifar10.py" else {}


@pytest.mark.parametrize("command", [command for command in PUBLISHED if command[6] == "10"],
                         ids=lambda command: command[0])
def test_help_shows_the_published_command(command):
    shown, = re.findall(r"^    python3 -u (.*)$", call_script(command[0], "--help").stdout, re.M)
    script, *flags = shown.split()
    assert script == command[0]
    own = own_defaults(script)
    assert vars(options.parse_options("", flags, dataset=command[2], **own)) == vars(
        options.parse_options("", command[1:], **own))


def test_every_line_of_commands_is_what_published_stands_for(capsys):
    """With the defaults of its script, of which CIFAR-10's differ; and every setting has a line."""
    cells = set()
    for script, *flags in ALL:
        own = own_defaults(script)
        whole = options.parse_options("", flags, **own)
        cell = [f"--{name}={getattr(whole, name)}" for name in ("method", "dataset", "ipc")]
        assert vars(options.parse_options("", ["--published", *cell], **own)) == vars(whole)
        assert vars(options.published_options(whole.method, whole.dataset, whole.ipc)) == vars(whole)
        cells.add((whole.method, whole.dataset, whole.ipc))
    assert len(cells) == len(ALL) == 17 + 18 + 19
    assert cells == {(method, dataset, ipc) for method, sets in published.SETTINGS.items()
                     for dataset, found in sets.items() for ipc in found}


def test_flags_beside_published_come_first():
    """Wherever they stand, and turned off, too; they are all that differs."""
    plain = vars(options.parse_options("", ["--published", "--ipc", "10"]))
    for flags in (["--lr_img", "3", "--no_aug", "--published"], ["--published", "--no-aug", "--lr_img=3"]):
        ours = vars(options.parse_options("", ["--ipc", "10", *flags]))
        assert ours == plain | {"lr_img": 3, "aug": False}
    assert vars(options.parse_options("", ["--ipc", "10", "--published"], lr_img=7, num_eval=1)) == plain


@pytest.mark.parametrize("flags, named", [
    (["--ipc", "7"], ["--ipc 7", "--dataset MNIST --ipc 1, 10, 50; "]),
    (["--dataset", "digits"], ["--dataset digits", "--dataset TinyImageNet --ipc 1, 10"]),
    (["--method", "DM", "--dataset", "folder"], ["--dataset CIFAR10 --ipc 1, 10, 50, 100"]),
    (["--method", "random"], ["--method random", "there is --method BACON, IDM, DM"])])
def test_what_is_not_published_is_one_line_with_what_is(flags, named):
    with pytest.raises(UserError, match="--published: nothing is published for") as refused:
        options.parse_options("", ["--published", *flags])
    error, = str(refused.value).splitlines()
    assert all(words in error for words in named)


def test_compare_has_one_setting_for_all(tmp_path):
    for flags in (["BACON --published"], ["BACON", "--published"]):
        error, = call_script("compare.py", "--methods", *flags, expect=2).stderr.splitlines()
        assert "--published" in error and "leave it out" in error


def differences(*flags, **defaults) -> str:
    """What a run of these flags says of the published setting."""
    made = options.parse_options("", [str(flag) for flag in flags], **defaults)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        experiment.say_differences(made)
    return out.getvalue()


def test_a_run_says_in_what_it_differs_from_the_published_setting():
    said = differences("--ipc", 10)
    note, *parts, rest = re.split(r": (?=--)|, |; ", said.strip())
    assert note == "note: not the published setting (published -> here)" and said.count("\n") == 1
    assert rest == "--published sets all that is not given"
    assert set(parts) == {
        "--model ConvNet -> ConvNet_GBN", "--aug on -> off", "--lr_img 0.2 -> 1", "--syn_ce on -> off",
        "--ce_weight 0.5 -> 0.1", "--embed_last 1000 -> -1", "--train_net_num 1 -> 2", "--net_decay on -> off"}


@pytest.mark.parametrize("flags, named", [
    ([], ""),
    (["--seed", 3, "--num_exp", 1, "--num_eval", 2, "--max_batch", 8, "--eval_start", "--save_path", "x"], ""),
    (["--ipc1_real", 100], ""),  # which has no effect with --aug
    (["--im_size", 28], ""), (["--im_size", 14], "--im_size 28 -> 14"),
    (["--precision", "bf16"], "--precision unset -> bf16"),
    (["--eval_interval", 7, "--validation"], "--validation off -> on, --eval_interval 100 -> 7")])
def test_flags_that_move_numbers_are_named(flags, named):
    said = differences("--published", "--ipc", 10, *flags)
    assert said == (f"note: not the published setting (published -> here): {named}; --published sets all that is "
                    "not given\n" if named else "")


def test_published_from_the_command_line(fixtures, tmp_path):
    """A short run says at its start what it shortens; the rest is the published command, and so is what it leaves."""
    short = ["--Iteration", 1, "--num_exp", 1, "--num_eval", 1, "--epoch_eval_train", 0, "--model", "convnetw32",
             "--batch_real", 16, "--trained_bs", 16]
    done = call_script("BACON_mnist.py", "--published", "--ipc", 1, *short, "--data_path", fixtures("MNIST"),
                       "--save_path", tmp_path)
    note = done.stdout.splitlines()[0]
    assert note.startswith("note: not the published setting") and note.count(" -> ") == 1 + 5
    assert all(flag in note for flag in ("--Iteration 20000 -> 1", "--epoch_eval_train 1000 -> 0",
                                         "--model ConvNet -> ConvNetW32"))
    used = storage.load(tmp_path / "res_BACON_MNIST_ConvNetW32_1ipc.pt")["meta"]["options"]
    whole = vars(options.published_options("BACON", "MNIST", 1))
    assert {name for name in whole if name != "resume" and str(used[name]) != str(whole[name])} == {
        "Iteration", "num_exp", "num_eval", "epoch_eval_train", "model", "batch_real", "trained_bs", "data_path",
        "save_path"}


def test_what_is_not_published_differs_from_nothing():
    for flags in (["--dataset", "digits"], ["--method", "random"], ["--ipc", 7], ["--method", "kmeans"]):
        assert not differences(*flags)


def test_benchmark_and_compare_start_from_the_published_command():
    command, = (command for command in PUBLISHED if command[:7:2] == ["BACON_mnist.py", "MNIST", "ConvNet", "10"])
    published = vars(options.parse_options("", command[1:]))
    assert vars(options.parse_options("", [], **options.PUBLISHED_MNIST)) == published
