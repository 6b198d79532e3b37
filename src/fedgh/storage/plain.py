"""Records as plain values and back: what a checkpoint is made of, so that reading one runs no code of its writer.

Plain are tensors, numbers, text and the like, in dicts, lists, tuples and sets. A dataclass becomes a dict of its
fields and comes back by its type hints, so a new field needs no line here.
"""

from __future__ import annotations

import types
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

_LEAVES = (torch.Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device)
_LEAVES += (type(None), bool, int, float, complex, str, bytes, bytearray)  # type: ignore[assignment]
"""What PyTorch reads back with ``weights_only=True``; a subclass of one would come back as another type, or not."""
_EXACT = ((np.bool_, bool), (np.integer, int), (np.float64, float), (np.str_, str))
"""NumPy's scalars that a type of Python's holds to the bit, and computes with alike."""


class NotPlainError(Exception):
    """Something that could not be read back; ``path`` says where, ``kind`` what."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(f"{kind} in {path}")
        self.path, self.kind = path, kind


def to_plain(value: Any, path: str = "", depth: int = 50) -> Any:
    """Return a value made of plain ones only.

    Args:
        value: Dataclasses, mappings, lists and tuples of plain values, nested.
        path: Where it stands, for the error.
        depth: Of nesting, at most; something that holds itself has no end.

    Raises:
        NotPlainError: At the first part that would not come back as it is.
    """
    if type(value) in _LEAVES:
        return value
    for scalar, python in _EXACT:
        if isinstance(value, scalar):
            return python(value)
    if depth == 0:
        raise NotPlainError(path, "something nested without end")
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return {name: to_plain(getattr(value, name), _below(path, name), depth - 1) for name in names}
    if type(value) in (dict, OrderedDict, Counter):
        return type(value)(
            {
                to_plain(key, f"the keys of {path}", depth - 1): to_plain(part, _below(path, key), depth - 1)
                for key, part in value.items()
            }
        )
    if type(value) in (list, tuple, set):
        return type(value)([to_plain(part, _below(path, number), depth - 1) for number, part in enumerate(value)])
    raise NotPlainError(path, f"{type(value).__module__}.{type(value).__qualname__}")


def from_plain(kind: Any, value: Any) -> Any:
    """Return what :func:`to_plain` was given.

    Args:
        kind: Its type: a dataclass, or as in the hints of its fields.
        value: What that function returned. Fields that it lacks get their defaults; those that have moved into a
            dataclass of a field since are looked for one level higher.

    Raises:
        KeyError: If it lacks a field without a default.
        ValueError: If it has one that the dataclass does not.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _record(kind, value)
    if origin in (Union, types.UnionType) and value is not None:
        return from_plain(next(part for part in arguments if part is not type(None)), value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: from_plain(arguments[1], part) for key, part in value.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence) and len(set(arguments) - {...}) == 1:
        return type(value)(from_plain(arguments[0], part) for part in value)
    return value


def _record(kind: Any, value: Mapping[str, Any]) -> Any:
    hints, content = get_type_hints(kind), dict(value)
    for name, hint in hints.items():
        if name not in content and is_dataclass(hint):
            moved = {field.name for field in fields(hint)} - hints.keys()
            content[name] = {key: content.pop(key) for key in moved & content.keys()}
    for field in fields(kind):
        if field.name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(f"{kind.__name__}.{field.name}")
    unknown = content.keys() - hints.keys()
    if unknown:
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**{name: from_plain(hints[name], part) for name, part in content.items()})


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
