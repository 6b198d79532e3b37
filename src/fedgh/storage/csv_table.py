"""The table of a run's rounds, ``metrics.csv``; without Lightning, so that those who only read runs start fast."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path


class CsvTable:
    """``metrics.csv``: a line a round. A resumed run drops the lines of the rounds that it is going to repeat.

    Args:
        path: The file; read if it exists.
        first_round: First round that is going to be written.
    """

    def __init__(self, path: Path, first_round: int = 1) -> None:
        self.path = path
        self.rows = [row for row in read_csv(path) if row["round"] < first_round] if path.exists() else []
        self.columns: list[str] = list(dict.fromkeys(key for row in self.rows for key in row))
        if path.exists():
            self._rewrite()

    def append(self, row: Mapping[str, float]) -> None:
        """Add a line and flush it; a new column rewrites the file."""
        self.rows.append(dict(row))
        new = [key for key in row if key not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self) -> None:
        aside = self.path.with_suffix(".tmp")
        with aside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        aside.replace(self.path)


def read_csv(path: Path) -> list[dict[str, float]]:
    """Read ``metrics.csv``: one mapping a round; empty cells are left out, a line cut by a kill is ignored."""
    text = path.read_bytes().decode()
    lines = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    rows = []
    for line in lines:
        if None in line or None in line.values():
            continue
        row = {key: float(value) for key, value in line.items() if value != ""}
        rows.append({**row, "round": int(row["round"])})
    return rows
