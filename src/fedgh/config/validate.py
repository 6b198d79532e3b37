"""What can be said against a config before any file is read."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from inspect import Parameter
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedgh.config.kinds import check_kind
from fedgh.config.wandb import check_wandb
from fedgh.core.errors import ConfigurationError, did_you_mean
from fedgh.core.machine import FP32_PRECISIONS

MEMORY_FORMATS = {"channels_last": "channels_last", "contiguous": "contiguous_format"}
"""And what PyTorch calls them."""


NO_INFINITY = ("algorithm.", "server_optimizer.", "aggregator.")
"""Where an infinite number would only ruin the model; as a bound on a norm it means none."""
GROUPS = (
    "algorithm",
    "aggregator",
    "server_optimizer",
    "dataset",
    "partition",
    "model",
    "sampler",
    "executor",
    "trainer",
)
"""Groups of which one choice is needed; ``logger`` and ``callback`` hold any number of parts."""

OURS = {"dataset.validation_fraction": "float | None"}
"""Settings that stand beside a part's own, whichever it is, and of what kind; ``build_federation`` heeds them."""

COUNTS = ("num_rounds", "evaluation.every", "evaluation.batch_size", "checkpoint.every", "checkpoint.keep")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")
FIXED = {
    "max_epochs": (1, "the passes over a client's data are algorithm.local_epochs=5, the rounds num_rounds=50"),
    "logger": (False, "rounds are recorded by logger=wandb, csv, tensorboard or many"),
    "enable_checkpointing": (False, "rounds are kept by checkpoint.every and checkpoint.keep"),
    "enable_progress_bar": (False, "the bar over rounds is always there"),
    "enable_model_summary": (False, "the size of the model is printed at the start"),
    "num_nodes": (1, "many machines share a run by executor=ray"),
    "strategy": ("auto", "many devices share a run by executor=ray"),
}
"""Settings of the Trainer that have one value here, and what to type for what others would do."""

READ = {
    *("accelerator", "devices", "precision", "plugins", "callbacks", "profiler", "default_root_dir"),
    *("deterministic", "benchmark", "detect_anomaly"),
}
"""Settings of the Trainer that local training heeds."""

INSTEAD = {
    "max_steps": "algorithm.local_epochs=1",
    "max_time": "num_rounds=10, and later resume=<run directory>",
    "limit_train_batches": "dataset.train_fraction=0.1 or debug=default",
    "overfit_batches": "dataset.train_fraction=0.1 or debug=default",
    "fast_dev_run": "debug=default",
    "barebones": "callback=none",
    "accumulate_grad_batches": "algorithm.batch_size=128",
    "gradient_clip_val": "aggregator=clipped, which clips updates",
    "gradient_clip_algorithm": "aggregator=clipped, which clips updates",
    "check_val_every_n_epoch": "evaluation.every=5",
    "val_check_interval": "evaluation.every=5",
}
"""For settings of the Trainer that nothing here reads: what to type for what they would do."""


