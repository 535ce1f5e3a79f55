"""What the scripts do, called from Python: as a module, as a package, in a notebook, and where systems lack things."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import venv
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch

import formats
import utils
from conftest import CODE, ROOT, TINY, call_script
from utils import api, command_line, defaults, experiment, options, pool, storage
from utils.commands import distil as distil_command
from utils.data import sources
from utils.methods import METHODS
from utils.system import device, files, logs
from utils.system.errors import UserError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = "BACON_digits_ConvNetW32_1ipc"
NOTEBOOK = ROOT / "docs" / "distil_the_digits.ipynb"
HEAVY = ["torchvision", "kornia", "sklearn", "scipy", "matplotlib", "jinja2", "tensorboard", "tqdm"]  # to import


def as_keywords(flags: list[str]) -> dict:
    """Flags that each have a value, as keyword arguments of the type that a user would write."""
    return {flag.removeprefix("--"): int(value) if value.isdigit() else value
            for flag, value in zip(flags[::2], flags[1::2], strict=True)}


SHORT = as_keywords(TINY)
PROTOCOL = {"model": "ConvNetW32", "num_eval": 2, "epoch_eval_train": 3}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """What `distil` returns of a tiny run."""
    return utils.distil("digits", **SHORT, save_path=tmp_path_factory.mktemp("python") / "result")


def in_new_process(code: str, *arguments, cwd: Path = CODE, python: str | Path = sys.executable) -> str:
    """What code prints in a process of its own."""
    done = subprocess.run([python, "-c", code, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_distil_is_the_script(distilled, tmp_path):
    call_script("BACON_digits.py", *TINY, "--save_path", tmp_path)
    saved, own = storage.load(tmp_path / f"res_{NAME}.pt"), storage.load(distilled.path)
    assert torch.equal(own["data"][0][0], saved["data"][0][0])
    assert distilled.accuracies == saved["accs_all_exps"] == own["accs_all_exps"]
    images, labels = utils.load_synthetic(distilled.path)
    assert torch.equal(distilled.images, images) and torch.equal(distilled.labels, labels)
    assert distilled.images.shape == (40, 1, 16, 16) and distilled.meta["options"]["aug"]
    pixels = distilled.pixels()
    assert pixels.shape == images.shape and 0 <= pixels.min() < pixels.max() <= 1
    assert "tensor" not in repr(distilled)


def test_evaluate_is_the_script(distilled, tmp_path, monkeypatch):
    """Nothing is written but where that is asked for."""
    monkeypatch.chdir(tmp_path)
    found = utils.evaluate(distilled.images, distilled.labels, dataset="digits", **PROTOCOL)
    assert list(tmp_path.iterdir()) == []
    torch.save([distilled.images, distilled.labels], "pair.pt")
    flags = [word for name, value in PROTOCOL.items() for word in (f"--{name}", value)]
    call_script(str(CODE / "evaluate.py"), "--synthetic", "pair.pt", "--dataset", "digits", *flags, cwd=tmp_path)
    line, = files.read_json_lines(tmp_path / "result" / "evaluate.jsonl")
    assert found == {"ConvNetW32": line["accuracies"]} and len(line["accuracies"]) == 2
    pixels = (255 * distilled.pixels()).byte().numpy()
    kept = utils.evaluate(pixels, distilled.labels.numpy(), dataset="digits", pixels="0..255", save_path="kept",
                          **PROTOCOL)
    assert files.read_json_lines(tmp_path / "kept" / "evaluate.jsonl")[0]["accuracies"] == kept["ConvNetW32"]


@pytest.mark.parametrize("flags, named", [
    ({"ipc": 0}, "--ipc: '0' is not a whole number"), ({"ipcs": 1}, "unknown keyword ipcs; did you mean ipc?"),
    ({"ipc": True}, "--ipc: 'True'"), ({"aug": "no"}, "aug='no': neither True nor False"),
    ({"dataset": "MINST"}, "did you mean MNIST?"), ({"method": lambda *_: None}, "at the top level of a module"),
    ({"method": "nowhere:loss"}, "cannot import 'nowhere:loss'"), ({"pool_stages": [1, -1]}, "'-1' is not"),
    ({"pool_stages": [100]}, "--pool_stages: it chooses among"), ({"help": True}, "unknown keyword help"),
    ({"device": "tpu"}, "--device: invalid choice"), ({"data_path": ""}, "the path is empty")])
def test_what_distil_refuses(flags, named, tmp_path):
    with pytest.raises(UserError) as refused:
        utils.distil(**{"dataset": "digits", "save_path": tmp_path / "result", **flags})
    assert isinstance(refused.value, ValueError) and named in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_what_evaluate_refuses(distilled):
    images, labels = distilled.images, distilled.labels
    for pair, flags, named in (
            ((images[:3], labels), {}, "(3, 1, 16, 16) with labels (40,)"),
            ((images.to(torch.uint16), labels), {}, "its images are torch.uint16"),
            ((images, None), {}, "images, labels:"),
            ((np.ma.masked_less(images.numpy(), 0), labels), {}, "a masked array has values that are none"),
            ((images, np.ma.masked_equal(labels.numpy(), 3)), {}, "a masked array has values that are none"),
            ((distilled.pixels(), labels), {}, "say what they are with --pixels"),
            ((images, labels + 5), {}, "classes 5 to 14"),
            ((images, labels), {"synthetic": "a.pt"}, "unknown keyword synthetic"),
            ((images, labels), {"model": "ConvNetX"}, "ConvNetX")):
        with pytest.raises(UserError) as refused:
            utils.evaluate(*pair, dataset="digits", num_eval=1, epoch_eval_train=0, **flags)
        assert named in str(refused.value)


def test_keywords_stand_for_flags():
    parser = options.build_parser("", {})
    words = command_line.as_words(parser, {"ipc": 3, "aug": True, "zca": False, "compile": None, "tensorboard": False,
                                           "pool_stages": (1, 2), "save_path": Path("a b"), "lr_img": 0.1})
    assert words == ["--ipc=3", "--aug", "--no_zca", "--pool_stages", "1", "2", "--save_path=a b", "--lr_img=0.1"]
    assert command_line.as_words(parser, {"aug": np.bool_(True), "zca": np.bool_(False)}) == ["--aug", "--no_zca"]
    with pytest.raises(UserError, match="aug='False': neither"):
        command_line.as_words(parser, {"aug": "False"})


def test_lists_and_arrays_of_any_layout_are_a_set(distilled):
    images, labels = distilled.images, distilled.labels
    for pair in ((list(images), list(labels)), (list(images.numpy()), labels.tolist()), (images.tolist(), labels),
                 (images.flip(0).numpy()[::-1], labels.numpy().astype(">i8")),
                 (images.numpy().astype(">f4"), labels.flip(0).numpy()[::-1])):
        found, = api._saved(*pair)["data"]
        assert torch.equal(found[0], images) and torch.equal(found[1], labels)


@pytest.mark.parametrize("script", sorted(path.stem for path in CODE.glob("BACON_*.py")))
def test_a_data_set_has_the_defaults_of_its_script(script, monkeypatch):
    given = []
    monkeypatch.setattr(experiment, "run", given.append)
    for method in ("BACON", "DM"):
        call_script(f"{script}.py", "--method", method)
        assert options.parse_any("", ["--method", method, "--dataset", given[-1].dataset]) == given[-1]
    assert given[-1].dataset in sources.SOURCES and set(defaults.BY_DATASET) <= set(sources.SOURCES)


def test_command_needs_a_data_set(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bacon-distil", "--ipc", "1"])
    with pytest.raises(SystemExit) as end:
        distil_command.main()
    error, = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and error.startswith("bacon-distil: error: --dataset: name one of digits, MNIST")


def test_own_function_as_method_in_a_thread(tmp_path):
    """No signal handler can be set there."""
    left = []

    def run():
        left.append(utils.distil("digits", method=squared, save_path=tmp_path, **SHORT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert left[0].meta["method"] == f"{__name__}:squared" and left[0].path.exists()


def test_a_method_of_ones_own_is_found_by_its_name():
    assert api._name_of(squared) == f"{__name__}:squared" and api._name_of(SQUARED_DM) == f"{__name__}:SQUARED_DM"
    for other in (replace(SQUARED_DM), partial(squared), METHODS["random"]):
        with pytest.raises(UserError, match="at the top level of a module or notebook"):
            api._name_of(other)


def test_calls_in_two_threads_leave_standard_output_as_it_was():
    """The first to begin ends first."""
    before, first, second = sys.stdout, logs.above_bars(), logs.above_bars()
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None),
                 lambda: second.__exit__(None, None, None)):
        step()
    assert sys.stdout is before


def squared(z_syn, z_real, options):
    return (z_syn.mean(dim=1) - z_real.mean(dim=1)).square().sum(dim=-1)


SQUARED_DM = replace(METHODS["DM"], objective=squared)


@pytest.mark.parametrize("number, kind", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Exception)])
def test_signal_keeps_the_work(number, kind, distilled, tmp_path, monkeypatch):
    train = pool.Pool.train_member

    def interrupted(*arguments):
        monkeypatch.setattr(pool.Pool, "train_member", train)
        os.kill(os.getpid(), number)
        return train(*arguments)

    monkeypatch.setattr(pool.Pool, "train_member", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(kind, match='resume="auto"' if kind is KeyboardInterrupt else "stopped by SIGTERM") as stopped:
        utils.distil("digits", **SHORT, save_path=tmp_path)
    assert not isinstance(stopped.value, SystemExit) and signal.getsignal(number) is before
    assert torch.equal(utils.distil("digits", **SHORT, save_path=tmp_path, resume="auto").images, distilled.images)


class Cell(io.StringIO):
    """Where a notebook's output goes."""

    __module__ = "ipykernel.iostream"


