"""Addressed randomness: stable for ever, independent between addresses."""

import itertools

import numpy as np
import pytest
import torch

from fedgh.core.seeding import numpy_generator, random_bits, sequence, torch_generator, torch_seed

PURPOSES = (
    *("partition", "init", "shuffle", "augment", "client", "projection order", "sampler", "sampler/round_robin"),
    *("digits_test_split", "train_fraction"),
)


def test_golden_values():
    """A published result depends on these: they must never change, on any platform or version."""
    assert torch_seed(1, "init") == 1351750760845235182
    assert torch_seed(0, "client", 3, 7) == 5882899754489344645
    assert torch_generator(3, "augment", 1, 2).initial_seed() == 9068467052233294518
    assert numpy_generator(1, "partition").integers(0, 1000, 6).tolist() == [266, 320, 384, 168, 334, 841]
    assert numpy_generator(42, "shuffle", 2, 5).permutation(8).tolist() == [1, 7, 0, 4, 5, 6, 3, 2]


def test_every_part_of_an_address_counts():
    addresses = list(itertools.product(range(4), PURPOSES, range(5), range(5)))
    assert len({torch_seed(*address) for address in addresses}) == len(addresses)
    states = {tuple(sequence(*address).generate_state(4).tolist()) for address in addresses}
    assert len(states) == len(addresses)


def test_neighbouring_addresses_are_uncorrelated():
    draws = np.stack([numpy_generator(0, "shuffle", t, k).standard_normal(4000) for t in range(4) for k in range(4)])
    correlations = np.corrcoef(draws) - np.eye(16)
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


def test_nothing_is_consumed():
    np.random.seed(5)  # noqa: NPY002 - the global state is what must stay as it is
    torch.manual_seed(5)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = numpy_generator(1, "shuffle", 2, 3).random(3).tolist()
    numpy_generator(1, "shuffle", 2, 4).random(100)
    assert numpy_generator(1, "shuffle", 2, 3).random(3).tolist() == first
    first = torch.rand(3, generator=torch_generator(1, "augment"))
    assert torch.equal(torch.rand(3, generator=torch_generator(1, "augment")), first)
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_torch_seeds_fit_a_generator():
    seeds = [torch_seed(s, "init") for s in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sum(seed >= 2**62 for seed in seeds) > 50


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        numpy_generator(-1, "partition")


def split_mix(seed, count):
    """SplitMix64 as its authors wrote it, in Python's integers; its first word belongs to counter 0 here."""
    words = []
    for i in range(count):
        z = (seed + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        words.append(z ^ (z >> 31))
    return words


def test_random_bits_are_split_mix():
    seeds = [0, 1, 1351750760845235182, 2**63 - 1]
    found = random_bits(torch.tensor(seeds), 4 * 50).numpy().astype(np.uint16).reshape(4, 50, 4).astype(object)
    for row, seed in zip(found, seeds, strict=True):
        words = [sum(int(lane) << 16 * place for place, lane in enumerate(lanes)) for lanes in row]
        assert words == split_mix(seed, 50)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1001])
def test_random_bits_of_a_seed_depend_neither_on_the_others_nor_on_their_number(count):
    seeds = torch.tensor([5, 2**62, 7])
    together = random_bits(seeds, 2000)
    assert torch.equal(random_bits(seeds[1:2], count)[0], together[1, :count])


def test_random_bits_are_uniform():
    bits = random_bits(torch.tensor([3, 4, 2**61]), 1 << 18).to(torch.int64) + 32768
    for lane in range(4):
        for numbers in bits[:, lane::4]:
            for part in (numbers >> 8, numbers & 255):
                counts = torch.bincount(part, minlength=256).double()
                expected = len(part) / 256
                assert float((counts - expected).square().sum() / expected) < 255 + 5 * (2 * 255) ** 0.5
