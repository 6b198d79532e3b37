"""The rules of 2019 to 2026 that came after: numbers worked by hand, or out of the authors' code, and their edges."""

import math

import pytest
import torch
from hydra.errors import InstantiationException

from fedgh.aggregator.gc_fed import centered
from fedgh.aggregator.projection import orders_by, project_at_once
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix

from . import literal
from .rules import build, cohort_of, random_rows, relative_error, run, unscaled


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def cohort(num_clients, weights=None, losses=None, params=None, ids=None):
    weights = [1 / num_clients] * num_clients if weights is None else weights
    losses = [1.0] * num_clients if losses is None else losses
    ids = tuple(range(num_clients)) if ids is None else ids
    return Cohort(ids, double(weights), double(losses), 0, 0, params)


def combine(rule, rows, who=None, state=None):
    """Call a rule on one block of float64 rows, with their exact Gram matrix."""
    rows = double(rows)
    who = cohort(len(rows)) if who is None else who
    return rule(UpdateMatrix.of(rows), rows @ rows.T, who, state or {})


def close(found, expected, atol=5e-6):
    torch.testing.assert_close(found, double(expected), rtol=0, atol=atol)


# ---- CRAFT ----


@pytest.mark.parametrize(
    ("rows", "weights", "last", "update"),
    [
        ([[2, 0], [0, 1]], [0.75, 0.25], [0, 0], [0.75, 0.25]),  # products with unit updates are the weights
        ([[1, 0], [-1, 1]], [0.5, 0.5], [0, 2], [0.5, 1.20710678]),  # the only point of two lines, whatever r
        ([[1, 0], [-1, 0]], [0.75, 0.25], [3, 4], [0.25, 0.8]),  # least squares along x, r = (0.6, 0.8) across
        ([[3, 0], [0, 0]], [0.5, 0.5], [0, 7], [3, 0]),  # one update alone comes back as it is, r is not asked
        ([[0, 0], [0, 0]], [0.5, 0.5], [0, 7], [0, 0]),
    ],
)
def test_craft_by_hand(rows, weights, last, update):
    result = combine(unscaled("craft"), rows, cohort(2, weights), {"direction": double(last)})
    close(result.update, update)
    close(result.state["direction"], update)


def test_craft_hands_out_coefficients_only_while_it_has_no_memory():
    rule = unscaled("craft")
    first = combine(rule, [[2.0, 0.0], [0.0, 1.0]], cohort(2, [0.75, 0.25]))
    close(first.coefficients[0], [0.375, 0.25])
    assert combine(rule, [[2.0, 0.0], [0.0, 1.0]], state=first.state).coefficients is None


def test_crafts_cutoff_merges_updates_that_nearly_agree():
    rows = [[1, 0], [math.cos(1e-3), math.sin(1e-3)]]
    apart = combine(unscaled("craft", cutoff=1e-5), rows, cohort(2, [0.75, 0.25])).update
    merged = combine(unscaled("craft", cutoff=1e-2), rows, cohort(2, [0.75, 0.25])).update
    assert float(apart.norm()) > 100
    assert float(merged.norm()) == pytest.approx(0.5, abs=1e-3)  # both get the mean of their targets


def test_craft_scales_memory_and_updates_alike():
    rows, who = random_rows(3, 5), cohort_of(5)
    state = run(unscaled("craft"), random_rows(4, 5), who).state
    plain = run(unscaled("craft"), rows, who, state).update
    scaled = run(build("craft", rescale="fedavg_norm"), rows, who, state).update
    mean = who.weights @ rows
    assert float(scaled.norm()) == pytest.approx(float(mean.norm()), rel=1e-9)
    assert float(scaled @ plain / scaled.norm() / plain.norm()) == pytest.approx(1, abs=1e-12)


# ---- ConFREE, and what FedDRM calls by its name ----


def confree_on(rows, projection):
    """Coefficients with everybody meeting the others in their own order."""
    rows = double(rows)
    orders = orders_by(torch.arange(len(rows)).double().expand(len(rows), -1))
    return unscaled("confree", alpha=0.5, projection=projection).coefficients(rows @ rows.T, orders)


