"""The type of the update matrix: bfloat16 rows are the float32 updates, rounded once, and half as large."""

from functools import partial

import pytest
import torch
from fedgh.executor.cohort import CohortExecutor

from fedgh import config
from fedgh.core.errors import ConfigurationError
from fedgh.executor.sequential import SequentialExecutor
from fedgh.federation.round import initial_state, run_round

EXECUTORS = {"sequential": SequentialExecutor, "vectorized": partial(CohortExecutor, width=2)}
UNEVEN = torch.repeat_interleave(torch.arange(4), torch.tensor([5, 9, 16, 30])).numpy()
ROUNDING = 2.0**-8
"""Half a unit in the last of bfloat16's 8 bits, relative."""


def first_round(make, executor, **settings):
    federation = make.federation(
        num_clients=4,
        owners=UNEVEN,
        algorithm=make.algorithm(momentum=0.9, local_epochs=2, batch_size=4),
        aggregator=make.rule("fedgh"),
        executor=partial(EXECUTORS[executor], **settings),
    )
    return federation, run_round(federation, initial_state(federation.model))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_default_is_float32(make, executor):
    _, default = first_round(make, executor)
    _, explicit = first_round(make, executor, row_dtype="float32")
    assert default.result.updates.rows.dtype == torch.float32
    assert torch.equal(default.result.updates.rows, explicit.result.updates.rows)
    assert torch.equal(default.server.params, explicit.server.params)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_bfloat16_rows_are_the_float32_updates_rounded_once(make, executor):
    _, wide = first_round(make, executor)
    _, narrow = first_round(make, executor, row_dtype="bfloat16")
    rows = narrow.result.updates.rows
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, wide.result.updates.rows.bfloat16())
    assert rows.untyped_storage().nbytes() == wide.result.updates.rows.nbytes // 2
    assert torch.equal(narrow.result.train_loss, wide.result.train_loss)  # training itself is not rounded


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gram_and_aggregate_of_bfloat16_rows_are_formed_in_full_precision(make, executor):
    _, outcome = first_round(make, executor, row_dtype="bfloat16")
    rows, update = outcome.result.updates.rows.double(), outcome.aggregate.update
    assert outcome.gram.dtype == torch.float64
    torch.testing.assert_close(outcome.gram, rows @ rows.T, rtol=1e-6, atol=1e-6 * float(outcome.gram.max()))
    assert (update.dtype, outcome.server.params.dtype) == (torch.float32, torch.float32)
    exact = outcome.aggregate.coefficients @ rows
    torch.testing.assert_close(update.double(), exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
    assert torch.equal(outcome.server.params, initial_params(make) + update)


def initial_params(make):
    return initial_state(make.federation(num_clients=4, owners=UNEVEN).model).params


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_mean_moves_by_bfloat16_rounding_at_most(make, executor):
    _, wide = first_round(make, executor)
    _, narrow = first_round(make, executor, row_dtype="bfloat16")
    weights, rows = wide.weights, wide.result.updates.rows
    exact = weights @ rows.double()
    off = (narrow.result.updates.combine(weights).double() - exact).abs()
    allowed = ROUNDING * (weights @ rows.double().abs()) + 1e-6 * exact.abs().max()
    assert bool((off <= allowed).all())
    assert float(off.max()) > 0  # it is another matrix


@pytest.mark.parametrize("name", ["sequential", "vectorized", "auto"])
def test_it_is_a_key_of_every_executor(make, root_config, name):
    cfg = root_config(f"executor={name}", "executor.row_dtype=bfloat16")
    config.validate(config.resolve(cfg))
    federation = make.federation(executor=config.build(cfg.executor))
    assert federation.executor([0], initial_state(federation.model)).updates.rows.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["sequential", "vectorized", "auto"])
def test_a_config_from_before_the_setting_goes_on_in_float32(make, root_config, name):
    cfg = config.resolve(root_config(f"executor={name}", "~executor.row_dtype"))
    config.validate(cfg)
    federation = make.federation(executor=config.build(cfg.executor))
    assert federation.executor.row_dtype == torch.float32


@pytest.mark.parametrize("name", ["sequential", "vectorized", "auto"])
def test_other_types_are_refused(make, root_config, name):
    executor = config.build(root_config(f"executor={name}", "executor.row_dtype=fp16").executor)
    message = (
        r"executor\.row_dtype must be one of float32, bfloat16, got 'fp16'; bfloat16 halves the memory of the update "
        "matrix and rounds every update to 8 bits"
    )
    with pytest.raises(ConfigurationError, match=message):
        make.federation(executor=executor)
