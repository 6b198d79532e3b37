"""Ditto: both models by hand, what each of them must not notice of the other, and clients that come late."""

from dataclasses import dataclass

import pytest
import torch

from fedgh.algorithm.ditto import Ditto
from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Report, Start
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin, local_steps
from tests.algorithm.stand_in import NOTHING, client_of, half_square, state_of


def ditto(make, lam=1.0, personal_lr=0.1, **settings):
    return make.algorithm(Ditto, lam=lam, personal_lr=personal_lr, **settings)


def stepped(make, steps=1, v=1.0, **settings):
    """F = 1/2 (x - 3)^2, w = 0."""
    algorithm = ditto(make, **settings)
    server = begin(algorithm, state_of([0.0]), [1])
    client = client_of(server, state={"v": torch.tensor([v], dtype=torch.float64), "buffers": NOTHING})
    trained, report = local_steps(algorithm, client, half_square, torch.tensor([3.0], dtype=torch.float64), steps)
    return trained.update.item(), report.state["v"].item()


def test_one_step_by_hand(make):
    """v = 1 - 0.1 (-2 + 1) = 1.1, u = 0.3: the update is of u."""
    assert stepped(make) == pytest.approx((0.3, 1.1))
    assert stepped(make, lam=0.0) == pytest.approx((0.3, 1.2))
    assert stepped(make, lam=10.0) == pytest.approx((0.3, 0.2))  # lr lam = 1: w - lr grad F(v)


def test_the_anchor_is_the_received_model_throughout(make):
    """Second step: v = 1.1 - 0.1 (-1.9 + 1.1) = 1.18; anchored at the moving u = 0.3 it would be 1.21."""
    assert stepped(make, steps=2) == pytest.approx((0.57, 1.18))


@dataclass(frozen=True, kw_only=True)
class Alone(FedAvg):
    """Every client goes on from where it was; the global model stays."""

    own_buffers = True

    def prepare(self, client):
        state = client.state or {"v": client.received.params, "buffers": client.received.buffers}
        return Start(state["v"], state["buffers"], state)

    def report(self, client, trained):
        trained.update.zero_()
        return Report({"v": trained.params.clone(), "buffers": trained.buffers.clone()})


def after(make, algorithm, rounds=3):
    federation = make.federation(module=make.normed(), algorithm=algorithm, num_clients=6, fraction=0.5)
    start = server = first_state(federation)
    for _ in range(rounds):
        server = run_round(federation, server).server
    return federation, start, server


def test_without_a_pull_the_personal_model_is_trained_alone(make):
    """Same batches, same dropout, its own running statistics: the local model to rounding, in some thirty steps."""
    settings = {"lr": 0.1, "batch_size": 4, "local_epochs": 2}
    _, _, alone = after(make, make.algorithm(Alone, **settings))
    _, _, ours = after(make, ditto(make, lam=0.0, **settings))
    assert alone.clients.keys() == ours.clients.keys()
    for k, state in alone.clients.items():
        torch.testing.assert_close(ours.clients[k]["v"], state["v"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.clients[k]["buffers"], state["buffers"], rtol=1e-4, atol=1e-5)


def test_the_global_model_never_notices(make):
    settings = {"momentum": 0.9, "batch_size": 4, "local_epochs": 2}
    _, _, plain = after(make, make.algorithm(FedAvg, **settings))
    for lam in (0.0, 1.0, 5.0):
        _, _, ours = after(make, ditto(make, lam=lam, **settings))
        assert torch.equal(ours.params, plain.params)
        assert torch.equal(ours.buffers, plain.buffers)


def test_who_has_never_taken_part_has_the_initial_model(make):
    algorithm = ditto(make, batch_size=4)
    federation, start, server = after(make, algorithm, rounds=1)
    (absent, *_) = sorted(set(range(6)) - server.clients.keys())
    assert not torch.equal(server.params, start.params)
    view = next(federation.executor.views([absent], server))
    for model in (algorithm.personal(view).params, algorithm.prepare(view).state["v"]):
        assert torch.equal(model, start.params)
    assert torch.equal(algorithm.personal(view).buffers, start.buffers)
    present = next(federation.executor.views(sorted(server.clients)[:1], server))
    assert present.message == {}
    assert torch.equal(algorithm.personal(present).params, present.state["v"])


@pytest.mark.parametrize(("settings", "key"), [({"lam": -1.0}, "lam"), ({"personal_lr": 0.0}, "personal_lr")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        ditto(make, **settings)