@pytest.mark.parametrize(
    ("rows", "projection", "coefficients"),
    [
        ([[3, 0], [-1, 2]], "exact", [0.69206, 1.03809]),  # g0 = (1.2, 1.6)
        ([[3, 0], [-1, 2]], "released", [1.80256, 2.70384]),  # h_0 = u_0 + 3 u_1, as if u_1 had length one
        ([[0.3, 0], [-0.1, 0.2]], "released", [0.46416, 0.69624]),
        ([[5, 1]], "exact", [1.0]),
    ],
)
def test_confree_by_hand(rows, projection, coefficients):
    close(confree_on(rows, projection), coefficients, atol=2e-4)


def test_confree_leaves_opposite_updates_at_zero():
    assert float(combine(build("confree"), [[2, 1], [-2, -1]]).update.norm()) < 1e-12


def test_simultaneous_projections_by_hand():
    rule = unscaled("fedgh", order="simultaneous")
    result = combine(rule, [[2, 0], [-1, 1]])
    close(result.coefficients, [0.75, 1])  # each gives the other: <u_0, u_1> = -2, over 2 and over 4
    close(result.update, [0.5, 1])
    close(combine(rule, [[1, 0], [-1, 0]], cohort(2, [0.75, 0.25])).update, [0, 0])
    over = combine(rule, [[1, 0], [-1, 0.2], [-1, -0.2], [-1, 0.1]])
    close(over.coefficients, [1, 0.490385, 0.490385, 0.497525])
    assert float(over.update[0]) == pytest.approx(-0.478294, abs=1e-5)  # removed three times


def test_simultaneous_projections_per_layer_and_without_short_projectors():
    rows = double([[1, 0], [-1e-3, 0], [0, 1]])
    rule = build("fedgh", order="simultaneous", min_norm_ratio=0.1)
    assert rule.mix(rows @ rows.T, cohort(3))[0].tolist() == [1, 0, 0]
    rows, who = random_rows(2, 5), cohort_of(5)
    by_layer = run(build("fedgh", order="simultaneous", scope="layer"), rows, who)
    part = rows[:, 3:6]
    close(by_layer.update[3:6], (who.weights @ project_at_once(part @ part.T) @ part).tolist(), atol=1e-12)
    with pytest.raises(InstantiationException, match="sweeps must be 1 with order=simultaneous, got 2"):
        build("fedgh", order="simultaneous", sweeps=2)


# ---- FedAWA ----

AWA = [[1, 0], [0, 1], [0.5, 0.5]]


def test_fedawa_by_hand():
    """theta = (3, 4); pi = softmax(0.5, 0.3, 0.2); a fresh Adam moves every logit by 0.001 against its gradient."""
    who = cohort(3, [0.5, 0.3, 0.2], params=double([3, 4]))
    rule = build("fedawa")
    result = combine(rule, AWA, who)
    close(result.coefficients, [0.39069, 0.31987, 0.28943])
    close(result.state["logits"], [0.499, 0.299, 0.201])
    rows, gram = double(AWA), UpdateMatrix.of(double(AWA)).gram_with(double([3, 4]))
    away = rule._away(gram, 2)
    close(away, [0.01005, 0.00531, 0.00015])
    close(rule.gradient(double([0.5, 0.3, 0.2]), rows @ rows.T, away), [0.11395, 0.02492, -0.13886])


def test_fedawa_uses_the_weights_before_its_last_step():
    who = cohort(3, [0.5, 0.3, 0.2], params=double([3, 4]))
    one, two = (combine(build("fedawa", steps=n, lr=0.1), AWA, who) for n in (1, 2))
    close(two.coefficients, one.state["logits"].softmax(0).tolist(), atol=1e-12)
    close(combine(build("fedawa", init="log_share"), AWA, who).coefficients, [0.5, 0.3, 0.2])


def test_fedawa_keeps_logits_by_client():
    rule = build("fedawa", lr=0.5)
    state = combine(rule, AWA, cohort(3, params=double([3, 4]), ids=(2, 5, 9))).state
    later = combine(rule, AWA[:2], cohort(2, params=double([3, 4]), ids=(5, 9)), state)
    close(later.coefficients, state["logits"][1:].softmax(0).tolist(), atol=1e-12)


