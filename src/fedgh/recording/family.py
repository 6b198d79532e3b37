"""One round's updates under many rules: what each makes of them, measured without any training."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator
from fedgh.core.errors import DataError, FedGHError
from fedgh.core.types import Cohort
from fedgh.core.updates import UpdateMatrix

log = logging.getLogger(__name__)


def family_table(
    updates: UpdateMatrix, cohort: Cohort, aggregators: Mapping[str, Aggregator], gram: Tensor | None = None
) -> list[dict[str, Any]]:
    """Aggregate the same updates under every rule, from an empty state.

    Args:
        updates: ``(clients, params)``; :func:`updates_of` makes one from a Gram matrix alone, enough for all rules but
            the coordinate-wise ones.
        cohort: Ids, weights and losses of these clients.
        aggregators: Rules by name.
        gram: M of the updates, ``(clients, clients)`` float64; computed where not given.

    Returns:
        One mapping per rule: ``rule`` and what :func:`geometry` says of it. A rule that refuses these updates (Krum
        with too few clients) is named in the log and left out.
    """
    gram = updates.gram() if gram is None else gram
    rows: list[dict[str, Any]] = []
    for name, rule in aggregators.items():
        try:
            aggregate = rule(updates, gram, cohort, {})
        except FedGHError as error:
            log.warning("%s is left out: %s", name, error)
            continue
        rows.append({"rule": name, **geometry(updates, gram, cohort.weights, aggregate)})
    return rows


def geometry(updates: UpdateMatrix, gram: Tensor, weights: Tensor, aggregate: Aggregate) -> dict[str, float]:
    """Tell where an aggregate lies among the updates it was made of.

    Reads the Gram matrix alone where the rule has one coefficient per client, else the rows once.

    Args:
        updates: ``(clients, params)``.
        gram: M, ``(clients, clients)`` float64.
        weights: v, what the plain mean uses, ``(clients,)`` float64.
        aggregate: What a rule made of them.

    Returns:
        ``angle`` (degrees) and ``norm_ratio`` against the plain mean ``v @ U``; ``cosine_min`` and ``cosine_mean`` to
        the clients' updates; ``coefficient_sum`` and ``coefficient_max``. NaN where undefined: an aggregate or mean of
        length zero, a rule without one coefficient per client.
    """
    c = aggregate.coefficients
    if c is not None and c.dim() == 1:
        dots, squared = gram @ c, float(c @ gram @ c)
    else:
        update = aggregate.update.to(torch.float64)
        dots = torch.stack([row.to(torch.float64) @ update for row in updates.rows]).cpu()
        squared, c = float(update @ update), None
    norm = math.sqrt(max(0.0, squared))
    mean_norm = math.sqrt(max(0.0, float(weights @ gram @ weights)))
    client_norms = gram.diagonal().sqrt()
    moved = client_norms > 0
    cosines = (dots[moved] / client_norms[moved] / norm).clamp(-1, 1) if norm > 0 else dots[:0]
    cosine = float(weights @ dots) / (norm * mean_norm) if norm * mean_norm > 0 else math.nan
    return {
        "angle": math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) if not math.isnan(cosine) else math.nan,
        "norm_ratio": norm / mean_norm if mean_norm > 0 else math.nan,
        "cosine_min": float(cosines.min()) if len(cosines) else math.nan,
        "cosine_mean": float(cosines.mean()) if len(cosines) else math.nan,
        "coefficient_sum": float(c.sum()) if c is not None else math.nan,
        "coefficient_max": float(c.max()) if c is not None else math.nan,
    }


def updates_of(gram: Tensor) -> UpdateMatrix:
    """Return K vectors of K numbers with this Gram matrix: a rotation of the updates into their own span.

    Rules of the Gram family, and every length, angle and cosine, are the same for these as for the updates themselves;
    coordinate-wise rules are not.

    Args:
        gram: M, ``(clients, clients)`` float64.
    """
    values, vectors = torch.linalg.eigh(gram)
    return UpdateMatrix.of(vectors * values.clamp_min(0).sqrt())


_COHORT = ("seed", "round", "client", "weight", "loss")


def gram_to_csv(path: Path, gram: Tensor, cohort: Cohort) -> None:
    """Write all that rules of the Gram family need of a round as CSV: a line a client, every digit kept.

    Columns: seed, round (from 1), client, weight, loss, and the products with every client, named by its id.

    Args:
        path: The file.
        gram: M, ``(clients, clients)`` float64.
        cohort: Ids, weights and losses of these clients.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_COHORT, *cohort.client_ids])
        for client, weight, loss, products in zip(
            cohort.client_ids, cohort.weights.tolist(), cohort.losses.tolist(), gram.tolist(), strict=True
        ):
            writer.writerow([cohort.seed, cohort.round_index + 1, client, weight, loss, *products])


def gram_from_csv(path: Path) -> tuple[Tensor, Cohort]:
    """Read what :func:`gram_to_csv` wrote: the Gram matrix and the cohort.

    Raises:
        DataError: If the file is missing or something else.
    """
    try:
        with path.open(newline="") as file:
            head, *lines = list(csv.reader(file))
        seeds, rounds, ids, weights, losses, *products = (
            [float(cell) for cell in column] for column in zip(*lines, strict=True)
        )
        gram = torch.tensor(products, dtype=torch.float64)
        if tuple(head[:5]) != _COHORT or head[5:] != [f"{k:.0f}" for k in ids] or gram.shape != (len(ids), len(ids)):
            raise ValueError("other columns or lines than expected")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is no Gram matrix as fedgh-replay writes it ({error}); replay the round again"
        ) from error
    return gram.T.contiguous(), Cohort(
        client_ids=tuple(int(k) for k in ids),
        weights=torch.tensor(weights, dtype=torch.float64),
        losses=torch.tensor(losses, dtype=torch.float64),
        seed=int(seeds[0]),
        round_index=int(rounds[0]) - 1,
    )
