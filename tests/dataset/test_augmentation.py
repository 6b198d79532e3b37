import pytest
import torch
from scipy.stats import chisquare

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.dataset.augmentation import Augmentation, draw_policy, random_crop
from fedgh.dataset.auto_augment import CIFAR10_POLICY, OPERATIONS, SIGNED, magnitudes

from ..accelerator import DEVICE, Accelerator

EVERYTHING = Augmentation(crop_padding=4, flip=True, auto_augment=True)


def images_of(count, channels=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_crop_by_hand():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    draws = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.99, 0.4], [0.0, 0.99]], dtype=torch.float64)
    corner, middle, down, right = random_crop(image.expand(4, 1, 3, 3), 1, draws)[:, 0].tolist()
    assert corner == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    assert middle == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert down == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert right == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_crop_of_several_channels_and_oblong_images_equals_slicing():
    images = torch.randint(1, 256, (50, 3, 5, 7), generator=generator(), dtype=torch.uint8)
    draws = torch.rand(50, 2, generator=generator(2), dtype=torch.float64)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    found = random_crop(images, 2, draws)
    for image, row, (top, left) in zip(padded, found, (draws * 5).long().tolist(), strict=True):
        assert torch.equal(row, image[:, top : top + 5, left : left + 7])


def test_flip_mirrors_about_half_of_the_images_and_nothing_else():
    images = images_of(1000, size=4)
    result = Augmentation(0, True, False)(images, generator())
    same = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 440 < int(mirrored.sum()) < 560


def test_all_off_is_the_identity_on_a_copy():
    images = images_of(3)
    result = Augmentation(0, False, False)(images, generator())
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmentation", [EVERYTHING, Augmentation(0, False, True), Augmentation(0, True, False)])
def test_input_untouched_and_shape_kept(augmentation, channels):
    images = images_of(64, channels)
    before = images.clone()
    result = augmentation(images, generator())
    assert torch.equal(images, before)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert not torch.equal(result, images)


def test_equal_generators_give_equal_images_and_others_do_not():
    images = images_of(64)
    assert torch.equal(EVERYTHING(images, generator(5)), EVERYTHING(images, generator(5)))
    assert not torch.equal(EVERYTHING(images, generator(5)), EVERYTHING(images, generator(6)))


def test_an_image_depends_on_its_place_in_the_stream_not_on_the_batch():
    images = images_of(200)
    together = EVERYTHING(images, generator())
    stream = generator()
    cut = torch.cat([EVERYTHING(part, stream) for part in images.split([1, 2, 100, 97])])
    assert torch.equal(together, cut)
    others = images_of(200, seed=9)
    others[17] = images[17]
    assert torch.equal(EVERYTHING(others, generator())[17], together[17])


def test_whole_pipeline_equals_the_operations_one_image_at_a_time():
    images = images_of(300)
    draws = torch.rand(300, 8, dtype=torch.float64, generator=generator())
    found = EVERYTHING(images, generator())
    operation, applied, magnitude = draw_policy(draws[:, 3:], 32, 32)
    functions = list(OPERATIONS.values())
    for i in range(300):
        image = random_crop(images[i : i + 1], 4, draws[i : i + 1, :2])
        image = image.flip(-1) if draws[i, 2] < 0.5 else image
        for step in range(2):
            if applied[i, step]:
                image = functions[operation[i, step]](image, magnitude[i : i + 1, step])
        assert torch.equal(image[0], found[i])


def test_sub_policies_are_uniform():
    # Every sub-policy is recognised by its pair of operations, magnitudes and probabilities; equal pairs are pooled.
    draws = torch.rand(50_000, 5, dtype=torch.float64, generator=generator())
    operation, _, magnitude = draw_policy(draws, 32, 32)
    names = list(OPERATIONS)
    seen: dict[tuple, int] = {}
    for pair in torch.cat([operation.double(), magnitude.abs()], 1).tolist():
        seen[tuple(pair)] = seen.get(tuple(pair), 0) + 1
    expected: dict[tuple, float] = {}
    for pair in CIFAR10_POLICY:
        key = tuple(float(names.index(name)) for name, _, _ in pair) + tuple(
            float(magnitudes(name, 32, 32)[bin_ or 0]) for name, _, bin_ in pair
        )
        expected[key] = expected.get(key, 0.0) + 2000.0
    assert set(seen) == set(expected)
    assert chisquare([seen[k] for k in expected], list(expected.values())).pvalue > 0.001


