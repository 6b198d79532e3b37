"""FedPer: a step by hand, a client's own part, and who has none yet."""

import pytest
import torch

from fedgh.algorithm.fedper import FedPer
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients


def fedper(make, own_parameters=("head.*",), **settings):
    return make.algorithm(FedPer, own_parameters=own_parameters, **settings)


def personal(federation, server):
    return [federation.algorithm.personal(view).params.tolist() for view in federation.executor.views([0, 1], server)]


def test_a_step_by_hand(make):
    """y = 2: b = h = 1.1; y = 0: b = h = 0.9. The bodies' mean is 1, the heads stay; FedAvg's would be 1 and 1."""
    federation = two_clients(make, fedper(make, lr=0.05))
    outcome = run_round(federation, first_state(federation))
    assert outcome.server.params.tolist() == pytest.approx([1.0, 1.0])
    assert outcome.result.updates.rows.flatten().tolist() == pytest.approx([0.1, 0.0, -0.1, 0.0])
    first, second = personal(federation, outcome.server)
    assert first == pytest.approx([1.0, 1.1])
    assert second == pytest.approx([1.0, 0.9])
    assert outcome.gram.flatten().tolist() == pytest.approx([0.01, -0.01, -0.01, 0.01])


def test_the_second_visit_goes_on_from_the_own_head(make):
    """y = 2 from b = 1, h = 1.1: residual -0.9, b = 1 + 0.1 0.9 1.1 = 1.099, h = 1.1 + 0.1 0.9 = 1.19."""
    federation = two_clients(make, fedper(make, lr=0.05))
    server = run_round(federation, first_state(federation)).server
    outcome = run_round(federation, server)
    assert outcome.result.updates.rows[0].tolist() == pytest.approx([0.099, 0.0])
    assert outcome.server.clients[0]["own"].tolist() == pytest.approx([1.19])


def test_who_has_never_taken_part_has_the_initial_head_on_the_current_body(make):
    federation = two_clients(make, fedper(make, lr=0.05))
    start = first_state(federation)
    result = federation.executor([0], start)
    assert result.client_states.keys() == {0}
    view = next(federation.executor.views([1], start))
    assert federation.algorithm.personal(view).params.tolist() == [1.0, 1.0]


def test_momentum_and_decay_move_what_is_own_and_what_travels(make):
    """Nothing is masked while training: only afterwards the own part is taken out of the update."""
    federation = two_clients(make, fedper(make, lr=0.05, momentum=0.9, weight_decay=0.1, local_epochs=3))
    outcome = run_round(federation, first_state(federation))
    rows = outcome.result.updates.rows
    assert (rows[:, 1] == 0).all()
    assert (rows[:, 0] != 0).all()
    assert outcome.server.clients[0]["own"].item() != outcome.server.clients[1]["own"].item()


def test_a_pattern_that_fits_nothing_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"no parameter of this model is named 'fc.\*'; it has: body.weight"):
        two_clients(make, fedper(make, own_parameters=("fc.*",)))


def test_a_body_is_shared_and_a_head_is_not_whatever_the_model(make):
    federation = make.federation(module=make.normed(), algorithm=fedper(make, batch_size=4))
    names = [b.name for b in federation.model.blocks if not federation.executor.shared[b.start : b.stop].all()]
    assert names == ["head.weight", "head.bias"]
    assert int((~federation.executor.shared).sum()) == 6 * 3 + 3
    assert torch.equal(federation.algorithm.own(federation.model.blocks), ~federation.executor.shared)
