"""Memory is looked at before many clients are trained at once."""

import re
from functools import partial

import pytest
import torch

from fedgh.executor import auto, memory, vectorized
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import initial_state
from fedgh.model.cnn2 import CNN2
from fedgh.model.mlp import MLP
from fedgh.model.mobilenet_v2 import MobileNetV2

SHAPE = (3, 12, 12)
MODELS = {
    "cnn2": partial(CNN2, SHAPE, 3, channels=[16, 32], hidden=32, dropout=[0.25, 0.5]),
    "mlp": partial(MLP, SHAPE, 3, hidden=[500]),
}


TWENTY = partial(VectorizedExecutor, 20)


def executor_of(make, module, executor=TWENTY, shape=SHAPE, clients=6, batch_size=16):
    federation = make.federation(
        num_clients=clients,
        dataset=make.dataset(num_train=clients * batch_size, shape=shape),
        owners=torch.arange(clients * batch_size).numpy() % clients,
        module=module,
        algorithm=make.algorithm(momentum=0.9, batch_size=batch_size),
        executor=executor,
    )
    return federation.executor


@pytest.mark.parametrize("model", MODELS)
def test_the_estimate_is_what_a_group_takes(make, model):
    taken = []
    for clients in (2, 6):
        executor = executor_of(make, MODELS[model]())
        server = initial_state(executor.model)
        taken.append(max(memory.alive_bytes(lambda: executor(range(clients), server))))  # noqa: B023 - called at once
    assert memory.bytes_of_client(executor) * 4 == pytest.approx(taken[1] - taken[0], rel=0.35)


@pytest.mark.slow
def test_twenty_clients_of_mobilenet_on_64_x_64_images_take_about_100_gib(make):
    executor = executor_of(make, MobileNetV2((3, 64, 64), 200), shape=(3, 64, 64), clients=2, batch_size=64)
    assert 20 * memory.bytes_of_client(executor) / 2**30 == pytest.approx(100, rel=0.2)


def room_for(monkeypatch, executor, clients):
    """Give the machine memory for so many clients and a half."""
    rest = memory.bytes_of_rest(executor, 6, vectorized.GROUP_EXAMPLES)
    total = (rest + (clients + 0.5) * memory.bytes_of_client(executor)) / memory.USABLE
    monkeypatch.setattr(vectorized, "memory_of", lambda _: int(total))


def test_what_does_not_fit_is_said_and_left_to_the_user(make, monkeypatch, caplog):
    module = MODELS["cnn2"]()
    executor = executor_of(make, module)
    assert not caplog.messages
    room_for(monkeypatch, executor, 3)
    assert executor_of(make, module).width == 20
    (message,) = caplog.messages
    assert re.search(r"executor.width=20: .* 6 of them take about .* GiB, of .* GiB; try executor.width=3, ", message)


def test_auto_takes_as_many_clients_as_fit_and_says_why(make, monkeypatch, caplog):
    module = MODELS["mlp"]()
    room_for(monkeypatch, executor_of(make, module), 5)
    monkeypatch.setattr(auto, "MAX_PARAMS", 10**9)
    with caplog.at_level("INFO"):
        executor = executor_of(make, module, partial(auto.choose, 20))
    assert type(executor) is VectorizedExecutor
    assert executor.width == executor.module.width == 5
    (message,) = caplog.messages
    assert re.search(r"picked vectorized: .*; 5 clients at a time: 6 of them take about .* GiB, of", message)
    assert executor(range(6), initial_state(executor.model)).local_steps.tolist() == [1] * 6


@pytest.mark.parametrize("clients", [-1, 0, 1])
def test_auto_trains_one_after_the_other_where_not_even_two_fit(make, monkeypatch, caplog, clients):
    module = MODELS["mlp"]()
    room_for(monkeypatch, executor_of(make, module), clients)
    monkeypatch.setattr(auto, "MAX_PARAMS", 10**9)
    with caplog.at_level("INFO"):
        executor = executor_of(make, module, partial(auto.choose, 20))
    assert type(executor) is SequentialExecutor
    assert "not even two clients at a time would fit into memory: 6 of them take about" in caplog.text


def test_the_memory_of_this_machine_and_of_others():
    assert 2**28 < memory.memory_of(torch.device("cpu")) < 2**50
    assert memory.memory_of(torch.device("lazy")) is None


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 1),
        (partial(torch.optim.Adam, lr=0.1), 2),
        (partial(torch.optim.AdamW, lr=0.1, amsgrad=True), 3),
    ],
)
def test_optimizers_keep_vectors(optimizer, slots):
    assert memory.slots(optimizer) == slots
