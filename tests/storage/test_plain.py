"""Records as plain values: whatever the fields, they come back; what would not is named."""

import collections
import enum
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgh.storage.plain import NotPlainError, from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    params: Tensor
    optimizer: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    round_index: int
    model: Inner
    siblings: tuple[Inner, ...] = ()
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    spare: Inner | None = None
    by_id: dict[int, Inner] = field(default_factory=dict)
    pair: tuple[int, str] = (0, "")


def stored(value):
    """Through a file, as a checkpoint is read."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_nested_records_come_back():
    inner = [Inner(torch.full((2,), float(k)), {"m": torch.tensor(k)}) for k in range(4)]
    outer = Outer(3, inner[0], (inner[1], inner[2]), {"c": torch.ones(2)}, inner[3], {7: inner[1]}, (1, "x"))
    back = from_plain(Outer, stored(to_plain(outer)))
    assert (back.round_index, back.pair, list(back.by_id)) == (3, (1, "x"), [7])
    assert isinstance(back.siblings, tuple)
    for ours, theirs in ((back.model, 0), (back.siblings[1], 2), (back.spare, 3), (back.by_id[7], 1)):
        assert isinstance(ours, Inner)
        assert torch.equal(ours.params, inner[theirs].params)
        assert torch.equal(ours.optimizer["m"], torch.tensor(theirs))
    assert from_plain(Outer, to_plain(Outer(0, inner[0]))).spare is None


def test_fields_that_are_missing_unknown_or_have_moved_into_a_record():
    old = {"round_index": 3, "params": torch.ones(2), "optimizer": {"m": torch.ones(1)}}
    back = from_plain(Outer, old)
    assert torch.equal(back.model.params, torch.ones(2))
    assert set(back.model.optimizer) == {"m"}
    assert back.siblings == ()
    with pytest.raises(KeyError, match=r"Inner.params"):
        from_plain(Outer, {"round_index": 3})
    with pytest.raises(ValueError, match="Outer has no clock"):
        from_plain(Outer, {**old, "clock": 1})


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.float64(0.1), float), (np.int32(3), int), (np.bool_(1), bool), (np.str_("x"), str), (np.uint64(2**63), int)],
)
def test_scalars_of_numpy_become_what_is_equal_to_the_bit(value, kind):
    back = stored(to_plain({"a": [value]}))["a"][0]
    assert type(back) is kind
    assert back == value


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 2**70, 0.1, 1j, "ü", b"x", bytearray(b"x"), torch.Size([2]), torch.float16, torch.device("cpu")),
        *((1, ("a", [2.0])), {1, 2}, {(1, 2): "pair"}, collections.OrderedDict(b=1, a=2), collections.Counter("aab")),
    ],
)
def test_plain_values_come_back_as_they_are(value):
    back = stored(to_plain(value))
    assert type(back) is type(value)
    assert back == value


class Colour(enum.Enum):
    RED = 1


class Tall(str):
    pass


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "where", "kind"),
    [
        ({"best": np.float32(0.1)}, "best", "numpy.float32"),
        ({"row": np.arange(3)}, "row", "numpy.ndarray"),
        ({"seen": collections.defaultdict(int)}, "seen", "collections.defaultdict"),
        ({"a": [0, {"b": Colour.RED}]}, "a.1.b", "Colour"),
        ({"a": Tall("x")}, "a", "Tall"),
        ({"a": Pair(1, 2)}, "a", "Pair"),
        ({"a": frozenset()}, "a", "frozenset"),
        ({"a": {Colour.RED: 1}}, "the keys of a", "Colour"),
        ({"a": len}, "a", "builtin_function_or_method"),
        ({"a": object()}, "a", "object"),
        ({"a": np.longdouble(1)}, "a", "numpy.longdouble"),
    ],
)
def test_what_would_not_come_back_is_named(value, where, kind):
    with pytest.raises(NotPlainError) as caught:
        to_plain(value)
    assert caught.value.path == where
    assert kind in caught.value.kind


def test_something_that_holds_itself():
    endless = {}
    endless["again"] = endless
    with pytest.raises(NotPlainError, match="something nested without end"):
        to_plain(endless)
