"""Kinds of values, as parameters declare them."""

import math
from collections.abc import Sequence
from typing import Optional, Union

import pytest
import torch
from omegaconf import OmegaConf

from fedgh.config.kinds import check_kind
from fedgh.core.errors import ConfigurationError

OPTIONAL, UNION = Optional[bool], Union[str, None]  # noqa: UP007, UP045 - as other packages write it
NODE = OmegaConf.create({"_target_": "torch.optim.SGD", "lr": 0.1})


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, "int"),
        (1, "float"),
        (1.5, float),
        (None, "int | None"),
        (None, OPTIONAL),
        (True, "bool"),
        ("x", UNION),
        (0.1, float | torch.Tensor),
        (OmegaConf.create([1, 2]), "Sequence[int]"),
        (OmegaConf.create([1, 2.5]), "Sequence[float] | None"),
        (OmegaConf.create([1]), Sequence[int]),
        (NODE, "OptimizerFactory"),
        (NODE, "float"),
        (None, "Augment | None"),
        ("anything", "Literal['a', 'b']"),
        ("here", "str | Path"),
        (math.inf, "float"),
        (3, "Any"),
    ],
)
def test_what_fits(value, annotation):
    check_kind("a.b", value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation", "text"),
    [
        (1.5, "int", "a.b must be a whole number, got 1.5"),
        (True, "int", "a.b must be a whole number, got True"),
        ("x", float | torch.Tensor, "a.b must be a number, got 'x'"),
        ("0,1", "float", "a.b must be a number, got '0,1'; type a.b=0.1"),
        ("yes please", "bool", "a.b must be true or false, got 'yes please'"),
        (64, "Sequence[int]", "a.b must be a list of whole numbers, got 64; type a.b=[64]"),
        (OmegaConf.create(["a"]), "Sequence[int] | None", "a.b must be a list of whole numbers or null, got ['a']"),
        (5, "str | None", "a.b must be text or null, got 5; type a.b="),
        (2024, "str | Path", "a.b must be text or a path, got 2024; type a.b=./2024"),
        ("adam", "OptimizerFactory", "a.b must be an optimizer with its settings, as {_target_: torch.optim.SGD,"),
        (True, "Augment | None", "a.b must be an augmentation with its settings"),
        (math.nan, "float", "a.b must be a number, got nan"),
        (OmegaConf.create({"a": 1}), "float", "a.b must be a number, got {'a': 1}"),
    ],
)
def test_what_does_not(value, annotation, text):
    with pytest.raises(ConfigurationError) as caught:
        check_kind("a.b", value, annotation)
    assert str(caught.value).startswith(text)
