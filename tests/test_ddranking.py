"""DD-Ranking's own evaluator (PyPI's ddranking) on an exported set gives what evaluate.py --fair gives.

    pip install --no-deps ddranking timm pandas pyyaml
"""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import export
from conftest import SHORT, call_script
from utils import storage
from utils.data import load
from utils.system import files

hard_label = pytest.importorskip("ddranking.metrics.hard_label")
soft_label = pytest.importorskip("ddranking.metrics.soft_label")
pytestmark = pytest.mark.slow

EPOCHS, LR, NETWORKS, IPC, SIZE = 21, 0.01, 3, 4, 16
# Its names, and the published strengths, of the augmentations; README of the package has others, which fail.
DSA = {"flip": 0.5, "rotate": 15.0, "saturation": 2.0, "brightness": 1.0, "contrast": 0.5, "scale": 1.2,
       "crop": 0.125, "cutout": 0.5}
TRAINED = {"optimizer": "sgd", "weight_decay": 5e-4, "momentum": 0.9, "lr_scheduler": "step",
           "step_size": EPOCHS // 2 + 2}


class Images(Dataset):
    """Normalised images with whole numbers as labels, as torchvision's data sets have them."""

    def __init__(self, images, labels):
        self.images, self.targets = images, labels.tolist()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        return self.images[k], self.targets[k]


@pytest.fixture(scope="module")
def digits_in_colour(tmp_path_factory):
    """300 digits for training and 200 for testing, in an .npz file: its networks take three channels alone."""
    data, path = load("digits", ""), tmp_path_factory.mktemp("data") / "digits.npz"

    def coloured(images):
        grey = images.permute(0, 2, 3, 1).numpy()
        return np.concatenate([grey, grey // 2, 255 - grey], axis=3)

    np.savez(path, train_images=coloured(data.images[:300]), train_labels=data.labels[:300].numpy(),
             test_images=coloured(data.test_images[:200]), test_labels=data.test_labels[:200].numpy())
    return path


@pytest.fixture
def peer(digits_in_colour, monkeypatch, tmp_path):
    """A function that builds an evaluator of theirs on our data, by our protocol; tested at the end alone."""
    data = load("folder", digits_in_colour, im_size=SIZE)
    train = Images(data.normalise(data.images), data.labels)
    test = Images(data.normalise(data.test_images), data.test_labels)
    classes = {k: k for k in range(10)}
    known = 3, (SIZE, SIZE), data.mean, data.std, 10, train, test, test, classes, classes

    def build(module, kind, **how):
        monkeypatch.setattr(module, "get_dataset", lambda *_: known)
        monkeypatch.setattr(module, "save_results", lambda *_: None)  # it fails: 0.2.0 keeps each LRS twice
        monkeypatch.setitem(module.REAL_DATA_TRAINING_CONFIG, "CIFAR10-ConvNet-3",
                            TRAINED | {"lr": LR, "num_epochs": EPOCHS})
        evaluator = kind(dataset="CIFAR10", ipc=IPC, model_name="ConvNet-3", data_aug_func="dsa", aug_params=DSA,
                         **TRAINED, num_epochs=EPOCHS, num_eval=NETWORKS, num_workers=0, device="cpu",
                         im_size=(SIZE, SIZE), save_path=str(tmp_path / "scores.csv"), random_data_format="tensor",
                         random_data_path=str(tmp_path / "random"), eval_full_data=True, **how)
        evaluator.test_interval = EPOCHS
        return evaluator

    return build


def evaluated(path, data_path, folder, *flags):
    """Mean accuracies in % of evaluate.py, and their standard errors, by what was trained on and whether with DSA."""
    done = call_script("evaluate.py", "--synthetic", path, "--dataset", "folder", "--data_path", data_path, "--im_size",
                       SIZE, "--model", "ConvNet", "--lr_net", LR, "--num_eval", NETWORKS, "--epoch_eval_train",
                       EPOCHS - 1, "--epoch_whole_train", EPOCHS - 1, "--save_path", folder, *flags)
    print(done.stdout)
    lines = files.read_json_lines(folder / "evaluate.jsonl")
    return {(re.sub(",.*", "", line["trained_on"]), line["dsa_strategy"] != "none"): (
        100 * line["mean"], 100 * line["std"] / (NETWORKS - 1) ** 0.5) for line in lines}


def agree(theirs, spread, ours):
    """Differences of means of as many networks, within three standard errors of both (and a point for few networks)."""
    (first, first_error), (second, second_error) = ours
    error = (first_error**2 + second_error**2 + spread**2 / (NETWORKS - 1)) ** 0.5
    print(f"theirs {theirs:.2f} +- {spread:.2f}, ours {first - second:.2f}, standard error {error:.2f}")
    assert abs(theirs - (first - second)) <= 3 * error + 1


def test_hard_labels(digits_in_colour, peer, monkeypatch, tmp_path):
    """Hard-label recovery and improvement over random. Its whole training set is trained on without augmentation."""
    call_script("BACON_folder.py", *SHORT, "--data_path", digits_in_colour, "--im_size", SIZE, "--ipc", IPC,
                "--no-aug", "--lr_img", 0.2, "--Iteration", 20, "--eval_interval", 20, "--num_eval", 1, "--save_path",
                tmp_path)
    path, = (path for path in tmp_path.glob("res_*.pt") if "best" not in path.name)
    export.export(path, "ddranking", tmp_path / "exported")
    images, labels, lr = (torch.load(tmp_path / "exported" / f"{name}.pt") for name in ("images", "labels", "lr"))
    ours = evaluated(path, digits_in_colour, tmp_path, "--fair")
    kind = hard_label.LabelRobustScoreHard
    monkeypatch.setattr(kind, "_hyper_param_search_for_hard_label",  # it tests five learning rates on test images
                        lambda self, **how: self._compute_hard_label_metrics_helper(**how, lr=LR))
    theirs = peer(hard_label, kind).compute_metrics(image_tensor=images, syn_lr=lr)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(IPC)), "which it assumes"
    agree(theirs["hard_label_recovery_mean"], theirs["hard_label_recovery_std"],
          (ours["whole training set", False], ours["the set", True]))
    agree(theirs["improvement_over_random_mean"], theirs["improvement_over_random_std"],
          (ours["the set", True], ours["random real images", True]))


def test_soft_labels(digits_in_colour, peer, tmp_path):
    """Cross-entropy with the softmax of what labels.pt holds; of its scores for soft labels none runs (0.2.0)."""
    data = load("folder", digits_in_colour, im_size=SIZE)
    rows = np.concatenate([rows[:IPC] for rows in data.class_rows])
    images, classes = data.batch(rows), data.labels[torch.from_numpy(rows)]
    soft = 0.7 * torch.nn.functional.one_hot(classes, 10) + 0.3 * torch.rand(40, 10).softmax(dim=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    storage.save(tmp_path / "soft.pt", {"data": [[images[order], soft[order]]]})
    export.export(tmp_path / "soft.pt", "ddranking", tmp_path / "exported")
    there = [torch.load(tmp_path / "exported" / f"{name}.pt") for name in ("images", "labels")]
    ours = evaluated(tmp_path / "soft.pt", digits_in_colour, tmp_path)["the set", True]
    evaluator = peer(soft_label, soft_label.LabelRobustScoreSoft, soft_label_criterion="sce", teacher_model_names=[],
                     loss_fn_kwargs={"temperature": 1.0, "scale_loss": False})
    theirs = [evaluator._compute_soft_label_metrics_helper(there[0], None, there[1], LR)[0] for _ in range(NETWORKS)]
    agree(float(np.mean(theirs)), float(np.std(theirs)), (ours, (0.0, 0.0)))
