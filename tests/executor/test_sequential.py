"""Clients under one reused Trainer: they really train, in any order to the same bits, and nothing piles up."""

import gc
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import TrainingError
from fedgh.core.types import Report, Start
from fedgh.dataset.augmentation import Augmentation
from fedgh.executor import sequential
from fedgh.executor.sequential import SequentialExecutor
from fedgh.federation.round import initial_state, run_round

UNEVEN = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 9, 16, 30])).numpy()


def rounds(federation, count):
    server, outcomes = initial_state(federation.model), []
    for _ in range(count):
        outcomes.append(run_round(federation, server))
        server = outcomes[-1].server
    return outcomes


def test_every_clients_weights_move_in_every_round(make):
    """A reused Trainer silently skips every fit after the first unless its progress moves on."""
    federation = make.federation(num_clients=4, owners=UNEVEN, trainer=make.trainer(max_epochs=1))
    server = initial_state(federation.model)
    for t in range(3):
        result = federation.executor(range(4), server)
        norms = result.updates.rows.norm(dim=1)
        assert (norms > 1e-4).all(), f"round {t}: {norms}"
        assert len({tuple(row.tolist()) for row in result.updates.rows}) == 4
        assert result.train_loss.isfinite().all()
        server = replace(server, round_index=t + 1, params=server.params + result.updates.rows.mean(0))


def test_local_steps_are_counted(make):
    """Five, 9, 16 and 30 examples in batches of 8: a last batch of one joins the one before it."""
    algorithm = make.algorithm(batch_size=8, local_epochs=3)
    federation = make.federation(num_clients=4, owners=UNEVEN, algorithm=algorithm)
    result = federation.executor([3, 0, 2, 1], initial_state(federation.model))
    assert result.client_ids == (0, 1, 2, 3)
    assert result.local_steps.tolist() == [3 * 1, 3 * 1, 3 * 2, 3 * 4]
    assert result.num_examples.tolist() == [5.0, 9.0, 16.0, 30.0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_client_and_one_step_is_plain_sgd(make, momentum):
    dataset = make.dataset(num_train=12)
    algorithm = make.algorithm(lr=0.3, momentum=momentum, batch_size=12, weight_decay=0.01)
    federation = make.federation(num_clients=1, dataset=dataset, algorithm=algorithm)
    server = initial_state(federation.model)
    result = federation.executor([0], server)

    params = server.params.clone().requires_grad_()
    images = dataset.normalize(dataset.train_images).flatten(1)
    loss = cross_entropy(images @ params[:12].view(3, 4).T + params[12:], dataset.train_labels)
    loss.backward()
    expected = -0.3 * (params.grad + 0.01 * params.detach())
    torch.testing.assert_close(result.updates.rows[0], expected, rtol=1e-5, atol=1e-7)
    assert result.train_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    assert result.train_loss.dtype == torch.float64


def test_momentum_and_adam_start_afresh_with_every_client_and_round(make):
    """Clients with the same data, with their own shuffle turned off by a full batch, end at the same point."""
    dataset = make.dataset(num_train=6)
    dataset = replace(
        dataset,
        train_images=dataset.train_images.repeat(2, 1, 1, 1),
        train_labels=dataset.train_labels.repeat(2),
    )
    owners = torch.arange(12).div(6, rounding_mode="floor").numpy()
    for optimizer in (partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(torch.optim.Adam, lr=0.1)):
        algorithm = FedAvg(optimizer=optimizer, local_epochs=4, batch_size=6)
        federation = make.federation(dataset=dataset, owners=owners, num_clients=2, algorithm=algorithm)
        server, seen = initial_state(federation.model), []
        for t in range(2):  # the second time from the same point
            seen.append(federation.executor([0, 1], replace(server, round_index=t)).updates.rows.clone())
        for row in torch.cat(seen)[1:]:
            torch.testing.assert_close(row, seen[0][0], rtol=1e-4, atol=1e-5)


def test_clients_start_from_the_global_buffers(make):
    federation = make.federation(module=make.normed(), algorithm=make.algorithm(batch_size=8, local_epochs=2))
    server = initial_state(federation.model)
    server = replace(server, buffers=server.buffers + 3, counters=server.counters + 100)
    result = federation.executor(range(3), server)
    assert (result.counters.flatten() == 100 + result.local_steps).all()
    assert (result.buffers != server.buffers).all(dim=1).all()


class Shuffled(SequentialExecutor):
    """Trains the cohort in another order every round."""

    def order(self, client_ids):
        order = list(range(len(client_ids)))[::-1]
        turn = self.trainer.current_epoch % len(order)
        return order[turn:] + order[:turn]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_order_of_clients_changes_no_bit(make, momentum):
    """BatchNorm, dropout of both kinds and augmentation included: everything that could depend on who came before."""
    augmentation = Augmentation(crop_padding=1, flip=True, auto_augment=True)
    dataset = make.dataset(shape=(3, 8, 8), augmentation=augmentation)

    def final(executor, seed=1):
        federation = make.federation(
            seed=seed,
            dataset=dataset,
            owners=UNEVEN,
            num_clients=4,
            module=make.normed(shape=(3, 8, 8)),
            algorithm=make.algorithm(momentum=momentum, local_epochs=2, batch_size=4),
            aggregator=make.rule("fedgh"),
            executor=executor,
        )
        return rounds(federation, 3)[-1].server

    straight, shuffled, other = final(SequentialExecutor), final(Shuffled), final(SequentialExecutor, seed=2)
    for name in ("params", "buffers", "counters"):
        assert torch.equal(getattr(straight, name), getattr(shuffled, name)), name
    assert not torch.equal(straight.params, other.params)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad])  # the latter fills its state when built
