"""The pages that people read: their length, links, pictures, sentences and commands."""

import contextlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from conftest import CODE, ROOT, call_script
from utils import storage
from utils.paper import PAPER
from utils.summary import table_cell

README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "Distilled" / "README.md", ROOT / "tests" / "README.md"]
LABELS = {"FashionMNIST": "Fashion-MNIST", "CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100",
          "TinyImageNet": "Tiny-ImageNet"}
MOST_CHARACTERS, MOST_WORDS = 12_000, 30


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", re.sub(r"(?m)^    .*$", "", text), flags=re.S)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def commands(page: Path) -> list[str]:
    """The command lines of a page that start a script, each with its continuation lines."""
    lines = "\n".join(re.findall(r"(?m)^    (.*)$", page.read_text())).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(python3 -u|torchrun) ", line)]


def sentences(page: Path) -> list[str]:
    """The sentences of a page: those of paragraphs and of list items, without tables, headings and code."""
    parts, text = [""], without_code(page.read_text())
    for line in text.splitlines():
        if not line.strip() or re.match(r"[-*] |\d+\. ", line):
            parts.append("")
        if not line.startswith(("|", "#", "<", "!")):
            parts[-1] += f" {line.strip()}"
    return [sentence for part in parts for sentence in re.split(r"(?<=[.:;])\s", part)]


def heading_anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.*)$", without_code(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """What a page links to or shows, without other people's pages."""
    text = without_code(page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in targets if not target.startswith("http")]


def test_readme_is_short():
    assert len(README.read_text()) <= MOST_CHARACTERS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page):
    long = [sentence for sentence in sentences(page) if len(sentence.split()) > MOST_WORDS]
    assert not long


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in heading_anchors(file), target


def test_every_picture_is_shown():
    shown = {(page.parent / target).resolve() for page in LINKED for target in links(page)}
    assert [path.name for path in (ROOT / "Fig").iterdir() if path not in shown] == []


def test_layout_names_what_there_is():
    layout = README.read_text().split("## Layout")[1].split("## ")[0]
    utils_files = re.split(r"(?m)^      utils/$", layout)[1].split("\n    Distilled/")[0]
    scripts = re.findall(r"\b(\w+\.py)\b", layout.split("      utils/")[0])
    assert [name for name in scripts if not (CODE / name).exists()] == []
    names = re.findall(r"\b(\w+\.py|\w+/)", utils_files)
    assert [name for name in names if not (CODE / "utils" / name).exists()] == []
    assert {path.name for path in CODE.glob("*.py") if not path.name.startswith("BACON_")} <= set(scripts)
    assert {path.name for path in (CODE / "utils").glob("*.py")} - {"__init__.py"} <= set(names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_the_pages_runs(page, tmp_path):
    """As it stands, but that its results go elsewhere."""
    with contextlib.chdir(CODE):
        exec(re.sub(r"result/\w+", str(tmp_path), "\n".join(python_blocks(page))), {})
    assert bool(list(tmp_path.iterdir())) == (page.name in ("README.md", "usage.md"))


@pytest.fixture(scope="module")
def known_flags():
    """A function that gives the flags that a script's --help has."""
    found = {}

    def flags(script: str) -> set[str]:
        if script not in found:
            found[script] = set(re.findall(r"--\w+", call_script(script, "--help").stdout))
        return found[script]

    return flags


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_scripts_and_flags_that_exist(page, known_flags):
    for command in commands(page):
        words = shlex.split(command, comments=True)
        start = next(k for k, word in enumerate(words) if word.endswith(".py"))
        flags = {flag for word in words[start + 1:] for flag in re.findall(r"(?:^|\s)(--\w+)", word)}
        assert flags <= known_flags(words[start]), command


def test_commands_of_the_readme_run(tmp_path, monkeypatch):
    """Those that need no download and no GPU, as they stand and one after another, beside a copy of Distilled/."""
    shutil.copytree(ROOT / "Distilled", tmp_path / "Distilled")
    folder = tmp_path / "Code"
    folder.mkdir()
    own_objective, = (block for block in python_blocks(README) if "def bayesian" in block)
    (folder / "mine.py").write_text(own_objective)
    monkeypatch.setattr(sys, "path", list(sys.path))  # where a method of one's own adds a folder
    run = [shlex.split(command)[2:] for command in commands(README) if "digits" in command]
    assert {script for script, *_ in run} == {"BACON_digits.py", "evaluate.py", "compare.py", "report.py"}
    for script, *arguments in run:
        call_script(str(CODE / script), *arguments, cwd=folder)
    monkeypatch.delitem(sys.modules, "mine")
    assert (folder / "report" / "report.html").exists()


def test_results_have_the_papers_numbers():
    results = RESULTS.read_text()
    for dataset in PAPER["BACON"]:
        for ipc in (1, 10, 50):
            numbers = [PAPER[method].get(dataset, {}).get(ipc) for method in ("DM", "IDM", "BACON")]
            cells = " | ".join(f"{number:g}" if number else "-" for number in numbers)
            assert f"| {LABELS.get(dataset, dataset)} | {ipc} | {cells} |" in results


@pytest.mark.parametrize("path", sorted((ROOT / "Distilled").glob("*/*.json")),
                         ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_set_has_one_accuracy(path):
    """That of its card, which is by the protocol of its run, in every table."""
    card, run = json.loads(path.read_text()), storage.load(path.with_suffix(".pt"))["meta"]["options"]
    line, = card["evaluation"]
    assert (line["model"], line["epoch_eval_train"]) == (run["model"], run["epoch_eval_train"])
    assert len(line["accuracies"]) == run["num_eval"]
    label = LABELS.get(card["dataset"], card["dataset"])
    if card["method"] == "FastBACON":
        assert table_cell(line["accuracies"]) in (ROOT / "docs" / "pretrained.md").read_text()
    elif card["model"] == "ConvNet":  # the paper's, whose sets are rows of the tables
        for page in (README, RESULTS):
            for row in re.findall(rf"(?m)^\| {label}(?: \(JPEG\))? \| {card['ipc']} \| .*$", page.read_text()):
                if "iterations" in row or " of 20,000" in row:
                    assert table_cell(line["accuracies"]) in row