def test_a_notebook_has_bars(monkeypatch):
    """And whole lines above them."""
    cell = Cell()
    monkeypatch.setattr(sys, "stdout", cell)
    monkeypatch.setattr(logs, "BAR_SECONDS", 0)
    with logs.above_bars(), logs.Progress("run", 10) as progress:
        progress.update(lambda: {"nll": 2.5}, steps=6)
        progress.bar.refresh()
        print("a line")
        progress.update()
    written = cell.getvalue()
    assert "run  60%" in written and "nll 2.5" in written
    assert "a line" in [part.strip() for part in written.replace("\n", "\r").split("\r")]


FEW = """
import contextlib, io, runpy, sys
from pathlib import Path
import torch
folder, *heavy = sys.argv[1:]
for name in heavy:
    sys.modules[name] = None  # so that its import fails

import utils, utils.losses, utils.networks
for script in sorted(Path().glob("*.py")):
    if script.name != "draw.py":  # whose subject is matplotlib
        sys.argv[:] = [str(script), "--help"]
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
            runpy.run_path(str(script), run_name="__main__")
        assert text.getvalue().startswith(f"usage: {script}"), script

del sys.modules["torchvision"]
images, labels = utils.load_synthetic("../Distilled/MNIST/BACON_ipc1.pt")
network = utils.networks.get_network("ConvNetW32", 1, 10, 28)
utils.losses.bacon_loss(network.embed(images[:20]), network.embed(images[20:])).backward()
found = utils.evaluate(images, labels, dataset="MNIST", data_path=folder, model="ConvNetW32", num_eval=1,
                       epoch_eval_train=1)
assert 0 <= found["ConvNetW32"][0] <= 1
for flags, package in (({"dataset": "digits"}, "scikit-learn"), ({"dataset": "MNIST", "zca": True}, "kornia")):
    try:
        utils.evaluate(images, labels, data_path=folder, **flags)
    except utils.UserError as error:
        assert f"{package} is needed" in str(error) and f"pip install {package}" in str(error), error
    else:
        raise AssertionError(package)
"""


