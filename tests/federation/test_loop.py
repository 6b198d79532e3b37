"""What a round's row says."""

import math

import pytest
import torch

from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import initial_state, run_round

SCHEDULE = Schedule(num_rounds=4, evaluate_every=3, evaluate_batch_size=100, checkpoint_every=2)


@pytest.mark.parametrize(("rule", "settings"), [("median", {}), ("trimmed_mean", {"trim_fraction": 0.3})])
def test_a_rule_of_coordinates_is_held_against_the_plain_mean(make, rule, settings):
    federation = make.federation(num_clients=5, aggregator=make.rule(rule, **settings))
    outcome = run_round(federation, initial_state(federation.model))
    metrics = describe(federation, outcome, SCHEDULE).metrics
    update, mean = outcome.aggregate.update.double(), (outcome.weights.float() @ outcome.result.updates.rows).double()
    assert not torch.allclose(update, mean, rtol=1e-3)
    assert metrics["harmonization/norm"] == pytest.approx(float(update.norm()), rel=1e-5)
    assert metrics["harmonization/norm_ratio"] == pytest.approx(float(update.norm() / mean.norm()), rel=1e-5)
    cosine = float(update @ mean / (update.norm() * mean.norm()))
    assert metrics["harmonization/angle"] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-3)
    assert "harmonization/gain" not in metrics


def test_the_training_loss_counts_every_example_once(make):
    owners = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 20, 30])).numpy()
    federation = make.federation(owners=owners)
    outcome = run_round(federation, initial_state(federation.model))
    metrics = describe(federation, outcome, SCHEDULE).metrics
    losses = outcome.result.train_loss.tolist()
    expected = sum(size * loss for size, loss in zip((10, 20, 30), losses, strict=True)) / 60
    assert metrics["client/train/loss"] == pytest.approx(expected, rel=1e-6)
    assert (metrics["federation/num_examples"], metrics["federation/num_clients"]) == (60, 3)


def test_what_is_due():
    assert [t for t in range(1, 5) if SCHEDULE.due(3, t)] == [3, 4]
    assert [t for t in range(1, 5) if SCHEDULE.due(2, t)] == [2, 4]
    assert [t for t in range(1, 5) if SCHEDULE.due(100, t)] == [4]


@pytest.mark.parametrize(("rule", "gain"), [("mean", 1.0), ("fedgh", None)])
def test_a_rule_of_the_gram_family_tells_its_gain(make, rule, gain):
    federation = make.federation(num_clients=4, aggregator=make.rule(rule))
    outcome = run_round(federation, initial_state(federation.model))
    metrics = describe(federation, outcome, SCHEDULE).metrics
    assert metrics["harmonization/gain"] == pytest.approx(gain or float(outcome.aggregate.coefficients.sum()))
    assert "global/test/acc" not in metrics  # round 1 of 4, evaluated every 3