def test_fedawa_without_the_model_says_so():
    with pytest.raises(ConfigurationError, match="against the global model, and only updates are known"):
        combine(build("fedawa"), AWA)


def test_fedawa_sees_distances_that_float32_loses():
    rows = torch.ones(2, 64)
    rows[1, 0] += 1e-4
    gram = UpdateMatrix.of(rows).gram_with(torch.ones(64))
    squared = gram[0, 0] - 2 * gram[0, 1] + gram[1, 1]
    assert float(squared) == pytest.approx(float((rows[1, 0].double() - 1) ** 2), rel=1e-4)


# ---- GC-Fed ----


def test_gc_fed_by_hand():
    update = torch.tensor([1.0, 2, 3, 0, 0, 6, 5, 7])
    blocks = (Block("w", 0, 6, torch.Size([2, 3])), Block("bias", 6, 8, torch.Size([2])))
    assert centered(update, blocks).tolist() == [-1, 0, 1, -2, -2, 4, 5, 7]  # a bias is left alone
    assert update.tolist() == [1, 2, 3, 0, 0, 6, 5, 7]


def test_gc_fed_follows_its_rule():
    rows, who = random_rows(3, 5), cohort_of(5)
    inner = run(build("fedgh"), rows, who)
    result = run(build("gc_fed", "aggregator@aggregator.rule=fedgh"), rows, who)
    expected = inner.update.clone()
    expected[3:6] -= expected[3:6].mean()
    close(result.update, expected.tolist(), atol=1e-12)
    assert result.coefficients is None


# ---- layer-wise cosine ----

CENTRAL = [[1, 0], [2, 0.2], [3, -0.3], [1, 0.15], [-9, 0]]


@pytest.mark.parametrize(
    ("second", "settings", "update"),
    [
        ([2, 0.2], {}, [2, 0.2]),  # scores 0.00993, 0.00617, 0.02476, 0.01227, 3.98; 2.00998 is the median norm
        ([2, 0.2], {"operator": "medoid"}, [1, 0]),  # 2.02099 against 2.02101
        ([20, 2], {}, [3, 0.3]),  # the same choice, 20.1 long, shortened to 3.01496
        ([20, 2], {"shorten": False}, [20, 2]),
        ([2, 0.2], {"num_selected": 2}, [1.5, 0.1]),
    ],
)
def test_layerwise_cosine_by_hand(second, settings, update):
    rows = [CENTRAL[0], second, *CENTRAL[2:]]
    close(combine(build("layerwise_cosine", **settings), rows).update, update)


def test_layerwise_cosine_takes_different_clients_for_different_tensors_and_nobody_who_did_not_move():
    rows = torch.zeros(5, 12, dtype=torch.float64)
    rows[:, :2] = double(CENTRAL)
    rows[1:, 6:8] = double(CENTRAL[:4])  # client 0 did not move this one; the medoid of the others is client 1
    result = run(build("layerwise_cosine", operator="medoid"), rows, cohort_of(5))
    assert result.coefficients[0].nonzero().tolist() == [[0]]
    assert result.coefficients[3].nonzero().tolist() == [[1]]
    assert result.coefficients[1].tolist() == [0] * 5  # nobody moved the bias


def test_layerwise_cosine_needs_clients_for_krum():
    with pytest.raises(ConfigurationError, match=r"needs at least 4 clients a round, got 3 .*operator=medoid"):
        combine(build("layerwise_cosine"), CENTRAL[:3])
    combine(build("layerwise_cosine", operator="medoid"), CENTRAL[:1])


# ---- coordinate-wise agreement ----

SIGNS = [[1, 2, -1, 0], [3, -2, -1, 0], [2, -1, -1, 3]]


