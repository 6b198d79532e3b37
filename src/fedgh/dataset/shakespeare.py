"""Shakespeare's plays, speech by speech: the next character; clients are the roles."""

from __future__ import annotations

from pathlib import Path

from fedgh.dataset import next_character
from fedgh.dataset.base import TensorDataset


def load(root: str | Path, length: int, train_fraction: float) -> TensorDataset:
    """Load the speeches; a role's last ones are its test examples, as the files have them.

    Args:
        root: Folder which directly holds ``train-*.parquet`` and the test files, with columns ``text`` and ``role``.
        length: Characters of a sequence, 80 in LEAF.
        train_fraction: Share of the train split to keep.

    Raises:
        DataError: If files or columns are missing or wrong.

    Reference:
        McMahan et al., AISTATS 2017, and LEAF (Caldas et al., 2018).
    """
    return next_character.load(root, "shakespeare", None, "text", "role", length, train_fraction)
