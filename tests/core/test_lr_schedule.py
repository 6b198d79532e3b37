"""Learning rates over the rounds."""

import math

import pytest
import torch

from fedgh import config
from fedgh.config.build import build_lr_schedules
from fedgh.core.errors import ConfigurationError
from fedgh.core.lr_schedule import Constant, Cosine, Exponential, InverseSqrt, Step
from fedgh.federation.round import first_state, run_round
from fedgh.storage.checkpoint import load_newest


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), {0: 1.0, 99: 1.0}),
        (Step(0.1, 3), {0: 1.0, 2: 1.0, 3: 0.1, 5: 0.1, 6: 0.01}),
        (Exponential(0.5), {0: 1.0, 1: 0.5, 3: 0.125}),
        (Cosine(10, 0.2), {0: 1.0, 5: 0.6, 10: 0.2, 11: 0.2, 100: 0.2}),
        (Cosine(4, 0.0), {1: (1 + math.sqrt(0.5)) / 2, 4: 0.0}),
        (InverseSqrt(4), {0: 1.0, 12: 0.5, 32: 1 / 3}),
    ],
)
def test_factors(schedule, factors):
    assert {t: schedule(t) for t in factors} == pytest.approx(factors)


@pytest.mark.parametrize(
    "build", [lambda: Step(0.0, 3), lambda: Step(0.5, 0), lambda: Exponential(1.5), lambda: Cosine(0, 0.1)]
)
def test_out_of_range(build):
    with pytest.raises(ConfigurationError, match="of a learning rate's schedule must be"):
        build()


def test_the_servers_rate(make):
    """With plain steps the update of a round is multiplied with the factor of that round, and of no other."""
    plain, halved = make.federation(), make.federation(server_lr_schedule=Step(0.5, 1))
    state = first_state(plain)
    for t, factor in ((0, 1.0), (1, 0.5), (2, 0.25)):
        expected, got = run_round(plain, state), run_round(halved, state)
        moved, would_move = got.server.params - state.params, expected.server.params - state.params
        torch.testing.assert_close(moved, factor * would_move, rtol=1e-5, atol=1e-7)
        state = got.server
        assert state.round_index == t + 1


def test_the_clients_rate(make):
    """A round in which the schedule gives a tenth is the round of clients that have a tenth of the rate."""
    scheduled, tenth = make.federation(), make.federation(algorithm=make.algorithm(lr=0.01))
    scheduled.executor.lr_schedule = Step(0.1, 1)
    state = run_round(scheduled, first_state(scheduled)).server
    expected, got = run_round(tenth, state), run_round(scheduled, state)
    torch.testing.assert_close(got.server.params, expected.server.params)
    assert not torch.allclose(got.server.params, run_round(make.federation(), state).server.params)


@pytest.mark.parametrize("executor", ["sequential", "vectorized"])
def test_from_the_command_line(executor):
    base = ("callback=none", "trainer=cpu", f"executor={executor}", "partition=iid")
    cfg = config.compose([*base, "lr_schedule@client_lr_schedule=cosine", "lr_schedule@server_lr_schedule=step"])
    config.validate(cfg)
    federation = config.build_federation(cfg)
    assert federation.executor.lr(0) == pytest.approx(cfg.algorithm.optimizer.lr)
    assert federation.executor.lr(cfg.num_rounds) == pytest.approx(0.01 * cfg.algorithm.optimizer.lr)
    assert federation.server_optimizer_at(20).lr == pytest.approx(0.1)
    assert "client_lr_schedule" not in config.compose(base)  # configs of runs without one are what they were


def test_a_rate_that_is_not_there_cannot_change():
    cfg = config.compose(["lr_schedule@server_lr_schedule=step", "partition=iid", "callback=none", "trainer=cpu"])
    with pytest.raises(ConfigurationError, match="server_lr_schedule is set, but server_optimizer has no lr"):
        build_lr_schedules(cfg, config.build(cfg.algorithm), object())


def test_a_resumed_run_goes_on_with_the_rates_of_its_rounds(cli):
    """Stopped and resumed, or straight through: the same bits."""
    words = [
        *("debug=default", "callback=none", "logger=csv", "dataset.train_fraction=0.2", "partition=iid"),
        *("lr_schedule@client_lr_schedule=cosine", "lr_schedule@server_lr_schedule=exponential"),
        *("client_lr_schedule.rounds=4", "server_lr_schedule.factor=0.5"),
    ]
    assert cli(*words, "num_rounds=4", "hydra.run.dir=${paths.log_dir}/whole").code == 0
    parts = cli(*words, "num_rounds=2", "hydra.run.dir=${paths.log_dir}/parts")
    answer = cli(f"resume={parts.log_dir}/parts", "num_rounds=4")
    assert answer.code == 0, answer.err
    whole, resumed = (load_newest(parts.log_dir / name / "checkpoints")[0] for name in ("whole", "parts"))
    assert torch.equal(whole.server.params, resumed.server.params)
