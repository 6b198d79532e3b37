"""The conflict observatory: everything about a round's conflicts, from the Gram matrix that is there anyway.

Three tables below ``conflict/`` in the run's directory, one Parquet file a round each:

* ``pairs``: a row per pair of clients i < j, sorted by cosine (the paper's figures 2a and 2c): ``cosine`` of the raw
  updates, ``cosine_after`` of the harmonized ones (null for rules without a mixing matrix), ``label_distance`` (total
  variation of their labels), and ``bent_first``, ``bent_second``: whether the first was projected against the second,
  and the second against the first (the share of parameter blocks where those are harmonized by themselves).
* ``layers``: a row per module: ``ratio`` of pairs in conflict, ``cosine_mean``, ``cosine_min``.
* ``clients``: a row per participant: what it has, how it stands to the others, what harmonization did to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ServerState
from fedgh.federation.round import Federation, Round
from fedgh.metric import observatory as measure
from fedgh.metric.conflict import (
    cosine_matrix,
    harmonized_gram,
    matching_gram,
    projections,
    tail_metrics,
)
from fedgh.plot.picture import layer_figure, projection_figure, sorted_cosines_figure
from fedgh.storage.tables import count_projections, layer_history, write_rows
from fedgh.tracking.recorder import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Observatory:
    """Adds conflict metrics and histograms to the row, writes the tables, and draws now and then.

    Keeps nothing: pictures over several rounds are drawn from the tables, so a resumed run has the same ones.

    Attributes:
        output_dir: The run's directory.
        every: Rounds between two sets of pictures.
    """

    output_dir: str
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigurationError(f"callback.observatory.every must be 1 or more rounds, got {self.every}")

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:  # noqa: ARG002
        """Look at a round; see :class:`fedgh.federation.loop.Callback`."""
        if outcome.aggregate is None:
            return
        folder = Path(self.output_dir) / "conflict"
        counts = federation.partition.class_counts[list(outcome.result.client_ids)]
        look = Look.at(outcome, outcome.aggregate)

        pairs = pair_table(outcome, counts, look)
        write_rows(folder / "pairs", row.round, pairs)
        clients = client_table(outcome, counts, look)
        write_rows(folder / "clients", row.round, clients)
        names = [block.name for block in outcome.result.updates.blocks]
        if len(names) == len(outcome.block_grams):
            layers, layer_grams = measure.layer_grams(outcome.block_grams, names)
            conflict = measure.layer_conflict(layer_grams)
            write_rows(folder / "layers", row.round, {"layer": layers, **conflict})

        row.metrics |= tail_metrics(outcome.gram)
        distance = measure.rank_correlation(*(torch.from_numpy(pairs[c]) for c in ("cosine", "label_distance")))
        if np.isfinite(distance):
            row.metrics["conflict/label_distance_correlation"] = distance
        if look.after is not None:
            values = _pairs(look.after)
            row.histograms["harmonization/cosine"] = values.numpy()
            if len(values):
                row.metrics["harmonization/conflict_ratio"] = float((values < 0).double().mean())
                row.metrics["harmonization/cosine_mean"] = float(values.mean())
                row.metrics["harmonization/cosine_min"] = float(values.min())
        if row.round % self.every == 0:
            row.tables["conflict/clients"] = clients
            curves = {"before": pairs["cosine"], "after": pairs["cosine_after"]}
            row.figures["conflict/sorted_cosines"] = partial(sorted_cosines_figure, curves, f"Round {row.round}")
            if (folder / "layers").is_dir():
                row.figures["conflict/layers"] = partial(_layers, folder / "layers")
            if (pairs["bent_first"] + pairs["bent_second"]).any():
                row.figures["harmonization/projections"] = partial(
                    _projections, folder / "pairs", federation.partition.class_counts
                )


def _layers(folder: Path) -> Figure:
    return layer_figure(**layer_history(folder))


def _projections(folder: Path, class_counts: np.ndarray[Any, Any]) -> Figure:
    ids, counts = count_projections(folder)
    order = measure.label_order(class_counts[ids])
    return projection_figure(counts[np.ix_(order, order)], ids[order].tolist())


@dataclass(frozen=True)
class Look:
    """What several tables read, computed once.

    Attributes:
        before: Cosines of the raw updates, ``(clients, clients)``.
        mixing: C, or None where there is none, or no Gram matrix per block goes with it.
        gram: M that goes with C: ``(clients, clients)``, or one a block.
        harmonized: Gram matrix of the harmonized updates, ``(clients, clients)``; None without C.
        after: Cosines of the harmonized updates; None without C.
    """

    before: Tensor
    mixing: Tensor | None
    gram: Tensor
    harmonized: Tensor | None
    after: Tensor | None

    @classmethod
    def at(cls, outcome: Round, aggregate: Aggregate) -> Look:
        """Look at a round."""
        before, mixing = cosine_matrix(outcome.gram), aggregate.mixing
        gram = None if mixing is None else matching_gram(outcome.gram, outcome.block_grams, mixing[..., 0])
        if mixing is None or gram is None:
            return cls(before, None, outcome.gram, None, None)
        harmonized = harmonized_gram(gram, mixing)
        return cls(before, mixing, gram, harmonized, cosine_matrix(harmonized))


def pair_table(outcome: Round, class_counts: np.ndarray[Any, Any], look: Look) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of ``pairs``, sorted by cosine, undefined ones last.

    Args:
        outcome: The round.
        class_counts: Of its participants, ``(clients, classes)``.
        look: Its cosines.
    """
    num_clients = len(outcome.gram)
    first, second = torch.triu_indices(num_clients, num_clients, offset=1)
    order = torch.argsort(look.before[first, second], stable=True)
    first, second = first[order], second[order]
    bent = torch.zeros_like(look.before) if look.mixing is None else projections(look.mixing)
    ids = torch.tensor(outcome.result.client_ids, dtype=torch.int32)
    values = {
        "cosine": look.before[first, second],
        "cosine_after": torch.full_like(first, torch.nan, dtype=torch.float64)
        if look.after is None
        else look.after[first, second],
        "label_distance": torch.from_numpy(measure.label_distances(class_counts))[first, second],
        "bent_first": bent[first, second],
        "bent_second": bent[second, first],
    }
    columns = {"first": ids[first].numpy(), "second": ids[second].numpy()}
    return columns | {name: column.float().numpy() for name, column in values.items()}


