import copy

import pytest
import torch
from torch import nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.cnn2 import CNN2
from fedgh.model.mlp import MLP
from fedgh.model.mobilenet_v2 import InvertedResidual, MobileNetV2

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)


def cnn2(shape=CIFAR, num_classes=10, channels=(32, 64), hidden=128, dropout=(0.25, 0.5)):
    return CNN2(shape, num_classes, channels=channels, hidden=hidden, dropout=dropout)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (cnn2, 1_626_442),
        (lambda: cnn2((1, 28, 28), 62), 1_206_590),  # the EMNIST network of Reddi et al.
        (lambda: MLP(CIFAR, 10, hidden=[]), 30_730),
        (lambda: MLP(DIGITS, 10, hidden=[5, 4]), 64 * 5 + 5 + 5 * 4 + 4 + 4 * 10 + 10),
        (lambda: MobileNetV2(CIFAR, 100), 2_412_212),
        (lambda: MobileNetV2((3, 64, 64), 200), 2_540_312),
        (lambda: MobileNetV2(CIFAR, 100, norm="group"), 2_412_212),
        (lambda: MobileNetV2(CIFAR, 100, norm="none"), 2_412_212 - 17_544),  # a bias for a scale and a shift
        (lambda: MLP(DIGITS, 10, hidden=[5, 8], norm="batch"), 64 * 5 + 5 + 10 + 5 * 8 + 8 + 16 + 8 * 10 + 10),
    ],
)
def test_parameters(build, parameters):
    assert count(build()) == parameters


@pytest.mark.parametrize(
    ("build", "shape", "size"),
    [
        (lambda s: cnn2(s), CIFAR, 128),
        (lambda s: cnn2(s, hidden=7), DIGITS, 7),
        (lambda s: cnn2(s), (2, 6, 9), 128),
        (lambda s: MLP(s, 10, hidden=[]), DIGITS, 64),
        (lambda s: MLP(s, 10, hidden=[32, 16]), CIFAR, 16),
        (lambda s: MobileNetV2(s, 10), DIGITS, 1280),
    ],
)
def test_the_contract(build, shape, size):
    model = build(shape).eval()
    x = torch.rand(2, *shape)
    features = model.features(x)
    assert features.shape == (2, size)
    assert isinstance(model.head, nn.Linear)
    assert model(x).shape == (2, 10)
    assert torch.equal(model(x), model.head(features))


def test_cnn2_is_the_documented_stack():
    kinds = [type(layer).__name__ for layer in cnn2().body]
    expected = "Conv2d ReLU Conv2d MaxPool2d ReLU Dropout Flatten Linear ReLU Dropout"
    assert kinds == expected.split()
    assert [layer.p for layer in cnn2().body if hasattr(layer, "p")] == [0.25, 0.5]


def test_pooling_before_the_second_relu_is_the_published_stack():
    images = torch.randn(3, *CIFAR)
    ours = cnn2().eval()
    published = copy.deepcopy(ours)
    published.body[3], published.body[4] = published.body[4], published.body[3]
    assert isinstance(published.body[3], nn.ReLU)
    gradients = []
    for model in (ours, published):
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(ours(images), published(images))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_mobilenet_has_the_published_buffers_and_resolution():
    model = MobileNetV2(CIFAR, 100)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 57
    assert sum(buffer.numel() for buffer in model.buffers()) == 35_145
    assert not any(isinstance(module, nn.ReLU6) for module in model.modules())
    assert model.eval().body[:-2](torch.rand(1, *CIFAR)).shape == (1, 1280, 4, 4)
    shortcuts = [block.shortcut for block in model.body if isinstance(block, InvertedResidual)]
    assert len(shortcuts) == 17
    assert sum(shortcut is None for shortcut in shortcuts) == 3
    assert sum(isinstance(shortcut, nn.Sequential) for shortcut in shortcuts) == 4


def test_the_shortcut_adds_the_input():
    block = InvertedResidual(4, 4, expansion=2, stride=1, norm="batch").eval()
    nn.init.zeros_(block.residual[-1].weight)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("build", [cnn2, lambda: MLP(CIFAR, 10, [8]), lambda: MobileNetV2(CIFAR, 10)])
def test_one_global_seed_one_model(build):
    def weights(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.cat([parameter.detach().flatten() for parameter in build().parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_gradients_reach_every_parameter():
    for model in (cnn2(DIGITS), MLP(DIGITS, 10, [8]), MobileNetV2((1, 16, 16), 10)):
        model(torch.rand(4, *((1, 16, 16) if isinstance(model, MobileNetV2) else DIGITS))).square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "build", [lambda norm: MobileNetV2((1, 16, 16), 10, norm), lambda norm: MLP(DIGITS, 10, [8, 5], norm)]
)
def test_only_batch_normalization_keeps_statistics_and_mixes_examples(build):
    shape = (1, 16, 16) if isinstance(build("none"), MobileNetV2) else DIGITS
    images = torch.rand(4, *shape)
    for norm in ("batch", "group", "none"):
        model = build(norm)
        kinds = {type(layer) for layer in model.modules()}
        assert (nn.GroupNorm in kinds) == (norm == "group")
        assert bool(list(model.buffers())) == (norm == "batch")
        together, alone = model(images)[:2], model(images[:2])
        assert torch.allclose(together, alone, atol=1e-4) == (norm != "batch")


def test_the_default_normalization_is_what_it_was():
    assert [type(layer).__name__ for layer in MLP(DIGITS, 10, [8]).body] == ["Flatten", "Linear", "ReLU"]
    assert isinstance(MobileNetV2(CIFAR, 10).body[1], nn.BatchNorm2d)


def test_models_can_be_copied():
    model = cnn2(DIGITS).eval()
    x = torch.rand(2, *DIGITS)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cnn2((1, 5, 8)), r"model=cnn2 needs images of at least 6 x 6 pixels, got 5 x 8; try model=mlp."),
        (lambda: cnn2((8, 8)), r"model=cnn2 needs images of \(channels, height, width\), got \(8, 8\)"),
        (lambda: cnn2(channels=(32,)), r"model.channels must hold 2 widths, got \[32\]"),
        (lambda: cnn2(hidden=0), r"model.hidden must hold positive widths, got \[0\]"),
        (lambda: cnn2(dropout=(0.5,)), r"model.dropout must hold 2 probabilities, got \[0.5\]; try \[0.25, 0.5\]"),
        (lambda: cnn2(dropout=(0.5, 1.0)), r"model.dropout must be at least 0 and below 1, got 1.0; try 0.5"),
        (lambda: MLP(DIGITS, 0, []), r"model=mlp needs at least 1 output, got 0"),
        (lambda: MLP(DIGITS, 10, [3, -1]), r"model.hidden must hold positive widths, got \[3, -1\]"),
        (lambda: MobileNetV2((0, 8, 8), 10), r"model=mobilenet_v2 needs images of"),
        (lambda: MobileNetV2(CIFAR, 10, norm="layer"), r"model.norm must be one of batch, group, none, got 'layer'"),
        (lambda: MLP(DIGITS, 10, [3], norm="Batch"), r"model.norm must be one of batch, group, none, got 'Batch'"),
    ],
)
def test_settings_are_checked(build, message):
    with pytest.raises(ConfigurationError, match=message):
        build()
