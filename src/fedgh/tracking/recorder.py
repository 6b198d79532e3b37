"""Where a run's numbers go: a CSV always, W&B and TensorBoard as configured, each round once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from fedgh.plot.picture import pixels
from fedgh.storage import second_copy
from fedgh.storage.csv_table import CsvTable
from fedgh.storage.csv_table import read_csv as read_csv
from fedgh.storage.durable import cause_of
from fedgh.tracking import offline
from fedgh.tracking.row import Row as Row
from fedgh.tracking.wandb_run import as_image, finish_run, log_row, row_on_disk

log = logging.getLogger(__name__)


class Recorder:
    """Sends every round's row to all destinations.

    Args:
        run_dir: The run's directory.
        loggers: Lightning loggers.
        first_round: First round that is going to be recorded; later than 1 in a resumed run.
        kept: Second copies of what was recorded before, as its checkpoint names them.
    """

    def __init__(
        self, run_dir: Path, loggers: Sequence[Logger], first_round: int = 1, kept: Sequence[int] = ()
    ) -> None:
        self.run_dir, self.kept = run_dir, tuple(kept)
        self.table = CsvTable(run_dir / second_copy.METRICS, second_copy.restore(run_dir, first_round - 1, kept))
        self.loggers = list(loggers)
        self._wandb_from = first_round
        for logger in self.wandb_loggers:
            run = logger.experiment
            run.define_metric("round")
            run.define_metric("*", step_metric="round")
            sent = max(offline.last_round(run_dir, str(run.id)), run.step - 1 if run.resumed else -1)
            self._wandb_from = max(self._wandb_from, sent + 1)
            for row in self.table.rows:  # what a killed process had handed to W&B, but W&B not yet written
                if sent < row["round"] < first_round:
                    log_row(run, row_on_disk(row, run_dir), {})

    @property
    def wandb_loggers(self) -> list[WandbLogger]:
        """Return the W&B loggers, usually none or one."""
        return [logger for logger in self.loggers if isinstance(logger, WandbLogger)]

    @property
    def wandb_id(self) -> str:
        """Return the id of the W&B run, or an empty string."""
        return next((str(logger.experiment.id) for logger in self.wandb_loggers), "")

    def record(self, row: Row) -> None:
        """Write one round everywhere; a dashboard that fails is reported and the run goes on.

        Raises:
            StorageError: If the disk is full.
        """
        row.metrics = _numbers(row)
        self.table.append({"round": row.round, **row.metrics})
        pictures = self._draw(row) if self.loggers else {}
        for logger in self.loggers:
            try:
                self._send(logger, row, pictures)
            except Exception as error:  # a dashboard that is out of reach must not cost the training
                log.warning("%s did not take round %d: %s", type(logger).__name__, row.round, error)

    def keep(self, finished: int) -> tuple[int, ...]:
        """Make sure that nothing recorded so far can be lost; to be done before a checkpoint.

        Args:
            finished: Rounds that the checkpoint has; what was recorded of later ones is left out.

        Returns:
            What the checkpoint is to name.

        Raises:
            StorageError: If the disk is full.
        """
        first = self.kept[-1] + 1 if self.kept else 1
        if first <= finished:
            second_copy.keep(self.run_dir, first, finished, self.table.rows)
            self.kept += (finished,)
        return self.kept

    def _draw(self, row: Row) -> dict[str, NDArray[np.uint8]]:
        """Draw each figure of a round once for all loggers, if there is one that takes it."""
        wanted = any(isinstance(logger, TensorBoardLogger) for logger in self.loggers)
        wanted = wanted or (bool(self.wandb_loggers) and row.round >= self._wandb_from)
        pictures = {}
        for name, make in row.figures.items() if wanted else ():
            try:
                pictures[name] = pixels(make())
            except Exception as error:  # nor must a picture
                log.warning("picture %s of round %d was not drawn: %s", name, row.round, error)
        return pictures

    def _send(self, logger: Logger, row: Row, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        if isinstance(logger, WandbLogger):
            if row.round >= self._wandb_from:
                log_row(logger.experiment, row, pictures)
            return
        logger.log_metrics(row.metrics, step=row.round)
        if isinstance(logger, TensorBoardLogger):
            for name, values in row.histograms.items():
                logger.experiment.add_histogram(name, values, row.round)
            for name, image in pictures.items():
                logger.experiment.add_image(name, image, row.round, dataformats="HWC")

    def picture(self, name: str, figure: Any) -> None:
        """Log one figure that belongs to the run as a whole."""
        takers = [logger for logger in self.loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
        image = pixels(figure) if takers else None
        for logger in takers:
            try:
                if isinstance(logger, WandbLogger):
                    logger.experiment.summary[name] = as_image(image)
                else:
                    logger.experiment.add_image(name, image, dataformats="HWC")
            except Exception as error:  # as in record
                log.warning("%s did not take picture %s: %s", type(logger).__name__, name, error)

    def artifact(self, path: Path) -> None:
        """Attach a file to the W&B run as a versioned artifact of type ``model``."""
        import wandb

        for logger in self.wandb_loggers:
            artifact = wandb.Artifact(f"checkpoint-{logger.experiment.id}", type="model")
            artifact.add_file(str(path))
            try:
                logger.experiment.log_artifact(artifact)
            except Exception as error:  # as in record
                log.warning("%s did not take %s: %s", type(logger).__name__, path, error)

    def close(self, status: str = "success", summary: Mapping[str, float] | None = None) -> None:
        """Finish all loggers; W&B shows the run as finished, or failed when ``status`` is not ``success``.

        What W&B has not taken stays in its offline file, and the command that sends it is told.
        """
        close_loggers(self.loggers, status, summary)
        try:
            second_copy.sync_tables(self.run_dir)
        except OSError as error:
            log.warning("the tables in %s may not be on the disk yet: %s", self.run_dir, cause_of(error))


def close_loggers(loggers: Sequence[Logger], status: str, summary: Mapping[str, float] | None = None) -> None:
    """Finish loggers, see :meth:`Recorder.close`; one that fails is reported."""
    for logger in loggers:
        try:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                finish_run(logger.experiment, 0 if status == "success" else 1, summary or {})
        except Exception as error:  # as in Recorder.record
            log.warning("%s was not closed: %s", type(logger).__name__, error)


def _numbers(row: Row) -> dict[str, float]:
    """Return a round's metrics as floats; what is none is reported and left out."""
    numbers = {}
    for name, value in row.metrics.items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError, RuntimeError):  # the last from tensors of several values
            log.warning("round %d: %s is not a number but a %s; left out", row.round, name, type(value).__name__)
    return numbers
