"""Personal models: each on data like its client's own, those never sampled among them."""

from dataclasses import dataclass, replace

import pytest
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.fedper import FedPer
from fedgh.federation.evaluation import cells_of, evaluate
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.personal import evaluated_clients, personal_metrics
from fedgh.federation.round import first_state, run_round
from fedgh.metric.summary import spread

OWNERS = torch.arange(60).remainder(3).numpy()  # client k holds class k and nothing else


def played(make, algorithm, rounds=3, **settings):
    federation = make.federation(algorithm=algorithm, owners=OWNERS, **settings)
    server, outcome = first_state(federation), None
    for _ in range(rounds):
        outcome = run_round(federation, server)
        server = outcome.server
    return federation, server, outcome


def test_each_client_is_scored_with_its_own_model_on_its_own_classes(make):
    federation, server, _ = played(make, make.algorithm(FedPer, own_parameters=["*"], local_epochs=3))
    cells = cells_of(federation.dataset, federation.partition)
    expected = []
    for client in federation.executor.views(range(3), server):
        model = federation.algorithm.personal(client)
        right = evaluate(federation.model, model, federation.dataset, 100).scores["acc"]
        expected.append(float(right[federation.dataset.test_labels == client.client_id].mean()))
    found = personal_metrics(federation, server, cells, 7, None, "acc")
    assert found == pytest.approx(spread(torch.tensor(expected), "personal/test/acc"))
    assert found["personal/test/acc_worst"] == min(expected)
    # whoever trains alone on one class says that class: right on its own data, and on a third of everybody's
    assert expected == [1.0, 1.0, 1.0]


def test_a_client_never_sampled_has_the_initial_own_part_and_the_current_shared_one(make):
    algorithm = make.algorithm(FedPer, own_parameters=["head.weight"])
    federation = make.federation(algorithm=algorithm, owners=OWNERS, fraction=0.34)
    before = first_state(federation)
    start, server = before.params, run_round(federation, before).server
    (stranger,) = [c for c in federation.executor.views(range(3), server) if not c.state][:1]
    model = algorithm.personal(stranger)
    own = algorithm.own(federation.model.blocks)
    assert torch.equal(model.params[own], start[own])
    assert torch.equal(model.params[~own], server.params[~own])
    assert not torch.equal(server.params[~own], start[~own])


def test_the_rows_of_a_round_have_them_when_they_are_due(make):
    algorithm = make.algorithm(FedPer, own_parameters=["head.*"])
    federation, _, outcome = played(make, algorithm)
    names = {f"personal/test/acc_{end}" for end in ("mean", "std", "worst10", "worst")}
    schedule = Schedule(10, 1, 100, 1, personal_every=3)
    assert names <= describe(federation, outcome, schedule).metrics.keys()
    assert not names & describe(federation, outcome, replace(schedule, personal_every=2)).metrics.keys()
    plain, _, outcome = played(make, make.algorithm(FedAvg))
    assert not names & describe(plain, outcome, schedule).metrics.keys()


@dataclass(frozen=True, kw_only=True)
class Parrot(FedAvg):
    """Every client predicts its own label, by more than a forward pass."""

    def personal(self, client):
        logits = torch.nn.functional.one_hot(torch.tensor(client.client_id), 3).float()
        return lambda inputs: logits.expand(len(inputs), 3)


def test_a_predictor_is_asked_like_a_model(make):
    federation, server, _ = played(make, make.algorithm(Parrot), rounds=1)
    cells = cells_of(federation.dataset, federation.partition)
    assert personal_metrics(federation, server, cells, 4, None, "acc")["personal/test/acc_worst"] == 1.0


def test_of_many_clients_the_same_few_are_evaluated():
    few = evaluated_clients(10_000, 3, 100)
    assert few == evaluated_clients(10_000, 3, 100)
    assert len(set(few)) == 100
    assert few == sorted(few)
    assert few != evaluated_clients(10_000, 4, 100)
    assert evaluated_clients(5, 3, 100) == evaluated_clients(5, 3, None) == [0, 1, 2, 3, 4]


def test_what_stays_with_the_client_is_not_sent(make):
    blocks = {"head.weight": 12, "head.bias": 3}
    _, _, everything = played(make, make.algorithm(FedAvg), rounds=1)
    _, _, body = played(make, make.algorithm(FedPer, own_parameters=["head.weight"]), rounds=1)
    assert everything.result.bytes_up == everything.result.bytes_down == 3 * 4 * sum(blocks.values())
    assert body.result.bytes_up == body.result.bytes_down == 3 * 4 * blocks["head.bias"]
    assert not body.result.updates.rows[:, :12].any()
