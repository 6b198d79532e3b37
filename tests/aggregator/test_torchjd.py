"""TorchJD as an independent oracle, in the extras ``conflict`` and ``dev``.

Its regularization and its zero threshold are switched off; with the defaults it differs by percents on small updates.
"""

from dataclasses import replace

import pytest
import torch

from .rules import build, cohort_of, random_rows, relative_error, run, unscaled

aggregation = pytest.importorskip("torchjd.aggregation")


def projector():
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")
    from torchjd.linalg import QuadprogProjector

    return QuadprogProjector(norm_eps=0.0, reg_eps=1e-10)


ORACLES = {
    "upgrad": (lambda m, p: aggregation.UPGradWeighting(p, projector=projector())(m), 1e-6),
    "dual_proj": (lambda m, p: aggregation.DualProjWeighting(p, projector=projector())(m), 1e-6),
    "imtl_g": (lambda m, p: aggregation.IMTLGWeighting()(m), 1e-11),
    "aligned_mtl": (lambda m, p: aggregation.AlignedMTLWeighting(p)(m), 1e-10),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_torchjd(name, seed):
    num_clients = 3 + seed
    rows, cohort = random_rows(seed, num_clients, dim=30, common=(0, 0.5, -1)[seed % 3]), cohort_of(num_clients, seed)
    gram = rows @ rows.T
    weigh, tolerance = ORACLES[name]
    expected = weigh(gram / gram.trace(), cohort.weights) @ rows
    assert relative_error(run(unscaled(name), rows, cohort).update, expected, rows) < tolerance


@pytest.mark.parametrize("seed", range(8))
def test_config_agrees_with_torchjd_on_the_matrix(seed):
    rows, cohort = random_rows(seed, 3 + seed, dim=30), cohort_of(3 + seed, seed)
    expected = aggregation.ConFIG(cohort.weights)(rows)
    assert relative_error(run(unscaled("config_direction"), rows, cohort).update, expected, rows) < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_mgda_is_never_longer_than_frank_wolfe(seed):
    rows, cohort = random_rows(seed, 6), cohort_of(6)
    theirs = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=500)(rows @ rows.T) @ rows
    ours = run(unscaled("mgda"), rows, cohort).update
    assert float(ours.norm()) <= float(theirs.norm()) * (1 + 1e-12)
    assert torch.isfinite(ours).all()


def test_modo_agrees_with_torchjd_over_rounds():
    theirs, state = aggregation.MoDoWeighting(gamma=0.1, rho=0.1), {}
    for seed in range(5):
        rows, cohort = random_rows(seed, 5), cohort_of(5, seed)
        gram = rows @ rows.T
        result = run(unscaled("modo"), rows, cohort, state)
        state = result.state
        torch.testing.assert_close(
            result.coefficients, theirs(gram / gram.diagonal().mean()).double(), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("seed", range(4))
def test_sdmgrad_is_where_torchjds_steps_go_when_they_are_short(seed):
    rows, cohort = random_rows(seed, 5, common=0.3), cohort_of(5, seed)
    rows = rows / rows.norm(dim=1, keepdim=True)
    settings = {"lr": 0.5, "momentum": 0.0, "n_iter": 200, "lambda_": 0.3}
    theirs = aggregation.SDMGradWeighting(**settings, pref_vector=cohort.weights)(rows @ rows.T) @ rows
    assert relative_error(run(unscaled("sdmgrad"), rows, cohort).update, theirs, rows) < 1e-6


def test_cr_mogm_agrees_with_torchjd_over_rounds():
    theirs, state = aggregation.CRMOGMWeighting(aggregation.IMTLGWeighting(), alpha=0.9), {}
    ours = build("cr_mogm", "aggregator@aggregator.rule=imtl_g", "aggregator.rule.rescale=none")
    for seed in range(3):
        rows, cohort = random_rows(seed, 4), cohort_of(4, seed)
        result = run(ours, rows, cohort, state)
        state = result.state
        assert relative_error(result.update, theirs(rows @ rows.T) @ rows, rows) < 1e-10


def weights_of_losses(name, losses, state, **settings):
    rows = torch.eye(len(losses[0]), 12, dtype=torch.float64)
    for values in losses:
        cohort = replace(cohort_of(len(values)), losses=values)
        result = run(build(name, **settings), rows, cohort, state)
        state = result.state
        yield result.coefficients


def test_weights_from_losses_agree_with_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    losses = [torch.rand(5, generator=torch.Generator().manual_seed(k)).double() + 0.1 for k in range(5)]

    def gradient(scalarize, values):
        values = values.clone().requires_grad_()
        return torch.autograd.grad(scalarize(values), values)[0]

    famo, dwa = scalarization.FAMO(5).double(), scalarization.DWA()
    for k, ours in enumerate(weights_of_losses("famo", losses, {})):
        if k:
            famo.update(losses[k])
        torch.testing.assert_close(ours, gradient(famo, losses[k]), rtol=1e-7, atol=1e-9)
    for k, ours in enumerate(weights_of_losses("dwa", losses, {})):
        dwa.reset()
        for values in losses[max(0, k - 1) : k + 1]:
            dwa(values)
            dwa.step()
        torch.testing.assert_close(ours, gradient(dwa, losses[k]) / 5, rtol=0, atol=1e-12)
    for k, ours in enumerate(weights_of_losses("stch", losses, {}, form="plain", mu=0.1)):
        theirs = gradient(scalarization.STCH(0.1, cohort_of(5).weights), losses[k])
        torch.testing.assert_close(ours, theirs / theirs.sum(), rtol=0, atol=1e-12)
