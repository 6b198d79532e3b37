"""Local training: two clients by hand; nothing travels, and nothing of the global model moves."""

import pytest
import torch

from fedgh.algorithm.local import LocalOnly
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients


def personal(federation, server):
    return [federation.algorithm.personal(view).params.tolist() for view in federation.executor.views([0, 1], server)]


@pytest.mark.parametrize("rule", ["mean", "fedgh", "median"])
def test_two_visits_by_hand(make, rule):
    """y = 2: b = h = 1.1, then 1.1 + 0.1 (2 - 1.21) 1.1; y = 0: 0.9, then 0.9 - 0.1 0.81 0.9; the global is (1, 1)."""
    federation = two_clients(make, make.algorithm(LocalOnly, lr=0.05), aggregator=make.rule(rule))
    server = first_state(federation)
    for wanted in ([1.1, 0.9], [1.1869, 0.8271]):
        outcome = run_round(federation, server)
        server = outcome.server
        assert server.params.tolist() == [1.0, 1.0]
        assert not outcome.result.updates.rows.any()
        assert outcome.result.bytes_up == outcome.result.bytes_down == 0
        for model, number in zip(personal(federation, server), wanted, strict=True):
            assert model == pytest.approx([number, number])


def test_who_is_absent_stays_and_who_is_new_has_the_initial_model(make):
    federation = two_clients(make, make.algorithm(LocalOnly, lr=0.05))
    start = first_state(federation)
    result = federation.executor([0], start)
    assert result.client_states.keys() == {0}
    assert personal(federation, start)[1] == [1.0, 1.0]


def test_running_statistics_are_the_clients_own(make):
    federation = make.federation(module=make.normed(), algorithm=make.algorithm(LocalOnly, batch_size=4))
    start = first_state(federation)
    server = run_round(federation, start).server
    assert torch.equal(server.buffers, start.buffers)
    first, second, _ = (federation.algorithm.personal(view) for view in federation.executor.views([0, 1, 2], server))
    assert not torch.equal(first.buffers, start.buffers)
    assert not torch.equal(first.buffers, second.buffers)
