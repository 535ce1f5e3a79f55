"""The pictures that draw.py makes of a set with its card."""

from PIL import Image

from conftest import ROOT, call_script

ACCURACIES = ["--random", 93.2, "--start", 95.6]
DIGITS = ROOT / "Distilled" / "digits"


def test_pictures_of_a_set(tmp_path):
    call_script("draw.py", "--synthetic", DIGITS / "BACON_ipc10.pt", *ACCURACIES, "--save_path", tmp_path)
    for name in ("hero.png", "method.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width == 1600 and len(picture.convert("RGB").getcolors(2**24)) > 100


def test_sets_that_are_not_drawn(tmp_path):
    without_card = tmp_path / "set.pt"
    without_card.write_bytes((DIGITS / "BACON_ipc10.pt").read_bytes())
    for path, named in ((without_card, "its card"), (DIGITS / "BACON_ipc1.pt", "name a set of more images")):
        done = call_script("draw.py", "--synthetic", path, *ACCURACIES, "--save_path", tmp_path, expect=2)
        assert named in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.png"))
