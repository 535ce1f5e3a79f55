"""compare.py as users run it: one table over methods, IPCs and seeds, and no run twice."""

import json
import shutil

import numpy as np
import pytest
import torch

import children
from conftest import SHORT, call_script, run_script
from utils import figures, options, pretrained, run_files, storage
from utils.commands import compare
from utils.system import files
from utils.system.errors import UserError

FLAGS = ["--dataset", "digits", *SHORT, "--ipcs", 1, 2, "--seeds", 0, 1]
METHODS = ["--methods", "random", "random --aug", "DM", "BACON --no-aug --tv_weight 0"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    done = run_script("compare.py", *METHODS, *FLAGS, "--save_path", folder)
    return folder, done.stdout


def sets(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("res_*.pt")}


def test_table_json_and_plot(compared):
    folder, printed = compared
    table, rows = (folder / "compare.md").read_text(), json.loads((folder / "compare.json").read_text())["rows"]
    assert table in printed and (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [(row["method"], row["ipc"]) for row in rows] == [(m, ipc) for ipc in (1, 2) for m in METHODS[1:]]
    for row, line in zip(rows, table.splitlines()[2:], strict=True):
        assert line.startswith(f"| {row['method']} | {row['ipc']} | {row['iterations']} | ConvNetW32 | ")
        assert f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f} | 4 |" in line
        assert [point["iteration"] for point in row["curve"]] == ([0] if "random" in row["method"] else [1, 2])
        assert row["mean"] == pytest.approx(row["curve"][-1]["mean"]) == pytest.approx(np.mean(row["accuracies"]))


def test_plot_is_in_percent(monkeypatch):
    """Accuracy and its deviation against iteration; a line for what is not iterated."""
    drawn, cell = [], {"ipc": 1, "network": "ConvNet"}
    monkeypatch.setattr(figures, "save_png", lambda figure, path: drawn.append(figure))
    curve = [{"iteration": 1, "mean": 0.5, "std": 0.125, "seconds": 8.0},
             {"iteration": 2, "mean": 0.75, "std": 0.0, "seconds": 16.0}]
    compare.plot("digits", [{"method": "random", "iterations": 0, "mean": 0.25, **cell},
                            {"method": "DM", "iterations": 2, "curve": curve, **cell}], "compare.png")
    axes, = drawn[0].axes
    assert list(axes.lines[0].get_ydata()) == [25, 25]
    assert axes.lines[1].get_xydata().tolist() == [[1, 50], [2, 75]]
    assert axes.collections[0].get_segments()[0].tolist() == [[1, 37.5], [1, 62.5]]


def test_seconds_of_networks_come_before_those_of_the_images(monkeypatch):
    """In the plot and in the table, which says them once; a file of an older version does not know them."""
    drawn, curve = [], [{"iteration": 2, "mean": 0.75, "std": 0.0, "seconds": 16.0}]
    row = {"ipc": 1, "network": "ConvNet", "method": "FastBACON", "iterations": 2, "curve": curve, "seconds": 16.0,
           "accuracies": [0.75]}
    monkeypatch.setattr(figures, "save_png", lambda figure, path: drawn.append(figure))
    compare.plot("digits", [row | {"network_seconds": 100.0}], "compare.png", against="seconds")
    axes, = drawn[0].axes
    assert axes.lines[0].get_xydata().tolist() == [[116, 75]] and axes.get_xlabel() == "seconds"
    assert axes.collections[-1].get_segments()[0].tolist() == [[0, 75], [100, 75]]
    cells = [compare.table("digits", [row | more]).splitlines()[-1].split(" | ")[-1]
             for more in ({}, {"network_seconds": 100.0}, {"network_seconds": None})]
    assert cells == ["16 |", "16, and 100 once for networks |", "16, and unknown once for networks |"]


def test_each_cell_has_its_own_options(compared):
    folder, _ = compared
    paths = {"random_1ipc_seed0/res_random": (0, False, 0), "random_aug_2ipc_seed1/res_random": (1, True, 0),
             "DM_2ipc_seed1/res_DM": (1, False, 2), "BACON_no-aug_tv_weight_0_1ipc_seed1/res_BACON": (1, False, 2)}
    assert len(sets(folder)) == 2 * 16
    for path, expected in paths.items():
        meta = storage.load(folder / f"{path}_digits_ConvNetW32_{path.split('ipc_')[0][-1]}ipc.pt")["meta"]
        assert (meta["seed"], meta["options"]["aug"], meta["options"]["Iteration"]) == expected


def test_flags_of_different_values_have_different_folders(tmp_path):
    shared = options.build_parser("", {}).parse_args(["--save_path", str(tmp_path)])
    folders = {compare.cell(f"BACON {flags}", 1, 0, shared).save_path.name
               for flags in ("--embed_last 1", "--embed_last -1", "--aug", "--no-aug", "--lr_img 0.1", "--lr_img 01")}
    assert len(folders) == 6


def test_finished_runs_are_not_repeated(compared):
    folder, _ = compared
    before, table = sets(folder), (folder / "compare.md").read_text()
    missing, cut = folder / "DM_1ipc_seed0", folder / "DM_2ipc_seed1" / "res_DM_digits_ConvNetW32_2ipc.pt"
    for path in missing.glob("res_*.pt"):
        path.unlink()
    record = storage.load(cut)
    record["meta"]["iteration"] = [1]  # as a run leaves it that is stopped between its evaluations
    storage.save(cut, record)
    done = call_script("compare.py", *METHODS, *FLAGS, "--save_path", folder)
    assert done.stdout.count("== run") == 2 and "== run 2/2: DM, IPC 2, seed 1" in done.stdout
    after = sets(folder)
    assert {path.parent for path in before if after[path] != before[path]} == {missing, cut.parent}
    accuracies = [line.split("|")[5] for line in table.splitlines()]
    assert accuracies == [line.split("|")[5] for line in (folder / "compare.md").read_text().splitlines()]


def test_budget_in_minutes(tmp_path):
    flags = ["--dataset", "digits", *SHORT, "--ipcs", 1, "--methods", "random", "BACON", "--save_path", tmp_path]
    printed = call_script("compare.py", *flags, "--minutes", 0.001).stdout  # of which each has time for a few
    budget = json.loads((tmp_path / "budget.json").read_text())
    random, bacon = json.loads((tmp_path / "compare.json").read_text())["rows"]
    assert budget["iterations"] == {"BACON, IPC 1": bacon["iterations"]} and budget["options"]["minutes"] == 0.001
    assert random["iterations"] == 0 and f"BACON, IPC 1: {bacon['iterations']} iterations in 0.001 min" in printed
    assert bacon["options"]["compile"] is False, "what was timed is what runs"
    assert "== run" not in call_script("compare.py", *flags, "--minutes", 0.001).stdout
    for changed in (["--minutes", 5.0], ["--minutes", 0.001, "--outer_loop", 2]):
        refused, = call_script("compare.py", *flags, *changed, expect=2).stderr.splitlines()
        assert "budget.json was timed with" in refused
        assert f"{changed[-2]} " in refused and f"(not {changed[-1]})" in refused
    (tmp_path / "budget.json").write_text("{")
    refused, = call_script("compare.py", *flags, "--minutes", 0.001, expect=2).stderr.splitlines()
    assert "budget.json: damaged; remove it" in refused


def test_networks_are_in_the_budget(tmp_path, monkeypatch):
    shared = options.build_parser("", {}).parse_args(["--save_path", str(tmp_path)])
    with_networks, without = (compare.cell(method, 1, 0, shared) for method in ("BACON --pool networks", "BACON"))
    monkeypatch.setattr(pretrained, "seconds", lambda options: 30.0)
    assert compare.left_for_images(with_networks, 2) == 1.5 and compare.left_for_images(without, 2) == 2
    with pytest.raises(UserError, match=r"--minutes 0.5: training the networks of networks took 0.5 minutes"):
        compare.left_for_images(with_networks, 0.5)


def test_networks_that_are_gone_since_do_not_keep_a_table_back(tmp_path):
    flags = ["--dataset", "digits", *SHORT, "--ipcs", 1, "--methods", "BACON", "--num_eval", 1, "--pool",
             tmp_path / "networks" / "digits_ConvNetW32", "--save_path", tmp_path]
    call_script("pretrain.py", "--dataset", "digits", "--model", "ConvNetW32", "--networks", 1, "--steps", 2,
                "--stages", 2, "--trained_bs", 16, "--save_path", tmp_path / "networks")
    first = call_script("compare.py", *flags).stdout
    shutil.rmtree(tmp_path / "networks")
    assert " once for networks" in first and "unknown once" not in first
    assert "and unknown once for networks" in call_script("compare.py", *flags).stdout


def test_networks_of_unknown_time_are_said(tmp_path, monkeypatch, capsys):
    shared = options.build_parser("", {}).parse_args(["--save_path", str(tmp_path)])
    monkeypatch.setattr(pretrained, "seconds", lambda options: None)
    assert compare.left_for_images(compare.cell("BACON --pool networks", 1, 0, shared), 2) == 2
    assert "do not say how long they were trained" in capsys.readouterr().out


def test_comparison_that_was_killed_is_completed(tmp_path):
    """While its last run wrote what an evaluation leaves, and after records were deleted."""
    flags = ["--dataset", "digits", *SHORT, "--methods", "random", "BACON", "--ipcs", 1,
             "--save_path", tmp_path / "all"]
    last = children.Events(children.kill, "picture", 3)  # of one evaluation of random, two of BACON
    children.run(tmp_path, *flags, script="compare.py", prepare=last, expect=-9)
    cell = tmp_path / "all" / "BACON_1ipc_seed0"
    table = children.run(tmp_path, *flags, script="compare.py").output()
    assert "== run 1/1: BACON" in table and "resumed: 0 of 1 experiments" in table and "nan" not in table
    left = {path.name for path in cell.iterdir()}
    assert {"res_BACON_digits_ConvNetW32_1ipc_best.pt", "vis_BACON_digits_ConvNetW32_1ipc_exp0_iter2.png"} <= left
    shutil.rmtree(cell / "BACON_digits_ConvNetW32_1ipc")
    again = children.run(tmp_path, *flags, script="compare.py").output()
    assert [line.split("|")[5] for line in again.splitlines() if line.startswith("| BACON")] == [
        line.split("|")[5] for line in table.splitlines() if line.startswith("| BACON")]


def test_second_comparison_in_a_folder_is_refused(compared):
    folder, _ = compared
    with files.locked(folder):
        error, = call_script("compare.py", *METHODS, *FLAGS, "--save_path", folder, expect=2).stderr.splitlines()
    assert f"another run is writing to {folder}" in error


def test_flags_without_effect_are_named_once(compared):
    folder, _ = compared
    dead = ["--net_train_real", "--mismatch_lambda", 0]
    done = call_script("compare.py", *METHODS, *FLAGS, *dead, "--save_path", folder)
    assert done.stderr == ("compare.py: note: --net_train_real, --mismatch_lambda: no effect, as in the published "
                           "scripts\n")


@pytest.mark.parametrize("flags, named", [
    (["--methods", "DM", "--Iteration", 3], "--Iteration 2 (not 3)"),
    (["--methods", "DM", "BACONS"], "BACONS"),
    (["--methods", "DM", "--ipc", 5], "--ipcs"),
    (["--methods", "DM", "--seed", 5], "--seeds"),
    (["--methods", "DM", "--method", "DM"], "--methods"),
    (["--methods", "DM", "--ipcs", 1, 300], "--ipc 300"),
    (["--methods", "DM", "--ipcs", 0], "--ipcs"),
    (["--methods", "DM --ipc 5"], "give --ipcs"),
    (["--methods", "BACON --method DM"], "give --methods"),
    (["--methods", "DM", "BACON --seed=3"], "give --seeds"),
])
def test_bad_input_is_one_line_before_anything_runs(compared, flags, named):
    folder, _ = compared
    before = sets(folder)
    done = call_script("compare.py", *FLAGS, "--save_path", folder, *flags, expect=2)
    assert len(done.stderr.splitlines()) == 1 and named in done.stderr and "== run" not in done.stdout
    assert sets(folder) == before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"iterations": {"a": "3"}, "options": {}}', b"[" * 10**5, b"\xff",
                                     b'{"iterations": {"a": -1}, "options": {}}',
                                     b'{"iterations": [1], "options": {}}'])
