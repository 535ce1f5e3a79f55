"""report.py as users run it: what the page holds, that it needs no network, and how it looks in a browser."""

import json
import re
import shutil
import subprocess
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import formats
from conftest import TINY, call_script, run_script
from utils import evaluation, figures, options, pictures, storage
from utils import report_page as report
from utils.distill import initial_images
from utils.draws import Draws
from utils.system import device, files

RUN = "BACON_MNIST_ConvNetW32_1ipc"
HOSTILE = ["$x_1$ & | *y*", "<script>alert(1)", "_" + "long" * 30]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A folder with what a run on MNIST's format left, of two experiments, and its data."""
    folder = tmp_path_factory.mktemp("result")
    formats.write_idx(folder / "data", "MNIST", 50)
    call_script("BACON_mnist.py", *TINY, "--num_exp", 2, "--aug", "--syn_ce", "--data_path", folder / "data",
                "--save_path", folder)
    return folder


@pytest.fixture(scope="module")
def page(result):
    """report.html of that run, by a process of its own."""
    done = run_script("report.py", result)
    assert "report.html" in done.stdout and not done.stderr
    return (result / "report.html").read_text()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder of a run on images in folders with hostile names, and of its report."""
    folder = tmp_path_factory.mktemp("hostile")
    images, labels = formats.images_and_labels(3, 10, 16, 3)
    formats.write_class_folders(folder / "mine" / "train", images, labels, HOSTILE)
    call_script("BACON_folder.py", *TINY, "--im_size", 16, "--data_path", folder / "mine", "--save_path", folder)
    call_script("report.py", folder)
    return folder


def text_of(html):
    """What a reader sees, without tags and white space in between."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.S))


def test_page_needs_nothing_from_elsewhere(page):
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'\bsrc="([^"]*)"', page))
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'\bhref="([^"]*)"', page))
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))
    assert not re.search(r"<script|<link|<iframe|@import|srcset", page)
    assert len(re.findall("<img [^>]*alt=\"[^\"]+\"", page)) == page.count("<img ") >= 50


def test_page_holds_what_the_run_left(page, result):
    text, accuracies = text_of(page), storage.load(result / f"res_{RUN}.pt")["accs_all_exps"]["ConvNetW32"]
    assert text.count("3 - three") >= 4
    assert f"{100 * np.mean(accuracies):.2f} ± {100 * np.std(accuracies):.2f}" in text and "4 networks" in text
    assert "94.15" in text and device.cpu_model() in text
    assert ("shortened: 2 of 20,000 iterations, 16 of 5,000 real images per class, 1 of 10 steps of pool training, "
            "16 of 256 images in such a step, narrower network ConvNetW32, 3 of 1,001 epochs of evaluation") in text
    for what in ("as stored", "formation expanded", "start", "likelihood", "total variation", "cross-entropy", "t-SNE"):
        assert what in text, what
    assert page.count("<svg") == 1 + 5 + 2


def test_network_is_the_one_that_the_run_evaluated(page, result):
    """So its accuracy is the first that the run recorded for this set."""
    shown = re.search(r"for 3 epochs, classifies ([\d.]+) % of the ([\d,]+) test images correctly", text_of(page))
    recorded = files.read_json_lines(result / RUN / "metrics.jsonl")[1]["accuracies"][0]
    assert float(shown[1]) == pytest.approx(100 * recorded, abs=0.005)


def test_markdown_has_its_pictures(page, result):
    text = (result / "report.md").read_text()
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert "| 94.15 |" in text and "shortened" in text and "{" not in text
    assert len(named) == 2 + 1 + 1 + 5 + 2
    assert set(named) == {f"report_files/{path.name}" for path in (result / "report_files").iterdir()}
    for name in named:
        assert len(Image.open(result / name).convert("RGB").getcolors(100000)) > 2


