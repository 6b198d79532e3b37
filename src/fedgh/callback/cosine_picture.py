"""A picture of the pairwise cosines, now and then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ServerState
from fedgh.federation.round import Federation, Round
from fedgh.metric.conflict import cosine_matrix
from fedgh.metric.observatory import label_order, label_shares
from fedgh.plot.picture import cosine_figure
from fedgh.tracking.recorder import Row


@dataclass(frozen=True)
class CosinePicture:
    """Draws the matrix of pairwise cosines of the raw updates, clients with like labels side by side.

    The order is that of :func:`fedgh.metric.observatory.label_order`.

    Args:
        every: Rounds between two pictures; the first is drawn in round 1.
    """

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigurationError(f"callback.cosine_picture.every must be 1 or more rounds, got {self.every}")

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:  # noqa: ARG002
        """Add ``conflict/cosine_matrix`` to the row when it is time."""
        if (row.round - 1) % self.every == 0 and len(outcome.gram) > 1:
            ids = outcome.result.client_ids
            counts = federation.partition.class_counts[list(ids)]
            order = label_order(counts)
            cosines = cosine_matrix(outcome.gram).numpy()[np.ix_(order, order)]
            row.figures["conflict/cosine_matrix"] = partial(
                cosine_figure, cosines, [ids[k] for k in order], label_shares(counts)[order]
            )
