"""Addressed randomness: every generator is derived from ``(seed, purpose, round, client)``.

Nothing is consumed from a shared stream, so results cannot depend on the order in which clients run, on the number of
workers, or on where a run was stopped and resumed. This is the only module that seeds anything.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

_STEP, *_MIX = (constant - (1 << 64) for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def sequence(seed: int, purpose: str, round_index: int = 0, client_id: int = 0) -> np.random.SeedSequence:
    """Return the seed sequence at one address.

    Args:
        seed: Seed of the experiment, non-negative.
        purpose: What the numbers are for, such as ``"partition"`` or ``"shuffle"``; hashed by CRC-32, which is the
            same on every platform.
        round_index: Round t, from 0; leave 0 for what happens once a run.
        client_id: Client k, from 0; leave 0 for what the server draws.
    """
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), round_index, client_id])


def numpy_generator(seed: int, purpose: str, round_index: int = 0, client_id: int = 0) -> np.random.Generator:
    """Return a counter-based (Philox) NumPy generator at one address; see :func:`sequence`."""
    return np.random.Generator(np.random.Philox(sequence(seed, purpose, round_index, client_id)))


def torch_seed(seed: int, purpose: str, round_index: int = 0, client_id: int = 0) -> int:
    """Return a 63-bit seed at one address, for a PyTorch generator; see :func:`sequence`."""
    return int(sequence(seed, purpose, round_index, client_id).generate_state(1, np.uint64)[0] >> 1)


def torch_generator(
    seed: int,
    purpose: str,
    round_index: int = 0,
    client_id: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Return a PyTorch generator at one address; see :func:`sequence`."""
    return torch.Generator(device).manual_seed(torch_seed(seed, purpose, round_index, client_id))


def random_bits(seeds: Tensor, count: int) -> Tensor:
    """Return random 16-bit numbers, those of every seed from a stream of its own, in operations on all of them at once.

    Row k depends on ``seeds[k]`` alone, and its first numbers not on how many there are. The launches do not grow with
    the number of seeds; on a CPU a number costs less than one of PyTorch's generators.

    Args:
        seeds: 63-bit numbers, ``(streams,)`` int64 on any device.
        count: Numbers of each stream.

    Returns:
        Uniform in -32768 .. 32767, ``(streams, count)`` int16 on the device of ``seeds``.

    Reference:
        SplitMix64: Steele, Lea, Flood, OOPSLA 2014; four numbers are taken from each of its 64-bit words.
    """
    words = torch.arange(-(-count // 4), device=seeds.device).mul_(_STEP) + seeds[:, None]  # modulo 2^64
    for shift, factor in zip((30, 27), _MIX, strict=True):
        words.bitwise_xor_(_shifted(words, shift)).mul_(factor)
    return words.bitwise_xor_(_shifted(words, 31)).view(torch.int16)[:, :count]


def normal_numbers(seed: Tensor, step: Tensor, count: int) -> Tensor:
    """Return standard normal numbers of a step, ``(count,)`` float64, under ``vmap`` those of every seed.

    Elementwise operations on 64-bit words, two numbers from each by Box and Muller, so that a client alone and one
    among many get the same.

    Args:
        seed: A 63-bit number, scalar int64.
        step: Which step, scalar int64; steps have numbers of their own.
        count: How many.

    Reference:
        SplitMix64, see :func:`random_bits`. Box and Muller, 1958.
    """
    half = -(-count // 2)
    words = (torch.arange(half, device=seed.device) + step * half) * _STEP + seed
    for shift, factor in zip((30, 27), _MIX, strict=True):
        words = (words ^ (words >> shift & (1 << (64 - shift)) - 1)) * factor
    words = words ^ (words >> 31 & (1 << 33) - 1)
    first, second = ((part.double() + 0.5) / 2**32 for part in (words >> 32 & 0xFFFFFFFF, words & 0xFFFFFFFF))
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, not with the sign."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)
