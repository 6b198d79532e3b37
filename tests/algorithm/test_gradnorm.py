"""GradNorm inside a client: a step by hand, two tasks of very different scales, and a run of two tasks."""

from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.gradnorm import GradNorm
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import first_state, run_round
from tests.algorithm.stand_in import StandIn

SETTINGS = {"gamma": 1.5, "weight_lr": 0.1, "own_parameters": ()}
BLOCKS = (Block("body", 0, 2, torch.Size([2])), Block("head", 2, 3, torch.Size([1])))


class TwoQuadratics:
    """L_0 = |theta|^2 / 2 and L_1 = 50 |theta|^2, of the first two numbers; the third is L_1's alone."""

    num_targets = 2

    def losses(self, outputs, targets):
        return torch.stack([outputs[:2].square().sum() / 2, 50 * outputs[:2].square().sum() + outputs[2]])


def forward():
    return StandIn(lambda params, inputs: (params, params), TwoQuadratics(), BLOCKS)


def of(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_a_step_by_hand(make):
    algorithm = make.algorithm(GradNorm, **{**SETTINGS, "own_parameters": ("head",)})
    params, state = of(3, 4, 1), {"z": of(0, 0), "reference": of(0, 0)}
    gradient, loss, state = algorithm.local_gradient((None, None), forward(), params, params, state)
    # p = (1, 1): (g_0 + g_1) / 2 with g_0 = (3, 4, 0) and g_1 = (300, 400, 1)
    assert gradient.tolist() == pytest.approx([151.5, 202, 0.5])
    assert float(loss) == pytest.approx((12.5 + 1251) / 2)
    # norms on the body 5 and 500, mean 252.5; r = (1, 1): signs -, +; h = (-5, 500) / 252.5, mean of p h .98020
    # z -= .1 p (h - .98020)
    assert state["z"].tolist() == pytest.approx([0.1, -0.1])
    assert state["reference"].tolist() == [12.5, 1251]


def test_norms_become_equal(make):
    algorithm = make.algorithm(GradNorm, **{**SETTINGS, "gamma": 0.0, "weight_lr": 0.01, "own_parameters": ("head",)})
    params, state = of(3, 4, 0), {"z": of(0, 0), "reference": of(0, 0)}
    for _ in range(3000):
        _, _, state = algorithm.local_gradient((None, None), forward(), params, params, state)
    p = 2 * state["z"].softmax(0)
    assert float(p[0] / p[1]) == pytest.approx(100, rel=0.1)
    assert float(p.sum()) == pytest.approx(2)


def test_two_tasks_of_digits(make):
    dataset = make.choice("dataset", "digits_two", train_fraction=0.2)
    settings = {"lr": 0.05, "local_epochs": 1, "batch_size": 16}
    owners = torch.arange(len(dataset.train_targets)).numpy() % 3

    def rounds(method, count=2, **more):
        torch.manual_seed(0)
        module = make.choice("model", "mlp", hidden=[8])(input_shape=dataset.input_shape, num_outputs=12)
        algorithm = make.algorithm(method, **settings, **more)
        federation = make.federation(dataset=dataset, module=module, algorithm=algorithm, owners=owners)
        server = first_state(federation)
        for _ in range(count):
            outcome = run_round(federation, server)
            server = outcome.server
        return federation, outcome

    federation, outcome = rounds(GradNorm, **{**SETTINGS, "own_parameters": ("head.*",)})
    weights = outcome.result.messages["loss_weights"]
    assert torch.allclose(weights.sum(1), torch.full((3,), 2.0))
    assert not torch.allclose(weights, torch.ones(3, 2))
    metrics = describe(federation, outcome, Schedule(9, 9, 100, 9)).metrics
    assert metrics["algorithm/loss_weight/0"] == pytest.approx(float(weights[:, 0].mean()))
    *_, still = rounds(GradNorm, **{**SETTINGS, "weight_lr": 0.0})
    *_, plain = rounds(FedAvg)
    torch.testing.assert_close(still.server.params, plain.server.params, rtol=1e-4, atol=1e-6)


def test_what_it_kept_is_gone_on_with(make):
    algorithm = make.algorithm(GradNorm, **SETTINGS)
    received = SimpleNamespace(params=of(1), buffers=of())
    client = SimpleNamespace(received=received, state={}, task=TwoQuadratics())
    assert algorithm.prepare(client).state["z"].tolist() == [0, 0]
    trained = SimpleNamespace(state={"z": of(0.5, -0.5), "reference": of(1, 2)})
    report = algorithm.report(client, trained)
    client.state = report.state
    assert algorithm.prepare(client).state["z"].tolist() == [0.5, -0.5]
    assert float(report.message["loss_weights"].sum()) == pytest.approx(2)


@pytest.mark.parametrize("settings", [{"gamma": -1}, {"weight_lr": -1}])
def test_mistakes(make, settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        make.algorithm(GradNorm, **{**SETTINGS, **settings})