def test_the_cohort_of_others_does_not_change_a_client(make, optimizer):
    algorithm = FedAvg(optimizer=partial(optimizer, lr=0.1), batch_size=4, local_epochs=2)

    def row(cohort):
        federation = make.federation(owners=UNEVEN, num_clients=4, module=make.normed(), algorithm=algorithm)
        result = federation.executor(cohort, initial_state(federation.model))
        return result.updates.rows[result.client_ids.index(2)].clone()

    assert torch.equal(row([2]), row([0, 1, 2, 3]))


def test_the_global_random_state_is_left_alone(make):
    federation = make.federation(module=make.normed())
    before = torch.get_rng_state()
    federation.executor([0, 1], initial_state(federation.model))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [{"limit_train_batches": 1}, {"limit_train_batches": 2}])
def test_a_trainer_that_cuts_clients_short_is_noticed(make, monkeypatch, settings):
    monkeypatch.setattr(sequential, "EXAMPLES", 1)  # one client a training step, as with clients of real size
    federation = make.federation(trainer=make.trainer(**settings))
    message = r"round 1: clients \[0, 1, 2\] should have taken \[3, 3, 3\] local steps, but took .*limit_train_batches"
    with pytest.raises(TrainingError, match=message):
        federation.executor(range(3), initial_state(federation.model))


def test_a_trainer_that_skips_the_fit_is_noticed(make):
    federation = make.federation(trainer=make.trainer(limit_train_batches=0))
    with pytest.raises(TrainingError, match=r"but took \[0, 0, 0\]"):
        federation.executor(range(3), initial_state(federation.model))


def test_callbacks_of_the_trainer_run(make, monkeypatch):
    monkeypatch.setattr(sequential, "EXAMPLES", 1)

    class Count(pl.Callback):
        starts = batches = 0

        def on_train_start(self, trainer, module):
            self.starts += 1

        def on_train_batch_end(self, *_):
            self.batches += 1

    count = Count()
    federation = make.federation(trainer=make.trainer(callbacks=[count]))
    rounds(federation, 2)
    assert (count.starts, count.batches) == (2, 6)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's process information")
