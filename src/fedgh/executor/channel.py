"""What happens to an update between client and server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fedgh.client.view import ClientView
from fedgh.compressor.base import Compressor
from fedgh.core.seeding import torch_generator
from fedgh.core.types import ClientResult, Report
from fedgh.core.updates import Block
from fedgh.privacy.gaussian import Gaussian

PREFIX = "compressor/"
"""Of the names under which a client keeps what compression lost, beside what its algorithm keeps."""


def privatized(
    privacy: Gaussian,
    clients: Sequence[ClientView],
    rows: Tensor,
    blocks: Sequence[Block],
    shared: Tensor | None,
    seed: int,
) -> None:
    """Clip the updates ``(clients, params)`` in place, and add the noise that is the clients'."""
    privacy.clip_(rows, blocks)
    if privacy.noise_at == "clients" and privacy.noise_multiplier > 0:
        for client, row in zip(clients, rows, strict=True):
            noise = privacy.noise(row, 1.0, seed, client.round_index, client.client_id)
            row += noise if shared is None else noise * shared


def compressed(
    compressor: Compressor, client: ClientView, result: ClientResult, row: Tensor, shared: Tensor | None, seed: int
) -> ClientResult:
    """Return the result of a client whose update is compressed on its way; ``row`` becomes what arrives.

    Args:
        compressor: How.
        client: Who, with what it kept.
        result: What it gave.
        row: Its update, ``(params,)``; written to.
        shared: Which parameters travel, ``(params,)`` bool; None for all.
        seed: Of the experiment.
    """
    report: Report = result.report
    if report.update_bytes is not None or (shared is not None and not shared.any()):
        return result  # it says itself what it sends, or sends nothing
    kept = {name.removeprefix(PREFIX): t for name, t in client.state.items() if name.startswith(PREFIX)}
    update = (row if shared is None else row[shared]).to(client.received.params.dtype)
    generator = torch_generator(seed, "compress", client.round_index, client.client_id)
    arrived, kept, size = compressor.send(update, kept, generator)
    if shared is None:
        row.copy_(arrived)
    else:
        row[shared] = arrived.to(row.dtype)
    state = {**report.state, **{PREFIX + name: tensor for name, tensor in kept.items()}}
    return replace(result, report=replace(report, state=state, update_bytes=size))
