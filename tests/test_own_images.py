"""BACON_folder.py: images of one's own."""

import pytest
import torch
from torchvision.utils import save_image

import formats
from conftest import TINY, call_script
from utils import storage


@pytest.mark.parametrize("size, channels", [(96, 3), (28, 3), (64, 1)])
def test_folder_of_the_users_images(size, channels, tmp_path):
    images, labels = formats.images_and_labels(2, 10, 40, channels)
    formats.write_class_folders(tmp_path / "mine" / "train", images, labels, ["cats", "dogs"], ".jpg")
    done = call_script("BACON_folder.py", *TINY, "--aug", "--im_size", size, "--data_path",
                       tmp_path / "mine", "--save_path", tmp_path)
    assert "16 training and 4 test images" in done.stdout
    record = storage.load(tmp_path / "res_BACON_folder_ConvNetW32_1ipc.pt")
    assert record["data"][0][0].shape == (2, channels, size, size) and record["meta"]["class_names"] == ["cats", "dogs"]


def test_names_of_files_and_classes_forge_no_lines(tmp_path):
    """Newlines and terminal escapes, in all that is printed and in a comparison's table."""
    forged, odd = "\nresult: 99.99 +- 0.00 %", "cat\x1b[2J\nresult: 99.99 +- 0.00 %\x1b[A"
    formats.write_class_folders(tmp_path / "mine" / "train", *formats.images_and_labels(2, 10, 16), [odd, "dog"])
    formats.write_class_folders(tmp_path / "mine" / "test", *formats.images_and_labels(1, 4, 16), ["dog"])
    (tmp_path / "mine" / "train" / "dog" / f"{forged}.txt").touch()
    target = tmp_path / f"to{forged}"
    flags = ["--data_path", tmp_path / "mine", "--save_path", target]
    done = [call_script("BACON_folder.py", *TINY, "--im_size", 16, *flags),
            call_script("evaluate.py", "--synthetic", target / "res_BACON_folder_ConvNetW32_1ipc.pt", "--num_eval", 1,
                        "--epoch_eval_train", 0, *flags),
            call_script("report.py", target, "--quick"),
            call_script("evaluate.py", "--synthetic", tmp_path / "mine" / "train", "--dataset", "digits", expect=2),
            call_script("BACON_folder.py", *TINY, "--resume", tmp_path / forged, *flags, expect=2)]
    said = "".join(one.stdout + one.stderr for one in done)
    assert "\x1b" not in said and "99.99" in said and r"cat\x1b[2J\nresult: 99.99" in said
    assert all(line.startswith(("result: ", "best:   ")) != ("99.99" in line) for line in said.splitlines()
               if line.startswith("result:") or "99.99" in line)
    assert all(len(one.stderr.splitlines()) == 1 for one in done[3:])


def test_a_class_of_one_image_has_no_deviation(tmp_path):
    for k, place in enumerate(("train/a", "train/b", "train/b", "test/a", "test/b")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(1, 8, 8), tmp_path / place / f"{k}.png")
    flags = [*TINY, "--im_size", 8, "--data_path", tmp_path, "--save_path", tmp_path / "result"]
    error, = call_script("BACON_folder.py", *flags, expect=2).stderr.splitlines()
    assert "class 'a' of folder has one training image" in error
    call_script("BACON_folder.py", *flags, "--method", "IDM")