def validate(cfg: DictConfig) -> None:
    """Check everything that can be checked before any file is read.

    Raises:
        ConfigurationError: A parameter that a chosen part does not have, a missing one, or a value out of its range.
    """
    for group in GROUPS:
        node = cfg.get(group)
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ConfigurationError(
                f"{group} must be one of the choices in configs/{group}, or a class with its settings "
                f"({{_target_: <package.module.Class>, ...}}), got {node!s}"
            )
    for section, key in (("evaluation", "every=5"), ("checkpoint", "every=5"), ("paths", "log_dir=logs")):
        if not isinstance(cfg.get(section), DictConfig):
            raise ConfigurationError(
                f"{section} is a section of keys, got {cfg.get(section)!s}; type for instance {section}.{key}"
            )
    for group in ("logger", "callback"):
        if not isinstance(cfg[group] or DictConfig({}), DictConfig):
            raise ConfigurationError(f"{group} must be one of the choices in configs/{group}, got {cfg[group]!s}")
        for key, node in (cfg[group] or {}).items():
            if group == "logger" and key in ("mode", "patience"):
                continue
            if node is not None and not (isinstance(node, DictConfig) and "_target_" in node):
                raise ConfigurationError(
                    f"{group}.{key} must be a class with its settings ({{_target_: <package.module.Class>, ...}}) or "
                    f"null, got {node!s}"
                )
    for key, kind in OURS.items():
        check_kind(key, OmegaConf.select(cfg, key), kind)
    fraction = cfg.dataset.get("validation_fraction")
    if fraction is not None and not 0 <= fraction < 1:
        raise ConfigurationError(
            f"dataset.validation_fraction must be null or in [0, 1), got {fraction}; try 0.1: a tenth of the training "
            "data is held out"
        )
    _check_trainer(cfg.trainer)
    _check_own_models(cfg.evaluation)
    for key in COUNTS:
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{key} must be a positive integer, got {value!r}")
    limit = OmegaConf.select(cfg, "checkpoint.client_states_mib", default=0)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ConfigurationError(f"checkpoint.client_states_mib must be an integer of 0 or more, got {limit!r}")
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or cfg.seed < 0:
        raise ConfigurationError(f"seed must be an integer of 0 or more, got {cfg.seed!r}")
    for key, choices in (("on_nonfinite", ("drop", "raise")), ("buffers", ("average", "keep_global"))):
        if cfg[key] not in choices:
            raise ConfigurationError(f"{key} must be one of {', '.join(choices)}, got {cfg[key]!r}")
    if not isinstance(cfg.checkpoint.artifact, bool):
        raise ConfigurationError(f"checkpoint.artifact must be true or false, got {cfg.checkpoint.artifact!r}")
    if cfg.get("memory_format", "contiguous") not in MEMORY_FORMATS:
        raise ConfigurationError(
            f"memory_format must be one of {', '.join(MEMORY_FORMATS)}, got {cfg.memory_format!r}; results differ only "
            "in their last bits"
        )
    if cfg.get("fp32_precision") not in (None, *FP32_PRECISIONS):
        raise ConfigurationError(
            f"fp32_precision must be null or one of {', '.join(FP32_PRECISIONS)}, got {cfg.fp32_precision!r}"
        )
    check_wandb(cfg)
    # from here on PyTorch is loaded, and then Lightning: whatever is wrong elsewhere is said before
    for path, node in sorted(_targets(cfg, ""), key=lambda target: target[0].startswith(("trainer", "logger"))):
        _check_signature(path, node)


def _check_own_models(evaluation: DictConfig) -> None:
    """Check the settings of models that clients use themselves; runs stored before there were some have no such key."""
    for name, least, null in (
        ("personal_every", 1, None),
        ("personal_clients", 1, "all of them"),
        ("fine_tune_epochs", 0, "what the algorithm is published with"),
        ("fine_tune_every", 1, "after the last round only"),
    ):
        value = evaluation.get(name, least)
        if value is None and null:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = "a positive integer" if least else "an integer of 0 or more"
            either = f"null ({null}) or " if null else ""
            raise ConfigurationError(f"evaluation.{name} must be {either}{expected}, got {value!r}")
    value = evaluation.get("after_training", False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"evaluation.after_training must be true or false, got {value!r}")


def _check_trainer(trainer: DictConfig) -> None:
    """Refuse settings of Lightning's Trainer that local training does not heed, rather than ignore them."""
    if trainer.get("accelerator") == "gpu" and not _gpus():
        raise ConfigurationError(
            "trainer=gpu was asked for, but PyTorch finds no GPU here; type trainer=cpu or trainer=auto"
        )
    if trainer.get("accelerator", "auto") not in ACCELERATORS:
        raise ConfigurationError(
            f"trainer.accelerator must be one of {', '.join(ACCELERATORS)}, got {trainer.accelerator!r}"
        )
    for key, value in trainer.items():
        path = f"trainer.{key!s}"
        if key in FIXED:
            if value != FIXED[key][0]:
                raise ConfigurationError(f"{path}={value} is not read here, leave it out: {FIXED[key][1]}")
        elif key not in READ and not str(key).startswith("_"):
            instead = (
                f": for what it would do type {INSTEAD[key]}"
                if key in INSTEAD
                else did_you_mean(str(key), sorted(READ))
            )
            raise ConfigurationError(f"{path}={value} is not read here, leave it out{instead}")
    if str(trainer.get("precision", "32-true")) not in PRECISIONS:
        raise ConfigurationError(
            f"trainer.precision must be 32-true or bf16-mixed, got {trainer.precision!r}: parameters and updates are "
            "kept in float32, and 16-mixed would need its loss scaled"
        )
    devices = trainer.get("devices", 1)
    one = len(devices) == 1 if isinstance(devices, ListConfig) else str(devices).rstrip(",") in ("1", "auto")
    if not one or (str(devices) == "auto" and _gpus() > 1):
        raise ConfigurationError(
            f"trainer.devices must be 1 or the number of one device such as [0], got {devices!s}: a run trains on one "
            "device, and many share a run by executor=ray"
        )


