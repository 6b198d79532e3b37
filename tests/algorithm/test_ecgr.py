"""ECGR: the choice of steps by hand, and a round against its steps."""

import pytest
import torch

from fedgh.algorithm.ecgr import ECGR
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.two_numbers import two_clients

STEPS = [[1, 0], [0, 2], [-0.5, 1], [3, 1]]


def ecgr(make, **settings):
    return make.algorithm(ECGR, **{"select_ratio": 0.5, "beta": 0.2, "lr": 0.05, **settings})


def test_the_choice_by_hand(make):
    """The shortest step is the first; with it, (0.5, 1) is shorter than (1, 2) and (4, 1), so the third is chosen.

    c = (0.5, 1) + 0.2 (3, 3) = (1.1, 1.6), as long as the sum (3.5, 4): times 2.7374.
    """
    steps = torch.tensor(STEPS, dtype=torch.float64)
    counts = ecgr(make).counts(steps @ steps.T)
    torch.testing.assert_close(counts, torch.tensor([2.7374, 0.54748, 2.7374, 0.54748]).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(counts @ steps, torch.tensor([3.01114, 4.37984]).double(), rtol=0, atol=1e-4)


def test_steps_that_cancel_altogether_are_sent_as_they_are(make):
    steps = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)
    assert ecgr(make, select_ratio=1.0).counts(steps @ steps.T).tolist() == [1, 1]
    assert ecgr(make).counts(steps[:1] @ steps[:1].T).tolist() == [1]  # one step alone is what it is


def test_a_round_turns_the_update_and_keeps_its_length(make):
    """Three epochs of one step; y = 2 from b = h = 1, steps worked out with a residual of h b - 2."""
    plain, turned = (
        run_round(f, first_state(f)).result.updates.rows[0].double()
        for f in (two_clients(make, ecgr(make, local_epochs=3, beta=beta)) for beta in (1.0, 0.2))
    )
    b, h, steps = 1.0, 1.0, []
    for _ in range(3):
        residual = h * b - 2
        steps.append([-0.1 * residual * h, -0.1 * residual * b])
        b, h = b + steps[-1][0], h + steps[-1][1]
    steps = torch.tensor(steps, dtype=torch.float64)
    torch.testing.assert_close(plain, steps.sum(0), rtol=1e-5, atol=0)
    lengths = steps.norm(dim=1)
    counts = torch.where(lengths == lengths.min(), 1.0, 0.2).double()  # one of three is chosen, the shortest
    expected = counts @ steps
    torch.testing.assert_close(turned, expected * plain.norm() / expected.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("select_ratio", 0.0, "above 0, at most 1, got 0.0"), ("beta", -1.0, "0 or more; 1 is FedAvg, got -1.0")],
)
def test_settings_out_of_range(make, key, value, expected):
    with pytest.raises(ConfigurationError) as error:
        ecgr(make, **{key: value})
    assert str(error.value) == f"algorithm.{key} must be {expected}"
