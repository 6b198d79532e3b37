"""FAL: the attack by hand, what it may and may not change, and accuracy under attack."""

from functools import partial

import pytest
import torch

from fedgh.algorithm.fal import FAL
from fedgh.callback.robust import Robust
from fedgh.core.attack import pgd
from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import input_range
from fedgh.federation.round import first_state, run_round
from fedgh.tracking.row import Row
from tests.algorithm.stand_in import Quadratic, StandIn
from tests.algorithm.two_numbers import two_clients


def fal(make, epsilon=0.1, step_size=0.05, attack_steps=3, **settings):
    return make.algorithm(FAL, epsilon=epsilon, step_size=step_size, attack_steps=attack_steps, **settings)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_attack_by_hand():
    """Loss x_1 - x_2 + 0 x_3, steps of 0.2 in a box of 0.3 around (0.5, 0.1, 0.7), pixels in [0, 1]: 0.8, 0, 0.7."""
    ball = tuple(map(torch.tensor, (0.0, 1.0, 0.3, 0.2)))
    loss = lambda x: (x * vector(1, -1, 0)).sum()  # noqa: E731
    assert pgd(loss, vector(0.5, 0.1, 0.7), ball, 1).tolist() == pytest.approx([0.7, 0, 0.7])
    assert pgd(loss, vector(0.5, 0.1, 0.7), ball, 2).tolist() == pytest.approx([0.8, 0, 0.7])


def test_the_gradient_is_that_at_the_attacked_inputs(make):
    """Loss (theta x)^2 with theta = 2, x = 1, attacked 1.1: 2 theta x^2 = 4.84; nothing flows through the attack."""
    algorithm = fal(make)
    forward = StandIn(lambda params, x: ((params * x).square().sum(), x), Quadratic())
    state = dict(zip(("low", "high", "epsilon", "step"), vector(-9, 9, 0.1, 0.1), strict=True))
    batch = vector(1), torch.zeros(1, dtype=torch.int64)
    loss = lambda p: algorithm.local_loss(batch, forward, p, None, state)  # noqa: E731
    gradient, value = forward.gradients(loss, vector(2))
    assert gradient.item() == pytest.approx(4.84)
    assert value.item() == pytest.approx(4.84)


def test_pixels_as_the_model_sees_them(make):
    dataset = make.dataset()
    low, high = input_range(dataset)
    assert low.shape == (1, 1, 1)
    assert low.item() == pytest.approx((0 - 0.4) / 0.25)
    assert high.item() == pytest.approx((1 - 0.4) / 0.25)
    federation = make.federation(algorithm=fal(make))
    (view,) = federation.executor.views([0], first_state(federation))
    state = federation.algorithm.prepare(view).state
    assert state["epsilon"].item() == pytest.approx(0.1 / 0.25)
    assert state["step"].item() == pytest.approx(0.05 / 0.25)


def test_accuracy_under_attack(make):
    """On logistic regression against the exact worst case; training under attack gains, and every so many rounds."""
    robust, found = Robust(every=2, epsilon=0.08, step_size=0.08, attack_steps=1, batch_size=7), {}
    dataset = make.dataset(num_train=120)
    for epsilon in (0.0, 0.08):
        algorithm = fal(make, epsilon, step_size=0.08, attack_steps=1, lr=0.5, local_epochs=4)
        federation = make.federation(algorithm=algorithm, dataset=dataset)
        server = first_state(federation)
        for _ in range(8):
            outcome = run_round(federation, server)
            server = outcome.server
        row = Row(server.round_index)
        robust(federation, None, outcome, row)
        found[epsilon] = row.metrics["global/test/robust_acc"]
    assert found[0.0] < found[0.08]
    row = Row(3)
    robust(federation, None, outcome, row)
    assert row.metrics == {}
    clean = Robust(every=1, epsilon=0.0, step_size=0.1, attack_steps=2, batch_size=30).score(federation, server)
    outputs, _ = federation.model.functional_forward(server.params, dataset.normalized_test_inputs)
    assert clean == pytest.approx(float((outputs.argmax(1) == dataset.test_targets).float().mean()))


def test_what_has_no_pixels_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"FAL needs a data set of images, such as dataset=digits"):
        two_clients(make, fal(make))
    federation = two_clients(make, make.algorithm())
    with pytest.raises(ConfigurationError, match=r"callback=robust changes pixels; take a data set of images"):
        Robust(1, 0.1, 0.1, 1, 10).prepare(federation, None, None)


@pytest.mark.parametrize("settings", [{"epsilon": -0.1}, {"step_size": 0.0}, {"attack_steps": 0}])
def test_bad_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{next(iter(settings))} must be "):
        partial(fal, make)(**settings)
