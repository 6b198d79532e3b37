"""What a stored config may build. A stranger may have written it, so it names parts and cannot name anything else.

A part is known by what it is and by where it is defined, not by the name that it is asked for by: other packages'
functions can be reached through our modules, too. Nothing is called here, and only a place's own packages are imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedgh.core.errors import ConfigurationError
from fedgh.moved import MOVED


@dataclass(frozen=True)
class Kind:
    """Classes and functions that a place takes.

    Attributes:
        packages: Where they are defined.
        bases: One of which a class derives from; empty for any class.
        functions: By name.
    """

    packages: tuple[str, ...]
    bases: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


_LIGHTNING = ("pytorch_lightning", "lightning_fabric")

PLACES = {
    "algorithm": Kind(("fedgh.algorithm",), ("fedgh.algorithm.base.Algorithm",)),
    "aggregator": Kind(("fedgh.aggregator",), ("fedgh.aggregator.base.Aggregator",)),
    "dataset": Kind(("fedgh.dataset",), functions=("load",)),
    "model": Kind(("fedgh.model",), ("torch.nn.Module",)),
    "executor": Kind(("fedgh.executor",), ("fedgh.executor.base.Executor",), ("choose",)),
    "compressor": Kind(("fedgh.compressor",), ("fedgh.compressor.base.Compressor",)),
    "privacy": Kind(("fedgh.privacy",)),
    "clock": Kind(("fedgh.federation.clock",)),
    **{f"{side}_lr_schedule": Kind(("fedgh.core.lr_schedule",)) for side in ("client", "server")},
    "trainer": Kind(_LIGHTNING, ("pytorch_lightning.Trainer",)),
    "logger": Kind(_LIGHTNING, ("pytorch_lightning.loggers.Logger",)),
    **{name: Kind((f"fedgh.{name}",)) for name in ("server_optimizer", "partition", "sampler", "callback")},
}
"""By the first key of their path, what the parts of a federation are."""

WITHIN = {
    "algorithm": (Kind(("torch.optim",), ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler")),),
    "aggregator": (PLACES["aggregator"],),
    "dataset": (Kind(("fedgh.dataset",)), PLACES["dataset"]),
    "model": (PLACES["model"],),
    "metric": (Kind(("torchmetrics", "fedgh.metric"), ("torchmetrics.Metric",)),),
    "callback": (Kind(("fedgh.config.rules",), functions=("build_aggregators",)), PLACES["aggregator"]),
    "trainer": (
        Kind(
            _LIGHTNING,
            (
                *("lightning_fabric.plugins.environments.ClusterEnvironment", "pytorch_lightning.plugins.Precision"),
                *("pytorch_lightning.strategies.Strategy", "pytorch_lightning.accelerators.Accelerator"),
                *("pytorch_lightning.callbacks.Callback", "pytorch_lightning.profilers.Profiler"),
            ),
        ),
    ),
}
"""By the same key, what the settings of such a part may be in turn."""


def check_parts(content: Any, trust: Sequence[str] = ()) -> None:
    """Check that a stored config builds only what its places are for.

    Args:
        content: Plain mappings and lists, no reference resolved.
        trust: Packages, or full names, to be taken besides.

    Raises:
        ConfigurationError: Naming the first part that is something else, and what to type if it is the reader's own.
    """
    check_trust(trust)
    for path, node in targets(content):
        if "_args_" in node and not _inside(str(node["_target_"]), trust):
            raise ConfigurationError(
                f"the config's {path} has _args_; settings have names, except in packages you trust"
            )
        problem = _problem(path, node["_target_"], trust)
        if problem:
            raise ConfigurationError(f"the config's {path}._target_ is {node['_target_']!r}{problem}")


def check_trust(trust: Sequence[str]) -> None:
    """Refuse what nobody can mean by ``trust``.

    Raises:
        ConfigurationError: If it is no list of packages, or names Python itself.
    """
    names = [trust] if isinstance(trust, str) else list(trust)
    for name in names:
        if isinstance(trust, str) or not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
            raise ConfigurationError(f"trust must be a list of packages, got {trust!r}; type trust=[my_package]")
        if name.partition(".")[0] in {*sys.stdlib_module_names, "fedgh", "hydra"}:
            raise ConfigurationError(f"trust=[{name}] would let a stored config run anything; name a package of yours")


def foreign(cfg: DictConfig) -> list[str]:
    """Return the packages that must be trusted for a config to be built once it is stored, sorted."""
    nodes = targets(OmegaConf.to_container(cfg))
    names = {str(node["_target_"]) for path, node in nodes if _problem(path, node["_target_"], ())}
    return sorted({name.partition(".")[0] for name in names})


def targets(tree: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every mapping with a ``_target_``, with its path."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree
        children = [(f"{path}.{key}" if path else str(key), child) for key, child in tree.items()]
    elif isinstance(tree, list):
        children = [(f"{path}[{index}]", child) for index, child in enumerate(tree)]
    else:
        return
    for name, child in children:
        yield from targets(child, name)


def _problem(path: str, target: Any, trust: Sequence[str]) -> str:
    """Return what is wrong with a target, as the end of a sentence; empty if nothing is."""
    if not isinstance(target, str) or not all(map(str.isidentifier, target.split("."))):
        return "; expected the name of a class"
    if target in trust:
        return ""
    kinds, root = _kinds(path), target.partition(".")[0]
    packages = [package for kind in kinds for package in kind.packages]
    module, _, name = target.rpartition(".")
    module = MOVED.get(module, module)
    if not _inside(module, [*packages, *trust]):
        return _refusal(kinds, root)
    try:
        found = getattr(import_module(module), name)
    except Exception as error:
        return f", which cannot be imported: {error}"
    home = str(getattr(found, "__module__", ""))
    if any(_fits(found, home, kind) for kind in kinds) or (_inside(home, trust) and callable(found)):
        return ""
    origin = "" if _inside(module, packages) and _inside(home, packages) else f", which is defined in {home or '?'}"
    return f"{origin}{_refusal(kinds, home.partition('.')[0])}"


def _kinds(path: str) -> tuple[Kind, ...]:
    """Return what may stand at a path: a part where parts are, or what a part is made of."""
    keys = path.replace("[", ".").split(".")
    depth = 2 if keys[0] in ("callback", "logger") else 1  # which hold several parts by name
    if len(keys) == depth:
        return (PLACES[keys[0]],) if keys[0] in PLACES else ()
    return WITHIN.get(keys[0], ()) if len(keys) > depth else ()


def _fits(found: Any, home: str, kind: Kind) -> bool:
    if not _inside(home, kind.packages):
        return False
    if isinstance(found, FunctionType):
        return found.__name__ in kind.functions
    if not isinstance(found, type):
        return False
    return not kind.bases or any(issubclass(found, _base(name)) for name in kind.bases)


def _base(name: str) -> type:
    module, _, name = name.rpartition(".")
    base: type = getattr(import_module(module), name)
    return base


def _inside(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _refusal(kinds: Sequence[Kind], root: str) -> str:
    wanted = " or ".join(dict.fromkeys(_wanted(kind) for kind in kinds))
    expected = f"expected {wanted}" if wanted else "no part belongs there"
    ours = {*sys.stdlib_module_names, "fedgh", "hydra", "", "torch", "pytorch_lightning", "lightning_fabric"}
    if root in ours:
        return f"; {expected}. A run directory is data: do not use one of unknown origin"
    return f"; {expected}. If the package {root} is yours, or you trust it and the run's author, type trust=[{root}]"


def _wanted(kind: Kind) -> str:
    if kind.functions and not kind.bases:
        return f"{' or '.join(kind.functions)} of {kind.packages[0]}"
    derived = f" derived from {kind.bases[0].rpartition('.')[2]}" if kind.bases else ""
    return f"a class of {kind.packages[0]}{derived}"
