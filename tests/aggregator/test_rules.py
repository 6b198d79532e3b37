"""Numbers worked by hand, one or two a rule, and what every rule refuses."""

import math

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from scipy.optimize import lsq_linear

from fedgh.aggregator.qp import nearest_to_zero_in_box
from fedgh.core.errors import ConfigurationError

from .literal import literal_fedgh
from .rules import build, cohort_of, matrix, random_rows, relative_error, run, unscaled


def rows_of(*rows):
    """Plane vectors in the first layer of the test matrix, zero elsewhere."""
    return torch.cat([torch.tensor(rows, dtype=torch.float64), torch.zeros(len(rows), 5)], dim=1)


def even(num_clients):
    return cohort_of(num_clients, weights=torch.full((num_clients,), 1 / num_clients, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("mgda", [[1, 0], [0, 2]], [0.8, 0.4]),  # the foot of the perpendicular from 0 onto the segment
        ("fedmgda_plus", [[3, 0], [0, 2]], [0.5, 0.5]),  # unit updates, already at equal weights
        ("imtl_g", [[1, 0], [0, 2]], [2 / 3, 2 / 3]),  # w = (1, 1/2) / 1.5: projections 2/3 and 2/3
        ("nash_mtl", [[2, 0], [0, 5]], [1, 1]),  # a = 1 / n: length sqrt(2), whatever the norms
        ("fairgrad", [[8, 0], [0, 1]], [0.5, 1]),  # n^2 a = a^(-1/2): n a = n^(-1/3)
        ("aligned_mtl", [[4, 0], [0, 2]], [1, 1]),  # both get the shorter length, 2, then the mean
        ("config_direction", [[1, 0], [0, 3]], [2, 2]),  # along (1, 1), length (1 + 3) / sqrt(2)
        ("upgrad", [[1, 0], [-1, 1]], [0.25, 0.75]),  # h = (1/2, 1/2) and (0, 1)
        ("dual_proj", [[2, 0], [-1, 0.5]], [0.2, 0.4]),  # (1/2, 1/4) + 0.3 (-1, 1/2): 3/8 over the squared norm 5/4
        ("pcgrad", [[1, 0], [-1, 1]], [0.25, 0.75]),
        ("median", [[1, 0], [3, 5], [2, -7]], [2, 0]),
        ("krum", [[0, 0], [1, 0], [0, 1.5], [9, 9], [0.5, 0]], [0.5, 0]),
    ],
)
def test_by_hand(name, rows, expected):
    update = run(unscaled(name), rows_of(*rows), even(len(rows))).update[:2]
    torch.testing.assert_close(update, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_pcgrad_is_fedgh_to_the_bit():
    rows, cohort = random_rows(1, 6), cohort_of(6)
    assert torch.equal(run(build("pcgrad"), rows, cohort).update, run(build("fedgh"), rows, cohort).update)


def test_gradvac_reaches_its_target():
    rows, ids = rows_of([1, 0], [0, 1]), (4, 7)
    targets = torch.tensor([[0, 0.6], [0.6, 0]], dtype=torch.float64)
    state = {"client_ids": torch.tensor(ids), "targets": targets}
    result = run(build("gradvac", beta=0.5), rows, cohort_of(2, ids=ids), state)
    torch.testing.assert_close(result.mixing[0] @ rows[:, :2], torch.tensor([1, 0.75], dtype=torch.float64))
    torch.testing.assert_close(result.state["targets"], targets / 2)  # the cosine met was 0


def test_a_zero_update_leaves_its_pairs_targets_to_gradvac():
    rows, ids = rows_of([1, 0], [0, 0], [0, 1]), (2, 4, 7)
    targets = torch.full((3, 3), 0.6, dtype=torch.float64).fill_diagonal_(0)
    result = run(
        build("gradvac", beta=0.5), rows, cohort_of(3, ids=ids), {"client_ids": torch.tensor(ids), "targets": targets}
    )
    after = result.state["targets"]
    for k, j in ((0, 1), (1, 0), (1, 2), (2, 1)):
        assert after[k, j] == 0.6
    for k, j in ((0, 2), (2, 0)):
        assert float(after[k, j]) == pytest.approx(0.3)
    assert result.mixing[1].tolist() == [0, 1, 0]


def test_gradvac_with_beta_zero_is_pcgrad():
    rows, state = random_rows(3, 6), {}
    for round_index in range(3):
        cohort = cohort_of(6, round_index=round_index)
        result = run(unscaled("gradvac", beta=0.0), rows, cohort, state)
        assert relative_error(result.update, run(build("pcgrad"), rows, cohort).update, rows) < 1e-12
        state = result.state


def test_cagrad_is_the_mean_at_zero_and_stays_on_its_ball():
    rows, cohort = random_rows(3, 6), cohort_of(6)
    mean = cohort.weights @ rows
    assert torch.equal(run(unscaled("cagrad", c=0.0), rows, cohort).update, run(build("mean"), rows, cohort).update)
    for c in (0.1, 0.4, 0.9):
        distance = (run(unscaled("cagrad", c=c), rows, cohort).update - mean).norm()
        assert float(distance / mean.norm()) == pytest.approx(c, rel=1e-9)


def test_nash_and_fairgrad_solve_their_equations():
    rows, cohort = random_rows(13, 6, common=0.5), cohort_of(6)
    gram = rows @ rows.T
    a = run(unscaled("nash_mtl"), rows, cohort).coefficients
    torch.testing.assert_close(gram @ a * a, torch.ones(6, dtype=torch.float64), rtol=1e-11, atol=0)
    for alpha in (0.3, 1.0, 2.0, 8.0):
        a = run(unscaled("fairgrad", alpha=alpha), rows, cohort).coefficients
        torch.testing.assert_close(gram @ a, a ** (-1 / alpha), rtol=1e-9, atol=0)


def test_fedmgda_plus_between_the_mean_of_unit_updates_and_free():
    rows, cohort = random_rows(3, 6, dim=7), cohort_of(6)
    units = rows / rows.norm(dim=1, keepdim=True)
    assert (
        relative_error(run(unscaled("fedmgda_plus", epsilon=0.0), rows, cohort).update, cohort.weights @ units, units)
        < 1e-12
    )
    free = run(unscaled("fedmgda_plus", epsilon=1.0), rows, cohort).update
    assert relative_error(free, run(unscaled("mgda"), units, cohort).update, units) < 1e-10


def test_the_box_solver_ends_at_an_optimum_with_many_clients():
    rows = torch.nn.functional.normalize(random_rows(0, 60, dim=400) - 0.02, dim=1)
    center = torch.full((60,), 1 / 60, dtype=torch.float64)
    low, high = (center - 0.01).clamp_min(0), center + 0.01
    x = nearest_to_zero_in_box(rows, low, high, center)
    gradient = rows @ (x @ rows)
    assert float(x.sum()) == pytest.approx(1, abs=1e-12)
    assert bool(((x >= low) & (x <= high)).all())
    assert float(gradient[x > low].max() - gradient[x < high].min()) < 1e-12


def random_boxes():
    """Few and many clients in few and many dimensions; twins, opposites and zeros; tight and wide boxes."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        count, dim = (2, 40, 5, 9, 17)[seed % 5], (1, 2, 4, 20)[seed % 4]
        rows = torch.randn(count, dim, generator=generator, dtype=torch.float64) + (0.0, 0.3, -0.2)[seed % 3]
        if seed % 6 == 1:
            rows[count // 2 :] = rows[: count - count // 2].clone()
        if seed % 6 == 2:
            rows[count // 2 :] = -rows[: count - count // 2]
        rows = torch.nn.functional.normalize(rows, dim=1)
        if seed % 6 == 3:
            rows[0] = 0
        center = torch.rand(count, generator=generator, dtype=torch.float64) ** 2
        center /= center.sum()
        width = (0.02, 0.1, 0.005, 1.0)[seed // 2 % 4]
        yield rows, (center - width).clamp_min(0), (center + width).clamp_max(1), center


def test_the_box_solver_finds_what_scipys_finds():
    """SciPy's active sets have no constraint on a sum: a row of weight 1e4 holds it."""
    kept = 0
    for number, (rows, low, high, center) in enumerate(random_boxes()):
        matrix = torch.cat([rows.T, torch.full((1, len(rows)), 1e4, dtype=torch.float64)]).numpy()
        target = np.append(np.zeros(rows.shape[1]), 1e4)
        theirs = torch.from_numpy(lsq_linear(matrix, target, (low.numpy(), high.numpy()), "bvls", tol=1e-15).x)
        ours = nearest_to_zero_in_box(rows, low, high, center)
        assert float(ours.sum()) == pytest.approx(1, abs=1e-12), number
        assert bool(((ours >= low - 1e-15) & (ours <= high + 1e-15)).all()), number
        assert float((ours @ rows).square().sum()) <= float((theirs @ rows).square().sum()) + 1e-7, number
        gradient = rows @ (ours @ rows)
        givers, takers = gradient[ours > low], gradient[ours < high]
        assert float(givers.max() - takers.min()) < 1e-10, number  # nobody gains from trading weight
        kept += torch.equal(ours, center)
    assert kept < 10


def test_fedfv_keeps_the_clients_with_the_largest_losses():
    rows, cohort = random_rows(5, 6), cohort_of(6)
    everybody = run(build("fedfv", alpha=1.0), rows, cohort).update
    assert relative_error(everybody, rows.mean(0), rows) < 1e-12
    order = cohort.losses.argsort().tolist()
    projected = literal_fedgh(rows, torch.ones(6), [[j for j in order if j != k] for k in range(6)])[0].mean(0)
    expected = projected / projected.norm() * rows.mean(0).norm()
    assert relative_error(run(build("fedfv", alpha=0.0), rows, cohort).update, expected, rows) < 1e-12


def test_fedlag_freezes_the_layer_with_most_conflicts_after_the_warm_up():
    rows = torch.ones(4, 9, dtype=torch.float64)
    rows[:2, 3:6] = -1  # layer b: four of six pairs conflict
    rule, state = build("fedlag", num_private=2, warmup_rounds=2), {}
    mean = run(build("mean"), rows, even(4)).update
    for _ in range(2):
        result = run(rule, rows, even(4), state)
        state = result.state
        assert torch.equal(result.update, mean)
    assert state["scores"].tolist() == [0, 8, 0]
    frozen = run(rule, rows + 1, even(4), state).update
    assert frozen[3:6].abs().sum() == 0  # one layer only: the others never conflicted
    assert bool((frozen[:3] == 2).all())
    with pytest.raises(
        ConfigurationError, match=r"aggregator.num_private must leave a layer to share: the model has 3, got 3"
    ):
        run(build("fedlag", num_private=3), rows, even(4))


def test_fedadp_prefers_clients_along_the_mean_and_averages_angles():
    rows = rows_of([1, 0], [1, 0.2], [-0.3, 1])
    weights = run(build("fedadp"), rows, even(3)).coefficients
    assert weights[1] > weights[2]
    assert float(weights.sum()) == pytest.approx(1)
    state = run(build("fedadp"), rows, cohort_of(3, ids=(0, 1, 2))).state
    state = run(build("fedadp"), rows, cohort_of(3, ids=(1, 2, 8)), state).state
    assert state["client_ids"].tolist() == [0, 1, 2, 8]
    assert state["rounds"].tolist() == [1, 2, 2, 1]


def test_the_geometric_median_balances_unit_vectors_and_ignores_an_outlier():
    rows = random_rows(17, 7)
    rows[6] *= 1e6
    cohort = even(7)
    point = run(build("geometric_median"), rows, cohort).update
    pulls = torch.nn.functional.normalize(rows - point, dim=1)
    assert float(pulls.sum(0).norm()) < 1e-6
    assert point.norm() < 10 * rows[:6].norm(dim=1).max()
    assert run(build("mean"), rows, cohort).update.norm() > 1e4 * point.norm()


def test_ida_is_one_step():
    rows, cohort = random_rows(17, 4), even(4)
    inverse = 1 / (rows - rows.mean(0)).norm(dim=1)
    assert relative_error(run(build("ida"), rows, cohort).update, inverse / inverse.sum() @ rows, rows) < 1e-12


@pytest.mark.parametrize(("fraction", "num_clients", "kept"), [(0.0, 5, 5), (0.1, 30, 24), (0.3, 10, 4), (0.49, 5, 1)])
def test_trimming(fraction, num_clients, kept):
    rows = torch.arange(num_clients).double()[:, None].square().expand(-1, 9).contiguous()
    cut = (num_clients - kept) // 2
    expected = rows[cut : num_clients - cut, 0].mean()
    assert float(run(build("trimmed_mean", trim_fraction=fraction), rows, even(num_clients)).update[0]) == float(
        expected
    )


def test_robust_rules_survive_what_moves_the_mean():
    rows = random_rows(3, 10, common=3.0)
    honest = rows[:8].mean(0)
    rows[8:] = -1e9 * rows[:2]
    for name, settings in (("median", {}), ("trimmed_mean", {"trim_fraction": 0.2}), ("krum", {"num_byzantine": 2})):
        assert relative_error(run(build(name, **settings), rows, even(10)).update, honest, rows[:8]) < 2


def test_multi_krum_averages_the_selected():
    rows = rows_of([0, 0], [1, 0], [0, 1.5], [9, 9], [0.5, 0])
    result = run(build("krum", num_selected=3), rows, even(5))
    assert result.coefficients.count_nonzero() == 3
    assert result.coefficients[3] == 0
    with pytest.raises(ConfigurationError, match=r"aggregator.num_selected must be at most 4 \(5 clients a round"):
        run(build("krum", num_selected=5), rows, even(5))


def test_krum_with_near_identical_updates_stays_finite():
    rows = torch.ones(6, 9) + 1e-7 * torch.arange(6)[:, None]
    assert bool(run(build("krum"), rows, even(6)).update.isfinite().all())


def test_clipping_shortens_only_what_is_too_long():
    rows, cohort = rows_of([3, 4], [0, 1]), even(2)
    result = run(build("clipped", max_norm=2.0, unit="absolute"), rows, cohort)
    torch.testing.assert_close(result.update[:2], torch.tensor([0.6, 1.3], dtype=torch.float64))
    torch.testing.assert_close(result.coefficients, torch.tensor([0.2, 0.5], dtype=torch.float64))
    torch.testing.assert_close(result.mixing.diagonal(), torch.tensor([0.4, 1.0], dtype=torch.float64))


def test_clipping_reaches_rules_that_read_rows_and_blocks():
    rows = random_rows(3, 6)
    short = rows * (2.0 / rows.norm(dim=1, keepdim=True)).clamp_max(1)
    for inner in ("median", "fedlag"):
        rule = build("clipped", f"aggregator@aggregator.rule={inner}", max_norm=2.0, unit="absolute")
        assert (
            relative_error(run(rule, rows, cohort_of(6)).update, run(build(inner), short, cohort_of(6)).update, short)
            < 1e-9
        )


@pytest.mark.parametrize("scope", ["model", "layer", "block"])
def test_fedexp_lengthens_by_the_disagreement_of_what_it_is_the_mean_of(scope):
    """Four orthonormal rows: mean square 1, the mean's 1/4, step 2; of FedGH's rows, which agree more, no longer."""
    rows = torch.cat([torch.eye(4), torch.zeros(4, 3)], 1).double()
    for eps, step in ((0.0, 2.0), (0.25, 1.0)):
        update = run(build("fedexp", eps=eps), rows, even(4)).update
        torch.testing.assert_close(update[:4], torch.full((4,), step / 4).double())
    rows, cohort = random_rows(4, 6), cohort_of(6)
    inner = build("fedgh", scope=scope)
    bent = run(inner, rows, cohort)
    mixed = bent.mixing @ rows
    if scope != "model":
        spans = [(block.start, block.stop) for block in matrix(rows).blocks]
        mixed = torch.cat([c @ rows[:, a:b] for c, (a, b) in zip(bent.mixing, spans, strict=True)], 1)
    factor = float(cohort.weights @ mixed.square().sum(1)) / (2 * float(bent.update @ bent.update))
    assert factor > 1.1
    rule = build("fedexp", "aggregator@aggregator.rule=fedgh", f"aggregator.rule.scope={scope}", eps=0.0)
    torch.testing.assert_close(run(rule, rows, cohort).update, factor * bent.update)


def test_fedexp_is_not_fooled_by_weights_that_do_not_sum_to_one():
    """FedNova's may: twice the weights are twice the updates."""
    rows, cohort = random_rows(5, 6), cohort_of(6)
    once = run(build("fedexp", eps=0.0), rows, cohort).update
    twice = run(build("fedexp", eps=0.0), rows, cohort_of(6, weights=2 * cohort.weights)).update
    assert float(once.norm()) > 1.2 * float((cohort.weights @ rows).norm())
    torch.testing.assert_close(twice, 2 * once)


def test_fedexp_goes_with_a_rule_without_coefficients():
    """The median of these rows is (2, 0), their mean square (1 + 34 + 53) / 3; of orthonormal ones it is zero."""
    rows, inner = rows_of([1, 0], [3, 5], [2, -7]), "aggregator@aggregator.rule=median"
    factor = 88 / 3 / 2 / 4
    torch.testing.assert_close(
        run(build("fedexp", inner, eps=0.0), rows, even(3)).update[:2], factor * torch.tensor([2, 0]).double()
    )
    nothing = run(build("fedexp", inner), torch.cat([torch.eye(4), torch.zeros(4, 3)], 1).double(), even(4)).update
    assert not nothing.any()


def test_matched_has_the_means_direction_and_the_other_rules_step():
    rows, cohort = rows_of([1, 0], [-1, 1]), even(2)  # the mean is (0, 1/2), FedGH's update (1/4, 3/4)
    half = torch.tensor([0, 0.5], dtype=torch.float64)
    for by, factor in (("gain", 1.75), ("norm", math.sqrt(10) / 2)):  # c = (1, 3/4); lengths sqrt(10)/4 and 1/2
        result = run(build("matched", by=by), rows, cohort)
        torch.testing.assert_close(result.update[:2], factor * half)
        torch.testing.assert_close(result.coefficients, factor * cohort.weights)


@pytest.mark.parametrize("scope", ["model", "layer", "block"])
def test_matched_by_norm_is_as_long_as_the_other_rule(scope):
    rows, cohort = random_rows(4, 6), cohort_of(6)
    other = run(build("fedgh", scope=scope), rows, cohort).update
    rule = build("matched", f"aggregator.rule.scope={scope}", by="norm")
    assert float(run(rule, rows, cohort).update.norm()) == pytest.approx(float(other.norm()), rel=1e-12)


def test_matched_by_norm_does_not_blow_up_a_mean_of_nothing():
    rows = rows_of([1, 0], [-1, 1e-9])
    assert float(run(build("matched", by="norm"), rows, even(2)).update.norm()) < 1e-8


def test_matched_needs_coefficients():
    rule = build("matched", "aggregator@aggregator.rule=median")
    with pytest.raises(ConfigurationError, match=r"Median works coordinate by coordinate and has no gain to match"):
        run(rule, random_rows(1, 4), cohort_of(4))


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("matched", "by", "length", "one of gain, norm, got 'length'"),
        ("fedgh", "order", "size", "one of random, id, cosine, loss, simultaneous, got 'size'"),
        ("fedgh", "scope", "tensor", "one of model, layer, block, got 'tensor'"),
        ("fedgh", "sweeps", 0, "at least 1, got 0"),
        ("fedgh", "min_norm_ratio", -0.1, "0 (off) or positive, got -0.1"),
        ("gradvac", "beta", 1.5, "in [0, 1], got 1.5"),
        ("cagrad", "c", -1.0, "0 or positive, got -1.0"),
        ("fedmgda_plus", "epsilon", -1.0, "0 or positive, got -1.0"),
        ("fairgrad", "alpha", 0.0, "positive, got 0.0"),
        ("fairgrad", "alpha", math.nan, "positive, got nan"),
        ("fedfv", "alpha", 2.0, "in [0, 1], got 2.0"),
        ("fedadp", "alpha", 0.0, "positive, got 0.0"),
        ("fedlag", "num_private", 0, "at least 1, got 0"),
        ("fedlag", "warmup_rounds", 0, "at least 1, got 0"),
        ("fedlag", "threshold", 2.0, "in [-1, 1], got 2.0"),
        ("fedlag", "scope", "model", "one of layer, block, got 'model'"),
        ("geometric_median", "steps", 0, "at least 1, got 0"),
        ("ida", "smoothing", 0.0, "positive, got 0.0"),
        ("trimmed_mean", "trim_fraction", 0.5, "in [0, 0.5), got 0.5"),
        ("trimmed_mean", "trim_fraction", -0.1, "in [0, 0.5), got -0.1"),
        ("krum", "num_byzantine", -1, "0 or positive, got -1"),
        ("krum", "num_selected", 0, "at least 1, got 0"),
        ("clipped", "max_norm", 0.0, "positive, got 0.0"),
        ("fedexp", "eps", -1.0, "0 or more, such as 0.001, got -1.0"),
        ("clipped", "unit", "mean", "one of absolute, median, got 'mean'"),
    ],
)
def test_settings_out_of_range(name, key, value, expected):
    with pytest.raises(InstantiationException) as error:
        build(name, **{key: value})
    assert isinstance(error.value.__cause__, ConfigurationError)
    assert str(error.value.__cause__) == f"aggregator.{key} must be {expected}"


def test_krum_with_too_few_clients_names_ways_out_that_every_sampler_has():
    with pytest.raises(
        ConfigurationError, match=r"at least 5 clients a round, got 1 .*or type aggregator=mean"
    ) as caught:
        run(build("krum"), rows_of([1, 0]), even(1))
    assert "clients_per_round" not in str(caught.value)
