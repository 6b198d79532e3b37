"""Whole rounds on every kind of task, sequential and vectorized; what a model and a data set must agree on."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from fedgh.config.build import build_model, draw_partition, parameters_of, try_model
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.dataset.base import TensorDataset
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.evaluation import Cells, cells_of, evaluate
from fedgh.federation.round import initial_state, run_round
from fedgh.model.embedding_bag import EmbeddingBag
from fedgh.model.gru import GRU
from fedgh.model.mlp import MLP
from fedgh.partition.natural import Natural
from fedgh.task.base import PADDING
from fedgh.task.classification import Classification
from fedgh.task.multi_task import MultiTask
from fedgh.task.next_token import NextToken
from fedgh.task.regression import Regression

DRAW = torch.Generator().manual_seed(0)
TRAIN, TEST = slice(0, 40), slice(40, 60)
WRITERS = torch.arange(60) % 7 // 2  # four writers of unequal size


def split(name, inputs, targets, task, **settings):
    ids = {"client_ids": WRITERS[TRAIN], "test_client_ids": WRITERS[TEST]}
    return TensorDataset(name, inputs[TRAIN], targets[TRAIN], inputs[TEST], targets[TEST], task, **ids, **settings)


def numbers():
    rows = torch.randn(60, 5, generator=DRAW)
    targets = rows @ torch.randn(5, generator=DRAW)
    return split("numbers", rows, targets, Regression.of(targets[TRAIN], 3)), partial(MLP, hidden=[6])


def two():
    rows = torch.randn(60, 5, generator=DRAW)
    labels = torch.stack([rows[:, 0] > 0, rows[:, 1] > 0], dim=1).long()
    labels[::3, 1] = PADDING  # unknown for a third
    task = MultiTask({"first": ("no", "yes"), "second": ("no", "yes")})
    return split("two", rows, labels, task), partial(MLP, hidden=[6])


def texts():
    words = torch.randint(0, 11, (60, 4), generator=DRAW)
    task = Classification(("few", "many"))
    return split("texts", words, (words.sum(1) > 20).long(), task, num_tokens=11), partial(
        EmbeddingBag, width=3, hidden=5
    )


def letters():
    words = torch.randint(0, 6, (60, 5), generator=DRAW)
    targets = words.roll(-1, 1)
    targets[::2, 3:] = PADDING
    task = NextToken(tuple("abcdef"))
    return split("letters", words, targets, task, num_tokens=6), partial(GRU, width=3, hidden=5)


KINDS = {kind.__name__: kind() for kind in (numbers, two, texts, letters)}


def federation_of(make, dataset, factory, executor):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = build_model(factory, dataset)
    partition = draw_partition(Natural("client", None), dataset, seed=1)
    settings = {"owners": WRITERS[TRAIN].numpy(), "num_clients": 4, "executor": executor}
    algorithm = make.algorithm(batch_size=4, local_epochs=2, lr=0.05)
    federation = make.federation(dataset=dataset, module=module, algorithm=algorithm, **settings)
    return replace(federation, partition=partition)


@pytest.mark.parametrize("kind", KINDS)
def test_vectorized_is_sequential_and_both_learn(make, kind):
    ends = []
    for executor in (SequentialExecutor, partial(VectorizedExecutor, 3)):
        federation = federation_of(make, *KINDS[kind], executor)
        server = initial_state(federation.model)
        before = evaluate(federation.model, server, federation.dataset, 7)
        for _ in range(4):
            server = run_round(federation, server).server
        after = evaluate(federation.model, server, federation.dataset, 7)
        assert after.loss < before.loss
        ends.append(server.params)
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_natural_clients_are_scored_on_their_own_test_rows(make, kind):
    federation = federation_of(make, *KINDS[kind], SequentialExecutor)
    evaluation = evaluate(federation.model, initial_state(federation.model), federation.dataset, 7)
    metrics = evaluation.metrics(cells_of(federation.dataset, federation.partition))
    own = torch.stack([evaluation.scores[evaluation.main][WRITERS[TEST] == writer].mean() for writer in range(4)])
    assert metrics[f"client/test/{evaluation.main}_mean"] == pytest.approx(float(own.mean()))
    assert metrics[f"client/test/{evaluation.main}_worst10"] == pytest.approx(float(own.min()))
    assert metrics[f"global/test/{evaluation.main}"] == pytest.approx(evaluation.value)
    assert evaluation.main == federation.dataset.task.main
    cells = cells_of(federation.dataset, federation.partition)
    assert cells.client_score(evaluation.scores[evaluation.main], 2) == pytest.approx(float(own[2]))


def test_where_there_are_domains_a_class_counts_in_its_domain(make):
    dataset = make.dataset()
    train_domains, test_domains = torch.arange(60) % 2, torch.arange(30) // 15
    dataset = replace(dataset, domains=train_domains, test_domains=test_domains)
    owners = (train_domains * 2 + (dataset.train_labels > 0)).numpy()
    partition = make.partition(dataset, owners, 4)
    cells = cells_of(dataset, partition)
    scores = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = scores[(dataset.test_labels == 0) & (test_domains == 0)].mean()  # client 0: class 0 of domain 0
    assert cells.client_scores(scores)[0] == pytest.approx(float(first))
    half = [scores[(dataset.test_labels == c) & (test_domains == 1)].mean() for c in (1, 2)]  # client 3: 10 of each
    assert cells.client_scores(scores)[3] == pytest.approx(float(sum(half) / 2))


def test_a_label_that_is_missing_counts_for_its_task_alone(make):
    federation = federation_of(make, *KINDS["two"], SequentialExecutor)
    evaluation = evaluate(federation.model, initial_state(federation.model), federation.dataset, 7)
    labels, scores = federation.dataset.test_targets, evaluation.scores
    known = labels[:, 1] != PADDING
    assert 0 < int(known.sum()) < len(labels)
    assert evaluation.means["acc/second"] == pytest.approx(float(scores["acc/second"][known].mean()))
    assert evaluation.means["acc/first"] == pytest.approx(float(scores["acc/first"].mean()))


def test_clients_without_test_rows_are_left_out():
    cells = Cells(torch.tensor([0, -1, 2]), 3, None)
    found = cells.client_scores(torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    assert found.isnan().tolist() == [False, True, False]


class Older(MLP):
    """As models were written before: by image_shape and num_classes, the rest handed on."""

    def __init__(self, image_shape, num_classes, hidden=None):
        super().__init__(image_shape, num_classes, hidden=hidden or [4])


class Hands(Older):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@dataclass
class Named:
    num_outputs: int
    input_shape: tuple


def test_a_model_gets_what_it_asks_for(make):
    dataset = make.dataset()
    for older in (Older, partial(Older, hidden=[3]), Hands, partial(Hands, hidden=[3])):
        assert build_model(older, dataset).head.out_features == 3
    assert build_model(Named, dataset) == Named(3, (1, 2, 2))
    assert parameters_of(partial(EmbeddingBag, width=3)) >= {"input_shape", "num_outputs", "num_tokens"}


def test_a_model_that_cannot_read_the_data_is_refused(make):
    texts, bag = KINDS["texts"]
    with pytest.raises(ConfigurationError, match=r"reads token ids, but the inputs of dataset toy are none"):
        build_model(bag, make.dataset())
    with pytest.raises(ConfigurationError, match=r"mlp on dataset texts, whose inputs are int64 .*model=embedding_bag"):
        try_model(FlatModel(MLP((4,), 2, hidden=[])), texts, "mlp")
    with pytest.raises(ConfigurationError, match=r"puts out 3 numbers an example, but its task needs 2"):
        try_model(FlatModel(EmbeddingBag((4,), 3, num_tokens=11, width=2, hidden=2)), texts, "bag")
    model = FlatModel(build_model(bag, texts))
    model.module.train()
    assert try_model(model, texts, "bag").shape == (8, 2)
    assert model.module.training