@pytest.mark.parametrize("number", range(25))
def test_steps_apply_with_their_probability_and_signs_are_even(number):
    draws = torch.rand(20_000, 5, dtype=torch.float64, generator=generator(number))
    draws[:, 0] = (number + 0.5) / 25
    _, applied, magnitude = draw_policy(draws, 32, 32)
    for step, (name, probability, bin_) in enumerate(CIFAR10_POLICY[number]):
        count = int(applied[:, step].sum())
        if probability == 0.0:
            assert count == 0
        else:
            wanted = [20_000 * probability, 20_000 * (1 - probability)]
            assert chisquare([count, 20_000 - count], wanted).pvalue > 0.0005
        negative = int((magnitude[:, step] < 0).sum())
        if name in SIGNED and bin_:
            assert chisquare([negative, 20_000 - negative]).pvalue > 0.0005
        else:
            assert negative == 0


def test_the_two_steps_draw_independently():
    draws = torch.rand(20_000, 5, dtype=torch.float64, generator=generator())
    draws[:, 0] = 8.5 / 25  # Equalize 0.6, then Equalize 0.5
    _, applied, _ = draw_policy(draws, 32, 32)
    both = int(applied.all(1).sum())
    assert chisquare([both, 20_000 - both], [6000, 14_000]).pvalue > 0.001


def test_crop_windows_are_uniform():
    position = torch.zeros(20_000, 1, 3, 3, dtype=torch.uint8)
    position[:, 0, 1, 1] = 1
    result = Augmentation(1, False, False)(position, generator())
    # The marked pixel lands on each of the nine places equally often.
    assert chisquare(result.long().sum(0).flatten().tolist()).pvalue > 0.001


def test_errors_say_what_to_type():
    with pytest.raises(ConfigurationError, match=r"crop_padding must be 0 \(no crop\) or more pixels, got -1; try 4"):
        Augmentation(-1, True, True)
    with pytest.raises(DataError, match=r"torch.float32 of shape \(2, 3, 4, 4\); set dataset.augmentation=null"):
        EVERYTHING(torch.zeros(2, 3, 4, 4), generator())
    with pytest.raises(DataError, match=r"1 or 3 channels"):
        EVERYTHING(torch.zeros(2, 2, 4, 4, dtype=torch.uint8), generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 64)])
def test_gpu_gives_the_bytes_of_the_cpu(channels, size):
    images = images_of(2000, channels, size)
    on_gpu = EVERYTHING(images.cuda(), generator())
    assert torch.equal(on_gpu.cpu(), EVERYTHING(images, generator()))


def test_drawing_apart_from_applying_gives_the_same_images():
    """What lets a cohort draw client by client and augment all of them at once."""
    images = images_of(60)
    streams = [generator(seed) for seed in (1, 2, 3)]
    alone = [EVERYTHING(part, stream) for part, stream in zip(images.split([30, 10, 20]), streams, strict=True)]
    draws = [EVERYTHING.draw(count, generator(seed)) for count, seed in ((30, 1), (10, 2), (20, 3))]
    assert torch.equal(EVERYTHING.apply(images, torch.cat(draws)), torch.cat(alone))


@pytest.mark.parametrize("augmentation", [EVERYTHING, Augmentation(0, False, True), Augmentation(4, True, False)])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_waits_for_an_accelerator(augmentation, channels):
    images = images_of(2000, channels, size=8)
    augmentation(images[:500], generator(3))  # tables of the geometric operations are made once
    expected = augmentation(images, generator())
    with Accelerator() as accelerator:
        there = images.to(DEVICE)
        augmentation(there, generator(3))
        accelerator.reset()
        found = augmentation(there, generator())
        assert not accelerator.waits
        assert not accelerator.copied_to_host
        assert accelerator.copied_to_device.total() == 1 + augmentation.auto_augment
        assert accelerator.operations < 225
        assert torch.equal(found.cpu(), expected)
        launches = accelerator.operations
        accelerator.reset()
        augmentation(there.repeat(3, 1, 1, 1), generator())
        assert accelerator.operations <= launches + 10  # whatever the number of images
