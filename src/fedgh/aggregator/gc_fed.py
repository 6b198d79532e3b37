"""GC-Fed's server half: gradient centralization after any rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedgh.aggregator.base import Aggregate, Aggregator, State
from fedgh.core.types import Cohort
from fedgh.core.updates import Block, UpdateMatrix


@dataclass(frozen=True)
class GCFed(Aggregator):
    """Combine by another rule, then take from every output unit's weights the mean of their update.

    ``update <- P update``, P subtracting for each index of a tensor's first axis the mean over all others. P is linear
    and acts on coordinates, so it commutes with any mixing of updates: P after the rule is the rule's coefficients on
    centred updates.

    Attributes:
        rule: What combines the updates.

    Reference:
        Seo et al.: "GC-Fed: Gradient Centralized Federated Learning with Partial Client Participation", arXiv
        2503.13180 (Global GC), and the released code.
    Departures:
        Tensors of one axis and single numbers are left alone: there the released code subtracts the mean over *all*
        entries, which centres a bias across units. So are running statistics. The release averages evenly; here the
        rule says. The local half, P on every gradient of the layers before the classifier, is a client's business.
    """

    rule: Aggregator

    scale_preserving = False
    needs = "coordinates"

    def __call__(self, updates: UpdateMatrix, gram: Tensor, cohort: Cohort, state: State) -> Aggregate:
        """Call the rule, centre what it gives; see :meth:`Aggregator.__call__`."""
        result = self.rule(updates, gram, cohort, state)
        return replace(result, update=centered(result.update, updates.blocks), coefficients=None, mixing=None)


def centered(update: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Return ``P update``, ``(params,)``."""
    update = update.clone()
    for block in blocks:
        if len(block.shape) > 1:
            units = update[block.start : block.stop].view(block.shape[0], -1)
            units -= units.mean(1, keepdim=True)
    return update
