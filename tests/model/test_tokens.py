"""Models of token ids against PyTorch's own layers."""

import pytest
import torch
from torch import nn

from fedgh.core.errors import ConfigurationError
from fedgh.model.embedding_bag import EmbeddingBag
from fedgh.model.gru import GRU

TOKENS = torch.tensor([[3, 1, 4, 0, 0], [5, 5, 2, 6, 1], [0, 0, 0, 0, 0]])


def test_the_bag_is_the_mean_over_the_words_that_are_there():
    model = EmbeddingBag((5,), 3, num_tokens=7, width=4, hidden=6)
    vectors = model.words.weight.detach()
    means = torch.stack([vectors[[3, 1, 4]].mean(0), vectors[[5, 5, 2, 6, 1]].mean(0), torch.zeros(4)])
    torch.testing.assert_close(model.features(TOKENS), model.dense(means))
    assert model(TOKENS).shape == (3, 3)
    model(TOKENS).sum().backward()
    assert not model.words.weight.grad[0].any(), "padding never trains"


def test_the_gru_is_pytorchs():
    torch.manual_seed(0)
    model = GRU((5,), 9, num_tokens=7, width=4, hidden=6)
    reference = nn.GRU(4, 6, batch_first=True)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(model.from_input.weight)
        reference.bias_ih_l0.copy_(model.from_input.bias)
        reference.weight_hh_l0.copy_(model.from_state.weight)
        reference.bias_hh_l0.copy_(model.from_state.bias)
    torch.testing.assert_close(model.features(TOKENS), reference(model.tokens(TOKENS))[0])
    assert model(TOKENS).shape == (3, 5, 9)
    assert float(model.from_state.weight.detach().abs().max()) <= 6**-0.5


def test_widths_are_checked():
    with pytest.raises(ConfigurationError, match=r"model.hidden must hold positive widths"):
        GRU((5,), 9, num_tokens=7, width=4, hidden=0)
    with pytest.raises(ConfigurationError, match=r"model.width must hold positive widths"):
        EmbeddingBag((5,), 9, num_tokens=7, width=-1, hidden=3)
