"""Texts whose characters are predicted one after the other, from a local Parquet folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import TensorDataset, take_fraction
from fedgh.dataset.parquet_columns import kinds_of, natural_ids, read_columns
from fedgh.task.base import PADDING
from fedgh.task.next_token import NextToken

START, OTHER = 0, 1
"""Tokens beside the characters: before the first and after the last one; a character that training never saw."""


def load(
    root: str | Path,
    name: str | None,
    test_split: str | None,
    text_column: str,
    client_column: str | None,
    length: int,
    train_fraction: float,
) -> TensorDataset:
    """Load texts as sequences of characters, each the target of the position before it.

    A text is cut into sequences of ``length`` characters; every character is predicted once, from those before it in
    its sequence. Tokens are the characters of the train split in their code's order, after one for the start and one
    for all others.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        name: For logs; ``None`` for the folder's name.
        test_split: Prefix of the test files; ``None`` for ``test``, else ``valid``, else ``validation``.
        text_column: Column of strings; empty ones are left out.
        client_column: Column with the natural client of each text, such as who speaks; ``None`` if there is none.
        length: Characters of a sequence.
        train_fraction: Share of the train split to keep, stratified by first characters; see
            :func:`fedgh.dataset.base.take_fraction`.

    Raises:
        ConfigurationError: If ``length`` is not positive.
        DataError: If files or columns are missing or wrong.
    """
    if length < 1:
        raise ConfigurationError(f"dataset.length must be at least 1 character, got {length}; try 80.")
    train, test = read_columns(root, test_split, kinds_of((text_column, "text"), (client_column, "id")))
    characters = sorted(set().union(*train.values[text_column]))
    tokens = {character: 2 + number for number, character in enumerate(characters)}
    splits = [sequences(split.values[text_column], tokens, length) for split in (train, test)]
    clients: list[Tensor | None] = [None, None]
    if client_column:
        ids = natural_ids(train.values[client_column], test.values[client_column])
        clients = [own[text] for own, (_, _, text) in zip(ids, splits, strict=True)]
    whole = TensorDataset(
        name=Path(root).expanduser().resolve().name if name is None else name,
        train_inputs=splits[0][0],
        train_targets=splits[0][1],
        test_inputs=splits[1][0],
        test_targets=splits[1][1],
        task=NextToken(("<start>", "<other>", *characters)),
        client_ids=clients[0],
        test_client_ids=clients[1],
        num_tokens=2 + len(characters),
    )
    return take_fraction(whole, train_fraction)


def sequences(texts: Sequence[str], tokens: Mapping[str, int], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut texts into sequences.

    Args:
        texts: Any strings.
        tokens: Token of each known character.
        length: Characters of a sequence.

    Returns:
        Inputs and targets ``(sequences, length)`` int64, targets ``PADDING`` after a text's end; which text each
        sequence is of, ``(sequences,)``.
    """
    inputs, targets, owner = [], [], []
    for place, text in enumerate(texts):
        codes = np.array([tokens.get(character, OTHER) for character in text], dtype=np.int64)
        for start in range(0, len(codes), length):
            piece = codes[start : start + length]
            missing = length - len(piece)
            inputs.append(np.pad(np.concatenate([[START], piece[:-1]]), (0, missing), constant_values=START))
            targets.append(np.pad(piece, (0, missing), constant_values=PADDING))
            owner.append(place)
    return torch.from_numpy(np.array(inputs)), torch.from_numpy(np.array(targets)), torch.tensor(owner)
