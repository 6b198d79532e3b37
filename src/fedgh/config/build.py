"""From a composed config to the parts of a federation: compose, validate, instantiate.

The only module besides the entry points that sees a ``DictConfig``.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedgh.core.allocator import keep_freed_memory
from fedgh.core.errors import ConfigurationError, FedGHError
from fedgh.core.flat import FlatModel
from fedgh.core.seeding import numpy_generator, torch_seed

if TYPE_CHECKING:
    from fedgh.federation.loop import Schedule
    from fedgh.federation.round import Federation

log = logging.getLogger(__name__)

_PACKAGED = Path(__file__).parents[1] / "configs"
CONFIG_DIR = str(_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "configs")
"""The config tree: inside an installed package, else beside ``src`` in a checkout."""


def _run_dir(resume: str | None, log_dir: str, task: str) -> str:
    if resume and Path(resume).is_dir():
        return str(resume)
    return str(Path(log_dir) / task / "runs" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))


def _jobs_at_once() -> int:
    """Return one job a GPU; without GPUs one for every two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.cuda.device_count() or max(1, cores // 2)


def _run_name() -> str:
    if not HydraConfig.initialized():  # composed from code
        return "run"
    chosen: Any = HydraConfig.get().runtime.choices
    return f"{chosen.algorithm} + {chosen.aggregator} on {chosen.dataset}"


OmegaConf.register_new_resolver("run_name", _run_name, replace=True)

WANDB_MODES = ("auto", "online", "offline", "disabled")
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True, use_cache=True)
OmegaConf.register_new_resolver("if_set", lambda value, yes, no: yes if value else no, replace=True)
OmegaConf.register_new_resolver("if_gpu", lambda yes, no: yes if torch.cuda.is_available() else no, replace=True)
OmegaConf.register_new_resolver("jobs_at_once", _jobs_at_once, replace=True)


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Return a resolved config from code, as the command line would compose it; for notebooks and tests.

    Args:
        overrides: What would be typed, such as ``["aggregator=mean", "num_rounds=5", "paths.output_dir=/tmp/run"]``;
            ``paths.output_dir`` has no default outside a command.
        config_name: ``train``, ``evaluate`` or ``report``.
    """
    with composer():
        return resolve(
            hydra_compose(
                config_name,
                overrides=["paths.output_dir=.", *overrides],
            )
        )


def composer() -> nullcontext[None] | initialize_config_dir:
    """Return a context with Hydra ready: inside an entry point it is, with the user's own config folders."""
    ready = GlobalHydra.instance().is_initialized()
    return nullcontext() if ready else initialize_config_dir(CONFIG_DIR, version_base="1.3")


def resolve(cfg: DictConfig) -> DictConfig:
    """Return the config with all interpolations replaced by their values.

    Raises:
        ConfigurationError: If one cannot be resolved or a mandatory value is missing.
    """
    cfg = cfg.copy()
    try:
        OmegaConf.resolve(cfg)
        missing = OmegaConf.missing_keys(cfg)
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"the config cannot be resolved: {error}") from error
    if missing:
        keys = ", ".join(sorted(missing))
        raise ConfigurationError(f"these keys need a value: {keys}; type for instance {sorted(missing)[0]}=...")
    return cfg


def parse(text: str) -> DictConfig:
    """Return the config that a checkpoint stored as YAML."""
    stored = OmegaConf.create(text)
    if not isinstance(stored, DictConfig):
        raise ConfigurationError(f"the stored config is not a mapping: {text[:80]!r}")
    return stored


