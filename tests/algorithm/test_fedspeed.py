"""FedSpeed: the direction by hand, FedDyn where nothing is climbed, and its two ways to the server."""

import pytest
import torch

from fedgh.algorithm.feddyn import FedDyn
from fedgh.algorithm.fedspeed import FedSpeed
from fedgh.core.errors import ConfigurationError
from tests.algorithm.drive import Quadratics, begin, play
from tests.algorithm.stand_in import Quadratic, StandIn, half_square, state_of

ZERO = [torch.tensor([0.0], dtype=torch.float64)] * 2


def fedspeed(make, **settings):
    given = {"alpha": 1.0, "share": 1.0, "rho": 0.5, "statistics": "both", "weights": "uniform", "variant": "released"}
    return make.algorithm(FedSpeed, **{**given, **settings})


@pytest.mark.parametrize(("share", "wanted"), [(1.0, (4.3, 6.6)), (0.0, (4.0, 5.0)), (0.5, (4.15, 5.8))])
def test_the_direction_by_hand(make, share, wanted):
    """f = 1/2 (a^2 + 4 b^2) at (3, 1): g = (3, 4), g' = (3.3, 5.6); the pull is 1 (theta - w + H) = (1, 1)."""
    scales = torch.tensor([1.0, 4.0])
    forward = StandIn(lambda params, inputs: ((scales * params.square()).sum() / 2, params), Quadratic())
    params, state = torch.tensor([3.0, 1.0]), {"h": torch.tensor([1.0, 1.0])}
    direction, loss, after = fedspeed(make, share=share).local_gradient((scales,) * 2, forward, params, params, state)
    torch.testing.assert_close(direction, torch.tensor(wanted))
    assert loss.item() == 6.5
    assert torch.equal(after["h"], state["h"])


def test_without_ascent_it_is_feddyn(make):
    problem, ends = Quadratics(), []
    plain = make.algorithm(FedDyn, alpha=1.0, weights="uniform")
    for algorithm in (fedspeed(make, rho=0.0), plain):
        server = begin(algorithm, state_of([1.0, -2.0, 0.5]), problem.num_examples)
        for t in range(5):
            ids = problem.two_of_five(t)
            server = play(algorithm, server, problem.targets, ids, problem.num_examples, problem.run, [3] * 5)
        ends.append(server.params)
    assert torch.equal(*ends)


@pytest.mark.parametrize(("variant", "wanted"), [("released", 1 - 0.1 - 0.05), ("paper", 1 - 0.1 - 0.1)])
def test_how_h_gets_to_the_server(make, variant, wanted):
    """b = 0, w = 1, one client of two, one step without ascent: D = H = -0.1; H / 2, or the participant's own."""
    algorithm = fedspeed(make, rho=0.0, variant=variant)
    server = play(algorithm, begin(algorithm, state_of([1.0]), [1, 1]), ZERO, [0], [1, 1], half_square, [1, 1])
    assert server.clients[0]["h"].item() == pytest.approx(-0.1)
    assert server.params.item() == pytest.approx(wanted)


@pytest.mark.parametrize(("settings", "key"), [({"share": 1.1}, "share"), ({"variant": "code"}, "variant")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedspeed(make, **settings)
