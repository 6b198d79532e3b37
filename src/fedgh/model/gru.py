"""A recurrent network over tokens, with an output at every position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedgh.model.base import Model, require_outputs, require_widths


class GRU(Model):
    """Embedded tokens through one gated recurrent layer; features and outputs at every position.

    The layer is written out, since PyTorch's own cannot be vectorized over clients.

    Args:
        input_shape: Tokens of a sequence, ``(length,)``.
        num_outputs: Width of the head, the number of tokens to predict.
        num_tokens: Token ids go from 0 to this, less one.
        width: Of a token's vector.
        hidden: Width of the recurrent state, which is the feature size.

    Raises:
        ConfigurationError: If a width is not positive.

    Reference:
        Cho et al., EMNLP 2014, in the form of ``torch.nn.GRU``. The Shakespeare network of McMahan et al., AISTATS
        2017, has two LSTM layers of 256; this is a smaller relative.
    """

    def __init__(
        self,
        input_shape: Sequence[int],  # noqa: ARG002 - sequences of any length
        num_outputs: int,
        num_tokens: int,
        width: int,
        hidden: int,
    ) -> None:
        super().__init__()
        width, hidden = (require_widths(name, [value])[0] for name, value in (("width", width), ("hidden", hidden)))
        self.tokens = nn.Embedding(num_tokens, width)
        self.from_input = nn.Linear(width, 3 * hidden)  # reset, update and candidate side by side
        self.from_state = nn.Linear(hidden, 3 * hidden)
        for parameter in (*self.from_input.parameters(), *self.from_state.parameters()):
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))  # as torch.nn.GRU starts
        self.head = nn.Linear(hidden, require_outputs(num_outputs, "gru"))

    def features(self, x: Tensor) -> Tensor:
        """Map token ids ``(batch, length)`` int64 to features ``(batch, length, hidden)``."""
        inputs = self.from_input(self.tokens(x))  # (batch, length, 3 hidden)
        state = torch.zeros_like(inputs[:, 0, : self.head.in_features])
        states = []
        for here in inputs.unbind(1):
            reset_in, update_in, new_in = here.chunk(3, dim=-1)
            reset_state, update_state, new_state = self.from_state(state).chunk(3, dim=-1)
            reset, update = (reset_in + reset_state).sigmoid(), (update_in + update_state).sigmoid()
            candidate = (new_in + reset * new_state).tanh()
            state = candidate + update * (state - candidate)
            states.append(state)
        return torch.stack(states, dim=1)
