"""The cohort executor gives the sequential executor's numbers: float64, within 1e-10, over three rounds."""

import re
from dataclasses import dataclass, replace
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from fedgh.aggregator.mean import Mean
from fedgh.algorithm.fedavg import FedAvg
from fedgh.algorithm.feddecorr import FedDecorr
from fedgh.algorithm.fednova import FedNova
from fedgh.algorithm.fedprox import FedProx
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.core.types import Cohort, Report
from fedgh.dataset.augmentation import Augmentation
from fedgh.dataset.base import ImageDataset
from fedgh.executor.auto import choose
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import initial_state
from fedgh.model.cnn2 import CNN2
from fedgh.model.mlp import MLP
from fedgh.model.mobilenet_v2 import MobileNetV2

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning's own, as `fedgh.config.entry.quieten` does

SIZES = (9, 4, 13, 1, 8, 6)
"""Examples per client at batch size 4: batches of 4 + 5, 4, 4 + 4 + 5, 1, 4 + 4, 4 + 2."""
COHORTS = ((0, 1, 2, 4), (5, 2, 3, 1), (4, 0, 5, 2))
"""Who takes part in each of three rounds."""

MODELS = {
    "cnn2": partial(CNN2, channels=[3, 4], hidden=6, dropout=[0.25, 0.5]),
    "mlp": partial(MLP, hidden=[7]),
    "mobilenet_v2": MobileNetV2,
}
ALGORITHMS = {
    "fedavg": FedAvg,
    "fedprox": partial(FedProx, mu=0.1),
    "fednova": FedNova,
    "feddecorr": partial(FedDecorr, beta=0.1, normalize=False),
}


class DoubleImages(ImageDataset):
    """Normalises to float64; a data set proper gives float32."""

    def normalize(self, images):
        return super().normalize(images).double()


@dataclass(frozen=True, kw_only=True)
class Remembering(FedAvg):
    """Pulls a client towards where it ended last time; keeps nothing before its first round."""

    def local_loss(self, batch, forward, params, global_params, state):
        loss = super().local_loss(batch, forward, params, global_params, state)
        if "last" not in state:
            return loss
        return loss + 0.05 * (params - global_params - state["last"]).square().sum() / (1 + state["steps"])

    def report(self, client, trained):
        return Report({"last": trained.update, "steps": torch.tensor(float(trained.local_steps))})


@dataclass(frozen=True, kw_only=True)
class Branching(FedAvg):
    def local_loss(self, batch, forward, params, global_params, state):
        loss = super().local_loss(batch, forward, params, global_params, state)
        return loss if loss > 0 else -loss


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dataset(side=8, augmentation=None):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (sum(SIZES), 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (sum(SIZES),), generator=generator)
    statistics = ((0.5,) * 3, (0.3,) * 3)
    return DoubleImages("toy", images, labels, images[:3], labels[:3], ("a", "b", "c"), *statistics, augmentation)


def executor(kind, model, algorithm, data=None, sgd=None, local_epochs=2, sizes=SIZES, **settings):
    data = data or dataset()
    torch.manual_seed(3)
    optimizer = sgd or partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return kind(
        trainer=pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, **quiet),
        model=FlatModel(model(input_shape=data.image_shape, num_outputs=3)),
        algorithm=algorithm(optimizer=optimizer, local_epochs=local_epochs, batch_size=4),
        dataset=data,
        client_indices=list(torch.arange(sum(sizes)).split(sizes)),
        seed=11,
        **settings,
    )


def play(runner, cohorts=COHORTS):
    """Run rounds of plain averaging; return what every cohort reported and the states after them."""
    server, results = initial_state(runner.model), []
    for ids in cohorts:
        result = runner(ids, server)
        result.updates.rows = result.updates.rows.clone()  # the executor reuses the matrix
        shares = result.num_examples / result.num_examples.sum()
        weights = runner.algorithm.client_weights(shares, result)
        cohort = Cohort(result.client_ids, weights, result.train_loss, 11, server.round_index)
        update = Mean()(result.updates, result.updates.gram(), cohort, {}).update
        server = replace(
            server,
            round_index=server.round_index + 1,
            params=server.params + update,
            buffers=shares @ result.buffers,
            counters=result.counters.amax(0),
            clients={**server.clients, **result.client_states},
        )
        results.append((result, server))
    return results


