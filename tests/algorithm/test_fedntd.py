"""FedNTD: the distillation by hand, and what gets no gradient from it."""

import math

import pytest
import torch

from fedgh.algorithm.fedntd import FedNTD, not_true
from fedgh.core.errors import ConfigurationError
from tests.algorithm.stand_in import NOTHING, StandIn

OURS, THEIRS = [5.0, 0.0, 0.0], [-7.0, math.log(3), 0.0]


def losses(make, ours, theirs, targets=(0,), beta=1.0, temperature=1.0):
    """Return the loss without and with the distillation at logits that are the parameters, and the gradients."""
    found = []
    for strength in (0.0, beta):
        algorithm = make.algorithm(FedNTD, beta=strength, temperature=temperature)
        params = torch.tensor(ours, requires_grad=True)
        forward = StandIn(lambda params, inputs: (params.expand(len(inputs), -1), params))
        batch = torch.zeros(len(targets), 1), torch.tensor(targets)
        loss = algorithm.local_loss(batch, forward, params, torch.tensor(theirs), {"buffers": NOTHING})
        loss.backward()
        found += [loss.item(), params.grad]
    return found


def test_the_distillation_by_hand(make):
    """q_g = (3/4, 1/4), q = (1/2, 1/2): KL = 0.75 log 1.5 + 0.25 log 0.5; the gradient q - q_g, 0 at the true."""
    plain, slope, both, steeper = losses(make, OURS, THEIRS)
    assert both - plain == pytest.approx(0.130812, abs=1e-6)
    assert (steeper - slope).tolist() == pytest.approx([0.0, -0.25, 0.25], abs=1e-6)
    plain, _, both, _ = losses(make, OURS, THEIRS, beta=3.0)
    assert both - plain == pytest.approx(3 * 0.130812, abs=1e-5)


def test_the_temperature_by_hand(make):
    """T = 2 and theirs = 2 log 3: q_g is the same, the loss four times the divergence, the gradient twice."""
    plain, slope, both, steeper = losses(make, OURS, [-7.0, 2 * math.log(3), 0.0], temperature=2.0)
    assert both - plain == pytest.approx(4 * 0.130812, abs=1e-5)
    assert (steeper - slope).tolist() == pytest.approx([0.0, -0.5, 0.5], abs=1e-6)


def test_two_classes_are_fedavg(make):
    plain, slope, both, steeper = losses(make, [1.0, -2.0], [3.0, 4.0], targets=(1,))
    assert plain == both
    assert torch.equal(slope, steeper)


def test_no_overflow_where_a_logit_is_huge(make):
    _, _, loss, gradient = losses(make, [0.0, 500.0, -500.0], [0.0, -500.0, 500.0])
    assert loss == pytest.approx(1500)  # cross-entropy 500, divergence 1000
    assert gradient.isfinite().all()


def test_rows_that_fill_up_a_batch_do_not_count(make):
    assert losses(make, OURS, THEIRS)[2] == losses(make, OURS, THEIRS, targets=(0, -100))[2]


def test_every_class_but_the_true_one_in_order():
    logits = torch.arange(12.0).view(3, 4)
    assert not_true(logits, torch.tensor([0, 2, 3])).tolist() == [[1, 2, 3], [4, 5, 7], [8, 9, 10]]


@pytest.mark.parametrize(("settings", "key"), [({"beta": -1.0}, "beta"), ({"temperature": 0.0}, "temperature")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        make.algorithm(FedNTD, **{"beta": 1.0, "temperature": 1.0, **settings})
