"""BACON_folder.py: images of one's own."""

import pytest
import torch
from torchvision.utils import save_image

import formats
from conftest import TINY, call_script
from utils import data, storage
from utils.system.errors import UserError


@pytest.mark.parametrize("size, channels", [(96, 3), (28, 3), (64, 1)])
def test_folder_of_the_users_images(size, channels, tmp_path):
    images, labels = formats.images_and_labels(2, 10, 40, channels)
    formats.write_class_folders(tmp_path / "mine" / "train", images, labels, ["cats", "dogs"], ".jpg")
    done = call_script("BACON_folder.py", *TINY, "--aug", "--im_size", size, "--data_path",
                       tmp_path / "mine", "--save_path", tmp_path)
    assert "16 training and 4 test images" in done.stdout
    record = storage.load(tmp_path / "res_BACON_folder_ConvNetW32_1ipc.pt")
    assert record["data"][0][0].shape == (2, channels, size, size) and record["meta"]["class_names"] == ["cats", "dogs"]


def test_a_class_of_one_image_has_no_deviation(tmp_path):
    for k, place in enumerate(("train/a", "train/b", "train/b", "test/a", "test/b")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(1, 8, 8), tmp_path / place / f"{k}.png")
    flags = [*TINY, "--im_size", 8, "--data_path", tmp_path, "--save_path", tmp_path / "result"]
    error, = call_script("BACON_folder.py", *flags, expect=2).stderr.splitlines()
    assert "class 'a' of folder has one training image" in error
    call_script("BACON_folder.py", *flags, "--method", "IDM")


@pytest.mark.parametrize("links", [{"a/up": ".."}, {"a/again": "../../train"}, {"a/b": "../b", "b/a": "../a"},
                                   {"a/self": "self"}], ids=str)
def test_links_that_lead_in_a_circle_are_named(links, tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        save_image(torch.rand(3, 8, 8), tmp_path / "train" / name / "0.png")
    for name, target in links.items():
        (tmp_path / "train" / name).symlink_to(target)
    with pytest.raises(UserError, match=r"a link back to a folder above it; remove it|Too many levels") as error:
        data.load("folder", tmp_path, im_size=8)
    assert next(iter(links)) in str(error.value) and len(str(error.value)) < 300
