"""The vector of a ball that helps the worst-off update most. CAGrad and ConFREE share it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedgh.aggregator.qp import cone_correction, nearest_to_zero, opposed
from fedgh.aggregator.spectrum import square_root, unit_gram


def step_to_worst_off(gram: Tensor, start: Tensor, reach: float) -> Tensor:
    """Return z with ``(start + z) @ U = argmax { min_k <u_k, d> : ||d - g0|| <= reach ||g0|| }``, ``g0 = start @ U``.

    ``z = reach ||g0|| / ||x @ U|| * x``, where x on the simplex minimizes ``<x @ U, g0> + reach ||g0|| ||x @ U||``.
    For a fixed value t of ``||x @ U||`` the minimum is a point nearest to zero, found exactly, and t is found by
    Brent's method. Where the updates oppose each other to the point that the best worst-off gain is zero, many d are
    equally good and the one nearest to g0 is taken.

    Args:
        gram: M of the updates u_k, ``(clients, clients)`` float64.
        start: ``(clients,)``.
        reach: Radius of the ball, relative to the length of g0, >= 0.

    Returns:
        ``(clients,)``, zero where g0 is.
    """
    cosines, inverse = unit_gram(gram)
    units, lengths = square_root(cosines), gram.diagonal().clamp_min(0).sqrt()
    longest = lengths.max()
    if longest == 0:
        return torch.zeros_like(start)
    rows = units * (lengths / longest)[:, None]
    center = start @ rows
    radius = reach * float(center.norm())
    if radius <= 1e-12 * float(start.abs().sum()):  # no reach, or updates that cancel
        return torch.zeros_like(start)
    nearest = cone_correction(units, start * lengths / longest)
    if float((nearest @ units).norm()) <= radius and (bool((lengths == 0).any()) or opposed(rows)):
        return nearest * longest * inverse
    length, weights = _worst_case(rows, center, radius)
    return radius / length * weights


def _worst_case(rows: Tensor, mean: Tensor, radius: float) -> tuple[float, Tensor]:
    """Return t = ``||x @ R||`` and x, the minimizer of ``<x @ R, g0> + radius * ||x @ R||`` on the simplex.

    As ``||y|| = min_t (||y||^2 / t + t) / 2``, x minimizes ``||x @ R + t / radius * g0||`` for the t that returns
    itself; the objective is convex in t, so there is one such t.
    """
    from scipy.optimize import brentq

    def weights_at(log_t: float) -> Tensor:
        return nearest_to_zero(rows + math.exp(log_t) / radius * mean)

    def excess(log_t: float) -> float:
        return math.exp(log_t) - float((weights_at(log_t) @ rows).norm())

    log_t, step = 1e-12, math.log(10)  # the longest row has length one, so t is at most one
    while excess(log_t) > 0 and log_t > -30 * step:
        log_t -= step
    if excess(log_t) < 0:
        log_t = brentq(excess, log_t, log_t + step, xtol=1e-15, rtol=1e-14)
    return math.exp(log_t), weights_at(log_t)
