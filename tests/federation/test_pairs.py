"""Every algorithm with every aggregator; the same seed gives the same bits."""

import itertools
from pathlib import Path

import pytest
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round

CONFIGS = Path(__file__).parents[2] / "configs"
SILENT = ("fedproto", "local")  # exchange no parameters
ADAPTING = ("cdan", "dann", "mcd")  # need data of their own, see test_contract
ALGORITHMS, AGGREGATORS, SERVER_OPTIMIZERS = (
    sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if path.stem not in ADAPTING)
    for group in ("algorithm", "aggregator", "server_optimizer")
)
ALGORITHMS = [name for name in ALGORITHMS if name not in ("cdan", "dann", "mcd")]
"""Without those that need two domains, which ``tests/algorithm/test_contract.py`` has."""
SILENT = ("fedproto", "local")
"""Methods that exchange no model."""
UNEVEN = torch.repeat_interleave(torch.arange(6), torch.tensor([5, 7, 9, 10, 13, 16])).numpy()


def two_rounds(make, seed=1, fraction=1.0, server_optimizer="sgd", algorithm="fedavg", aggregator="fedgh"):
    federation = make.federation(
        seed=seed,
        owners=UNEVEN,
        num_clients=6,
        fraction=fraction,
        module=make.normed(seed),
        algorithm=make.choice("algorithm", algorithm, local_epochs=1, batch_size=4),
        aggregator=make.rule(aggregator),
        server_optimizer=make.choice("server_optimizer", server_optimizer),
    )
    start = server = first_state(federation)
    for _ in range(2):
        outcome = run_round(federation, server)
        server = outcome.server
    return start, server, outcome


def test_the_groups_hold_what_the_project_promises():
    assert {"fedavg", "fedprox", "fednova", "feddecorr"} <= set(ALGORITHMS)
    assert {"mean", "fedgh"} <= set(AGGREGATORS)


def pairs():
    """FedAvg with every aggregator, the others slow: ``tests/algorithm/test_contract.py`` has one of each kind."""
    for algorithm, aggregator in itertools.product(ALGORITHMS, AGGREGATORS):
        yield pytest.param(algorithm, aggregator, marks=[] if algorithm == "fedavg" else pytest.mark.slow)


@pytest.mark.parametrize(("algorithm", "aggregator"), list(pairs()))
def test_every_pair_survives_two_rounds(make, algorithm, aggregator):
    if algorithm in ("ifca", "cfl") and make.rule(aggregator).min_clients > 1:
        with pytest.raises(ConfigurationError, match=r"Krum needs at least 5 clients, and .* forms groups"):
            two_rounds(make, algorithm=algorithm, aggregator=aggregator)
        return
    start, server, outcome = two_rounds(make, algorithm=algorithm, aggregator=aggregator)
    assert server.round_index == 2
    assert outcome.dropped == ()
    for tensor in (server.params, server.buffers, outcome.aggregate.update):
        assert tensor.isfinite().all()
    assert torch.equal(server.params, start.params) == (algorithm in SILENT)
    assert server.params.dtype == torch.float32
    assert server.counters.dtype == torch.int64


@pytest.mark.parametrize("server_optimizer", SERVER_OPTIMIZERS)
def test_every_server_optimizer_survives_two_rounds(make, server_optimizer):
    start, server, _ = two_rounds(make, server_optimizer=server_optimizer, algorithm="fednova")
    assert server.params.isfinite().all()
    assert not torch.equal(server.params, start.params)


@pytest.mark.parametrize(("algorithm", "fraction"), [(name, j % 2 / 2 or 1.0) for j, name in enumerate(ALGORITHMS)])
def test_same_seed_same_bits_other_seed_other_bits(make, algorithm, fraction):
    settings = {"algorithm": algorithm, "fraction": fraction}
    first, again, other = (two_rounds(make, seed=s, **settings)[1] for s in (1, 1, 2))
    for name in ("params", "buffers", "counters"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.params, other.params)
