"""Every rule on d-vectors in float64, from its paper, without a Gram matrix: the oracles for the Gram form.

Small quadratic programs are solved by trying all active sets, smooth convex ones by SciPy in the space of the updates.
A literal rule is ``f(rows, cohort, rule, memory) -> update`` with rows (K, d), the rule's settings read off the rule
under test, and a dictionary that it may keep from round to round.
"""

import itertools
import math

import numpy as np
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from fedgh.aggregator.projection import random_orders


def literal_fedgh(updates: Tensor, weights: Tensor, orders: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return (harmonized updates (K, d), aggregate (d,)), every projection made on the vectors themselves."""
    frozen = updates.to(torch.float64)
    harmonized = []
    for k, order in enumerate(orders):
        h = frozen[k].clone()
        for j in order:
            s = h @ frozen[j]
            if s < 0:
                h = h - s / (frozen[j] @ frozen[j]) * frozen[j]
        harmonized.append(h)
    stacked = torch.stack(harmonized)
    return stacked, weights.to(torch.float64) @ stacked


def mean(rows, cohort, rule, memory):
    return sum(w * row for w, row in zip(cohort.weights, rows, strict=True))


def fedgh(rows, cohort, rule, memory):
    return literal_fedgh(rows, cohort.weights, random_orders(cohort).tolist())[1]


def pcgrad(rows, cohort, rule, memory):
    """On rows ``p_k g_k``, summed, as the paper projects."""
    weighted = cohort.weights[:, None] * rows
    return literal_fedgh(weighted, torch.ones(len(rows)), random_orders(cohort).tolist())[0].sum(0)


def gradvac(rows, cohort, rule, memory):
    """On rows ``p_k g_k``; memory holds the target cosine of every pair of ids."""
    rows = cohort.weights[:, None] * rows
    total = torch.zeros_like(rows[0])
    for k, order in enumerate(random_orders(cohort).tolist()):
        h = rows[k].clone()
        for j in order:
            if h.norm() == 0 or rows[j].norm() == 0:
                continue
            pair = (cohort.client_ids[k], cohort.client_ids[j])
            phi = max(-1.0, min(1.0, float(h @ rows[j] / (h.norm() * rows[j].norm()))))
            target = min(memory.get(pair, 0.0), 1 - 1e-6)
            if phi < target:
                numerator = h.norm() * (target * math.sqrt(1 - phi**2) - phi * math.sqrt(1 - target**2))
                h = h + numerator / (rows[j].norm() * math.sqrt(1 - target**2)) * rows[j]
            memory[pair] = (1 - rule.beta) * memory.get(pair, 0.0) + rule.beta * phi
        total = total + h
    return total


def units_of(rows):
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0.0)


def subsets(number):
    return itertools.chain.from_iterable(itertools.combinations(range(number), n) for n in range(number + 1))


def project_on_dual_cone(point, rows):
    """Nearest x with <x, g_k> >= 0 for all k: of one candidate per set of tight constraints the nearest feasible."""
    units, best = units_of(rows), None
    scale = float(point.norm()) or 1.0
    for tight in subsets(len(rows)):
        candidate = point
        if tight:
            part = units[list(tight)]
            candidate = point - part.T @ (torch.linalg.pinv(part.T, rtol=1e-12) @ point)
        feasible = bool((units @ candidate >= -1e-11 * scale).all())
        if feasible and (best is None or (candidate - point).norm() < (best - point).norm() - 1e-12 * scale):
            best = candidate
    return best


def upgrad(rows, cohort, rule, memory):
    return sum(w * project_on_dual_cone(row, rows) for w, row in zip(cohort.weights, rows, strict=True))


def dual_proj(rows, cohort, rule, memory):
    return project_on_dual_cone(cohort.weights @ rows, rows)


def nearest_to_zero(rows):
    """Nearest point of the convex hull: the shortest of the candidates, one per face."""
    best = None
    for face in subsets(len(rows)):
        if not face:
            continue
        corner, edges = rows[face[0]], rows[list(face[1:])] - rows[face[0]]
        x = torch.linalg.pinv(edges.T, rtol=1e-12) @ -corner if len(face) > 1 else corner[:0]
        if bool((x >= -1e-10).all()) and x.sum() <= 1 + 1e-10:
            point = corner + x @ edges
            if best is None or point.norm() < best.norm():
                best = point
    return best


def mgda(rows, cohort, rule, memory):
    return nearest_to_zero(rows)


def _weights_nearest_to_zero(rows):
    """Weights on the simplex that give the nearest point, for rows of which it has one set."""
    point = nearest_to_zero(rows)
    system = torch.cat([rows.T / rows.norm(), torch.ones(1, len(rows), dtype=torch.float64)]).numpy()
    return nnls(system, np.r_[(point / rows.norm()).numpy(), 1.0], maxiter=1000)[0].tolist()


def fedmgda_plus(rows, cohort, rule, memory):
    """All ways to put each weight at its lower end, at its upper end, or in between."""
    units, p = units_of(rows), cohort.weights / cohort.weights.sum()
    low, high = (p - rule.epsilon).clamp_min(0), (p + rule.epsilon).clamp_max(1)
    best = None
    for places in itertools.product("lhf", repeat=len(rows)):
        x = torch.where(torch.tensor([place == "h" for place in places]), high, low)
        free = [k for k, place in enumerate(places) if place == "f"]
        if free:
            x[free] = 0
            x[free[0]] = 1 - x.sum()
            edges = units[free[1:]] - units[free[0]]
            if len(free) > 1:
                steps = torch.linalg.pinv(edges.T, rtol=1e-12) @ -(x @ units)
                x[free[1:]] += steps
                x[free[0]] -= steps.sum()
        feasible = abs(float(x.sum()) - 1) < 1e-9 and bool(((x >= low - 1e-9) & (x <= high + 1e-9)).all())
        if feasible and (best is None or (x @ units).norm() < best.norm()):
            best = x @ units
    return best


def cagrad(rows, cohort, rule, memory):
    """The primal problem: the best worst-off gain over the ball around the mean, by sequential quadratic programs."""
    rows = len(rows) * cohort.weights[:, None] * rows
    return best_of_ball(rows, rows.mean(0), rule.c)


def best_of_ball(rows, center, reach):
    scale = rows.norm(dim=1).max() or torch.ones(())
    g, center = (rows / scale).numpy(), (center / scale).numpy()
    radius = reach * np.linalg.norm(center)
    if radius < 1e-12:
        return scale * torch.from_numpy(center)
    constraints = [
        {"type": "ineq", "fun": lambda x: g @ x[:-1] - x[-1], "jac": lambda x: np.c_[g, -np.ones(len(g))]},
        {
            "type": "ineq",
            "fun": lambda x: radius**2 - ((x[:-1] - center) ** 2).sum(),
            "jac": lambda x: np.r_[-2 * (x[:-1] - center), 0],
        },
    ]
    start = np.r_[center, (g @ center).min()]
    gradient = np.r_[np.zeros(len(center)), -1.0]
    solution = minimize(
        lambda x: -x[-1], start, jac=lambda x: gradient, constraints=constraints, method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )  # fmt: skip
    return scale * torch.from_numpy(solution.x[:-1])


def imtl_g(rows, cohort, rule, memory):
    """Coefficients from the singular vectors of the unit updates: all projections equal, sum one."""
    units, norms = units_of(rows), rows.norm(dim=1)
    q = torch.linalg.pinv(units.T, rtol=1e-6) @ torch.linalg.pinv(units, rtol=1e-6) @ torch.ones(len(rows)).double()
    v = torch.where(norms > 0, q / norms, 0.0)
    if v.abs().sum() == 0:
        return 0 * rows[0]
    divisor = v.sum() if v.sum() > 1e-5 * v.abs().sum() else v.abs().sum()
    return v @ rows / divisor


def config_direction(rows, cohort, rule, memory):
    direction = torch.linalg.pinv(units_of(rows), rtol=1e-6) @ cohort.weights
    if direction.norm() < 1e-9:
        return 0 * direction
    direction = direction / direction.norm()
    return (rows @ direction).sum() * direction


def bargaining(rows, alpha):
    """argmin ||d||^2 / 2 - sum_k utility(<g_k, d>), a Newton method in the space of the updates."""
    rows = rows[rows.norm(dim=1) > 0]
    if len(rows) == 0 or nearest_to_zero(units_of(rows)).norm() < 1e-6:
        return None
    scale = rows.norm(dim=1).mean()
    g = (rows / scale).numpy()

    def utility(u):
        return np.log(u) if alpha == 1 else u ** (1 - alpha) / (1 - alpha)

    d = nearest_to_zero(units_of(rows)).numpy()
    d = d / np.linalg.norm(d)
    for _ in range(500):
        gains = g @ d
        gradient = d - g.T @ gains**-alpha
        hessian = np.eye(len(d)) + alpha * (g.T * gains ** (-alpha - 1)) @ g
        step = -np.linalg.solve(hessian, gradient)
        length, before = 1.0, d @ d / 2 - utility(gains).sum()
        while True:
            new = d + length * step
            if (g @ new).min() > 0 and new @ new / 2 - utility(g @ new).sum() <= before + 1e-14 * abs(before):
                break
            length /= 2
            if length < 1e-20:
                return torch.from_numpy(d), scale
        d = new
        if np.linalg.norm(length * step) < 1e-15 * np.linalg.norm(d):
            break
    return torch.from_numpy(d), scale


def nash_mtl(rows, cohort, rule, memory):
    found = bargaining(rows, 1.0)
    return 0 * rows[0] if found is None else found[0]


def fairgrad(rows, cohort, rule, memory):
    """d = sum_k a_k g_k with a_k = <g_k, d>^-alpha; rows s g have the solution s^((1 - alpha) / (1 + alpha)) d."""
    found = bargaining(rows, rule.alpha)
    return 0 * rows[0] if found is None else found[0] * found[1] ** ((1 - rule.alpha) / (1 + rule.alpha))


def aligned_mtl(rows, cohort, rule, memory):
    """All singular values replaced by the smallest one that is not zero."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    keep = values**2 > len(rows) * torch.finfo(torch.float32).eps * values[0] ** 2
    if not keep.any():
        return 0 * rows[0]
    return cohort.weights @ (left[:, keep] * values[keep].min() @ right[keep])


def fedfv(rows, cohort, rule, memory):
    losses = cohort.losses.tolist()
    order = sorted(range(len(rows)), key=lambda k: losses[k])
    kept = order[math.ceil((len(rows) - 1) * (1 - rule.alpha)) :] if rule.alpha > 0 else []
    orders = [[] if k in kept else [j for j in order if j != k] for k in range(len(rows))]
    projected = literal_fedgh(rows, torch.ones(len(rows)), orders)[0].mean(0)
    if projected.norm() <= 1e-6 * rows.norm(dim=1).max():
        return 0 * projected
    return projected / projected.norm() * rows.mean(0).norm()


def fedlag(rows, cohort, rule, memory, layers=((0, 3), (3, 6), (6, None))):
    """Layers as the test's matrix has them; memory holds the scores."""
    scores = memory.setdefault("scores", [0] * len(layers))
    update = cohort.weights @ rows
    if memory.setdefault("rounds", 0) < rule.warmup_rounds:
        for number, (start, stop) in enumerate(layers):
            for a, b in itertools.combinations(rows[:, start:stop], 2):
                if a.norm() > 0 and b.norm() > 0:
                    scores[number] += bool(a @ b / a.norm() / b.norm() < rule.threshold)
    else:
        for number in sorted(range(len(layers)), key=lambda n: -scores[n])[: rule.num_private]:
            start, stop = layers[number]
            if scores[number]:
                update[start:stop] = 0
    memory["rounds"] += 1
    return update


def fedadp(rows, cohort, rule, memory):
    center, weights = cohort.weights @ rows, []
    for k, client in enumerate(cohort.client_ids):
        norms = rows[k].norm() * center.norm()
        angle = math.acos(max(-1.0, min(1.0, float(rows[k] @ center / norms)))) if norms > 0 else math.pi / 2
        seen = memory.setdefault(client, [])
        seen.append(angle)
        factor = rule.alpha * (1 - math.exp(-math.exp(-rule.alpha * (sum(seen) / len(seen) - 1))))
        weights.append(float(cohort.weights[k]) * math.exp(factor))
    weights = torch.tensor(weights, dtype=torch.float64)
    return weights / weights.sum() * cohort.weights.sum() @ rows


def geometric_median(rows, cohort, rule, memory):
    shares = cohort.weights / cohort.weights.sum()
    point = shares @ rows
    floor = rule.smoothing * (rows - point).norm(dim=1).mean()
    if floor <= 1e-14 * rows.norm(dim=1).max():
        return point * cohort.weights.sum()
    for _ in range(rule.steps):
        w = shares / (rows - point).norm(dim=1).clamp_min(floor)
        before, point = point, w / w.sum() @ rows
        if (point - before).norm() < 1e-13 * before.norm():
            break
    return point * cohort.weights.sum()


def median(rows, cohort, rule, memory):
    return torch.from_numpy(np.median(rows.numpy(), axis=0))


def trimmed_mean(rows, cohort, rule, memory):
    trimmed = math.floor(rule.trim_fraction * len(rows) + 1e-9)
    columns = [sorted(column)[trimmed : len(rows) - trimmed] for column in rows.T.tolist()]
    return torch.tensor([sum(column) / len(column) for column in columns], dtype=torch.float64)


def krum(rows, cohort, rule, memory):
    scores = []
    for k in range(len(rows)):
        distances = sorted(float((rows[k] - rows[j]).square().sum()) for j in range(len(rows)) if j != k)
        scores.append(sum(distances[: len(rows) - rule.num_byzantine - 2]))
    chosen = sorted(range(len(rows)), key=lambda k: scores[k])[: rule.num_selected]
    return rows[chosen].mean(0)


def clipped(rows, cohort, rule, memory):
    norms = rows.norm(dim=1)
    limit = rule.max_norm * (np.median(norms.numpy()) if rule.unit == "median" else 1)
    short = torch.stack(
        [row * min(1.0, limit / float(n)) if n > 0 else row for row, n in zip(rows, norms, strict=True)]
    )
    return mean(short, cohort, rule.rule, memory)


def matched(rows, cohort, rule, memory):
    """The mean times FedGH's gain: how much of any update its chain of projections puts in, counted as it goes."""
    gain = 0.0
    for k, order in enumerate(random_orders(cohort).tolist()):
        h, amount = rows[k].clone(), 1.0
        for j in order:
            share = float(h @ rows[j]) / (float(rows[j] @ rows[j]) or 1.0)
            if share < 0:
                h, amount = h - share * rows[j], amount - share
        gain += float(cohort.weights[k] / cohort.weights.sum()) * amount
    return gain * mean(rows, cohort, rule.rule, memory)


LAYERS = ((0, 3), (3, 6), (6, None))
BLOCKS = ((0, 2), (2, 3), (3, 6), (6, None))
"""Layers and parameter tensors as the tests' matrix has them."""


def craft(rows, cohort, rule, memory):
    """Pseudo-inverses of the unit updates, layer by layer; memory holds the last direction."""
    last = memory.get("direction", torch.zeros_like(rows[0]))
    direction = torch.zeros_like(last)
    for start, stop in LAYERS:
        part, r = rows[:, start:stop], last[start:stop]
        norms = part.norm(dim=1)
        kept = norms > 0
        if kept.sum() == 1:
            direction[start:stop] = part[kept][0]
        elif kept.sum() > 1:
            units = part[kept] / norms[kept, None]
            r = r / r.norm() if r.norm() > 0 else r
            cutoff = max(units.shape) * torch.finfo(torch.float32).eps
            p = cohort.weights[kept] / cohort.weights[kept].sum()
            direction[start:stop] = r + torch.linalg.pinv(units, rtol=cutoff) @ (p - units @ r)
    memory["direction"] = direction
    return direction


def centered_clipping(rows, cohort, rule, memory):
    center = memory.get("center", torch.zeros_like(rows[0]))
    for _ in range(rule.steps):
        differences = rows - center
        norms = differences.norm(dim=1)
        limit = rule.max_norm * (float(np.median(norms.numpy())) if rule.unit == "median" else 1)
        short = [d * min(1.0, limit / float(n)) if n > 0 else d for d, n in zip(differences, norms, strict=True)]
        center = center + torch.stack(short).mean(0)
    memory["center"] = center
    return center


def fedawa(rows, cohort, rule, memory):
    """The loss on the vectors, its gradient by autograd; memory holds every client's logit."""
    shares = cohort.weights / cohort.weights.sum()
    start = [
        memory.get(k, float(s if rule.init == "share" else s.log()))
        for k, s in zip(cohort.client_ids, shares, strict=True)
    ]
    logits = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    theta = cohort.params.to(torch.float64)[: rows.shape[1]]
    optimizer = torch.optim.Adam([logits], lr=rule.lr, betas=(0.5, 0.999))
    for _ in range(rule.steps):
        pi = logits.softmax(0)
        used = pi.detach()
        if rule.distance == "cosine":
            away = 1 - torch.nn.functional.cosine_similarity(theta[None], theta + rows, eps=0)
        else:
            away = rows.square().mean(1)
        apart = rows - pi @ rows
        far = apart.norm(dim=1) > 0  # where it is 0 the norm has no gradient
        loss = pi @ away + pi[far] @ apart[far].norm(dim=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    memory.update(zip(cohort.client_ids, logits.tolist(), strict=True))
    return used @ rows * cohort.weights.sum()


def confree(rows, cohort, rule, memory):
    """PCGrad on the vectors, then the best of the ball, as CAGrad's primal problem has it."""
    orders = random_orders(cohort).tolist()
    parts = [_confree(rows[:, start:stop], rule, orders) for start, stop in BLOCKS]
    return torch.cat(parts)


def _confree(rows, rule, orders):
    if len(rows) == 1:
        return rows[0]
    guide = literal_fedgh(rows, torch.full((len(rows),), 1 / len(rows)), orders)[1]
    return best_of_ball(rows, guide, rule.alpha) / (1 + rule.alpha**2)


def gc_fed(rows, cohort, rule, memory):
    """The tests' b.weight is the only tensor of two axes, one unit of three weights."""
    update = mean(rows, cohort, rule, memory)
    update[3:6] -= sum(update[3:6]) / 3
    return update


def layerwise_cosine(rows, cohort, rule, memory):
    return torch.cat([_central(rows[:, start:stop], rule) for start, stop in BLOCKS])


def _central(rows, rule):
    norms = [float(row.norm()) for row in rows]
    moved = [k for k, norm in enumerate(norms) if norm > 0]
    if not moved:
        return 0 * rows[0]
    scores = {}
    for k in moved:
        distances = sorted(1 - float(rows[k] @ rows[j]) / norms[k] / norms[j] for j in moved if j != k)
        nearest = len(moved) - (rule.num_byzantine + 2 if rule.operator == "krum" else 1)
        scores[k] = round(sum(distances[: max(nearest, 1)]), 6)
    best = sorted(moved, key=lambda k: scores[k])[: rule.num_selected]
    result, middle = rows[best].mean(0), sorted(norms)[(len(norms) - 1) // 2]
    if rule.shorten and float(result.norm()) > middle:
        result = result / result.norm() * middle
    return result


def fedgma(rows, cohort, rule, memory):
    update = []
    for column in rows.T.tolist():
        votes = sum(float(w) * ((x > 0) - (x < 0)) for w, x in zip(cohort.weights, column, strict=True))
        agreement = abs(votes) / float(cohort.weights.sum())
        mask = 1.0 if agreement >= rule.threshold - 1e-9 else agreement if rule.soft else 0.0
        update.append(mask * sum(float(w) * x for w, x in zip(cohort.weights, column, strict=True)))
    return torch.tensor(update, dtype=torch.float64)


sign_agreement = fedgma


def modo(rows, cohort, rule, memory):
    """The step by a general solver on the simplex; memory holds multiples of an even share."""
    x = np.array([memory.get(k, 1.0) for k in cohort.client_ids])
    x = x / x.sum()
    squares = (rows * rows).sum(1).mean().item() or 1.0
    point = x - rule.gamma * ((rows @ (torch.from_numpy(x) @ rows)).numpy() / squares + rule.rho * x)
    best = None
    for face in subsets(len(rows)):
        if face:  # the nearest point of the face's plane
            candidate = np.zeros(len(x))
            candidate[list(face)] = point[list(face)] + (1 - point[list(face)].sum()) / len(face)
            if candidate.min() >= 0 and (
                best is None or np.sum((candidate - point) ** 2) < np.sum((best - point) ** 2)
            ):
                best = candidate
    memory.update(zip(cohort.client_ids, (best * len(best)).tolist(), strict=True))
    return torch.from_numpy(best) @ rows


def sdmgrad(rows, cohort, rule, memory):
    center = cohort.weights / cohort.weights.sum() @ rows
    return nearest_to_zero(rows + rule.lam * center) / (1 + rule.lam) * cohort.weights.sum()


def cr_mogm(rows, cohort, rule, memory):
    """MGDA's weights, by the nearest point's faces; memory holds each client's average."""
    point, length = nearest_to_zero(rows), (cohort.weights @ rows).norm()
    weights = _weights_nearest_to_zero(rows) if float(rows.norm()) > 0 else [0.0] * len(rows)
    terms = sum(weight * float(row.norm()) for weight, row in zip(weights, rows, strict=True))
    if float(point.norm()) <= 1e-6 * terms:
        return 0 * rows[0]
    stretch = float(length / point.norm())  # to the mean's length, as MGDA's yaml says
    weights = [stretch * weight for weight in weights]
    if not memory:
        memory.update(zip(cohort.client_ids, weights, strict=True))
        return stretch * point  # of awkward rows the weights are not determined, the point is
    update = 0 * rows[0]
    for k, weight, row in zip(cohort.client_ids, weights, rows, strict=True):
        memory[k] = rule.alpha * memory.get(k, weight) + (1 - rule.alpha) * weight
        update = update + memory[k] * row
    return update


def famo(rows, cohort, rule, memory):
    """Adam from PyTorch, one optimizer a client: it looks at each coordinate by itself."""
    losses = dict(zip(cohort.client_ids, (float(loss) + 1e-8 for loss in cohort.losses), strict=True))
    logits = {k: memory.setdefault(("logit", k), torch.zeros((), dtype=torch.float64)) for k in losses}
    both = [k for k in losses if k in memory.get("last", {})]
    if both:
        z = torch.stack([logits[k] for k in both]).softmax(0)
        change = torch.tensor([math.log(memory["last"][k] / losses[k]) for k in both], dtype=torch.float64)
        for k, gradient in zip(both, z * (change - z @ change), strict=True):
            settings = {"lr": rule.lr, "weight_decay": rule.weight_decay}
            adam = memory.setdefault(("adam", k), torch.optim.Adam([logits[k]], **settings))
            logits[k].grad = gradient
            adam.step()
    memory["last"] = losses
    z = torch.stack([logits[k] for k in losses]).softmax(0) / torch.tensor(list(losses.values()), dtype=torch.float64)
    return z / z.sum() @ rows


def stch(rows, cohort, rule, memory):
    """Coefficients by autograd of the scalarization; memory holds how often a client was there, and its reference."""
    for k, loss in zip(cohort.client_ids, cohort.losses.tolist(), strict=True):
        times, reference = memory.get(k, (0, loss))
        memory[k] = (times + 1, loss if times <= rule.warmup_rounds else reference)
    losses = cohort.losses.clone().requires_grad_()
    if rule.form == "log":
        nadir = torch.tensor([memory[k][1] for k in cohort.client_ids], dtype=torch.float64)
        scalar = rule.mu * torch.logsumexp((losses / nadir).log() / rule.mu, 0)
    else:
        scalar = rule.mu * torch.logsumexp(cohort.weights / cohort.weights.sum() * losses / rule.mu, 0)
    scalar.backward()
    return losses.grad / losses.grad.sum() * cohort.weights.sum() @ rows


def dwa(rows, cohort, rule, memory):
    exponentials = []
    for k, loss in zip(cohort.client_ids, cohort.losses.tolist(), strict=True):
        exponentials.append(math.exp((loss / memory[k] if k in memory else 1.0) / rule.temperature))
        memory[k] = loss
    return sum(e * row for e, row in zip(exponentials, rows, strict=True)) / sum(exponentials)


def fedld(rows, cohort, rule, memory):
    return torch.cat([_principal(rows[:, start:stop], rule) for start, stop in BLOCKS])


def _principal(rows, rule):
    """Every client's component along every principal direction, replaced and averaged."""
    if float(rows.norm()) == 0:
        return 0 * rows[0]
    values, directions = torch.linalg.svd(rows, full_matrices=False)[1:]
    total, result = float((values**2).sum()), 0 * rows[0]
    for j in range(min(max(1, math.floor(rule.share * len(rows) + 1e-9)), len(values))):
        if values[j] ** 2 > len(rows) * torch.finfo(torch.float32).eps * values[0] ** 2:
            for row in rows:
                component = float(row @ directions[j])
                sign = 0 if abs(component) <= 1e-6 * float(row.norm()) else math.copysign(1, component)
                result += sign * float(values[j] ** 2) / total * row.norm() * directions[j] / len(rows)
    return result


def fedexp(rows, cohort, rule, memory):
    update = mean(rows, cohort, rule.rule, memory)
    shares = cohort.weights / cohort.weights.sum()
    squares = sum(float(p) * float(row @ row) for p, row in zip(shares, rows, strict=True))
    length = float(update @ update)
    return update if length == 0 else max(1.0, squares / (2 * (length + rule.eps))) * update


ida = geometric_median
