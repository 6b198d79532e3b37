"""Mistakes that are easily made in a method of one's own: each is one line that names the hook and the remedy."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from fedgh.algorithm.base import Algorithm
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Broadcast, Report, Start
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import first_state, run_round

EXECUTORS = {"sequential": SequentialExecutor, "vectorized": partial(VectorizedExecutor, width=3)}
SETTINGS = {"lr": 0.1, "local_epochs": 1, "batch_size": 4}


def play(make, method, executor, rounds=2):
    owners = torch.arange(60).numpy() % 3
    algorithm = make.algorithm(method, **SETTINGS)
    federation = make.federation(owners=owners, num_clients=3, algorithm=algorithm, executor=EXECUTORS[executor])
    server = first_state(federation)
    for _ in range(rounds):
        server = run_round(federation, server).server
    return server


def made(**hooks):
    """Return an algorithm with these hooks."""
    return dataclass(frozen=True, kw_only=True)(type("Mine", (Algorithm,), {"__module__": __name__, **hooks}))


def names_vary(self, client, trained):
    return Report({f"of{client.client_id}": trained.params.clone()})


def names_change(self, client, trained):
    return Report({f"round{client.round_index}": trained.params.clone()})


def forgets(self, client, trained):
    trained.update.mul_(1)


def message_shapes_vary(self, client, trained):
    return Report(message={"much": torch.zeros(client.client_id + 1)})


def message_names_vary(self, client, trained):
    return Report(message={f"of{client.client_id}": torch.zeros(1)})


def writes_into_received(self, client, trained):
    client.received.params.add_(1)
    return Report()


def keeps(self, client, trained):
    return Report({"kept": client.state.get("kept", torch.zeros(2))})


def writes_into_state(self, client):
    if client.state:
        client.state["kept"] += 1
    return Start(client.received.params, client.received.buffers)


def sends(self, server, client_ids):
    return Broadcast({"c": torch.zeros(3)})


def writes_into_message(self, client):
    client.message["c"].add_(1)
    return Start(client.received.params, client.received.buffers)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"report": names_vary}, r"Mine.report must give .* in Report.state: client 0 has of0 .*, client 1 of1 "),
        ({"report": names_change}, r"client 0 before this round has round0 .*, client 0 round1 "),
        ({"report": forgets}, r"Mine.report must return a Report, got NoneType"),
        ({"report": message_shapes_vary}, r"Report.message: client 0 has much \(1,\) float32, client 1 much \(2,\)"),
        ({"report": message_names_vary}, r"Report.message: client 0 has of0 \(1,\) float32, client 1 of1 \(1,\)"),
        ({"prepare": lambda self, client: None}, r"Mine.prepare must return a Start, got NoneType"),
        ({"report": writes_into_received}, r"Mine wrote into client.received.params in place .*make a new tensor"),
        ({"report": keeps, "prepare": writes_into_state}, r"Mine wrote into client.state\['kept'\] in place"),
        ({"broadcast": sends, "prepare": writes_into_message}, r"Mine wrote into client.message\['c'\] in place"),
    ],
)
def test_a_broken_contract_is_named(make, executor, hooks, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        play(make, made(**hooks), executor)
    assert "\n" not in str(caught.value)


def test_starts_of_different_shapes_cannot_be_stacked(make):
    def prepare(self, client):
        return Start(client.received.params, client.received.buffers, {"z": torch.zeros(1 + client.client_id % 2)})

    with pytest.raises(
        ConfigurationError, match=r"Mine.prepare must give .* in Start.state: client 0 has z \(1,\) float32, client 1"
    ):
        play(make, made(prepare=prepare), "vectorized")


def test_a_step_that_writes_into_its_state(make):
    def prepare(self, client):
        return Start(client.received.params, client.received.buffers, {"v": client.received.params.clone()})

    def local_gradient(self, batch, forward, params, global_params, state):
        gradient, loss, _ = Algorithm.local_gradient(self, batch, forward, params, global_params, state)
        state["v"].add_(1)
        return gradient, loss, state

    with pytest.raises(ConfigurationError, match=r"Mine wrote into state\['v'\] in place|cannot be vectorized"):
        play(make, made(prepare=prepare, local_gradient=local_gradient), "vectorized")


def test_a_step_may_answer_with_the_mapping_it_was_given(make):
    """The executors agree on what it has become."""

    def prepare(self, client):
        return Start(client.received.params, client.received.buffers, {"n": torch.full((1,), float(client.client_id))})

    def local_gradient(self, batch, forward, params, global_params, state):
        gradient, loss, _ = Algorithm.local_gradient(self, batch, forward, params, global_params, state)
        state["n"] = state["n"] + 1
        return gradient, loss, state

    def report(self, client, trained):
        return Report({"n": trained.state["n"]})

    method = made(prepare=prepare, local_gradient=local_gradient, report=report)
    for executor in EXECUTORS:
        clients = play(make, method, executor).clients
        assert {k: float(state["n"]) for k, state in clients.items()} == {0: 5, 1: 6, 2: 7}, executor


def test_a_wrong_signature_and_a_misspelt_hook(make):
    with pytest.raises(
        ConfigurationError,
        match=r"Mine.local_loss cannot be called \(.*\); write def local_loss\(self, batch, forward, params, glob",
    ):
        make.algorithm(made(local_loss=lambda self, batch, forward, params: params.sum()), **SETTINGS)
    with pytest.raises(ConfigurationError, match=r"Mine.client_weight is never called, .*; write client_weights"):
        make.algorithm(made(client_weight=lambda self, weights, result: weights), **SETTINGS)
    make.algorithm(made(distance=lambda self, a, b: a - b), **SETTINGS)  # a helper
