"""Differential privacy: clipping and noise by their laws, epsilon against the accountant, what is refused."""

import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from fedgh.federation.round import first_state, run_round
from fedgh.privacy import gaussian
from fedgh.privacy.gaussian import Gaussian
from fedgh.storage import checkpoint as checkpoints

BLOCKS = (Block("a", 0, 1, torch.Size([1])), Block("b", 1, 4, torch.Size([3])))
PLAIN = Gaussian(clip=1.0, layers="whole", noise_multiplier=1.0, noise_at="server", delta=1e-5)


def accounting():
    """Return dp-accounting as the module loads it, without what its logging does to captured output."""
    if find_spec("dp_accounting") is None:
        pytest.skip("pip install 'fedgh[privacy]'")
    return gaussian._library()


def clipped(rows, **settings):
    rows = torch.tensor(rows)
    replace(PLAIN, **settings).clip_(rows, BLOCKS)
    return rows.tolist()


def test_clipping_by_hand():
    """(3, 0, 4, 0) has length 5; layers (3) and (0, 4, 0): bounds 1/sqrt 2 each, or 1/2 and sqrt(3)/2."""
    rows = [[3.0, 0.0, 4.0, 0.0], [0.3, 0.0, 0.4, 0.0]]
    assert clipped(rows) == [pytest.approx([0.6, 0, 0.8, 0]), pytest.approx(rows[1])]
    assert clipped(rows, layers="uniform")[0] == pytest.approx([0.5**0.5, 0, 0.5**0.5, 0])
    assert clipped(rows, layers="dimension")[0] == pytest.approx([0.5, 0, 0.75**0.5, 0])
    assert clipped(rows, clip=10.0) == torch.tensor(rows).tolist()
    assert clipped([[0.0] * 4]) == [[0.0] * 4]


@pytest.mark.parametrize("layers", ["whole", "uniform", "dimension"])
def test_nothing_is_longer_than_the_clip(layers):
    rows = 10 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    replace(PLAIN, layers=layers, clip=0.7).clip_(rows, BLOCKS)
    assert float(rows.norm(dim=1).max()) == pytest.approx(0.7, rel=1e-5)


