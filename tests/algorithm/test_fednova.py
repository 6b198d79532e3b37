"""FedNova: its coefficient by simulation, its weights by hand, and that it commutes with FedGH."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.base import accumulation
from fedgh.algorithm.fednova import FedNova
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix
from fedgh.federation.round import initial_state, run_round


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_coefficient_by_simulation(momentum, steps):
    """Step s has the gradient e_s, so that the final parameters spell out how often it was counted."""
    params = torch.nn.Parameter(torch.zeros(steps, dtype=torch.float64))
    optimizer = torch.optim.SGD([params], lr=0.01, momentum=momentum)
    for step in range(steps):
        params.grad = torch.zeros_like(params)
        params.grad[step] = 1
        optimizer.step()
    counted = -params.detach() / 0.01
    norm = accumulation(torch.tensor([steps]), momentum)
    assert norm.item() == pytest.approx(float(counted.abs().sum()), rel=1e-10)


def test_coefficient_by_hand():
    """rho = 1/2: one step 1; two steps (3/2) + 1; three steps (7/4) + (3/2) + 1."""
    assert accumulation(torch.tensor([1, 2, 3]), 0.5).tolist() == pytest.approx([1.0, 2.5, 4.25])
    assert accumulation(torch.tensor([1, 7]), 0.0).tolist() == [1.0, 7.0]


def weights_of(make, shares, steps, momentum=0.0):
    shares = torch.tensor(shares, dtype=torch.float64)
    return make.algorithm(FedNova, momentum=momentum).client_weights(
        shares, SimpleNamespace(local_steps=torch.tensor(steps))
    )


def test_weights_by_hand(make):
    """a = (2, 4), tau_eff = 1/4 2 + 3/4 4 = 7/2."""
    assert weights_of(make, [0.25, 0.75], [2, 4]).tolist() == pytest.approx([3.5 * 0.25 / 2, 3.5 * 0.75 / 4])
    # rho = 1/2: a = (1, 5/2), tau_eff = 7/4
    assert weights_of(make, [0.5, 0.5], [1, 2], 0.5).tolist() == pytest.approx([1.75 * 0.5, 1.75 * 0.5 / 2.5])


def test_equal_steps_change_nothing_and_others_sum_to_more_than_one(make):
    torch.testing.assert_close(weights_of(make, [0.2, 0.8], [5, 5], 0.9), torch.tensor([0.2, 0.8]).double())
    assert float(weights_of(make, [0.2, 0.8], [5, 6], 0.9).sum()) > 1


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_round_by_hand_under_partial_participation(make, fraction):
    """Weights belong to participants by position; the base code indexed them by client id."""
    owners = torch.repeat_interleave(torch.arange(6), torch.tensor([2, 4, 8, 12, 14, 20])).numpy()
    algorithm = make.algorithm(FedNova, momentum=0.9, batch_size=4)
    federation = make.federation(owners=owners, num_clients=6, algorithm=algorithm, fraction=fraction, seed=3)
    server = initial_state(federation.model)
    outcome = run_round(federation, server)
    ids = outcome.result.client_ids
    assert len(ids) == 6 * fraction
    if fraction < 1:
        assert ids != (0, 1, 2)
    sizes = {0: 2, 1: 4, 2: 8, 3: 12, 4: 14, 5: 20}
    steps = {0: 1, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    total = sum(sizes[k] for k in ids)
    a = {k: sum((1 - 0.9 ** (steps[k] - s)) / 0.1 for s in range(steps[k])) for k in ids}
    tau_eff = sum(sizes[k] / total * a[k] for k in ids)
    update = sum(
        tau_eff * sizes[k] / total / a[k] * row.double()
        for k, row in zip(ids, outcome.result.updates.rows, strict=True)
    )
    torch.testing.assert_close((outcome.server.params - server.params).double(), update, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_fednova_and_fedgh_commute(make, seed):
    """Harmonizing the normalized updates and normalizing the harmonized ones are the same thing."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    shares = torch.rand(6, generator=generator, dtype=torch.float64)
    shares, steps = shares / shares.sum(), torch.randint(1, 30, (6,), generator=generator)
    a = accumulation(steps, 0.9)
    fedgh = make.rule("fedgh")

    def harmonized(rows, weights):
        return fedgh(UpdateMatrix.of(rows), rows @ rows.T, Cohort.of(weights, seed), {}).update

    weights = make.algorithm(FedNova, momentum=0.9).client_weights(shares, SimpleNamespace(local_steps=steps))
    normalized_first = (shares * a).sum() * harmonized(rows / a[:, None], shares)
    normalized_after = harmonized(rows, weights)
    torch.testing.assert_close(normalized_after, normalized_first, rtol=1e-12, atol=1e-12)
    assert (normalized_after - weights @ rows).norm() > 0.01 * normalized_after.norm()  # there was something to bend


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.Adam, lr=0.01),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9, dampening=0.1),
    ],
)
def test_other_optimizers_are_refused(optimizer):
    with pytest.raises(ConfigurationError, match="algorithm=fednova knows the normalization of SGD with plain mom"):
        FedNova(optimizer=optimizer, local_epochs=1, batch_size=8)
