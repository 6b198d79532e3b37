"""CCVR: statistics merged as if the data lay in one place, features of the right law, and a head that profits."""

import copy
from functools import partial

import pytest
import torch

from fedgh.algorithm.ccvr import CCVR, merged, moments
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from fedgh.model.mlp import MLP


def ccvr(make, **settings):
    return make.algorithm(CCVR, **{"samples_per_class": 200, "calibration_epochs": 1, "ridge": 1e-4, **settings})


def test_statistics_by_hand():
    """Class 0: (0, 0) and (2, 4): mean (1, 2), unbiased covariance ((2, 4), (4, 8)); class 1: one example; 2: none."""
    found = moments(torch.tensor([[0.0, 0.0], [5.0, 6.0], [2.0, 4.0]]), torch.tensor([0, 1, 0]), 3)
    assert found["count"].tolist() == [2, 1, 0]
    assert found["mean"].tolist() == [[1, 2], [5, 6], [0, 0]]
    assert found["covariance"].tolist() == [[[2, 4], [4, 8]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]


def test_two_clients_by_hand():
    """(0) and (2), merged with (4): mean 2, covariance (4 + 0 + 4) / 2 = 4; a class that one lacks is the other's."""
    one, other = (moments(torch.tensor(z)[:, None], torch.zeros(len(z)).long(), 2) for z in ([0.0, 2.0], [4.0]))
    for answers in ([(0, one), (1, other)], [(0, other), (1, one)]):
        both = merged(lambda question, answers=answers: iter(answers))
        assert (both["count"][0], both["mean"][0, 0], both["covariance"][0, 0, 0]) == (3, 2, 4)
        assert both["count"][1] == both["mean"][1, 0] == both["covariance"][1, 0, 0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_merged_statistics_are_those_of_all_examples(seed):
    """Unequal clients, some without a class, some with a single example of it."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, 4, generator=generator, dtype=torch.float64) + 3
    targets = torch.randint(0, 3, (60,), generator=generator)
    targets[:12] = 0
    cuts = [slice(0, 12), slice(12, 13), slice(13, 40), slice(40, 60)]
    answers = [(k, moments(features[rows], targets[rows], 4)) for k, rows in enumerate(cuts)]
    found, wanted = merged(lambda question: iter(answers)), moments(features, targets, 4)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_virtual_features_follow_the_statistics(make):
    mean, covariance = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[[2.0, 1.0], [1.0, 3.0]]]).double()
    zero = torch.zeros(1, 2, 2).double()
    statistics = {
        "count": torch.tensor([9.0, 0.0, 5.0]).double(),
        "mean": torch.cat([mean, mean, 5 + mean]),
        "covariance": torch.cat([covariance, covariance, zero]),
    }
    features, targets = ccvr(make, samples_per_class=40_000, ridge=1e-8).virtual(statistics, 0)
    assert targets.bincount().tolist() == [40_000, 0, 40_000]  # none of a class that nobody has
    first = features[targets == 0]
    torch.testing.assert_close(first.mean(0), mean[0], rtol=0, atol=0.05)
    torch.testing.assert_close(first.T.cov(), covariance[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(features[targets == 2].mean(0), 5 + mean[0], rtol=0, atol=1e-4)
    assert torch.equal(ccvr(make, samples_per_class=40_000, ridge=1e-8).virtual(statistics, 0)[0], features)


def completed(make, **settings):
    """Return a federation of clients with one class each, and its state before and after the phase."""
    dataset = make.dataset(num_train=120)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = MLP(dataset.image_shape, 3, hidden=[16])
    algorithm = ccvr(
        make,
        **{
            "lr": 0.1,
            "momentum": 0.9,
            "local_epochs": 5,
            "calibration_epochs": 10,
            "samples_per_class": 100,
            **settings,
        },
    )
    owners = dataset.train_labels.numpy()
    federation = make.federation(dataset=dataset, module=module, owners=owners, algorithm=algorithm, num_clients=3)
    server = first_state(federation)
    for _ in range(3):
        server = run_round(federation, server).server
    before = copy.deepcopy(server)
    ask = partial(federation.executor.ask, server)
    after = algorithm.complete(server, federation.model.blocks, ask, federation.seed)
    assert torch.equal(server.params, before.params)
    return federation, server, after


def loss_of(federation, server):
    view, dataset = next(federation.executor.views([0], server)), federation.dataset
    outputs, _ = view.run(server.params, dataset.normalized_test_inputs, server.buffers)
    return float(dataset.task.loss(outputs, dataset.test_targets))


def test_only_the_head_moves_and_it_profits(make):
    federation, before, after = completed(make)
    head = torch.zeros_like(before.params, dtype=torch.bool)
    for block in federation.model.blocks:
        head[block.start : block.stop] = block.name.startswith("head.")
    assert torch.equal(after.params[~head], before.params[~head])
    assert (after.params[head] != before.params[head]).any()
    assert loss_of(federation, after) < 0.9 * loss_of(federation, before)


def test_no_epochs_leave_the_model_as_it_is(make):
    _, before, after = completed(make, calibration_epochs=0)
    assert torch.equal(after.params, before.params)


def test_the_same_seed_gives_the_same_bits(make):
    assert torch.equal(completed(make)[2].params, completed(make)[2].params)


def test_a_head_that_is_no_linear_layer_is_refused_before_training(make):
    module = make.normed()
    module.head = torch.nn.Linear(6, 3, bias=False)
    federation = make.federation(module=module, algorithm=ccvr(make))
    with pytest.raises(ConfigurationError, match=r"one linear layer with a bias, and this model's has head.weight; ch"):
        first_state(federation)


@pytest.mark.parametrize("settings", [{"samples_per_class": 0}, {"calibration_epochs": -1}, {"ridge": 0.0}])
def test_bad_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{next(iter(settings))} must be "):
        ccvr(make, **settings)
