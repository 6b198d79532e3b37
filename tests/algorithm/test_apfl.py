"""APFL: v, alpha and w by hand, against autograd, and clients that come late."""

import pytest
import torch

from fedgh.algorithm.apfl import APFL
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from tests.algorithm.drive import begin, local_steps
from tests.algorithm.stand_in import NOTHING, client_of, half_square, state_of


def apfl(make, **settings):
    return make.algorithm(APFL, **{"alpha": 0.5, "adapt": "every_step", "personal_lr": 0.1, **settings})


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def stepped(make, steps=1, **settings):
    """F = 1/2 (x - 3)^2, w = 0, v = 1: what becomes of w, v and alpha."""
    algorithm = apfl(make, **settings)
    server = begin(algorithm, state_of([0.0]), [1])
    client = client_of(server, state={"v": double(1.0), "buffers": NOTHING, "alpha": double(0.5)[0]})
    trained, report = local_steps(algorithm, client, half_square, double(3.0), steps)
    assert report.state.keys() == {"v", "buffers", "alpha"}
    return [trained.update.item(), report.state["v"].item(), report.state["alpha"].item()]


def test_one_step_by_hand(make):
    """m = 0.5, its gradient -2.5: v = 1 + 0.1 0.5 2.5, alpha = 0.5 + 0.1 2.5 1; all at the old w."""
    assert stepped(make) == pytest.approx([0.3, 1.125, 0.75])


def test_a_second_step_begins_where_the_first_ended(make):
    """m = 0.75 1.125 + 0.25 0.3 = 0.91875, gradient -2.08125; v - w = 0.825."""
    w, v, alpha = stepped(make, steps=2)
    assert w == pytest.approx(0.57)
    assert v == pytest.approx(1.125 + 0.1 * 0.75 * 2.08125)
    assert alpha == pytest.approx(0.75 + 0.1 * 2.08125 * 0.825)


def test_alpha_moves_when_it_is_told_to(make):
    assert stepped(make, adapt="never")[2] == 0.5
    assert stepped(make, adapt="first_step")[2] == pytest.approx(0.75)
    assert stepped(make, steps=2, adapt="first_step")[2] == pytest.approx(0.75)
    assert stepped(make, personal_lr=5.0)[2] == 1.0  # clipped


def test_the_directions_are_the_gradients_of_the_mixture(make):
    """By autograd, of any loss: with respect to v it has the factor alpha, to alpha it is along v - w."""
    w, v, alpha, target = double(0.2, -1.0), double(1.0, 0.4), double(0.3)[0], double(0.5, 2.0)
    v, alpha = v.requires_grad_(), alpha.requires_grad_()

    def run(params, target):
        return (params - target).pow(4).sum() + (params[0] * params[1]).sin(), params

    loss, _ = run(alpha * v + (1 - alpha) * w, target)
    of_v, of_alpha = torch.autograd.grad(loss, [v, alpha])
    algorithm = apfl(make)
    state = {"v": v.detach(), "alpha": alpha.detach(), "buffers": NOTHING}
    client = client_of(begin(algorithm, state_of(w.tolist()), [1]), state=state)
    _, report = local_steps(algorithm, client, run, target, 1)
    torch.testing.assert_close(report.state["v"], v.detach() - 0.1 * of_v)
    torch.testing.assert_close(report.state["alpha"], (alpha - 0.1 * of_alpha).clamp(0, 1).detach())


def test_it_is_the_mixture_that_is_evaluated_with_the_current_global_model(make):
    """alpha = 0.25, v = 4, w = 0: 1."""
    algorithm = apfl(make)
    client = client_of(state_of([0.0]), state={"v": double(4.0), "alpha": double(0.25)[0], "buffers": NOTHING})
    assert algorithm.personal(client).params.item() == 1.0


def test_who_has_never_taken_part_mixes_the_initial_model_with_the_current_one(make):
    federation = make.federation(algorithm=apfl(make, alpha=0.25), num_clients=6, fraction=0.5)
    start = first_state(federation)
    server = run_round(federation, start).server
    (absent, *_) = sorted(set(range(6)) - server.clients.keys())
    view = next(federation.executor.views([absent], server))
    expected = 0.25 * start.params + 0.75 * server.params
    torch.testing.assert_close(federation.algorithm.personal(view).params, expected)
    assert not torch.equal(server.params, start.params)


def test_without_a_rate_of_its_own_it_follows_the_local_one(make):
    algorithm = apfl(make, personal_lr=None)
    client = client_of(begin(algorithm, state_of([0.0]), [1]), lr=0.02, message={"v": double(1.0), "buffers": NOTHING})
    assert algorithm.prepare(client).state["lr"].item() == 0.02


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"alpha": 1.5}, "alpha"), ({"adapt": "often"}, "adapt"), ({"personal_lr": 0.0}, "personal_lr")],
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        apfl(make, **settings)
