"""FA-LD: the noise by its moments, what clients have in common, and the law that is drawn from."""

import math

import pytest
import torch

from fedgh.algorithm.fa_ld import FALD
from fedgh.core.errors import ConfigurationError
from fedgh.core.seeding import normal_numbers
from fedgh.federation.round import first_state
from tests.algorithm.drive import begin, play
from tests.algorithm.stand_in import half_square, state_of


def fa_ld(make, temperature=0.5, rho=0.0, **settings):
    return make.algorithm(FALD, temperature=temperature, rho=rho, **settings)


def test_numbers_are_normal_and_each_step_has_its_own():
    seed = torch.tensor(12345)
    numbers = torch.stack([normal_numbers(seed, torch.tensor(step), 20001) for step in range(3)])
    assert numbers.shape == (3, 20001)
    flat = numbers.flatten()
    assert float(flat.mean()) == pytest.approx(0, abs=0.02)
    assert float(flat.var()) == pytest.approx(1, abs=0.02)
    assert float((flat**4).mean()) == pytest.approx(3, abs=0.15)
    assert float((flat.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=0.004)
    cosines = torch.corrcoef(torch.cat([numbers, normal_numbers(seed + 1, torch.tensor(0), 20001)[None]]))
    assert float((cosines - torch.eye(4)).abs().max()) < 0.03
    assert len(set(flat.tolist())) > 59_990


def test_many_seeds_at_once_give_what_each_gives_alone():
    seeds, step = torch.tensor([3, 2**62 + 5]), torch.tensor(4)
    together = torch.vmap(lambda seed: normal_numbers(seed, step, 7))(seeds)
    assert torch.equal(together, torch.stack([normal_numbers(seed, step, 7) for seed in seeds]))


@pytest.mark.parametrize("rho", [0.0, 0.6, 1.0])
def test_the_noise_of_a_step(make, rho):
    """No loss, lr 0.1, tau 0.5, p = (1/4, 3/4): sd of client k's step sqrt(0.1 (rho^2 + (1 - rho^2) / p_k)).

    The mean of p_k has the sd sqrt(2 lr tau) = sqrt(0.1), whatever rho; common noise alone correlates two clients.
    """
    algorithm, zeros = fa_ld(make, rho=rho), torch.zeros(20000, dtype=torch.float64)
    server = begin(algorithm, state_of([0.0] * 20000), [1, 3])
    rows = {}
    real = algorithm.report

    def report(client, trained):
        rows[client.client_id] = trained.update
        return real(client, trained)

    object.__setattr__(algorithm, "report", report)
    server = play(algorithm, server, [zeros, zeros], [0, 1], [1, 3], lambda p, _: (0 * p.sum(), p), [1, 1])
    for k, p in ((0, 0.25), (1, 0.75)):
        wanted = math.sqrt(0.1 * (rho**2 + (1 - rho**2) / p))
        assert float(rows[k].std()) == pytest.approx(wanted, rel=0.03)
    assert float(server.params.std()) == pytest.approx(math.sqrt(0.1), rel=0.03)
    correlation = float(torch.corrcoef(torch.stack([rows[0], rows[1]]))[0, 1])
    shares = [rho**2 + (1 - rho**2) / p for p in (0.25, 0.75)]
    assert correlation == pytest.approx(rho**2 / math.sqrt(shares[0] * shares[1]), abs=0.03)


def test_it_draws_from_the_gibbs_law(make):
    """f_k = (theta - b_k)^2 / 2 with b = 0 and 2: exp(-F / tau) is normal, mean 1, variance tau = 0.5.

    With lr 0.1 the discrete chain has variance tau / (1 - lr / 2) = 0.526.
    """
    algorithm = fa_ld(make)
    width = 4000
    server = begin(algorithm, state_of([1.0] * width), [1, 1])
    targets = [torch.full((width,), b, dtype=torch.float64) for b in (0.0, 2.0)]
    for _ in range(40):
        server = play(algorithm, server, targets, [0, 1], [1, 1], half_square, [1, 1])
    assert float(server.params.mean()) == pytest.approx(1, abs=0.05)
    assert float(server.params.var()) == pytest.approx(0.5 / 0.95, rel=0.08)


def test_the_noise_is_that_of_seed_round_and_client(make):
    federation = make.federation(algorithm=fa_ld(make, rho=0.5))
    server = first_state(federation)
    sent = [federation.algorithm.broadcast(server, ids) for ids in ([0, 1], [1])]
    assert torch.equal(sent[0].own[1]["own"], sent[1].own[1]["own"])
    assert not torch.equal(sent[0].own[0]["own"], sent[0].own[1]["own"])
    assert not torch.equal(sent[0].everyone["common"], sent[0].own[0]["own"])
    assert int(server.memory["seed"]) == federation.seed


def test_bad_settings_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"algorithm.temperature must be 0 .* got -1.0"):
        fa_ld(make, -1.0)
    with pytest.raises(ConfigurationError, match=r"algorithm.rho must be from 0"):
        fa_ld(make, rho=1.5)
    with pytest.raises(ConfigurationError, match=r"algorithm.optimizer.momentum must be 0, or the noise"):
        fa_ld(make, momentum=0.9)
    fa_ld(make, 0.0, momentum=0.9)
