"""The batched engine gives the images of the literal class-by-class loop."""

import pytest
import torch

from utils import networks
from utils.distill import Distillation, initial_images
from utils.draws import Draws
from utils.image_optimizers import VisitedAdam, VisitedSGD
from utils.reference import ReferenceDM, ReferenceLoop

ITERATIONS = 10
NARROW = {"width": 8}  # so that loops in float64 take seconds


@pytest.fixture
def make_options(make_options, monkeypatch):
    monkeypatch.setitem(networks.CONVNETS, "ConvNetW8", NARROW)
    monkeypatch.setitem(networks.NETWORKS, "ConvNetW8", (networks.ConvNet, NARROW))
    monkeypatch.setitem(networks.CONVNETS, "ConvNetW8BN", NARROW | {"normalisation": "batch"})
    monkeypatch.setitem(networks.NETWORKS, "ConvNetW8BN", (networks.ConvNet, NARROW | {"normalisation": "batch"}))
    return lambda *flags: make_options("--model", "ConvNetW8", "--batch_real", 32, "--trained_bs", 32, *flags)


def test_noise_is_normal_and_of_the_seed(digits):
    first, same, other = (initial_images(digits(), Draws(seed), 5, init="noise") for seed in (0, 0, 1))
    assert first.shape == (10, 5, 1, 16, 16) and torch.equal(first, same) and not torch.equal(first, other)
    assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05


def run_both(data, options, iterations=ITERATIONS, reset_at=(), literal=ReferenceLoop):
    engine, reference = Distillation(data, options), literal(data, options)
    start = engine.images.clone()
    for it in range(iterations):
        if it in reset_at:
            engine.pool.reset_accuracies()
            reference.reset_meters()
        engine.step(it)
        reference.step(it)
    expected = reference.image_syn.detach()
    assert (start.flatten(0, 1) - expected).abs().max() > 1e-2, "the images did not move"
    return engine.images.flatten(0, 1), expected


@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("syn_ce", [True, False])
@pytest.mark.parametrize("aug", [True, False])
class TestEngineEqualsReferenceLoop:
    def run(self, data, make_options, ipc, syn_ce, aug):
        flags = ["--ipc", ipc, "--net_num", 3, "--net_decay", "--net_generate_interval", 4, "--train_net_num", 2]
        return run_both(data, make_options(*flags, *["--aug"] * aug, *["--syn_ce", "--ce_weight", 0.5] * syn_ce))

    def test_float64(self, digits, make_options, ipc, syn_ce, aug):
        images, expected = self.run(digits(torch.float64), make_options, ipc, syn_ce, aug)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-8)

    def test_float32(self, digits, make_options, ipc, syn_ce, aug):
        """The two differ by about 1e-6. Only where rounding flips the sign of a mean difference within 1e-7
        of zero, at which TV's gradient jumps, or a ReLU, does one class (classes do not touch each other)
        part by up to 3e-3: that may happen to two of the ten."""
        images, expected = self.run(digits(torch.float32), make_options, ipc, syn_ce, aug)
        apart = (images - expected).abs().reshape(10, -1).amax(dim=1)
        assert (apart <= 1e-4).sum() >= 8, apart
        assert apart.max() <= 1e-2, apart


@pytest.mark.parametrize("flags", [
    ["--optim", "adam", "--lr_img", 0.01],
    ["--outer_loop", 2],
    ["--method", "IDM"],
    ["--nll_weight", 0, "--tv_weight", 2, "--clip_weight", 0],
    ["--prior_clip", "embedding", "--clip_weight", 5],
    ["--sigma", "std"],
    ["--embed_last", -1],
    ["--dsa_strategy", "none"],
    ["--max_batch", 7],
    ["--batch_real", 140],
    ["--outer_loop", 3, "--train_net_num", 2, "--fetch_net_num", 3],
    ["--net_num", 2, "--net_generate_interval", 1],
    ["--init", "whole"],
    ["--net_num", 5, "--net_push_num", 2, "--net_generate_interval", 2, "--fetch_net_num", 4],
], ids=lambda flags: " ".join(map(str, flags)))
def test_options_keep_engine_and_reference_equal(digits, make_options, flags):
    """batch_real 140 is more than one class has, so classes come in chunks of different sizes."""
    options = make_options("--ipc", 2, "--aug", "--syn_ce", *flags)
    images, expected = run_both(digits(torch.float64), options, iterations=4, reset_at=(2,))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("max_batch", [7, 512])
