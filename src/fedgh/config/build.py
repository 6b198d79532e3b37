"""From a resolved config to the parts of a federation."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from fedgh.config.compose import literal, map_text
from fedgh.config.validate import MEMORY_FORMATS
from fedgh.core.allocator import keep_freed_memory
from fedgh.core.errors import ConfigurationError, FedGHError
from fedgh.core.lr_schedule import Constant, LRSchedule

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedgh.algorithm.base import Algorithm
    from fedgh.core.flat import FlatModel
    from fedgh.dataset.base import Dataset
    from fedgh.federation.evaluation import Validation
    from fedgh.federation.loop import Schedule
    from fedgh.federation.round import Federation
    from fedgh.metric.collection import Metrics
    from fedgh.partition.base import Partition

FEW = 8
"""Test examples that model and metrics are tried on before training."""


def build(node: Any, **parts: Any) -> Any:
    """Instantiate one node; errors of the user's making come out as such.

    Raises:
        ConfigurationError: If the part refuses its values.
    """
    content: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    # a path may hold "${": what is instantiated is read as text twice, when it is resolved and when it is handed on
    content = map_text(content, lambda text: literal(literal(text)))
    try:
        return instantiate(content, **parts, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, FedGHError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise ConfigurationError(_refused(node, error.__cause__ or error)) from error


@contextmanager
def refusing(node: Any) -> Iterator[None]:
    """Turn what a part raises while it is put together into one line.

    Raises:
        ConfigurationError: With the error's text and the line of code that raised it.
    """
    try:
        yield
    except FedGHError:
        raise
    except Exception as error:
        raise ConfigurationError(_refused(node, error)) from error


def _refused(node: Any, error: BaseException) -> str:
    """Return in one line why a part was not built, and where its code refused."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({Path(place.tb_frame.f_code.co_filename).name}, line {place.tb_lineno})" if place else ""
    target = node.get("_target_") if isinstance(node, DictConfig | dict) else node
    return f"{target} cannot be built: {type(error).__name__}: {' '.join(str(error).split())}{where}"


def quieten() -> None:
    """Silence what Lightning repeats at every fit; what matters is said by the federation once."""
    os.environ.setdefault("WANDB_SILENT", "true")
    if not os.environ.get("HOME"):  # a service's, a container's; W&B would complain, line by line
        os.environ["HOME"] = os.path.expanduser("~") if os.path.isabs(os.path.expanduser("~")) else gettempdir()
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
    import torch  # here: PyTorch and Lightning, which help, refusals and reports do without

    from fedgh.core.device import set_fp32_precision
    from fedgh.core.flat import FlatModel
    from fedgh.core.seeding import torch_seed
    from fedgh.federation.check import check_single_examples
    from fedgh.federation.round import Federation

    quieten()
    keep_freed_memory()
    set_fp32_precision(cfg.get("fp32_precision"))
    algorithm, aggregator, sampler, server_optimizer, partitioner = (
        build(cfg[name]) for name in ("algorithm", "aggregator", "sampler", "server_optimizer", "partition")
    )
    trainer = build(cfg.trainer)
    device = trainer.strategy.root_device
    dataset, validation = build_dataset(cfg, partitioner)
    partition = draw_partition(partitioner, dataset, cfg.seed)
    dataset = dataset.to(device)
    if validation is not None:
        validation = replace(validation, dataset=dataset.with_test_of(validation.dataset))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_seed(cfg.seed, "init"))
        with refusing(cfg.model):
            module = build_model(build(cfg.model), dataset)
    with refusing(cfg.model):
        # runs stored before the setting existed go on without it
        model = FlatModel(module, device, getattr(torch, MEMORY_FORMATS[cfg.get("memory_format", "contiguous")]))
        outputs = try_model(model, dataset, cfg.model["_target_"])
        sizes = [len(indices) for indices in partition.client_indices]
        check_single_examples(model, dataset, sizes, algorithm.batch_size)
    executor = build(cfg.executor)(
        trainer=trainer,
        model=model,
        algorithm=algorithm,
        dataset=dataset,
        client_indices=[torch.from_numpy(indices) for indices in partition.client_indices],
        seed=cfg.seed,
    )
    executor.lr_schedule, server_lr_schedule = build_lr_schedules(cfg, algorithm, server_optimizer)
    executor.privacy = build(cfg.privacy) if cfg.get("privacy") else None
    executor.compressor = build(cfg.compressor) if cfg.get("compressor") else None  # absent where none was chosen
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
        server_lr_schedule=server_lr_schedule,
        on_nonfinite=cfg.on_nonfinite,
        buffers=cfg.buffers,
        metrics=build_metrics(cfg.get("metric"), dataset, outputs),  # runs stored before the group existed have none
        validation=validation,
        privacy=executor.privacy,
        clock=build(cfg.clock) if cfg.get("clock") else None,  # none in runs stored before there was one
    )


