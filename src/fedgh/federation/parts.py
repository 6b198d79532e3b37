"""Parts that do not go together are refused before a run begins, in one line with the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedgh.aggregator.mean import Mean
from fedgh.core.errors import ConfigurationError
from fedgh.dataset.base import ImageDataset
from fedgh.sampler.uniform import Uniform
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
    if federation.privacy is not None:
        _check_privacy(federation)
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


def drawn_per_round(federation: Federation) -> int | None:
    """Return how many clients a round draws uniformly without replacement; None if they are chosen otherwise."""
    sampler = federation.sampler
    return len(sampler(federation.num_clients, 0, 0)) if isinstance(sampler, Uniform) else None


TELLING = ("client_weights", "group", "conclude", "complete")
"""Hooks with which a method reads more of a client than its update."""


def _check_privacy(federation: Federation) -> None:
    """Check that nothing leaves a client but a clipped update, and that the noise covers what becomes of it."""
    privacy, algorithm, executor = federation.privacy, federation.algorithm, federation.executor
    if privacy is None or privacy.noise_multiplier == 0:
        return
    privacy.check()
    name = type(algorithm).__name__
    if any(algorithm.overrides(hook) for hook in TELLING):
        raise ConfigurationError(
            f"privacy bounds what updates tell, and {name} reads more of its clients than updates; type "
            "algorithm=fedavg, or another that sends nothing beside its update (docs/algorithms.md, column travels)"
        )
    averaged = federation.buffers == "average" and not algorithm.own_buffers
    if averaged and federation.model.buffers.numel():
        raise ConfigurationError(
            "privacy bounds what updates tell, and this model's running statistics travel beside them without noise; "
            "type model.norm=group, or buffers=keep_global"
        )
    if federation.clock is not None:
        raise ConfigurationError("privacy counts rounds that wait for everybody; type clock=synchronous")
    if privacy.noise_at == "clients":
        return
    if not isinstance(federation.aggregator, Mean):
        raise ConfigurationError(
            f"{type(federation.aggregator).__name__} looks at single updates, so a client may move the aggregate by "
            "more than its share and the server's noise hides nobody; type aggregator=mean, or privacy.noise_at=clients"
        )
    if algorithm.weights != "uniform":
        raise ConfigurationError(
            "the server's noise is that of clients who count alike; type algorithm.weights=uniform, or "
            "privacy.noise_at=clients"
        )
    if executor.compressor is not None and not executor.compressor.identity:
        raise ConfigurationError(
            "compression after clipping may make an update longer than privacy.clip; leave compressor out, or type "
            "privacy.noise_at=clients"
        )


def _check_requirements(federation: Federation) -> None:
    algorithm, task = type(federation.algorithm).__name__, federation.dataset.task
    present = {
        "head": any(block.name.startswith("head.") for block in federation.model.blocks),
        "classification": isinstance(task, Classification),
        "several_targets": isinstance(task, MultiTask),
        "clock": federation.clock is not None,
        "adaptation": isinstance(task, Adaptation),
        **{part: any(b.name.startswith(f"{part}.") for b in federation.model.blocks) for part in ADDED},
        "images": isinstance(federation.dataset, ImageDataset),
    }
    remedies = {
        "head": "a model whose classifier is called `head`, such as model=mlp",
        "classification": "a data set with one label per example, such as dataset=digits",
        "several_targets": "a data set with several targets per example, such as dataset=digits_two",
        "clock": "clients that come and go: clock=fedbuff",
        "adaptation": "a labelled and an unlabelled domain: dataset=adaptation",
        "discriminator": "a discriminator: model=adapted",
        "second_head": "a second head: model=adapted model.second_head=true model.discriminator=null",
        "images": "a data set of images, such as dataset=digits",
    }
    for need in sorted(federation.algorithm.requires):
        if not present[need]:
            raise ConfigurationError(f"{algorithm} needs {remedies[need]}")
