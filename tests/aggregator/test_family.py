"""What every rule of ``configs/aggregator`` has to satisfy, whatever it computes."""

import io
from dataclasses import replace

import pytest
import torch

from fedgh.aggregator.base import Aggregator
from fedgh.core.errors import ConfigurationError

from . import literal
from .rules import RULES, build, cohort_of, matrix, random_rows, relative_error, run, unscaled

FEWEST = {"krum": 5, "layerwise_cosine": 4}
AGREES_TO = {
    "cagrad": 1e-6,
    "confree": 1e-6,
    "geometric_median": 1e-9,
}  # limited by the literal solver; by the stopping rule
LITERAL_SOLVES_POORLY = {"cagrad", "confree"}  # on awkward rows its general solver is compared by the objective, below
UNDETERMINED = {"fedld"}  # where eigenvalues are equal, as of awkward rows, any basis serves
CENTRES = {"gc_fed"}  # takes from any update a part that other rules leave
GRAM_RULES = [name for name in RULES if build(name).needs != "coordinates"]
RESCALABLE = [name for name in RULES if hasattr(build(name), "rescale")]

AWKWARD = {
    "zero row": [[1, 0, 0], [0, 0, 0], [-1, 1, 0], [0.5, 0.2, 1], [0.3, -0.1, 0.4]],
    "duplicates": [[1, 2, 3], [1, 2, 3], [-1, 0, 0.5], [1, 2, 3], [0, 1, -0.2]],
    "all opposite": [[1, 0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0], [2, 0, 0]],
    "opposite pairs": [[1, 2, 3], [-1, -2, -3], [1, -2, 3], [-1, 2, -3], [0, 0, 1]],
    "tiny row": [[1, 0, 0], [-1e-12, 1e-12, 0], [0, -1, 1], [0.2, 0.1, 0.9], [1, 0.1, 0.1]],
    "huge row": [[1, 0, 0], [-1e12, 1e12, 0], [0, -1, 1], [0.2, 0.1, 0.9], [1, 0.1, 0.1]],
    "rank one": [[1, 1, 1], [-2, -2, -2], [3, 3, 3], [1, 1, 1], [2, 2, 2]],
    "rank one, agreeing": [[1, 1, 1], [2, 2, 2], [3, 3, 3], [1, 1, 1], [2, 2, 2]],
    "orthogonal": [[1, 0, 0], [0, 2, 0], [0, 0, 3], [0, 2, 0], [1, 0, 0]],
    "all zero": [[0, 0, 0]] * 5,
}


def awkward(name):
    rows = torch.tensor(AWKWARD[name], dtype=torch.float64)
    return torch.cat([rows, rows.flip(1), rows], dim=1)


def literally(name, rows, cohort, rule, memory=None):
    if not hasattr(literal, name):
        pytest.skip(
            f"no independent version of {name}: write def {name}(rows, cohort, rule, memory) in "
            "tests/aggregator/literal.py, from the paper and on the vectors themselves; it returns the update"
        )
    return getattr(literal, name)(rows.to(torch.float64), cohort, rule, {} if memory is None else memory)


def sizes(name):
    return range(FEWEST.get(name, 2), 7)


@pytest.mark.parametrize("name", RULES)
def test_equals_the_literal_rule(name):
    rule = unscaled(name)
    for size in sizes(name):
        for seed, common in enumerate((0.0, 0.5, 2.0) if size < 6 else (0.0,)):
            rows, cohort = random_rows(10 * size + seed, size, common=common), cohort_of(size, seed)
            error = relative_error(run(rule, rows, cohort).update, literally(name, rows, cohort, rule), rows)
            assert error < AGREES_TO.get(name, 1e-10), (size, seed)


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("name", RULES)
def test_awkward_rows(name, case):
    rows, cohort, rule = awkward(case), cohort_of(5, 1), unscaled(name)
    result = run(rule, rows, cohort)
    assert bool(result.update.isfinite().all())
    assert bool(run(build(name), rows, cohort).update.isfinite().all())
    hopeless = name in LITERAL_SOLVES_POORLY | UNDETERMINED or (name, case) == (
        "cr_mogm",
        "tiny row",
    )  # weights of 1e-12
    if not hopeless:
        assert relative_error(result.update, literally(name, rows, cohort, rule), rows) < 1e-9


