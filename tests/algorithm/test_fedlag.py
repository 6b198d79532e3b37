"""FedLAG: counts by hand, what becomes private, and that the shared part really reaches the clients afterwards."""

import itertools
from functools import partial

import pytest
import torch

from fedgh import config
from fedgh.algorithm.fedlag import FedLAG
from fedgh.core.errors import ConfigurationError
from fedgh.core.groups import conflicting_pairs, group_names
from fedgh.core.types import GlobalModel
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients


def fedlag(make, **settings):
    chosen = {"num_private": 1, "warmup_rounds": 1, "threshold": 0.0, "scope": "block", "choice": "conflict"}
    return make.algorithm(FedLAG, lr=0.05, **{**chosen, **settings})


def personal(federation, server):
    return [federation.algorithm.personal(view).params.tolist() for view in federation.executor.views([0, 1], server)]


def test_two_rounds_by_hand(make):
    """Round 1 is FedAvg: (b, h) go to (1.1, 1.1) and (0.9, 0.9), the mean is (1, 1); both numbers conflict, b is first.

    Round 2: y = 2 starts at its own b = 1.1 and the shared h = 1: residual -0.9, b = 1.1 + 0.09, h = 1 + 0.1 0.9 1.1.
    y = 0 at b = 0.9, h = 1: residual 0.9, b = 0.9 - 0.09, h = 1 - 0.1 0.9 0.9.
    """
    federation = two_clients(make, fedlag(make))
    first = run_round(federation, first_state(federation))
    assert first.server.params.tolist() == pytest.approx([1.0, 1.0])
    assert first.server.memory["scores"].tolist() == [1, 1]
    assert first.server.memory["private"].tolist() == [True, False]
    assert personal(federation, first.server) == [pytest.approx([1.1, 1.0]), pytest.approx([0.9, 1.0])]
    second = run_round(federation, first.server)
    rows = second.result.updates.rows
    assert rows.flatten().tolist() == pytest.approx([0, 0.099, 0, -0.081])
    assert second.server.params.tolist() == pytest.approx([1.0, 1.009])
    assert personal(federation, second.server) == [pytest.approx([1.19, 1.009]), pytest.approx([0.81, 1.009])]
    assert second.result.bytes_up == first.result.bytes_up - 2 * 4  # b is not sent any more
    assert second.server.memory["scores"].tolist() == [1, 1]  # counted in the warm-up only


def test_the_shared_part_of_every_client_is_the_servers(make):
    """In the released code it is not: after the warm-up nothing reaches the clients any more."""
    federation = make.federation(algorithm=make.algorithm(FedLAG, **SETTINGS), fraction=0.5)
    server = first_state(federation)
    for _ in range(4):
        server = run_round(federation, server).server
    private = server.memory["private"]
    assert private.sum() == 1
    for view in federation.executor.views(range(federation.num_clients), server):
        model = federation.algorithm.personal(view)
        columns = federation.algorithm._columns(view)
        assert torch.equal(model.params[~columns], server.params[~columns])
        if view.client_id in server.clients:
            assert torch.equal(model.params[columns], server.clients[view.client_id]["params"][columns])
        else:
            assert torch.equal(model.params, server.params)


@pytest.mark.parametrize("name", ["fedlag_digits", "fedlag_mnist", "fedlag_cifar10"])
def test_the_experiments_run(root_config, name):
    """Two rounds on digits, the second with a private layer, whatever data the experiment has."""
    small = ["dataset=digits", "model=mlp", "model.hidden=[16]", "partition.num_clients=4", "algorithm.local_epochs=1"]
    choices = ["algorithm=fedlag", "algorithm.warmup_rounds=1", "logger=csv", "callback=none", "trainer=cpu"]
    cfg = config.resolve(root_config(f"experiment={name}", *choices, *small))
    assert cfg.evaluation.after_training
    federation = config.build_federation(cfg)
    server = first_state(federation)
    for _ in range(2):
        outcome = run_round(federation, server)
        server = outcome.server
    assert sum(server.memory["private"].tolist()) == 1
    own = {k: v for k, v in federation.algorithm.metrics(server, outcome.result).items() if k.startswith("algorithm/p")}
    assert sorted(own.values()) == [0, 1]
    columns = federation.algorithm._columns(next(federation.executor.views([0], server)))
    assert not outcome.result.updates.rows[:, columns].any()


