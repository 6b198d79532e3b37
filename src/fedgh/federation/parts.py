"""Parts that do not go together are refused before a run begins, in one line with the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgh.core.errors import ConfigurationError
from fedgh.task.adaptation import Adaptation
from fedgh.task.classification import Classification
from fedgh.task.multi_task import MultiTask

if TYPE_CHECKING:
    from fedgh.federation.round import Federation

CHOICES = {"on_nonfinite": ("drop", "raise"), "buffers": ("average", "keep_global")}
"""Settings of a federation that are words."""

ADDED = ("discriminator", "second_head")
"""Parts of a model that some methods need."""


def check_parts(federation: Federation) -> None:
    """Check that the parts of a federation can work together.

    Raises:
        ConfigurationError: Naming the first two that cannot.
    """
    for name, allowed in CHOICES.items():
        if getattr(federation, name) not in allowed:
            raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, got {getattr(federation, name)!r}")
    _check_requirements(federation)
    algorithm, aggregator, clock = federation.algorithm, federation.aggregator, federation.clock
    least = aggregator.min_clients
    if algorithm.overrides("group"):
        if least > 1:
            raise ConfigurationError(
                f"{type(aggregator).__name__} needs at least {least} clients, and {type(algorithm).__name__} forms "
                "groups that may be smaller; take another aggregator, such as aggregator=median"
            )
        if clock is not None:
            raise ConfigurationError(
                f"{type(algorithm).__name__} trains several global models, of which a clock keeps no older versions; "
                "type clock=synchronous"
            )
    if clock is None:
        _check_cohorts(federation, least)
    if clock is not None and (clock.interval is not None or clock.buffer_size < least) and least > 1:
        raise ConfigurationError(
            f"{type(aggregator).__name__} needs at least {least} clients a round; type clock=fedbuff "
            f"clock.buffer_size={least} clock.concurrency={max(least, clock.concurrency)}, or take another aggregator"
        )


def _check_cohorts(federation: Federation, least: int) -> None:
    """Let sampler and aggregator say now what they have against so many clients."""
    clients, seed = federation.num_clients, federation.seed
    size = len(federation.sampler(clients, seed, 0))
    if least > 1:
        size = min(len(federation.sampler(clients, seed, t)) for t in range(min(100, -(-clients // size))))
    federation.aggregator.check(size, federation.model.blocks)


def _check_requirements(federation: Federation) -> None:
    algorithm, task = type(federation.algorithm).__name__, federation.dataset.task
    present = {
        "head": any(block.name.startswith("head.") for block in federation.model.blocks),
        "classification": isinstance(task, Classification),
        "several_targets": isinstance(task, MultiTask),
        "clock": federation.clock is not None,
        "adaptation": isinstance(task, Adaptation),
        **{part: any(b.name.startswith(f"{part}.") for b in federation.model.blocks) for part in ADDED},
    }
    remedies = {
        "head": "a model whose classifier is called `head`, such as model=mlp",
        "classification": "a data set with one label per example, such as dataset=digits",
        "several_targets": "a data set with several targets per example, such as dataset=digits_two",
        "clock": "clients that come and go: clock=fedbuff",
        "adaptation": "a labelled and an unlabelled domain: dataset=adaptation",
        "discriminator": "a discriminator: model=adapted",
        "second_head": "a second head: model=adapted model.second_head=true model.discriminator=null",
    }
    for need in sorted(federation.algorithm.requires):
        if not present[need]:
            raise ConfigurationError(f"{algorithm} needs {remedies[need]}")
