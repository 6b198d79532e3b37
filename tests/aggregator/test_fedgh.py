"""FedGH: the golden example, the literal oracle, properties P1 to P9, and what is not in the paper."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh.aggregator.fedgh import harmonize, random_orders
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix

from .literal import literal_fedgh
from .rules import build, cohort_of, matrix


def gram_of(rows):
    rows = rows.to(torch.float64)
    return rows @ rows.T


def random_case(seed, num_clients, dim, spread=0.0, conflict=0.5):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(dim, generator=generator, dtype=torch.float64)
    rows = torch.randn(num_clients, dim, generator=generator, dtype=torch.float64) + (0.5 - conflict) * 4 * common
    rows *= 10 ** (spread * torch.rand(num_clients, 1, generator=generator, dtype=torch.float64))
    weights = torch.rand(num_clients, generator=generator, dtype=torch.float64) + 0.01
    return rows, weights / weights.sum()


def aggregate(rule, rows, weights, seed=0, round_index=0):
    updates = UpdateMatrix.of(rows)
    return rule(updates, updates.gram(), Cohort.of(weights, seed, round_index), {})


GOLDEN = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
GOLDEN_WEIGHTS = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)


def exact(rows):
    return torch.tensor([[float(Fraction(v)) for v in row] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize(
    ("orders", "mixing", "coefficients", "update"),
    [
        (
            [[1, 2], [0, 2], [0, 1]],
            [["1", "1/2", "1/2"], ["1", "1", "1/2"], ["1", "1/2", "1"]],
            ["1", "5/8", "5/8"],
            ["-1/4", "0"],
        ),
        (
            [[2, 1], [2, 0], [1, 0]],
            [["1", "1/2", "1/2"], ["1", "1", "0"], ["1", "0", "1"]],
            ["1", "1/2", "1/2"],
            ["0", "0"],
        ),
    ],
)
def test_golden_example(orders, mixing, coefficients, update):
    c = harmonize(gram_of(GOLDEN), torch.tensor(orders))
    torch.testing.assert_close(c, exact(mixing), rtol=0, atol=1e-15)
    torch.testing.assert_close(GOLDEN_WEIGHTS @ c, exact([coefficients])[0], rtol=0, atol=1e-15)
    torch.testing.assert_close(GOLDEN_WEIGHTS @ c @ GOLDEN, exact([update])[0], rtol=0, atol=1e-15)


def test_plain_norm_would_give_another_answer():
    """Equation (1) of the first version divides by the norm; on the golden example that is not a projection."""
    h = GOLDEN[0] - (GOLDEN[0] @ GOLDEN[1]) / GOLDEN[1].norm() * GOLDEN[1]
    assert abs(float(h @ GOLDEN[1])) > 0.4
    c = harmonize(gram_of(GOLDEN), torch.tensor([[1], [0], [0]]))
    assert abs(float(c[0] @ GOLDEN @ GOLDEN[1])) < 1e-15


@pytest.mark.parametrize("num_clients", [2, 3, 5, 8, 20, 50])
@pytest.mark.parametrize("spread", [0.0, 4.0])
@pytest.mark.parametrize("conflict", [0.2, 0.5, 0.8])
def test_equals_the_literal_algorithm(num_clients, spread, conflict):
    rows, weights = random_case(num_clients, num_clients, 300, spread, conflict)
    orders = random_orders(Cohort.of(weights, seed=7))
    c = harmonize(gram_of(rows), orders)
    harmonized, update = literal_fedgh(rows, weights, orders.tolist())
    assert float((c @ rows - harmonized).norm() / harmonized.norm()) < 1e-12
    assert float((weights @ c @ rows - update).norm() / update.norm()) < 1e-12


AWKWARD = {
    "zero row": [[1.0, 0, 0], [0.0, 0, 0], [-1, 1, 0]],
    "duplicates": [[1.0, 2, 3], [1.0, 2, 3], [-1, 0, 0]],
    "all opposite": [[1.0, 0, 0], [-1.0, 0, 0]],
    "opposite pairs": [[1.0, 2, 3], [-1.0, -2, -3], [1, -2, 3], [-1, 2, -3]],
    "tiny row": [[1.0, 0, 0], [-1e-12, 1e-12, 0], [0, -1.0, 1]],
    "huge row": [[1.0, 0, 0], [-1e12, 1e12, 0], [0, -1.0, 1]],
    "rank one": [[1.0, 1, 1], [-2.0, -2, -2], [3, 3, 3]],
    "all zero": [[0.0, 0, 0], [0.0, 0, 0]],
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_inputs_match_the_literal_algorithm(name):
    rows = torch.tensor(AWKWARD[name], dtype=torch.float64)
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    orders = random_orders(Cohort.of(weights, seed=3))
    c = harmonize(gram_of(rows), orders)
    assert bool(torch.isfinite(c).all())
    harmonized, _ = literal_fedgh(rows, weights, orders.tolist())
    scale = rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close((c @ rows) / scale, harmonized / scale, rtol=1e-12, atol=1e-12)


def test_norms_that_underflow_when_squared_in_float32():
    rows = torch.tensor([[1.0, 0.0], [-1e-25, 1e-25]], dtype=torch.float32)
    result = aggregate(build("fedgh"), rows, torch.tensor([0.5, 0.5]))
    _, expected = literal_fedgh(rows, torch.tensor([0.5, 0.5]), [[1], [0]])
    torch.testing.assert_close(result.update.to(torch.float64), expected, rtol=1e-6, atol=0)


@given(st.integers(0, 10**6), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_p1_positive_row_scaling_commutes(seed, num_clients):
    rows, weights = random_case(seed, num_clients, 40)
    scale = torch.rand(num_clients, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 10 + 0.01
    orders = random_orders(Cohort.of(weights, seed))
    plain = harmonize(gram_of(rows), orders) @ rows
    scaled = harmonize(gram_of(scale * rows), orders) @ (scale * rows)
    torch.testing.assert_close(scaled, scale * plain, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_p2_projections_never_lengthen_an_update(seed, num_clients):
    rows, weights = random_case(seed, num_clients, 8)
    harmonized = harmonize(gram_of(rows), random_orders(Cohort.of(weights, seed))) @ rows
    assert bool((harmonized.norm(dim=1) <= rows.norm(dim=1) * (1 + 1e-12)).all())


def test_p2_the_result_is_continuous_where_a_product_changes_sign():
    below = torch.tensor([[1.0, 1e-17], [-1e-17, 1.0]], dtype=torch.float64)
    c = harmonize(gram_of(below), torch.tensor([[1], [0]]))
    torch.testing.assert_close(c, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-16)


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_p5_weights_only_grow(seed, num_clients):
    rows, weights = random_case(seed, num_clients, 8)
    c = harmonize(gram_of(rows), random_orders(Cohort.of(weights, seed)))
    assert bool((c >= torch.eye(num_clients)).all())
    assert float((weights @ c).sum()) >= 1 - 1e-12


def test_p6_no_conflict_means_fedavg_to_the_bit():
    rows = torch.rand(6, 30) + 0.01
    weights = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], dtype=torch.float64)
    harmonized, mean = aggregate(build("fedgh"), rows, weights), aggregate(build("mean"), rows, weights)
    assert torch.equal(harmonized.mixing, torch.eye(6, dtype=torch.float64))
    assert torch.equal(harmonized.update, mean.update)


def test_p6_one_client_gives_its_own_model():
    rows = torch.randn(1, 10)
    result = aggregate(build("fedgh"), rows, torch.tensor([1.0]))
    assert torch.equal(result.update, rows[0])


@given(st.integers(0, 10**6), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_p7_equals_summed_pcgrad_on_weighted_rows(seed, num_clients):
    rows, weights = random_case(seed, num_clients, 40)
    orders = random_orders(Cohort.of(weights, seed))
    fedgh = weights @ harmonize(gram_of(rows), orders) @ rows
    weighted = weights[:, None] * rows
    pcgrad, _ = literal_fedgh(weighted, torch.ones(num_clients), orders.tolist())
    torch.testing.assert_close(fedgh, pcgrad.sum(0), rtol=1e-10, atol=1e-12)


def test_two_clients_is_pairwise_harmonization():
    g1, g2 = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g2 = g2 - 2 * (g1 @ g2).abs() / (g1 @ g1) * g1
    d = g1 @ g2
    assert d < 0
    expected = (1 - d / (g1 @ g1)) / 2 * g1 + (1 - d / (g2 @ g2)) / 2 * g2
    rows = torch.stack([g1, g2])
    c = harmonize(gram_of(rows), torch.tensor([[1], [0]]))
    torch.testing.assert_close(torch.tensor([0.5, 0.5], dtype=torch.float64) @ c @ rows, expected)


def test_orders_are_addressed_by_seed_round_and_client():
    cohort = Cohort.of(torch.ones(6) / 6, seed=1, round_index=4)
    orders = random_orders(cohort)
    assert torch.equal(orders, random_orders(cohort))
    for k, order in enumerate(orders.tolist()):
        assert sorted([*order, k]) == list(range(6))
    assert not torch.equal(orders, random_orders(Cohort.of(torch.ones(6) / 6, seed=2, round_index=4)))
    assert not torch.equal(orders, random_orders(Cohort.of(torch.ones(6) / 6, seed=1, round_index=5)))


def test_adding_a_client_only_inserts_it():
    few = Cohort((2, 5, 9), torch.ones(3), torch.zeros(3), seed=1, round_index=0)
    many = Cohort((2, 5, 7, 9), torch.ones(4), torch.zeros(4), seed=1, round_index=0)
    orders_few = [[few.client_ids[j] for j in row] for row in random_orders(few).tolist()]
    orders_many = [[many.client_ids[j] for j in row] for row in random_orders(many).tolist()]
    for k, before in zip(few.client_ids, orders_few, strict=True):
        after = orders_many[many.client_ids.index(k)]
        assert [j for j in after if j != 7] == before


def test_orders_are_uniform():
    counts = torch.zeros(4, 4)
    for seed in range(2000):
        orders = random_orders(Cohort.of(torch.ones(4) / 4, seed=seed))
        counts[0, orders[0, 0]] += 1
    assert counts[0, 0] == 0
    assert bool(((counts[0, 1:] - 2000 / 3).abs() < 5 * (2000 * 2 / 9) ** 0.5).all())


def test_p3_sweeps_converge_into_the_dual_cone():
    rows, weights = random_case(5, 8, 20, conflict=0.5)
    rows = rows - 0.9 * rows.mean(0)
    units = rows / rows.norm(dim=1, keepdim=True)
    worst = []
    for sweeps in (1, 2, 5, 20, 200):
        mixing = aggregate(build("fedgh", sweeps=sweeps), rows, weights).mixing
        harmonized = torch.nn.functional.normalize(mixing @ rows, dim=1)
        worst.append(float((harmonized @ units.T).min()))
    assert worst[0] < -0.01
    assert worst == sorted(worst)
    assert worst[-1] > -1e-6


def test_p9_one_tiny_opposing_client_can_veto_and_min_norm_ratio_stops_it():
    generator = torch.Generator().manual_seed(0)
    honest = torch.ones(19, 50, dtype=torch.float64) + 0.3 * torch.randn(19, 50, generator=generator).double()
    rows = torch.cat([honest, -1e-6 * honest.mean(0, keepdim=True)])
    weights = torch.full((20,), 1 / 20, dtype=torch.float64)
    direction = honest.mean(0) / honest.mean(0).square().sum()
    progress = {
        ratio: float(aggregate(build("fedgh", min_norm_ratio=ratio), rows, weights).update @ direction)
        for ratio in (0.0, 0.01)
    }
    assert progress[0.0] < 0.05  # the weakness: the mean would make 0.95
    assert progress[0.01] == pytest.approx(0.95, abs=1e-5)


def test_tiny_clients_are_still_projected_against_the_others():
    rows = torch.tensor([[1.0, 0], [1, 0.1], [-1e-6, 1e-6]], dtype=torch.float64)
    result = aggregate(build("fedgh", min_norm_ratio=0.1), rows, torch.ones(3, dtype=torch.float64) / 3)
    assert torch.equal(result.mixing[:2], torch.eye(3, dtype=torch.float64)[:2])
    assert bool((result.mixing[2] @ rows @ rows[:2].T >= -1e-20).any())


@pytest.mark.parametrize("order", ["id", "loss", "cosine"])
def test_other_orders_match_the_literal_algorithm(order):
    rows, weights = random_case(11, 6, 9)
    cohort = cohort_of(6, ids=(1, 4, 6, 7, 8, 20), weights=weights)
    cosine = gram_of(rows / rows.norm(dim=1, keepdim=True))
    places = {
        "id": lambda k, j: cohort.client_ids[j],
        "loss": lambda k, j: float(cohort.losses[j]),
        "cosine": lambda k, j: float(cosine[k, j]),
    }[order]
    orders = [sorted((j for j in range(6) if j != k), key=lambda j: places(k, j)) for k in range(6)]
    updates = matrix(rows)
    result = build("fedgh", order=order, sweeps=2)(updates, gram_of(rows), cohort, {})
    _, expected = literal_fedgh(rows, weights, [row + row for row in orders])
    torch.testing.assert_close(result.update, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("scope", "spans"), [("layer", [(0, 3), (3, 6), (6, 9)]), ("block", [(0, 2), (2, 3), (3, 6), (6, 9)])]
)
def test_scopes_harmonize_every_group_by_itself(scope, spans):
    rows, weights = random_case(3, 7, 9)
    cohort, updates = cohort_of(7, weights=weights), matrix(rows)
    result = build("fedgh", scope=scope)(updates, gram_of(rows), cohort, {})
    orders = random_orders(cohort).tolist()
    parts = [literal_fedgh(rows[:, a:b], weights, orders)[1] for a, b in spans]
    torch.testing.assert_close(result.update, torch.cat(parts), rtol=1e-5, atol=1e-6)
    assert result.coefficients.shape == (4, 7)
    assert result.mixing.shape == (4, 7, 7)
    torch.testing.assert_close(weights @ result.mixing, result.coefficients)


def test_a_scope_with_one_group_is_the_model():
    rows, weights = random_case(3, 7, 9)
    updates, cohort = UpdateMatrix.of(rows), Cohort.of(weights)
    whole = build("fedgh")(updates, updates.gram(), cohort, {})
    layered = build("fedgh", scope="layer")(updates, updates.gram(), cohort, {})
    torch.testing.assert_close(layered.update, whole.update)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_rescaling_to_the_length_of_the_mean(scope):
    rows, weights = random_case(4, 7, 9)
    updates, cohort = matrix(rows), cohort_of(7, weights=weights)
    update = build("fedgh", scope=scope, rescale="fedavg_norm")(updates, updates.gram(), cohort, {}).update
    torch.testing.assert_close(update.norm(), (weights @ rows).norm(), rtol=1e-5, atol=0)


def test_a_tiny_opposing_update_leaves_a_finite_aggregate():
    """Its coefficient, 5e39, is no float32 number; the aggregate is."""
    rows = torch.tensor([[1.0, 0.0], [-1e-40, 1e-40]])
    update = aggregate(build("fedgh"), rows, torch.tensor([0.5, 0.5], dtype=torch.float64)).update
    assert update.dtype == torch.float32
    assert update.tolist() == pytest.approx([0.25, 0.25], rel=1e-4)  # 1e-40 has fewer digits in float32


@pytest.mark.parametrize("tiny", [1e-22, 1e-30])
def test_a_tiny_layer_is_harmonized_as_exactly_as_a_large_one(tiny):
    rows, weights = random_case(3, 7, 9)
    rows = rows.float()
    rows[:, 3:6] *= tiny
    cohort, updates = cohort_of(7, weights=weights), matrix(rows)
    update = build("fedgh", scope="layer")(updates, updates.gram(), cohort, {}).update
    _, expected = literal_fedgh(rows[:, 3:6], weights, random_orders(cohort).tolist())
    torch.testing.assert_close(update[3:6].double() / tiny, expected / tiny, rtol=1e-5, atol=1e-6)
