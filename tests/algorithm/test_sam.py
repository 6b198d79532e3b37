"""FedSAM: the direction by hand, and what the second pass shares with the first."""

import pytest
import torch

from fedgh.algorithm.sam import SAM
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.core.forward import SingleForward
from fedgh.task.classification import Classification
from tests.algorithm.stand_in import Quadratic, StandIn


def sam(make, rho=0.5, statistics="both", **settings):
    return make.algorithm(SAM, rho=rho, statistics=statistics, **settings)


def test_the_direction_by_hand(make):
    """f = 1/2 (a^2 + 4 b^2) at (3, 1): g = (3, 4), norm 5, so (3.3, 5.6); a norm per entry would give (3.5, 6)."""
    weights = torch.tensor([1.0, 4.0])
    forward = StandIn(lambda params, inputs: ((weights * params.square()).sum() / 2, params), Quadratic())
    params = torch.tensor([3.0, 1.0])
    direction, loss, _ = sam(make).local_gradient((weights, weights), forward, params, params, {})
    torch.testing.assert_close(direction, torch.tensor([3.3, 5.6]))
    assert loss.item() == 6.5
    assert torch.equal(params, torch.tensor([3.0, 1.0]))


def test_a_gradient_of_zero_gives_zero(make):
    params = torch.zeros(2)
    forward = StandIn(lambda params, inputs: (params.square().sum(), params), Quadratic())
    direction, _, _ = sam(make).local_gradient((params, params), forward, params, params, {})
    assert torch.equal(direction, params)


def passes(make, statistics):
    """Return a direction on a model with batch normalization and dropout, and the model after it."""
    model = FlatModel(make.normed())
    model.module.train()
    model.seed(5)
    data = make.dataset()
    batch = data.normalize(data.train_inputs[:8]), data.train_targets[:8]
    forward = SingleForward(model, Classification(("0", "1", "2")))
    before = model.params.detach().clone()
    direction, _, _ = sam(make, 1e-4, statistics).local_gradient(batch, forward, model.params, before, {})
    assert torch.equal(model.params, before)
    return direction, model, batch, forward


def test_both_passes_drop_the_same_features(make):
    """A tiny step changes the gradient by little; other masks would change it by as much as itself."""
    direction, model, batch, forward = passes(make, "both")
    model.seed(5)
    plain, _ = forward.gradients(lambda p: forward.task.loss(forward(p, batch[0])[0], batch[1]), model.params)
    torch.testing.assert_close(direction, plain, rtol=0.01, atol=1e-3)
    assert float(plain.norm()) > 0.1
    assert not torch.equal(direction, plain)


def test_running_statistics_take_note_of_both_passes_or_of_the_first(make):
    """Momentum 0.1: 0.9 m + 0.1 x once, 0.81 m + 0.19 x twice, x being all but the same in both passes."""
    once, twice = passes(make, "first")[1], passes(make, "both")[1]
    start = FlatModel(make.normed()).buffers
    torch.testing.assert_close((twice.buffers - start), 1.9 * (once.buffers - start), rtol=0.01, atol=1e-4)
    assert (once.counters.tolist(), twice.counters.tolist()) == ([1], [2])


@pytest.mark.parametrize(("settings", "key"), [({"rho": -0.1}, "rho"), ({"statistics": "second"}, "statistics")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        sam(make, **settings)
