"""pFedMe: theta and w_k by hand, the Moreau envelope's gradient, and whose accuracy is told."""

import pytest
import torch

from fedgh.algorithm.pfedme import PFedMe
from fedgh.core.errors import ConfigurationError
from fedgh.federation.personal import fine_tuned_models, tuning_of
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import local_steps
from tests.algorithm.stand_in import client_of, half_square, state_of


def pfedme(make, **settings):
    return make.algorithm(PFedMe, **{"lam": 1.0, "inner_steps": 1, "personal_lr": 0.1, "mu": 0.0, **settings})


def stepped(make, steps=1, lr=0.5, **settings):
    """F = 1/2 (theta - 1)^2, w = 0: update of w_k and theta."""
    client = client_of(state_of([0.0]), lr=lr)
    target = torch.tensor([1.0], dtype=torch.float64)
    trained, report = local_steps(pfedme(make, **settings), client, half_square, target, steps)
    assert report.state == {}
    return [trained.update.item(), trained.state["theta"].item()]


def test_one_step_by_hand(make):
    """theta = 0.1, w_k = 0 + 0.5 1 0.1."""
    assert stepped(make) == pytest.approx([0.05, 0.1])


def test_the_pull_and_the_decay_count_from_the_second_inner_step_on(make):
    """theta = 0.1, then 0.1 - 0.1 (-0.9 + 2 0.1 + 0.5 0.1) = 0.165; w_k = 0.5 2 0.165."""
    assert stepped(make, inner_steps=2, lam=2.0, mu=0.5) == pytest.approx([0.165, 0.165])


def test_theta_is_warm_and_pulled_to_the_moving_w(make):
    """Second batch: theta = 0.1 - 0.1 (-0.9 + (0.1 - 0.05)) = 0.185; w_k = 0.05 + 0.5 (0.185 - 0.05)."""
    assert stepped(make, steps=2) == pytest.approx([0.1175, 0.185])


def test_solved_to_the_end_it_is_the_gradient_of_the_envelope(make):
    """theta* = (1 + lam w) / (1 + lam): 0.5 at lam = 1; with lam = 3 and w = 0: 0.25, direction -0.75 lr."""
    assert stepped(make, inner_steps=500) == pytest.approx([0.25, 0.5])
    assert stepped(make, inner_steps=500, lam=3.0, lr=0.1) == pytest.approx([0.075, 0.25])


def test_whoever_is_evaluated_makes_its_theta_from_the_current_model(make):
    """By the local work of a round, of which theta is told and not w_k; a client never sampled does likewise."""
    algorithm = pfedme(make, inner_steps=3, batch_size=20, lr=0.5, local_epochs=2)
    federation = make.federation(algorithm=algorithm, fraction=0.34)
    server = run_round(federation, first_state(federation)).server
    executor = federation.executor.playing(tuning_of(algorithm, None), "fine_tune/")
    for k, model in fine_tuned_models(executor, server, [0, 1, 2]):
        inputs, targets = next(federation.executor.examples(k))  # one batch an epoch, whatever its order
        w, theta = server.params.clone(), server.params.clone()
        for _ in range(2):
            for _ in range(3):
                leaf = theta.clone().requires_grad_()
                logits = inputs.flatten(1) @ leaf[:12].view(3, 4).T + leaf[12:]
                (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), leaf)
                theta = theta - 0.1 * (gradient + (theta - w))
            w = w - 0.5 * (w - theta)
        torch.testing.assert_close(model.params, theta, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model.params, w, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"lam": 0.0}, "lam"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"personal_lr": 0.0}, "personal_lr"),
        ({"mu": -1.0}, "mu"),
    ],
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        pfedme(make, **settings)
