"""Every server optimizer against numbers worked by hand, and the laws they share."""

import math

import pytest
import torch

from fedgh.core.errors import CheckpointError, ConfigurationError
from fedgh.core.updates import Block
from fedgh.server_optimizer.adagrad import Adagrad
from fedgh.server_optimizer.adam import Adam
from fedgh.server_optimizer.lamb import Lamb
from fedgh.server_optimizer.momentum import Momentum
from fedgh.server_optimizer.sgd import SGD
from fedgh.server_optimizer.yogi import Yogi

ALL = {
    "sgd": SGD(lr=0.5),
    "heavy_ball": Momentum(lr=0.5, beta=0.9, variant="heavy_ball"),
    "ema": Momentum(lr=0.5, beta=0.9, variant="ema"),
    "nesterov": Momentum(lr=0.5, beta=0.9, variant="nesterov"),
    "adam": Adam(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3),
    "yogi": Yogi(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3),
    "adagrad": Adagrad(lr=0.1, beta1=0.0, tau=1e-3),
    "lamb": Lamb(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3, weight_decay=0.01),
}


def run(optimizer, updates, params=0.0):
    params, state = torch.tensor([params], dtype=torch.float64), {}
    for update in updates:
        params, state = optimizer.step(params, torch.tensor([update], dtype=torch.float64), state)
    return params.item()


@pytest.mark.parametrize(
    ("optimizer", "moved"),
    [
        (SGD(1.0), 50),
        (Momentum(1.0, 0.9, "heavy_ball"), 410),
        (Momentum(1.0, 0.9, "ema"), 41),
        (Momentum(1.0, 0.9, "nesterov"), 419),
    ],
)
def test_fifty_constant_updates(optimizer, moved):
    assert round(run(optimizer, [1.0] * 50)) == moved


def test_sgd_with_rate_one_is_exactly_the_sum():
    generator = torch.Generator().manual_seed(0)
    params, update = torch.randn(1000, generator=generator), 1e-3 * torch.randn(1000, generator=generator)
    assert torch.equal(SGD(1.0).step(params, update, {})[0], params + update)
    assert run(SGD(0.5), [4.0, 2.0], params=1.0) == 4.0


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("heavy_ball", 10 + 0.5 * (2 + (0.8 * 2 + 3))),
        ("ema", 10 + 0.5 * (0.4 + (0.8 * 0.4 + 0.2 * 3))),
        ("nesterov", 10 + 0.5 * ((2 + 0.8 * 2) + (3 + 0.8 * (0.8 * 2 + 3)))),
    ],
)
def test_momentum_over_two_rounds(variant, expected):
    assert run(Momentum(lr=0.5, beta=0.8, variant=variant), [2.0, 3.0], params=10.0) == pytest.approx(expected)


# Three rounds with D = 2, -1, 1 and lr = beta1 = tau = 0.5, beta2 = 0.75. By hand: m = 1, 0, 0.5; v starts at 0.25 and
# takes D^2 = 4, 1, 1.
SECOND_MOMENTS = {
    Adam: [0.75 * 0.25 + 1, 0.75 * 1.1875 + 0.25, 0.75 * 1.140625 + 0.25],
    Yogi: [0.25 + 1, 1.25 - 0.25, 1.0],  # 0.25 < 4 grows, 1.25 > 1 shrinks, 1 = 1 stays
    Adagrad: [4.25, 5.25, 6.25],
}


@pytest.mark.parametrize("kind", SECOND_MOMENTS)
def test_adaptive_steps_over_three_rounds(kind):
    decays = {} if kind is Adagrad else {"beta2": 0.75}
    moments = SECOND_MOMENTS[kind]
    expected = 1 + 0.5 * (1 / (math.sqrt(moments[0]) + 0.5) + 0 + 0.5 / (math.sqrt(moments[2]) + 0.5))
    assert run(kind(lr=0.5, beta1=0.5, tau=0.5, **decays), [2.0, -1.0, 1.0], params=1.0) == pytest.approx(expected)


LAYERS = (Block("a", 0, 2, torch.Size([2])), Block("b", 2, 3, torch.Size([1])), Block("c", 3, 4, torch.Size([1])))


def test_two_steps_of_lamb_by_hand():
    """Layers (3, 4), 0 and 2 with lr = 0.1, beta1 = beta2 = 0, tau = 1, no decay: directions D / (|D| + 1).

    D = (1, -1), 1, -3: directions (1/2, -1/2), of length 1/sqrt 2; 1/2; -3/4. Trust 5 sqrt 2, 1 (a layer
    of zeros), 8/3. Then D = 0: nothing moves, though decay would.
    """
    optimizer = Lamb(lr=0.1, beta1=0.0, beta2=0.0, tau=1.0, weight_decay=0.0).on(LAYERS)
    params, update = torch.tensor([3.0, 4.0, 0.0, 2.0]).double(), torch.tensor([1.0, -1.0, 1.0, -3.0]).double()
    after, state = optimizer.step(params, update, {})
    step = 0.1 * 5 * math.sqrt(2) / 2
    assert after.tolist() == pytest.approx([3 + step, 4 - step, 0.05, 2 - 0.1 * 8 / 3 * 3 / 4])
    assert optimizer.step(after, 0 * update, state)[0].tolist() == after.tolist()