def test_few_packages_are_needed(tmp_path):
    """The module and --help import none that takes long. Then a saved set, a loss, a network and an evaluation need
    torch, torchvision and numpy alone; what needs more says which package."""
    formats.write_idx(tmp_path, "MNIST", 4, 4)
    in_new_process(FEW, tmp_path, *HEAVY)


ELSEWHERE = """
import os, runpy, signal, sys
import torch
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1"):
    delattr(signal, name)
for name in ("O_NOFOLLOW", "O_NONBLOCK", "getuid", "sched_getaffinity"):
    delattr(os, name)
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_digits_without_what_windows_lacks(tmp_path, distilled):
    printed = in_new_process(ELSEWHERE, "BACON_digits.py", *TINY, "--save_path", tmp_path)
    assert "peak memory: not known on this system" in printed
    assert torch.equal(utils.load_synthetic(tmp_path / f"res_{NAME}.pt")[0], distilled.images)


def test_an_operation_that_mps_lacks_is_one_line():
    """In PyTorch's words."""
    words = ("The operator 'aten::grid_sampler_2d_backward' is not currently implemented for the MPS device. If you "
             "want this op to be added")
    with pytest.raises(UserError, match="PYTORCH_ENABLE_MPS_FALLBACK=1"), device.all_operations():
        raise NotImplementedError(words)
    with pytest.raises(NotImplementedError, match="of another kind"), device.all_operations():
        raise NotImplementedError("of another kind")


