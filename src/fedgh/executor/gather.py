"""From what each client gave to one table of the cohort, with the bytes that travelled."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import torch
from torch import Tensor

from fedgh.algorithm.base import Algorithm
from fedgh.algorithm.contract import check_alike, wrong_type
from fedgh.client.view import ClientView
from fedgh.core.types import ClientResult, ClientState, CohortResult, Message, Report
from fedgh.core.updates import UpdateMatrix


def gather(
    clients: Sequence[ClientView],
    results: Sequence[ClientResult],
    updates: UpdateMatrix,
    shared: Tensor | None,
    buffers_travel: bool,
    one_model: bool = False,
) -> CohortResult:
    """Return the table of a cohort.

    Args:
        clients: By ascending id.
        results: What each of them gave.
        updates: Their updates, row by row.
        shared: Which parameters travel, ``(params,)`` bool; None for all.
        buffers_travel: Whether running statistics do.
        one_model: Whether a client is sent one of several global models, else all.
    """
    reports = [result.report for result in results]
    states = {c.client_id: _own(r.state, c.state) for c, r in zip(clients, reports, strict=True) if r.state}
    received = clients[0].received
    model_bytes = received.params.itemsize * (received.params.numel() if shared is None else int(shared.sum()))
    buffer_bytes = (received.buffers.nbytes + received.counters.nbytes) * buffers_travel
    num_models = 1 if one_model else len(clients[0].models)
    return CohortResult(
        client_ids=tuple(client.client_id for client in clients),
        updates=updates,
        buffers=torch.stack([result.buffers for result in results]),
        counters=torch.stack([result.counters for result in results]),
        num_examples=torch.tensor([client.num_examples for client in clients], dtype=torch.float64),
        local_steps=torch.tensor([result.local_steps for result in results]),
        train_loss=torch.stack([result.train_loss for result in results]).cpu().to(torch.float64),
        client_states=states,
        messages={n: torch.stack([report.message[n] for report in reports]) for n in reports[0].message},
        bytes_down=sum(num_models * (model_bytes + buffer_bytes) + size_of(c.message) for c in clients),
        bytes_up=sum(
            (model_bytes if report.update_bytes is None else report.update_bytes)
            + buffer_bytes
            + size_of(report.message)
            for report in reports
        ),
    )


def check_reports(algorithm: Algorithm, clients: Sequence[ClientView], results: Sequence[ClientResult]) -> None:
    """Check that clients keep and send the same kind of thing, each other and from round to round.

    Raises:
        ConfigurationError: Naming two that do not.
    """
    kept: dict[str, ClientState] = {}
    for client, result in zip(clients, results, strict=True):
        if not isinstance(result.report, Report):
            raise wrong_type(algorithm, "report", result.report, Report)
        name = f"client {client.client_id}"
        kept |= {f"{name} before this round": client.state} if client.state else {}
        kept |= {name: result.report.state} if result.report.state else {}
    check_alike(algorithm, "report", "Report.state", kept)
    sent = {f"client {result.client_id}": result.report.message for result in results}
    check_alike(algorithm, "report", "Report.message", sent)


def sizes_of(client_indices: Sequence[Sized]) -> Tensor:
    """Return n_k of clients that own these examples, ``(clients,)`` float64."""
    return torch.tensor([len(indices) for indices in client_indices], dtype=torch.float64)


def size_of(message: Message) -> int:
    """Return the bytes of its tensors."""
    return sum(tensor.nbytes for tensor in message.values())


def _own(state: ClientState, before: ClientState) -> ClientState:
    """Copy what is new: it may lie in memory that the next round overwrites."""
    return {n: t if t is before.get(n) else t.detach().clone() for n, t in state.items()}