def assert_same(one, other, tolerance=1e-10):
    for (result, server), (expected, expected_server) in zip(one, other, strict=True):
        assert result.client_ids == expected.client_ids
        assert torch.equal(result.local_steps, expected.local_steps)
        assert torch.equal(result.counters, expected.counters)
        pairs = [(result.updates.rows, expected.updates.rows), (server.params, expected_server.params)]
        pairs += [(result.buffers, expected.buffers), (result.train_loss, expected.train_loss)]
        for found, wanted in pairs:
            assert wanted.isfinite().all()
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
        assert server.clients.keys() == expected_server.clients.keys()
        for k, state in expected_server.clients.items():
            for name, tensor in state.items():
                torch.testing.assert_close(server.clients[k][name], tensor, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model", ["cnn2", "mlp"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equals_the_sequential_executor(model, algorithm):
    expected = play(executor(SequentialExecutor, MODELS[model], ALGORITHMS[algorithm]))
    assert_same(play(executor(VectorizedExecutor, MODELS[model], ALGORITHMS[algorithm], width=20)), expected)


@pytest.mark.parametrize(
    "algorithm", ["fedprox", *(pytest.param(a, marks=pytest.mark.slow) for a in ALGORITHMS if a != "fedprox")]
)
def test_batch_statistics_are_each_clients_own(algorithm):
    # 57 batch normalisations over few images amplify rounding errors; a gentle step keeps two runs together
    settings = {
        "data": dataset(side=12),
        "sgd": partial(torch.optim.SGD, lr=0.001, momentum=0.9),
        "local_epochs": 1,
        "sizes": (8, 5, 4),  # batches of 4 + 4, 5, 4
    }
    cohorts = ((0, 1), (1, 2))
    mobilenet, algorithm = MODELS["mobilenet_v2"], ALGORITHMS[algorithm]
    expected = play(executor(SequentialExecutor, mobilenet, algorithm, **settings), cohorts)
    assert_same(play(executor(VectorizedExecutor, mobilenet, algorithm, width=20, **settings), cohorts), expected)


@pytest.mark.parametrize(
    ("model", "algorithm", "pads"),
    [
        ("cnn2", "fedavg", True),
        ("mlp", "fedprox", True),
        ("mlp", "feddecorr", False),
        ("mobilenet_v2", "fedavg", False),
    ],
)
def test_batches_are_padded_only_where_nothing_mixes_examples(model, algorithm, pads):
    assert executor(VectorizedExecutor, MODELS[model], ALGORITHMS[algorithm], width=20).pads is pads


def test_unpadded_parts_give_the_same_numbers():
    expected = play(executor(SequentialExecutor, MODELS["cnn2"], FedAvg))
    runner = executor(VectorizedExecutor, MODELS["cnn2"], FedAvg, width=20)
    runner.pads = False
    assert_same(play(runner), expected)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_width_changes_memory_and_nothing_else(width):
    expected = play(executor(VectorizedExecutor, MODELS["cnn2"], FedAvg, width=20))
    assert_same(play(executor(VectorizedExecutor, MODELS["cnn2"], FedAvg, width=width)), expected, 1e-12)


def test_client_states_survive_and_groups_hold_one_kind_of_state():
    expected = play(executor(SequentialExecutor, MODELS["mlp"], Remembering))
    assert_same(play(executor(VectorizedExecutor, MODELS["mlp"], Remembering, width=20)), expected)
    assert set(expected[-1][1].clients) == {0, 1, 2, 3, 4, 5}


def test_augmented_batches_are_the_sequential_executors():
    data = dataset(augmentation=Augmentation(crop_padding=2, flip=True, auto_augment=True))
    expected = play(executor(SequentialExecutor, MODELS["cnn2"], FedAvg, data))
    assert_same(play(executor(VectorizedExecutor, MODELS["cnn2"], FedAvg, data, width=20)), expected)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.Adam, lr=0.01),
        partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
        partial(torch.optim.Adagrad, lr=0.01),
    ],
    ids=["adam", "adamw", "nesterov", "adagrad"],
)
def test_elementwise_optimizers_step_every_client_as_if_alone(optimizer):
    expected = play(executor(SequentialExecutor, MODELS["mlp"], FedAvg, sgd=optimizer))
    assert_same(play(executor(VectorizedExecutor, MODELS["mlp"], FedAvg, sgd=optimizer, width=20)), expected)


class NormClipped(torch.optim.SGD):
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad /= parameter.grad.norm()
        super().step(closure)


def test_an_optimizer_of_matrices_is_refused_whatever_the_executor():
    with pytest.raises(ConfigurationError, match=r"algorithm\.optimizer cannot be built: Muon only supports 2D"):
        executor(VectorizedExecutor, MODELS["mlp"], FedAvg, sgd=partial(torch.optim.Muon, lr=0.1), width=20)


@pytest.mark.parametrize("optimizer", [NormClipped, torch.optim.LBFGS])
def test_optimizers_that_would_mix_clients_are_refused(optimizer):
    with pytest.raises(ConfigurationError, match="treats every number by itself"):
        executor(VectorizedExecutor, MODELS["mlp"], FedAvg, sgd=partial(optimizer, lr=0.1), width=20)


def test_a_loss_that_branches_on_values_is_refused_with_advice():
    with pytest.raises(ConfigurationError, match=r"Branching on MLP cannot be vectorized.*executor=sequential"):
        executor(VectorizedExecutor, MODELS["mlp"], Branching, width=20)


def test_pytorchs_own_dropout_is_refused_with_advice():
    class Dropping(MLP):
        def features(self, x):
            return nn.functional.dropout(super().features(x))

    with pytest.raises(ConfigurationError, match="own dropout"):
        executor(VectorizedExecutor, partial(Dropping, hidden=[7]), FedAvg, width=20)