def test_selection_of_real_images_at_one_image_per_class(digits, make_options, max_batch):
    """The published CIFAR-10 script's branch: real images of lowest cross-entropy, CE only where misclassified."""
    options = make_options("--ipc", 1, "--syn_ce", "--batch_real", 100, "--ipc1_real", 40, "--max_batch", max_batch)
    images, expected = run_both(digits(torch.float64), options, iterations=3)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-8)
    without = Distillation(digits(torch.float64), make_options("--ipc", 1, "--syn_ce", "--batch_real", 100))
    for iteration in range(3):
        without.step(iteration)
    assert not torch.allclose(without.images.flatten(0, 1), images, atol=1e-4)


def test_each_outer_loop_trains_the_pool(digits, make_options, monkeypatch):
    """4 iterations of 2 outer loops, 2 networks, 3 steps: 48 batches, as measured on the published code."""
    engine = Distillation(digits(), make_options("--outer_loop", 2, "--model_train_steps", 3))
    steps, matched = [], []
    train_step, match = engine.pool.runner.train_step, engine.match
    monkeypatch.setattr(engine.pool.runner, "train_step", lambda *batch: steps.append(0) or train_step(*batch))
    monkeypatch.setattr(engine, "match", lambda members, iteration, loop:
                        matched.append((iteration, loop, *map(id, members))) or match(members, iteration, loop))
    for iteration in range(4):
        engine.step(iteration)
    assert len(steps) == 48
    assert [who[:2] for who in matched] == [(iteration, loop) for iteration in range(4) for loop in range(2)]
    assert all(first[2:] == second[2:] for first, second in zip(matched[::2], matched[1::2], strict=True))


@pytest.mark.parametrize("net_num, sizes", [(1, [4, 5, 6]), (2, [4, 5, 6]), (3, [3, 3, 3]), (5, [4, 5, 5])])
def test_a_pool_that_starts_above_its_limit_never_drops_a_network(digits, make_options, net_num, sizes):
    pool = Distillation(digits(), make_options("--net_num", net_num, "--net_generate_interval", 1)).pool
    held = []
    for iteration in range(3):
        pool.grow(iteration)
        held.append(len(pool.members))
    assert held == sizes


@pytest.mark.parametrize("flags", [[], ["--max_batch", 7, "--batch_real", 140], ["--model", "ConvNetW8BN"]],
                         ids=["default", "chunks", "batch normalisation"])
def test_dm_is_that_of_its_authors(digits, make_options, flags):
    """--method DM brings its recipe; only the small network and batch of the tests are given."""
    images, expected = run_both(digits(torch.float64), make_options("--method", "DM", "--ipc", 2, *flags),
                                iterations=5, literal=ReferenceDM)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("ours, theirs", [
    (VisitedSGD, lambda p: torch.optim.SGD([p], lr=0.2, momentum=0.5)),
    (VisitedAdam, lambda p: torch.optim.Adam([p], lr=0.2)),
])
def test_visits_in_closed_form(ours, theirs):
    """On a quadratic, whose gradient depends on where the class is at its visit."""
    torch.manual_seed(0)
    images, target = torch.randn(7, 2, 3, dtype=torch.float64), torch.randn(7, 2, 3, dtype=torch.float64)
    literal = images.clone().requires_grad_()
    optimizer, batched = theirs(literal), ours(images, lr=0.2)
    for _ in range(5):
        for k in range(7):
            optimizer.zero_grad()
            (literal[k] - target[k]).square().sum().backward()
            optimizer.step()
        batched.before()
        batched.step(2 * (images - target))
    torch.testing.assert_close(images, literal.detach(), rtol=0, atol=1e-12)


def test_momentum_carries_a_gradient_as_measured():
    """With ten classes a gradient g moves its images by 0.39961 g before their next visit (published code)."""
    images = torch.zeros(10, 1, 1)
    optimizer = VisitedSGD(images, lr=0.2)
    optimizer.step(torch.eye(10)[:1].T.reshape(10, 1, 1))
    optimizer.before()
    assert images[0].item() == pytest.approx(-0.39961, abs=5e-6)


def test_progress_counts_the_images_that_go_through_networks(digits, make_options):
    options = make_options("--ipc", 2, "--aug", "--train_net_num", 2, "--batch_real", 140)
    engine, counts = Distillation(digits(), options), []
    for member in engine.pool.members:
        member.network.features[0].register_forward_hook(lambda layer, inputs, output: counts.append(len(inputs[0])))
    engine.step(1)
    assert sum(counts) == engine.images_per_step()


@pytest.mark.parametrize("flags, expected", [
    ([], range(12)), (["--net_begin", 1], range(1, 12)), (["--net_end", 11], range(11)),
    (["--net_begin", 1, "--net_end", 11], range(12))], ids=lambda flags: " ".join(map(str, flags)))
def test_positions_restrict_the_choice_where_over_ten_remain(digits, make_options, flags, expected):
    pool = Distillation(digits(), make_options("--train_net_num", 100, *flags)).pool
    pool.members = list(range(12))
    assert sorted(pool.matching(iteration=0)) == list(expected)
