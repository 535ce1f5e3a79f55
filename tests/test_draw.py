"""The pictures that draw.py makes of a set with its card."""

import pytest
from PIL import Image

from conftest import ROOT, call_script

ACCURACIES = ["--random", 93.2, "--start", 95.6]
DIGITS = ROOT / "Distilled" / "digits"


def test_pictures_of_a_set(tmp_path):
    call_script("draw.py", "--synthetic", DIGITS / "BACON_ipc10.pt", *ACCURACIES, "--save_path", tmp_path)
    for name in ("hero.png", "method.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width == 1600 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_sets_beside_real_images(tmp_path):
    """All that IPC 1 has, and four of IPC 10, for each of ten classes."""
    for sets, most in ((["BACON_ipc10.pt"], 9), (["BACON_ipc1.pt", "BACON_ipc10.pt"], 10.5)):
        call_script("draw.py", "--synthetic", *(DIGITS / name for name in sets), "--save_path", tmp_path)
        with Image.open(tmp_path / "sets_digits.png") as picture:
            assert picture.width == 1600 and picture.height == pytest.approx(1600 * 0.86 * 10 / most + 96, abs=2)
            assert len(picture.convert("RGB").getcolors(2**24)) > 100


def test_sets_that_are_not_drawn(tmp_path):
    without_card = tmp_path / "set.pt"
    without_card.write_bytes((DIGITS / "BACON_ipc10.pt").read_bytes())
    for path, named in ((without_card, "its card"), (DIGITS / "BACON_ipc1.pt", "name a set of more images")):
        done = call_script("draw.py", "--synthetic", path, *ACCURACIES, "--save_path", tmp_path, expect=2)
        assert named in done.stderr and len(done.stderr.splitlines()) == 1
    mnist = DIGITS.parent / "MNIST" / "BACON_ipc10.pt"
    for flags, named in ((ACCURACIES[:2], "give both"), ([*ACCURACIES, "--synthetic", "a.pt", "b.pt"], "name one"),
                         (["--synthetic", DIGITS / "BACON_ipc10.pt", mnist], "not made from digits, as the first")):
        flags = ["--synthetic", DIGITS / "BACON_ipc10.pt", *flags, "--save_path", tmp_path]
        done = call_script("draw.py", *flags, expect=2)
        assert named in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.png"))
