"""The simulated clock: who arrives when, from which version, and how it counts."""

from dataclasses import replace

import pytest
import torch

from fedgh.algorithm.fedacg import FedACG
from fedgh.core.errors import ConfigurationError
from fedgh.federation.clock import Clock
from fedgh.federation.round import first_state, run_round
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.checkpoint import Checkpoint

SETTINGS = {
    "concurrency": 4,
    "buffer_size": 2,
    "interval": None,
    "spread": 1.0,
    "staleness": "constant",
    "power": 0.5,
    "bound": 0,
    "mixing": 1.0,
    "rebase": False,
}


def federation_of(make, num_clients=6, **settings):
    return replace(make.federation(num_clients=num_clients), clock=Clock(**{**SETTINGS, **settings}))


def play(federation, rounds, server=None):
    server, outcomes = server or first_state(federation), []
    for _ in range(rounds):
        outcomes.append(run_round(federation, server))
        server = outcomes[-1].server
    return outcomes


def test_as_many_are_at_work_as_there_are_places_and_nobody_twice(make):
    federation = federation_of(make)
    server = first_state(federation)
    for _ in range(8):
        ids = server.clock["ids"].tolist()
        assert len(set(ids)) == len(ids) == 4
        outcome = run_round(federation, server)
        earliest = server.clock["back"].sort().indices[:2]
        assert sorted(server.clock["ids"][earliest].tolist()) == list(outcome.result.client_ids)
        assert float(outcome.server.clock["now"]) == float(server.clock["back"][earliest[-1]])
        server = outcome.server


def test_a_client_trains_from_the_version_that_it_received(make):
    federation = federation_of(make, buffer_size=1, spread=2.0)
    versions, server, seen = {}, first_state(federation), set()
    for t in range(12):
        versions[t] = server.models[0]
        (outcome,) = play(federation, 1, server)
        (k,), (staleness,) = outcome.result.client_ids, outcome.result.staleness.tolist()
        alone = federation.executor([k], replace(server, **vars(versions[t - staleness])))
        assert torch.equal(alone.updates.rows, outcome.result.updates.rows)
        seen.add(staleness)
        server = outcome.server
        assert set(server.clock["kept"].tolist()) == {*server.clock["versions"].tolist(), t + 1}
    assert max(seen) > 1  # some were stale, so that the above says something


def test_fedasync_mixes_the_client_into_the_current_model(make):
    federation = federation_of(make, buffer_size=1, spread=2.0, mixing=0.6, rebase=True)
    server = first_state(federation)
    for t in range(8):
        outcome = run_round(federation, server)
        (k,), (staleness,) = outcome.result.client_ids, outcome.result.staleness.tolist()
        version = int(server.clock["versions"][server.clock["ids"].tolist().index(k)])
        assert version == t - staleness
        place = server.clock["kept"].tolist().index(version)
        received = replace(server, params=server.clock["params"][place])
        theta = received.params + federation.executor([k], received).updates.rows[0]
        torch.testing.assert_close(outcome.server.params, 0.4 * server.params + 0.6 * theta, atol=1e-6, rtol=1e-5)
        server = outcome.server


def test_what_is_sent_instead_of_the_model_is_what_a_client_works_from(make):
    """FedACG's look-ahead of the round in which the client set out, not of the one in which it is back."""
    federation = federation_of(make, buffer_size=1, spread=2.0)
    federation = replace(federation, algorithm=make.algorithm(FedACG, lam=0.5, beta=0.0))
    server, sent, apart = first_state(federation), {}, 0
    for t in range(8):
        sent[t] = server.params + 0.5 * server.memory["m"]
        for version, params in zip(server.clock["kept"].tolist(), server.clock["params"], strict=True):
            assert torch.equal(params, sent[version])
            apart += not torch.equal(params, server.params)
        server = run_round(federation, server).server
    assert apart > 8


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [("constant", [1.0, 1.0, 1.0]), ("polynomial", [1.0, 0.5, 1 / 3]), ("hinge", [1.0, 1.0, 1 / (0.5 * 6 + 1)])],
)
def test_the_staler_the_less(make, staleness, expected):
    clock = Clock(**{**SETTINGS, "staleness": staleness, "bound": 3, "mixing": 0.5})
    outcome = play(federation_of(make), 1)[0]
    result = replace(outcome.result, staleness=torch.tensor([0, 3, 8]), client_ids=(0, 1, 2))
    if staleness == "hinge":
        result = replace(result, staleness=torch.tensor([0, 3, 9]))
    weights = clock.discounted(torch.ones(3, dtype=torch.float64), result)
    assert weights.tolist() == pytest.approx([0.5 * one for one in expected])


def test_with_places_for_all_and_a_full_buffer_it_is_the_synchronous_round(make):
    plain = make.federation(num_clients=4)
    waiting = replace(plain, clock=Clock(**{**SETTINGS, "buffer_size": 4}))
    expected, found = first_state(plain), first_state(waiting)
    for _ in range(3):
        expected, found = run_round(plain, expected).server, run_round(waiting, found).server
        assert torch.equal(found.params, expected.params)


def test_fedfix_takes_whoever_came_in_time_and_waits_for_the_first(make):
    federation = federation_of(make, interval=0.5, buffer_size=1)
    server, counts = first_state(federation), []
    for _ in range(10):
        outcome = run_round(federation, server)
        now = float(outcome.server.clock["now"])
        passed = now - float(server.clock["now"])
        assert passed / 0.5 == pytest.approx(round(passed / 0.5))
        arrived = server.clock["ids"][server.clock["back"] <= now].tolist()
        assert sorted(arrived) == list(outcome.result.client_ids)
        counts.append(len(arrived))
        server = outcome.server
    assert min(counts) >= 1
    assert len(set(counts)) > 1


def test_stopped_and_resumed_it_goes_on_to_the_same_bits(make, tmp_path):
    straight = play(federation_of(make, spread=2.0), 6)[-1].server
    half = play(federation_of(make, spread=2.0), 3)[-1].server
    path = checkpoints.save(Checkpoint(half, "", "", {}, "", ""), tmp_path)
    resumed = play(federation_of(make, spread=2.0), 3, checkpoints.load(path).server)[-1].server
    assert torch.equal(straight.params, resumed.params)
    assert all(torch.equal(tensor, resumed.clock[name]) for name, tensor in straight.clock.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "clock.concurrency must be a positive integer, got 0"),
        ({"buffer_size": 9}, "clock.buffer_size=9 arrivals would be waited for for ever"),
        ({"staleness": "old"}, "clock.staleness must be one of constant, polynomial, hinge, got 'old'"),
        ({"spread": -1.0}, "clock.spread must be 0 or more, got -1.0"),
        ({"mixing": 0.0}, "clock.mixing must be above 0 and at most 1, got 0.0"),
        ({"interval": 0.0}, "clock.interval must be null or positive, got 0.0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Clock(**{**SETTINGS, **settings})


def test_more_places_than_clients(make):
    with pytest.raises(ConfigurationError, match=r"clock.concurrency=4, but there are 3 clients"):
        first_state(federation_of(make, num_clients=3))
