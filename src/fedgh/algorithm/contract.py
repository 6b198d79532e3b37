"""Mistakes that a method of one's own makes easily, each said in a line that names the hook and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from torch import Tensor

from fedgh.core.errors import ConfigurationError

Writes = list[tuple[str, Tensor, int]]
"""What a tensor is, the tensor, and how often it had been written to."""


def check_hooks(method: type, base: type, hooks: Iterable[str]) -> None:
    """Check that a method's own hooks can be called as the engine calls them, and that no hook is misspelt.

    Raises:
        ConfigurationError: Naming the first hook that cannot.
    """
    names = list(hooks)
    for name, own in inspect.getmembers(method, inspect.isfunction):
        if name.startswith("_") or own is getattr(base, name, None):
            continue
        if name not in names:
            if not hasattr(base, name) and (close := get_close_matches(name, names, n=1, cutoff=0.85)):
                raise ConfigurationError(
                    f"{method.__name__}.{name} is never called, as there is no such hook; write {close[0]}, or begin "
                    "the name of a helper with an underscore"
                )
            continue
        given = list(inspect.signature(getattr(base, name)).parameters)
        try:
            inspect.signature(own).bind(*given)
        except TypeError as error:
            raise ConfigurationError(
                f"{method.__name__}.{name} cannot be called ({error}); write def {name}({', '.join(given)})"
            ) from error


def check_alike(method: object, hook: str, what: str, given: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Check that what a hook returned for several clients has the same names and shapes, so that it can be stacked.

    Args:
        method: The algorithm.
        hook: Its name.
        what: What it returned, for instance ``Start.state``.
        given: By client, as the message names it.

    Raises:
        ConfigurationError: Naming two clients that differ, and in what.
    """
    kinds = {k: {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} for k, tensors in given.items()}
    first = next(iter(kinds), None)
    for k, kind in kinds.items():
        if first is not None and kind != kinds[first]:
            raise ConfigurationError(
                f"{type(method).__name__}.{hook} must give every client the same names, shapes and types in {what}: "
                f"{first} has {_described(kinds[first])}, {k} {_described(kind)}; begin with zeros "
                "where a client has nothing yet"
            )


def wrong_type(method: object, hook: str, found: object, expected: type) -> ConfigurationError:
    """Return the error that says what a hook has to return."""
    return ConfigurationError(
        f"{type(method).__name__}.{hook} must return a {expected.__name__}, got {type(found).__name__}"
    )


def note_writes(tensors: Iterable[tuple[str, Tensor]]) -> Writes:
    """Note how often tensors have been written to, for :func:`check_unwritten`."""
    return [(what, tensor, tensor._version) for what, tensor in tensors if not tensor.is_inference()]


def check_unwritten(method: object, noted: Writes) -> None:
    """Check that nobody wrote into a tensor since :func:`note_writes`.

    Raises:
        ConfigurationError: Naming the first that was written to.
    """
    for what, tensor, version in noted:
        if tensor._version != version:
            raise ConfigurationError(
                f"{type(method).__name__} wrote into {what} in place (such as t += x, t.add_(x), t[0] = x), which "
                "others hold, too; make a new tensor (t = t + x) or write into a t.clone()"
            )


def _described(kind: Mapping[str, tuple[tuple[int, ...], object]]) -> str:
    parts = [f"{n} {shape} {str(dtype).removeprefix('torch.')}" for n, (shape, dtype) in sorted(kind.items())]
    return ", ".join(parts) or "nothing"