def validate(cfg: DictConfig) -> None:
    """Check everything that can be checked before any file is read.

    Raises:
        ConfigurationError: A parameter that a chosen part does not have, a missing one, or a value out of its range.
    """
    for path, node in _targets(cfg, ""):
        _check_signature(path, node)
    for key in ("num_rounds", "evaluation.every", "evaluation.batch_size", "checkpoint.every", "checkpoint.keep"):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{key} must be a positive integer, got {value!r}")
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or cfg.seed < 0:
        raise ConfigurationError(f"seed must be an integer of 0 or more, got {cfg.seed!r}")
    if cfg.logger.get("mode", "auto") not in WANDB_MODES:
        raise ConfigurationError(f"logger.mode must be one of {', '.join(WANDB_MODES)}, got {cfg.logger.mode!r}")
    patience = cfg.logger.get("patience", 60)
    if isinstance(patience, bool) or not isinstance(patience, int | float) or patience <= 0:
        raise ConfigurationError(f"logger.patience must be a positive number of seconds, got {patience!r}")
    if cfg.get("memory_format", "contiguous") not in MEMORY_FORMATS:
        raise ConfigurationError(
            f"memory_format must be one of {', '.join(MEMORY_FORMATS)}, got {cfg.memory_format!r}; results differ only "
            "in their last bits"
        )
    if cfg.trainer.get("accelerator") == "gpu" and not torch.cuda.is_available():
        raise ConfigurationError(
            "trainer=gpu was asked for, but PyTorch finds no GPU here; type trainer=cpu or trainer=auto"
        )


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
    target = node["_target_"]
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise ConfigurationError(f"{path}._target_ names {target}, which cannot be imported: {error}") from error
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not target.startswith("fedgh."):
        return  # what ours take beyond their named parameters comes from code
    keys = [str(key) for key in node if not str(key).startswith("_")]
    for key in keys:
        if key not in parameters:
            raise ConfigurationError(
                f"{path}.{key} is not a parameter of {target}{did_you_mean(key, list(parameters))}; "
                f"it has: {', '.join(parameters) or 'none'}"
            )
        _check_number(f"{path}.{key}", node[key], parameters[key].annotation)
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in keys]
    if needed and not node.get("_partial_", False):
        raise ConfigurationError(f"{path} needs {', '.join(needed)} for {target}; add them to the config")


def _check_number(path: str, value: Any, annotation: Any) -> None:
    """Refuse what is not a number where one is declared, so that parts need only check ranges."""
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}
    expected = kinds.get(str(annotation))
    if expected and (isinstance(value, bool) or not isinstance(value, expected)):
        kind = "a number" if float in expected else "a whole number"
        raise ConfigurationError(f"{path} must be {kind}, got {value!r}")


def did_you_mean(word: str, choices: list[str]) -> str:
    """Return ``" (did you mean X?)"`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def build(node: Any, **parts: Any) -> Any:
    """Instantiate one node; errors of the user's making come out as such.

    Raises:
        ConfigurationError: If the part refuses its values.
    """
    try:
        return instantiate(node, **parts, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, FedGHError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise ConfigurationError(f"{node.get('_target_')} cannot be built: {error}") from error


def quieten() -> None:
    """Silence what Lightning repeats at every fit; what matters is said by the federation once."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # on every login node of SLURM
    # our defaults of a launcher are checked against its plugin's, which is as it should be
    warnings.filterwarnings("ignore", message="(?s).*'hydra/launcher/.*is validated against ConfigStore schema")


def build_federation(cfg: DictConfig) -> Federation:
    """Instantiate all parts; cheap ones first, so that a wrong value fails before any data is read.

    Raises:
        FedGHError: Whatever a part has to say against its values, the data or their combination.
    """
    from fedgh.federation.round import Federation  # here: Lightning, which reports and messages do without

    quieten()
    keep_freed_memory()
    algorithm, aggregator, sampler, server_optimizer, partitioner = (
        build(cfg[name]) for name in ("algorithm", "aggregator", "sampler", "server_optimizer", "partition")
    )
    trainer = build(cfg.trainer)
    device = trainer.strategy.root_device
    dataset = build(cfg.dataset)
    partition = partitioner(dataset.train_labels.numpy(), dataset.num_classes, numpy_generator(cfg.seed, "partition"))
    dataset = dataset.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(cfg.seed, "init"))
        module = build(cfg.model)(image_shape=dataset.image_shape, num_classes=dataset.num_classes)
    # runs stored before the setting existed go on without it
    model = FlatModel(module, device, MEMORY_FORMATS[cfg.get("memory_format", "contiguous")])
    executor = build(cfg.executor)(
        trainer=trainer,
        model=model,
        algorithm=algorithm,
        dataset=dataset,
        client_indices=[torch.from_numpy(indices) for indices in partition.client_indices],
        seed=cfg.seed,
    )
    return Federation(
        seed=cfg.seed,
        dataset=dataset,
        partition=partition,
        model=model,
        sampler=sampler,
        algorithm=algorithm,
        executor=executor,
        aggregator=aggregator,
        server_optimizer=server_optimizer,
        on_nonfinite=cfg.on_nonfinite,
        buffers=cfg.buffers,
    )


