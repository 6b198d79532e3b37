"""Whether a value of a config is of the kind that a parameter declares, and what kind that is in words."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from omegaconf import DictConfig, ListConfig

from fedgh.core.errors import ConfigurationError

PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
    "Path": ((str,), "a path"),
    "None": ((type(None),), "null"),
}
LISTS = re.compile(r"(?:Sequence|Iterable|list|List|tuple|Tuple)\[(int|float|bool|str)(?:, ?(?:\.\.\.|\1))*\]")
NEVER = ("Tensor", "torch.Tensor")
"""What no value written in a config is."""
PARTS = {
    "OptimizerFactory": "an optimizer with its settings, as {_target_: torch.optim.SGD, _partial_: true, lr: 0.01}",
    "Augment": "an augmentation with its settings, as in configs/dataset/cifar10.yaml",
    "Aggregator": "an aggregator with its settings, as in configs/aggregator/clipped.yaml",
}
"""Kinds that only a node with a ``_target_`` can be."""


def check_kind(path: str, value: Any, annotation: Any) -> None:
    """Refuse a value that is not of the declared kind, so that parts need only check ranges.

    Only plain kinds are looked at: numbers, flags, text, null, lists of them, and unions; what declares another one
    says itself what it cannot use.

    Args:
        path: Of the value, dotted.
        value: A plain value, a node or a list.
        annotation: Of the parameter, as text or as an object.

    Raises:
        ConfigurationError: With the kind that was expected.
    """
    kinds = [kind for kind in alternatives(annotation) if kind not in NEVER]
    answers = [_is(value, kind) for kind in kinds]
    if isinstance(value, float) and value != value:
        raise ConfigurationError(f"{path} must be a number, got nan; leave it at its default")
    if not answers or True in answers or None in answers:
        return
    expected = " or ".join(dict.fromkeys(_words(kind) for kind in kinds))
    got = f"{value!s}" if isinstance(value, DictConfig | ListConfig) else f"{value!r}"
    raise ConfigurationError(f"{path} must be {expected}, got {got}{_hint(path, value, kinds)}")


def alternatives(annotation: Any) -> list[str]:
    """Return the names of what an annotation admits: ``int | None`` and ``Optional[int]`` give ``int`` and ``None``."""
    if isinstance(annotation, str):
        return [part.strip() for part in re.split(r"\|(?![^\[]*\])", annotation)]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [name for part in typing.get_args(annotation) for name in alternatives(part)]
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation.__name__.removeprefix("NoneType") or "None"]
    return [str(annotation).replace("typing.", "").replace("collections.abc.", "")]


def _is(value: Any, kind: str) -> bool | None:
    """Tell whether a value is of a kind; None if the kind is not known here."""
    if isinstance(value, DictConfig) and "_target_" in value:
        return None  # builds whatever it builds
    if kind in PARTS:
        return False
    if kind in PLAIN:
        flag = isinstance(value, bool) and kind != "bool"  # true is a number to Python, and a mistake to a reader
        return isinstance(value, PLAIN[kind][0]) and not flag
    if match := LISTS.fullmatch(kind):
        return isinstance(value, ListConfig) and all(_is(item, match[1]) is not False for item in value)
    return None


def _words(kind: str) -> str:
    if match := LISTS.fullmatch(kind):
        words = {"int": "whole numbers", "float": "numbers", "bool": "flags", "str": "texts"}
        return f"a list of {words[match[1]]}"
    return PARTS.get(kind) or PLAIN[kind][1]


def _hint(path: str, value: Any, kinds: list[str]) -> str:
    """Return what to type instead, where one value stands for a list of one, a comma for a point, a number for text."""
    items = [match[1] for kind in kinds if (match := LISTS.fullmatch(kind))]
    if any(_is(value, item) for item in items):
        return f"; type {path}=[{value}]"
    if isinstance(value, str) and "float" in kinds and re.fullmatch(r"-?\d+,\d+", value):
        return f"; type {path}={value.replace(',', '.')}"
    if isinstance(value, int | float) and {"str", "Path"} & set(kinds):
        return f"; type {path}={f'./{value}' if 'Path' in kinds else repr(repr(str(value)))}"
    return ""
