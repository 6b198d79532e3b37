"""Every operation against torchvision's own ``_apply_op``, byte for byte: no tolerance anywhere."""

import pytest
import torch
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from fedgh.dataset.auto_augment import CIFAR10_POLICY, OPERATIONS, SIGNED, magnitudes, source_pixels

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 64, 64), (3, 17, 24), (1, 8, 8)]


def awkward_images(channels, height, width):
    """Noise, a smooth ramp, a narrow range, one flat image, two levels, black and white."""
    generator = torch.Generator().manual_seed(3)
    shape = (channels, height, width)
    ramp = torch.linspace(0, 255, channels * height * width).to(torch.uint8).view(shape)
    noise = torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8)
    narrow = torch.randint(90, 140, shape, generator=generator, dtype=torch.uint8)
    two = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) * 200 + 7
    skewed = torch.where(noise[0] < 250, torch.zeros_like(ramp), noise[1])
    constants = [torch.full(shape, level, dtype=torch.uint8) for level in (0, 131, 255)]
    return torch.stack([*noise, ramp, narrow, two, skewed, *constants])


def reference_space(height, width):
    return AutoAugment(AutoAugmentPolicy.CIFAR10)._augmentation_space(10, (height, width))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_bin_and_sign_equals_torchvision(operation, shape):
    images = awkward_images(*shape)
    before = images.clone()
    strengths = magnitudes(operation, *shape[1:])
    signed = torch.cat([strengths, -strengths]) if operation in SIGNED else strengths
    for magnitude in signed.tolist():
        found = OPERATIONS[operation](images, torch.full((len(images),), magnitude, dtype=torch.float64))
        wanted = [_apply_op(image, operation, magnitude, InterpolationMode.NEAREST, None) for image in images]
        assert found.dtype == torch.uint8
        assert torch.equal(found, torch.stack(wanted)), (operation, magnitude)
    assert torch.equal(images, before)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_image_of_a_batch_gets_its_own_magnitude(operation):
    images = awkward_images(3, 32, 32)
    strengths = magnitudes(operation, 32, 32)[: len(images)]
    if operation in SIGNED:
        strengths = strengths * torch.tensor([1.0, -1.0] * 5)
    together = OPERATIONS[operation](images, strengths)
    alone = [OPERATIONS[operation](images[i : i + 1], strengths[i : i + 1])[0] for i in range(len(images))]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_result_is_a_new_tensor(operation):
    images = awkward_images(1, 2, 2)
    result = OPERATIONS[operation](images, magnitudes(operation, 2, 2)[: len(images)])
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (28, 20)])
def test_magnitudes_and_signs_are_torchvisions(height, width):
    space = reference_space(height, width)
    assert set(OPERATIONS) == set(space)
    for operation, (strengths, signed) in space.items():
        assert torch.equal(magnitudes(operation, height, width), strengths.double().expand(10)), operation
        assert signed == (operation in SIGNED), operation


def test_the_policy_is_torchvisions():
    assert list(CIFAR10_POLICY) == AutoAugment(AutoAugmentPolicy.CIFAR10).policies


def test_translation_by_hand():
    # 20 / 331 * 3 pixels, truncated to 1: result pixel x shows source pixel x - 1, the first column is outside.
    table = source_pixels("TranslateX", 1.9, 2, 3)
    assert table.tolist() == [0, 1, 2, 0, 4, 5]
    assert source_pixels("TranslateY", -1.9, 2, 3).tolist() == [4, 5, 6, 0, 0, 0]


def test_equalize_by_hand():
    # 510 pixels of level 0, 255 of level 100, 255 of level 200: step = (1020 - 255) // 255 = 3, and a level with n
    # darker pixels becomes (n + 1) // 3: 100 -> 170 and 200 -> 255.
    levels = torch.tensor([0] * 510 + [100] * 255 + [200] * 255, dtype=torch.uint8).view(1, 1, 30, 34)
    result = OPERATIONS["Equalize"](levels, torch.zeros(1, dtype=torch.float64)).flatten()
    assert [int(result[0]), int(result[510]), int(result[1019])] == [0, 170, 255]


def test_magnitudes_do_not_depend_on_the_default_type():
    """They are kept: a process that once computed in float64 would augment otherwise from then on."""
    expected = {name: magnitudes(name, 8, 8) for name in OPERATIONS}
    magnitudes.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(magnitudes(name, 8, 8), values) for name, values in expected.items())
    finally:
        torch.set_default_dtype(torch.float32)
        magnitudes.cache_clear()