def _gpus() -> int:
    import torch  # here: a refusal should not wait for it

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Yield every node with a ``_target_``, with its path."""
    if isinstance(node, ListConfig):
        children = [(f"{path}[{i}]", child) for i, child in enumerate(node)]
    elif isinstance(node, DictConfig):
        if "_target_" in node:
            yield path, node
        children = [(f"{path}.{key!s}" if path else str(key), child) for key, child in node.items()]
    else:
        return
    for child_path, child in children:
        yield from _targets(child, child_path)


def _check_signature(path: str, node: DictConfig) -> None:
    """Refuse keys that the target does not take, values of another kind, and a target that lacks some."""
    target = node["_target_"]
    try:
        part = get_object(target)
    except Exception as error:  # whatever importing a module of the user's may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(f"{path}._target_ names {target}, which cannot be imported: {reason}") from error
    try:
        parameters = inspect.signature(part).parameters
    except (TypeError, ValueError) as error:
        if callable(part):
            return  # written in C: says itself what it takes
        raise ConfigurationError(f"{path}._target_ names {target}, which is no class or function") from error
    kinds: dict[Any, list[str]] = {}
    for name, parameter in parameters.items():
        kinds.setdefault(parameter.kind, []).append(name)
    ordered = [*kinds.get(Parameter.POSITIONAL_ONLY, []), *kinds.get(Parameter.POSITIONAL_OR_KEYWORD, [])]
    given, more = node.get("_args_", []), Parameter.VAR_POSITIONAL in kinds
    if not isinstance(given, ListConfig | list) or (len(given) > len(ordered) and not more):
        raise ConfigurationError(f"{path}._args_ must be a list of at most {len(ordered)} values, got {given!s}")
    by_place = ordered[: len(given)]
    for name, value in zip(by_place, given, strict=False):
        check_kind(f"{path}._args_ ({name})", value, parameters[name].annotation)
    open_ended = Parameter.VAR_KEYWORD in kinds and not target.startswith("fedgh.")
    # what ours take beyond their named parameters comes from code
    keywords = [n for kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY) for n in kinds.get(kind, [])]
    keys = [str(key) for key in node if not str(key).startswith("_") and f"{path}.{key!s}" not in OURS]
    for key in keys:
        if key in keywords and key not in by_place:
            _check_value(f"{path}.{key}", node[key], parameters[key].annotation)
        elif key in by_place or key in kinds.get(Parameter.POSITIONAL_ONLY, []):
            raise ConfigurationError(f"{path}.{key} is given by its place: {path}._args_ holds {', '.join(ordered)}")
        elif not open_ended:
            raise ConfigurationError(
                f"{path}.{key} is not a parameter of {target}{did_you_mean(key, keywords)}; leave it out "
                f"(~{path}.{key}); it has: {', '.join(keywords) or 'none'}"
            )
    needed = [
        name
        for name in (*ordered, *kinds.get(Parameter.KEYWORD_ONLY, []))
        if parameters[name].default is Parameter.empty and name not in keys and name not in by_place
    ]
    if needed and not open_ended and not node.get("_partial_", False):
        raise ConfigurationError(f"{path} needs {', '.join(needed)} for {target}; add them to the config")


def _check_value(path: str, value: Any, annotation: Any) -> None:
    check_kind(path, value, annotation)
    if (
        isinstance(value, float)
        and math.isinf(value)
        and path.startswith(NO_INFINITY)
        and not path.endswith("max_norm")
    ):
        raise ConfigurationError(f"{path} must be finite, got {value}")
