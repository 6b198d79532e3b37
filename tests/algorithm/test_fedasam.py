"""FedASAM: the direction by hand, and which parameters count as weights."""

import pytest
import torch

from fedgh.algorithm.fedasam import FedASAM
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from tests.algorithm.stand_in import Quadratic, StandIn

SCALES = torch.tensor([1.0, 4.0])
BOWL = (lambda params, inputs: ((SCALES * params.square()).sum() / 2, params)), Quadratic()


def blocks(*names):
    return tuple(Block(name, i, i + 1, torch.Size([1])) for i, name in enumerate(names))


def direction(make, names, eta):
    algorithm = make.algorithm(FedASAM, rho=0.5, eta=eta, statistics="both")
    params = torch.tensor([3.0, 1.0])
    found, loss, _ = algorithm.local_gradient((SCALES, SCALES), StandIn(*BOWL, blocks(*names)), params, params, {})
    assert loss.item() == 6.5
    return found


def test_the_direction_by_hand(make):
    """f = 1/2 (a^2 + 4 b^2) at (3, 1), g = (3, 4), T = (3, 1): T g = (9, 4), norm sqrt(97), shift 0.5 (27, 4) / it."""
    found = direction(make, ["body.weight", "head.weight"], eta=0.0)
    torch.testing.assert_close(found, torch.tensor([4.370717, 4.812277]))


def test_biases_are_not_scaled_and_eta_is_added_to_weights_only(make):
    """T = (3 + 1, 1): T g = (12, 4), norm sqrt(160); shift 0.5 (48, 4) / it = (1.897367, 0.158114)."""
    found = direction(make, ["head.weight", "head.bias"], eta=1.0)
    torch.testing.assert_close(found, torch.tensor([3 + 1.897367, 4 + 4 * 0.158114]))


@pytest.mark.parametrize(("settings", "key"), [({"rho": -0.1}, "rho"), ({"eta": -1.0}, "eta")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        make.algorithm(FedASAM, **{"rho": 0.7, "eta": 0.2, "statistics": "both", **settings})
