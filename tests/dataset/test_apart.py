"""One task a client: who has which, with which labels, and a run of it."""

import pytest
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.digits_two import load
from fedgh.task.base import PADDING
from fedgh.task.multi_task import MultiTask


def test_each_client_has_one_task_and_all_examples_are_somebodys(make):
    whole = make.choice("dataset", "digits_two")
    dealt = make.choice("dataset", "digits_two", clients_per_task=3, task_shares=[4, 1, 1, 1, 1, 2])
    assert dealt.client_ids.unique().tolist() == list(range(6))
    known = dealt.train_targets != PADDING
    assert torch.equal(known.to(torch.int64).argmax(1), dealt.client_ids % 2)
    assert (known.sum(1) == 1).all()
    assert torch.equal(dealt.train_targets[known], whole.train_targets[known])
    counts = torch.bincount(dealt.client_ids).double() / len(known)
    assert counts.tolist() == pytest.approx([0.4, 0.1, 0.1, 0.1, 0.1, 0.2], abs=2e-3)
    tests = torch.bincount(dealt.test_client_ids).double() / len(dealt.test_targets)
    assert tests.tolist() == pytest.approx([1 / 6] * 6, abs=5e-3)
    assert torch.equal(dealt.train_images, whole.train_images)


def test_strata_go_by_task_and_class():
    task = MultiTask({"digit": ("0", "1", "2"), "parity": ("even", "odd")}, apart=True)
    targets = torch.tensor([[2, PADDING], [PADDING, 1], [0, 1]])
    assert task.strata(targets).tolist() == [2, 4, 0]
    assert task.strata_names == ("digit 0", "digit 1", "digit 2", "parity even", "parity odd")
    assert task.fault(targets, 3) is None
    assert "label of no task" in task.fault(torch.tensor([[PADDING, PADDING]]), 1)
    assert "outside the classes" in task.fault(torch.tensor([[3, PADDING]]), 1)


def test_a_client_with_one_task_has_its_whole_loss():
    task = MultiTask({"digit": ("0", "1", "2"), "parity": ("even", "odd")}, apart=True)
    outputs, targets = torch.randn(4, 5), torch.tensor([[1, PADDING]] * 4)
    own = torch.nn.functional.cross_entropy(outputs[:, :3], targets[:, 0])
    torch.testing.assert_close(task.loss(outputs, targets), own)


@pytest.mark.parametrize("settings", [{"clients_per_task": 0}, {"clients_per_task": 1, "task_shares": [1.0]}])
def test_mistakes(settings):
    with pytest.raises(ConfigurationError, match=r"dataset\.(clients_per_task|task_shares) must"):
        load(1.0, None, **settings)
