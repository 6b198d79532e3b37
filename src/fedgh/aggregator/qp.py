"""The small quadratic programs of the family, solved exactly by active sets.

Updates come as rows of ``R`` with ``R R^T = M``, in coordinates of their own span (see :mod:`spectrum`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedgh.aggregator.base import RESOLUTION


def cone_correction(root: Tensor, start: Tensor) -> Tensor:
    """Return ``z >= 0`` that makes ``(start + z) @ R`` as short as possible.

    The vector it ends at is the projection of ``start @ R`` onto the dual cone ``{x : <x, r_k> >= 0 for all k}``; z is
    zero where the start lies in it.

    Args:
        root: R, ``(clients, rank)``, rows of length one (or zero).
        start: ``(clients,)``.

    Returns:
        ``(clients,)``.
    """
    return _nonnegative_least_squares(root.T, -(start @ root))


def nearest_to_zero(rows: Tensor) -> Tensor:
    """Return the weights x on the simplex that make ``x @ rows`` as short as possible.

    With ``y_k = x_k ||r_k||`` that is the shortest ``y @ units`` under ``a @ y = 1``, ``a_k = 1 / ||r_k||``; and as y
    may be scaled freely, the minimum of ``||y @ units||^2 + (a @ y - 1)^2`` over ``y >= 0`` lies on the same ray
    (Lawson and Hanson, chapter 23).

    Args:
        rows: ``(points, rank)``; zero rows, if there are any, share all the weight.

    Returns:
        ``(points,)``, non-negative, sum one.
    """
    norms = rows.norm(dim=1)
    zero = norms <= 1e-15 * norms.max()
    if bool(zero.any()):
        shared: Tensor = zero.to(rows.dtype) / zero.sum()
        return shared
    prices = norms.min() / norms
    matrix = torch.cat([(rows / norms[:, None]).T, prices[None, :]])
    target = torch.zeros(len(matrix), dtype=rows.dtype)
    target[-1] = 1.0
    weights = _nonnegative_least_squares(matrix, target) * prices
    normalized: Tensor = weights / weights.sum()
    return normalized


def nearest_to_zero_in_box(rows: Tensor, low: Tensor, high: Tensor, start: Tensor) -> Tensor:
    """Return the weights x that make ``x @ rows`` as short as possible, with sum one and ``low <= x <= high``.

    Moves to the minimum over the free entries, or up to the first bound on the way; once there, frees the pair that
    gains most from trading weight. Ends after finitely many moves.

    Args:
        rows: ``(clients, rank)``, of length one or zero.
        low: ``(clients,)``.
        high: ``(clients,)``.
        start: Where to start, between the bounds, sum one, ``(clients,)``.

    Returns:
        ``(clients,)``.
    """
    gram, weights = rows @ rows.T, start.clone()
    free = (low < start) & (start < high)
    for _ in range(20 * len(start)):
        step = _step_to_free_minimum(gram, weights, free)
        room = torch.where(step > 0, high - weights, weights - low) / step.abs()
        length, blocking = torch.where(step == 0, torch.inf, room).min(0)
        if length < 1:
            weights += length * step
            weights[blocking] = high[blocking] if step[blocking] > 0 else low[blocking]
            free[blocking] = False
            continue
        weights += step
        gradient = gram @ weights
        taker = torch.where(weights < high, gradient, torch.inf).argmin()
        giver = torch.where(weights > low, gradient, -torch.inf).argmax()
        if not gradient[giver] - gradient[taker] > 1e-13:
            break
        free[taker] = free[giver] = True
    return weights


def _step_to_free_minimum(gram: Tensor, weights: Tensor, free: Tensor) -> Tensor:
    """Return the step to the minimum over the free entries that keeps the sum, ``(clients,)``."""
    index = free.nonzero().flatten()
    system = torch.zeros(len(index) + 1, len(index) + 1, dtype=gram.dtype)
    system[:-1, :-1] = gram[index][:, index]
    system[-1, :-1] = system[:-1, -1] = 1.0
    target = torch.cat([-(gram @ weights)[index], torch.zeros(1, dtype=gram.dtype)])
    step = torch.zeros_like(weights)
    step[index] = torch.linalg.lstsq(system, target[:, None], driver="gelsd").solution[
        :-1, 0
    ]  # dependent rows are fine
    return step


def opposed(root: Tensor) -> bool:
    """Tell whether some positive combination of the updates vanishes: no direction serves all of them.

    Args:
        root: R of the updates, ``(clients, rank)``, none of them zero.
    """
    units = root / root.norm(dim=1, keepdim=True)
    return bool((nearest_to_zero(units) @ units).square().sum() <= len(root) * RESOLUTION)


def project_on_simplex(point: Tensor) -> Tensor:
    """Return the nearest non-negative x with sum one, ``(clients,)``.

    ``x = max(point - t, 0)``: t follows from the largest entries, as many as stay positive (Duchi et al., ICML 2008).
    """
    ordered = point.sort(descending=True).values
    thresholds = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype)
    positive = int((ordered > thresholds).sum())
    projected: Tensor = (point - thresholds[positive - 1]).clamp_min(0)
    return projected


def _nonnegative_least_squares(matrix: Tensor, target: Tensor) -> Tensor:
    """Return ``y >= 0`` that minimizes ``||matrix y - target||``, exactly, by Lawson and Hanson's active sets."""
    from scipy.optimize import nnls  # here, because importing SciPy's optimizers takes longer than any rule

    if matrix.shape[0] == 0:
        return torch.zeros(matrix.shape[1], dtype=matrix.dtype)
    solution, _ = nnls(matrix.numpy(), target.numpy(), maxiter=100 * max(matrix.shape))
    return torch.from_numpy(solution)
