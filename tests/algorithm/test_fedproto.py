"""FedProto: the pull, the server's mean and the nearest prototype by hand; classes that somebody or nobody has."""

from dataclasses import replace

import pytest
import torch

from fedgh.algorithm.fedproto import FedProto
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from fedgh.task.base import PADDING
from tests.algorithm.stand_in import StandIn, cohort_of, state_of


def fedproto(make, lam=1.0, predict="prototype", share_model=False, **settings):
    return make.algorithm(FedProto, lam=lam, predict=predict, share_model=share_model, **settings)


@pytest.mark.parametrize(
    ("targets", "known", "wanted"),
    [
        ([0, 0], [True, True], 0.5),  # distances (0, 1) and (1, 0) of P_0 = (1, 1): 2 / 4, a mean over features, too
        ([0, 1], [True, False], 0.25),  # the row without a prototype adds nothing, and counts
        ([0, PADDING], [True, True], 0.5),  # a row that only fills up the batch does not count
        ([0, 1], [False, False], 0.0),
    ],
)
def test_the_pull_by_hand(make, targets, known, wanted):
    features, targets = torch.eye(2), torch.tensor(targets)
    forward = StandIn(lambda params, inputs: (params * torch.ones(2, 2), features))
    state = {"prototypes": torch.ones(2, 2), "known": torch.tensor(known)}
    arguments = (features, targets), forward, torch.ones(1), torch.ones(1), state
    plain, pulled = (fedproto(make, lam=lam).local_loss(*arguments) for lam in (0.0, 2.0))
    assert (pulled - plain).item() == pytest.approx(2 * wanted)


@pytest.mark.parametrize(("weights", "wanted"), [("uniform", 1.5), ("examples", 2.0)])
def test_the_servers_mean_by_hand(make, weights, wanted):
    """Prototypes 0 of one example and 3 of two; class 1 is of one client, class 2 of nobody and keeps what it had."""
    algorithm = fedproto(make, weights=weights)
    memory = {"prototypes": torch.tensor([[7.0], [7.0], [7.0]]), "known": torch.tensor([False, False, True])}
    before = replace(state_of([0.0]), memory=memory)
    messages = {
        "prototypes": [torch.tensor([[0.0], [0.0], [0.0]]), torch.tensor([[3.0], [4.0], [0.0]])],
        "counts": [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 5.0, 0.0])],
    }
    after = algorithm.conclude(before, before, cohort_of(torch.zeros(2, 1), [0, 1], [1, 7], messages))
    assert after.memory["prototypes"][:, 0].tolist() == [wanted, 4.0, 7.0]
    assert after.memory["known"].tolist() == [True, True, True]
    empty = {name: [0 * tensor for tensor in tensors] for name, tensors in messages.items()}
    kept = algorithm.conclude(before, before, cohort_of(torch.zeros(2, 1), [0, 1], [1, 7], empty))
    assert kept.memory["known"].tolist() == [False, False, True]


def test_clients_send_their_mean_features_and_predict_the_nearest_prototype(make):
    """In the engine, a client that lacks class 2 among them: literally, from its model and its examples."""
    owners = torch.where(torch.arange(60) % 3 == 2, 1, torch.arange(60) // 30).numpy()  # client 0 has no class 2
    algorithm = fedproto(make, batch_size=8)
    federation = make.federation(algorithm=algorithm, module=make.normed(), owners=owners, num_clients=2)
    outcome = run_round(federation, first_state(federation))
    server, inputs = outcome.server, federation.dataset.normalized_test_inputs
    for view in federation.executor.views(range(2), server):
        params, buffers = view.state["own"], view.state["buffers"]
        found = [view.run(params, x, buffers)[1] for x, _ in view.examples()]
        features, targets = torch.cat(found), torch.cat([y for _, y in view.examples()])
        for c in range(3):
            mine, wanted = outcome.result.messages["prototypes"][view.client_id, c], torch.zeros(6)
            if (targets == c).any():
                wanted = features[targets == c].mean(0)
            torch.testing.assert_close(mine, wanted)
        z = view.run(params, inputs, buffers)[1]
        distance = (z[:, None] - server.memory["prototypes"]).norm(dim=2)
        classes = 2 if view.client_id == 0 else 3
        outputs = algorithm.personal(view)(inputs)
        assert torch.equal(outputs.argmax(1), distance[:, :classes].argmin(1))
        assert torch.isinf(outputs[:, classes:]).all()
        assert torch.equal(replace(algorithm, predict="head").personal(view).params, params)


def test_before_there_are_prototypes_a_client_predicts_by_its_head(make):
    federation = make.federation(algorithm=fedproto(make), module=make.normed())
    (view,) = federation.executor.views([0], first_state(federation))
    assert torch.equal(federation.algorithm.personal(view).params, view.received.params)


@pytest.mark.parametrize(("settings", "key"), [({"lam": -1.0}, "lam"), ({"predict": "both"}, "predict")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedproto(make, **settings)