def test_memory_and_open_files_stay_flat_over_300_fits(make):
    federation = make.federation(num_clients=2, dataset=make.dataset(num_train=8, num_test=3))
    server = initial_state(federation.model)
    memory, files, objects = [], [], []
    for t in range(300):
        federation.executor([0, 1], replace(server, round_index=t))
        if t in (99, 299):
            gc.collect()
            memory.append(resident_bytes())
            files.append(len(list(Path("/proc/self/fd").iterdir())))
            objects.append(len(gc.get_objects()))
    assert memory[1] - memory[0] < 4 << 20
    assert files[1] == files[0]
    assert objects[1] - objects[0] < 200  # less than one a fit


@dataclass(frozen=True, kw_only=True)
class Remembering(FedAvg):
    """Counts its own rounds, adds up its updates, and trains on what it remembers."""

    def prepare(self, client):
        first = {"rounds": torch.zeros((), dtype=torch.int64), "labels": client.label_counts, "sum": torch.zeros(15)}
        return Start(client.received.params, client.received.buffers, {**first, **client.state})

    def local_loss(self, batch, forward, params, global_params, state):
        return super().local_loss(batch, forward, params, global_params, state) + 0.1 * (params @ state["sum"])

    def report(self, client, trained):
        state, update = trained.state, trained.update
        return Report({**state, "rounds": state["rounds"] + 1, "sum": state["sum"] + update, "last": update})


def test_the_state_of_an_algorithm_survives_from_round_to_round(make):
    federation = make.federation(num_clients=4, fraction=0.5, algorithm=make.algorithm(Remembering), seed=2)
    took_part, sums, last = dict.fromkeys(range(4), 0), {}, {}
    server = initial_state(federation.model)
    for _ in range(5):
        outcome = run_round(federation, server)
        for k, row in zip(outcome.result.client_ids, outcome.result.updates.rows, strict=True):
            took_part[k] += 1
            last[k] = row.clone()
            sums[k] = sums.get(k, 0) + row
        server = outcome.server
        assert {k: int(s["rounds"]) for k, s in server.clients.items()} == {k: n for k, n in took_part.items() if n}
    assert max(took_part.values()) > 1
    for k, state in server.clients.items():
        torch.testing.assert_close(state["sum"], sums[k])
        assert state["labels"].tolist() == federation.partition.class_counts[k].tolist()
        assert torch.equal(state["last"], last[k]), "a state must not live in the matrix that the next round overwrites"


def test_states_are_created_for_participants_only_and_stateless_algorithms_keep_none(make):
    federation = make.federation(num_clients=4, fraction=0.5, algorithm=make.algorithm(Remembering))
    outcome = run_round(federation, initial_state(federation.model))
    assert tuple(outcome.server.clients) == outcome.result.client_ids
    federation = make.federation(num_clients=4)
    assert run_round(federation, initial_state(federation.model)).server.clients == {}


def test_small_clients_share_a_training_step_and_large_ones_have_their_own(make, monkeypatch):
    """A step holds `EXAMPLES`, counted in whole batches: 8, 8, 16 and 32 here."""
    federation = make.federation(num_clients=4, owners=UNEVEN)
    executor, server = federation.executor, initial_state(federation.model)
    clients = list(executor.views(range(4), server))

    def together(most):
        monkeypatch.setattr(sequential, "EXAMPLES", most)
        steps = [[one.client.client_id for one in work] for work in executor.work(clients, executor.rows(4))]
        assert [k for step in steps for k in step] == [0, 1, 2, 3]
        return steps

    assert together(15) == [[0], [1], [2], [3]]
    assert together(16) == together(31) == [[0, 1], [2], [3]]  # what is held begins anew with each step
    assert together(32) == together(63) == [[0, 1, 2], [3]]
    assert together(64) == [[0, 1, 2, 3]]
