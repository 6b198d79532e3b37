"""Chains of projections in Gram space, and the orders in which they run. FedGH, PCGrad and FedFV share them.

For every client k with frozen updates g_j::

    h <- g_k
    for j in an order of the other clients:
        s <- <h, g_j>                              the running vector against the frozen copy
        if s < 0:  h <- h - s / ||g_j||^2 * g_j    project onto the normal plane of g_j

Every running h stays in the span of the updates, h = c @ U, and a step changes one entry of c. So the whole chain of
projections needs only the Gram matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedgh.core.seeding import numpy_generator
from fedgh.core.types import Cohort


def random_orders(cohort: Cohort) -> Tensor:
    """Draw for every client a random order of the others.

    Client k's order is drawn from ``(seed, round, client)``: client j's place in it follows from the j-th number of
    that stream, so adding a client inserts it and changes nothing else.

    Returns:
        Positions in the cohort, ``(clients, clients - 1)`` int64; row k never holds k.
    """
    ids = np.asarray(cohort.client_ids)
    places = np.empty((len(ids), len(ids)))
    for k, client_id in enumerate(cohort.client_ids):
        generator = numpy_generator(cohort.seed, "projection order", cohort.round_index, client_id)
        places[k] = generator.random(ids.max() + 1)[ids]
    return orders_by(torch.from_numpy(places))


def orders_by(places: Tensor) -> Tensor:
    """Turn places into orders: row k holds the positions j != k by ascending ``places[k, j]``, ties by position.

    Args:
        places: ``(clients, clients)``; the diagonal is ignored.

    Returns:
        ``(clients, clients - 1)`` int64.
    """
    num_clients = len(places)
    orders = places.argsort(dim=1, stable=True)
    others = orders != torch.arange(num_clients)[:, None]
    return orders[others].reshape(num_clients, num_clients - 1)


def harmonize(gram: Tensor, orders: Tensor, projects: Tensor | None = None) -> Tensor:
    """Run the projections for all clients at once, from the Gram matrix alone.

    Works on cosines, S = D^-1 M D^-1 with D the norms, so that tiny updates cannot underflow; an update of norm zero
    never projects anything and stays as it is.

    Args:
        gram: M, ``(clients, clients)`` float64.
        orders: ``(clients, steps)`` int64, the positions that row k is projected against, one after the other.
        projects: ``(clients,)`` bool, the clients that others are projected against; None for all.

    Returns:
        C, ``(clients, clients)``: the harmonized update of client k is ``C[k] @ U``.
    """
    num_clients = len(gram)
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    cosines = inverse[:, None] * gram * inverse[None, :]
    cosines.fill_diagonal_(1.0)
    rows = torch.arange(num_clients)
    mixing = torch.eye(num_clients, dtype=gram.dtype)
    running = cosines.clone()  # running[k, j] = <h_k, g_j> / (||g_k|| ||g_j||)
    for projector in orders.T:
        step = torch.relu(-running[rows, projector])
        if projects is not None:
            step = step * projects[projector]
        mixing[rows, projector] += step
        running += cosines[projector].mul_(step[:, None])
    ratio = torch.where(norms > 0, norms[:, None] / norms, 0.0).fill_diagonal_(1.0)
    return mixing * ratio


def project_at_once(gram: Tensor, projects: Tensor | None = None) -> Tensor:
    """Project every client's update against all others at once, products taken of the updates as they came.

    ``C_kj = -min(M_kj, 0) / M_jj`` and ``C_kk = 1``. The order does not matter, and a component that m parallel
    opponents share is removed m times.

    Args:
        gram: As in :func:`harmonize`, and so is what is returned.
        projects: As there.
    """
    norms = gram.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    mixing = torch.relu(-gram * inverse * inverse)  # one after the other: the square may underflow
    if projects is not None:
        mixing = mixing * projects
    return mixing.fill_diagonal_(1.0)
