"""The two passes over the update matrix: its Gram matrix and its weighted sums."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedgh.core.updates import Block, RowMemory, UpdateMatrix


def integers(num_clients, dim, seed=0, high=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high, (num_clients, dim), generator=generator).to(torch.float32)


def cut(rows, *stops):
    starts = (0, *stops)
    ends = (*stops, rows.shape[1])
    blocks = (Block(f"b{i}", a, b, torch.Size([b - a])) for i, (a, b) in enumerate(zip(starts, ends, strict=True)))
    return UpdateMatrix(rows, tuple(blocks))


def exact_gram(rows):
    return rows.double() @ rows.double().T


@pytest.mark.parametrize("dim", [1, 7, 4095, 4096, 4097, 8192, 8193, 250_000])
def test_gram_is_exact_on_integers_whatever_the_chunks(dim):
    rows = integers(5, dim)
    rows[:, 0] = torch.arange(1, 6)  # no zero row
    gram = UpdateMatrix.of(rows).gram()
    assert gram.dtype == torch.float64
    assert torch.equal(gram, exact_gram(rows))


def test_gram_by_block_is_each_blocks_own_and_sums_to_the_whole():
    rows = integers(4, 9000)
    updates = cut(rows, 3, 5000, 5001)
    grams = updates.gram(by_block=True)
    assert grams.shape == (4, 4, 4)
    for gram, block in zip(grams, updates.blocks, strict=True):
        assert torch.equal(gram, exact_gram(rows[:, block.start : block.stop]))
    assert torch.equal(grams.sum(0), updates.gram())


def test_chunks_are_summed_in_double_precision():
    rows = torch.zeros(1, 8192)
    rows[0, 0], rows[0, 5000] = 2.0**13, 1.0  # 2^26 + 1 is no float32 number
    assert UpdateMatrix.of(rows).gram().item() == 2**26 + 1


@pytest.mark.parametrize("dim", [1000, 300_000])
def test_gram_of_float32_is_accurate_and_symmetric(dim):
    rows = torch.randn(8, dim, generator=torch.Generator().manual_seed(0))
    gram, expected = UpdateMatrix.of(rows).gram(), exact_gram(rows)
    scale = torch.outer(expected.diagonal(), expected.diagonal()).sqrt()
    assert float(((gram - expected) / scale).abs().max()) < 1e-6
    assert torch.equal(gram, gram.T)


def test_gram_of_bfloat16_is_that_of_its_values():
    rows = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram, expected = UpdateMatrix.of(rows).gram(), exact_gram(rows)
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=0.05)
    assert not torch.allclose(gram, (rows @ rows.T).double(), rtol=1e-5, atol=0.05)  # bf16 products would not do


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-14, 1e16, 1e25, 1e30])
@pytest.mark.parametrize("by_block", [False, True])
def test_norms_beyond_float32_are_summed_in_double_precision(scale, by_block):
    rows = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * scale
    gram = cut(rows, 1234).gram(by_block)
    gram = gram.sum(0) if by_block else gram
    torch.testing.assert_close(gram, exact_gram(rows), rtol=1e-12, atol=0)


def test_one_tiny_row_among_ordinary_ones_keeps_its_digits():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    rows[1] *= 1e-24
    gram = UpdateMatrix.of(rows).gram()
    torch.testing.assert_close(gram, exact_gram(rows), rtol=1e-12, atol=0)
    assert gram[1, 1] > 0


def test_a_zero_row_gives_zeros():
    rows = integers(3, 50)
    rows[2] = 0
    gram = UpdateMatrix.of(rows).gram()
    assert torch.equal(gram, exact_gram(rows))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_only_itself(value):
    rows = integers(3, 5000)
    rows[1, 4500] = value
    gram = UpdateMatrix.of(rows).gram()
    assert gram.diagonal().isfinite().tolist() == [True, False, True]
    assert torch.equal(gram[::2, ::2], exact_gram(rows[::2]))


def test_combine_by_hand():
    rows = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    assert UpdateMatrix.of(rows).combine(torch.tensor([1.0, -0.5])).tolist() == [-4.0, -8.0, -12.0]
    per_block = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert cut(rows, 1).combine(per_block).tolist() == [1.0, 20.0, 30.0]


@pytest.mark.parametrize(
    ("dtype", "result"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_combine_is_at_least_float32(dtype, result):
    rows = integers(5, 300).to(dtype)
    coefficients = torch.tensor([0.5, 0.25, 1.0, 2.0, -1.0], dtype=torch.float64)
    combined = cut(rows, 100).combine(coefficients)
    assert combined.dtype == result
    assert torch.equal(combined.double(), coefficients @ rows.double())
    assert torch.equal(cut(rows, 100).combine(coefficients.expand(2, -1)), combined)


def test_select_copies_rows_and_keeps_blocks():
    updates = cut(integers(4, 10), 6)
    chosen = updates.select(torch.tensor([True, False, False, True]))
    assert len(chosen) == 2
    assert chosen.blocks == updates.blocks
    assert torch.equal(chosen.rows, updates.rows[[0, 3]])
    before = updates.rows.clone()
    chosen.rows.zero_()
    assert torch.equal(updates.rows, before)


@pytest.mark.parametrize("blocks", [(), (Block("a", 0, 4, torch.Size([4])),), (Block("a", 1, 5, torch.Size([4])),)])
def test_blocks_must_cover_every_column(blocks):
    with pytest.raises(ValueError, match="blocks must cover all 5 columns"):
        UpdateMatrix(torch.zeros(2, 5), blocks)


def precisions():
    backends = torch.backends
    settings = (backends, backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn, backends.cudnn.conv)
    return [setting.fp32_precision for setting in settings]


class Products(TorchDispatchMode):
    """Notes what float32 products may be rounded to whenever one is formed; fails at the first if asked to."""

    def __init__(self, fail=False):
        super().__init__()
        self.seen, self.fail = [], fail

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.mv, torch.ops.aten.addmm):
            self.seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
            if self.fail:
                raise RuntimeError("interrupted")
        return operation(*args, **(kwargs or {}))


def allow_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True


def everywhere(precision):
    torch.backends.fp32_precision = precision


def in_products(precision):
    torch.backends.cuda.matmul.fp32_precision = precision if precision == "tf32" else "none"
    torch.backends.mkldnn.matmul.fp32_precision = precision


def both_interfaces():
    torch.set_float32_matmul_precision("high")
    torch.backends.fp32_precision = "ieee"


REDUCED = {
    "allow_tf32": allow_tf32,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),  # bf16 on CPUs that have it
    "new": lambda: everywhere("tf32"),
    "new_bf16": lambda: everywhere("bf16"),
    "new_products": lambda: in_products("tf32"),
    "new_products_bf16": lambda: in_products("bf16"),
    "both": both_interfaces,
}


@pytest.fixture
def _settings():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "none"


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("allow", REDUCED.values(), ids=REDUCED)
def test_products_are_of_full_precision_whatever_interface_reduced_it(allow):
    updates = cut(torch.randn(12, 5000, generator=torch.Generator().manual_seed(0)), 1234)
    weights = torch.linspace(-1, 1, 12, dtype=torch.float64)
    passes = (
        updates.gram,
        lambda: updates.gram(by_block=True),
        lambda: updates.combine(weights),
        lambda: updates.combine(weights.expand(2, -1)),
    )
    expected = [passing() for passing in passes]
    allow()
    before = precisions()
    assert {"tf32", "bf16"} & set(before[1:3])
    with Products() as products:
        found = [passing() for passing in passes]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(products.seen) > 4
    assert not {"tf32", "bf16"} & {precision for pair in products.seen for precision in pair}
    assert precisions() == before


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("allow", REDUCED.values(), ids=REDUCED)
def test_the_users_precision_comes_back_after_an_error_too(allow):
    updates = UpdateMatrix.of(integers(2, 10))
    allow()
    before = precisions()
    for passing in (updates.gram, lambda: updates.combine(torch.ones(2))):
        with Products(fail=True), pytest.raises(RuntimeError, match="interrupted"):
            passing()
        assert precisions() == before


@pytest.mark.usefixtures("_settings")
def test_what_follows_a_global_setting_goes_on_following_it():
    torch.backends.fp32_precision = "tf32"
    UpdateMatrix.of(integers(2, 10)).gram()
    torch.backends.fp32_precision = "ieee"
    assert precisions()[:3] == ["ieee"] * 3


@pytest.mark.usefixtures("_settings")
def test_allow_tf32_can_be_asked_for_afterwards():
    allow_tf32()
    UpdateMatrix.of(integers(2, 10)).gram()
    assert torch.backends.cuda.matmul.allow_tf32 is True
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("tiny", [1e-18, 1e-22, 1e-30])
@pytest.mark.parametrize("large", [1.0, 1e16])
def test_a_block_far_smaller_or_larger_than_the_others_keeps_its_digits(tiny, large):
    rows = torch.randn(4, 6000, generator=torch.Generator().manual_seed(0))
    rows[:, 2000:2500] *= tiny
    rows[:, 4000:] *= large
    updates = cut(rows, 2000, 2500, 4000)
    grams = updates.gram(by_block=True)
    for gram, block in zip(grams, updates.blocks, strict=True):
        expected = exact_gram(rows[:, block.start : block.stop])
        scale = torch.outer(expected.diagonal(), expected.diagonal()).sqrt()
        assert float(((gram - expected) / scale).abs().max()) < 1e-6


def test_only_the_blocks_that_need_it_are_passed_over_in_float64():
    rows = integers(3, 9000)
    rows[:, 3000:3010] = 0
    with Products() as products:
        cut(rows, 3000, 3010).gram(by_block=True)
    assert len(products.seen) == 1 + 1 + 2 + 1  # chunks of up to 4096 columns, then the block of zeros


def test_finite_rows_with_a_finite_aggregate_give_it_however_large_the_coefficients():
    rows = torch.tensor([[1.0, 0.0], [-1e-40, 1e-40]])
    coefficients = torch.tensor([1.0, 5e39], dtype=torch.float64)
    expected = coefficients @ rows.double()
    assert UpdateMatrix.of(rows).combine(coefficients).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    per_block = torch.stack([coefficients, coefficients])
    assert cut(rows, 1).combine(per_block).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "coefficients"),
    [
        ([[1e38], [1e38], [-1e38]], [3.0, 3.0, 5.5]),  # a sum on the way is no float32 number
        ([[1e30], [2e30], [0.0]], [1e-42, 1e-43, 1.0]),  # float32 would keep three digits of these coefficients
        ([[1e-38], [1e-38], [1.0]], [1e38, 2e38, 0.0]),
    ],
)
def test_what_is_no_float32_number_on_the_way_does_not_spoil_the_aggregate(rows, coefficients, dtype):
    rows, coefficients = torch.tensor(rows).to(dtype), torch.tensor(coefficients, dtype=torch.float64)
    found = UpdateMatrix.of(rows).combine(coefficients)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((coefficients @ rows.double()).item(), rel=1e-6)


def test_an_aggregate_beyond_float32_is_infinite():
    assert UpdateMatrix.of(torch.full((2, 1), 3e38)).combine(torch.ones(2)).tolist() == [float("inf")]


def test_the_memory_of_a_round_is_used_again():
    memory = RowMemory(5, torch.float32, torch.device("cpu"))
    place = memory.take(3).data_ptr()
    assert memory.take(3).data_ptr() == place
    assert memory.take(2).data_ptr() == place
    assert len(memory.take(4)) == 4
    place = memory.take(3).data_ptr()
    assert memory.take(4).data_ptr() == place


@pytest.mark.parametrize(
    "part", [lambda rows: rows, lambda rows: UpdateMatrix.of(rows), lambda rows: rows[1, 2:], lambda rows: rows.numpy()]
)
def test_what_somebody_keeps_of_a_round_stays_as_it_was(part):
    memory = RowMemory(5, torch.float32, torch.device("cpu"))
    rows = memory.take(3)
    rows.fill_(1.0)
    place, kept = rows.data_ptr(), part(rows)
    del rows
    for value in (2.0, 3.0):
        memory.take(3).fill_(value)
    assert bool((torch.as_tensor(getattr(kept, "rows", kept)) == 1).all())
    later = memory.take(3).data_ptr()
    assert later != place
    del kept
    assert memory.take(3).data_ptr() == later
