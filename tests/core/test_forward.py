"""What a method may do with the model beside a plain forward: one client alone and one among many agree."""

import copy

import pytest
import torch
from torch.func import vmap

from fedgh.core.flat import FlatModel
from fedgh.core.forward import SingleForward, VectorizedForward
from fedgh.task.classification import Classification

TASK = Classification(("0", "1", "2"))


@pytest.fixture
def parts(make):
    """Return a model with batch normalization and dropout; parameters, statistics and inputs of three clients."""
    module = make.normed()
    module.plain_dropout = torch.nn.Identity()
    model = FlatModel(module)
    generator = torch.Generator().manual_seed(0)
    params = model.params.detach() + 0.1 * torch.randn(3, len(model.params), generator=generator)
    statistics = model.buffers + torch.rand(3, len(model.buffers), generator=generator)
    return model, params, statistics, torch.randn(3, 8, 1, 2, 2, generator=generator)


def as_anybody_would(model, params, statistics, inputs, training):
    """Return outputs and running statistics of a copy of the module."""
    other = FlatModel(copy.deepcopy(model.module))
    other.load(params, statistics, model.counters)
    other.module.train(training)
    return other.module(inputs).detach(), other.buffers


def many(model, call, *stacked):
    """Return what ``call(forward, *client's)`` gives under vmap, with the model's own statistics for all."""
    buffers = model.stack_buffers(model.buffers, model.counters, 3)
    model.share_generators([torch.Generator().manual_seed(k) for k in range(3)])
    return vmap(lambda own, *mine: call(VectorizedForward(model, TASK, own), *mine))(buffers, *stacked)


def test_evaluated(parts):
    """As the module in evaluation mode with these statistics; mode and statistics of the model stay."""
    model, params, statistics, inputs = parts
    before = model.buffers.clone()
    call = lambda forward, p, s, x: forward.evaluated(p, x, s)[0]  # noqa: E731
    together = many(model, call, params, statistics, inputs)
    for k, mine in enumerate(zip(params, statistics, inputs, strict=True)):
        wanted, _ = as_anybody_would(model, *mine, training=False)
        torch.testing.assert_close(call(SingleForward(model, TASK), *mine).detach(), wanted)
        torch.testing.assert_close(together[k].detach(), wanted)
    assert torch.equal(model.buffers, before)
    assert model.module.training
    model.module.eval()
    call(SingleForward(model, TASK), params[0], statistics[0], inputs[0])
    assert not model.module.training


@pytest.mark.parametrize("shared", [False, True])
def test_a_second_model_has_statistics_of_its_own(parts, shared):
    """They move as those of a module would, also where they were one object for all clients; the first one's stay."""
    model, params, statistics, inputs = parts
    statistics = model.buffers.expand(3, -1) if shared else statistics
    before = model.buffers.clone()

    def call(forward, p, x, s):
        second = forward.with_buffers(s)
        second.gradients(lambda at: second(at, x)[0].square().mean(), p)
        return second.statistics

    one = lambda forward, p, x: call(forward, p, x, model.buffers)  # noqa: E731
    together = many(model, one, params, inputs) if shared else many(model, call, params, inputs, statistics)
    for k, (p, s, x) in enumerate(zip(params, statistics, inputs, strict=True)):
        _, wanted = as_anybody_would(model, p, s, x, training=True)
        torch.testing.assert_close(call(SingleForward(model, TASK), p, x, s), wanted)
        torch.testing.assert_close(together[k], wanted)
        assert float((wanted - s).abs().max()) > 0.01
    assert torch.equal(model.buffers, before)
    assert model.counters.tolist() == [0]


def test_draws_are_repeated(parts):
    """The same mask after the context as inside it, another one after that; alone and among many."""
    model, params, _, inputs = parts

    def call(forward, p, x):
        with forward.same_draws():
            inside = forward.frozen(p, x)[1]
        return inside, forward.frozen(p, x)[1], forward.frozen(p, x)[1]

    model.seed(3)
    for inside, again, other in (
        call(SingleForward(model, TASK), params[0], inputs[0]),
        many(model, call, params, inputs),
    ):
        assert torch.equal(inside, again)
        assert not torch.equal(again == 0, other == 0)


def test_plain_dropout_is_repeated_too(make):
    model = FlatModel(make.normed())
    model.seed(4)
    forward, inputs = SingleForward(model, TASK), torch.randn(8, 1, 2, 2)
    with forward.same_draws():
        inside = forward.frozen(model.params, inputs)[1]
    assert torch.equal(forward.frozen(model.params, inputs)[1], inside)
    assert not torch.equal(forward.frozen(model.params, inputs)[1], inside)


def test_a_block_knows_the_class_of_its_layer(make):
    layers = {block.name: block.layer for block in FlatModel(make.normed()).blocks}
    assert layers["body.2.weight"] == layers["body.2.bias"] == "BatchNorm1d"
    assert layers["body.1.weight"] == layers["head.bias"] == "Linear"


@pytest.mark.parametrize("own", [True, False], ids=["at the model's own parameters", "elsewhere"])
def test_gradients_of_several_values_at_once(parts, own):
    """A table of values that share a graph; each gradient as autograd gives it alone, and the same among many."""
    model, params, _, inputs = parts

    def table(forward, at, x):
        outputs, features = forward.evaluated(at, x, model.buffers)
        return torch.stack([outputs.square().sum(0)[:2], outputs.sum(0)[:2] * features.sum()])  # (2, 2)

    at, single = [model.params] * 3 if own else list(params), SingleForward(model, TASK)
    for where, x in zip(at, inputs, strict=True):
        gradients, values = single.gradients(lambda p, x=x: table(single, p, x), where)
        assert gradients.shape == (2, 2, len(model.params))
        assert not values.requires_grad
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            leaf = where.detach().clone().requires_grad_()
            value = table(single, leaf, x)[row, column]
            torch.testing.assert_close(values[row, column], value.detach())
            torch.testing.assert_close(gradients[row, column], torch.autograd.grad(value, leaf)[0])
    if not own:
        together = many(model, lambda f, p, x: f.gradients(lambda a: table(f, a, x), p)[0], params, inputs)
        torch.testing.assert_close(together[-1], gradients)
