"""Who loses by a round: each participant's loss on its own data under the mean and under the chosen aggregate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedgh.callback.requirements import require_one_model
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ServerState
from fedgh.federation.loop import Schedule
from fedgh.federation.round import Federation, Round
from fedgh.storage.tables import write_rows
from fedgh.tracking.recorder import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarmReport:
    """Evaluates a round's participants on their own training images, in evaluation mode and without augmentation.

    Three models: the one the clients started from, the one that the mean (with the round's weights, the same server
    optimizer) would have made of it, and the one that came out. All with the buffers that came out. A client is harmed
    if its loss rises. Costs three passes over the participants' data; changes nothing and draws nothing at random.

    Writes the table ``conflict/harm``: ``client``, ``loss_before``, ``loss_mean``, ``loss_after``.

    Attributes:
        output_dir: The run's directory.
        every: Rounds between two reports; the first comes after round 1.
        batch_size: Images per forward pass; bounds the memory.
        named: Worst clients named in the log.
    """

    output_dir: str
    every: int
    batch_size: int
    named: int

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("batch_size", 1), ("named", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"callback.harm_report.{name} must be {least} or more, got {getattr(self, name)}"
                )

    def prepare(self, federation: Federation, schedule: Schedule, server: ServerState) -> None:  # noqa: ARG002
        """Refuse a run of several global models."""
        require_one_model(server, "harm_report")

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:
        """Report when it is time; see :class:`fedgh.federation.loop.Callback`."""
        if outcome.aggregate is None or (row.round - 1) % self.every:
            return
        result, server = outcome.result, outcome.server
        update = result.updates.combine(outcome.weights)
        mean, _ = federation.server_optimizer_at(before.round_index).step(before.params, update, before.optimizer)
        models = {"loss_before": before.params, "loss_mean": mean, "loss_after": server.params}
        losses = client_losses(federation, list(models.values()), server, result.client_ids, self.batch_size)
        table = dict(zip(models, losses.unbind(), strict=True))
        ids = torch.tensor(result.client_ids, dtype=torch.int32)
        write_rows(Path(self.output_dir) / "conflict" / "harm", row.round, {"client": ids, **table})
        row.metrics |= harm_metrics(losses, result.client_ids)
        log.info("%s", describe(losses, result.client_ids, row.round, self.named))


@torch.no_grad()
def client_losses(
    federation: Federation, models: Sequence[Tensor], buffers: ServerState, client_ids: Sequence[int], batch_size: int
) -> Tensor:
    """Return the mean loss of each model on each client's own training examples, ``(models, clients)`` float64.

    Args:
        federation: Whose model is used, and left as it was.
        models: Flat parameters, ``(params,)`` each.
        buffers: State whose buffers all models get.
        client_ids: Who.
        batch_size: Images per forward pass.
    """
    model, dataset = federation.model, federation.dataset
    kept = [tensor.detach().clone() for tensor in (model.params, model.buffers, model.counters)]
    training = model.module.training
    indices = [torch.from_numpy(federation.partition.client_indices[k]) for k in client_ids]
    sizes = [len(own) for own in indices]
    everyone = torch.cat(indices).to(model.device)
    losses = torch.empty(len(models), len(client_ids), dtype=torch.float64)
    model.module.eval()
    for number, params in enumerate(models):
        model.load(params, buffers.buffers, buffers.counters)
        values = torch.cat(
            [
                dataset.task.scores(
                    model.forward(model.params, dataset.normalize(dataset.train_inputs[batch]))[0],
                    dataset.train_targets[batch],
                )["loss"]
                for batch in torch.split(everyone, batch_size)
            ]
        )
        losses[number] = torch.stack([own.double().mean() for own in torch.split(values.cpu(), sizes)])
    model.module.train(training)
    model.load(*kept)
    return losses


def harm_metrics(losses: Tensor, client_ids: Sequence[int]) -> dict[str, float]:
    """Summarize what a round did to the clients' losses.

    Args:
        losses: Before, under the mean and after, ``(3, clients)``.
        client_ids: In the order of the columns.

    Returns:
        ``harm/share``, the share of clients whose loss rises; ``harm/worst``, the largest rise (negative if everybody
        gains) and ``harm/worst_client``, whose it is; ``harm/mean_share`` and ``harm/mean_worst``, the same if the mean
        had been taken instead. A loss that is not finite counts as the largest rise.
    """
    under_mean, under_chosen = rises(losses)
    worst = int(under_chosen.argmax())
    return {
        "harm/share": float((under_chosen > 0).double().mean()),
        "harm/worst": float(under_chosen[worst]),
        "harm/worst_client": float(client_ids[worst]),
        "harm/mean_share": float((under_mean > 0).double().mean()),
        "harm/mean_worst": float(under_mean.max()),
    }


def rises(losses: Tensor) -> Tensor:
    """Return how much each client's loss rises under the mean and under the chosen aggregate, ``(2, clients)``."""
    return (losses[1:] - losses[0]).nan_to_num(nan=torch.inf)


def describe(losses: Tensor, client_ids: Sequence[int], round_index: int, named: int) -> str:
    """Tell in one line who was harmed, the worst first."""
    under_mean, under_chosen = rises(losses)
    total = len(client_ids)
    text = (
        f"round {round_index}: loss on own data rises for {int((under_chosen > 0).sum())} of {total} clients "
        f"({int((under_mean > 0).sum())} under the mean)"
    )
    order = under_chosen.argsort(descending=True, stable=True).tolist()[:named]
    worst = [
        f"client {client_ids[k]} {losses[0, k]:.3f} -> {losses[2, k]:.3f} ({losses[1, k]:.3f} under the mean)"
        for k in order
        if under_chosen[k] > 0
    ]
    return f"{text}; worst: {', '.join(worst)}" if worst else text
