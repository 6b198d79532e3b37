import copy

import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fedgh.model.cnn2 import CNN2
from fedgh.model.layers import Dropout

K, B = 3, 5


def generators(count=K):
    return [torch.Generator().manual_seed(100 + k) for k in range(count)]


def layers(model):
    return [module for module in model.modules() if isinstance(module, Dropout)]


def client_gradients(model, params, x, y, generator):
    """Gradients of one client by plain autograd."""
    for layer in layers(model):
        layer.generator = generator
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
    loss = torch.nn.functional.cross_entropy(functional_call(model, leaves, (x,)), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def cohort_gradients(model, stacked, x, y, sources):
    """Gradients of all clients at once."""
    for layer in layers(model):
        layer.generators = sources

    def loss(params, x, y):
        return torch.nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

    return vmap(grad(loss))(stacked, x, y)


def test_the_mask_of_a_cohort_is_the_mask_of_each_client():
    layer = Dropout(0.4)
    x = torch.rand(K, B, 7) + 1
    layer.generators = generators()
    together = vmap(layer)(x)
    again = vmap(layer)(x)
    for k, generator in enumerate(generators()):
        layer.generator = generator
        assert torch.equal(together[k], layer(x[k]))
        assert torch.equal(again[k], layer(x[k]))  # the streams go on alike
    assert not torch.equal(together, again)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
def test_any_dimension_may_be_the_client(in_dim):
    layer = Dropout(0.4)
    layer.generators = generators()
    together = vmap(layer, in_dims=in_dim)(torch.ones(K, B, 7).movedim(0, in_dim))
    layer.generator = generators()[1]
    assert torch.equal(together[1], layer(torch.ones(B, 7)))


def check_elementwise_gradients(device):
    layer = Dropout(0.3)
    x, weight = torch.rand(K, B, 7, device=device), torch.rand(K, 7, device=device)

    def loss(weight, x):
        return (layer(x * weight) * layer(weight.expand(B, 7))).sum()

    layer.generators = generators()
    together = vmap(grad(loss))(weight, x)
    for k, generator in enumerate(generators()):
        layer.generator = generator
        leaf = weight[k].clone().requires_grad_()
        (alone,) = torch.autograd.grad(loss(leaf, x[k]), leaf)
        layer.generator = generators()[k]
        assert torch.equal(alone, grad(loss)(weight[k], x[k]))
        torch.testing.assert_close(together[k], alone, rtol=1e-6, atol=1e-6)


def test_gradients_of_a_cohort_are_those_of_each_client():
    check_elementwise_gradients("cpu")


@pytest.mark.gpu
def test_gradients_of_a_cohort_are_those_of_each_client_on_a_gpu():
    check_elementwise_gradients("cuda")


def test_input_gradients_are_the_mask_bit_for_bit():
    layer = Dropout(0.3)
    x = torch.rand(K, B, 7)
    layer.generators = generators()
    together = vmap(grad(lambda x: layer(x).sum()))(x)
    for k, generator in enumerate(generators()):
        layer.generator = generator
        leaf = x[k].clone().requires_grad_()
        out = layer(leaf)
        out.sum().backward()
        assert torch.equal(together[k], leaf.grad)
        assert torch.equal(out, x[k] * leaf.grad)


def test_a_network_trains_alike_in_a_cohort_and_alone():
    models = [CNN2((1, 8, 8), 4, channels=(3, 4), hidden=6, dropout=(0.25, 0.5)).double() for _ in range(K)]
    stacked, _ = stack_module_state(models)
    x, y = torch.rand(K, B, 1, 8, 8, dtype=torch.float64), torch.randint(0, 4, (K, B))
    together = cohort_gradients(models[0], stacked, x, y, generators())
    for k, generator in enumerate(generators()):
        alone = client_gradients(models[k], dict(models[k].named_parameters()), x[k], y[k], generator)
        for name in alone:
            torch.testing.assert_close(together[name][k], alone[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("inner", [(7,), (3, 2, 2), ()])
def test_padding_leaves_the_masks_of_real_rows_as_they_are(inner):
    layer = Dropout(0.4)
    layer.generators = sources = generators()
    together = vmap(layer)(torch.ones(K, B, *inner))
    for k, generator in enumerate(generators()):
        layer.generator = generator
        assert torch.equal(together[k, : B - k], layer(torch.ones(B - k, *inner)))
        assert torch.equal(sources[k].get_state(), generator.get_state())


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tensors = [result] if isinstance(result, torch.Tensor) else []
        self.count += any(tensor.numel() > 1000 for tensor in tensors)
        return result


def test_the_masks_of_many_clients_are_made_in_as_many_launches_as_those_of_two():
    counts = []
    for clients in (2, 20):
        layer = Dropout(0.4)
        layer.generators = generators(clients)
        with Launches() as launches:
            vmap(layer)(torch.ones(clients, 64, 70))
        counts.append(launches.count)
    assert counts[0] == counts[1] < 25


def test_masks_of_clients_calls_and_layers_are_independent():
    """Correlations of 200,000 numbers are within five standard deviations of zero."""
    size, layer = 200_000, Dropout(0.5)
    layer.generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 2, 1000)]
    masks = torch.cat([vmap(layer)(torch.ones(4, size)) for _ in range(3)]) - 1
    masks = torch.cat([masks, masks[:2].roll(1, 1), masks[:2].roll(4, 1), masks[:1].roll(64, 1)])
    correlation = masks @ masks.T / size
    assert float((correlation - torch.eye(len(masks))).abs().max()) < 5 / size**0.5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_dropped_and_the_mean_kept(p):
    layer = Dropout(p)
    layer.generator = torch.Generator().manual_seed(0)
    out = layer(torch.ones(100_000))
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.01)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    assert out.mean().item() == pytest.approx(1, abs=0.05)


def test_without_a_generator_the_global_one_is_used():
    layer, x = Dropout(0.5), torch.ones(50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = layer(x)
        torch.manual_seed(3)
        assert torch.equal(layer(x), first)
        assert not torch.equal(layer(x), first)


def test_identity_in_evaluation_and_at_zero():
    x = torch.rand(4)
    for layer in (Dropout(0.5).eval(), Dropout(0.0)):
        layer.generator = torch.Generator().manual_seed(0)
        before = layer.generator.get_state()
        assert layer(x) is x
        assert torch.equal(vmap(layer)(x), x)
        assert torch.equal(layer.generator.get_state(), before)


@pytest.mark.parametrize("sources", [None, generators(count=2)])
def test_a_cohort_needs_a_generator_per_client(sources):
    layer = Dropout(0.5)
    layer.generators = sources
    found = 0 if sources is None else 2
    with pytest.raises(ValueError, match=f"needs one generator per client, got {found} for 3; set Dropout.generators"):
        vmap(layer)(torch.ones(K, B))


def test_generators_stay_out_of_checkpoints_and_survive_a_copy():
    layer = Dropout(0.5)
    layer.generator = torch.Generator().manual_seed(0)
    assert layer.state_dict() == {}
    assert torch.equal(copy.deepcopy(layer)(torch.ones(20)), layer(torch.ones(20)))
    assert repr(layer) == "Dropout(p=0.5)"
