"""Aggregation rules by name, with the settings of ``configs/aggregator/<name>.yaml``.

For whatever needs several rules at once: shadow aggregators, notebooks that compare the family.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose
from hydra.core.global_hydra import GlobalHydra

from fedgh.aggregator.base import Aggregator
from fedgh.config import build, composer, did_you_mean
from fedgh.core.errors import ConfigurationError


def aggregator_names() -> list[str]:
    """Return the choices of ``aggregator=``, sorted."""
    with composer():
        return sorted(GlobalHydra.instance().config_loader().get_group_options("aggregator"))


def build_aggregators(names: Sequence[str]) -> dict[str, Aggregator]:
    """Return one rule per name, in the order given.

    Args:
        names: Choices of ``aggregator=``, each at most once.

    Raises:
        ConfigurationError: If a name is unknown or given twice, or none is given.
    """
    names = [names] if isinstance(names, str) else list(names)
    known = aggregator_names()
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"there is no aggregator {name!r}{did_you_mean(str(name), known)}; known: {', '.join(known)}"
            )
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"a list of aggregators must name one or more, each once, got {names}")
    with composer():
        return {name: build(compose(f"aggregator/{name}").aggregator) for name in names}