@pytest.mark.parametrize("width", [0, -1, 2.0])
def test_the_width_must_be_a_positive_integer(width):
    with pytest.raises(ConfigurationError, match=r"executor\.width must be a positive integer"):
        executor(VectorizedExecutor, MODELS["mlp"], FedAvg, width=width)


def test_the_global_generator_is_left_alone():
    runner = executor(VectorizedExecutor, MODELS["cnn2"], FedAvg, width=20)
    before = torch.get_rng_state()
    play(runner)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "algorithm", "kind", "why"),
    [
        ("mlp", FedAvg, VectorizedExecutor, "small enough"),
        ("mlp", ALGORITHMS["feddecorr"], SequentialExecutor, "differ so much in size"),
        ("mobilenet_v2", FedAvg, SequentialExecutor, r"2,\d{3},\d{3} parameters .* fill a CPU"),
        ("mlp", Branching, SequentialExecutor, "Branching on MLP cannot be vectorized"),
    ],
)
def test_auto_picks_by_model_and_says_why(caplog, model, algorithm, kind, why):
    with caplog.at_level("INFO", logger="fedgh.executor.auto"):
        runner = executor(choose, MODELS[model], algorithm, sizes=(6, 5, 6, 5, 6, 6), width=20)
    assert type(runner) is kind
    assert len(caplog.messages) == 1
    assert re.search(rf"^executor=auto picked {kind.__name__[:6].lower()}.*{why}", caplog.messages[0])


class Halving(torch.optim.SGD):
    """Changes the gradient that it is given, number by number."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.mul_(0.5).clamp_(-0.1, 0.1)
        super().step(closure)


def test_an_elementwise_optimizer_may_change_gradients_in_place():
    optimizer = partial(Halving, lr=0.1, momentum=0.9)
    expected = play(executor(SequentialExecutor, MODELS["mlp"], FedAvg, sgd=optimizer))
    assert_same(play(executor(VectorizedExecutor, MODELS["mlp"], FedAvg, sgd=optimizer, width=20)), expected)


class Leaking(MLP):
    """Mixes a trace of the batch's mean into every example."""

    share = 1e-7

    def features(self, x):
        features = super().features(x)
        return features + self.share * features.mean(0)


@pytest.mark.parametrize("side", [8, 24])
def test_padding_is_judged_the_same_for_models_large_and_small(side):
    """Sums over many numbers are rounded further apart; in single precision, or by too tight a bound, it would show."""
    torch.set_default_dtype(torch.float32)
    settings = {"data": single_dataset(side), "width": 20}
    large = partial(MLP, hidden=[300, 200])
    convolutions = partial(CNN2, channels=[32, 64], hidden=256, dropout=[0.25, 0.5])
    assert executor(VectorizedExecutor, large, FedAvg, **settings).pads is True
    assert executor(VectorizedExecutor, convolutions, FedAvg, **settings).pads is True
    assert executor(VectorizedExecutor, partial(Leaking, hidden=[300, 200]), FedAvg, **settings).pads is False


def single_dataset(side):
    double = dataset(side)
    fields = (double.train_inputs, double.train_targets, double.test_inputs, double.test_targets)
    return ImageDataset("toy", *fields, ("a", "b", "c"), (0.5,) * 3, (0.3,) * 3, None)


def test_launches():
    """Two epochs in batches of 4: 4, 2, 6, 2, 4, 4 steps; unequal batches cost one more per client and epoch."""
    padding = executor(VectorizedExecutor, MODELS["mlp"], FedAvg, width=20)
    mixing = executor(VectorizedExecutor, MODELS["mlp"], ALGORITHMS["feddecorr"], width=20)
    assert [padding.num_steps(k) for k in range(6)] == [4, 2, 6, 2, 4, 4]
    assert [mixing.launches([0, 1, 4]), mixing.launches([2, 5]), mixing.launches([1])] == [4 + 2 * 3, 6 + 2 * 2, 2]
    assert [padding.launches([0, 1, 4]), padding.launches([2, 5]), padding.launches([1])] == [4, 6, 2]
    even = executor(VectorizedExecutor, MODELS["mlp"], ALGORITHMS["feddecorr"], width=20, sizes=(8, 8, 8))
    assert even.launches([0, 1, 2]) == 4


@pytest.mark.parametrize(
    ("clients", "kind"), [(1, SequentialExecutor), (3, SequentialExecutor), (4, VectorizedExecutor)]
)
def test_auto_leaves_few_clients_to_the_sequential_executor(caplog, clients, kind):
    """A vectorized step costs that of about four clients: below that number nothing is gained."""
    with caplog.at_level("INFO", logger="fedgh.executor.auto"):
        runner = executor(choose, MODELS["mlp"], FedAvg, sizes=(8,) * clients, width=20)
    assert type(runner) is kind
    if kind is SequentialExecutor:
        assert f"{4 * clients} steps would still take about 4 vectorized ones" in caplog.messages[0]


def test_auto_counts_no_more_clients_than_a_group_holds():
    assert type(executor(choose, MODELS["mlp"], FedAvg, sizes=(8,) * 6, width=3)) is SequentialExecutor
    assert type(executor(choose, MODELS["mlp"], FedAvg, sizes=(8,) * 6, width=4)) is VectorizedExecutor