def test_a_damaged_budget_is_one_line(content, tmp_path):
    (tmp_path / "budget.json").write_bytes(content)
    with pytest.raises(UserError, match=r"budget\.json: damaged; remove it") as error:
        compare.kept_budget(tmp_path / "budget.json", {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [
    *({name: value} for name, values in {
        "accuracies": (None, [], [2.0, 0.5], [float("nan")] * 2, [[0.5]] * 2, ["0.5"] * 2, [0.5, 0.25]),
        "seconds": (float("nan"), float("inf"), -1.0, 10**400, [5.0], None), "model": (None, 5, "ConvNet"),
        "iteration": (1, 3, -1, "2", 10**400), "experiment": ([], True), "best_iteration": ({},)}.items()
      for value in values),
    b"", b"\n", b"{}\n", b"5\n", b"\xff", b"[" * 10**5], ids=lambda change: str(change)[:40])
def test_damaged_metrics_are_refused(compared, change, tmp_path):
    """They make no wrong number of the table."""
    shutil.copytree(compared[0] / "DM_2ipc_seed1", tmp_path / "DM_2ipc_seed1")
    shared = options.build_parser("", {"dataset": "digits"}).parse_args([*SHORT, "--save_path", str(tmp_path)])
    cell = compare.cell("DM", 2, 1, shared)
    path = run_files.metrics_path(run_files.run_folder(cell))
    assert len(compare.summarise("DM", [cell])) == 1
    if isinstance(change, dict):
        *_, last = files.read_json_lines(path)
        change = "".join([*path.read_text().splitlines(True)[:-1], json.dumps(last | change)]).encode()
    path.write_bytes(change)
    with pytest.raises(UserError, match="damaged, or not what a run leaves"), run_files.undamaged(tmp_path):
        compare.summarise("DM", [cell])


def test_damaged_metrics_are_one_line(compared, tmp_path):
    shutil.copytree(compared[0], tmp_path, dirs_exist_ok=True)
    path, = tmp_path.glob("DM_2ipc_seed1/DM_*/metrics.jsonl")
    path.write_text("{}")
    table = (tmp_path / "compare.md").read_bytes()
    line, = call_script("compare.py", *METHODS, *FLAGS, "--save_path", tmp_path, expect=2).stderr.splitlines()
    assert f"{path.parent}: damaged" in line and (tmp_path / "compare.md").read_bytes() == table


def test_a_foreign_set_in_place_of_ours_is_one_line(tmp_path, make_options):
    options = make_options("--save_path", tmp_path)
    metrics = run_files.metrics_path(run_files.run_folder(options))
    metrics.parent.mkdir()
    metrics.write_text("")
    torch.save({"data": [[torch.randn(10, 1, 16, 16), torch.arange(10)]]}, tmp_path / f"res_{metrics.parent.name}.pt")
    with pytest.raises(UserError, match="damaged, or not what a run leaves"):
        compare.is_done(options)
