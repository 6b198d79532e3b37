"""Whether a model can be trained on these clients; asked once, before the first round."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedgh.core.errors import ConfigurationError
from fedgh.core.flat import FlatModel
from fedgh.dataset.base import Dataset
from fedgh.dataset.stream import batch_sizes


def check_single_examples(model: FlatModel, dataset: Dataset, client_sizes: Sequence[int], batch_size: int) -> None:
    """Refuse clients with a batch of one example if the model normalizes by its batch; it is left as it was.

    Args:
        model: On the device of the data.
        dataset: What it is going to be trained on.
        client_sizes: Training examples of each client (n_k).
        batch_size: Examples a local step.

    Raises:
        ConfigurationError: Naming the first such client.
    """
    alone = [k for k, size in enumerate(client_sizes) if 1 in batch_sizes(size, batch_size)]
    if not alone or _trains_on_one(model, dataset):
        return
    if batch_size == 1:
        raise ConfigurationError(
            "batch normalization cannot train on a single example, and algorithm.batch_size=1 gives it one at a time; "
            "type algorithm.batch_size=2 or more, or choose a model without it"
        )
    raise ConfigurationError(
        f"client {alone[0]} has a single training example ({len(alone)} such clients), on which batch normalization "
        "cannot train; give every client two: fewer clients (partition.num_clients), more data "
        "(dataset.train_fraction) or, with partition=dirichlet, partition.min_size=2; or choose a model without it"
    )


@torch.no_grad()
def _trains_on_one(model: FlatModel, dataset: Dataset) -> bool:
    example = dataset.normalize(dataset.train_inputs[:1])
    before, training = (model.buffers.clone(), model.counters.clone()), model.module.training
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        model.seed(0)
        model.module.train()
        try:
            model.forward(model.params, example)
        except ValueError as error:  # of PyTorch's layers; other faults show in evaluation mode, too
            if "more than 1" not in str(error):
                raise
            return False
        finally:
            model.module.train(training)
            model.load(model.params, *before)
    return True
