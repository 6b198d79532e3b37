"""One round, by hand and with everything that can go wrong in it."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import ConfigurationError, TrainingError
from fedgh.core.types import Report
from fedgh.federation.round import affordable, initial_state, run_round, to_device
from fedgh.model.mlp import MLP
from fedgh.server_optimizer.sgd import SGD


def gradient(dataset, rows, params):
    """Gradient of logistic regression on some training images, without any of the project's training code."""
    params = params.clone().requires_grad_()
    images = dataset.normalize(dataset.train_images[rows]).flatten(1)
    cross_entropy(images @ params[:12].view(3, 4).T + params[12:], dataset.train_labels[rows]).backward()
    return params.grad


def by_class(dataset):
    """Client k owns class k."""
    return dataset.train_labels.numpy()


@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_the_mean_by_hand(make, lr):
    """One full-batch step each: the global model moves by the weighted mean of the clients' steps."""
    dataset = make.dataset(num_train=12)
    owners = torch.tensor([0] * 9 + [1] * 3).numpy()
    federation = make.federation(
        dataset=dataset,
        owners=owners,
        num_clients=2,
        algorithm=make.algorithm(lr=0.2, batch_size=100),
        server_optimizer=SGD(lr=lr),
    )
    server = initial_state(federation.model)
    outcome = run_round(federation, server)
    steps = torch.stack([-0.2 * gradient(dataset, slice(a, b), server.params) for a, b in ((0, 9), (9, 12))])
    torch.testing.assert_close(outcome.result.updates.rows, steps, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        outcome.server.params, server.params + lr * (0.75 * steps[0] + 0.25 * steps[1]), rtol=1e-5, atol=1e-6
    )
    assert outcome.weights.tolist() == [0.75, 0.25]
    torch.testing.assert_close(outcome.gram, (steps @ steps.T).double(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(outcome.block_grams.sum(0), outcome.gram)
    assert outcome.server.round_index == 1
    assert server.round_index == 0


def test_fedgh_of_two_clients_by_hand(make):
    """Similar images under different labels oppose two clients; each loses its component along the other."""
    dataset = make.dataset(num_train=30)
    images = dataset.train_images // 4 + 180
    dataset = replace(dataset, train_images=images)
    owners = (dataset.train_labels > 0).numpy().astype(int)
    federation = make.federation(
        dataset=dataset,
        owners=owners,
        num_clients=2,
        algorithm=make.algorithm(lr=0.2, batch_size=100),
        aggregator=make.rule("fedgh"),
    )
    server = initial_state(federation.model)
    outcome = run_round(federation, server)
    first, second = outcome.result.updates.rows.double()
    dot = first @ second
    assert dot < -1e-3
    bent = (first - dot / (second @ second) * second, second - dot / (first @ first) * first)
    expected = bent[0] / 3 + bent[1] * 2 / 3
    torch.testing.assert_close((outcome.server.params - server.params).double(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected, first / 3 + second * 2 / 3, atol=1e-3)


def test_nothing_is_remembered_elsewhere(make):
    """The same state gives the same round, whatever was run in between; the input state stays as it was."""
    federation = make.federation(module=make.normed(), aggregator=make.rule("fedgh"))
    server = initial_state(federation.model)
    before = replace(server, **{n: getattr(server, n).clone() for n in ("params", "buffers", "counters")})
    first = run_round(federation, server).server
    run_round(federation, run_round(federation, first).server)
    again = run_round(federation, server).server
    for name in ("params", "buffers", "counters"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(getattr(server, name), getattr(before, name))


@dataclass(frozen=True, kw_only=True)
class Exploding(FedAvg):
    """The loss of every client with examples of these classes overflows."""

    classes: tuple[int, ...] = ()

    def local_loss(self, batch, *others):
        bad = any(bool((batch[1] == c).any()) for c in self.classes)
        return super().local_loss(batch, *others) * (float("inf") if bad else 1.0)


def exploding(make, *classes, **settings):
    dataset = make.dataset()
    algorithm = make.algorithm(Exploding, classes=classes)
    return make.federation(
        dataset=dataset, owners=by_class(dataset), algorithm=algorithm, module=make.normed(), **settings
    )


@pytest.mark.parametrize("aggregator", ["mean", "fedgh"])
def test_a_client_that_is_not_finite_is_dropped_named_and_counted(make, caplog, aggregator):
    federation = exploding(make, 1, aggregator=make.rule(aggregator))
    with caplog.at_level(logging.WARNING, "fedgh"):
        outcome = run_round(federation, initial_state(federation.model))
    assert outcome.dropped == (1,)
    assert outcome.result.client_ids == (0, 2)
    assert outcome.weights.tolist() == [0.5, 0.5]
    assert outcome.gram.shape == (2, 2)
    assert outcome.block_grams.shape[1:] == (2, 2)
    for tensor in (outcome.server.params, outcome.server.buffers, outcome.gram):
        assert tensor.isfinite().all()
    assert "round 1: the update of client 1 is not finite (the local loss overflowed); set aside" in caplog.text


def test_the_others_are_weighed_as_if_the_dropped_one_had_not_taken_part(make):
    dropped = exploding(make, 1)
    without = exploding(make, 1)
    object.__setattr__(without, "sampler", lambda num_clients, seed, t: [0, 2])
    states = [run_round(f, initial_state(f.model)).server for f in (dropped, without)]
    assert torch.equal(states[0].params, states[1].params)
    assert torch.equal(states[0].buffers, states[1].buffers)


def test_such_a_client_stops_the_run_by_setting(make):
    federation = exploding(make, 0, 2, on_nonfinite="raise")
    message = r"round 1: the update of clients 0, 2 is not finite .*lower algorithm.optimizer.lr.*on_nonfinite=drop"
    with pytest.raises(TrainingError, match=message):
        run_round(federation, initial_state(federation.model))


def test_when_all_are_dropped_the_model_stays(make, caplog):
    federation = exploding(make, 0, 1, 2, aggregator=make.rule("fedgh"))
    server = initial_state(federation.model)
    with caplog.at_level(logging.WARNING, "fedgh"):
        outcome = run_round(federation, server)
    assert outcome.dropped == (0, 1, 2)
    assert outcome.aggregate is None
    assert outcome.server.round_index == 1
    for name in ("params", "buffers", "counters"):
        assert torch.equal(getattr(outcome.server, name), getattr(server, name))
    assert "no client is left, the model stays as it is" in caplog.text


def test_a_finite_update_with_an_overflowing_norm_is_kept(make):
    """Its squared norm is beyond float32; that is no reason to set it aside."""
    federation = make.federation(algorithm=make.algorithm(lr=1e21))
    outcome = run_round(federation, initial_state(federation.model))
    assert outcome.dropped == ()
    assert outcome.gram.diagonal().max() > 3.5e38
    assert outcome.gram.isfinite().all()


def test_buffers_are_averaged_by_examples_and_counters_stay_whole(make):
    owners = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 20, 30])).numpy()
    federation = make.federation(owners=owners, module=make.normed(), aggregator=make.rule("fedgh"))
    outcome = run_round(federation, initial_state(federation.model))
    local = outcome.result.buffers
    expected = (local[0] * 10 + local[1] * 20 + local[2] * 30) / 60
    torch.testing.assert_close(outcome.server.buffers, expected)
    assert outcome.server.counters.dtype == torch.int64
    assert outcome.server.counters.tolist() == [max(outcome.result.local_steps.tolist())]
    assert outcome.server.counters.tolist() == [4]


def test_running_variances_never_follow_fednova(make):
    """Weights that sum to more than one would push a running variance below zero."""
    owners = torch.repeat_interleave(torch.arange(2), torch.tensor([2, 58])).numpy()
    algorithm = make.choice("algorithm", "fednova", batch_size=2)
    federation = make.federation(owners=owners, num_clients=2, module=make.normed(), algorithm=algorithm)
    outcome = run_round(federation, initial_state(federation.model))
    assert float(outcome.weights.sum()) > 1.5
    torch.testing.assert_close(outcome.server.buffers, outcome.result.buffers.T @ torch.tensor([2 / 60, 58 / 60]))


def test_buffers_can_stay_global(make):
    federation = make.federation(module=make.normed(), buffers="keep_global")
    server = initial_state(federation.model)
    outcome = run_round(federation, server)
    assert torch.equal(outcome.server.buffers, server.buffers)
    assert torch.equal(outcome.server.counters, server.counters)
    assert not torch.equal(outcome.server.params, server.params)


@pytest.mark.parametrize(("name", "allowed"), [("on_nonfinite", "drop, raise"), ("buffers", "average, keep_global")])
def test_policies_are_checked(make, name, allowed):
    with pytest.raises(ConfigurationError, match=f"{name} must be one of {allowed}, got 'maybe'"):
        make.federation(**{name: "maybe"})


def test_a_fifth_of_a_hundred_clients(make):
    federation = make.federation(dataset=make.dataset(num_train=300), num_clients=100, fraction=0.2)
    server, cohorts = initial_state(federation.model), []
    for _ in range(3):
        outcome = run_round(federation, server)
        assert len(outcome.result.updates) == len(set(outcome.result.client_ids)) == 20
        assert float(outcome.weights.sum()) == pytest.approx(1.0)
        assert outcome.gram.shape == (20, 20)
        cohorts.append(outcome.result.client_ids)
        server = outcome.server
    assert len(set(cohorts)) == 3
    assert all(list(ids) == sorted(ids) for ids in cohorts)


def test_block_grams_are_made_where_they_cost_little(make):
    federation = make.federation()
    result = federation.executor([0, 1], initial_state(federation.model))
    assert affordable(result.updates)
    many = replace(result).updates.__class__(
        torch.empty(3000, 15, device="meta"), federation.model.blocks
    )  # 2 blocks x 9 million numbers
    assert not affordable(many)


def test_to_device_keeps_everything(make):
    server = initial_state(make.federation(module=make.normed()).model)
    server = replace(server, optimizer={"m": torch.ones(2)}, clients={3: {"c": torch.ones(1)}}, round_index=7)
    moved = to_device(server, torch.device("cpu"))
    assert moved.round_index == 7
    assert torch.equal(moved.params, server.params)
    assert torch.equal(moved.optimizer["m"], torch.ones(2))
    assert torch.equal(moved.clients[3]["c"], torch.ones(1))


def test_the_initial_state_is_a_copy(make):
    model = make.federation(module=make.normed()).model
    server = initial_state(model)
    kept = server.params.clone()
    model.load(torch.zeros_like(server.params), server.buffers, server.counters)
    assert torch.equal(server.params, kept)
    assert not server.params.requires_grad


@dataclass(frozen=True, kw_only=True)
class Weighing(FedAvg):
    """Gives client 0 a weight of its own, and lets every client keep how often it took part."""

    weight: float

    def client_weights(self, shares, result):
        return torch.where(torch.tensor(result.client_ids) == 0, self.weight, shares)

    def report(self, client, trained):
        return Report({"rounds": client.state.get("rounds", torch.zeros(())) + 1})


def test_a_server_step_too_far_is_named_as_the_cause_and_not_taken(make, caplog):
    """Its parameters are finite, so that only the next round's clients would notice, and be blamed."""
    module = MLP(make.dataset().image_shape, 3, hidden=[4])
    federation = make.federation(module=module, server_optimizer=SGD(lr=1e25))
    server = initial_state(federation.model)
    with caplog.at_level(logging.WARNING, "fedgh"):
        after = run_round(federation, server).server
    assert torch.equal(after.params, server.params)
    assert "round 1: the server's step would take the global model's parameters up to " in caplog.text
    assert "lower server_optimizer.lr; the round is set aside" in caplog.text
    assert run_round(federation, after).dropped == (), "the next round's clients start from a sound model"
    module = MLP(make.dataset().image_shape, 3, hidden=[4])
    algorithm = make.algorithm(lr=1e25, batch_size=100)  # one step: their updates are finite
    own = make.federation(module=module, algorithm=algorithm, on_nonfinite="raise", num_clients=1)
    with pytest.raises(TrainingError, match=r"lower algorithm.optimizer.lr"):
        run_round(own, initial_state(own.model))


def test_clients_that_fail_for_the_model_that_they_got_are_not_blamed(make, caplog):
    federation = exploding(make, 1)
    server = initial_state(federation.model)
    huge = replace(server.with_model(0, replace(server.models[0], params=server.params * 1e12)), round_index=3)
    with caplog.at_level(logging.WARNING, "fedgh"):
        assert 1 in run_round(federation, huge).dropped
    assert "because of the global model that they started from: as round 3 left it, its parameters" in caplog.text
    with pytest.raises(TrainingError, match=r"round 4: the update of client.* lower server_optimizer.lr"):
        run_round(exploding(make, 1, on_nonfinite="raise"), huge)


def test_a_rule_that_needs_more_clients_than_are_left_sets_the_round_aside(make, caplog):
    dataset = make.dataset()
    federation = make.federation(
        num_clients=5,
        dataset=dataset,
        owners=dataset.train_targets.numpy() + 3 * (np.arange(60) % 2) * (dataset.train_targets.numpy() < 2),
        algorithm=make.algorithm(Exploding, classes=(1,)),
        aggregator=make.rule("krum"),
    )
    server = initial_state(federation.model)
    with caplog.at_level(logging.WARNING, "fedgh"):
        outcome = run_round(federation, server)
    assert outcome.dropped == (1, 4)
    assert torch.equal(outcome.server.params, server.params)
    assert "round 1: 3 of 5 clients are left, the model stays as it is" in caplog.text


@pytest.mark.parametrize("weight", [-1e-9, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(make, weight):
    federation = make.federation(algorithm=make.algorithm(Weighing, weight=weight), on_nonfinite="raise")
    message = r"round 1: Weighing gives clients the weights \[.*\], which must be finite and not negative"
    with pytest.raises(TrainingError, match=message):
        run_round(federation, initial_state(federation.model))


def test_a_weight_of_zero_is_one_and_what_clients_keep_is_in_the_next_state(make):
    federation = make.federation(algorithm=make.algorithm(Weighing, weight=0.0), fraction=0.67)
    server, counts = initial_state(federation.model), dict.fromkeys(range(3), 0)
    for _ in range(3):
        outcome = run_round(federation, server)
        server = outcome.server
        for k in outcome.result.client_ids:
            counts[k] += 1
            assert outcome.weights[outcome.result.client_ids.index(k)] >= 0
        kept = {k: float(state["rounds"]) for k, state in server.clients.items()}
        assert kept == {k: n for k, n in counts.items() if n}
    assert sorted(counts.values())[-1] > 1
