"""Aggregation rules and conflicts for a federated loop of one's own: tensors in, tensors out; PyTorch alone is loaded.

>>> update = fedgh.aggregate(updates, weights, rule="fedgh")  # in place of the weighted mean
>>> print(fedgh.conflicts(updates, weights))
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml
from torch import Tensor

from fedgh.aggregator.base import Aggregator
from fedgh.core.configs import CONFIG_DIR
from fedgh.core.errors import ConfigurationError, DataError, did_you_mean
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix
from fedgh.metric.conflict import conflict_metrics, cosine_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Updates = Tensor | Sequence[Mapping[str, Tensor]]
U = TypeVar("U", Tensor, Sequence[Mapping[str, Tensor]])


def rule_names() -> list[str]:
    """Return the names of all aggregation rules, sorted."""
    return sorted(path.stem for path in (CONFIG_DIR / "aggregator").glob("*.yaml"))


def make_rule(name: str, **settings: Any) -> Aggregator:
    """Return an aggregation rule with the settings of ``configs/aggregator/<name>.yaml``.

    Args:
        name: One of :func:`rule_names`.
        settings: Take the place of the file's, such as ``alpha=1.0``; where a rule wraps another, the latter's name or
            an :class:`~fedgh.aggregator.base.Aggregator`, ``rule="median"``.

    Raises:
        ConfigurationError: If there is no such rule or setting, or a value is refused.
    """
    path = CONFIG_DIR / "aggregator" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"there is no rule {name!r}{did_you_mean(name, rule_names())}; known: {', '.join(rule_names())}"
        )
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for default in values.pop("defaults", []):  # such as {"/aggregator@rule": "mean"}: a rule inside
        if isinstance(default, Mapping):
            ((place, inner),) = default.items()
            values[place.rpartition("@")[2]] = inner
    module, _, cls = values.pop("_target_").rpartition(".")
    if unknown := sorted(settings.keys() - values.keys()):
        known = ", ".join(values) or "it has none"
        raise ConfigurationError(
            f"rule {name} has no setting {unknown[0]!r}{did_you_mean(unknown[0], list(values))}; settings: {known}"
        )
    values |= settings
    inner = values.get("rule")
    if isinstance(inner, str):
        values["rule"] = make_rule(inner)
    rule: Aggregator = getattr(importlib.import_module(module), cls)(**values)
    return rule


def aggregate(
    updates: U,
    weights: Tensor | Sequence[float] | None = None,
    rule: str | Aggregator = "fedgh",
    *,
    losses: Sequence[float] | None = None,
    client_ids: Sequence[int] | None = None,
    seed: int = 0,
    round_index: int = 0,
    memory: dict[str, Tensor] | None = None,
    params: Tensor | Mapping[str, Tensor] | None = None,
    **settings: Any,
) -> Any:
    """Combine the updates of a round's clients into one.

    The server then moves by it: ``global + aggregate(updates, weights)``, or hands its negative to an optimizer.

    Args:
        updates: What each client changed, ``local - global``: a tensor ``(clients, params)``, or a mapping a client
            from parameter name to tensor, all with the same names and shapes. Parameters only; running statistics are
            no updates, average those by themselves.
        weights: How much each client counts, such as its number of examples, ``(clients,)``; they are divided by their
            sum. None: all the same.
        rule: Name of a rule, see :func:`rule_names`, or a rule itself.
        losses: Mean training loss of each client, ``(clients,)``, for the rules that read it (``fedfv``).
        client_ids: Ascending ids, for the rules that draw at random or remember clients; 0, 1, ... if left out.
        seed: Of the experiment, for the rules that draw at random (``fedgh``, ``pcgrad``).
        round_index: Round t, from 0, for the same rules.
        memory: For rules that remember something from round to round (``gradvac``, ``fedadp``): one dictionary, empty
            at first, handed in every round. It is changed in place.
        params: Of the global model before the round, in the form of one update, for the rule that measures against it
            (``fedawa``).
        settings: Of a rule given by its name, see :func:`make_rule`.

    Returns:
        The update, on the device of the given ones: ``(params,)``, or a mapping with the given names and shapes.

    Raises:
        ConfigurationError: If there is no such rule or setting.
        DataError: If updates, weights, losses or ids do not fit together, or are not finite.
    """
    matrix = _matrix(updates)
    cohort = _cohort(len(matrix), weights, losses, client_ids, seed, round_index)
    if params is not None:
        (row,) = _matrix(params[None] if isinstance(params, Tensor) else [params]).rows
        if len(row) != matrix.rows.shape[1]:
            raise DataError(f"params must be as many numbers as an update has: {matrix.rows.shape[1]}, got {len(row)}")
        cohort = replace(cohort, params=row)
    outcome = _rule(rule, settings)(matrix, matrix.gram(), cohort, memory or {})
    if memory is not None:
        memory.clear()
        memory.update(outcome.state)
    if isinstance(updates, Tensor):
        return outcome.update
    parts = {b.name: outcome.update[b.start : b.stop].view(b.shape) for b in matrix.blocks}
    return {name: parts[name].to(tensor.dtype) for name, tensor in updates[0].items()}


def conflicts(
    updates: Updates,
    weights: Tensor | Sequence[float] | None = None,
    rules: Sequence[str | Aggregator] = ("mean", "fedgh"),
    *,
    losses: Sequence[float] | None = None,
    client_ids: Sequence[int] | None = None,
    seed: int = 0,
    round_index: int = 0,
) -> Conflicts:
    """Measure the conflict between the updates of a round's clients, and what rules would do about it.

    Args:
        updates: See :func:`aggregate`; from mappings conflict is measured in each parameter, too.
        weights: See there.
        rules: To compare, by name or built; rules with a memory start from an empty one.
        losses: See there.
        client_ids: See there.
        seed: See there.
        round_index: See there.

    Raises:
        ConfigurationError: If there is no such rule, or one refuses so few clients.
        DataError: As in :func:`aggregate`.
    """
    matrix = _matrix(updates)
    cohort = _cohort(len(matrix), weights, losses, client_ids, seed, round_index)
    built = {rule if isinstance(rule, str) else type(rule).__name__: _rule(rule, {}) for rule in rules}
    return Conflicts(matrix, cohort, built)


@dataclass(frozen=True, eq=False)
class Conflicts:
    """How much a round's clients contradict each other; what :func:`conflicts` returns. Printing it tells all in short.

    Attributes:
        updates: Of the clients, ``(clients, params)``.
        cohort: Ids, weights and losses of the clients.
        aggregators: Rules to compare, by name.
    """

    updates: UpdateMatrix
    cohort: Cohort
    aggregators: Mapping[str, Aggregator]

    @cached_property
    def block_grams(self) -> Tensor:
        """Gram matrix of the updates in each parameter, ``(blocks, clients, clients)`` float64."""
        return self.updates.gram(by_block=True)

    @cached_property
    def gram(self) -> Tensor:
        """Gram matrix of the updates, ``(clients, clients)`` float64."""
        return self.updates.gram()

    @cached_property
    def cosines(self) -> Tensor:
        """Cosine of every pair of updates, ``(clients, clients)`` float64; NaN where an update is zero."""
        return cosine_matrix(self.gram)

    @cached_property
    def share(self) -> float:
        """Share of the pairs with a negative cosine, the paper's conflict ratio; NaN with fewer than two updates."""
        return conflict_metrics(self.gram).get("conflict/ratio", float("nan"))

    @cached_property
    def layers(self) -> dict[str, float]:
        """The same share in each parameter, by its name."""
        shares = (conflict_metrics(gram).get("conflict/ratio", float("nan")) for gram in self.block_grams)
        return {block.name: share for block, share in zip(self.updates.blocks, shares, strict=True)}

    @cached_property
    def progress(self) -> dict[str, Tensor]:
        """What each rule would do to each client: by rule, the cosine of its aggregate with each client's update.

        ``(clients,)`` float64 each. Below zero the round moves against that client; NaN where either is zero.
        """
        norms = self.gram.diagonal().sqrt()
        found = {}
        for name, rule in self.aggregators.items():
            update = rule(self.updates, self.gram, self.cohort, {}).update.to(torch.float64)
            dots = torch.stack([row.to(torch.float64) @ update for row in self.updates.rows]).cpu()
            found[name] = (dots / norms / update.norm().cpu()).clamp(-1, 1)
        return found

    def metrics(self) -> dict[str, float]:
        """Return plain numbers for ``wandb.log``.

        Returns:
            ``conflict/...`` as in every run of FedGH; ``conflict/layer/<parameter>``, the share in it, where updates
            came by name; ``progress/<rule>/min``, the cosine of the worst client, and ``progress/<rule>/against``, the
            share of clients that the round moves against.
        """
        named = len(self.updates.blocks) > 1
        layers = {f"conflict/layer/{name}": share for name, share in self.layers.items()} if named else {}
        numbers = conflict_metrics(self.gram) | layers
        for rule, cosines in self.progress.items():
            known = cosines[~cosines.isnan()]
            if len(known):
                numbers |= {f"progress/{rule}/min": float(known.min())}
                numbers |= {f"progress/{rule}/against": float((known < 0).double().mean())}
        return numbers

    def figure(self) -> Figure:
        """Draw the cosine of every pair: blue agrees, red is in conflict. Loads matplotlib."""
        from fedgh.plot.picture import cosine_figure

        return cosine_figure(self.cosines.numpy(), self.cohort.client_ids)

    def __str__(self) -> str:
        measured = conflict_metrics(self.gram)
        if not measured:
            return f"{len(self.updates)} clients, fewer than two of which moved: no conflict to speak of"
        pairs = len(self.updates) * (len(self.updates) - 1) // 2
        lines = [
            f"{len(self.updates)} clients: {self.share:.0%} of {pairs} pairs in conflict; cosines from "
            f"{measured['conflict/cosine_min']:+.3f}, median {measured['conflict/cosine_median']:+.3f}"
        ]
        for rule, cosines in self.progress.items():
            against = [k for k, value in zip(self.cohort.client_ids, cosines.tolist(), strict=True) if value < 0]
            who = (
                f" (client {', '.join(map(str, against[:5]))}{', ...' if len(against) > 5 else ''})" if against else ""
            )
            lines += [f"{rule:12s} moves against {len(against)} of {len(cosines)} clients{who}"]
        return "\n".join(lines)


