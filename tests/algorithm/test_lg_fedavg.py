"""LG-FedAvg: a step by hand, who keeps what, and who has none yet."""

import pytest
import torch

from fedgh.algorithm.lg_fedavg import LGFedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients


def lg_fedavg(make, shared_parameters=("head.*",), **settings):
    return make.algorithm(LGFedAvg, shared_parameters=shared_parameters, **settings)


def personal(federation, server):
    return [federation.algorithm.personal(view).params.tolist() for view in federation.executor.views([0, 1], server)]


def test_two_rounds_by_hand(make):
    """y = 2: b = h = 1.1; y = 0: 0.9; heads: mean 1, bodies stay. Then h = 1 + 0.1 0.9 1.1 and 1 - 0.1 0.9 0.9."""
    federation = two_clients(make, lg_fedavg(make, lr=0.05))
    outcome = run_round(federation, first_state(federation))
    assert outcome.server.params.tolist() == pytest.approx([1.0, 1.0])
    assert outcome.result.updates.rows.flatten().tolist() == pytest.approx([0.0, 0.1, 0.0, -0.1])
    first, second = personal(federation, outcome.server)
    assert first == pytest.approx([1.1, 1.0])
    assert second == pytest.approx([0.9, 1.0])
    again = run_round(federation, outcome.server)
    assert again.result.updates.rows.flatten().tolist() == pytest.approx([0.0, 0.099, 0.0, -0.081])
    assert again.server.params.tolist() == pytest.approx([1.0, 1.009])


def test_who_was_absent_has_the_current_head_on_its_own_body(make):
    federation = two_clients(make, lg_fedavg(make, lr=0.05), fraction=0.5)
    outcome = run_round(federation, first_state(federation))
    (present,) = outcome.result.client_ids
    absent = personal(federation, outcome.server)[1 - present]
    assert absent == pytest.approx([1.0, outcome.server.params[1].item()])
    assert absent[1] != 1.0


def test_running_statistics_stay_with_the_client(make):
    federation = make.federation(module=make.normed(), algorithm=lg_fedavg(make, batch_size=4))
    start = first_state(federation)
    server = run_round(federation, start).server
    assert torch.equal(server.buffers, start.buffers)
    names = [b.name for b in federation.model.blocks if federation.executor.shared[b.start : b.stop].all()]
    assert names == ["head.weight", "head.bias"]
    view = next(iter(federation.executor.views([0], server)))
    assert not torch.equal(federation.algorithm.personal(view).buffers, start.buffers)


def test_a_pattern_that_fits_nothing_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"no parameter of this model is named 'fc.\*'; it has: body.weight"):
        two_clients(make, lg_fedavg(make, shared_parameters=("fc.*",)))
