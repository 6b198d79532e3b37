"""The picture of the cosines: in the first round and every so many after it, drawn only by who asks."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedgh.callback.cosine_picture import CosinePicture
from fedgh.core.errors import ConfigurationError
from fedgh.tracking.recorder import Row

from .observed import golden_round

COUNTS = np.array([[0, 4], [4, 0], [2, 2]])
FEDERATION = SimpleNamespace(partition=SimpleNamespace(class_counts=COUNTS))


def test_rounds_and_order_of_the_clients():
    outcome = golden_round([[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]], np.eye(3).tolist(), [0.5, 0.25, 0.25])
    due = []
    for number in range(1, 8):
        row = Row(number)
        CosinePicture(3)(FEDERATION, None, outcome, row)
        due += [number] * bool(row.figures)
    assert due == [1, 4, 7]
    figure = row.figures["conflict/cosine_matrix"]()
    labels, matrix, _ = figure.axes
    assert [label.get_text() for label in labels.get_yticklabels()] == ["1", "2", "0"]  # like labels side by side
    assert matrix.get_title(loc="left") == "33% of 3 pairs in conflict"


def test_one_client_has_no_pairs():
    row = Row(1)
    CosinePicture(1)(FEDERATION, None, golden_round([[1.0, 2.0]], [[1.0]], [1.0]), row)
    assert row.figures == {}


def test_every_is_checked():
    with pytest.raises(ConfigurationError, match=r"callback\.cosine_picture\.every must be 1 or more rounds, got 0"):
        CosinePicture(0)