def test_a_link_in_place_of_a_lock_is_refused(tmp_path):
    (tmp_path / "others").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "others")
    with pytest.raises(UserError, match="lock: cannot be written"), files.locked(tmp_path):
        pass
    assert (tmp_path / "others").read_text() == "kept"


def test_package_lists_are_whole():
    """pyproject.toml has the packages of requirements.txt, the folders of the module, and commands that are there."""
    needed = {line.strip() for name in ("requirements.txt", "requirements-test.txt")
              for line in (ROOT / name).read_text().splitlines() if not line.startswith("-r")}
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert needed == {line for line in [*project["dependencies"], *extras] if not line.startswith("bacon-dd")}
    folders = {".".join(("bacon_dd", *path.parent.relative_to(CODE / "utils").parts))
               for path in (CODE / "utils").rglob("__init__.py")}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])
    for command in project["scripts"].values():
        assert callable(EntryPoint("", command.replace("bacon_dd", "utils"), "").load())


PACKAGED = """
import sys, bacon_dd, bacon_dd.methods
assert "utils" not in sys.modules and sys.prefix in bacon_dd.__file__
import utils
left = bacon_dd.distil("digits", ipc=1, Iteration=2, eval_interval=2, num_eval=1, epoch_eval_train=2)
print(left.path)
"""


@pytest.mark.slow
def test_wheel_in_an_empty_environment(tmp_path):
    """Beside a utils.py of the user's own. PyTorch and the rest are lent to it, so that nothing is downloaded."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path / "source"  # because building leaves files beside it
    shutil.copytree(CODE / "utils", source / "Code" / "utils")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path], check=True)
    wheel, = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv")
    subprocess.run([*pip, "--python", tmp_path / "venv", "install", "-q", "--no-deps", wheel], check=True)
    own, = (tmp_path / "venv").glob("lib/python*/site-packages")
    (own / "lent.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    work = tmp_path / "work"
    work.mkdir()
    (work / "utils.py").write_text("mine = 1\n")
    bin = tmp_path / "venv" / "bin"
    assert in_new_process(PACKAGED, cwd=work, python=bin / "python").splitlines()[-1] == f"result/res_{NAME}.pt"
    for command in (["bacon-distil", "--dataset", "digits", *TINY, "--save_path", "second"],
                    ["bacon-evaluate", "--synthetic", f"second/res_{NAME}.pt", "--num_eval", "1"],
                    ["bacon-compare", "--dataset", "digits", "--methods", "random", "--model", "ConvNetW32", "--ipcs",
                     "1", "--num_eval", "1", "--epoch_eval_train", "1", "--save_path", "compared"],
                    ["bacon-report", "second", "--quick", "--save_path", "report"]):
        done = subprocess.run([bin / command[0], *command[1:]], cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {"second", "compared", "report"} <= {path.name for path in work.iterdir()}
    assert "BACON on digits, IPC 1" in (work / "report" / "report.html").read_text()


def test_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    """As it stands, but that its results go elsewhere."""
    nbclient, nbformat = (pytest.importorskip(name) for name in ("nbclient", "nbformat"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("../Code", str(CODE))
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300,
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