def client_table(outcome: Round, class_counts: np.ndarray[Any, Any], look: Look) -> dict[str, Any]:
    """Return the columns of ``clients``.

    ``norm`` is the update's; ``weight`` what the mean would have given it, ``coefficient`` what it got, and ``gain``
    their ratio; ``cosine_to_update`` that of its own update and the aggregate. See
    :func:`fedgh.metric.observatory.client_effects` for the rest. What a rule does not have is left out.
    """
    result, aggregate = outcome.result, outcome.aggregate
    norms = outcome.gram.diagonal().clamp_min(0).sqrt()
    columns: dict[str, Any] = {
        "client": np.array(result.client_ids, dtype=np.int32),
        "num_examples": result.num_examples,
        "label_entropy": measure.label_entropy(class_counts),
        "train_loss": result.train_loss,
        "norm": norms,
        **measure.client_conflict(look.before),
        "weight": outcome.weights,
    }
    if aggregate is not None and aggregate.coefficients is not None and aggregate.coefficients.dim() == 1:
        coefficients = aggregate.coefficients
        inner = outcome.gram @ coefficients
        length = (coefficients @ inner).clamp_min(0).sqrt()
        columns["coefficient"] = coefficients
        columns["gain"] = coefficients / outcome.weights
        columns["cosine_to_update"] = (inner / (norms * length)).clamp(-1, 1)
    if look.mixing is not None and look.harmonized is not None:
        columns |= measure.client_effects(look.gram, look.mixing, look.harmonized)
    return columns


def _pairs(cosines: Tensor) -> Tensor:
    """Return the defined cosines of the pairs i < j."""
    first, second = torch.triu_indices(len(cosines), len(cosines), offset=1)
    values = cosines[first, second]
    return values[~values.isnan()]
