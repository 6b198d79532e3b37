"""Evaluation against a computation by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgh.dataset.base import hold_out
from fedgh.federation.evaluation import Cells, Evaluation, Validation, cells_of, evaluate
from fedgh.federation.loop import Schedule, evaluated
from fedgh.federation.round import initial_state


def by_hand(federation, server):
    dataset = federation.dataset
    images = (dataset.test_images.double() / 255 - 0.4) / 0.25
    params = server.params.double()
    logits = images.flatten(1) @ params[:12].view(3, 4).T + params[12:]
    losses = torch.logsumexp(logits, 1) - logits.gather(1, dataset.test_labels[:, None])[:, 0]
    right = logits.argmax(1) == dataset.test_labels
    per_class = torch.stack([right[dataset.test_labels == c].double().mean() for c in range(3)])
    return float(right.double().mean()), float(losses.mean()), per_class


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_by_hand_and_whatever_the_batch_size(make, batch_size):
    federation = make.federation(seed=3)
    server = replace(
        initial_state(federation.model), params=torch.randn(15, generator=torch.Generator().manual_seed(0))
    )
    evaluation = evaluate(federation.model, server, federation.dataset, batch_size)
    accuracy, loss, per_class = by_hand(federation, server)
    assert 0 < accuracy < 1
    assert evaluation.value == accuracy
    assert evaluation.loss == pytest.approx(loss, rel=1e-6)
    cells = cells_of(federation.dataset, federation.partition)
    assert list(evaluation.scores) == ["acc", "loss"]
    torch.testing.assert_close(cells.cell_scores(evaluation.scores["acc"]), per_class)


def test_it_is_the_server_that_is_evaluated(make):
    """Not whatever model the last client left behind, and with the server's running statistics."""
    federation = make.federation(module=make.normed())
    server = initial_state(federation.model)
    before = evaluate(federation.model, server, federation.dataset, 100)
    federation.executor([0, 1, 2], server)
    again = evaluate(federation.model, server, federation.dataset, 100)
    assert before.means == again.means
    other = evaluate(federation.model, replace(server, buffers=server.buffers + 1), federation.dataset, 100)
    assert other.loss != before.loss


def test_dropout_is_off_nothing_is_counted_and_the_mode_comes_back(make):
    federation = make.federation(module=make.normed())
    server = initial_state(federation.model)
    federation.model.module.train()
    losses = {evaluate(federation.model, server, federation.dataset, 7).loss for _ in range(3)}
    assert len(losses) == 1
    assert federation.model.module.training
    assert federation.model.counters.tolist() == [0]
    assert torch.equal(federation.model.buffers, server.buffers)


def test_a_class_without_test_images_is_undefined(make):
    federation = make.federation()
    dataset = federation.dataset.take_test((federation.dataset.test_labels != 2).nonzero().flatten())
    evaluation = evaluate(federation.model, initial_state(federation.model), dataset, 100)
    by_class = cells_of(dataset, federation.partition).cell_scores(evaluation.scores["acc"])
    assert by_class.isnan().tolist() == [False, False, True]
    assert 0 <= evaluation.value <= 1


def test_a_model_that_is_not_finite_says_so(make):
    federation = make.federation()
    server = replace(initial_state(federation.model), params=torch.full((15,), float("nan")))
    assert evaluate(federation.model, server, federation.dataset, 100).loss != pytest.approx(0, abs=1e9)


def test_public_names(make):
    evaluation = Evaluation({"acc": torch.tensor([1.0, 0.0]).double(), "loss": torch.tensor([1.0, 1.5]).double()})
    cells = Cells(torch.tensor([0, 1]), 2, torch.tensor([[1, 0], [1, 3]]))
    assert evaluation.metrics(cells) == pytest.approx(
        {
            "global/test/acc": 0.5,
            "global/test/loss": 1.25,
            "client/test/acc_mean": 0.625,
            "client/test/acc_mean_examples": 0.4,  # (1 * 1 + 4 * 0.25) / 5
            "client/test/acc_std": 0.375,
            "client/test/acc_worst10": 0.25,
            "client/test/acc_worst": 0.25,
        }
    )


def test_what_is_held_out_is_evaluated_as_the_test_split_is(make):
    """The held-out part as the test split of another federation gives the same numbers, under ``val``."""
    federation = make.federation()
    whole = federation.dataset
    rest, held = hold_out(whole, 0.5, seed=1)
    owners = torch.arange(len(rest.train_inputs)).numpy() % 3
    plain = make.federation(dataset=rest, owners=owners)
    both = replace(plain, validation=Validation(held, plain.partition))
    swapped = make.federation(dataset=held, owners=owners)
    server, schedule = initial_state(plain.model), Schedule(1, 1, 7, 1)
    numbers, test, val = (evaluated(f, server, schedule) for f in (both, plain, swapped))
    assert numbers == test | {name.replace("/test/", "/val/"): value for name, value in val.items()}
    assert numbers["global/val/loss"] != numbers["global/test/loss"]
    assert "client/val/acc_worst10" in numbers


def test_cells_of_classes_in_domains_by_hand():
    """Two classes in domains 0 and 1, so cells 00, 01, 10, 11; the last test example is of a domain nobody has."""
    dataset = SimpleNamespace(
        domains=torch.tensor([0, 0, 1, 1]),
        train_strata=torch.tensor([0, 1, 0, 1]),
        test_domains=torch.tensor([0, 1, 1, 2]),
        test_strata=torch.tensor([1, 0, 1, 0]),
        num_classes=2,
    )
    rows = [np.array([0, 1, 2, 2]), np.array([3])]
    partition = SimpleNamespace(test_indices=None, class_counts=np.zeros((2, 2), np.int64), client_indices=rows)
    cells = cells_of(dataset, partition)
    assert cells.of_test.tolist() == [1, 2, 3, -1]
    assert cells.counts.tolist() == [[1, 1, 2, 0], [0, 0, 0, 1]]
    assert cells.num_examples.tolist() == [4, 1]
    scores = torch.tensor([0.3, 0.9, 0.5, 7.0], dtype=torch.float64)
    # client 0: cell 00 has no test example; of the others one part in three is of cell 01, two of cell 10
    assert cells.client_scores(scores).tolist() == pytest.approx([(0.3 + 2 * 0.9) / 3, 0.5])
    assert [cells.client_score(scores, k) for k in (0, 1)] == pytest.approx([(0.3 + 2 * 0.9) / 3, 0.5])
    assert cells.rows_of(0).tolist() == [True, True, False, False]
    assert cells.rows_of(1).tolist() == [False, False, True, False]


def test_cells_of_clients_with_test_examples_of_their_own():
    partition = SimpleNamespace(test_indices=[np.array([3]), np.array([0, 2])], num_clients=2)
    cells = cells_of(SimpleNamespace(test_inputs=torch.zeros(4)), partition)
    assert cells.of_test.tolist() == [1, -1, 1, 0]
    assert cells.num_examples.tolist() == [1, 2]
    scores = torch.tensor([0.2, 7.0, 0.4, 0.9], dtype=torch.float64)
    assert cells.client_scores(scores).tolist() == pytest.approx([0.9, 0.3])
    assert [cells.client_score(scores, k) for k in (0, 1)] == pytest.approx([0.9, 0.3])
    assert cells.rows_of(1).tolist() == [True, False, True, False]
