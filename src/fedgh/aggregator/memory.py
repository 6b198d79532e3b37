"""What a rule remembers of clients, keyed by client id, so that participants may change from round to round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedgh.core.types import Cohort


def places_by_id(known: Tensor | None, cohort: Cohort) -> tuple[Tensor, Tensor, Tensor]:
    """Join the clients remembered so far with those taking part.

    Args:
        known: Ids remembered, ascending, ``(known,)`` int64; None before the first round.
        cohort: Who takes part.

    Returns:
        The union of both, ascending; where in it the known clients are; where the cohort's clients are.
    """
    ids = torch.tensor(cohort.client_ids)
    if known is None:
        known = ids[:0]
    union = torch.unique(torch.cat([known, ids]))
    return union, torch.searchsorted(union, known), torch.searchsorted(union, ids)


def recall(state: Mapping[str, Tensor], cohort: Cohort, **unknown: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return one number a client and name, of all clients that are remembered or take part.

    Args:
        state: With ``client_ids`` and a tensor for every name; empty before the first round.
        cohort: Who takes part.
        **unknown: By name, what stands for a client that is not remembered.

    Returns:
        Their ids, ascending; where the cohort's clients are among them; copies of the numbers by name, ``(ids,)``
        float64. The ids and the numbers are the state of the round after.
    """
    ids, known, present = places_by_id(state.get("client_ids"), cohort)
    values = {name: torch.full((len(ids),), value, dtype=torch.float64) for name, value in unknown.items()}
    for name, value in values.items():
        if len(known):
            value[known] = state[name]
    return ids, present, values