@pytest.mark.parametrize("case", AWKWARD)
def test_cagrad_serves_the_worst_off_client_at_least_as_well_as_a_general_solver(case):
    rows, cohort, rule = awkward(case), cohort_of(5, 1), unscaled("cagrad")
    weighted = 5 * cohort.weights[:, None] * rows
    scale = weighted.norm(dim=1).max().clamp_min(1e-300)
    mean, ours = cohort.weights @ rows / scale, run(rule, rows, cohort).update / scale
    theirs = literal.cagrad(rows, cohort, rule, {}) / scale
    assert float((ours - mean).norm()) <= rule.c * float(mean.norm()) * (1 + 1e-9) + 1e-15
    assert (
        float((weighted / scale @ ours).min()) >= float((weighted / scale @ theirs).min()) - 1e-7
    )  # which may leave the ball by 1e-8


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
@pytest.mark.parametrize("name", RULES)
def test_any_scale_gives_the_same_direction(name, scale):
    rows, cohort = random_rows(3, 5, common=0.5), cohort_of(5, 2)
    rule = build(name, eps=0.0) if name == "fedexp" else build(name)  # whose eps has the unit of the updates' squares
    expected = run(rule, rows, cohort).update
    assert relative_error(run(rule, scale * rows, cohort).update / scale, expected, rows) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_narrow_rows(name, dtype):
    rows, cohort = random_rows(8, 6, dim=40, common=0.5).to(dtype), cohort_of(6, 3)
    result = run(build(name), rows, cohort)
    exact = run(build(name), rows.to(torch.float64), cohort)
    assert result.update.dtype == torch.float32
    assert relative_error(result.update, exact.update, rows.to(torch.float64)) < 1e-4


@pytest.mark.parametrize("name", RULES)
def test_reordering_clients_changes_nothing(name):
    rows, ids = random_rows(21, 6, common=0.5), (3, 5, 8, 9, 13, 40)
    cohort, order = cohort_of(6, ids=ids), torch.tensor([4, 0, 5, 2, 1, 3])
    moved = replace(
        cohort,
        client_ids=tuple(ids[k] for k in order),
        weights=cohort.weights[order],
        losses=cohort.losses[order],
    )
    state = first = None
    for round_rows in (rows, rows.flip(1)):
        a, b = run(build(name), round_rows, cohort, state), run(build(name), round_rows[order], moved, first)
        state, first = a.state, b.state
        assert relative_error(b.update, a.update, rows) < 1e-8


@pytest.mark.parametrize("name", RULES)
def test_coefficients_give_the_update(name):
    rows, cohort = random_rows(5, 6), cohort_of(6)
    result = run(build(name), rows, cohort)
    if build(name).needs == "coordinates":
        assert result.coefficients is None
    else:
        assert relative_error(matrix(rows).combine(result.coefficients), result.update, rows) < 1e-12
        assert result.coefficients.dtype == torch.float64
    if result.mixing is not None:
        assert (
            relative_error(cohort.weights @ result.mixing @ rows, run(unscaled(name), rows, cohort).update, rows)
            < 1e-10
        )


@pytest.mark.parametrize("name", RULES)
def test_one_client_gives_its_own_update(name):
    rows, cohort = random_rows(2, 1), cohort_of(1)
    if name in FEWEST:
        with pytest.raises(ConfigurationError, match=f"needs at least {FEWEST[name]} clients a round, got 1"):
            run(build(name), rows, cohort)
        return
    update, row = run(build(name), rows, cohort).update, rows[0]
    if name in CENTRES:
        row = literally(name, rows, cohort, build(name))
    assert relative_error(update, row, rows) < 1e-12
    length = run(unscaled(name), rows, cohort).update.norm() / row.norm()
    others = {
        "cagrad": 1.5,  # the end of the ball
        "fedmgda_plus": 1 / row.norm(),  # unit updates
        "nash_mtl": 1 / row.norm(),
        "fairgrad": row.norm() ** (-4 / 3),  # alpha = 2: length n^(-1/3)
    }
    assert float(length) == pytest.approx(float(others.get(name, 1.0)), rel=1e-10)


