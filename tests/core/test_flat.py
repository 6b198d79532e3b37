"""A module whose parameters are views of one vector."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.model.cnn2 import CNN2
from fedgh.model.layers import Dropout
from fedgh.model.mlp import MLP


class Small(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh())
        self.head = nn.Linear(5, 3)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 2)

    def features(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture(autouse=True)
def _keep_the_random_state():
    with torch.random.fork_rng():
        yield


def images(count=6, seed=1):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_parameters_are_views_under_their_own_names():
    module = Small()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    model = FlatModel(module)
    assert [b.name for b in model.blocks] == list(before) == [name for name, _ in module.named_parameters()]
    assert [(b.start, b.stop) for b in model.blocks] == [(0, 20), (20, 25), (25, 30), (30, 35), (35, 50), (50, 53)]
    for block, (name, parameter) in zip(model.blocks, module.named_parameters(), strict=True):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.shape == block.shape
        assert torch.equal(parameter, before[name])
        assert torch.equal(parameter.flatten(), model.params[block.start : block.stop])
    with torch.no_grad():
        model.params.fill_(7.0)
    assert all(bool((p == 7).all()) for p in module.parameters())
    with torch.no_grad():
        module.head.bias.fill_(3.0)
    assert model.params[-3:].tolist() == [3.0, 3.0, 3.0]


def test_buffers_and_counters_are_views_of_their_own_type():
    module = Small()
    model = FlatModel(module)
    assert (model.buffers.dtype, model.counters.dtype) == (torch.float32, torch.int64)
    assert (model.buffers.numel(), model.counters.tolist()) == (10, [0])
    module.train()
    module(images())
    assert model.counters.tolist() == [1]
    norm = module.body[1]
    assert torch.equal(model.buffers, torch.cat([norm.running_mean, norm.running_var]))
    assert norm.running_mean.abs().sum() > 0
    assert norm.num_batches_tracked.dtype == torch.int64
    model.load(model.params, torch.full((10,), 2.0), torch.tensor([9]))
    assert norm.running_var.tolist() == [2.0] * 5
    assert norm.num_batches_tracked.item() == 9


def test_load_copies():
    model = FlatModel(Small())
    params = torch.arange(53.0)
    model.load(params, model.buffers.clone(), model.counters.clone())
    with torch.no_grad():
        model.params.add_(1)
    assert params.tolist() == list(range(53))


def test_gradients_are_those_of_the_plain_module():
    plain = Small()
    model = FlatModel(copy.deepcopy(plain))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    cross_entropy(plain(images()), labels).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    for _ in range(2):  # the second time, too: gradients are zeroed, not lost
        model.zero_grad()
        cross_entropy(model.forward(model.params, images())[0], labels).backward()
        torch.testing.assert_close(model.params.grad, expected)
    assert model.module.head.weight.grad.data_ptr() == model.params.grad[35:].data_ptr()


def test_gradients_through_the_module_and_through_the_vector_accumulate():
    model = FlatModel(Small())
    anchor = torch.zeros_like(model.params)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    model.zero_grad()
    cross_entropy(model.forward(model.params, images())[0], labels).backward()
    of_the_module = model.params.grad.clone()
    model.zero_grad()
    loss = cross_entropy(model.forward(model.params, images())[0], labels)
    (loss + 1.5 * (model.params - anchor).square().sum()).backward()
    torch.testing.assert_close(model.params.grad, of_the_module + 3 * model.params.detach())


def test_an_optimizer_over_the_vector_moves_the_module():
    plain = Small()
    model = FlatModel(copy.deepcopy(plain))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    flat, usual = torch.optim.SGD([model.params], **settings), torch.optim.SGD(plain.parameters(), **settings)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for step in range(3):
        model.zero_grad()
        usual.zero_grad()
        cross_entropy(model.forward(model.params, images(seed=step))[0], labels).backward()
        cross_entropy(plain(images(seed=step)), labels).backward()
        flat.step()
        usual.step()
    torch.testing.assert_close(model.params.detach(), torch.cat([p.detach().flatten() for p in plain.parameters()]))


def test_functional_forward_is_forward_at_any_point():
    model = FlatModel(Small())
    model.module.eval()
    logits, features = model.forward(model.params, images())
    again, features_again = model.functional_forward(model.params, images())
    assert torch.equal(logits, again)
    assert torch.equal(features, features_again)
    assert torch.equal(logits, model.module(images()))

    elsewhere = torch.randn(53, generator=torch.Generator().manual_seed(3)).requires_grad_()
    before = model.params.detach().clone()
    there = model.functional_forward(elsewhere, images())[0]
    there.sum().backward()
    assert torch.equal(model.params, before)
    model.load(elsewhere.detach(), model.buffers.clone(), model.counters.clone())
    torch.testing.assert_close(model.forward(model.params, images())[0], there)
    model.zero_grad()
    model.forward(model.params, images())[0].sum().backward()
    torch.testing.assert_close(elsewhere.grad, model.params.grad)


def test_unflatten_gives_views():
    model = FlatModel(Small())
    parts = model.unflatten(torch.arange(53.0))
    assert list(parts) == [f"module.{b.name}" for b in model.blocks]
    assert parts["module.head.weight"].tolist() == torch.arange(35.0, 50.0).view(3, 5).tolist()


def test_tied_parameters_count_once():
    module = Tied()
    plain = copy.deepcopy(module)
    model = FlatModel(module)
    assert [b.name for b in model.blocks] == ["first.weight", "first.bias", "second.bias", "head.weight", "head.bias"]
    assert model.params.numel() == 16 + 4 + 4 + 8 + 2
    assert module.first.weight is module.second.weight
    torch.testing.assert_close(model.forward(model.params, images())[0], plain(images()))
    torch.testing.assert_close(model.functional_forward(model.params, images())[0], plain(images()))
    model.zero_grad()
    model.forward(model.params, images())[0].sum().backward()
    plain(images()).sum().backward()
    torch.testing.assert_close(model.params.grad[:16].view(4, 4), plain.first.weight.grad)
    elsewhere = torch.randn(34, generator=torch.Generator().manual_seed(3))
    there = model.functional_forward(elsewhere, images())[0]
    model.load(elsewhere, model.buffers, model.counters)
    torch.testing.assert_close(model.forward(model.params, images())[0], there)


def test_frozen_parameters_stay_out_and_stay_put():
    module = Small()
    module.body[0].weight.requires_grad_(False)
    frozen = module.body[0].weight.detach().clone()
    model = FlatModel(module)
    assert model.blocks[0].name == "body.0.bias"
    assert model.params.numel() == 33
    model.load(torch.zeros(33), model.buffers.clone(), model.counters.clone())
    model.zero_grad()
    model.forward(model.params, images())[0].sum().backward()
    assert torch.equal(module.body[0].weight, frozen)
    assert module.body[0].weight.grad is None


def test_seed_rules_every_draw():
    class Noisy(Small):
        def __init__(self):
            super().__init__()
            self.own, self.builtin = Dropout(0.5), nn.Dropout(0.5)

        def features(self, x):
            return torch.cat([self.own(torch.ones(1, 64)), self.builtin(torch.ones(1, 64))], 1)

    model = FlatModel(Noisy())
    model.module.train()

    def draw(seed):
        model.seed(seed)
        return model.module.features(None)

    first = draw(1)
    torch.rand(5)
    assert torch.equal(draw(1), first)
    other = draw(2)
    assert not torch.equal(other[:, :64], first[:, :64])
    assert not torch.equal(other[:, 64:], first[:, 64:])


def test_a_model_without_trainable_parameters_is_refused():
    module = Small()
    module.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="Small has no parameter to train"):
        FlatModel(module)


def test_a_model_needs_features_and_head():
    with pytest.raises(ConfigurationError, match="the model Linear lacks `features` and `head`"):
        FlatModel(nn.Linear(2, 2))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float64, "float32"), (torch.int32, "int64")])
def test_buffers_of_another_type_are_refused(dtype, expected):
    module = Small()
    module.register_buffer("odd", torch.zeros(2, dtype=dtype))
    with pytest.raises(ConfigurationError, match=f"buffer odd is {dtype}, expected torch.{expected}"):
        FlatModel(module)


def test_a_model_without_buffers():
    model = FlatModel(Tied())
    assert model.buffers.shape == model.counters.shape == (0,)


def test_the_memory_format_reaches_the_convolutions_and_changes_rounding_only():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = CNN2((3, 8, 8), 4, channels=[4, 6], hidden=5, dropout=[0.0, 0.0]).double()
    seen = []
    module.body[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = FlatModel(copy.deepcopy(module), memory_format=memory_format)
        logits, _ = model.forward(model.params, images)
        logits.square().sum().backward()
        assert seen[-1].is_contiguous(memory_format=memory_format)
        gradients.append(model.params.grad.clone())
    assert len(seen) == 2
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_without_convolutions_images_stay_as_they_are():
    module = MLP((3, 8, 8), 3, hidden=[])
    seen = []
    module.body.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    model, batch = FlatModel(module, memory_format=torch.channels_last), torch.randn(2, 3, 8, 8)
    model.forward(model.params, batch)
    assert seen[0].data_ptr() == batch.data_ptr()
    assert seen[0].stride() == batch.stride()


@pytest.mark.parametrize("module", [Small, Tied])
def test_a_pickled_model_arrives_whole_and_brings_its_vector_once(module):
    model = FlatModel(module(), memory_format=torch.channels_last)
    pickled = pickle.dumps(model)
    assert len(pickled) < len(pickle.dumps(model.module)), "every view would bring the vector along"
    copied = pickle.loads(pickled)
    assert copied.blocks == model.blocks
    assert torch.equal(copied.params, model.params)
    copied.params.data.zero_()
    assert all(bool((parameter == 0).all()) for parameter in copied.module.parameters())
    assert not bool((model.params == 0).all())