def build_dataset(cfg: DictConfig, partitioner: Callable[..., Partition]) -> tuple[Dataset, Validation | None]:
    """Return the data set and, if ``dataset.validation_fraction`` asks for one, the part held out of its train split.

    Natural clients own the held-out examples that are theirs, as they own test examples.
    """
    from fedgh.dataset.base import hold_out
    from fedgh.federation.evaluation import Validation  # here, as in build_federation

    node = cfg.copy().dataset  # beside its paths, to which it may refer
    with open_dict(node):
        fraction = node.pop("validation_fraction", None)  # runs stored before the setting existed have none
    dataset: Dataset = build(node)
    if not fraction:
        return dataset, None
    dataset, held = hold_out(dataset, fraction, cfg.seed)
    return dataset, Validation(held, draw_partition(partitioner, held, cfg.seed))


def draw_partition(partitioner: Callable[..., Partition], dataset: Dataset, seed: int) -> Partition:
    """Deal the training examples by their classes, and by clients and domains where the partitioner asks for them."""
    from fedgh.core.seeding import numpy_generator  # here, as in build_federation

    names = parameters_of(partitioner) & {"client_ids", "test_client_ids", "domains", "test_domains"}
    ids = {name: getattr(dataset, name) for name in names}
    natural = {name: None if tensor is None else tensor.numpy() for name, tensor in ids.items()}
    strata, generator = dataset.train_strata.numpy(), numpy_generator(seed, "partition")
    return partitioner(strata, dataset.num_classes, generator, **natural)


def build_model(factory: Callable[..., nn.Module], dataset: Dataset) -> nn.Module:
    """Build the network for a data set.

    Args:
        factory: Takes ``input_shape`` and ``num_outputs``, and ``num_tokens`` if it reads token ids; models written for
            ``image_shape`` and ``num_classes`` get the same under these names.
        dataset: Says what goes in, and by its task what must come out.
    """
    names = parameters_of(factory)
    if "num_tokens" in names and dataset.num_tokens is None:
        raise ConfigurationError(
            f"the model reads token ids, but the inputs of dataset {dataset.name} are none; choose another model, such "
            "as model=mlp"
        )
    shape, outputs = dataset.input_shape, dataset.task.num_outputs
    new, old = {"input_shape": shape, "num_outputs": outputs}, {"image_shape": shape, "num_classes": outputs}
    all_of_it = {**new, **old, "num_tokens": dataset.num_tokens}
    offered = {name: value for name, value in all_of_it.items() if name in names}
    return factory(**(offered or old))