def test_hostile_names_are_text(hostile):
    page, text = ((hostile / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert not re.search(r"(?<!\\)<script", page + text) and page.count("&lt;script&gt;alert(1)") >= 4
    assert "\\<script\\>alert(1)" in text and "$x\\_1$ \\& \\| \\*y\\*" in text
    assert "$x_1$ &amp; | *y*</text>" in page, "taken for mathematics"


def moved(run, to):
    """A copy of what a run left, whose options name data that are not there."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("report*", "data", "mine", "cache*", "*best*"))
    path, = to.glob("*/options.json")
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"options": about["options"] | {"data_path": str(to / "gone")}}))
    return to


def test_each_run_takes_its_own_data_and_the_folder_that_is_given_where_it_has_none(hostile, result, tmp_path):
    """To the given one missing files would be downloaded; nothing is written to one that a file names."""
    both = tmp_path / "both"
    moved(hostile, both / "lacks")
    shutil.copytree(result, both / "has", ignore=shutil.ignore_patterns("report*", "data", "*best*"))
    done = call_script("report.py", both, "--data_path", hostile / "mine", "--epoch_eval_train", 0)
    assert "note" not in done.stdout
    assert (both / "report.md").read_text().count("test images correctly") == 2
    assert not (both / "lacks" / "gone").exists()


@pytest.mark.parametrize("last", [1, 2, 3])
def test_no_tick_is_between_iterations(last):
    lines = [{"experiment": 0, "iteration": k, "model": "ConvNet", "accuracies": [0.5], "seconds": 1.0,
              "terms": {"nll": 1}} for k in range(1, last + 1)]
    for lines_of_one in (lines, lines[-1:]):
        for figure in (figures.accuracies(lines_of_one, None), figures.losses(lines_of_one, "nll")):
            axes, = figure.axes
            low, high = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
            assert ticks and all(tick == round(tick) for tick in ticks)


def test_without_its_data_a_run_is_still_shown(hostile, tmp_path):
    done = call_script("report.py", moved(hostile, tmp_path / "moved"), "--data_path", tmp_path / "none",
                       "--save_path", tmp_path)
    text = text_of((tmp_path / "report.html").read_text())
    assert "note: BACON on mine" in done.stdout and str(tmp_path / "none") in done.stdout
    assert "left out: --data_path" in text and "t-SNE" not in text and "likelihood" in text


def test_a_network_that_does_not_fit_into_memory_is_left_out(result, tmp_path, monkeypatch):
    def too_large(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(evaluation, "trained_network", too_large)
    done = call_script("report.py", result, "--max_batch", 100, "--save_path", tmp_path)
    text = text_of((tmp_path / "report.html").read_text())
    assert "left out: out of memory" in done.stdout and "a lower --max_batch (now 100)" in text
    assert "t-SNE" not in text and "likelihood" in text


def test_unfinished_and_damaged_runs(result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy, ignore=shutil.ignore_patterns("report*", "data", "*best*"))
    record = storage.load(copy / f"res_{RUN}.pt")
    record["data"].pop()
    record["meta"]["iteration"] = [1]
    storage.save(copy / f"res_{RUN}.pt", record)
    (copy / RUN / "losses.jsonl").write_text("")
    shutil.copytree(copy / RUN, tmp_path / "waiting" / "BACON_MNIST_ConvNetW32_50ipc")
    (tmp_path / "report_files").mkdir()
    for name in ("run9_0_[old].png", "mine.png"):  # of an earlier report, and of somebody else
        (tmp_path / "report_files" / name).write_text("")
    done = call_script("report.py", tmp_path, "--quick")
    pictures = {path.name for path in (tmp_path / "report_files").iterdir()}
    assert "mine.png" in pictures and "run9_0_[old].png" not in pictures
    text = text_of((tmp_path / "report.html").read_text())
    assert "50ipc has no evaluated set yet" in done.stdout and "1 run," in text
    assert "unfinished: experiment 1 of 2 at iteration 1 of 2; shortened" in text
    assert "The run recorded no terms." in text and "left out by --quick" in text

    for name, content in [(f"{RUN}/options.json", b"{}"), (f"{RUN}/options.json", b"\xff"),
                          (f"{RUN}/metrics.jsonl", b'{"experiment": 0}\n'), (f"{RUN}/metrics.jsonl", b"[1"),
                          (f"res_{RUN}.pt", b"no set"), (f"vis_{RUN}_exp0_iter1.png", b"no picture")]:
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(content)
        done = call_script("report.py", copy, "--quick", expect=2)
        assert len(done.stderr.splitlines()) == 1 and RUN in done.stderr, done.stderr
        (copy / name).write_bytes(kept)
    assert not list(copy.glob("report*"))


@pytest.mark.parametrize("change", [
    {"dataset": "../mine"}, {"dataset": ["MNIST"]}, {"method": 3}, {"ipc": "many"}, {"ipc": True}, {"aug": "yes"},
    {"device": "there"}, {"im_size": -3}, {"data_path": ["a"]}, {"data_path": ""}, {"eval_mode": "Z"}, {"model": "os"},
    {"batch_train": 1e400}], ids=str)
def test_options_that_no_run_has_are_one_line(change, result, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy, ignore=shutil.ignore_patterns("report*", "data", "*best*"))
    path = copy / RUN / "options.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"options": about["options"] | change}))
    done = call_script("report.py", copy, expect=2)
    line, = done.stderr.splitlines()
    assert RUN in line and next(iter(change)) in line and not list(copy.glob("report*"))


def test_folders_that_a_file_names_are_not_written_to(hostile, result, tmp_path):
    """Nothing is downloaded to them, and no images are cached beside them."""
    for run, place, dataset in ((hostile, "mine", "folder"), (result, "none", "MNIST")):
        copy, there = tmp_path / run.name, tmp_path / f"there_{run.name}" / place
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("report*", "data", "cache*", "*best*"))
        there.parent.mkdir()
        if dataset == "folder":
            shutil.copytree(hostile / "mine", there)
        options, = copy.glob("*/options.json")
        about = json.loads(options.read_text())
        options.write_text(json.dumps(about | {"options": about["options"] | {"data_path": str(there)}}))
        before = sorted(there.parent.rglob("*"))
        done = call_script("report.py", copy)
        assert ("its files are not there" in done.stdout) == (dataset == "MNIST"), done.stdout
        assert sorted(there.parent.rglob("*")) == before


def test_pictures_do_not_go_through_a_link(result, tmp_path):
    """Nor are those of another folder removed."""
    mine, there = tmp_path / "mine", tmp_path / "there"
    for folder in (mine, there):
        folder.mkdir()
    (mine / "run1_0_mine.png").write_text("mine")
    (there / "report_files").symlink_to(mine)
    line, = call_script("report.py", result, "--quick", "--save_path", there, expect=2).stderr.splitlines()
    assert "report_files: a link" in line and [path.name for path in mine.iterdir()] == ["run1_0_mine.png"]


def test_a_size_that_is_not_the_sets_is_refused_before_the_data_are_brought_to_it(result, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(result, copy, ignore=shutil.ignore_patterns("report*", "data", "*best*"))
    about = json.loads((copy / RUN / "options.json").read_text())
    about["options"]["im_size"] = 1300
    (copy / RUN / "options.json").write_text(json.dumps(about))
    done = call_script("report.py", copy)
    assert "--im_size 1300: " in done.stdout and "left out" in done.stdout


def test_bad_input_is_one_line(tmp_path):
    for flags, named in [([tmp_path], "no run"), ([tmp_path / "none"], "none"), ([], "RESULT_FOLDER")]:
        done = call_script("report.py", *flags, expect=2)
        assert len(done.stderr.splitlines()) == 1 and named in done.stderr and not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ipc", [1, 50])
def test_many_classes_do_not_outgrow_a_page(ipc):
    stored = torch.zeros(200 * ipc, 3, 32, 32)
    meta = {"mean": [0.5] * 3, "std": [0.5] * 3}
    run = Namespace(stored=stored, labels=torch.arange(200).repeat_interleave(ipc), formation=2, meta=meta,
                    class_names=[f"class {k}" for k in range(200)])
    whole, expanded = report.views(run, budget := 4_000_000)
    assert whole["limits"] == ("" if ipc == 1 else "shown: 3 of 50 images")
    assert expanded["limits"] == "shown: " + "1 of 50 images, " * (ipc > 1) + "162 of 200 classes"
    assert sum(pixels.numel() for view in (whole, expanded) for _, pixels in view["rows"]) <= budget


@pytest.mark.parametrize("count, shape", [(6, (1, 28, 28)), (6, (3, 64, 64)), (6, (3, 16, 20)), (1, (1, 28, 28))])
def test_pictures_are_read_as_they_were_written(count, shape, tmp_path, monkeypatch):
    """However large they are."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pixels = torch.randint(256, (count, *shape)) / 255
    pictures.save_picture(tmp_path / "picture.png", pixels, min(3, count))
    torch.testing.assert_close(pictures.load_picture(tmp_path / "picture.png", shape, min(3, count), count),
                               pixels)
    with pytest.raises(storage.UserError, match=re.escape("picture.png")):
        pictures.load_picture(tmp_path / "picture.png", shape, 4, count)


@pytest.mark.parametrize("changes, known", [({}, True), ({"Iteration": 0}, False), ({"method": "mine:loss"}, False)])
def test_start_is_shown_where_it_is_known(digits, changes, known):
    """Not for images that are chosen once, nor for one's own method, which may start elsewhere."""
    options = Namespace(**{"Iteration": 2, "method": "DM", "seed": 1, "ipc": 2, "init": "real", "aug": True} | changes)
    data = digits()
    start = report.start_of(Namespace(options=options), data)
    expected = data.pixels(initial_images(data, Draws(1), 2, aug=True)[:, 0])
    assert torch.equal(start, expected) if known else start is None


def test_losses_have_a_line_for_each_experiment():
    lines = [{"experiment": e, "iteration": i, "terms": {"nll": 10 * e + i}} for e in (0, 1, 2) for i in (0, 5)]
    axes, = figures.losses([*lines, {"experiment": 0, "iteration": 9, "terms": {"ce": 1}}], "nll").axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 10 * e], [5, 10 * e + 5]] for e in (0, 1, 2)]


