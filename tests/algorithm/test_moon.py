"""MOON: the contrast by hand, whose model is the previous one, and what may not move."""

import math

import pytest
import torch

from fedgh.algorithm.moon import Moon
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import Trained
from fedgh.federation.round import first_state, run_round
from tests.algorithm.stand_in import NOTHING, StandIn

ZERO = torch.zeros(1, dtype=torch.int64)
LOGITS = torch.zeros(1, 2)


def contrast(make, z, received, previous, mu=1.0, temperature=0.5):
    """Loss at features that are the parameters themselves, less the cross-entropy log 2 of equal logits."""
    algorithm = make.algorithm(Moon, mu=mu, temperature=temperature)
    forward = StandIn(lambda params, inputs: (LOGITS, params[None]))
    state = {"previous": torch.tensor(previous), "previous_buffers": NOTHING, "buffers": NOTHING}
    params = torch.tensor(z, requires_grad=True)
    loss = algorithm.local_loss((LOGITS, ZERO), forward, params, torch.tensor(received), state)
    loss.backward()
    return loss.item() - math.log(2), params.grad


def test_the_contrast_by_hand(make):
    """z = z_g = (1, 0), z_p = (0, 1), T = 1/2: log(1 + e^-2) = 0.126928; mu scales it."""
    assert contrast(make, [1.0, 0.0], [1.0, 0.0], [0.0, 1.0])[0] == pytest.approx(0.126928, abs=1e-6)
    assert contrast(make, [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], mu=5.0)[0] == pytest.approx(0.634640, abs=1e-5)
    assert contrast(make, [1.0, 0.0], [0.0, 1.0], [1.0, 0.0])[0] == pytest.approx(math.log(1 + math.e**2))
    assert contrast(make, [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], temperature=1.0)[0] == pytest.approx(
        math.log(1 + 1 / math.e)
    )


def test_it_pulls_to_the_received_and_away_from_the_previous_model(make):
    """z = (1, 1)/sqrt 2 halfway: the descent direction points to z_g and away from z_p; equal ones cancel."""
    half = [0.5**0.5, 0.5**0.5]
    loss, gradient = contrast(make, half, [1.0, 0.0], [0.0, 1.0])
    assert loss == pytest.approx(math.log(2))
    assert gradient[0] < 0 < gradient[1]
    loss, gradient = contrast(make, half, [1.0, 0.0], [1.0, 0.0])
    assert loss == pytest.approx(math.log(2))
    assert torch.equal(gradient, torch.zeros(2))


def test_no_overflow_at_a_small_temperature(make):
    loss, gradient = contrast(make, [1.0, 0.1], [-1.0, 0.0], [1.0, 0.0], temperature=0.001)
    assert loss == pytest.approx(1990, rel=0.01)
    assert gradient.isfinite().all()


def test_rows_that_fill_up_a_batch_do_not_count(make):
    algorithm = make.algorithm(Moon, mu=1.0, temperature=0.5)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    forward = StandIn(lambda params, inputs: (inputs, inputs * params))
    state = {"previous": torch.tensor([-1.0, 1.0]), "previous_buffers": NOTHING, "buffers": NOTHING}
    one = torch.ones(2)
    alone = algorithm.local_loss((rows[:1], ZERO), forward, one, one, state)
    padded = algorithm.local_loss((rows, torch.tensor([0, -100])), forward, one, one, state)
    assert alone.item() == padded.item()


def test_the_previous_model_is_what_this_client_sent_last(make):
    """Also when others took part since; its running statistics come along, and references do not move any."""
    algorithm = make.algorithm(Moon, mu=1.0, temperature=0.5, batch_size=4)
    federation = make.federation(module=make.normed(), algorithm=algorithm, num_clients=3)
    server, executor = first_state(federation), federation.executor
    first = algorithm.prepare(next(executor.views([0], server))).state
    assert first["previous"] is server.params  # at first the received model
    result = executor([0], server)
    kept = result.client_states[0]
    torch.testing.assert_close(kept["previous"], server.params + result.updates.rows[0])
    assert torch.equal(kept["previous_buffers"], result.buffers[0])
    assert float((kept["previous_buffers"] - server.buffers).abs().max()) > 0.1
    view = executor.view(0, 2, {}, kept, server.models)
    start = algorithm.prepare(view)
    assert start.state["previous"] is kept["previous"]
    assert start.state["buffers"] is server.buffers
    outcome = run_round(federation, server)
    assert outcome.server.clients.keys() == {0, 1, 2}
    assert not torch.equal(outcome.server.clients[0]["previous"], outcome.server.clients[1]["previous"])


def test_what_is_kept_is_no_alias_of_the_model_that_goes_on(make):
    algorithm, params = make.algorithm(Moon, mu=1.0, temperature=0.5), torch.zeros(3)
    report = algorithm.report(None, Trained(params, params[:2], params, {}, 1))
    params.add_(1)
    assert float(report.state["previous"].sum() + report.state["previous_buffers"].sum()) == 0


@pytest.mark.parametrize(("settings", "key"), [({"mu": -1.0}, "mu"), ({"temperature": 0.0}, "temperature")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        make.algorithm(Moon, **{"mu": 1.0, "temperature": 0.5, **settings})