def test_fedgma_by_hand():
    close(combine(build("fedgma"), SIGNS).update, [2, -1 / 9, -1, 1 / 3])  # A = 1, 1/3, 1, 1/3
    close(combine(build("fedgma"), SIGNS, cohort(3, [0.6, 0.2, 0.2])).update, [1.6, 0.12, -1, 0.12])
    close(combine(build("fedgma", threshold=0.0), SIGNS).update, [2, -1 / 3, -1, 1])


def test_sign_agreement_moves_only_what_all_agree_on():
    close(combine(build("sign_agreement"), SIGNS).update, [2, 0, -1, 0])
    rows = torch.rand(7, 5) + 0.1  # a sum of float32 weights below one is still full agreement
    result = build("sign_agreement")(UpdateMatrix.of(rows), rows @ rows.T, cohort(7), {})
    assert bool((result.update > 0).all())


# ---- centered clipping ----

CLIPPED = [[3, 4], [0.6, 0.8], [0, -1]]


def test_centered_clipping_by_hand():
    one = combine(build("centered_clipping", max_norm=1.0, unit="absolute", steps=1), CLIPPED)
    close(one.update, [0.4, 0.2])
    close(one.coefficients, [0.06667, 0.33333, 0.33333])
    three = combine(build("centered_clipping", max_norm=1.0, unit="absolute", steps=3), CLIPPED)
    close(three.update, [0.62748, 0.47343])


def test_centered_clipping_starts_at_the_last_aggregate():
    rule = build("centered_clipping", max_norm=1.0, unit="absolute", steps=1)
    result = combine(rule, [[4, 0], [1, 1]], state={"center": double([1, 0])})
    close(result.update, [1.5, 0.5])  # (1, 0) + ((1, 0) + (0, 1)) / 2
    assert result.coefficients is None
    close(result.state["center"], [1.5, 0.5])


def test_centered_clipping_tells_updates_apart_that_a_float32_gram_matrix_does_not():
    rows = torch.ones(3, 1000)
    rows[2] += 1e-4
    far = build("centered_clipping", max_norm=1.0, unit="median", steps=1)
    center = torch.ones(1000)
    result = far(UpdateMatrix.of(rows), UpdateMatrix.of(rows).gram(), cohort(3), {"center": center})
    # the median distance is 0, and so is every step; were the third distance 0, too, that update would count in full
    torch.testing.assert_close(result.update, center, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["geometric_median", "ida", "krum"])
def test_rules_of_distances_tell_apart_what_a_float32_gram_matrix_does_not(name):
    rows = 1 + 1e-4 * torch.randn(5, 1000, generator=torch.Generator().manual_seed(1))
    rows[4] += 1e-4
    who = cohort_of(5)
    result = build(name)(UpdateMatrix.of(rows), UpdateMatrix.of(rows).gram(), who, {})
    wanted = getattr(literal, name)(rows.double(), who, build(name), {})
    spread = (rows.double() - rows.double().mean(0)).norm(dim=1).mean()
    assert float((result.update - wanted).norm() / spread) < 1e-2  # float32 sums; the mean is 0.1 away


# ---- weights on the simplex ----


def test_modo_by_hand():
    """M = diag(1, 4), mean 2.5: x - 0.1 ((0.2, 0.8) + (0.05, 0.05)), whose sum is short of one by 0.11."""
    result = combine(unscaled("modo"), [[1, 0], [0, 2]])
    close(result.coefficients, [0.53, 0.47])
    close(result.state["shares"], [1.06, 0.94])
    later = combine(unscaled("modo"), [[1, 0], [0, 2]], cohort(2, ids=(1, 7)), result.state)
    x = torch.tensor([0.94, 1.0]).double() / 1.94  # client 7 is new
    y = x - 0.1 * (x * double([0.4, 1.6]) + 0.1 * x)
    close(later.coefficients, (y + (1 - y.sum()) / 2).tolist())


@pytest.mark.parametrize(
    ("gram", "coefficients"),
    [
        ([[1, 0], [0, 4]], [0.8, 0.2]),  # x = (0.89, 0.11): x + 0.15 is (1.04, 0.26)
        ([[1, -1], [-1, 4]], [0.71429, 0.28571]),
        ([[4, 1], [1, 1]], [0.11538, 0.88462]),  # x = (0, 1)
    ],
)
def test_sdmgrad_by_hand(gram, coefficients):
    close(unscaled("sdmgrad").coefficients(double(gram), cohort(2)), coefficients)


