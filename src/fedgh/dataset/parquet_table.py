"""Rows of numbers with a label or a number to predict, from a local Parquet folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import TensorDataset, take_fraction
from fedgh.dataset.parquet_columns import class_names, kinds_of, natural_ids, read_columns, standardized
from fedgh.task.base import Task
from fedgh.task.classification import Classification
from fedgh.task.regression import Regression


def load(
    root: str | Path,
    name: str | None,
    test_split: str | None,
    columns: Sequence[str],
    label_column: str,
    client_column: str | None,
    task: str,
    num_strata: int,
    train_fraction: float,
) -> TensorDataset:
    """Load a table; the train and the test files stay the splits they are.

    Columns, and the targets of a regression, are brought to mean 0 and standard deviation 1 of the train split.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files.
        name: For logs; ``None`` for the folder's name.
        test_split: Prefix of the test files; ``None`` for ``test``, else ``valid``, else ``validation``.
        columns: Columns of numbers that a model sees.
        label_column: Column to predict: whole numbers from 0 (classification) or any numbers (regression).
        client_column: Column with the natural client of each row, such as a hospital; ``None`` if there is none.
        task: ``classification`` or ``regression``.
        num_strata: With regression, intervals of the target that label-skew partitions go by.
        train_fraction: Stratified share of the train split to keep; see :func:`fedgh.dataset.base.take_fraction`.

    Raises:
        ConfigurationError: If there are no columns, the target is among them, or ``task`` is another word.
        DataError: If files, columns or labels are missing or wrong.
    """
    if task not in ("classification", "regression"):
        raise ConfigurationError(f"dataset.task must be classification or regression, got {task!r}.")
    if not columns or label_column in columns:
        raise ConfigurationError(
            f"dataset.columns must name the columns that a model sees, without {label_column!r}; got {list(columns)}."
        )
    target = "label" if task == "classification" else "number"
    kinds = kinds_of(*((column, "number") for column in columns), (label_column, target), (client_column, "id"))
    train, test = read_columns(root, test_split, kinds)
    table, test_table = (np.array([split.values[c] for c in columns], dtype=np.float64).T for split in (train, test))
    inputs, test_inputs = standardized(table, test_table)
    values, test_values = train.values[label_column], test.values[label_column]
    if task == "classification":
        kind: Task = Classification(class_names(train, label_column))
        targets, test_targets = torch.tensor(values), torch.tensor(test_values)
    else:
        targets, test_targets = standardized(np.array(values), np.array(test_values))
        kind = Regression.of(targets, num_strata)
    clients = natural_ids(train.values[client_column], test.values[client_column]) if client_column else (None, None)
    whole = TensorDataset(
        name=Path(root).expanduser().resolve().name if name is None else name,
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        task=kind,
        client_ids=clients[0],
        test_client_ids=clients[1],
    )
    return take_fraction(whole, train_fraction)
