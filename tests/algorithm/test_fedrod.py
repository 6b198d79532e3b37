"""FedRoD: the balanced softmax and the second head by hand, and that neither reaches the other."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedgh.algorithm.fedrod import NEVER, FedRoD
from fedgh.core.errors import ConfigurationError
from fedgh.core.updates import Block
from fedgh.federation.round import first_state, run_round
from tests.algorithm.stand_in import StandIn, client_of, state_of

BLOCKS = (Block("head.weight", 0, 2, torch.Size([2, 1]), "Linear"), Block("head.bias", 2, 4, torch.Size([2]), "Linear"))


def fedrod(make, **settings):
    return make.algorithm(FedRoD, **{"gamma": 1.0, "absent_class": "zero", "personal_lr": 0.1, **settings})


def run(params, inputs):
    """A head on the inputs themselves: logits W x + b."""
    return inputs @ params[:2].view(2, 1).T + params[2:], inputs


def stepped(make, head, counts=(3, 1), params=(0.0, 0.0, 0.0, 0.0), **settings):
    """One example x = 1 of class 1."""
    algorithm, start = fedrod(make, **settings), state_of(params)
    state = {"head": torch.tensor(head, dtype=torch.float64)}
    client = client_of(start, state=state, label_counts=torch.tensor(counts))
    prepared = algorithm.prepare(client)
    batch = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1])
    forward = StandIn(run, blocks=BLOCKS)
    gradient, loss, after = algorithm.local_gradient(batch, forward, start.params, start.params, prepared.state)
    return gradient.tolist(), loss.item(), after["head"].tolist()


def test_one_step_by_hand(make):
    """Counts (3, 1), z = 0, y = 1: loss log 4, dz = (0.75, -0.75); P = 0 gets (0.5, -0.5), of weights and biases."""
    gradient, loss, head = stepped(make, [0.0] * 4)
    assert loss == pytest.approx(torch.tensor(4.0).log().item())
    assert gradient == pytest.approx([0.75, -0.75, 0.75, -0.75])
    assert head == pytest.approx([-0.05, 0.05, -0.05, 0.05])


def test_the_second_head_adds_to_the_first_and_reaches_nothing(make):
    """z = (1, 0), P(x) = (0, 1): equal, so P gets (0.5, -0.5) again; the gradient is the one without P."""
    gradient, loss, head = stepped(make, [0.0, 1.0, 0.0, 0.0], params=(1.0, 0.0, 0.0, 0.0))
    assert (gradient, loss) == stepped(make, [5.0] * 4, params=(1.0, 0.0, 0.0, 0.0))[:2]
    assert head == pytest.approx([-0.05, 1.05, -0.05, 0.05])


def test_a_class_that_a_client_has_none_of(make):
    """Counts (3, 1, 0), z = 0, y = 0: 0.2877 without it, 0.5108 where it counts as one."""
    for absent, expected in (("zero", 0.28768), ("one", 0.51083)):
        client = client_of(state_of([0.0]), state={"head": torch.zeros(1)}, label_counts=torch.tensor([3, 1, 0]))
        prior = fedrod(make, absent_class=absent).prepare(client).state["prior"]
        assert cross_entropy(prior[None], torch.tensor([0])).item() == pytest.approx(expected, abs=1e-5)
        assert prior[2] == (NEVER if absent == "zero" else 0)
    logits = torch.zeros(1, 3, requires_grad=True)
    prior = torch.tensor([3.0, 1.0, 1.0]).log() + torch.tensor([0, 0, NEVER])
    (gradient,) = torch.autograd.grad(cross_entropy(logits + prior, torch.tensor([0])), logits)
    assert gradient[0, 2] == 0


def test_the_personal_model_is_the_current_one_with_both_heads(make):
    federation = make.federation(algorithm=fedrod(make), num_clients=6, fraction=0.5)  # logistic regression: all head
    start = first_state(federation)
    server = run_round(federation, start).server
    for view in federation.executor.views(range(6), server):
        own = server.clients[view.client_id]["head"] if view.client_id in server.clients else start.params
        assert torch.equal(federation.algorithm.personal(view).params, server.params + own)


def test_its_logits_are_those_of_the_two_heads(make):
    federation = make.federation(module=make.normed(), algorithm=fedrod(make, batch_size=4))
    server = run_round(federation, first_state(federation)).server
    view = next(federation.executor.views([0], server))
    inputs, _ = next(view.examples())
    outputs, features = view.run(server.params, inputs)
    head = view.state["head"]
    expected = outputs + features @ head[:18].view(3, 6).T + head[18:]
    personal = federation.algorithm.personal(view)
    torch.testing.assert_close(view.run(personal.params, inputs, personal.buffers)[0], expected)


def test_a_head_of_more_than_one_layer_is_refused(make):
    module = make.normed()
    module.head = torch.nn.Sequential(torch.nn.Linear(6, 3))
    federation = make.federation(module=module, algorithm=fedrod(make))
    with pytest.raises(
        ConfigurationError, match=r"algorithm=fedrod adds a linear head .* is head.0.bias, head.0.weight"
    ):
        first_state(federation)


@pytest.mark.parametrize(("settings", "key"), [({"gamma": -1.0}, "gamma"), ({"absent_class": "some"}, "absent_class")])
def test_bad_settings_are_refused(make, settings, key):
    with pytest.raises(ConfigurationError, match=rf"algorithm.{key} must be "):
        fedrod(make, **settings)