def test_sdmgrad_between_mgda_and_the_mean():
    rows, who = random_rows(3, 6), cohort_of(6)
    mgda, mean = run(unscaled("mgda"), rows, who).update, run(build("mean"), rows, who).update
    assert relative_error(run(unscaled("sdmgrad", lam=0.0), rows, who).update, mgda, rows) < 1e-10
    assert relative_error(run(unscaled("sdmgrad", lam=1e9), rows, who).update, mean, rows) < 1e-8


def test_cr_mogm_by_hand():
    rule = build("cr_mogm", "aggregator.rule.rescale=none")
    first = combine(rule, [[1, 0], [0, 2]])
    close(first.coefficients, [0.8, 0.2])
    second = combine(rule, [[2, 0], [0, 2]], state=first.state)
    close(second.coefficients, [0.9 * 0.8 + 0.1 * 0.5, 0.9 * 0.2 + 0.1 * 0.5])
    newcomer = combine(rule, [[2, 0], [0, 2]], cohort(2, ids=(1, 7)), second.state)
    close(newcomer.coefficients, [0.9 * 0.23 + 0.05, 0.5])


def test_cr_mogm_keeps_its_rules_memory_and_refuses_rules_without_coefficients():
    rule = build("cr_mogm", "aggregator@aggregator.rule=gradvac")
    rows, who = random_rows(3, 4), cohort_of(4)
    state = run(rule, rows, who).state
    assert torch.equal(state["rule/targets"], run(build("gradvac"), rows, who).state["targets"])
    with pytest.raises(ConfigurationError, match=r"rule Median does not give one coefficient .*rule=mgda"):
        run(build("cr_mogm", "aggregator@aggregator.rule=median"), rows, who)


# ---- weights from losses ----


def weights_of(rule, losses, state=None, ids=None):
    size = len(losses)
    return combine(rule, torch.eye(size).tolist(), cohort(size, losses=losses, ids=ids), state)


def test_famo_by_hand():
    rule = build("famo")
    first = weights_of(rule, [2, 0.5])
    close(first.coefficients, [0.2, 0.8])
    second = weights_of(rule, [1, 0.4], first.state)  # the first halved its loss, Adam's first step is lr
    close(second.state["logits"], [-0.025, 0.025], atol=1e-7)
    close(second.coefficients, [0.27562, 0.72438])
    third = weights_of(rule, [0.9, 0.2], second.state)
    close(third.state["logits"], [-0.02093, 0.02093])


def test_famo_learns_only_from_who_came_twice_in_a_row():
    rule = build("famo")
    state = weights_of(rule, [2, 0.5, 1], ids=(0, 1, 2)).state
    state = weights_of(rule, [1, 1], state, ids=(1, 4)).state
    assert state["logits"].tolist() == [0, 0, 0, 0]  # alone, a client improves as much as the mean
    state = weights_of(rule, [0.1, 1], state, ids=(0, 4)).state
    assert state["logits"].tolist() == [0, 0, 0, 0]
    state = weights_of(rule, [0.1, 0.5], state, ids=(0, 4)).state
    # client 4 is at its second step: 0.1 / 0.19 of the gradient over the root of 0.001 / 0.001999 of its square
    close(state["logits"], [0.025, 0, 0, -0.025 * 0.1 / 0.19 / math.sqrt(1 / 1.999)], atol=1e-6)


def test_stch_by_hand():
    close(weights_of(build("stch", form="plain", mu=0.1), [2, 0.5]).coefficients, [0.99945, 0.00055])
    rule = build("stch", mu=0.5, warmup_rounds=0)
    first = weights_of(rule, [1, 0.4])
    close(first.coefficients, [0.28571, 0.71429])  # 1 / l
    second = weights_of(rule, [2, 0.5], first.state)  # softmax(2 log 2, 2 log 1.25) = 0.7191; over l: 0.35955, 0.5618
    close(second.coefficients, [0.39024, 0.60976])
    third = weights_of(build("stch", mu=1.0, warmup_rounds=0), [2, 0.5], first.state)
    close(third.coefficients, [0.28571, 0.71429])  # at mu = 1 the ratios never change


