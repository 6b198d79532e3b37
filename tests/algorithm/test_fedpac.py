"""FedPAC: the mixture of heads by hand and by its conditions, the variance by resampling, what a round leaves."""

import pytest
import torch

from fedgh.algorithm.fedpac import FedPAC, mixing
from fedgh.core.errors import ConfigurationError
from fedgh.federation.round import first_state, run_round
from fedgh.task.base import PADDING
from tests.algorithm.stand_in import StandIn


def fedpac(make, **settings):
    return make.algorithm(FedPAC, **{"lam": 1.0, "head_epochs": 1, "head_lr": None, "body_lr": None, **settings})


def test_two_heads_by_hand():
    """h = (1, 3), v = 0.1: for client 1 P = diag(0.1, 4.1), shares (4.1, 0.1) / 4.2."""
    found = mixing(torch.tensor([[1.0], [3.0]]), torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(found, torch.tensor([[4.1, 0.1], [0.1, 4.1]]).double() / 4.2, rtol=1e-6, atol=1e-7)


def test_equal_clients_share_alike_and_a_client_without_variance_keeps_its_head():
    alike = mixing(torch.ones(2, 1), torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(alike, torch.full((2, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(mixing(torch.tensor([[0.0], [9.0]]), torch.zeros(2)), torch.eye(2, dtype=torch.float64))


def test_shares_are_where_no_direction_on_the_simplex_goes_down():
    """The gradient P a is the same for all that have a share, and nowhere less; small shares are left out."""
    generator = torch.Generator().manual_seed(0)
    h, v = torch.randn(7, 4, generator=generator).double(), torch.rand(7, generator=generator).double() + 0.1
    for i, shares in enumerate(mixing(h, v)):
        apart = h[i] - h
        slope = (v.diag() + apart @ apart.T) @ shares
        assert shares.sum() == pytest.approx(1)
        assert (slope[shares > 0] - slope[shares > 0].mean()).abs().max() < 0.01
        assert (slope >= slope[shares > 0].mean() - 0.01).all()
    tiny = mixing(torch.tensor([[0.0], [100.0]]), torch.tensor([0.1, 0.1]))
    assert tiny.tolist() == [[1.0, 0.0], [0.0, 1.0]]  # 1e-5 each


def test_v_is_the_variance_of_h_over_samples(make):
    """Of one client's examples drawn anew with replacement, h scatters by v around its mean."""
    federation = make.federation(module=make.normed(), algorithm=fedpac(make))
    server = first_state(federation)
    view = next(federation.executor.views([0], server))
    state = federation.algorithm.prepare(view).state
    inputs, targets = next(view.examples())
    _, z = view.run(server.params, inputs)
    hot = torch.nn.functional.one_hot(targets, 3).float()
    torch.testing.assert_close(state["h"], hot.T @ z / len(z))
    draws = torch.randint(len(z), (20000, len(z)), generator=torch.Generator().manual_seed(0))
    cells = hot[:, :, None] * z[:, None, :]
    drawn = cells.flatten(1)[draws].mean(1)
    torch.testing.assert_close((drawn - state["h"].flatten()).square().sum(1).mean(), state["v"], rtol=0.02, atol=0)


def test_the_alignment_is_a_mean_over_examples_and_dimensions_and_padding_is_no_example(make):
    """Features (1, 1) and (0, 2) of class 0, wanted (0, 0): squares 1 and 2 in the mean over two dimensions, so 1.5."""
    features = torch.tensor([[1.0, 1.0], [0.0, 2.0], [50.0, 50.0]])
    forward = StandIn(lambda params, inputs: (inputs * 0, inputs))
    state = {"wanted": torch.zeros(2, 2), "pull": torch.tensor(2.0)}
    batch = features, torch.tensor([0, 0, PADDING])
    loss = fedpac(make).local_loss(batch, forward, torch.zeros(1), torch.zeros(1), state)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item() + 2 * 1.5)


def rounds(make, count, **settings):
    owners = torch.arange(60).remainder(6).numpy() // 2
    federation = make.federation(
        module=make.normed(), algorithm=fedpac(make, batch_size=4, **settings), owners=owners, fraction=0.67
    )
    servers, outcomes = [first_state(federation)], []
    for _ in range(count):
        outcomes.append(run_round(federation, servers[-1]))
        servers.append(outcomes[-1].server)
    return federation, servers, outcomes


def test_participants_get_mixed_heads_and_the_others_keep_theirs(make):
    federation, (start, server), (outcome,) = rounds(make, 1)
    sent, ids = outcome.result.messages, list(outcome.result.client_ids)
    expected = mixing(sent["h"].flatten(1), sent["v"]).float() @ sent["head"]
    torch.testing.assert_close(server.memory["heads"][ids], expected)
    (absent,) = set(range(3)) - set(ids)
    assert torch.equal(server.memory["heads"][absent], start.memory["heads"][absent])
    own = federation.algorithm.own(federation.model.blocks)
    for view in federation.executor.views(range(3), server):
        model = federation.algorithm.personal(view).params
        assert torch.equal(model[own], server.memory["heads"][view.client_id])
        assert torch.equal(model[~own], server.params[~own])


def test_features_are_weighted_by_class_counts_and_drawn_to_from_the_second_round_on(make):
    federation, (start, server), (outcome,) = rounds(make, 1)
    sent = outcome.result.messages
    torch.testing.assert_close(
        server.memory["features"], sent["sums"].sum(0) / sent["counts"].sum(0).clamp(min=1)[:, None]
    )
    before, after = (
        federation.algorithm.prepare(next(federation.executor.views([0], state))).state for state in (start, server)
    )
    assert (before["pull"], after["pull"]) == (0, 1)
    known = server.memory["known"] > 0
    assert torch.equal(after["wanted"][known], server.memory["features"][known])
    view = next(federation.executor.views([0], server))
    own = after["h"] / (view.label_counts / view.num_examples).clamp(min=1e-9)[:, None]
    torch.testing.assert_close(after["wanted"][~known], own[~known])


def test_a_head_of_more_than_one_layer_is_refused(make):
    module = make.normed()
    module.head = torch.nn.Sequential(torch.nn.Linear(6, 3))
    with pytest.raises(ConfigurationError, match=r"algorithm=fedpac needs a head that is one linear layer"):
        first_state(make.federation(module=module, algorithm=fedpac(make)))


@pytest.mark.parametrize(
    ("settings", "key"), [({"lam": -1.0}, "lam"), ({"head_epochs": 0}, "head_epochs"), ({"head_lr": 0.0}, "head_lr")]
)
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedpac(make, **settings)