def test_the_noise_of_an_address():
    """Its standard deviation is the product of three; no entry is left out; another address has other numbers."""
    zeros = torch.zeros(100_000)
    privacy = replace(PLAIN, noise_multiplier=2.0, clip=0.5)
    noise = privacy.noise(zeros, 0.1, seed=1, round_index=3)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.002)
    assert (noise != 0).all()
    others = [privacy.noise(zeros, 0.1, 1, 4), privacy.noise(zeros, 0.1, 2, 3), privacy.noise(zeros, 0.1, 1, 3, 0)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 0.02
    assert torch.equal(noise, privacy.noise(zeros, 0.1, 1, 3))


def federation_of(make, privacy, compressor=None, aggregator="mean", algorithm="fedavg", module=None, **settings):
    given = {"local_epochs": 1, "batch_size": 8, "weights": "uniform", **settings}
    federation = make.federation(
        algorithm=make.choice("algorithm", algorithm, **given),
        aggregator=make.rule(aggregator),
        num_clients=4,
        fraction=0.5,
        module=module,
    )
    federation.executor.privacy, federation.executor.compressor = privacy, compressor
    return replace(federation, privacy=privacy)


def play(federation, count, server=None):
    server = server or first_state(federation)
    for _ in range(count):
        outcome = run_round(federation, server)
        server = outcome.server
    return server, outcome


def test_no_noise_and_no_clip_is_fedavg_to_the_bit(make):
    plain, _ = play(federation_of(make, None), 2)
    same, _ = play(federation_of(make, replace(PLAIN, clip=1e6, noise_multiplier=0.0)), 2)
    assert torch.equal(plain.params, same.params)


def test_the_server_moves_by_the_clipped_mean_and_its_noise(make):
    accounting()
    quiet = play(federation_of(make, replace(PLAIN, clip=0.01, noise_multiplier=0.0)), 1)
    privacy = replace(PLAIN, clip=0.01)
    loud = play(federation_of(make, privacy), 1)
    noise = privacy.noise(quiet[0].params, 0.5, seed=1, round_index=0)  # two clients, half each
    torch.testing.assert_close(loud[0].params, quiet[0].params + noise)
    assert float(quiet[1].result.updates.rows.norm(dim=1).max()) == pytest.approx(0.01, rel=1e-4)
    assert torch.equal(quiet[1].result.updates.rows, loud[1].result.updates.rows)


@pytest.mark.parametrize("noise_at", ["server", "clients"])
def test_a_resumed_run_draws_the_same_noise(make, noise_at, tmp_path):
    accounting()
    privacy = replace(PLAIN, noise_at=noise_at)
    first, _ = play(federation_of(make, privacy), 1)
    path = checkpoints.save(checkpoints.Checkpoint(first, "", "", {}, "", ""), tmp_path)
    straight, _ = play(federation_of(make, privacy), 2)
    assert torch.equal(play(federation_of(make, privacy), 1, checkpoints.load(path).server)[0].params, straight.params)


def test_noise_of_the_clients_leaves_what_is_personal_alone_and_goes_with_any_rule(make):
    accounting()
    privacy = replace(PLAIN, noise_at="clients")
    federation = federation_of(make, privacy, aggregator="fedgh", algorithm="fedper", own_parameters=["*weight"])
    _, outcome = play(federation, 1)
    shared, rows = federation.executor.shared, outcome.result.updates.rows
    assert (rows[:, ~shared] == 0).all()
    assert float(rows[:, shared].norm(dim=1).min()) > 0
    assert not torch.equal(rows[0], rows[1])


def test_epsilon_against_closed_form_and_accountant():
    """Full participation: T Gaussian mechanisms of sensitivity two clips are one of sigma / (2 sqrt T).

    Its exact epsilon (Balle and Wang, 2018) lies below what Renyi's gives, by less than a tenth here.
    """
    dp = accounting()
    privacy = replace(PLAIN, noise_multiplier=20.0)
    found = privacy.epsilon(25, 10, 10)
    mu = math.sqrt(25) * 2 / 20

    def delta(epsilon):
        cdf = lambda x: (1 + math.erf(x / math.sqrt(2))) / 2  # noqa: E731
        return cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * cdf(-mu / 2 - epsilon / mu)

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > 1e-5 else (low, middle)
    assert low <= found <= 1.1 * low
    accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(100, 10, dp.GaussianDpEvent(1.5)), 30)
    assert replace(PLAIN, noise_multiplier=3.0).epsilon(30, 100, 10) == pytest.approx(accountant.get_epsilon(1e-5))
    assert privacy.epsilon(25, 10, None) == found  # whoever may take part always
    assert replace(privacy, noise_at="clients").epsilon(25, 100, 10) == found
    assert replace(PLAIN, noise_multiplier=0.0).epsilon(1, 10, 1) == math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregator": "fedgh"}, r"FedGH looks at single updates.*aggregator=mean, or privacy.noise_at=clients"),
        ({"weights": "examples"}, r"clients who count alike; type algorithm.weights=uniform"),
        ({"algorithm": "scaffold"}, r"Scaffold reads more of its clients than updates; type algorithm=fedavg"),
        ({"compressor": "top_k"}, r"compression after clipping .* leave compressor out"),
        ({"module": "normed"}, r"running statistics travel beside them without noise; type model.norm=group"),
    ],
)
def test_what_the_noise_would_not_cover_is_refused(make, settings, message):
    accounting()
    settings = dict(settings)
    if "compressor" in settings:
        settings["compressor"] = make.choice("compressor", "top_k")
    if "module" in settings:
        settings["module"] = make.normed()
    with pytest.raises(ConfigurationError, match=message):
        federation_of(make, PLAIN, **settings)
    federation_of(make, replace(PLAIN, noise_multiplier=0.0), **settings)  # clipping alone goes with everything


@pytest.mark.parametrize(
    "settings",
    [{"clip": 0.0}, {"layers": "each"}, {"noise_multiplier": -1.0}, {"noise_at": "both"}, {"delta": 1.0}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigurationError, match=rf"privacy.{next(iter(settings))} must be "):
        replace(PLAIN, **settings)
