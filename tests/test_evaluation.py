"""The published evaluation protocol."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TINY
from utils import evaluation, experiment, load_synthetic, storage
from utils.distill import initial_images
from utils.draws import Draws, generator
from utils.networks import get_network
from utils.networks.batches import BatchRunner
from utils.reference import accuracy_on_test_images, evaluate_synset

CPU = torch.device("cpu")
PASSES = BatchRunner(CPU, "fp32", False)


class Spy(torch.optim.SGD):
    """An SGD that notes its settings at every step, in Spy.steps."""

    def step(self, *arguments):
        group = self.param_groups[0]
        momentum_is_new = not self.state
        Spy.steps.append((group["lr"], group["momentum"], group["weight_decay"], momentum_is_new))
        return super().step(*arguments)


@pytest.mark.parametrize("epochs, high, low", [(1000, 502, 499), (10, 7, 4), (0, 1, 0)])
def test_passes_learning_rates_and_momentum_restart(make_options, monkeypatch, epochs, high, low):
    monkeypatch.setattr(torch.optim, "SGD", Spy)
    Spy.steps = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    options = make_options("--epoch_eval_train", epochs, "--batch_train", 2, "--dsa_strategy", "flip")
    epochs_seen = []
    evaluation.train(network, torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0]), options, generator(0),
                     PASSES, on_epoch=lambda: epochs_seen.append(1))
    batches = 2  # three images in batches of two: the last, partial batch is kept
    assert [round(step[0], 9) for step in Spy.steps] == [0.01] * high * batches + [0.001] * low * batches
    assert {step[1:3] for step in Spy.steps} == {(0.9, 5e-4)}
    restarts = [k for k, step in enumerate(Spy.steps) if step[3]]
    assert restarts == [0, high * batches][: 1 + (low > 0)]
    assert len(epochs_seen) == epochs + 1


def test_whole_training_set_is_learned_and_noise_is_not(digits, make_options):
    data = digits()
    options = make_options("--num_eval", 1, "--epoch_eval_train", 6, "--dsa_strategy", "none", "--lr_net", 0.03)

    def accuracy(images):
        return evaluation.evaluate(images, data.labels, data, "ConvNetW32", options, Draws(0), ("test",))[0]

    assert accuracy(data.normalise(data.images)) > 0.9
    assert accuracy(torch.randn(len(data.labels), 1, 16, 16)) < 0.4


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "none"])
def test_training_and_testing_equal_the_literal_protocol(digits, make_options, strategy):
    data = digits(torch.float64)
    options = make_options("--epoch_eval_train", 4, "--batch_train", 32, "--dsa_strategy", strategy)
    images, labels = data.normalise(data.images[:80]), data.labels[:80]
    ours, literal = (get_network("ConvNetW32", 1, 10, 16, seed=1).double() for _ in range(2))
    evaluation.train(ours, images, labels, options, generator(0), PASSES)
    evaluate_synset(literal, images, labels, options, generator(0))
    for mine, theirs in zip(ours.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
    assert evaluation.test(ours, data, 100, PASSES) == accuracy_on_test_images(literal, data)


@pytest.mark.parametrize("flags", [[], ["--aug"], ["--aug", "--soft_labels", "0.5"]], ids=" ".join)
def test_a_run_evaluates_the_set_that_it_saves(digits, make_options, flags, tmp_path):
    """Evaluating its file again, with the draws of the run, gives the accuracies that the run recorded."""
    path = experiment.run(make_options(*TINY, "--ipc", 2, *flags, "--save_path", tmp_path)).set_path
    (images, labels), record = load_synthetic(path), storage.load(path)
    options = Namespace(**record["meta"]["options"])
    assert len(images) == 10 * 2 * (4 if options.aug else 1)
    accuracies = evaluation.evaluate(images, labels, digits(), "ConvNetW32", options, Draws(0, 0), (2,))
    assert accuracies == record["accs_all_exps"]["ConvNetW32"]


@pytest.mark.slow
@pytest.mark.parametrize("model, precision", [("ConvNetW32", "fp32"), ("ConvNetW32", "bf16"), ("ConvNetW64", "fp32")])
def test_compiled_evaluation_has_the_accuracy_of_the_literal_protocol(digits, make_options, model, precision):
    """Ten networks each, of the same seeds and draws, on a random formation of the digits, 10 images per class."""
    data, options = digits(), make_options("--epoch_eval_train", 60, "--lr_net", 0.03, "--aug", "--compile",
                                           "--precision", precision)
    stored = initial_images(data, Draws(0), 10, aug=True).flatten(0, 1)
    images, labels = storage.expand(stored, torch.arange(10).repeat_interleave(10), 2)
    literal, ours, runner = [], [], BatchRunner(CPU, options.precision, True)
    for seed in range(10):
        network, other = (get_network(model, 1, 10, 16, seed=seed) for _ in range(2))
        evaluate_synset(network, images, labels, options, generator(seed))
        literal.append(accuracy_on_test_images(network, data))
        evaluation.train(runner.prepare(other, CPU, data.dtype), images, labels, options, generator(seed), runner)
        ours.append(evaluation.test(other, data, None, runner))
    assert literal != ours and np.mean(literal) > 0.85
    error = np.sqrt((np.var(literal, ddof=1) + np.var(ours, ddof=1)) / 10)
    print(f"{model}, {precision}: literal {100 * np.mean(literal):.2f} +- {100 * np.std(literal):.2f} %, compiled "
          f"{100 * np.mean(ours):.2f} +- {100 * np.std(ours):.2f} %, standard error {100 * error:.2f}")
    assert abs(np.mean(literal) - np.mean(ours)) < error