def test_lamb_decays_before_it_trusts():
    """w = 2, D = 0 then: direction -0.5 * 2 = -1, trust 2, so 2 - 0.1 * 2."""
    optimizer = Lamb(lr=0.1, beta1=0.0, beta2=0.0, tau=1.0, weight_decay=0.5)
    assert optimizer.step(torch.tensor([2.0]), torch.zeros(1), {})[0].item() == pytest.approx(1.8)


def test_lamb_without_layers_has_one():
    params, update = torch.tensor([3.0, 4.0]), torch.tensor([1.0, -1.0])
    optimizer = Lamb(lr=0.1, beta1=0.5, beta2=0.5, tau=0.1, weight_decay=0.1)
    whole = (Block("all", 0, 2, torch.Size([2])),)
    assert torch.equal(optimizer.step(params, update, {})[0], optimizer.on(whole).step(params, update, {})[0])


def test_a_federation_tells_lamb_its_layers(make):
    """Every layer with something in it moves by lr times its length."""
    federation = make.federation(server_optimizer=ALL["lamb"])
    before = federation.model.params.detach().clone()
    after, _ = federation.server_optimizer_at(0).step(before, torch.rand_like(before), {})
    for block in federation.model.blocks:
        moved, was = ((t[block.start : block.stop]).norm() for t in (after - before, before))
        assert float(moved / was) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_as_they_were(name):
    params, update = torch.arange(4.0), torch.tensor([1.0, -2.0, 0.0, 1e6])
    _, state = ALL[name].step(params, update, {})
    kept = {key: value.clone() for key, value in state.items()}
    new, _ = ALL[name].step(params, update, state)
    assert torch.equal(params, torch.arange(4.0))
    assert torch.equal(update, torch.tensor([1.0, -2.0, 0.0, 1e6]))
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    assert new.dtype == torch.float32
    assert torch.isfinite(new).all()


@pytest.mark.parametrize("name", ALL)
def test_stop_and_resume_equals_straight_through(name, tmp_path):
    generator = torch.Generator().manual_seed(1)
    updates = torch.randn(6, 5, generator=generator)
    params, state = torch.zeros(5), {}
    for update in updates[:3]:
        params, state = ALL[name].step(params, update, state)
    torch.save((params, state), tmp_path / "state.pt")
    resumed, resumed_state = torch.load(tmp_path / "state.pt", weights_only=True)
    for update in updates[3:]:
        params, state = ALL[name].step(params, update, state)
        resumed, resumed_state = ALL[name].step(resumed, update, resumed_state)
    assert torch.equal(params, resumed)


@pytest.mark.parametrize("name", ALL)
def test_every_step_moves_with_the_update(name):
    new, _ = ALL[name].step(torch.zeros(2), torch.tensor([3.0, -3.0]), {})
    assert new[0] > 0 > new[1]


@pytest.mark.parametrize("name", [name for name in ALL if name != "sgd"])
def test_the_state_of_another_model_is_refused(name):
    _, state = ALL[name].step(torch.zeros(3), torch.ones(3), {})
    with pytest.raises(CheckpointError, match="holds 3 numbers, the model has 4; the checkpoint belongs to another"):
        ALL[name].step(torch.zeros(4), torch.ones(4), state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGD(lr=0.0), "server_optimizer.lr must be positive, got 0.0"),
        (lambda: Momentum(lr=-1.0, beta=0.9, variant="ema"), "server_optimizer.lr must be positive, got -1.0"),
        (
            lambda: Momentum(lr=1.0, beta=1.0, variant="ema"),
            "server_optimizer.beta must be at least 0 and below 1, got 1",
        ),
        (
            lambda: Momentum(lr=1.0, beta=0.9, variant="polyak"),
            "server_optimizer.variant must be one of heavy_ball, ema, nesterov, got polyak; try heavy_ball",
        ),
        (lambda: Adam(lr=0.1, beta1=-0.1, beta2=0.9, tau=0.1), "server_optimizer.beta1 must be at least 0 .* got -0.1"),
        (lambda: Yogi(lr=0.1, beta1=0.9, beta2=1.5, tau=0.1), "server_optimizer.beta2 must be at least 0 .* got 1.5"),
        (
            lambda: Lamb(lr=0.1, beta1=0.9, beta2=0.9, tau=0.1, weight_decay=-1.0),
            "server_optimizer.weight_decay must be 0 or more, got -1.0; try 0.0",
        ),
        (lambda: Adagrad(lr=0.1, beta1=0.0, tau=0.0), "server_optimizer.tau must be positive, got 0.0; try 0.001"),
    ],
)
def test_settings_are_checked(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()
