"""FedLC: calibrated logits by hand; classes that a client has none of."""

import math

import pytest
import torch

from fedgh.algorithm.fedlc import FedLC
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state
from tests.algorithm.stand_in import StandIn, client_of, state_of


def loss_of(make, counts, logits=(0.0, 0.0, 0.0), targets=(0,), tau=1.0, absent_count=0.0):
    """Return loss and gradient at logits that are the parameters."""
    algorithm = make.algorithm(FedLC, tau=tau, absent_count=absent_count)
    state = algorithm.prepare(client_of(state_of(list(logits)), label_counts=torch.tensor(counts))).state
    params = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    forward = StandIn(lambda params, inputs: (params.expand(len(inputs), -1), params))
    batch = torch.zeros(len(targets), 1), torch.tensor(targets)
    loss = algorithm.local_loss(batch, forward, params, params.detach(), state)
    loss.backward()
    return loss.item(), params.grad.tolist()


def test_the_loss_by_hand(make):
    """n = (1, 16, 81): logits (-1, -1/2, -1/3); y = 0: 1 + log(e^-1 + e^-1/2 + e^-1/3)."""
    assert loss_of(make, [1, 16, 81])[0] == pytest.approx(1.525285, abs=1e-6)
    assert loss_of(make, [1, 16, 81], tau=0.0)[0] == pytest.approx(math.log(3))
    rare, frequent = loss_of(make, [1, 16, 81])[1], loss_of(make, [1, 16, 81], targets=(2,))[1]
    assert rare[0] < frequent[2] < 0  # a rare class is pulled harder


def test_equal_counts_are_the_plain_loss(make):
    for tau in (0.5, 2.0):
        assert loss_of(make, [7, 7, 7], [1.0, 2.0, -1.0], tau=tau)[0] == pytest.approx(
            loss_of(make, [7, 7, 7], [1.0, 2.0, -1.0], tau=0.0)[0]
        )


def test_a_class_that_a_client_has_none_of_gets_no_gradient(make):
    """n = (1, 0, 1): a softmax over the two others, log 2; a client of one class has nothing to learn from its loss."""
    loss, gradient = loss_of(make, [1, 0, 1], [0.0, 9.0, 0.0])
    assert loss == pytest.approx(math.log(2))
    assert gradient == pytest.approx([-0.5, 0.0, 0.5])
    assert loss_of(make, [5, 0, 0], [0.0, 9.0, 3.0]) == (0.0, [0.0, 0.0, 0.0])


def test_it_may_count_as_a_part_of_an_example(make):
    """n = (1, 1/16, 1): logits (-1, -2, -1); y = 0: 1 + log(2 e^-1 + e^-2). Who has the class counts as before."""
    loss, gradient = loss_of(make, [1, 0, 1], absent_count=1 / 16)
    assert loss == pytest.approx(math.log(2 + math.exp(-1)))
    assert gradient[1] == pytest.approx(math.exp(-1) / (2 + math.exp(-1)))
    assert loss_of(make, [1, 16, 81], absent_count=1.0) == loss_of(make, [1, 16, 81])


def test_rows_that_fill_up_a_batch_do_not_count(make):
    assert loss_of(make, [1, 0, 4]) == loss_of(make, [1, 0, 4], targets=(0, -100))


def test_counts_are_the_clients_own(make):
    federation = make.federation(algorithm=make.algorithm(FedLC, tau=1.0, absent_count=0.0), num_clients=3)
    for view in federation.executor.views(range(3), first_state(federation)):
        rows = federation.partition.client_indices[view.client_id]
        counts = torch.bincount(federation.dataset.train_targets[rows], minlength=federation.dataset.num_classes)
        torch.testing.assert_close(federation.algorithm.prepare(view).state["margin"], counts.float() ** -0.25)


def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.tau must be 0 \(FedAvg\) or more"):
        make.algorithm(FedLC, tau=-1.0, absent_count=0.0)
    with pytest.raises(ConfigurationError, match=r"algorithm.absent_count must be from 0 .* to 1, got 2.0"):
        make.algorithm(FedLC, tau=1.0, absent_count=2.0)
