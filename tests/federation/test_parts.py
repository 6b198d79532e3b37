"""Parts that do not go together are refused before training, with what to type instead."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from fedgh.aggregator.clipped import Clipped
from fedgh.aggregator.fedlag import FedLAG
from fedgh.aggregator.krum import Krum
from fedgh.aggregator.matched import Matched
from fedgh.aggregator.median import Median
from fedgh.algorithm.fedavg import FedAvg
from fedgh.core.errors import ConfigurationError
from fedgh.federation.clock import Clock
from fedgh.sampler.round_robin import RoundRobin
from fedgh.sampler.uniform import Uniform

CLOCK = Clock(
    concurrency=4,
    buffer_size=2,
    interval=None,
    spread=1.0,
    staleness="constant",
    power=0.5,
    bound=0,
    mixing=1.0,
    rebase=False,
)
KRUM = Krum(rescale="none", num_byzantine=1, num_selected=1)


@dataclass(frozen=True, kw_only=True)
class Grouping(FedAvg):
    def group(self, result):
        return None


def needing(what):
    @dataclass(frozen=True, kw_only=True)
    class Needing(FedAvg):
        requires: ClassVar = frozenset({what})

    return Needing


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            Grouping,
            {"aggregator": KRUM},
            r"Krum needs at least 5 clients, and Grouping forms groups .*aggregator=median",
        ),
        (Grouping, {"clock": CLOCK}, r"Grouping trains several global models.*clock=synchronous"),
        (FedAvg, {"clock": CLOCK, "aggregator": KRUM}, r"Krum needs at least 5 clients a round.*clock.buffer_size=5"),
        (FedAvg, {"aggregator": KRUM, "sampler": Uniform(0.5)}, r"num_byzantine=1 needs at least 5 clients.* got 3 .*"),
        (FedAvg, {"aggregator": Clipped(KRUM, 1.0, "median"), "sampler": RoundRobin(4)}, r"at least 5 .* got 3 "),
        (FedAvg, {"aggregator": Matched(replace(KRUM, num_selected=6), "norm")}, r"num_selected must be at most 5"),
        (FedAvg, {"aggregator": Matched(Clipped(Median(), 1.0, "median"), "gain")}, r"has no gain to match"),
        (FedAvg, {"aggregator": FedLAG(2, 1, 0.0, "block")}, r"must leave a layer to share: the model has 2, got 2"),
        (FedAvg, {"sampler": RoundRobin(7)}, r"clients_per_round must be at most the number of clients \(6\), got 7"),
        (needing("several_targets"), {}, r"Needing needs a data set with several targets.*dataset=digits_two"),
        (needing("clock"), {}, r"Needing needs clients that come and go: clock=fedbuff"),
        (FedAvg, {"buffers": "best"}, r"buffers must be one of average, keep_global, got 'best'"),
    ],
)
def test_what_does_not_go_together_is_refused(make, kind, changes, message):
    federation = make.federation(num_clients=6, algorithm=make.algorithm())
    with pytest.raises(ConfigurationError, match=message):
        replace(federation, algorithm=make.algorithm(kind), **changes)


def test_what_is_there_is_accepted(make):
    federation = make.federation(num_clients=6)
    for need in ("head", "classification"):
        replace(federation, algorithm=make.algorithm(needing(need)))
    replace(federation, algorithm=make.algorithm(needing("clock")), clock=CLOCK)


@pytest.mark.parametrize(
    ("settings", "message"), [("algorithm=scaffold", "Scaffold sends more"), ("clock=fedbuff", "clock")]
)
def test_flower_refuses_what_it_does_not_carry(settings, message):
    deployment = pytest.importorskip("fedgh.integrations.flower.deployment", reason="Flower is not installed")
    cfg = deployment.compose(
        {"overrides": f"{settings} partition=iid partition.num_clients=20 dataset.train_fraction=0.1"}
    )
    with pytest.raises(ConfigurationError, match=message):
        deployment.build(cfg)
