"""Random decisions: functions of the seed and of the place in the run, and without replacement."""

import numpy as np
import pytest

from utils.draws import Draws

DRAWS = {
    "initial": lambda draws, k: draws.initial([60], 2, 20)[0, 0],
    "matching_networks": lambda draws, k: draws.matching_networks(k, 60, 20),
    "real_images": lambda draws, k: draws.real_images(k, 0, [60], 20)[0],
    "real_images of another update": lambda draws, k: draws.real_images(0, k, [60], 20)[0],
    "real_images of another class": lambda draws, k: draws.real_images(0, 0, [60] * (k + 1), 20)[k],
    "trained_networks": lambda draws, k: draws.trained_networks(k, 60, 20),
    "training_batch": lambda draws, k: draws.training_batch(k, 0, 0, 60, 20),
    "training_batch of another network": lambda draws, k: draws.training_batch(0, k, 0, 60, 20),
    "training_batch of another step": lambda draws, k: draws.training_batch(0, 0, k, 60, 20),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_distinct_even_and_repeatable(name):
    """Of 400 places, or where a run has one such draw, seeds, each position is drawn about as often."""
    draw = DRAWS[name]
    where = [(Draws(seed), 0) for seed in range(400)] if name == "initial" else [(Draws(7), k) for k in range(400)]
    rows = np.array([draw(draws, k) for draws, k in where])
    assert all(len(set(row)) == 20 for row in rows) and len({tuple(row) for row in rows}) == 400
    counts = np.bincount(rows.flatten(), minlength=60)
    assert len(counts) == 60 and abs(counts - 400 / 3).max() < 5 * np.sqrt(400 * 1 / 3 * 2 / 3)
    others = [draw(draws, 1) for draws in (Draws(7), Draws(8), Draws(7, experiment=1))]
    assert len({tuple(row) for row in others}) == 3 and (draw(Draws(7), 1) == others[0]).all()


def test_all_where_there_are_fewer():
    rows = Draws(0).real_images(0, 0, [5, 30], 20)
    assert sorted(rows[0]) == list(range(5)) and len(rows[1]) == 20


def test_network_seeds_differ():
    seeds = [Draws(s, e).network_seed(*place) for s in (0, 1) for e in (0, 1)
             for place in (("pool", 0), ("pool", 1), ("evaluation", 0))]
    assert len(set(seeds)) == 12


def test_siamese_takes_every_operation_and_parameter():
    drawn = [Draws(0).siamese(k, 0, ["color", "crop", "flip"], 10) for k in range(100)]
    assert {name for operations, _ in drawn for name in operations} == {"color", "crop", "flip"}
    parameters = np.stack([values for _, values in drawn])
    assert parameters.shape == (100, 10, 3) and len(np.unique(parameters)) == 3000
    assert abs(parameters.mean(axis=(0, 1)) - 0.5).max() < 5 / np.sqrt(12 * 1000)
    assert Draws(0).siamese(0, 0, [], 10)[0] == []
