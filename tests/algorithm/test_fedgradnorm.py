"""FedGradNorm against the numbers of the specification (S3), and what a round of it does."""

from dataclasses import replace

import pytest
import torch

from fedgh.algorithm.fedgradnorm import FedGradNorm, moved_weights
from fedgh.algorithm.fedrep import FedRep
from fedgh.core.errors import ConfigurationError
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import first_state, run_round

HEAD = {"own_parameters": ("head.*",), "body_epochs": 1, "head_lr": None, "body_lr": None}
OURS = {**HEAD, "gamma": 1.5, "weight_lr": 0.1, "relative": True, "weight_floor": 0.05}


def of(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("relative", "expected"), [(False, (0.98182, 0.87273, 1.14545)), (True, (0.98462, 0.89231, 1.12308))]
)
def test_a_step_of_the_weights_by_hand(relative, expected):
    # targets 1.16667 r^1.5 with r = (.5, .8, .45) / .58333: (.92582, 1.87373, .79048); signs +, +, -
    # p = 1 - .1 (1, 2, -.5) = (.9, .8, 1.05), times 3 / 2.75; relative: the norms over their mean, 1.16667
    found = moved_weights(torch.ones(3).double(), of(1, 2, 0.5), of(0.5, 0.8, 0.45), 1.5, 0.1, relative, 0.05)
    assert found.tolist() == pytest.approx(expected, abs=5e-6)


def test_weights_settle_at_the_inverse_of_the_norms():
    norms, p = of(1, 2, 4), torch.ones(3).double()
    for _ in range(4000):
        p = moved_weights(p, norms, torch.ones(3).double(), 0.0, 1e-3, True, 0.05)
        assert float(p.sum()) == pytest.approx(3)
    expected = (1 / norms) * 3 / (1 / norms).sum()
    assert p.tolist() == pytest.approx(expected.tolist(), abs=1e-2)  # a sign step chatters around the balance


def test_edges():
    balanced = of(2, 1)
    assert torch.equal(moved_weights(balanced, of(1, 2), of(0.7, 0.7), 1.5, 0.1, True, 0.05), balanced)
    dead = moved_weights(of(1, 1), of(0, 0), of(0, 0), 1.5, 0.1, True, 0.05)
    assert dead.tolist() == [1, 1]
    floor = moved_weights(of(1, 1), of(1, 9), of(1, 1), 0.0, 5.0, True, 0.1)
    assert float(floor.min()) > 0
    assert float(floor.sum()) == pytest.approx(2)


def federation_of(make, method=FedGradNorm, **settings):
    given = {**(OURS if method is FedGradNorm else HEAD), "local_epochs": 3, "batch_size": 8, "lr": 0.1, **settings}
    return make.federation(
        num_clients=4,
        owners=torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]).repeat(4).numpy(),
        dataset=make.dataset(num_train=32),
        algorithm=make.algorithm(method, **given),
        module=make.normed(),
    )


def test_norms_and_losses_are_what_they_are_called(make):
    """|g| of one full-batch step of the body is that of its gradient; the loss is that before any step."""
    federation = federation_of(make, local_epochs=1, batch_size=64, momentum=0.0, weights="examples")
    server = first_state(federation)
    result = run_round(federation, server).result
    body = federation.executor.shared
    for place, view in enumerate(federation.executor.views(range(4), server)):
        assert float(result.messages["loss"][place]) == pytest.approx(view.loss(server.params), rel=1e-5)
        length = result.updates.rows[place][body].norm() / 0.1
        assert float(result.messages["norm"][place]) == pytest.approx(float(length), rel=1e-5)
    assert result.messages["ratio"].tolist() == [1, 1, 1, 1]


def test_the_body_moves_with_the_new_weights_which_are_kept(make):
    federation = federation_of(make)
    server = first_state(federation)
    for _ in range(3):
        outcome = run_round(federation, server)
        messages = outcome.result.messages
        expected = moved_weights(
            server.memory["loss_weights"], messages["norm"].double(), messages["ratio"].double(), 1.5, 0.1, True, 0.05
        )
        assert torch.allclose(outcome.weights, expected / 4)
        server = outcome.server
        assert torch.allclose(server.memory["loss_weights"], expected)
        metrics = describe(federation, outcome, Schedule(9, 9, 100, 9)).metrics
        assert metrics["algorithm/loss_weight/2"] == pytest.approx(float(expected[2]))
        assert metrics["algorithm/loss/2"] == pytest.approx(float(messages["loss"][2]))
    assert float(server.memory["loss_weights"].std()) > 0


def test_who_is_absent_keeps_its_weight(make):
    federation = federation_of(make)
    federation = replace(federation, sampler=lambda n, seed, t: [1, 3])
    server = first_state(federation)
    after = run_round(federation, server).server.memory["loss_weights"]
    assert after[[0, 2]].tolist() == [1, 1]
    assert float(after.sum()) == pytest.approx(4)
    assert after[1] != 1


def test_equal_weights_are_fedrep(make):
    ends = []
    for federation in (federation_of(make, weight_lr=0.0), federation_of(make, FedRep, weights="uniform")):
        server = first_state(federation)
        for _ in range(2):
            server = run_round(federation, server).server
        ends.append(server.params)
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gamma": -1}, "algorithm.gamma"),
        ({"weight_lr": -0.1}, "algorithm.weight_lr"),
        ({"weight_floor": 1.0}, "algorithm.weight_floor"),
        ({"body_epochs": 0}, "algorithm.body_epochs must be at least 1"),
        ({"momentum": 1.0}, "momentum"),
    ],
)
def test_mistakes(make, settings, says):
    with pytest.raises(ConfigurationError, match=says):
        federation_of(make, **settings)
