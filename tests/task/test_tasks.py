"""Every task against numbers by hand, with padding, under vmap and grad."""

import math
import re

import pytest
import torch
from torch.func import grad, vmap

from fedgh.core.errors import DataError
from fedgh.task.base import PADDING
from fedgh.task.classification import Classification
from fedgh.task.multi_task import MultiTask
from fedgh.task.next_token import NextToken
from fedgh.task.regression import Regression

TWO = MultiTask({"digit": ("0", "1", "2"), "large": ("no", "yes")})
FACE = MultiTask({"smile": ("no", "yes")}, points={"landmarks": 3})


def face_targets(draw):
    return torch.cat([torch.tensor([[0.0], [1], [1], [0], [1]]), torch.rand(5, 6, generator=draw)], dim=1)


NUMBERS = Regression(variance=4.0, edges=(-1.0, 1.0), outputs=2)
LETTERS = NextToken(tuple("abcd"))


def cases():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (5, 2), generator=draw)
    yield "classification", Classification(tuple("abc")), torch.randn(5, 3, generator=draw), labels[:, 0]
    yield "points", FACE, torch.randn(5, 8, generator=draw), face_targets(draw)
    yield "multi_task", TWO, torch.randn(5, 5, generator=draw), labels
    yield "regression", NUMBERS, torch.randn(5, 2, generator=draw), torch.randn(5, 2, generator=draw)
    yield "one_number", Regression(1.0, (), 1), torch.randn(5, 1, generator=draw), torch.randn(5, generator=draw)
    tokens = torch.randint(0, 4, (5, 3), generator=draw)
    yield "next_token", LETTERS, torch.randn(5, 3, 4, generator=draw), tokens
    yield "one_token", LETTERS, torch.randn(5, 4, generator=draw), tokens[:, 0]


CASES = [pytest.param(*case[1:], id=case[0]) for case in cases()]


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_padded_rows_change_neither_loss_nor_gradient(task, outputs, targets):
    padded = torch.cat([targets, targets[:2] * 0 + PADDING])
    more = torch.cat([outputs, 7 * outputs[:2]])
    loss, gradient = task.loss(outputs, targets), grad(task.loss)(outputs, targets)
    assert loss > 0
    torch.testing.assert_close(task.loss(more, padded), loss)
    both = grad(task.loss)(more, padded)
    torch.testing.assert_close(both[:5], gradient)
    assert not both[5:].any()


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_under_vmap_every_client_gets_its_own_loss_and_gradient(task, outputs, targets):
    outputs, targets = torch.stack([outputs, 2 * outputs]), torch.stack([targets, targets.flip(0)])
    targets[1, 4] = PADDING
    together = vmap(grad(task.loss))(outputs, targets), vmap(task.loss)(outputs, targets)
    alone = [(grad(task.loss)(o, t), task.loss(o, t)) for o, t in zip(outputs, targets, strict=True)]
    for some, others in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(some, torch.stack(list(others)))


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_scores_are_one_number_an_example_and_say_the_loss(task, outputs, targets):
    scores = task.scores(outputs, targets)
    assert all(score.shape == (5,) for score in scores.values())
    torch.testing.assert_close(scores["loss"].mean(), task.loss(outputs, targets))
    one = task.scores(outputs[2:3], targets[2:3])
    for name, score in scores.items():
        torch.testing.assert_close(one[name], score[2:3])
    assert next(iter(scores)) != "loss", "the main score is one of which more is better"


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES)
def test_what_it_says_of_itself_fits(task, outputs, targets):
    strata = task.strata(targets)
    assert outputs.shape[-1] == task.num_outputs
    assert strata.shape == (5,)
    assert strata.dtype == torch.int64
    assert 0 <= int(strata.min()) <= int(strata.max()) < task.num_strata == len(task.strata_names)
    assert task.losses(outputs, targets).mean() == pytest.approx(float(task.loss(outputs, targets)))
    assert task.fault(targets, 5) is None


def test_several_tasks_by_hand():
    outputs = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0, math.log(3)]])
    targets = torch.tensor([[2, 0], [1, PADDING]])
    first, second = math.log(3), math.log(2 + math.exp(5)) - 5
    torch.testing.assert_close(TWO.losses(outputs, targets), torch.tensor([(first + second) / 2, math.log(2)]))
    scores = TWO.scores(outputs, targets)
    assert list(scores) == ["acc", "loss", "acc/digit", "acc/large"]
    assert scores["acc"].tolist() == [0.5, 1.0], "of the second example only the digit is known"
    assert scores["acc/large"].isnan().tolist() == [False, True]
    torch.testing.assert_close(scores["loss"], torch.tensor([(first + math.log(2)) / 2, second]))
    assert TWO.strata(targets).tolist() == [2, 1]