def _rule(rule: str | Aggregator, settings: Mapping[str, Any]) -> Aggregator:
    if isinstance(rule, str):
        return make_rule(rule, **settings)
    if settings:
        raise ConfigurationError(f"{', '.join(settings)}: settings go with the name of a rule, not with a built one")
    return rule


def _matrix(updates: Updates) -> UpdateMatrix:
    """Return the updates as rows of one finite matrix."""
    if isinstance(updates, Tensor):
        if updates.dim() != 2 or 0 in updates.shape or not updates.is_floating_point():
            raise DataError(
                f"updates must be a floating tensor of shape (clients, params), got {updates.dtype} of shape "
                f"{tuple(updates.shape)}; stack one row per client"
            )
        matrix = UpdateMatrix.of(updates.detach())
    else:
        matrix = _from_mappings(updates)
    finite = torch.isfinite(matrix.rows).all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise DataError(f"the update in place {row} is not finite; leave that client out of the round")
    return matrix


def _from_mappings(updates: Sequence[Mapping[str, Tensor]]) -> UpdateMatrix:
    updates = list(updates)
    if not updates or not updates[0]:
        raise DataError("there are no updates; give one mapping from parameter name to tensor per client")
    shapes = {name: tensor.shape for name, tensor in updates[0].items()}
    remedy = "give parameters only: {name: local[name] - parameter for name, parameter in model.named_parameters()}"
    for name, tensor in updates[0].items():
        if not tensor.is_floating_point() or name.endswith(("running_mean", "running_var")):
            raise DataError(f"{name} ({tensor.dtype}) is no parameter but a buffer of the model; {remedy}")
    for place, update in enumerate(updates):
        theirs = {name: tensor.shape for name, tensor in update.items()}
        if different := sorted(name for name in {*shapes, *theirs} if shapes.get(name) != theirs.get(name)):
            name = different[0]
            found, wanted = (tuple(s[name]) if name in s else "missing" for s in (theirs, shapes))
            raise DataError(f"the update in place {place} has another {name} than the first: {found}, not {wanted}")
    blocks, start = [], 0
    for name, shape in shapes.items():
        blocks += [Block(name, start, start + shape.numel(), shape)]
        start = blocks[-1].stop
    rows = torch.stack([torch.cat([update[name].detach().reshape(-1) for name in shapes]) for update in updates])
    return UpdateMatrix(rows, tuple(blocks))


def _cohort(
    num_clients: int,
    weights: Tensor | Sequence[float] | None,
    losses: Sequence[float] | None,
    client_ids: Sequence[int] | None,
    seed: int,
    round_index: int,
) -> Cohort:
    """Return what a rule may know of the clients."""
    ids = tuple(int(k) for k in client_ids) if client_ids is not None else tuple(range(num_clients))
    given = torch.as_tensor([1.0] * num_clients if weights is None else weights, dtype=torch.float64).cpu()
    loss = torch.as_tensor([0.0] * num_clients if losses is None else losses, dtype=torch.float64).cpu()
    for name, length in (("weights", given.numel()), ("losses", loss.numel()), ("client_ids", len(ids))):
        if length != num_clients:
            raise DataError(f"{name} must be one number per client: {num_clients}, got {length}")
    if not bool(torch.isfinite(given).all()) or float(given.min()) < 0 or float(given.sum()) <= 0:
        raise DataError(f"weights must be finite and non-negative, and not all zero, got {given.tolist()}")
    if list(ids) != sorted(set(ids)):
        raise DataError(f"client_ids must ascend, so that nothing depends on the order of clients, got {list(ids)}")
    return Cohort(ids, given / given.sum(), loss, seed, round_index)
