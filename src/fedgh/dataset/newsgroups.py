"""Newsgroup messages with their group, as weighted words of a vocabulary or as token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.dataset import parquet_text
from fedgh.dataset.base import TensorDataset, take_fraction
from fedgh.dataset.parquet_columns import class_names, read_columns
from fedgh.task.classification import Classification


def load(
    root: str | Path,
    text_column: str,
    label_column: str,
    inputs: str,
    num_tokens: int,
    length: int,
    train_fraction: float,
) -> TensorDataset:
    """Load texts with a label each, of 20 Newsgroups or any other Parquet set laid out alike.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        text_column: Column of strings.
        label_column: Column of whole numbers.
        inputs: ``tfidf``: float32 ``(num_tokens,)``, term frequency times the smoothed inverse document frequency of
            the ``num_tokens`` most frequent words of the train split, of length 1 (scikit-learn's
            ``TfidfVectorizer``); ``tokens``: hashed ids of the first ``length`` words, as :mod:`parquet_text` has them.
        num_tokens: Words of the vocabulary, or token ids.
        length: Words of a text that are kept, with ``tokens``.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`. The
            vocabulary and its weights are of the whole train split.

    Raises:
        ConfigurationError: If ``inputs`` is another word, or a number is out of range.
        DataError: If files, columns or labels are missing or wrong.

    Reference:
        Lang, "NewsWeeder", ICML 1995; split by date.
    Departures:
        A vocabulary of all clients' words is what one server would know; federations without one use ``tokens``.
    """
    if inputs not in ("tfidf", "tokens"):
        raise ConfigurationError(f"dataset.inputs must be tfidf or tokens, got {inputs!r}.")
    if inputs == "tokens":
        rest = (text_column, label_column, None, num_tokens, length, train_fraction)
        return parquet_text.load(root, "newsgroups", None, *rest)
    if num_tokens < 1:
        raise ConfigurationError(f"dataset.num_tokens must be at least 1, got {num_tokens}; try 4096.")
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test = read_columns(root, None, {text_column: "text", label_column: "label"})
    vectorizer = TfidfVectorizer(max_features=num_tokens, dtype=np.float32)
    matrices = vectorizer.fit_transform(train.values[text_column]), vectorizer.transform(test.values[text_column])
    vectors, test_vectors = (torch.from_numpy(matrix.toarray()) for matrix in matrices)
    whole = TensorDataset(
        name="newsgroups",
        train_inputs=vectors,
        train_targets=torch.tensor(train.values[label_column]),
        test_inputs=test_vectors,
        test_targets=torch.tensor(test.values[label_column]),
        task=Classification(class_names(train, label_column)),
    )
    return take_fraction(whole, train_fraction)
