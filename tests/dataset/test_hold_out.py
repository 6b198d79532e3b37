"""A part of the train split that is held out, by class and by seed."""

from dataclasses import replace

import pytest
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import TensorDataset, hold_out
from fedgh.task.classification import Classification


def numbered(counts=(10, 25, 1), test=4):
    """Example i of the train split holds the number i."""
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    ids = torch.arange(len(targets))
    return TensorDataset(
        name="numbered",
        train_inputs=ids.float().view(-1, 1),
        train_targets=targets,
        test_inputs=-torch.ones(test, 1),
        test_targets=torch.zeros(test, dtype=torch.int64),
        task=Classification(("a", "b", "c")),
        client_ids=ids % 3,
        domains=ids % 2,
    )


def test_per_class_a_rounded_share_and_nothing_twice():
    whole = numbered()
    rest, held = hold_out(whole, 0.3, seed=1)
    assert held.test_targets.bincount(minlength=3).tolist() == [3, 8, 0]  # 0.3 of 10; of 25, rounded; one example stays
    numbers = torch.cat([rest.train_inputs, held.test_inputs]).flatten()
    assert sorted(numbers.tolist()) == list(range(36))
    for number, label, client, domain in zip(
        held.test_inputs[:, 0].long(), held.test_targets, held.test_client_ids, held.test_domains, strict=True
    ):
        assert (label, client, domain) == (whole.train_targets[number], number % 3, number % 2)
    assert torch.equal(rest.test_inputs, whole.test_inputs)
    assert torch.equal(held.train_inputs, rest.train_inputs)


def test_a_half_of_one_class_of_two_examples_leaves_one():
    rest, held = hold_out(numbered((2, 2, 1)), 0.9, seed=0)
    assert rest.train_targets.tolist() == [0, 1, 2]
    assert held.test_targets.tolist() == [0, 1]


def test_the_seed_draws():
    drawn = {tuple(hold_out(numbered(), 0.3, seed)[1].test_inputs.flatten().tolist()) for seed in (1, 1, 2)}
    assert len(drawn) == 2


def test_images_too(make):
    rest, held = hold_out(make.dataset(), 0.25, seed=3)
    assert (len(rest.train_images), len(held.test_images), held.test_images.dtype) == (45, 15, torch.uint8)
    assert held.test_labels.bincount().tolist() == [5, 5, 5]
    moved = rest.with_test_of(held)
    assert torch.equal(moved.test_images, held.test_images)
    assert torch.equal(moved.train_images, rest.train_images)
    assert rest.with_test_of(replace(held, test_domains=None)).test_domains is None


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(1.0, r"must be in \[0, 1\), got 1.0; try 0.1"), (-0.1, "got -0.1"), (0.01, "is not one example; try 0.1")],
)
def test_fractions_that_cannot_be(fraction, message):
    with pytest.raises(ConfigurationError, match=message):
        hold_out(numbered(), fraction, 1)
