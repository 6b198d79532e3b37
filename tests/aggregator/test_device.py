"""Rules on a (simulated) accelerator: nothing mixes devices, and the bits are the CPU's.

The rows live there; Gram matrix, cohort, coefficients and memory on the CPU.
"""

import pytest
import torch

from fedgh.core.updates import UpdateMatrix

from ..accelerator import DEVICE, Accelerator, Remote
from .rules import RULES, build, cohort_of, matrix, random_rows


def test_the_simulation_refuses_to_mix_devices():
    rows, weights = torch.ones(3, 4), torch.ones(3)
    with Accelerator():
        there = rows.to(DEVICE)
        assert there.device == DEVICE
        for mixed in (lambda: weights @ there, lambda: there * weights[:, None], lambda: torch.cat([there, rows])):
            with pytest.raises(RuntimeError, match="expected all tensors on one device, found lazy and cpu"):
                mixed()
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            there.add_(rows)
        assert (weights.to(there) @ there).device == DEVICE
        assert torch.zeros(2, device=there.device).device == DEVICE
        assert (there * torch.tensor(2.0)).cpu().sum() == 24  # single numbers may be mixed
        assert float(there[0, 0]) == 1
        view = there[:, 1:]
        view.mul_(5)
    assert rows.tolist() == [[1, 1, 1, 1]] * 3  # carried over, so not the same memory
    assert there.numbers.tolist() == [[1, 5, 5, 5]] * 3
    with pytest.raises(RuntimeError, match="outside"):
        there + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-16])
def test_gram_and_weighted_sums_are_the_same_bits(dtype, scale):
    rows = (random_rows(3, 5, dim=9000) * scale).to(dtype)
    plain, coefficients = matrix(rows), torch.linspace(-1, 1, 5, dtype=torch.float64)
    per_block = coefficients.expand(4, -1)
    with Accelerator():
        there = matrix(rows.to(DEVICE))
        assert torch.equal(there.gram(), plain.gram())
        assert torch.equal(there.gram(by_block=True), plain.gram(by_block=True))
        for c in (coefficients, per_block):
            found = there.combine(c)
            assert found.device == DEVICE
            assert torch.equal(found.cpu(), plain.combine(c))
        keep = torch.tensor([True, False, True, True, False])
        assert torch.equal(there.select(keep).rows.cpu(), plain.select(keep).rows)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_gives_the_bits_of_the_cpu(name):
    settings = {"warmup_rounds": 1, "num_private": 1} if name == "fedlag" else {}
    rule, state, remote_state = build(name, **settings), {}, {}
    for round_index, ids in enumerate([(0, 1, 2, 5, 7), (1, 2, 3, 7, 9)]):  # so that a memory is used
        rows, cohort = random_rows(60 + round_index, 5, dim=40).float(), cohort_of(5, 0, ids, round_index)
        gram = matrix(rows).gram()
        here = rule(matrix(rows), gram, cohort, state)
        with Accelerator() as accelerator:
            there = rule(matrix(rows.to(DEVICE)), gram, cohort, remote_state)
            assert accelerator.operations > 1
            assert isinstance(there.update, Remote)
            assert torch.equal(there.update.cpu(), here.update)
        for found, wanted in ((there.coefficients, here.coefficients), (there.mixing, here.mixing)):
            assert (found is None) == (wanted is None)
            assert found is None or torch.equal(found, wanted)
        assert there.state.keys() == here.state.keys()
        assert all(torch.equal(there.state[key], here.state[key]) for key in here.state)  # on the CPU
        state, remote_state = here.state, there.state


def test_a_rule_that_forgets_to_carry_over_is_found():
    """What the tests above are for."""
    rows, cohort = random_rows(1, 5).float(), cohort_of(5)

    def careless(updates):
        return cohort.weights.float() @ updates.rows

    careless(UpdateMatrix.of(rows))
    with Accelerator(), pytest.raises(RuntimeError, match=r"aten\.\w+.*: expected all tensors on one device"):
        careless(UpdateMatrix.of(rows.to(DEVICE)))
