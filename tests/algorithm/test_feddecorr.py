"""FedDecorr: the loss by hand, its scale, and the released code beside it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.feddecorr import FedDecorr, decorrelation
from fedgh.core.errors import ConfigurationError
from tests.algorithm.stand_in import StandIn

A, B, C = [-1.0, 0.0, 1.0], [1.0, -2.0, 1.0], [-1.0, 1.0, 0.0]  # r_AB = 0, r_AC = 1/2, r_BC = -sqrt(3)/2


def columns(*values):
    return torch.tensor(values, dtype=torch.float64).T


@pytest.mark.parametrize(
    ("features", "loss"),
    [
        (columns(A, [0.0, 2.0, 4.0]), 4 / 3),  # (N - 1)^2 r^2 / N, r = 1
        (columns(A, [9.0, 7.0, 5.0]), 4 / 3),  # r = -1
        (columns(A, B), 0.0),
        (columns(A, C), 1 / 3),
        (columns(A, B, C), 4 / 9),  # mean r^2 = (0 + 1/4 + 3/4) / 3
    ],
)
def test_loss_by_hand(features, loss):
    assert decorrelation(features, False).item() == pytest.approx(loss, abs=1e-6)
    assert decorrelation(features, True).item() == pytest.approx(loss * 3 / 4, abs=1e-6)


@pytest.mark.parametrize("count", [2, 5, 64])
def test_scale_identity(count):
    """L = (N - 1)^2 / N times the mean squared correlation; about 64 times at 64 examples."""
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(count, 7, generator=generator, dtype=torch.float64) * 3 + 5
    r = torch.corrcoef(features.T)
    mean_squared = (r.square().sum() - 7) / 42
    factor = (count - 1) ** 2 / count
    torch.testing.assert_close(decorrelation(features, False), factor * mean_squared, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(decorrelation(features, True), mean_squared, rtol=1e-6, atol=1e-9)


def released(x):
    """Core spec 8.3, line by line as the authors' code has it."""
    num_examples, width = x.shape
    if num_examples == 1:
        return torch.tensor(0.0)
    x = x - x.mean(dim=0, keepdim=True)
    x = x / torch.sqrt(1e-8 + x.var(dim=0, keepdim=True))
    matrix = x.t() @ x
    off_diagonal = matrix.flatten()[:-1].view(width - 1, width + 1)[:, 1:].flatten()
    return off_diagonal.pow(2).mean() / num_examples


@pytest.mark.parametrize("shape", [(64, 128), (3, 2), (2, 5)])
def test_equals_the_released_code_with_its_gradient(shape):
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(shape, generator=generator, dtype=torch.float64).relu().requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    decorrelation(ours, False).backward()
    released(theirs).backward()
    torch.testing.assert_close(decorrelation(ours, False), released(theirs), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_dead_features_give_no_nan():
    features = torch.zeros(8, 4)
    features[:, 0] = torch.arange(8.0)
    features.requires_grad_()
    loss = decorrelation(features, False)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert features.grad.isfinite().all()


def local_loss(algorithm, features, labels):
    head = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    batch = torch.zeros(len(features), 1), labels
    forward = StandIn(lambda params, inputs: (features @ head, features))
    return algorithm.local_loss(batch, forward, None, None, {}), head


def test_local_loss_is_cross_entropy_plus_beta_times_the_penalty_of_the_features(make):
    features, labels = columns(A, C).float(), torch.tensor([0, 1, 0])
    loss, head = local_loss(make.algorithm(FedDecorr, beta=0.6, normalize=False), features, labels)
    assert loss.item() == pytest.approx(cross_entropy(features @ head, labels).item() + 0.6 / 3, abs=1e-6)


def test_a_single_example_has_no_penalty(make):
    features, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    loss, head = local_loss(make.algorithm(FedDecorr, beta=100.0, normalize=True), features, labels)
    assert torch.equal(loss, cross_entropy(features @ head, labels))
    assert decorrelation(features, False).item() == 0.0


@pytest.mark.parametrize("beta", [-1.0, float("nan")])
def test_beta_must_not_be_negative(make, beta):
    with pytest.raises(ConfigurationError, match=f"algorithm.beta must be 0 or more, got {beta}; try 0.1"):
        make.algorithm(FedDecorr, beta=beta, normalize=False)
