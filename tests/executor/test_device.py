"""Executors on a (simulated) accelerator: nothing mixes devices, nobody waits inside a client's steps, bits travel."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CUDAAccelerator

from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.feddecorr import FedDecorr
from fedgh.algorithm.fednova import FedNova
from fedgh.algorithm.fedprox import FedProx
from fedgh.core.flat import FlatModel
from fedgh.core.types import Report, Start
from fedgh.dataset.augmentation import Augmentation
from fedgh.executor.ray import Raw, Worker
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import initial_state, run_round, to_device
from fedgh.model.cnn2 import CNN2
from fedgh.server_optimizer.momentum import Momentum

from ..accelerator import DEVICE, Accelerator

EXECUTORS = {"sequential": SequentialExecutor, "vectorized": partial(VectorizedExecutor, 20)}
OWNERS = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 9, 16, 30])).numpy()
EVERYTHING = Augmentation(crop_padding=2, flip=True, auto_augment=True)


@dataclass(frozen=True, kw_only=True)
class Remembering(FedAvg):
    """Pulls a client towards where it ended last time, and sends its labels."""

    def prepare(self, client):
        last = client.state.get("last", torch.zeros_like(client.received.params))
        return Start(client.received.params, client.received.buffers, {"last": last})

    def local_loss(self, batch, forward, params, global_params, state):
        loss = super().local_loss(batch, forward, params, global_params, state)
        return loss + 0.05 * (params - global_params - state["last"]).square().sum()

    def report(self, client, trained):
        return Report({"last": trained.update.clone()}, {"labels": client.label_counts})


ALGORITHMS = {
    "fedprox": partial(FedProx, mu=0.1),
    "fednova": FedNova,
    "feddecorr": partial(FedDecorr, beta=0.1, normalize=False),
    "remembering": Remembering,
}


def cnn():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return CNN2((3, 8, 8), 3, channels=[3, 4], hidden=6, dropout=[0.25, 0.5])


def federation_of(make, kind, algorithm=FedAvg, augmentation=None, module=cnn, **settings):
    return make.federation(
        num_clients=4,
        owners=OWNERS,
        dataset=make.dataset(shape=(3, 8, 8), augmentation=augmentation),
        module=module(),
        algorithm=make.algorithm(algorithm, local_epochs=2, batch_size=4, momentum=0.9),
        aggregator=make.rule("fedgh"),
        executor=EXECUTORS[kind],
        **settings,
    )


def moved(federation, kind):
    """Return the same federation on the accelerator."""
    model, dataset = FlatModel(federation.model.module, DEVICE), federation.dataset.to(DEVICE)
    old = federation.executor
    parts = {"trainer": old.trainer, "algorithm": old.algorithm, "client_indices": old.client_indices, "seed": old.seed}
    executor = EXECUTORS[kind](model=model, dataset=dataset, **parts)
    return replace(federation, model=model, dataset=dataset, executor=executor)


def rounds(federation, server, count):
    for _ in range(count):
        server = run_round(federation, server).server
    return server


def close(found, wanted):
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize(
    "algorithm",
    ["fednova", "remembering", *(pytest.param(a, marks=pytest.mark.slow) for a in ("fedprox", "feddecorr"))],
)
def test_rounds_mix_no_devices_and_give_the_cpus_numbers(make, kind, algorithm):
    federation = federation_of(make, kind, ALGORITHMS[algorithm], server_optimizer=Momentum(1.0, 0.9, "heavy_ball"))
    start = initial_state(federation.model)
    expected = rounds(federation, start, 2)
    with Accelerator():
        federation = moved(federation, kind)
        server = rounds(federation, to_device(start, DEVICE), 2)
        assert server.params.device == DEVICE
        close(server.params, expected.params)
        assert set(server.clients) == set(expected.clients)
        for k, state in expected.clients.items():
            close(server.clients[k]["last"], state["last"])


@pytest.mark.parametrize("kind", EXECUTORS)
def test_a_resumed_run_whose_clients_kept_something_mixes_no_devices(make, kind):
    """A checkpoint brings client states to the CPU; those who have not taken part yet begin on the device."""
    federation = federation_of(make, kind, Remembering)
    start = rounds(replace(federation, sampler=lambda *_: [0, 2]), initial_state(federation.model), 1)
    expected = rounds(federation, start, 2)
    with Accelerator():
        federation = moved(federation, kind)
        server = to_device(start, DEVICE)
        assert server.clients[0]["last"].device.type == "cpu"
        server = rounds(federation, server, 2)
        close(server.params, expected.params)


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_nothing_waits_for_the_device_inside_the_steps(make, kind, augmentation):
    """Twice the steps, not one wait more; and what is copied is a few numbers, never a vector of parameters."""
    waits, copied = [], []
    with Accelerator() as accelerator:
        for epochs in (1, 3):
            federation = federation_of(make, kind, augmentation=augmentation)
            federation = replace(federation, algorithm=replace(federation.algorithm, local_epochs=epochs))
            federation.executor.algorithm = federation.algorithm
            federation = moved(federation, kind)
            server = rounds(federation, to_device(initial_state(federation.model), DEVICE), 1)  # tables, label counts
            accelerator.reset()
            federation.executor([0, 1, 2, 3], server)
            waits.append(accelerator.waits.total())
            copied.append(Counter(accelerator.copied_to_host))
            params = server.params.numel()
    assert waits[0] == waits[1] == 1, "the losses of the cohort, at its end"
    assert copied[0] == copied[1]
    assert all(torch.Size(shape).numel() < params for shape in copied[0])


def test_the_launches_of_a_vectorized_step_do_not_grow_with_the_number_of_clients(make):
    launches = []
    with Accelerator() as accelerator:
        for clients in (2, 6):
            federation = make.federation(
                num_clients=clients,
                owners=torch.arange(60).numpy() % clients,
                dataset=make.dataset(shape=(3, 8, 8), augmentation=EVERYTHING),
                module=cnn(),
                algorithm=make.algorithm(momentum=0.9, batch_size=5, local_epochs=clients),  # 12 steps each
                executor=EXECUTORS["vectorized"],
            )
            federation = moved(federation, "vectorized")
            server = rounds(federation, to_device(initial_state(federation.model), DEVICE), 1)
            accelerator.reset()
            federation.executor(range(clients), server)
            launches.append(accelerator.operations)
    assert federation.executor.num_steps(0) == 12
    assert launches[1] < 1.15 * launches[0]


class Leaving(CUDAAccelerator):
    """A GPU as Lightning sees it, on a machine without."""

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device("cpu")]

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True


def test_a_fit_neither_empties_the_cache_of_a_gpu_nor_asks_for_the_old_setting_of_tf32(make, monkeypatch):
    emptied, chosen = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    federation = federation_of(make, "sequential", trainer=make.trainer(accelerator=Leaving()))
    accelerator = federation.executor.trainer.strategy.accelerator
    rounds(federation, initial_state(federation.model), 2)
    assert not emptied
    assert chosen == [torch.device("cpu")] * 2
    accelerator.teardown()  # as Lightning has it, outside of our fits
    assert emptied == [1]


def test_the_optimizers_state_ends_with_the_fit(make):
    seen = []

    class Look(pl.Callback):
        def on_fit_end(self, trainer, module):
            seen.append(dict(module.optimizers(use_pl_optimizer=False).state))

    federation = federation_of(make, "sequential", trainer=make.trainer(callbacks=[Look()]))
    rounds(federation, initial_state(federation.model), 2)
    assert seen == [{}, {}]


@pytest.mark.parametrize("algorithm", [FedAvg, Remembering])
def test_a_worker_brings_what_it_is_sent_to_its_device(make, algorithm):
    """Everything arrives on the CPU, whatever device the worker computes on."""
    federation = federation_of(make, "sequential", algorithm)
    server = rounds(federation, initial_state(federation.model), 1)
    executor = federation.executor
    expected = executor([1, 3], server)
    with Accelerator():
        worker = Worker.__new__(Worker)
        worker.executor = moved(federation, "sequential").executor
        for_all = (server.round_index, server.models, {}, None)
        errands = [errand_of(client) for client in executor.views([1, 3], server)]
        updates, results, _ = worker.train(for_all, errands)
        assert isinstance(updates, Raw)
        close(updates.tensor, expected.updates.rows)
        assert [result.client_id for result in results] == [1, 3]


def errand_of(client):
    from fedgh.executor.ray import _Errand

    errand = _Errand.of(client, {})
    state = {name: value.tensor for name, value in errand.state.items()}
    return replace(errand, state=state, message={}, version=None)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_a_round_that_is_kept_stays_as_it_was(make, kind):
    federation = federation_of(make, kind, Remembering)
    kept, server = [], initial_state(federation.model)
    for _ in range(3):
        outcome = run_round(federation, server)
        kept.append((outcome, outcome.result.updates.rows.clone(), outcome.result.buffers.clone()))
        server = outcome.server
    for outcome, rows, buffers in kept:
        assert torch.equal(outcome.result.updates.rows, rows)
        assert torch.equal(outcome.result.buffers, buffers)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_rounds_that_nobody_keeps_share_their_memory(make, kind):
    federation = federation_of(make, kind)
    places, server = set(), initial_state(federation.model)
    for _ in range(4):
        outcome = run_round(federation, server)
        places.add(outcome.result.updates.rows.data_ptr())
        server = outcome.server
        del outcome
    assert len(places) == 1
