"""From a resolved config to the parts of a federation."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from fedgh.config.validate import MEMORY_FORMATS
from fedgh.core.allocator import keep_freed_memory
from fedgh.core.errors import ConfigurationError, FedGHError
from fedgh.core.flat import FlatModel
from fedgh.core.seeding import numpy_generator, torch_seed

if TYPE_CHECKING:
    from fedgh.federation.loop import Schedule
    from fedgh.federation.round import Federation


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