@pytest.mark.parametrize("name", RULES)
def test_scale_preserving_means_that_identical_updates_come_back(name):
    rows = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)).double().expand(6, -1).contiguous() * 3
    scaled = relative_error(run(unscaled(name), rows, cohort_of(6)).update, rows[0], rows) > 1e-3
    if name not in ("clipped", "centered_clipping"):  # identical updates are as long as their median
        assert scaled != build(name).scale_preserving
    if name not in CENTRES:
        whole = {"scope": "model"} if name == "craft" else {}  # by layer, lengths are those of the weights
        assert relative_error(run(build(name, **whole), rows, cohort_of(6)).update, rows[0], rows) < 1e-9


@pytest.mark.parametrize("name", RULES)
def test_weights_matter_as_declared(name):
    rows = random_rows(9, 6, common=1.5)
    even, uneven = torch.full((6,), 1 / 6).double(), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05]).double()
    a, b = (run(unscaled(name), rows, cohort_of(6, weights=w)).update for w in (even, uneven))
    assert (relative_error(a, b, rows) > 1e-6) == build(name).uses_weights


@pytest.mark.parametrize("name", RULES)
def test_no_conflict_means_the_mean_exactly_where_declared(name):
    """Two rounds of agreement and one of near-orthogonal updates, so that a memory gets the chance to break it."""
    rule, state, differs = unscaled(name), {}, False
    for round_index in range(3):
        rows = torch.rand(10, 12, generator=torch.Generator().manual_seed(round_index)).double() + 0.01
        rows = (rows if round_index < 2 else torch.eye(10, 12) + 1e-6) * torch.arange(1, 11).double()[:, None]
        turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)).double())[0]
        rows = rows @ turn  # so that coordinates disagree
        cohort = cohort_of(10, round_index, round_index=round_index)
        result = run(rule, rows, cohort, state)
        mean = cohort.weights @ rows if rule.uses_weights else rows.mean(0)
        state, differs = result.state, differs or relative_error(result.update, mean, rows) > 1e-10
    assert differs != rule.identity_without_conflict


