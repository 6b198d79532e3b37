"""Personal models: each on data like its client's own, those never sampled among them."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import pytest
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.fedper import FedPer
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.evaluation import cells_of, evaluate
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.personal import evaluated_clients, fine_tuned_models, personal_metrics, tuning_of
from fedgh.federation.round import first_state, run_round
from fedgh.metric.summary import spread
from fedgh.model.mlp import MLP

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
    assert found == pytest.approx(spread(torch.tensor(expected), "personal/test/acc", torch.tensor([20, 20, 20])))
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


def rows_of(make, schedule, algorithm=None, rounds=2, **settings):
    """Return federation, state before the last round, outcome, and its metrics."""
    algorithm = algorithm or make.algorithm(FedAvg)
    federation = make.federation(algorithm=algorithm, owners=OWNERS, **settings)
    server = first_state(federation)
    for _ in range(rounds):
        before, outcome = server, run_round(federation, server)
        server = outcome.server
    return federation, before, outcome, describe(federation, outcome, schedule, before).metrics


def test_fine_tuned_models_are_the_global_one_trained_on_own_examples(make):
    """By hand: full batches, so every epoch is a step of the softmax regression at hand."""
    schedule = Schedule(2, 1, 100, 1, fine_tune_epochs=3)
    algorithm = make.algorithm(FedAvg, batch_size=20, lr=0.5)
    federation, _, outcome, found = rows_of(make, schedule, algorithm)
    dataset, expected = federation.dataset, []
    for k, rows in enumerate(federation.partition.client_indices):
        weight, bias = outcome.server.params[:12].view(3, 4).clone(), outcome.server.params[12:].clone()
        inputs = dataset.normalize(dataset.train_images[rows]).flatten(1)
        wanted = torch.nn.functional.one_hot(dataset.train_labels[rows], 3)
        for _ in range(3):
            error = ((inputs @ weight.T + bias).softmax(1) - wanted) / len(inputs)
            weight, bias = weight - 0.5 * error.T @ inputs, bias - 0.5 * error.sum(0)
        mine = dataset.test_labels == k
        outputs = dataset.normalized_test_inputs[mine].flatten(1) @ weight.T + bias
        expected.append(float((outputs.argmax(1) == k).double().mean()))
    sizes = torch.tensor([20, 20, 20])
    wanted = spread(torch.tensor(expected, dtype=torch.float64), "fine_tuned/test/acc", sizes)
    assert {name: value for name, value in found.items() if name.startswith("fine_tuned/")} == pytest.approx(wanted)
    assert found["fine_tuned/test/acc_mean"] > found["client/test/acc_mean"]


def test_models_after_local_training_are_the_participants_own(make):
    schedule = Schedule(2, 1, 100, 1, after_training=True)
    federation, before, outcome, found = rows_of(make, schedule, fraction=0.67)
    dataset, expected = federation.dataset, []
    assert len(outcome.result.client_ids) == 2
    for row, k in enumerate(outcome.result.client_ids):
        local = replace(before, params=before.params + outcome.result.updates.rows[row])
        right = evaluate(federation.model, local, dataset, 100).scores["acc"]
        expected.append(float(right[dataset.test_labels == k].mean()))
    wanted = spread(torch.tensor(expected, dtype=torch.float64), "trained/test/acc", torch.tensor([20, 20]))
    assert {name: value for name, value in found.items() if name.startswith("trained/")} == pytest.approx(wanted)


def test_after_local_training_the_own_part_is_in_the_model(make):
    """FedPer: the trained bias, which is not averaged yet, and the trained weights."""
    algorithm = make.algorithm(FedPer, own_parameters=["head.weight"], lr=0.5)
    federation, before, outcome, found = rows_of(make, Schedule(2, 1, 100, 1, after_training=True), algorithm)
    right = []
    for k in range(3):
        bias = before.params[12:] + outcome.result.updates.rows[k, 12:]
        local = replace(before, params=torch.cat([outcome.server.clients[k]["own"], bias]))
        scores = evaluate(federation.model, local, federation.dataset, 100).scores["acc"]
        right.append(float(scores[federation.dataset.test_labels == k].mean()))
    assert found["trained/test/acc_mean"] == pytest.approx(sum(right) / 3)
    assert found["trained/test/acc_mean"] != found["personal/test/acc_mean"]


@pytest.mark.parametrize("moment", ["fine_tuned", "trained"])
def test_moments_are_recorded_when_they_are_asked_for(make, moment):
    asked = {"fine_tuned": {"fine_tune_epochs": 1}, "trained": {"after_training": True}}[moment]
    names = {f"{moment}/test/acc_{end}" for end in ("mean", "mean_examples", "std", "worst10", "worst")}
    *_, found = rows_of(make, Schedule(2, 1, 100, 1, **asked))
    assert names <= found.keys()
    *_, found = rows_of(make, Schedule(2, 1, 100, 1))
    assert not names & found.keys()
    *_, found = rows_of(make, Schedule(5, 1, 100, 1, personal_every=3, **asked))  # neither the last round nor due
    assert not names & found.keys()
    asked |= {"fine_tune_every": 2} if moment == "fine_tuned" else {}
    *_, found = rows_of(make, Schedule(5, 1, 100, 1, personal_every=2, **asked))
    assert names <= found.keys()


def test_both_means(make):
    """Of clients with 1, 2 and 57 examples the first alone is right: a third of the clients, a sixtieth of examples."""
    owners = torch.tensor([0] + [1] * 2 + [2] * 57).numpy()
    federation = make.federation(owners=owners, algorithm=make.algorithm(FirstAlone))
    cells = cells_of(federation.dataset, federation.partition)
    found = personal_metrics(federation, first_state(federation), cells, 9, None, "acc")
    assert found["personal/test/acc_mean"] == pytest.approx(1 / 3)
    assert found["personal/test/acc_mean_examples"] == pytest.approx(1 / 60)


@dataclass(frozen=True, kw_only=True)
class FirstAlone(FedAvg):
    """Client 0, whose example is of class 0, says so; the others name a class that there is not."""

    def personal(self, client):
        logits = torch.nn.functional.one_hot(torch.tensor(0 if client.client_id == 0 else 3), 4).float()
        return lambda inputs: logits.expand(len(inputs), 4)


@pytest.mark.parametrize("executor", [partial(VectorizedExecutor, width=2), SequentialExecutor])
def test_every_executor_fine_tunes_alike_and_to_the_same_bits_after_a_resume(make, executor):
    schedule = Schedule(2, 1, 100, 1, fine_tune_epochs=2, fine_tune_every=1, after_training=True)
    algorithm = make.algorithm(FedAvg, batch_size=4, momentum=0.9)
    federation, _, outcome, _ = rows_of(make, schedule, algorithm, module=with_statistics(), executor=executor)
    tuned = dict(models_of(federation, outcome.server))
    again, *_ = rows_of(make, schedule, algorithm, module=with_statistics(), executor=executor, rounds=1)
    for k, model in models_of(again, outcome.server):
        assert torch.equal(model.params, tuned[k].params)
        assert torch.equal(model.buffers, tuned[k].buffers)
    plain = make.federation(module=with_statistics(), algorithm=algorithm, owners=OWNERS)
    for k, model in models_of(plain, outcome.server):
        torch.testing.assert_close(model.params, tuned[k].params, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model.buffers, tuned[k].buffers, rtol=1e-3, atol=1e-4)
        assert not torch.equal(model.buffers, outcome.server.buffers)


def with_statistics():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MLP(torch.Size((1, 2, 2)), 3, hidden=[5], norm="batch")


def models_of(federation, server, epochs=2):
    executor = federation.executor.playing(tuning_of(federation.algorithm, epochs), "fine_tune/")
    return [
        (k, replace(model, params=model.params.clone())) for k, model in fine_tuned_models(executor, server, [0, 1, 2])
    ]


def test_fine_tuning_changes_nothing_of_the_run(make):
    """Rounds after an evaluation are those of a run without it, though both use one executor and one Trainer."""
    ends = []
    for epochs in (0, 2):
        federation = make.federation(module=make.normed(), algorithm=make.algorithm(batch_size=4), owners=OWNERS)
        server = first_state(federation)
        schedule = Schedule(3, 1, 100, 1, fine_tune_epochs=epochs, fine_tune_every=1, after_training=True)
        for _ in range(3):
            before, outcome = server, run_round(federation, server)
            describe(federation, outcome, schedule, before)
            server = outcome.server
        ends.append(server)
    assert torch.equal(ends[0].params, ends[1].params)
    assert torch.equal(ends[0].buffers, ends[1].buffers)


def test_its_batches_are_not_those_of_a_round(make):
    federation = make.federation(algorithm=make.algorithm(batch_size=4), owners=OWNERS)
    other = federation.executor.playing(tuning_of(federation.algorithm, 1), "fine_tune/")
    first, second = ([rows.tolist() for rows in one.batch_rows(0, 0)] for one in (federation.executor, other))
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second))