def test_accuracies_are_over_all_experiments_beside_the_papers():
    lines = [{"experiment": e, "iteration": i, "model": "ConvNet", "accuracies": [0.25 * e, 0.5], "seconds": 1.0}
             for e in (0, 2) for i in (1, 2)]
    axes, = figures.accuracies(lines, 94.15).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 37.5], [2, 37.5]]
    assert any(list(line.get_ydata()) == [94.15, 94.15] for line in axes.lines)


def test_confusion_is_a_share_of_the_true_class():
    wanted, predicted = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]), torch.tensor([0, 0, 0, 1, 0, 1, 2, 2, 2, 2, 1])
    shares = report.confusion_in_percent(wanted, predicted, 4)
    assert shares.tolist() == [[75, 25, 0, 0], [50, 50, 0, 0], [0, 20, 80, 0], [0, 0, 0, 0]]
    assert report.most_confused(shares, list("abcd")) == [("b", "a", "50.0"), ("a", "b", "25.0"), ("c", "b", "20.0")]
    assert report.most_confused(np.diag([100, 100]), list("ab")) == []
    assert [text.get_text() for text in figures.confusion(shares, list("abcd")).axes[0].texts] == [
        "75", "25", "50", "50", "20", "80"]


@pytest.mark.parametrize("method, dataset, ipc, expected", [
    ("BACON", "MNIST", 1, (5000, 10, 256)), ("IDM", "CIFAR100", 10, (256, 50, 256)), ("DM", "MNIST", 1, (256, 0, 256)),
    ("BACON", "digits", 1, ()), ("herding", "MNIST", 1, ()), ("mine:loss", "MNIST", 1, ())])
