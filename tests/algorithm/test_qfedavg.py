"""q-FedAvg: weights by hand, the loss before training, and what a longer path does."""

from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.qfedavg import QFedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin, play
from tests.algorithm.stand_in import NOTHING, client_of, state_of


def qfedavg(make, q=1.0, weights="uniform", path="step", **settings):
    return make.algorithm(QFedAvg, q=q, weights=weights, path=path, **settings)


def weights_of(algorithm, losses, s, num_examples=(1.0, 1.0)):
    n = torch.tensor(num_examples, dtype=torch.float64)
    messages = {"loss": torch.tensor(losses), "s": torch.tensor(s)}
    return algorithm.client_weights(algorithm.client_shares(n), SimpleNamespace(messages=messages)).tolist()


def test_two_clients_by_hand(make):
    """lr 1, q 1, F = (1, 3), updates (-1, 0) and (0, -1): Delta = F, h = 1 + 1 and 1 + 3, so F / 6."""
    assert weights_of(qfedavg(make), [1.0, 3.0], [1.0, 1.0]) == pytest.approx([1 / 6, 1 / 2])


def test_powers_and_examples_by_hand(make):
    """q 2, p = (1/4, 3/4), F = (2, 1), s = (1, 4): F^2 = 4, 1; h = 4 + 2*2*1 = 8 and 1 + 2*1*4 = 9.

    sum p h = 2 + 27/4 = 35/4, so p F^2 over it: 4/35 and 3/35.
    """
    found = weights_of(qfedavg(make, q=2.0, weights="examples"), [2.0, 1.0], [1.0, 4.0], (1.0, 3.0))
    assert found == pytest.approx([4 / 35, 3 / 35])
    equal = weights_of(qfedavg(make, q=2.0), [2.0, 1.0], [1.0, 4.0], (1.0, 3.0))
    assert equal == pytest.approx([4 / 17, 1 / 17])  # p cancels: 4 / (8 + 9)


def test_no_loss_at_all_is_no_division_by_zero(make):
    assert weights_of(qfedavg(make, q=0.5), [0.0, 0.0], [0.0, 0.0]) == pytest.approx([0.5, 0.5])


def test_a_round_by_hand(make):
    """f = (theta - b)^2 / 2 with b = 0 and 3, from theta = 1, two steps of 0.5: 1 -> 0.25 and 1 -> 2.5.

    F = 1/2 and 2 before training; s = 0.75^2 / 0.5 = 1.125 and 1.5^2 / 0.5 = 4.5; q = 1:
    h = 0.5 + 1.125 and 2 + 4.5, together 8.125; the step is (-0.75 * 0.5 + 1.5 * 2) / 8.125.
    """
    algorithm = qfedavg(make, lr=0.5)
    centres = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    server = begin(algorithm, state_of([1.0]), [1, 1])
    seen = {}

    def client(server, k, lr, message):
        def loss(params):
            seen[k] = params.clone()
            return float((params - centres[k]).square().sum() / 2)

        return client_of(server, k, lr, message, loss=loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.algorithm.drive.client_of", client)

        def run(params, centre):
            return (params - centre).square().sum() / 2, params

        after = play(algorithm, server, centres, [0, 1], [1, 1], run, [2, 2], lr=0.5)
    assert after.params.item() == pytest.approx(1 + (-0.75 * 0.5 + 1.5 * 2) / 8.125)
    assert [seen[k].item() for k in (0, 1)] == [1.0, 1.0]  # the loss is that of the received model


def test_the_path_of_all_steps(make):
    """Three steps at momentum 0.5: a = (3 - 0.5 * (1 - 1/8) / 0.5) / 0.5 = 4.25."""
    update, params = torch.tensor([3.0, 4.0]), torch.zeros(2)
    trained = SimpleNamespace(update=update, local_steps=3, state={"loss": torch.tensor(1.0)})
    client = client_of(SimpleNamespace(params=params, buffers=NOTHING, counters=NOTHING, clients={}, models=()), lr=0.1)
    for path, length in (("step", 0.1), ("sum", 0.1 * 4.25)):
        message = qfedavg(make, path=path, momentum=0.5).report(client, trained).message
        assert float(message["s"]) == pytest.approx(25 / length)


def test_the_loss_is_that_of_the_received_model_in_evaluation_mode(make):
    federation = make.federation(module=make.normed(), algorithm=qfedavg(make))
    server = first_state(federation)
    wanted = [view.loss(server.params) for view in federation.executor.views(range(3), server)]
    outcome = run_round(federation, server)
    assert outcome.result.messages["loss"].tolist() == pytest.approx(wanted)
    assert 0 < float(outcome.weights.sum()) < 1


@pytest.mark.parametrize("settings", [{"q": -0.1}, {"path": "line"}])
def test_bad_settings_are_refused(make, settings):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{next(iter(settings))} must be "):
        qfedavg(make, **settings)


def test_the_path_of_an_unknown_optimizer_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm=qfedavg needs algorithm.optimizer.momentum .* below 1"):
        qfedavg(make, path="sum", momentum=1.0)
    qfedavg(make, momentum=1.0)