def test_stch_warms_up_each_client_by_itself():
    rule, state = build("stch", warmup_rounds=1), {}
    for losses, ids in (([4, 4], (0, 1)), ([2, 3], (0, 1)), ([1, 5], (0, 2))):
        state = weights_of(rule, losses, state, ids).state
    assert state["nadir"].tolist() == [2, 3, 5]


def test_dwa_by_hand():
    rule = build("dwa")
    first = weights_of(rule, [2, 2])
    close(first.coefficients, [0.5, 0.5])
    close(weights_of(rule, [1, 1.6], first.state).coefficients, [0.92514 / 2, 1.07486 / 2])  # r = 0.5, 0.8


# ---- FedLD ----


def test_fedld_by_hand():
    """Directions x, y with eigenvalues 9/2 and 4/2, the first of which is kept (0.8 of 2 is one): 9/13 of 3, halved."""
    close(combine(unscaled("fedld"), [[3, 0], [0, 2]]).update, [9 / 13 * 3 / 2, 0])
    both = combine(unscaled("fedld", share=1.0), [[3, 0], [0, 2]]).update
    close(both, [9 / 13 * 3 / 2, 4 / 13 * 2 / 2])


# ---- what they refuse ----


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("craft", "cutoff", 1.0, "null (the released code's), or at least 0 and below 1, got 1.0"),
        ("craft", "scope", "x", "one of model, layer, block, got 'x'"),
        ("confree", "alpha", -1.0, "0 or positive, got -1.0"),
        ("confree", "projection", "x", "one of exact, released, got 'x'"),
        ("confree", "scope", "x", "one of model, layer, block, got 'x'"),
        ("fedawa", "steps", 0, "at least 1, got 0"),
        ("fedawa", "lr", 0.0, "positive, got 0.0"),
        ("fedawa", "distance", "x", "one of cosine, euclidean, got 'x'"),
        ("fedawa", "init", "x", "one of share, log_share, got 'x'"),
        ("layerwise_cosine", "operator", "x", "one of krum, medoid, got 'x'"),
        ("layerwise_cosine", "num_byzantine", -1, "0 or positive, got -1"),
        ("layerwise_cosine", "num_selected", 0, "at least 1, got 0"),
        ("layerwise_cosine", "scope", "model", "one of layer, block, got 'model'"),
        ("fedgma", "threshold", 1.1, "in [0, 1], got 1.1"),
        ("centered_clipping", "max_norm", 0.0, "positive, got 0.0"),
        ("centered_clipping", "unit", "x", "one of absolute, median, got 'x'"),
        ("centered_clipping", "steps", 0, "at least 1, got 0"),
        ("modo", "gamma", 0.0, "positive, got 0.0"),
        ("modo", "rho", -0.1, "0 or positive, got -0.1"),
        ("sdmgrad", "lam", -0.1, "0 or positive, got -0.1"),
        ("cr_mogm", "alpha", 1.1, "in [0, 1], got 1.1"),
        ("famo", "lr", 0.0, "positive, got 0.0"),
        ("famo", "weight_decay", -0.1, "0 or positive, got -0.1"),
        ("stch", "form", "x", "one of log, plain, got 'x'"),
        ("stch", "mu", 0.0, "positive, got 0.0"),
        ("stch", "warmup_rounds", -1, "0 or more, got -1"),
        ("dwa", "temperature", 0.0, "positive, got 0.0"),
        ("fedld", "share", 0.0, "above 0, at most 1, got 0.0"),
        ("fedld", "scope", "x", "one of model, layer, block, got 'x'"),
    ],
)
def test_settings_out_of_range(name, key, value, expected):
    with pytest.raises(InstantiationException) as error:
        build(name, **{key: value})
    assert isinstance(error.value.__cause__, ConfigurationError)
    assert str(error.value.__cause__) == f"aggregator.{key} must be {expected}"