def test_a_task_without_labels_in_a_batch_adds_nothing():
    outputs = torch.zeros(2, 5, requires_grad=True)
    losses = TWO.losses(outputs, torch.tensor([[0, PADDING], [1, PADDING]]))
    assert losses.tolist() == pytest.approx([math.log(3), 0.0])
    losses.sum().backward()
    assert outputs.grad.isfinite().all()


def test_regression_by_hand():
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [0.0, -4.0]])
    assert NUMBERS.loss(outputs, targets) == (4 + 0 + 0 + 16) / 4
    scores = NUMBERS.scores(outputs, targets)
    assert scores["loss"].tolist() == [2.0, 8.0]
    assert scores["mae"].tolist() == [1.0, 2.0]
    assert scores["r2"].tolist() == [0.5, -1.0]
    assert NUMBERS.strata(torch.tensor([[-1.5, 9.0], [-1.0, 0.0], [2.0, 0.0]])).tolist() == [0, 1, 2]
    assert NUMBERS.strata_names == ("below -1", "-1 to 1", "above 1")


def test_regression_of_training_targets():
    targets = torch.arange(8.0)
    task = Regression.of(targets, num_strata=4)
    assert task.variance == pytest.approx(float(targets.var(correction=0)))
    assert torch.bincount(task.strata(targets)).tolist() == [2, 2, 2, 2]
    always_the_mean = torch.full((8, 1), 3.5)
    assert float(task.scores(always_the_mean, targets)["r2"].mean()) == pytest.approx(0.0, abs=1e-6)
    assert Regression.of(torch.tensor([1.0, 1.0, 1.0, 2.0]), 4).num_strata < 4


def test_next_token_weighs_every_token_alike_and_an_example_by_its_own():
    outputs = torch.zeros(2, 3, 4)
    outputs[0, 0, 1] = math.log(5)  # (1, 5, 1, 1) / 8
    targets = torch.tensor([[1, 0, PADDING], [2, PADDING, PADDING]])
    known, even = math.log(8 / 5), math.log(4)
    assert LETTERS.loss(outputs, targets) == pytest.approx((known + 2 * even) / 3)
    assert LETTERS.scores(outputs, targets)["loss"].tolist() == pytest.approx([(known + even) / 2, even])
    assert LETTERS.scores(outputs, targets)["acc"].tolist() == [1.0, 0.0]
    assert LETTERS.strata(targets).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("task", "targets", "text"),
    [
        (Classification(("a", "b")), torch.tensor([0, 2]), r"row 1: label 2 is outside the classes 0 to 1"),
        (Classification(("a", "b")), torch.tensor([0, PADDING]), r"row 1: label -100"),
        (TWO, torch.tensor([0, 1]), r"int64 of shape \(2, 2\), one per example and task, got"),
        (TWO, torch.tensor([[0, 1], [0, 2]]), r"task large, row 1: label 2"),
        (TWO, torch.tensor([[0, 1], [PADDING, 1]]), r"task digit, row 1: label -100"),
        (NUMBERS, torch.tensor([[0.0, math.nan], [0.0, 1.0]]), r"row 0: .*not finite"),
        (NUMBERS, torch.tensor([[0.0, 1.0], [-100.0, 1.0]]), r"row 1: .*-100.*shift and scale"),
        (NUMBERS, torch.zeros(2), r"float32 of shape \(2, 2\)"),
        (LETTERS, torch.tensor([[0, 4], [1, PADDING]]), r"row 0: label 4"),
        (LETTERS, torch.tensor([[PADDING, 0], [1, 1]]), r"row 0: label -100"),
    ],
)
def test_targets_that_do_not_fit_are_named(task, targets, text):
    fault = task.fault(targets, 2)
    assert fault is not None
    assert re.search(text, fault), fault
    assert "of shape" in task.fault(targets, 3)


def test_a_classification_has_two_classes():
    with pytest.raises(DataError, match="at least 2 classes"):
        Classification(("only",))
