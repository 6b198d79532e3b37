"""GH and GH++ between two losses of a client, against numbers worked out by hand (specification S2) and by rotation."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fedgh.algorithm.feddecorr import FedDecorr
from fedgh.algorithm.fedntd import FedNTD
from fedgh.algorithm.fedprox import FedProx
from fedgh.algorithm.moon import Moon
from fedgh.algorithm.two_losses import TwoLosses, loss_weights
from fedgh.core.errors import ConfigurationError
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.loop import Schedule, describe
from fedgh.federation.round import first_state, run_round
from tests.algorithm.stand_in import StandIn

METHODS = {
    FedProx: {"mu": 3.0},
    FedDecorr: {"beta": 0.5, "normalize": True},
    Moon: {"mu": 2.0, "temperature": 0.5},
    FedNTD: {"beta": 2.0, "temperature": 1.0},
}


def weights_of(first, second, how="gh", share=0.5, variant="exact"):
    first, second = (torch.as_tensor(g, dtype=torch.float64) for g in (first, second))
    return loss_weights(torch.stack([first @ first, first @ second, second @ second]), how, share, variant)


def turned(vector, towards, angle):
    """The vector turned by an angle in the plane of both, its length kept: GH++ said in another way."""
    along = vector / vector.norm()
    across = towards - (towards @ along) * along
    return vector.norm() * (math.cos(angle) * along + math.sin(angle) * across / across.norm())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"how": "gh"}, (2.0, 1.5)),  # d = -1: 1 + 1/1 and 1 + 1/2
        ({"how": "ghpp"}, (2.07193, 1.68925)),
        ({"how": "ghpp", "variant": "released"}, (1.39018, 0.60982)),
    ],
)
def test_weights_by_hand(settings, expected):
    found, angle = weights_of((1.0, 0.0), (-1.0, 1.0), **settings)
    assert found.tolist() == pytest.approx(expected, abs=5e-6)
    assert math.degrees(angle) == pytest.approx(135)


def pairs_in_conflict(count=50, width=4):
    generator = torch.Generator().manual_seed(0)
    while count:
        first, second = torch.randn(2, width, generator=generator, dtype=torch.float64)
        if first @ second < 0:
            count -= 1
            yield first, 3 * second


def test_gh_is_both_projections():
    for first, second in pairs_in_conflict():
        bent = first - (first @ second) / (second @ second) * second
        other = second - (first @ second) / (first @ first) * first
        (tau1, tau2), theta = weights_of(first, second)
        assert torch.allclose(tau1 * first + tau2 * second, bent + other, atol=1e-12)
        after = torch.arccos(bent @ other / bent.norm() / other.norm())
        assert float(after) == pytest.approx(math.pi - float(theta), abs=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ghpp_turns_both_until_they_are_orthogonal(share):
    for first, second in pairs_in_conflict():
        (tau1, tau2), theta = weights_of(first, second, "ghpp", share)
        excess = float(theta) - math.pi / 2
        bent, other = turned(first, second, share * excess), turned(second, first, (1 - share) * excess)
        assert abs(float(bent @ other)) < 1e-10
        assert torch.allclose(tau1 * first + tau2 * second, bent + other, atol=1e-10)


@pytest.mark.parametrize("how", ["gh", "ghpp"])
def test_nothing_happens_without_conflict(how):
    for first, second in [
        ((1.0, 0.0), (1.0, 1.0)),
        ((1.0, 0.0), (0.0, 2.0)),
        ((0.0, 0.0), (1.0, 1.0)),
        ((-1e-9, 0.0), (1.0, 1.0)),
    ]:
        found, angle = weights_of(first, second, how)
        assert found.tolist() == [1, 1]
        assert float(angle) == 0


@pytest.mark.parametrize("variant", ["exact", "released"])
def test_opposite_gradients_stay_finite(variant):
    for width in (2, 7, 100):  # float32 rounds some cosines below -1
        first = torch.randn(width, generator=torch.Generator().manual_seed(width))
        products = torch.stack([first @ first, first @ (-3 * first), 9 * first @ first])
        found, angle = loss_weights(products, "ghpp", 0.5, variant)
        assert bool(torch.isfinite(found).all())
        assert math.degrees(angle) == pytest.approx(180, abs=0.1)
        if variant == "exact":  # as GH: 1 + 3 and 1 + 1/3, which leaves nothing of either
            assert found.tolist() == pytest.approx([4, 4 / 3], rel=1e-5)


def test_a_step_of_fedprox_by_hand(make):
    # f = -theta_0, pulled back to w = 0 from theta = (1, 1): g_task = (-1, 0), g_prox = (1, 1), d = -1
    algorithm = make.algorithm(FedProx, mu=1.0, harmonize="gh")
    forward = StandIn(lambda params, inputs: (-params[0], params), task=type("T", (), {"loss": lambda s, o, t: o})())
    params, batch = torch.ones(2, dtype=torch.float64), (None, None)
    gradient, loss, state = algorithm.local_gradient(batch, forward, params, torch.zeros(2), {})
    # tau_prox = 1 + 1/2, tau_task = 1 + 1/1
    assert gradient.tolist() == pytest.approx([1.5 * 1 - 2, 1.5])
    assert float(loss) == pytest.approx(0)  # -1 + 1/2 * 2
    _, _, state = algorithm.local_gradient(batch, forward, params, torch.zeros(2), state)
    assert state["harmonize"].tolist() == pytest.approx([2, 2, 2 * math.radians(135), 3, 4])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("how", ["gh", "ghpp"])
def test_executors_agree_and_rounds_tell_of_it(make, method, how):
    algorithm = make.algorithm(method, **METHODS[method], harmonize=how, lr=0.05, local_epochs=2)
    ends = []
    for executor in (SequentialExecutor, partial(VectorizedExecutor, width=2)):
        federation = make.federation(algorithm=algorithm, executor=executor)
        server = first_state(federation)
        for _ in range(2):
            outcome = run_round(federation, server)
            server = outcome.server
        ends.append(server.params)
        metrics = describe(federation, outcome, Schedule(9, 9, 100, 9)).metrics
        assert 0 <= metrics["algorithm/harmonize_conflict"] <= 1
        if metrics["algorithm/harmonize_conflict"]:
            assert 90 < metrics["algorithm/harmonize_angle"] <= 180
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def test_conflicts_change_the_run_and_none_is_the_sum_of_both(make):
    def end(**settings):
        federation = make.federation(algorithm=make.algorithm(FedProx, mu=3.0, lr=0.05, local_epochs=3, **settings))
        return run_round(federation, first_state(federation)).server.params

    assert torch.equal(end(), end(harmonize="none"))
    different = [end(), end(harmonize="gh"), end(harmonize="ghpp"), end(harmonize="ghpp", harmonize_lambda=1.0)]
    different += [end(harmonize="ghpp", harmonize_variant="released")]
    assert all(not torch.equal(one, two) for j, one in enumerate(different) for two in different[:j])


def test_without_harmonizing_nothing_of_it_is_there(make):
    plain = make.algorithm(FedProx, mu=1.0)
    assert not any(plain.overrides(hook) for hook in ("local_gradient", "report", "metrics"))
    assert make.algorithm(Moon, mu=1.0, temperature=0.5).overrides("report")
    ours = make.algorithm(FedProx, mu=1.0, harmonize="gh")
    assert all(ours.overrides(hook) for hook in ("local_gradient", "report", "metrics"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"harmonize": "on"}, "algorithm.harmonize must be none or gh or ghpp"),
        ({"harmonize_lambda": 1.5}, "algorithm.harmonize_lambda must be between 0 and 1"),
        ({"harmonize_variant": "paper"}, "exact or released"),
    ],
)
def test_mistakes(make, settings, says):
    with pytest.raises(ConfigurationError, match=says):
        make.algorithm(FedProx, mu=1.0, **settings)


@pytest.mark.parametrize(("added", "expected"), [(3.0, 5.0), (None, 2.0)])
def test_the_local_loss_is_the_sum_of_what_there_is(added, expected):
    terms = torch.tensor(2.0), None if added is None else torch.tensor(added)
    method = SimpleNamespace(terms=lambda *arguments: terms)
    assert float(TwoLosses.local_loss(method, None, None, None, None, {})) == expected
