"""FedRep: head first, then body, by hand; what is at rest is moved by nothing."""

import pytest
import torch

from fedgh.algorithm.fedrep import FedRep
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients


def fedrep(make, **settings):
    own = {"own_parameters": ["head.*"], "body_epochs": 1, "head_lr": None, "body_lr": None}
    return make.algorithm(FedRep, **{**own, "local_epochs": 2, **settings})


def after(make, **settings):
    """Return body of the server and, of each client, its update's body and its head."""
    federation = two_clients(make, fedrep(make, **{"lr": 0.05, **settings}))
    outcome = run_round(federation, first_state(federation))
    heads = [outcome.server.clients[k]["own"].item() for k in (0, 1)]
    assert (outcome.result.updates.rows[:, 1] == 0).all()
    return outcome.server.params[0].item(), outcome.result.updates.rows[:, 0].tolist(), heads


def test_a_head_step_and_then_a_body_step_by_hand(make):
    """y = 2: h = 1.1, then b = 1 + 0.1 0.9 1.1 = 1.099; y = 0: h = 0.9, b = 1 - 0.1 0.9 0.9 = 0.919; mean 1.009."""
    body, updates, heads = after(make)
    assert heads == pytest.approx([1.1, 0.9])
    assert updates == pytest.approx([0.099, -0.081])
    assert body == pytest.approx(1.009)


def test_each_part_has_its_rate(make):
    """h at half the rate: 1.05, residual -0.95; b at the double: 1 + 0.2 0.95 1.05."""
    _, updates, heads = after(make, head_lr=0.025, body_lr=0.1)
    assert heads[0] == pytest.approx(1.05)
    assert updates[0] == pytest.approx(0.2 * 0.95 * 1.05)


def test_what_is_at_rest_gets_neither_momentum_nor_decay(make):
    """With momentum the head would go on in the body's phase, and the body would start with the head's buffer."""
    _, updates, heads = after(make, momentum=0.9)
    assert heads == pytest.approx([1.1, 0.9])
    assert updates == pytest.approx([0.099, -0.081])
    _, updates, heads = after(make, momentum=0.9, weight_decay=0.2)  # each decays once, in its own phase
    assert heads[0] == pytest.approx(1 + 0.05 * (2 - 0.2))
    assert updates[0] == pytest.approx(0.05 * (2 * (2 - heads[0]) * heads[0] - 0.2))


def test_two_head_epochs_and_one_of_the_body(make):
    """h = 1.1, 1.19; b = 1 + 0.1 0.81 1.19."""
    _, updates, heads = after(make, local_epochs=3)
    assert heads[0] == pytest.approx(1.19)
    assert updates[0] == pytest.approx(0.1 * 0.81 * 1.19)


def test_all_epochs_for_one_part(make):
    body, updates, heads = after(make, body_epochs=0)
    assert (body, updates) == (1.0, [0.0, 0.0])
    assert heads[0] == pytest.approx(1.19)
    _, updates, heads = after(make, body_epochs=2)
    assert heads == [1.0, 1.0]
    assert updates[0] == pytest.approx(0.19)


def test_batches_go_on_through_the_phases(make):
    """Two epochs' worth of steps: the head's are the first epoch's, the body's the second's."""
    federation = make.federation(module=make.normed(), algorithm=fedrep(make, batch_size=4))
    result = federation.executor([0, 1, 2], first_state(federation))
    assert result.local_steps.tolist() == [2 * 5] * 3
    head = ~federation.executor.shared
    (first, second) = federation.executor.phases
    assert torch.equal(first.columns, head)
    assert torch.equal(second.columns, ~head)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"body_epochs": 3}, "body_epochs"), ({"body_epochs": -1}, "body_epochs"), ({"head_lr": 0.0}, "head_lr")],
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedrep(make, **settings)