def test_many_clients_at_once_and_one_after_the_other(make):
    """Beyond the warm-up, which the generated tests do not reach."""
    found = []
    for executor in (SequentialExecutor, partial(VectorizedExecutor, width=2)):
        federation = make.federation(algorithm=make.algorithm(FedLAG, **SETTINGS), executor=executor)
        server = first_state(federation)
        for _ in range(4):
            server = run_round(federation, server).server
        found.append((server.params, torch.stack([server.clients[k]["params"] for k in sorted(server.clients)])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


SETTINGS = {"num_private": 1, "warmup_rounds": 2, "threshold": 0.0, "scope": "layer", "choice": "conflict"}


def test_in_the_warm_up_clients_use_the_global_model(make):
    federation = two_clients(make, fedlag(make, warmup_rounds=3))
    server = run_round(federation, first_state(federation)).server
    assert personal(federation, server) == [server.params.tolist()] * 2
    for view in federation.executor.views([0], server):
        assert isinstance(federation.algorithm.personal(view), GlobalModel)
        assert federation.algorithm.personal(view) is view.received


def test_everything_private_is_training_alone(make):
    federation = two_clients(make, fedlag(make, num_private=9))
    server = run_round(federation, first_state(federation)).server
    alone = [[1.1, 1.1], [0.9, 0.9]]
    for _ in range(2):
        server = run_round(federation, server).server
        for model, y in zip(alone, (2.0, 0.0), strict=True):
            b, h = model
            residual = b * h - y
            model[:] = b - 0.1 * residual * h, h - 0.1 * residual * b
    assert personal(federation, server) == [pytest.approx(alone[0], rel=1e-5), pytest.approx(alone[1], rel=1e-5)]
    assert server.params.tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("choice", "private"),
    [("conflict", [1, 3]), ("least", [0, 2]), ("first", [0, 1]), ("last", [2, 3])],
)
def test_who_is_chosen(make, choice, private):
    scores = torch.tensor([1.0, 5.0, 1.0, 2.0]).double()  # of equal ones the earlier
    algorithm = fedlag(make, num_private=2, choice=choice)
    assert algorithm.chosen(scores).nonzero().flatten().tolist() == private


def test_conflicts_equal_a_loop_over_pairs():
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(3)).double()
    rows[2, :4] = 0  # conflicts with nobody there
    spans = [(0, 4), (4, 9)]
    grams = torch.stack([rows[:, a:b] @ rows[:, a:b].T for a, b in spans])
    for threshold in (0.0, -0.3, 0.4):
        expected = [
            sum(
                bool(u.norm() * v.norm() > 0 and u @ v < threshold * u.norm() * v.norm())
                for u, v in itertools.combinations(rows[:, a:b], 2)
            )
            for a, b in spans
        ]
        assert conflicting_pairs(grams, threshold).tolist() == expected


def test_metrics_name_layers(make):
    federation = two_clients(make, fedlag(make))
    outcome = run_round(federation, first_state(federation))
    assert group_names(federation.model.blocks, "layer") == ["body", "head"]
    assert federation.algorithm.metrics(outcome.server, outcome.result) == {
        "algorithm/conflict/body.weight": 1.0,
        "algorithm/conflict/head.weight": 1.0,
        "algorithm/private/body.weight": 1.0,
        "algorithm/private/head.weight": 0.0,
    }


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_private", -1, "0 (FedAvg) or more, got -1"),
        ("warmup_rounds", 0, "at least 1, got 0"),
        ("threshold", -1.5, "in [-1, 1], got -1.5"),
        ("scope", "model", "layer or block, got 'model'"),
        ("choice", "most", "one of conflict, least, first, last, got 'most'"),
    ],
)
def test_settings_out_of_range(make, key, value, expected):
    with pytest.raises(ConfigurationError) as error:
        fedlag(make, **{key: value})
    assert str(error.value) == f"algorithm.{key} must be {expected}"
