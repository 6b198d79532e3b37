"""The table of a run's rounds, ``metrics.csv``; without Lightning, so that those who only read runs start fast."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedgh.core.command import resume_command
from fedgh.core.errors import DataError, StorageError
from fedgh.storage.durable import replace_file

log = logging.getLogger(__name__)

Row = dict[str, float]
"""A round: ``round`` (an int, from 1) and its metrics by name; what was not measured is left out."""


class CsvTable:
    """``metrics.csv`` as it is written: a line a round, each handed to the system before the next round.

    Args:
        path: The file; written anew.
        rows: Of the rounds that are finished.
    """

    def __init__(self, path: Path, rows: Iterable[Row] = ()) -> None:
        self.path = path
        self.rows = list(rows)
        self.columns = columns_of(self.rows)
        self._size = 0
        if self.rows or path.exists():
            self._rewrite()

    def append(self, row: Mapping[str, float]) -> None:
        """Add a round; a new column, or a file that somebody has changed or removed, is written as a whole.

        Raises:
            StorageError: If the disk is full.
        """
        self.rows.append(dict(row))
        new = [key for key in row if key not in self.columns]
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            log.warning("somebody has changed or removed %s while the run goes on; it is written anew", self.path)
        if new or size != self._size:
            self.columns += new
            self._rewrite()
            return
        line = format_rows([self.rows[-1]], self.columns, header=False)
        try:
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._size += len(line)

    def _rewrite(self) -> None:
        content = format_rows(self.rows, self.columns)
        replace_file(self.path, content)
        self._size = len(content)


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of all columns, in the order in which they came."""
    return list(dict.fromkeys(key for row in rows for key in row))


def format_rows(rows: Sequence[Row], columns: Sequence[str], header: bool = True) -> bytes:
    """Return rows as CSV; floats keep every bit."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parse_rows(content: bytes) -> tuple[list[Row], list[str]]:
    """Return the rows of a CSV that can be read, and what is wrong with the rest.

    Whatever follows the last end of a line was cut off by a kill, and is as if it had not been written.
    """
    text = content.decode(errors="replace")
    lines = [line.rstrip("\r") for line in text.split("\n")[:-1]]
    if not lines:
        return [], []
    names = _cells(lines[0])
    if "round" not in names or len(set(names)) != len(names):
        return [], ["its header is lost"]
    rows, problems = [], []
    for number, line in enumerate(lines[1:], 2):
        try:
            row: Row = {name: float(cell) for name, cell in zip(names, _cells(line), strict=True) if cell != ""}
            rows.append({**row, "round": int(row["round"])})
        except (ValueError, KeyError, OverflowError):
            problems.append(f"line {number} cannot be read")
    return rows, problems


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def read_csv(path: Path) -> list[Row]:
    """Read ``metrics.csv``.

    Raises:
        DataError: If it is damaged, with the remedy.
    """
    rows, problems = parse_rows(path.read_bytes())
    if problems:
        raise DataError(f"{path} is damaged: {problems[0]}; going on mends it: {resume_command(path.parent)}")
    return rows