def test_a_run_is_measured_by_its_published_command(method, dataset, ipc, expected):
    whole = options.published_options(method, dataset, ipc)
    assert tuple(getattr(whole, name) for name in report.SPARED if hasattr(whole, name)) == expected


def browse(address, folder, *flags):
    """What headless Chromium prints, with a new profile in this folder."""
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    return subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *quiet,
                           f"--user-data-dir={folder / 'profile'}", *flags, address.as_uri()],
                          capture_output=True, text=True, timeout=120, check=True).stdout


# The page tells the frame around it, which can be narrower than any window, what became of it.
PROBE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: innerWidth, needed: document.documentElement.scrollWidth,
  broken: [...document.images].filter(image => !image.naturalWidth).length,
  fetched: performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length,
  narrow: [...document.querySelectorAll("svg")].filter(figure => figure.clientWidth < 200).length,
  unseen: [...document.querySelectorAll(".view")].filter(view => !view.offsetHeight).length}), "*"))</script>"""
FRAME = """<script>addEventListener("message", event => document.body.textContent = event.data)</script>
<body><iframe src="probe.html" style="border: 0; width: WIDTHpx"></iframe></body>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("run, width, scheme, paper", [
    ("hostile", 360, "dark", (21, 23, 27)), ("hostile", 1100, "light", (253, 253, 252)),
    ("result", 360, "light", (253, 253, 252)), ("result", 1280, "dark", (21, 23, 27))])
def test_in_a_browser(page, run, width, scheme, paper, request, tmp_path):
    """Nothing is fetched, broken or wider than the window; the picture is not blank, nor of the other colours."""
    report_path = request.getfixturevalue(run) / "report.html"
    (tmp_path / "probe.html").write_text(report_path.read_text() + PROBE)
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    found = browse(tmp_path / "frame.html", tmp_path, "--virtual-time-budget=5000", "--dump-dom")
    assert json.loads(re.search(r"{.*}", found)[0]) == {
        "width": width, "needed": width, "broken": 0, "fetched": 0, "narrow": 0, "unseen": int(run == "result")}
    browse(report_path, tmp_path, f"--window-size={width},1500", f"--screenshot={tmp_path / 'shot.png'}",
           f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    picture = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    assert picture.shape == (1500, width, 3) and (picture[[0, 0, -1], [0, -1, 0]] == paper).all()
    apart = np.abs(picture.astype(int) - paper).max(axis=2)
    assert 0.02 < (apart > 60).mean() < 0.6 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
