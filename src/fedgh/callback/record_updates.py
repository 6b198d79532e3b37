"""Recording of chosen rounds, to be aggregated again later under any rule; see ``fedgh-replay``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedgh.callback.requirements import require_one_model
from fedgh.core.errors import ConfigurationError
from fedgh.core.types import ServerState
from fedgh.core.updates import UpdateMatrix
from fedgh.federation.loop import Schedule
from fedgh.federation.round import Federation, Round, affordable
from fedgh.recording.updates import DTYPES, FOLDER, narrower, recording_of, write
from fedgh.tracking.recorder import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordUpdates:
    """Writes ``<run>/recording/round_<t>.safetensors``: updates, Gram matrix, weights, ids, the server before.

    Args:
        rounds: Rounds to record, from 1; None for none besides ``every``.
        every: Record also every so many rounds; None for none besides ``rounds``.
        dtype: Of the recorded updates: ``float32``, as the run has them, with which a replay is exact, or ``bfloat16``,
            half the size.
        max_gigabytes: What the recording may take in all (10^9 bytes); a run that would take more does not start.
        output_dir: The run's directory, which holds its ``config.yaml``.
    """

    rounds: Sequence[int] | None
    every: int | None
    dtype: str
    max_gigabytes: float
    output_dir: str

    def __post_init__(self) -> None:
        key = "callback.record_updates"
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"{key}.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.rounds is None and self.every is None:
            raise ConfigurationError(f"{key} needs rounds or every, for instance {key}.rounds=[1,10,50]")
        if self.every is not None and self.every < 1:
            raise ConfigurationError(f"{key}.every must be 1 or more rounds, or null, got {self.every}")
        if any(number < 1 for number in self.rounds or ()):
            raise ConfigurationError(f"{key}.rounds counts from 1, got {list(self.rounds or ())}")
        if not self.max_gigabytes > 0:
            raise ConfigurationError(f"{key}.max_gigabytes must be positive, got {self.max_gigabytes}")

    def prepare(self, federation: Federation, schedule: Schedule, server: ServerState) -> None:
        """Say how much is going to be written, before the first round.

        Raises:
            ConfigurationError: If that is more than allowed, or nothing.
        """
        require_one_model(server, "record_updates")
        every, chosen = self.every, set(self.rounds or ())
        if chosen and max(chosen) > schedule.num_rounds:
            raise ConfigurationError(
                f"callback.record_updates.rounds asks for round {max(chosen)} of a run of {schedule.num_rounds}; "
                "leave it out or raise num_rounds"
            )
        due = [number for number in range(1, schedule.num_rounds + 1) if self.due(number)]
        if not due:
            raise ConfigurationError(
                f"callback.record_updates.every={every} records nothing in a run of {schedule.num_rounds} rounds; "
                "lower it or give callback.record_updates.rounds=[...]"
            )
        to_come = [number for number in due if number > server.round_index]
        gigabytes = sum(self.size(federation, server, number) for number in due) / 1e9
        if gigabytes > self.max_gigabytes:
            raise ConfigurationError(
                f"recording {len(due)} rounds takes {gigabytes:.3g} GB, more than "
                f"callback.record_updates.max_gigabytes={self.max_gigabytes:g}; record fewer rounds (every=..., "
                "rounds=[...]), halve it with dtype=bfloat16, or raise the limit"
            )
        log.info(
            "recording %d rounds, %.3g GB in all (%s), %d still to come, to %s",
            *(len(due), gigabytes, self.dtype, len(to_come), Path(self.output_dir) / FOLDER),
        )

    def due(self, finished: int) -> bool:
        """Tell whether a round, from 1, is to be recorded."""
        return finished in (self.rounds or ()) or (self.every is not None and finished % self.every == 0)

    def size(self, federation: Federation, server: ServerState, finished: int) -> int:
        """Return the bytes of one recorded round if nobody is set aside; headers and memory of rules not counted."""
        model, row_dtype = federation.model, federation.executor.row_dtype
        num_params, num_blocks = model.params.numel(), len(model.blocks)
        ids = federation.sampler(len(federation.partition.client_indices), federation.seed, finished - 1)
        rows = UpdateMatrix(torch.empty(len(ids), num_params, dtype=row_dtype, device="meta"), model.blocks)
        grams = 1 + (num_blocks if affordable(rows) else 1)
        _, optimizer = federation.server_optimizer.step(server.params, torch.zeros_like(server.params), {})
        state = [server.params, *(2 * [server.buffers, server.counters])]
        state += optimizer.values() if finished > 1 else ()
        updates = len(ids) * num_params * narrower(row_dtype, DTYPES[self.dtype]).itemsize
        return updates + 8 * (len(ids) ** 2 * grams + 5 * len(ids)) + sum(tensor.nbytes for tensor in state)

    def __call__(self, federation: Federation, before: ServerState, outcome: Round, row: Row) -> None:
        """Record the round if it is due; a file that cannot be written is reported and the run goes on."""
        if outcome.aggregate is None or not self.due(row.round):
            return
        folder = Path(self.output_dir)
        try:
            config = (folder / "config.yaml").read_text()
            write(recording_of(federation, before, outcome, config), folder / FOLDER, DTYPES[self.dtype])
        except OSError as error:
            log.warning("round %d was not recorded: %s; the run goes on", row.round, error)
