"""What an algorithm does after the last round (CCVR): it has its own numbers, and no round's checkpoint holds it."""

from __future__ import annotations

from functools import partial

from fedgh.core.types import ServerState
from fedgh.federation.finite import require_finite
from fedgh.federation.loop import Schedule, evaluated
from fedgh.federation.round import Federation


def complete(federation: Federation, server: ServerState, schedule: Schedule) -> tuple[ServerState, dict[str, float]]:
    """Return the state after the algorithm's phase after training, and what its models are worth.

    Returns:
        The state, without client states, and the metrics of an evaluated round under names that start with
        ``completed/``.

    Raises:
        NonFiniteError: If the phase made something that is not finite.
    """
    ask = partial(federation.executor.ask, server)
    after = federation.algorithm.complete(server, federation.model.blocks, ask, federation.seed)
    require_finite(after, server)
    return after, {f"completed/{name}": value for name, value in evaluated(federation, after, schedule).items()}