@pytest.mark.parametrize("name", RULES)
def test_random_means_that_the_seed_matters(name):
    rows = random_rows(14, 6, dim=7)
    cohort = cohort_of(6)
    updates = [
        run(build(name), rows, replace(cohort, seed=seed, round_index=round_index)).update
        for seed, round_index in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(updates[0], updates[1])
    assert all(torch.equal(updates[0], other) != build(name).random for other in updates[2:])


@pytest.mark.parametrize("name", RULES)
def test_state_survives_changing_participants_and_a_checkpoint(name):
    settings = {"fedlag": {"warmup_rounds": 2, "num_private": 1}, "stch": {"warmup_rounds": 1}}.get(name, {})
    rule, memory, state = unscaled(name, **settings), {}, {}
    rounds = [(0, 1, 2, 5, 7), (1, 2, 3, 7, 9), (0, 1, 5, 9, 11), (0, 1, 2, 5, 7)]
    for round_index, ids in enumerate(rounds):
        rows, cohort = random_rows(50 + round_index, 5), cohort_of(5, round_index, ids, round_index)
        result = run(rule, rows, cohort, state)
        if hasattr(literal, name):
            error = relative_error(result.update, literally(name, rows, cohort, rule, memory), rows)
            assert error < AGREES_TO.get(name, 1e-9)
        assert all(isinstance(value, torch.Tensor) for value in result.state.values())
        buffer = io.BytesIO()
        torch.save(result.state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    assert bool(state) == rule.stateful


@pytest.mark.parametrize("name", RULES)
def test_inputs_are_left_as_they_were(name):
    rows, cohort = random_rows(4, 6), cohort_of(6)
    gram, before, weights = rows @ rows.T, rows.clone(), cohort.weights.clone()
    state = build(name)(matrix(rows), gram, cohort, {}).state
    copies = {key: value.clone() for key, value in state.items()}
    build(name)(matrix(rows), gram, cohort, state)
    assert torch.equal(rows, before)
    assert torch.equal(gram, before @ before.T)
    assert torch.equal(cohort.weights, weights)
    assert all(torch.equal(state[key], copies[key]) for key in state)


@pytest.mark.parametrize("name", ["fedgh", "pcgrad", "gradvac", "upgrad", "dual_proj"])
def test_scaling_rows_and_weighing_them_commute(name):
    """FedNova and the like may act on the rows or on the weights."""
    rows, cohort = random_rows(31, 6), cohort_of(6)
    factors = torch.tensor([0.2, 3, 1, 0.5, 7, 1.5]).double()
    before = run(unscaled(name), factors[:, None] * rows, cohort).update
    after = run(unscaled(name), rows, cohort_of(6, weights=cohort.weights * factors)).update
    assert relative_error(before, after, rows) < 1e-10


@pytest.mark.parametrize("name", ["nash_mtl", "imtl_g", "config_direction", "fedmgda_plus"])
def test_directions_that_do_not_depend_on_lengths(name):
    rows, factors = random_rows(32, 6, common=1.0), torch.tensor([0.2, 3, 1, 0.5, 7, 1.5]).double()
    a, b = (run(unscaled(name), r, cohort_of(6)).update for r in (rows, factors[:, None] * rows))
    assert float(a @ b / a.norm() / b.norm()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["upgrad", "dual_proj", "mgda", "imtl_g", "nash_mtl", "fairgrad", "config_direction"])
def test_nobody_is_opposed(name):
    for seed in range(5):
        rows = random_rows(seed, 6) * torch.ones(6, 12).double()
        update = run(build(name), rows, cohort_of(6, seed)).update
        cosines = rows @ update / rows.norm(dim=1) / update.norm()
        assert float(cosines.min()) > -1e-9


@pytest.mark.parametrize("name", RESCALABLE)
def test_rescaling(name):
    if name == "fedfv":
        pytest.skip("has a length of its own; see its file")
    rows, cohort = random_rows(6, 6), cohort_of(6)
    whole = {"scope": "model"} if hasattr(build(name), "scope") else {}
    plain, norm, total = (
        run(build(name, rescale=how, **whole), rows, cohort) for how in ("none", "fedavg_norm", "sum_to_one")
    )
    assert float(norm.update.norm()) == pytest.approx(float((cohort.weights @ rows).norm()), rel=1e-10)
    sums = total.coefficients.abs().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-12, atol=0)
    for other in (norm, total):
        cosine = other.update @ plain.update / other.update.norm() / plain.update.norm()
        assert float(cosine) == pytest.approx(1, abs=1e-12)
    with pytest.raises(Exception, match=r"aggregator.rescale must be one of none, fedavg_norm, sum_to_one, got 'unit'"):
        build(name, rescale="unit")


@pytest.mark.parametrize("name", GRAM_RULES)
@pytest.mark.parametrize("how", ["absolute", "median"])
def test_clipping_composes_with_every_rule(name, how):
    rows, cohort = random_rows(6, 6), cohort_of(6)
    limit = 2.0 if how == "absolute" else 0.5
    bound = limit * (float(rows.norm(dim=1).quantile(0.5)) if how == "median" else 1)
    short = rows * (bound / rows.norm(dim=1, keepdim=True)).clamp_max(1)
    rule = build("clipped", f"aggregator@aggregator.rule={name}", max_norm=limit, unit=how)
    result, expected = run(rule, rows, cohort), run(build(name), short, cohort)
    assert relative_error(result.update, expected.update, short) < 1e-9
    assert relative_error(matrix(rows).combine(result.coefficients), result.update, short) < 1e-9


def test_every_rule_is_an_aggregator_with_all_its_properties():
    for name in RULES:
        rule = build(name)
        assert isinstance(rule, Aggregator)
        assert rule.needs in ("gram", "layers", "params", "coordinates")
        assert "Reference:" in type(rule).__doc__
        assert "Departures:" in type(rule).__doc__
