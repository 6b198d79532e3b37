"""FedCM: two rounds by hand, whose rate and how many steps d is divided by, and what d is made of."""

from dataclasses import replace

import pytest
import torch

from fedgh.algorithm.fedcm import FedCM
from fedgh.core.errors import ConfigurationError
from tests.algorithm.drive import begin, play
from tests.algorithm.stand_in import cohort_of, half_square, state_of

ZERO = torch.tensor([0.0], dtype=torch.float64)


def fedcm(make, alpha=0.5, direction="applied", **settings):
    return make.algorithm(FedCM, alpha=alpha, direction=direction, **settings)


def test_two_rounds_by_hand(make):
    """f = theta^2 / 2, w = 1, lr 0.1: direction 0.5, w = 0.95, d = 0.5; then 0.475 + 0.25 = 0.725, w = 0.8775."""
    algorithm = fedcm(make)
    server = begin(algorithm, state_of([1.0]), [1])
    for w, d in ((0.95, 0.5), (0.8775, 0.725)):
        server = play(algorithm, server, [ZERO], [0], [1], half_square, [1])
        assert server.params.item() == pytest.approx(w)
        assert server.memory["d"].item() == pytest.approx(d)


def test_the_rate_is_that_of_the_round_that_made_the_step(make):
    """d = 0.5 whatever the rate: 0.1, or 0.2 and two steps 1 -> 0.9 -> 0.81, d = 0.19 / 0.4."""
    algorithm = fedcm(make)
    first = play(algorithm, begin(algorithm, state_of([1.0]), [1]), [ZERO], [0], [1], half_square, [2], lr=0.2)
    assert first.memory["d"].item() == pytest.approx(0.475)
    second = play(algorithm, first, [ZERO], [0], [1], half_square, [1], lr=0.1)
    assert second.params.item() == pytest.approx(0.81 - 0.1 * (0.405 + 0.2375))
    assert second.memory["d"].item() == pytest.approx(0.6425)


def test_momentum_is_divided_out(make):
    """A constant gradient g: three steps with momentum 0.9 give back d = alpha g."""
    algorithm = fedcm(make, momentum=0.9)
    linear = lambda params, target: (2 * params.sum(), params)  # noqa: E731
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1]), [ZERO], [0], [1], linear, [3])
    assert server.memory["d"].item() == pytest.approx(1.0)


def test_unequal_clients(make):
    """n = (1, 3), 1 and 2 steps along the constant 1 and 2: step -0.1 (0.25 + 3), mean length 0.1 (0.25 + 1.5)."""
    algorithm = fedcm(make, alpha=1.0)
    linear = lambda params, slope: (slope * params.sum(), params)  # noqa: E731
    server = begin(algorithm, state_of([1.0]), [1, 3])
    server = play(algorithm, server, [1.0, 2.0], [0, 1], [1, 3], linear, [1, 2])
    assert server.memory["d"].item() == pytest.approx(3.25 / 1.75)


@pytest.mark.parametrize(("direction", "d"), [("applied", -7.0), ("raw", -2.0)])
def test_what_d_is_made_of(make, direction, d):
    """Updates 1 and 3, the server moves by 7, the paths are of length 1."""
    algorithm = fedcm(make, direction=direction)
    before = begin(algorithm, state_of([1.0]), [1, 1])
    rows, one = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.tensor(1.0)
    result = cohort_of(rows, [0, 1], [1, 1], {"length": [one, one]})
    after = algorithm.conclude(before, replace(before, params=before.params + 7), result)
    assert after.memory["d"].item() == pytest.approx(d)
    assert after.params.item() == 8
    assert before.memory["d"].item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"alpha": 1.5}, "alpha must be above 0"),
        ({"direction": "both"}, "direction must be applied or raw"),
    ],
)
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ConfigurationError, match=f"algorithm.{message}"):
        fedcm(make, **settings)
