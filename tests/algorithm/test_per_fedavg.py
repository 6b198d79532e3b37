"""Per-FedAvg: both orders by hand, batches cut, and adaptation that never sees a test label."""

from dataclasses import replace

import pytest
import torch

from fedgh.algorithm.per_fedavg import PerFedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.federation.personal import fine_tuned_models, tuning_of
from fedgh.federation.round import first_state
from tests.algorithm.stand_in import Quadratic, StandIn, half_square


def per_fedavg(make, **settings):
    return make.algorithm(PerFedAvg, **{"alpha": 0.1, "order": "first", "delta": 0.001, **settings})


def direction(make, run, inputs, start=0.0, **settings):
    targets = torch.zeros(len(inputs), dtype=torch.int64)
    w = torch.tensor([start], dtype=torch.float64)
    gradient, _, _ = per_fedavg(make, **settings).local_gradient((inputs, targets), StandIn(run, Quadratic()), w, w, {})
    return gradient.item()


def slope(params, inputs):
    """f = 1/2 2 (w - 1)^2, whatever the batch."""
    return (params - 1).square().sum(), params


def test_both_orders_by_hand(make):
    """u = 0.2, g = -1.6; with the Hessian, 2 everywhere: -1.6 0.8, at any delta."""
    inputs = torch.zeros(3, 1)
    assert direction(make, slope, inputs) == pytest.approx(-1.6)
    for delta in (0.001, 0.5):
        assert direction(make, slope, inputs, order="hessian", delta=delta) == pytest.approx(-1.28)


def test_the_step_starts_at_w_not_at_the_adapted_point(make):
    """f = 1/2 w^2, w = 1, alpha = 0.1: g = 0.9, which leads from 1 to 0.91 at a rate of 0.1."""
    inputs = torch.zeros(2, 1, dtype=torch.float64)
    assert direction(make, half_square_at_zero, inputs, start=1.0) == pytest.approx(0.9)


def half_square_at_zero(params, inputs):
    return half_square(params, torch.zeros(1, dtype=torch.float64))


def test_each_part_of_a_batch_has_its_place(make):
    """f(w; c) = 1/2 (w - c)^2, c the mean of a part: D = 1, D' = 5, D'' does not matter where the Hessian is 1."""

    def run(params, inputs):
        return half_square(params, inputs.mean(0))

    inputs = torch.tensor([[1.0], [5.0], [100.0]], dtype=torch.float64)
    assert direction(make, run, inputs[:2]) == pytest.approx(0.1 * 1 - 5)
    assert direction(make, run, inputs, order="hessian") == pytest.approx((0.1 * 1 - 5) * 0.9)
    assert direction(make, run, inputs[:1]) == pytest.approx(0.1 * 1 - 1)  # too small to be cut
    assert direction(make, run, inputs, alpha=0.0) == pytest.approx(-100.0)  # of three, two are D: SGD on D'


def test_differences_come_near_the_exact_derivative(make):
    """Against autograd through the inner step: d/dw f(w - alpha f'(w)), f = w^4, all parts the same."""
    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    (inner,) = torch.autograd.grad(w.pow(4).sum(), w, create_graph=True)
    (exact,) = torch.autograd.grad((w - 0.1 * inner).pow(4).sum(), w)
    found = direction(make, lambda p, _: (p.pow(4).sum(), p), torch.zeros(3, 1), start=0.7, order="hessian")
    assert found == pytest.approx(exact.item(), rel=1e-6)


def tuned(federation, server):
    executor = federation.executor.playing(tuning_of(federation.algorithm, None), "fine_tune/")
    return {k: model.params.clone() for k, model in fine_tuned_models(executor, server, [0, 1, 2])}


def test_clients_adapt_by_one_plain_step_on_one_batch_of_training_examples(make):
    """Whatever momentum and decay the outer steps have, and whatever the test labels are."""
    algorithm = per_fedavg(make, momentum=0.9, weight_decay=0.1, batch_size=100, local_epochs=3)
    federation = make.federation(algorithm=algorithm)
    server, found = first_state(federation), None
    for test_labels in (federation.dataset.test_labels, torch.randperm(30) % 3):
        dataset = replace(federation.dataset, test_labels=test_labels)
        other = make.federation(algorithm=algorithm, dataset=dataset)
        found = tuned(other, server)
        for k, params in found.items():
            view = next(federation.executor.views([k], server))
            gradient, _ = view.gradient(server.params, *next(view.examples()))
            torch.testing.assert_close(params, server.params - 0.1 * gradient)


def test_running_statistics_take_note_of_the_outer_pass_alone(make):
    """The momentum of the normalization is 0.1: with one pass a step, of half the batch, nine tenths of 1 are left."""
    algorithm = per_fedavg(make, order="hessian", batch_size=100)
    federation = make.federation(module=make.normed(), algorithm=algorithm)
    federation.executor([0], first_state(federation))
    assert federation.model.counters.tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "key"), [({"alpha": -0.1}, "alpha"), ({"order": "second"}, "order"), ({"delta": 0.0}, "delta")]
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        per_fedavg(make, **settings)
