"""The models that papers compare on: published sizes, the contract, and one round of each, one by one and together."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fedgh import config
from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.core.types import GlobalModel
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import initial_state, run_round
from fedgh.model.layers import Attend
from fedgh.model.lenet5 import LeNet5
from fedgh.model.lora import LoRA
from fedgh.model.resnet import ResNet
from fedgh.model.torchvision import Beheaded, TorchVision
from fedgh.model.transformer import Transformer
from fedgh.model.vit import ViT

CIFAR = (3, 32, 32)
RESNET18 = partial(ResNet, widths=[64, 128, 256, 512], blocks=2, shortcut="convolution")
RESNET20 = partial(ResNet, widths=[16, 32, 64], blocks=3, shortcut="padding")
NAMES = sorted(path.stem for path in Path(config.CONFIG_DIR, "model").glob("*.yaml"))
TOKENS = ("embedding_bag", "gru", "transformer")


def count(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: LeNet5((1, 28, 28), 10), 61_706),
        (lambda: LeNet5(CIFAR, 10), 62_006),
        (lambda: RESNET18(CIFAR, 10, norm="batch"), 11_173_962),
        (lambda: RESNET18(CIFAR, 100, norm="group"), 11_220_132),
        (lambda: RESNET20(CIFAR, 10, norm="batch"), 269_722),
        (lambda: RESNET20(CIFAR, 10, norm="none"), 269_722 - 16 * 7 - 32 * 6 - 64 * 6),  # a bias for scale and shift
    ],
)
def test_published_sizes(build, parameters):
    assert count(build()) == parameters


def test_a_residual_network_halves_from_the_second_stage_on():
    model = RESNET20(CIFAR, 10, norm="batch").eval()
    assert model.body[:-2](torch.rand(1, *CIFAR)).shape == (1, 64, 8, 8)
    assert RESNET18(CIFAR, 10, norm="batch").eval().body[:-2](torch.rand(1, *CIFAR)).shape == (1, 512, 4, 4)


def test_the_shortcut_without_parameters_is_every_other_pixel_and_zeros():
    block = ResNet(CIFAR, 10, [4, 6], 1, "padding", "none").body[3]
    x = torch.rand(2, 4, 5, 5)
    found = block.shortcut(x)
    assert found.shape == (2, 6, 3, 3)
    assert torch.equal(found[:, 1:5], x[:, :, ::2, ::2])
    assert found[:, [0, 5]].abs().max() == 0


def test_a_causal_block_sees_nothing_later_and_a_plain_one_does():
    torch.manual_seed(0)
    x = torch.rand(1, 6, 8)
    changed = x.clone()
    changed[:, 4] = torch.rand(8)
    for causal in (True, False):
        block = Attend(8, 2, causal)
        same = torch.isclose(block(x), block(changed), atol=1e-6).all(-1)[0]
        assert same.tolist() == [causal] * 4 + [False, False]


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    block, x = Attend(8, 2, causal=False), torch.rand(3, 5, 8)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = (
        block.queries_keys_values.weight.data,
        block.queries_keys_values.bias.data,
    )
    theirs.out_proj = block.mixed
    inner = block.before_attention(x)
    expected = x + theirs(inner, inner, inner, need_weights=False)[0]
    expected = expected + block.hidden(block.before_hidden(expected))
    torch.testing.assert_close(block(x), expected)


def test_adapters_start_as_nothing_and_only_they_and_the_head_are_trained():
    base = partial(ViT, patch=8, width=8, depth=1, heads=2)
    torch.manual_seed(0)
    plain = base((1, 16, 16), 3).eval()
    torch.manual_seed(0)
    adapted = LoRA((1, 16, 16), 3, base, rank=2, scale=4).eval()
    x = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(adapted(x), plain(x))
    linear = {"queries_keys_values": (8, 24), "mixed": (8, 8), "hidden.0": (8, 32), "hidden.2": (32, 8)}
    assert count(adapted) == sum(2 * sum(sides) for sides in linear.values()) + 8 * 3 + 3
    layer = next(module for module in adapted.modules() if type(module).__name__ == "Adapted")
    with torch.no_grad():
        layer.up.fill_(1.0)
    inputs = torch.rand(4, layer.layer.in_features)
    by_hand = layer.layer(inputs) + 4 / 2 * inputs @ (layer.up @ layer.down).T
    torch.testing.assert_close(layer(inputs), by_hand)
    names = [block.name for block in FlatModel(adapted).blocks]
    assert all(name.startswith("head.") or name.endswith((".down", ".up")) for name in names)
    assert count(LoRA((1, 16, 16), 3, base, rank=0, scale=4)) == 8 * 3 + 3


def test_a_foreign_head_is_found():
    model = TorchVision((1, 32, 32), 5, "mobilenet_v3_small", None).eval()
    assert model.head.out_features == 5
    images = torch.rand(2, 1, 32, 32)
    assert model(images).shape == (2, 5)
    assert torch.equal(model(images), model(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LeNet5((1, 8, 8), 10), "model=lenet5 needs images of at least 12 x 12 pixels, got 8 x 8"),
        (lambda: ResNet(CIFAR, 10, [], 1, "padding", "none"), "must name at least one, got [] and 1"),
        (lambda: ResNet(CIFAR, 10, [4], 1, "none", "none"), "model.shortcut must be one of convolution, padding, got"),
        (lambda: ViT(CIFAR, 10, 5, 8, 1, 2), "model.patch=5 does not divide images of 32 x 32 pixels; try 4."),
        (lambda: ViT(CIFAR, 10, 4, 9, 1, 2), "model.heads must divide model.width=9, got 2; try 4."),
        (lambda: Transformer((5,), 10, 10, 0, 1, 2), "must hold positive widths, got [0, 1]"),
        (lambda: TorchVision(CIFAR, 10, "resnet19", None), "torchvision has no model.name=resnet19"),
        (lambda: TorchVision(CIFAR, 10, "squeezenet1_1", None), "has no linear head of 10 outputs"),
        (lambda: TorchVision((2, 8, 8), 10, "resnet18", None), "needs images of 1 or 3 channels, got 2"),
        (lambda: LoRA(CIFAR, 10, partial(LeNet5), -1, 1.0), "model.rank must be 0 (a frozen body) or more, got -1"),
        (lambda: LoRA(CIFAR, 10, partial(RESNET20, norm="none"), 2, 1.0), "type model.rank=0 to train the head alone"),
    ],
)
def test_settings_are_checked(build, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        build()


def test_a_network_that_goes_on_after_its_last_linear_layer_is_refused():
    other = Beheaded(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Linear(2, 2)), 2, 1, "mine")
    with pytest.raises(ConfigurationError, match="mine does not end in its last linear layer"):
        other(torch.rand(3, 1, 2, 2))


SMALL = {
    "resnet18": {"widths": [4, 6, 8, 8], "blocks": 1},
    "resnet20": {"widths": [4, 6, 8], "blocks": 1},
    "vit": {"width": 8, "depth": 1, "heads": 2},
    "conv6": {"channels": [4] * 6},
    "cnn2": {"channels": [4, 4], "hidden": 8},
    "torchvision": {"name": "shufflenet_v2_x0_5"},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*TOKENS, "mobilenet_v2")])
def test_a_round_one_by_one_and_together(make, name):
    """The vectorized executor gives the sequential one's model, up to the order of sums."""
    if name == "timm":
        pytest.importorskip("timm", reason="timm is not installed: pip install 'fedgh[timm]'")
    dataset = make.dataset(num_train=18, num_test=6, shape=(3, 16, 16))
    ends = []
    for executor in (None, VectorizedExecutor):
        torch.manual_seed(0)
        module = make.choice("model", name)((3, 16, 16), 3, **SMALL.get(name, {}))
        settings = {} if executor is None else {"executor": partial(executor, width=3)}
        algorithm = make.algorithm(lr=0.01, batch_size=6)
        federation = make.federation(dataset=dataset, module=module, algorithm=algorithm, **settings)
        before = initial_state(federation.model)
        after = run_round(federation, before).server
        assert not torch.equal(after.params, before.params)
        ends.append(after)
    assert isinstance(ends[0].models[0], GlobalModel)
    if name == "torchvision":  # batch statistics of single pixels turn the last bit into another seed
        moved = [end.params - before.params for end in ends]
        assert torch.cosine_similarity(*moved, dim=0) > 0.9
        return
    torch.testing.assert_close(ends[0].params, ends[1].params, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ends[0].buffers, ends[1].buffers, rtol=1e-3, atol=1e-4)
