"""The mean of learned word vectors, then dense layers; for texts as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedgh.model.base import Model, require_outputs, require_widths


class EmbeddingBag(Model):
    """Average the vectors of a text's tokens, order ignored; token 0 is padding and does not count.

    Args:
        input_shape: Tokens of a text, ``(length,)``.
        num_outputs: Width of the head, the number of classes.
        num_tokens: Token ids go from 0 to this, less one.
        width: Of a word vector.
        hidden: Width of the hidden layer, which is the feature size.

    Raises:
        ConfigurationError: If a width is not positive.

    Reference:
        Joulin et al.: "Bag of Tricks for Efficient Text Classification", EACL 2017.
    Departures:
        Words only, without n-grams, and a hidden layer with ReLU, so that features are not the mean itself.
    """

    def __init__(
        self,
        input_shape: Sequence[int],  # noqa: ARG002 - texts of any length
        num_outputs: int,
        num_tokens: int,
        width: int,
        hidden: int,
    ) -> None:
        super().__init__()
        width, hidden = (require_widths(name, [value])[0] for name, value in (("width", width), ("hidden", hidden)))
        self.words = nn.Embedding(num_tokens, width)
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, require_outputs(num_outputs, "embedding_bag"))

    def features(self, x: Tensor) -> Tensor:
        """Map token ids ``(batch, length)`` int64 to features ``(batch, hidden)``."""
        # PyTorch's padding_idx would do, but under vmap padding receives a gradient all the same.
        there = (x != 0).unsqueeze(-1)
        features: Tensor = self.dense((self.words(x) * there).sum(1) / there.sum(1).clamp(min=1))
        return features
