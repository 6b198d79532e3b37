"""Texts with a label each, from a local Parquet folder; words become token ids by hashing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import TensorDataset, take_fraction
from fedgh.dataset.parquet_columns import class_names, kinds_of, natural_ids, read_columns
from fedgh.task.classification import Classification

WORD = re.compile(r"\w+")


def load(
    root: str | Path,
    name: str | None,
    test_split: str | None,
    text_column: str,
    label_column: str,
    client_column: str | None,
    num_tokens: int,
    length: int,
    train_fraction: float,
) -> TensorDataset:
    """Load a text classification set; the train and the test files stay the splits they are.

    A word is a run of letters and digits in lower case. Its token id is ``1 + crc32(word) mod (num_tokens - 1)``: no
    vocabulary has to be agreed upon by clients, at the price of words that share an id. Id 0 fills short texts up.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        name: For logs; ``None`` for the folder's name.
        test_split: Prefix of the test files; ``None`` for ``test``, else ``valid``, else ``validation``.
        text_column: Column of strings.
        label_column: Column of whole numbers.
        client_column: Column with the natural client of each text, such as its author; ``None`` if there is none.
        num_tokens: Number of token ids, at least 2.
        length: Words of a text that are kept, its first ones.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.

    Raises:
        ConfigurationError: If ``num_tokens`` or ``length`` is out of range.
        DataError: If files, columns or labels are missing or wrong.
    """
    if num_tokens < 2 or length < 1:
        raise ConfigurationError(
            f"dataset.num_tokens must be at least 2 and dataset.length at least 1, got {num_tokens} and {length}; try "
            "16384 and 128."
        )
    kinds = kinds_of((text_column, "text"), (label_column, "label"), (client_column, "id"))
    train, test = read_columns(root, test_split, kinds)
    clients = natural_ids(train.values[client_column], test.values[client_column]) if client_column else (None, None)
    whole = TensorDataset(
        name=Path(root).expanduser().resolve().name if name is None else name,
        train_inputs=tokenize(train.values[text_column], num_tokens, length),
        train_targets=torch.tensor(train.values[label_column]),
        test_inputs=tokenize(test.values[text_column], num_tokens, length),
        test_targets=torch.tensor(test.values[label_column]),
        task=Classification(class_names(train, label_column)),
        client_ids=clients[0],
        test_client_ids=clients[1],
        num_tokens=num_tokens,
    )
    return take_fraction(whole, train_fraction)


def tokenize(texts: Sequence[str], num_tokens: int, length: int) -> Tensor:
    """Return the hashed ids of each text's first words, ``(texts, length)`` int64, filled up with 0."""
    tokens = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        words = WORD.findall(text.lower())[:length]
        tokens[row, : len(words)] = torch.tensor([1 + crc32(word.encode()) % (num_tokens - 1) for word in words])
    return tokens
