"""The LightningModule that plays all clients."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from fedgh.algorithm.fedavg import FedAvg
from fedgh.client import module
from fedgh.client.local import LocalWork
from fedgh.client.module import Client
from fedgh.core.flat import FlatModel
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import initial_state


def test_it_is_a_lightning_module_that_leaves_its_model_to_us(make):
    """Lightning must neither move, nor save, nor step what lives in the flat vector."""
    client = Client(FlatModel(make.normed()), make.algorithm())
    assert isinstance(client, pl.LightningModule)
    assert client.automatic_optimization is False
    assert list(client.parameters()) == []
    assert client.state_dict() == {}


def test_the_optimizer_steps_the_flat_vector(make):
    model = FlatModel(make.normed())
    optimizer = Client(model, make.algorithm(lr=0.25, momentum=0.5)).configure_optimizers()
    (group,) = optimizer.param_groups
    assert group["params"][0] is model.params
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)


def test_clients_train_in_training_mode(make):
    """BatchNorm counts its batches; in evaluation mode it would not."""
    federation = make.federation(module=make.normed())
    federation.model.module.eval()
    result = federation.executor([0, 1, 2], initial_state(federation.model))
    assert (result.counters > 0).all()


def test_bfloat16_reaches_the_forward_pass(make):
    seen = []
    federation = make.federation(trainer=make.trainer(precision="bf16-mixed"))
    federation.model.module.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    result = federation.executor([0], initial_state(federation.model))
    assert set(seen) == {torch.bfloat16}
    assert result.updates.rows.dtype == torch.float32


class Warming(torch.optim.Optimizer):
    """Keeps a count that it makes where it is built, which fills nothing in again by itself; its step is the count."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["count"] = torch.zeros(())

    def step(self, closure=None):
        (parameter,) = self.param_groups[0]["params"]
        self.state[parameter]["count"] += 1
        parameter.data -= self.param_groups[0]["lr"] * self.state[parameter]["count"] * torch.ones_like(parameter)


@pytest.mark.parametrize("kind", [SequentialExecutor, partial(VectorizedExecutor, width=1)])
def test_every_client_finds_the_optimizer_as_it_was_built(make, kind):
    algorithm = FedAvg(optimizer=partial(Warming, lr=0.5), local_epochs=1, batch_size=20)
    federation = make.federation(num_clients=3, algorithm=algorithm, executor=kind)
    for _ in range(2):
        result = federation.executor([0, 1, 2], initial_state(federation.model))
        assert result.local_steps.tolist() == [1, 1, 1]
        assert torch.allclose(result.updates.rows, torch.tensor(-0.5))  # the count was zero for all of them


def test_a_client_that_comes_alone_draws_its_batches_as_it_goes(make, monkeypatch):
    """All batches of a large client at once may not fit into memory; those of a few small ones are drawn ahead."""
    federation = make.federation(num_clients=2)
    client, log = Client(federation.model, federation.algorithm), []

    def work(name):
        def batches():
            for index in range(3):
                log.append(f"draw {name}{index}")
                yield index

        return LocalWork(None, batches(), (), 0.1, 0, torch.zeros(1))

    def train(model, algorithm, optimizer, one):
        log.extend(f"train {index}" for index in one.batches)

    monkeypatch.setattr(module, "train_client", train)
    monkeypatch.setattr(client, "fresh_optimizer", lambda: None)
    client.training_step([work("a")], 0)
    assert log == ["draw a0", "train 0", "draw a1", "train 1", "draw a2", "train 2"]
    log.clear()
    client.training_step([work("a"), work("b")], 1)
    assert log == [f"draw {name}{index}" for name in "ab" for index in range(3)] + 2 * ["train 0", "train 1", "train 2"]
    assert len(client.results) == 3


@pytest.mark.parametrize("kind", [SequentialExecutor, partial(VectorizedExecutor, width=3)])
def test_the_training_loss_is_the_mean_over_all_steps(make, kind):
    """At a rate of next to nothing that is the loss on the client's own examples: three batches of 20 and again."""
    algorithm = make.algorithm(lr=1e-9, batch_size=20, local_epochs=2)
    federation = make.federation(num_clients=1, algorithm=algorithm, executor=kind)
    result = federation.executor([0], initial_state(federation.model))
    dataset = federation.dataset
    outputs = federation.model.module(dataset.normalize(dataset.train_inputs))
    expected = torch.nn.functional.cross_entropy(outputs, dataset.train_targets).detach()
    assert result.local_steps.tolist() == [6]
    assert result.train_loss.tolist() == pytest.approx([float(expected)], rel=1e-5)
