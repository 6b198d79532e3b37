"""A W&B run: a round logged part by part, what a killed process had not sent yet, and the end of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgh.core.errors import DataError
from fedgh.storage.portable import make_shareable
from fedgh.storage.tables import read_rounds, read_rows
from fedgh.tracking.row import Row

log = logging.getLogger(__name__)


def row_on_disk(metrics: Mapping[str, float], run_dir: Path) -> Row:
    """Return a round's row as far as it is on disk: the line of the table, and the cosines of the observatory."""
    row = Row(int(metrics["round"]), {key: value for key, value in metrics.items() if key != "round"})
    pairs = run_dir / "conflict" / "pairs"
    if row.round in read_rounds(pairs):
        columns = {"conflict/cosine": "cosine", "harmonization/cosine": "cosine_after"}
        try:
            table = read_rows(pairs, row.round, list(columns.values()))
        except DataError as error:
            log.warning("the cosines of round %d are not sent: %s", row.round, error)
        else:
            row.histograms = {name: table[column][~np.isnan(table[column])] for name, column in columns.items()}
    return row


def log_row(run: Any, row: Row, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
    """Log the numbers, then each picture, histogram and table by itself: one that fails costs nothing else."""
    import pandas as pd
    import wandb

    def histogram(values: np.ndarray[Any, Any]) -> Any:
        return wandb.Histogram(np_histogram=bin_cosines(values))

    def table(columns: Mapping[str, Any]) -> Any:
        return beside_the_run(wandb.Table(dataframe=pd.DataFrame(dict(columns))), run)

    run.log({"round": row.round, **row.metrics}, step=row.round)
    kinds: tuple[tuple[Callable[[Any], Any], Mapping[str, Any]], ...]
    kinds = ((histogram, row.histograms), (as_image, pictures), (table, row.tables))
    for make, contents in kinds:
        for name, content in contents.items():
            try:
                run.log({name: make(content)}, step=row.round)  # W&B adds it to what it has of that step
            except Exception as error:  # as in Recorder.record
                log.warning("W&B did not take %s of round %d: %s", name, row.round, error)


def beside_the_run(table: Any, run: Any) -> Any:
    """Return a W&B table that is a file of its run alone, where the run is offline.

    W&B makes an artifact of it besides, which waits in the user's home to be sent; its path would stand in the run's
    file, which is shared, and a run that is sent from another machine would lack it.
    """
    if getattr(run, "offline", False):
        table._log_type = "table-file"
    return table


def bin_cosines(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Bin cosines on one fixed axis from -1 to 1, so that rounds can be compared."""
    return np.histogram(values, bins=np.linspace(-1, 1, 65))


def as_image(image: Any) -> Any:
    """Return pixels, ``(height, width, channels)``, as what W&B takes for a picture."""
    import wandb
    from PIL import Image

    return wandb.Image(Image.fromarray(image))


def finish_run(run: Any, exit_code: int, summary: Mapping[str, float]) -> None:
    """End a W&B run, and say so if W&B did not answer in time or refused what it was sent."""
    import wandb

    folder = Path(run.dir).parent
    try:
        run.summary.update(dict(summary))
        run.finish(exit_code=exit_code)
        service = folder / "logs" / "debug-internal.log"  # the only place where W&B tells of a refusal
        incomplete = service.is_file() and "filestream: fatal error" in service.read_text(errors="replace")
    except TimeoutError:
        incomplete = True
    finally:
        wandb.run = None  # or the next run of this process would be mistaken for this one, had its service crashed
    share_logs(folder.parents[1])
    if incomplete:
        log.warning("W&B has not taken all of this run; to be sent later: wandb sync %s", folder)


def share_logs(run_dir: Path) -> None:
    """Take the user's home and the current folder out of what W&B has logged beside its files."""
    for path in run_dir.glob("wandb/*/logs/*.log"):
        if not path.is_symlink():  # to the service's own log, in the user's cache
            make_shareable(path)
