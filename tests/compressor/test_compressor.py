"""Compressors by hand, their laws, and whole rounds: bytes, what is kept, resume, executors, personal parts."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fedgh.compressor.quantized import Quantized
from fedgh.compressor.random_k import RandomK
from fedgh.compressor.top_k import TopK
from fedgh.core.errors import ConfigurationError
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import first_state, run_round
from fedgh.storage import checkpoint as checkpoints

KINDS = {
    "top_k": lambda feedback="none", share=0.3: TopK(feedback=feedback, control=0.5, share=share),
    "random_k": lambda feedback="none", share=0.3: RandomK(feedback=feedback, control=0.5, share=share),
    "quantized": lambda feedback="none", bits=3: Quantized(feedback=feedback, control=0.5, bits=bits, bucket=4),
}
NEUTRAL = {"top_k": {"share": 1.0}, "random_k": {"share": 1.0}, "quantized": {"bits": 32}}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rounds(feedback, updates, kind=TopK, **settings):
    """Return what the server sees of a client, round by round, k = 1 of 2."""
    compressor = kind(**{"feedback": feedback, "control": 0.5, "share": 0.5, **settings})
    state, seen = {}, []
    for update in updates:
        arrived, state, _ = compressor.send(torch.tensor(update, dtype=torch.float64), state, generator())
        seen.append([round(value, 12) for value in arrived.tolist()])
    return seen


def test_top_k_takes_the_largest_of_either_sign():
    arrived, size = TopK(feedback="none", control=1.0, share=0.3).compress(torch.tensor([-5.0, 1.0, 2.0]), generator())
    assert arrived.tolist() == [-5, 0, 0]
    assert size == 4 + 4
    whole, size = TopK(feedback="none", control=1.0, share=0.9).compress(torch.tensor([-5.0, 1.0, 2.0]), generator())
    assert whole.tolist() == [-5, 1, 2]
    assert size == 12  # three places more would be 24


def test_error_feedback_by_hand():
    """(1, .4) thrice: (1, 0), e = (0, .4); (1, .8): (1, 0), e = (0, .8); (1, 1.2): (0, 1.2)."""
    assert rounds("none", [(1, 0.4)] * 3) == [[1, 0]] * 3
    assert rounds("ef", [(1, 0.4)] * 3) == [[1, 0], [1, 0], [0, 1.2]]
    assert rounds("ef21", [(1, 0.4)] * 3) == [[1, 0], [1, 0.4], [1, 0.4]]


def test_econtrol_by_hand():
    """control 1/2, (1, .4) thrice: d = (1, 0), e = (0, .4), h = (1, 0); then (0, .2 + .4): d = (0, .6).

    e = (0, .4 + .4 - .6) = (0, .2), h = (1, .6); then (0, .1 + .4 - .6): d = (0, -.1), h = (1, .5).
    """
    assert rounds("econtrol", [(1, 0.4)] * 3) == [[1, 0], [1, 0.6], [1, 0.5]]


def test_random_k_is_unbiased_without_a_feedback_and_shrinks_with_one():
    vector = torch.randn(10, generator=generator(), dtype=torch.float64)
    mean = sum(KINDS["random_k"]().compress(vector, generator(s))[0] for s in range(4000)) / 4000
    torch.testing.assert_close(mean, vector, rtol=0, atol=0.1)
    arrived, size = KINDS["random_k"]("ef").compress(vector, generator())
    assert sorted((arrived != 0).tolist()) == [False] * 7 + [True] * 3
    assert torch.equal(arrived[arrived != 0], vector[arrived != 0])
    assert size == 3 * 8


def test_quantized_by_hand():
    """3 bits: levels -3 .. 3 of the largest of a bucket of 4: units 1 and 2; the last bucket is short."""
    vector = torch.tensor([3.0, -1.0, 0.4, 0.6, -6.0, 2.9])
    compressor = Quantized(feedback="ef", control=1.0, bits=3, bucket=4)
    arrived, size = compressor.compress(vector, generator())
    assert arrived.tolist() == [3, -1, 0, 1, -6, 2]
    assert size == 3 + 2 * 4  # 18 bits, two scales
    assert compressor.compress(torch.zeros(5), generator())[0].tolist() == [0] * 5
    unbiased = Quantized(feedback="none", control=1.0, bits=3, bucket=4)
    draws = torch.stack([unbiased.compress(vector, generator(s))[0] for s in range(2000)])
    torch.testing.assert_close(draws.mean(0), vector, rtol=0, atol=0.08)
    assert set(draws[:, 2].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("feedback", ["ef", "ef21", "econtrol"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_feedback_nothing_is_lost_for_good(kind, feedback):
    """Of a constant update: its running sum (ef) or what the server holds (the others) comes close to the truth."""
    update = torch.randn(12, generator=generator(1), dtype=torch.float64)
    compressor, state, total = KINDS[kind](feedback), {}, torch.zeros(12, dtype=torch.float64)
    for t in range(200):
        arrived, state, _ = compressor.send(update, state, generator(t))
        total += arrived
    found = total / 200 if feedback == "ef" else arrived
    torch.testing.assert_close(found, update, rtol=0, atol=0.1 if feedback == "ef" else 1e-3)


def federation_of(make, compressor, algorithm="fedavg", aggregator="fedgh", executor=SequentialExecutor, **settings):
    federation = make.federation(
        algorithm=make.choice("algorithm", algorithm, local_epochs=2, batch_size=4, **settings),
        aggregator=make.rule(aggregator),
        executor=executor,
        num_clients=4,
        fraction=0.5,
    )
    federation.executor.compressor = compressor
    return federation


def play(federation, count, server=None):
    server = server or first_state(federation)
    for _ in range(count):
        outcome = run_round(federation, server)
        server = outcome.server
    return server, outcome


@pytest.mark.parametrize("kind", KINDS)
def test_without_compression_it_is_fedavg_to_the_bit(make, kind):
    plain, outcome = play(federation_of(make, None), 2)
    server, same = play(federation_of(make, KINDS[kind]("econtrol", **NEUTRAL[kind])), 2)
    assert torch.equal(plain.params, server.params)
    assert same.result.bytes_up == outcome.result.bytes_up
    assert dict(server.clients) == {}


@pytest.mark.parametrize("aggregator", ["mean", "median", "fedgh"])
def test_what_the_server_sees_and_its_bytes(make, aggregator):
    federation = federation_of(make, KINDS["top_k"](share=0.4), aggregator=aggregator)
    _, outcome = play(federation, 1)
    assert ((outcome.result.updates.rows != 0).sum(1) == 6).all()  # 0.4 of 15
    assert outcome.result.bytes_up == 2 * 6 * (4 + 4)
    own = outcome.result.updates.rows.double()
    torch.testing.assert_close(outcome.gram, own @ own.T, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
@pytest.mark.parametrize("kind", KINDS)
def test_resumes_and_vectorizes(make, kind, algorithm, tmp_path):
    """To the same bits from a file; the other executor to rounding. What the algorithm keeps stays its own."""
    parts = partial(federation_of, make, KINDS[kind]("econtrol"), algorithm)
    first, _ = play(parts(), 2)
    path = checkpoints.save(checkpoints.Checkpoint(first, "", "", {}, "", ""), tmp_path)
    straight, _ = play(parts(), 4)
    resumed, _ = play(parts(), 2, checkpoints.load(path).server)
    assert torch.equal(straight.params, resumed.params)
    for k, state in straight.clients.items():
        assert set(state) == {"compressor/error", "compressor/sent"} | ({"c"} if algorithm == "scaffold" else set())
        assert all(torch.equal(state[name], resumed.clients[k][name]) for name in state)
    together, _ = play(parts(executor=partial(VectorizedExecutor, width=2)), 1)
    torch.testing.assert_close(together.params, play(parts(), 1)[0].params, rtol=1e-4, atol=1e-5)


def test_what_stays_personal_is_neither_sent_nor_counted(make):
    """A body of one layer of 12 numbers and 3: the head stays; 0.5 of nothing personal."""
    federation = federation_of(make, KINDS["top_k"](share=0.5), "fedper", own_parameters=["*weight"])
    _, outcome = play(federation, 1)
    shared = federation.executor.shared
    assert int(shared.sum()) == 3
    assert (outcome.result.updates.rows[:, ~shared] == 0).all()
    assert ((outcome.result.updates.rows[:, shared] != 0).sum(1) == 2).all()
    assert outcome.result.bytes_up == 2 * min(2 * 8, 3 * 4)


def test_who_says_what_it_sends_is_left_alone(make):
    federation = federation_of(make, KINDS["top_k"]("ef"), "local")
    server, outcome = play(federation, 1)
    assert outcome.result.bytes_up == 0
    assert all("compressor/error" not in state for state in server.clients.values())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KINDS["top_k"](share=0.0), r"compressor.share must be above 0 and at most 1 .* got 0.0"),
        (lambda: KINDS["random_k"](share=1.5), r"compressor.share must be above 0"),
        (lambda: KINDS["quantized"](bits=1), r"compressor.bits must be from 2 to 16, or 32 .* got 1"),
        (lambda: replace(KINDS["quantized"](), bucket=0), r"compressor.bucket must be a positive integer"),
        (
            lambda: KINDS["top_k"]("memory"),
            r"compressor.feedback must be one of none, ef, ef21, econtrol, got 'memory'",
        ),
        (lambda: replace(KINDS["top_k"](), control=0.0), r"compressor.control must be above 0"),
    ],
)
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()