def parameters_of(factory: Callable[..., Any]) -> set[str]:
    """Return the parameters that can be given by name; where a class hands ``**kwargs`` to its parent, the parent's."""
    inner = factory.func if isinstance(factory, partial) else factory
    parents = inner.__mro__[1:] if isinstance(inner, type) else ()
    names: set[str] = set()
    for layer in (factory, *(vars(parent)["__init__"] for parent in parents if "__init__" in vars(parent))):
        parameters = inspect.signature(layer).parameters
        names |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def try_model(model: FlatModel, dataset: Dataset, name: str) -> Tensor:
    """Run the network on the first few test examples and return its outputs.

    Raises:
        ConfigurationError: If it cannot read the data, or does not put out what the task needs.
    """
    import torch  # here, as in build_federation

    training, example = model.module.training, dataset.normalize(dataset.test_inputs[:FEW])
    what = f"{name} on dataset {dataset.name}"
    model.module.eval()
    try:
        with torch.no_grad():
            outputs, _ = model.forward(model.params, example)
        dataset.task.scores(outputs, dataset.test_targets[:FEW])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        kind = str(example.dtype).removeprefix("torch.")
        raise ConfigurationError(
            f"model: {what}, whose inputs are {kind} of shape {dataset.input_shape}, fails: "
            f"{str(error).strip().splitlines()[0]}; choose a model for such inputs"
            f"{'' if dataset.num_tokens is None else ', model=embedding_bag or model=gru'}"
        ) from error
    finally:
        model.module.train(training)
    if outputs.shape[-1] != dataset.task.num_outputs:
        raise ConfigurationError(
            f"model: {what} puts out {outputs.shape[-1]} numbers an example, but its task needs "
            f"{dataset.task.num_outputs}; build the head with num_outputs"
        )
    return outputs


def build_metrics(node: DictConfig | None, dataset: Dataset, outputs: Tensor) -> Metrics | None:
    """Return the chosen metrics, or None if there are none beyond the task's own scores.

    Args:
        node: The group ``metric``: by name, metrics of torchmetrics, which are told the number of classes.
        dataset: Whose task the metrics are to fit.
        outputs: Of the first few test examples, to try them on.

    Raises:
        ConfigurationError: If one cannot be built or does not fit the task.
    """
    if not (chosen := {str(name): metric for name, metric in (node or {}).items() if metric}):
        return None
    from fedgh.metric.collection import Metrics  # here, as in build_federation

    def make(width: int) -> dict[str, Any]:
        return {name: build_metric(name, metric, width) for name, metric in chosen.items()}

    return Metrics(make, dataset.task, outputs.cpu(), dataset.test_targets[: len(outputs)].cpu())


def build_metric(name: str, node: DictConfig, width: int) -> Any:
    """Return one metric; ``num_classes`` and ``num_outputs`` are its target's unless the config says otherwise."""
    factory = build({**node, "_partial_": True})
    wanted = parameters_of(factory) - set(node)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a metric keeps all outputs, as we do anyway
            return factory(**{key: width for key in ("num_classes", "num_outputs") if key in wanted})
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"metric.{name}: {node['_target_']} cannot be built: {reason}") from error


def build_lr_schedules(cfg: DictConfig, algorithm: Algorithm, server_optimizer: Any) -> list[LRSchedule]:
    """Return how the client's and the server's learning rate change over the rounds.

    Raises:
        ConfigurationError: If one changes that is not there.
    """
    schedules: list[LRSchedule] = []
    for key, owner, has_lr in (
        ("client_lr_schedule", "algorithm.optimizer", "lr" in algorithm.optimizer_settings()),
        ("server_lr_schedule", "server_optimizer", is_dataclass(server_optimizer) and hasattr(server_optimizer, "lr")),
    ):
        node = cfg.get(key)  # absent where none was chosen
        schedules.append(build(node) if node else Constant())
        if node and not has_lr:
            raise ConfigurationError(f"{key} is set, but {owner} has no lr that could follow it; leave {key} out")
    return schedules


def build_schedule(cfg: DictConfig) -> Schedule:
    """Return when things happen."""
    from fedgh.federation.loop import Schedule  # here, as in build_federation

    evaluation = cfg.evaluation
    # runs stored before there were personal models, or fine-tuned ones, have none of these keys
    names = "personal_every", "personal_clients", "after_training", "fine_tune_epochs", "fine_tune_every"
    own = {name: evaluation[name] for name in names if name in evaluation}
    return Schedule(cfg.num_rounds, evaluation.every, evaluation.batch_size, cfg.checkpoint.every, **own)


def build_callbacks(cfg: DictConfig) -> list[Any]:
    """Return the chosen federation callbacks, in the order of the config."""
    return [build(node) for node in (cfg.callback or {}).values() if node]
