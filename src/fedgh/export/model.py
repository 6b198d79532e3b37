"""A run's model as a plain module, with its normalization in front."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgh import config
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import GlobalModel
from fedgh.dataset.base import Dataset, ImageDataset
from fedgh.federation.round import Federation, to_device
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.checkpoint import Checkpoint


class NormalizedModel(nn.Module):
    """A network that takes inputs as a data set holds them: ``network((inputs - mean) / std)``.

    Args:
        network: What was trained.
        mean: Per channel, on the scale of the inputs; empty for a network whose inputs are not normalized.
        std: Per channel, on the same scale.

    Attributes:
        network: What was trained.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        super().__init__()
        self.network = network
        self.normalizes = len(mean) > 0
        of_mean, of_std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        # product and sum, rounded as in training, so that outputs are the run's
        self.register_buffer("scale", (1 / of_std).float(), persistent=False)
        self.register_buffer("shift", (-of_mean / of_std).float(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs as they are stored to outputs.

        Args:
            inputs: Images uint8 or float ``(B, C, H, W)``, 0 to 255, where there is a normalization; else what the
                network takes.

        Returns:
            ``(B, outputs)``, logits of a classification.
        """
        if self.normalizes:
            inputs = inputs.float() * self.scale + self.shift
        outputs: Tensor = self.network(inputs)
        return outputs


@dataclass(frozen=True)
class TrainedModel:
    """A model out of a run, and what one must know to use it.

    Attributes:
        module: In evaluation mode, on the CPU; a copy of its own.
        dataset: Name of the data set.
        class_names: In the order of the outputs; empty where the task is no classification.
        mean: Of the normalization in front, per channel on the scale 0 to 255; empty where there is none.
        std: Likewise.
        example: One input as the data set holds it, ``(1, *input_shape)``.
        round: Rounds trained.
        settings: The run's config as plain values.
    """

    module: NormalizedModel
    dataset: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    example: Tensor
    round: int
    settings: dict[str, Any]


def trained_model(named: Path, *, client: int | None = None, index: int = 0, trust: Sequence[str] = ()) -> TrainedModel:
    """Build a run's network and data set again, from its newest checkpoint, and return its model.

    A run with a phase after training (``ccvr``) gives the model that this phase made.

    Args:
        named: Directory of the run, or one of its checkpoints.
        client: Whose personal model; None for the global one.
        index: Which global model, of methods that train several (``ifca``).
        trust: Packages of one's own from which parts may be built; the run's config is data otherwise.

    Raises:
        CheckpointError: If there is no such run, or it belongs to other data.
        ConfigurationError: If there is no such model.
    """
    completed = sorted((named / "completed").glob(checkpoints.PATTERN)) if client is None and named.is_dir() else []
    stored, saved, path = config.reopen(named, trust)
    if completed:
        saved = checkpoints.load(completed[-1])
    stored.trainer.accelerator = "cpu"
    config.validate(stored)
    federation = config.build_federation(stored)
    layout = checkpoints.layout_of(federation.model)
    checkpoints.check_fits(saved, path, layout, federation.dataset.fingerprint, federation.partition.hash)
    weights = _personal(federation, saved, client) if client is not None else _global(saved, index)
    federation.model.load(weights.params, weights.buffers, weights.counters)
    mean, std = _statistics(federation.dataset)
    return TrainedModel(
        module=NormalizedModel(_own_copy(federation.model.module), mean, std).eval(),
        dataset=federation.dataset.name,
        class_names=tuple(getattr(federation.dataset.task, "class_names", ())),
        mean=mean,
        std=std,
        example=federation.dataset.test_inputs[:1].clone(),
        round=saved.server.round_index,
        settings=config.to_values(stored),
    )


def _global(saved: Checkpoint, index: int) -> GlobalModel:
    models = saved.server.models
    if not 0 <= index < len(models):
        raise ConfigurationError(f"index={index}: the run has {len(models)} global model(s), counted from 0")
    return models[index]


def _personal(federation: Federation, saved: Checkpoint, client: int) -> GlobalModel:
    executor, algorithm = federation.executor, federation.algorithm
    if not 0 <= client < federation.num_clients:
        raise ConfigurationError(f"client={client}: the run has {federation.num_clients} clients, counted from 0")
    server = to_device(saved.server, federation.model.device)
    (view,) = executor.views([client], server)
    model = algorithm.personal(view) if algorithm.overrides("personal") else None
    if not isinstance(model, GlobalModel):
        raise ConfigurationError(
            f"client={client}: with {type(algorithm).__name__} clients have no weights of their own; leave client out "
            "for the global model"
        )
    return model


def _statistics(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel on the scale of the inputs; nothing where they stay as they are.

    Raises:
        ConfigurationError: If the data set normalizes in a way of its own.
    """
    normalize = type(dataset).normalize
    if normalize is ImageDataset.normalize and isinstance(dataset, ImageDataset):
        return tuple(255 * value for value in dataset.mean), tuple(255 * value for value in dataset.std)
    if normalize is Dataset.normalize:
        return (), ()
    raise ConfigurationError(
        f"{type(dataset).__name__} normalizes in a way of its own, which no file can carry; put that into the model"
    )


def _own_copy(module: nn.Module) -> nn.Module:
    """Return a copy whose tensors are its own, not views of one vector, and which draws nothing."""
    copied = copy.deepcopy(module)
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = tensor.data.clone()
        tensor.grad = None
    return copied.cpu()
