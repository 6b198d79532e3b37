"""kNN-Per: the mixture by hand, far neighbours, and few examples."""

import math

import pytest
import torch

from fedgh.algorithm.knn_per import KNNPer
from fedgh.core.errors import ConfigurationError
from fedgh.federation.evaluation import cells_of
from fedgh.federation.personal import personal_metrics
from fedgh.federation.round import first_state, run_round


def knn_per(make, **settings):
    return make.algorithm(KNNPer, **{"k": 2, "lam": 0.5, "sigma": 1.0, "capacity": None, **settings})


LOGITS = torch.tensor([[0.2, 0.8]]).log()
HERE, NEAR, FAR = [0.0, 0.0], [math.sqrt(2 * math.log(2)), 0.0], [50.0, 0.0]


def test_the_mixture_by_hand(make):
    """d^2 = 0 (class 0) and dim log 2 (class 1): (2/3, 1/3); with softmax (0.2, 0.8): (0.433, 0.567)."""
    memory, labels = torch.tensor([HERE, NEAR, FAR]), torch.tensor([0, 1, 1])
    found = knn_per(make).mixture(LOGITS, torch.zeros(1, 2), memory, labels)
    torch.testing.assert_close(found, torch.tensor([[13 / 30, 17 / 30]]))
    alone = knn_per(make, lam=1.0, sigma=2.0).mixture(LOGITS, torch.zeros(1, 2), memory, labels)
    torch.testing.assert_close(alone[0, 0] / alone[0, 1], torch.tensor(math.sqrt(2)))
    same = knn_per(make, k=1, lam=1.0).mixture(LOGITS, torch.zeros(1, 2), memory, labels)
    assert same.tolist() == [[1.0, 0.0]]


def test_neighbours_of_one_class_add_up_and_few_examples_are_enough(make):
    memory, labels = torch.tensor([HERE, NEAR]), torch.tensor([1, 1])
    assert knn_per(make, k=10, lam=1.0).mixture(LOGITS, torch.zeros(1, 2), memory, labels).tolist() == [[0.0, 1.0]]


def test_far_neighbours_are_no_nan(make):
    """exp(-2500 / 2) is zero in float32; among themselves they still have weights."""
    memory, labels = torch.tensor([FAR, [50.1, 0.0]]), torch.tensor([0, 1])
    found = knn_per(make, lam=1.0).mixture(LOGITS, torch.zeros(1, 2), memory, labels)
    ratio = math.exp(-(50.0**2 - 50.1**2) / 2)
    assert (found[0, 0] / found[0, 1]).item() == pytest.approx(ratio, rel=1e-3)


def played(make, **settings):
    federation = make.federation(module=make.normed(), algorithm=knn_per(make, **settings))
    return federation, run_round(federation, first_state(federation)).server


def test_it_says_the_logarithm_of_the_mixture_of_its_own_examples(make):
    federation, server = played(make)
    view = next(federation.executor.views([1], server))
    inputs = federation.dataset.normalized_test_inputs[:5]
    found = federation.algorithm.personal(view)(inputs)
    examples, labels = next(view.examples())
    outputs, features = view.run(server.params, inputs)
    _, memory = view.run(server.params, examples)
    expected = federation.algorithm.mixture(outputs, features, memory, labels)
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.logsumexp(1), torch.zeros(5), atol=1e-6, rtol=0)


def test_without_neighbours_it_predicts_what_the_global_model_does(make):
    federation, server = played(make, lam=0.0)
    view = next(federation.executor.views([1], server))
    inputs = federation.dataset.normalized_test_inputs
    torch.testing.assert_close(
        federation.algorithm.personal(view)(inputs), view.run(server.params, inputs)[0].log_softmax(1)
    )


def test_capacity_bounds_the_examples_and_draws_them_alike_each_time(make):
    federation, server = played(make, lam=1.0, k=1, capacity=1)
    view = next(federation.executor.views([1], server))
    inputs, labels = next(view.examples())
    first, again = (federation.algorithm.personal(view)(inputs) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.argmax(1).unique()) == 1 < len(labels.unique())


def test_everybody_is_scored_by_own_neighbours(make):
    """Of clients with one class each the neighbours alone are always right."""
    owners = torch.arange(60).remainder(3).numpy()
    federation = make.federation(algorithm=knn_per(make, lam=1.0), owners=owners)
    cells = cells_of(federation.dataset, federation.partition)
    assert (
        personal_metrics(federation, first_state(federation), cells, 7, None, "acc")["personal/test/acc_worst"] == 1.0
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"k": 0}, "k"), ({"lam": 1.5}, "lam"), ({"sigma": 0.0}, "sigma"), ({"capacity": 0}, "capacity")],
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        knn_per(make, **settings)
