"""Shadow aggregators: the right numbers, the run untouched to the bit, failures that cost nothing."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from fedgh import config
from fedgh.aggregator.base import Aggregate, Aggregator
from fedgh.aggregator.mean import Mean
from fedgh.callback.shadow import Shadow
from fedgh.config.rules import build_aggregators
from fedgh.core.errors import ConfigurationError
from fedgh.federation.loop import Schedule, train
from fedgh.federation.round import initial_state

# Lightning against a newer PyTorch; our loaders need no workers
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
SMALL = ["debug=default", "trainer=cpu", "model.hidden=[8]", "server_optimizer=momentum", "paths.output_dir=unused"]


def cfg(*overrides):
    with initialize_config_dir(config.CONFIG_DIR, version_base="1.3"):
        return config.resolve(compose("train", overrides=[*SMALL, *overrides]))


def trained(callbacks, num_rounds=2, *overrides):
    """Train in process; return the last state and the recorded rows."""
    federation = config.build_federation(cfg(*overrides))
    rows = []
    recorder = SimpleNamespace(record=rows.append)
    schedule = Schedule(num_rounds, evaluate_every=1, evaluate_batch_size=1000, checkpoint_every=1)
    server, _ = train(federation, initial_state(federation.model), schedule, recorder, lambda server: None, callbacks)
    return server, rows


@dataclass(frozen=True)
class Broken(Aggregator):
    calls: list = field(default_factory=list)

    def __call__(self, updates, gram, cohort, state):
        self.calls.append(cohort.round_index)
        raise ZeroDivisionError("no luck")


class NotFinite(Aggregator):
    def __call__(self, updates, gram, cohort, state):
        return Aggregate(torch.full((updates.rows.shape[1],), torch.nan))


@dataclass(frozen=True)
class Counting(Mean):
    stateful = True
    seen: list = field(default_factory=list)

    def __call__(self, updates, gram, cohort, state):
        self.seen.append(int(state.get("count", torch.tensor(0))))
        aggregate = super().__call__(updates, gram, cohort, {})
        return Aggregate(aggregate.update, aggregate.coefficients, state={"count": torch.tensor(self.seen[-1] + 1)})


def test_the_run_is_the_same_to_the_bit_and_its_own_rule_casts_its_own_shadow():
    rules = build_aggregators(["mean", "fedgh", "gradvac", "median", "clipped"])
    with_shadow, rows = trained([Shadow(rules, 1, 1000)], 2)
    without, plain_rows = trained([], 2)
    assert torch.equal(with_shadow.params, without.params)
    assert with_shadow.aggregator == without.aggregator == {}
    for row, plain in zip(rows, plain_rows, strict=True):
        assert row.metrics["global/test/loss"] == plain.metrics["global/test/loss"]
        assert row.metrics["shadow/fedgh/acc"] == row.metrics["global/test/acc"]
        assert row.metrics["shadow/fedgh/loss"] == row.metrics["global/test/loss"]
        for name in ("angle", "norm_ratio"):
            assert row.metrics[f"shadow/fedgh/{name}"] == pytest.approx(row.metrics[f"harmonization/{name}"])
        assert row.metrics["shadow/mean/angle"] == pytest.approx(0, abs=1e-4)
        assert row.metrics["shadow/mean/norm_ratio"] == pytest.approx(1)
        assert row.metrics["shadow/median/angle"] > 1
        assert len([key for key in row.metrics if key.startswith("shadow/")]) == 4 * len(rules)


def test_a_shadow_is_the_model_that_the_rule_would_have_made():
    mean, _ = trained([], 1, "aggregator=mean")
    _, rows = trained([Shadow(build_aggregators(["mean"]), 1, 1000)], 1)
    federation = config.build_federation(cfg())
    from fedgh.federation.evaluation import evaluate

    expected = evaluate(federation.model, mean, federation.dataset, 1000)
    assert rows[0].metrics["shadow/mean/loss"] == expected.loss
    assert rows[0].metrics["shadow/mean/acc"] == expected.value


def test_only_rules_that_remember_see_the_rounds_in_between():
    counting = Counting()
    _, rows = trained([Shadow({"counting": counting, "mean": Mean()}, 2, 1000)], 3)
    assert counting.seen == [0, 1, 2]
    assert [("shadow/mean/acc" in row.metrics, "shadow/counting/acc" in row.metrics) for row in rows] == [
        (False, False),
        (True, True),
        (False, False),
    ]


def test_a_resumed_memory_is_said_to_be_empty(caplog):
    federation = config.build_federation(cfg())
    callback = Shadow({"counting": Counting()}, 1, 1000)
    server, _ = trained([], 1)
    recorder = SimpleNamespace(record=lambda row: None)
    train(federation, server, Schedule(3, 1, 1000, 1), recorder, lambda server: None, [callback])
    assert caplog.text.count("shadow counting starts with an empty memory in round 2") == 1
    assert "round 3" not in caplog.text


def test_a_rule_that_fails_is_reported_once_and_costs_nothing(caplog):
    broken = Broken()
    shadow = Shadow({"broken": broken, "nan": NotFinite(), "mean": Mean()}, 1, 1000)
    server, rows = trained([shadow], 3)
    assert torch.equal(server.params, trained([], 3)[0].params)
    assert broken.calls == [0, 1, 2]
    assert caplog.text.count("shadow broken failed in round 1 (ZeroDivisionError: no luck); the run goes on") == 1
    assert caplog.text.count("shadow nan failed in round 1 (TrainingError: its update is not finite)") == 1
    assert all("shadow/mean/acc" in row.metrics for row in rows)
    assert not any("broken" in key or "nan" in key for row in rows for key in row.metrics)


def test_nothing_is_said_of_a_round_without_clients():
    row = SimpleNamespace(round=1, metrics={})
    Shadow({"broken": Broken()}, 1, 1000)(None, None, SimpleNamespace(aggregate=None), row)
    assert row.metrics == {}


def test_every_is_checked():
    with pytest.raises(ConfigurationError, match=r"shadow\.every must be 1 or more rounds, got 0"):
        Shadow({}, 0, 1000)


def test_the_choice_adds_to_the_default_callbacks():
    chosen = cfg("callback=shadow", "shadow.aggregators=[mean,clipped]", "shadow.every=3")
    config.validate(chosen)
    assert set(cfg().callback) == set(chosen.callback) - {"shadow"}
    (shadow,) = [c for c in config.build_callbacks(chosen) if isinstance(c, Shadow)]
    assert (list(shadow.aggregators), shadow.every, shadow.batch_size) == (["mean", "clipped"], 3, 200)
    together = cfg("callback=[shadow,record_updates]")
    assert {"shadow", "record_updates", *cfg().callback} == set(together.callback)


def test_an_unknown_rule_is_refused_with_the_known_ones():
    chosen = cfg("callback=shadow", "shadow.aggregators=[mean,fedhg]")
    with pytest.raises(
        ConfigurationError, match=r"no aggregator 'fedhg' \(did you mean fedgh\?\); known: .*fedgh.*mean"
    ):
        config.build_callbacks(chosen)
