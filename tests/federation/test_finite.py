"""What is not finite is named by cause and client, and set aside row by row; a server's state is checked by name."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedgh.core.errors import TrainingError
from fedgh.core.types import CohortResult, GlobalModel, ServerState
from fedgh.core.updates import UpdateMatrix
from fedgh.federation.finite import (
    NonFiniteError,
    _loss,
    is_finite,
    of_the_server,
    require_finite,
    require_usable,
    set_aside_nonfinite,
)
from fedgh.federation.round import initial_state

INF, NAN = float("inf"), float("nan")


@pytest.fixture
def broken():
    """Six clients: 3's update, 5's statistics and 7's message are broken, 8's update and message, 4's message."""
    rows = torch.arange(12.0).reshape(6, 2)
    buffers = torch.zeros(6, 2)
    prototypes = torch.zeros(6, 2, 2)
    rows[1, 0] = rows[5, 1] = NAN
    buffers[3, 1] = INF
    prototypes[4, 1, 0] = prototypes[5, 0, 0] = prototypes[2, 1, 1] = -INF
    return CohortResult(
        client_ids=(2, 3, 4, 5, 7, 8),
        updates=UpdateMatrix.of(rows),
        buffers=buffers,
        counters=torch.zeros(6, 0, dtype=torch.int64),
        num_examples=torch.arange(6.0).double(),
        local_steps=torch.ones(6, dtype=torch.int64),
        train_loss=torch.zeros(6).double(),
        messages={"prototypes": prototypes, "counts": torch.ones(6, 3, dtype=torch.int64)},
    )


def grams(result):
    return (result.updates.rows @ result.updates.rows.T)[None].repeat(2, 1, 1)


def test_each_client_is_named_once_by_its_first_cause(broken, caplog):
    products = grams(broken)
    with caplog.at_level(logging.WARNING, "fedgh"):
        rest, left, dropped = set_aside_nonfinite(broken, products, "drop", 4)
    assert dropped == (3, 4, 5, 7, 8)
    assert rest.client_ids == (2,)
    assert left.tolist() == [[[1.0]], [[1.0]]]  # of (0, 1) with itself
    (record,) = caplog.records
    assert record.getMessage() == (
        "round 5: the update of clients 3, 8 is not finite (the local loss overflowed); the running statistics of "
        "client 5 are not finite; the message 'prototypes' of clients 4, 7 is not finite; set aside"
    )


@pytest.mark.parametrize(
    ("origin", "remedy"),
    [("", "algorithm.optimizer.lr"), (", because of the global model", "server_optimizer.lr")],
)
def test_by_setting_it_is_an_error_with_the_rate_to_lower(broken, origin, remedy):
    message = rf"round 1: the update of clients 3, 8 .* is not finite{origin}; lower {remedy}, or go on without such"
    with pytest.raises(TrainingError, match=message):
        set_aside_nonfinite(broken, grams(broken), "raise", 0, origin)


def test_large_finite_rows_and_whole_numbers_stay(broken):
    """A product beyond float32 makes a row suspect, no more."""
    keep = torch.tensor([True, False, False, False, False, False])
    sound = broken.select(keep)
    sound.updates.rows[0] = 1e30
    assert not is_finite(sound, grams(sound)), "looked at twice"
    rest, left, dropped = set_aside_nonfinite(sound, products := grams(sound), "raise", 0)
    assert (rest, dropped) == (sound, ())
    assert left is products


def test_anything_that_clients_sent_makes_a_cohort_suspect(broken):
    sound = broken.select(torch.tensor([True, False, False, False, False, False]))
    assert is_finite(sound, grams(sound))
    assert not is_finite(replace(sound, buffers=torch.full((1, 2), INF)), grams(sound))
    assert not is_finite(replace(sound, messages={"a": torch.zeros(1), "b": torch.full((1,), NAN)}), grams(sound))
    assert not is_finite(sound, torch.full((1, 1, 1), NAN))


NOT = torch.tensor([1.0, NAN])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": NOT}, "the global model: its parameters"),
        ({"buffers": NOT}, "the global model: its running statistics"),
        ({"optimizer": {"momentum": NOT}}, "the server optimizer's state of the global model: momentum"),
        ({"aggregator": {"ema": NOT}}, "the aggregator's state of the global model: ema"),
        ({"memory": {"count": torch.ones(1, dtype=torch.int64), "control": NOT}}, "the algorithm's memory: control"),
        (
            {"siblings": (GlobalModel(NOT, torch.zeros(0), torch.zeros(0, dtype=torch.int64)),)},
            "global model 1: its parameters",
        ),
    ],
)
def test_what_a_round_made_is_checked_and_what_it_left_is_not(change, named):
    before = ServerState(3, torch.ones(2), torch.zeros(0), torch.zeros(1, dtype=torch.int64))
    after = replace(before, **change)
    with pytest.raises(NonFiniteError, match=f"^{named} would not be finite; lower server_optimizer.lr or algor"):
        require_finite(after, before)
    require_finite(before, before)
    require_finite(replace(after, round_index=4), after)  # it was so before: not this round's doing


@pytest.mark.parametrize(
    ("largest", "loss", "blamed"),
    [(1e4, NAN, False), (2e4, 9e3, False), (2e4, 1e4, True), (-2e4, NAN, True), (2e4, INF, True)],
)
def test_a_model_is_blamed_if_its_parameters_and_its_loss_are_beyond_use(monkeypatch, largest, loss, blamed):
    monkeypatch.setattr("fedgh.federation.finite._loss", lambda federation, model: loss)
    server = ServerState(0, torch.tensor([1.0, largest]), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    said = of_the_server(None, server)
    assert bool(said) == blamed
    if blamed:
        assert said == (
            ", because of the global model that they started from: its parameters reach 2.0e+04 and its loss is "
            f"{loss:.1e}"
        )
        assert ": as round 2 left it, its parameters" in of_the_server(None, replace(server, round_index=2))


@pytest.mark.parametrize(
    ("step", "largest", "loss", "rate"),
    [
        (1.0, 1e4, NAN, None),
        (1.0, 2e4, 1e30, None),
        (1.0, 2e4, NAN, "server_optimizer.lr"),
        (-2e4, 2e4, INF, "algorithm.optimizer.lr"),
    ],
)
def test_a_step_that_ruins_the_model_names_whose_step_it_was(monkeypatch, step, largest, loss, rate):
    monkeypatch.setattr("fedgh.federation.finite._loss", lambda federation, model: loss)
    before = ServerState(0, torch.ones(2), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    after, aggregate = (
        replace(before, params=torch.tensor([0.0, -largest])),
        SimpleNamespace(update=torch.tensor([step])),
    )
    if rate is None:
        require_usable(None, after, before, aggregate)
    else:
        with pytest.raises(
            NonFiniteError, match=rf"parameters up to 2.0e\+04, where its loss is not finite; lower {rate}$"
        ):
            require_usable(None, after, before, aggregate)
    require_usable(None, after, after, aggregate)  # not this round's doing


@pytest.mark.parametrize("training", [True, False])
def test_a_look_at_the_loss_leaves_the_module_in_its_mode(make, training):
    federation = make.federation()
    federation.model.module.train(training)
    _loss(federation, initial_state(federation.model).models[0])
    assert federation.model.module.training == training