def build_schedule(cfg: DictConfig) -> Schedule:
    """Return when things happen."""
    from fedgh.federation.loop import Schedule  # here, as in build_federation

    return Schedule(cfg.num_rounds, cfg.evaluation.every, cfg.evaluation.batch_size, cfg.checkpoint.every)


def build_callbacks(cfg: DictConfig) -> list[Any]:
    """Return the chosen federation callbacks, in the order of the config."""
    return [build(node) for node in (cfg.callback or {}).values() if node]


def build_loggers(cfg: DictConfig, run_dir: Path, wandb_id: str, name: str, group: str | None) -> list[Any]:
    """Return the chosen Lightning loggers.

    Args:
        cfg: The resolved config; ``logger.mode`` decides where W&B writes, ``logger.patience`` how long we wait for it.
        run_dir: Directory of the run.
        wandb_id: Id of the W&B run to go on with, or a new one.
        name: Name of the run where the config leaves it open.
        group: Group of the run where the config leaves it open.
    """
    loggers = []
    for key, node in cfg.logger.items():
        if not isinstance(node, DictConfig):
            continue
        if key == "wandb":
            if (mode := wandb_mode(cfg.logger.mode)) == "disabled":
                continue
            config = OmegaConf.to_container(cfg, resolve=True)
            extra = {"id": wandb_id, "name": node.name or name, "group": node.group or group, "config": config}
            patience = cfg.logger.get("patience", 60)  # runs stored before the setting existed go on without it
            loggers.append(_wandb_logger(node, run_dir, mode, patience, extra))
        else:
            loggers.append(build(node))
    return loggers


def new_wandb_id() -> str:
    """Return the id of the W&B run that an agent of a W&B sweep has opened for this process, else one of our own."""
    return os.environ["WANDB_RUN_ID"] if in_wandb_sweep() else secrets.token_hex(4)


def in_wandb_sweep() -> bool:
    """Tell whether an agent of a W&B sweep has started this process."""
    return "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ


def wandb_mode(mode: str) -> str:
    """Return ``online``, ``offline`` or ``disabled``.

    ``auto`` is whatever ``WANDB_MODE`` says; without it, online if a key is at hand and offline otherwise. Nothing is
    ever asked.
    """
    if mode != "auto":
        return mode
    import wandb

    asked = os.environ.get("WANDB_MODE", "")
    if asked in WANDB_MODES[1:]:
        return asked
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.Error:  # there is a key, and W&B was asked about it; what starts online says what is wrong
        return "online"


def _wandb_logger(node: DictConfig, run_dir: Path, mode: str, patience: float, extra: dict[str, Any]) -> Any:
    """Start the W&B run; when W&B cannot be reached or refuses the key, start it offline instead."""
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, init_timeout=patience, finish_timeout=patience, finish_timeout_raises=True
    )
    common = {**extra, "save_dir": str(run_dir), "resume": "allow", "settings": settings}
    factory = build(OmegaConf.merge(OmegaConf.create(OmegaConf.to_container(node)), {"_partial_": True}))
    logger = factory(**common, mode=mode)
    try:
        _ = logger.experiment
    except (wandb.Error, OSError) as error:
        with suppress(OSError):  # from a service that has crashed
            wandb.teardown()
        logger = factory(**common, mode="offline")
        folder = Path(logger.experiment.dir).parent
        log.warning("W&B cannot be used online (%s); recorded offline, to be sent later: wandb sync %s", error, folder)
    return logger
