"""Precision of float32 on an accelerator: chosen by name, given back, carried to workers."""

import pytest
import torch

from fedgh.core.device import FP32_PRECISIONS, precisions, restore_precisions, sent, set_fp32_precision
from fedgh.core.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _settings():
    before = precisions()
    yield
    set_fp32_precision(None)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert precisions() == before


def test_by_default_convolutions_are_of_tf32_and_products_are_not():
    """PyTorch's own defaults, which the documents tell of."""
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision in ("none", "ieee")


@pytest.mark.parametrize("precision", FP32_PRECISIONS)
def test_a_precision_is_that_of_products_and_convolutions(precision):
    set_fp32_precision(precision)
    assert torch.backends.cuda.matmul.fp32_precision == precision
    assert torch.backends.cudnn.conv.fp32_precision == precision
    assert torch.backends.cudnn.rnn.fp32_precision == precision


def test_none_gives_back_what_the_process_had():
    """Jobs of a sweep share a process."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = precisions()
    for precision in ("ieee", "tf32"):
        set_fp32_precision(precision)
    set_fp32_precision(None)
    assert precisions() == before
    set_fp32_precision(None)
    assert precisions() == before


def test_another_word_is_refused():
    with pytest.raises(ConfigurationError, match=r"fp32_precision must be null or one of ieee, tf32, got 'high'"):
        set_fp32_precision("high")


@pytest.mark.parametrize("setting", ["high", "medium", "new"])
def test_a_worker_gets_the_precision_whatever_interface_set_it(setting):
    if setting == "new":
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision(setting)
    packed = precisions()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert precisions() != packed
    restore_precisions(packed)
    assert precisions() == packed


def test_what_is_sent_arrives():
    tensor = torch.arange(3)
    assert torch.equal(sent(tensor, torch.device("cpu")), tensor)
