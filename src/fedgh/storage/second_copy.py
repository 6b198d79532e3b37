"""A second copy of what a run has recorded, so that its tables are as safe as its checkpoints.

Before each checkpoint, the rows of ``metrics.csv`` and the files of the tables below ``conflict/`` that came since the
one before go into ``records/round_<t>.zip``, written once and synced; the checkpoint names these copies. A run that
goes on compares its tables with them, and mends what was lost or damaged meanwhile.
"""

from __future__ import annotations

import io
import logging
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedgh.storage.csv_table import Row, columns_of, format_rows, parse_rows
from fedgh.storage.durable import replace_file, sync_all

log = logging.getLogger(__name__)

METRICS = "metrics.csv"
_TABLE = re.compile(r"conflict/\w+/round_(\d{6,})\.parquet")  # nothing else is ever written to from a copy


def keep(run_dir: Path, first: int, last: int, rows: Iterable[Row]) -> None:
    """Write the second copy of some rounds, and wait until it and ``metrics.csv`` are on the disk.

    Args:
        run_dir: Of the run.
        first: First round.
        last: Last one; gives the copy its name.
        rows: Of ``metrics.csv``; those of other rounds are left out.

    Raises:
        StorageError: If the disk is full.
    """
    path, chosen = _path(run_dir, last), [row for row in rows if first <= row["round"] <= last]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # with a checksum for each member
        archive.writestr(zipfile.ZipInfo(METRICS), format_rows(chosen, columns_of(chosen)))
        for number in range(first, last + 1):
            for table in sorted(run_dir.glob(f"conflict/*/round_{number:06d}.parquet")):
                archive.writestr(zipfile.ZipInfo(table.relative_to(run_dir).as_posix()), table.read_bytes())
    replace_file(path, buffer.getvalue())
    sync_all(one for one in (path, path.parent, run_dir / METRICS, run_dir) if one.exists())


def sync_tables(run_dir: Path) -> None:
    """Wait until the tables themselves are on the disk, once a run has ended."""
    sync_all([*run_dir.glob("conflict/*/*.parquet"), *run_dir.glob("conflict/*"), *run_dir.glob("*.csv"), run_dir])


def restore(run_dir: Path, finished: int, kept: Sequence[int]) -> list[Row]:
    """Mend the tables of a run that goes on, say what was wrong, and return its rows of ``metrics.csv``.

    Args:
        run_dir: Of the run.
        finished: Its last round; whatever came later is going to be repeated.
        kept: The copies that its checkpoint names, by their last round; none in runs of older versions.
    """
    table = run_dir / METRICS
    found, problems = parse_rows(table.read_bytes()) if table.is_file() else ([], ["it is missing"])
    problems = problems or ([] if found else ["it is empty"])
    found_rows = {row["round"]: row for row in found}
    copied_rows, mended, uncopied, first = dict[float, Row](), dict[str, list[int]](), list[range](), 1
    for last in kept:
        copy = _read(_path(run_dir, last))
        if copy is None:
            uncopied.append(range(first, last + 1))
        for name, content in (copy or {}).items():
            place = run_dir / name
            if name == METRICS:
                copied_rows |= {row["round"]: row for row in parse_rows(content)[0]}
            elif (match := _TABLE.fullmatch(name)) and not (place.is_file() and place.read_bytes() == content):
                replace_file(place, content)
                mended.setdefault(place.parent.relative_to(run_dir).as_posix(), []).append(int(match[1]))
        first = last + 1
    rows = [(number, copied_rows.get(number, found_rows.get(number))) for number in range(1, finished + 1)]
    lost = [number for number, row in rows if row is None]
    wrong = [number for number, row in copied_rows.items() if _text(row) != _text(found_rows.get(number))]
    if wrong:
        mended[METRICS] = [int(number) for number in wrong]
    for name, numbers in mended.items():
        reason = f" ({problems[0]})" if name == METRICS and problems else ""
        log.warning("%s was damaged in %s%s; mended from its second copy", run_dir / name, _rounds(numbers), reason)
    if uncopied:
        numbers = [number for part in uncopied for number in part]
        log.warning("the second copy of %s in %s was damaged; made anew", _rounds(numbers), run_dir / "records")
    if lost:
        log.warning("%s has lost %s, and there is no second copy of them", table, _rounds(lost))
    for path in (run_dir / "records").glob("round_*.zip"):  # of an abandoned continuation
        if path.stem[6:].isdigit() and int(path.stem[6:]) > finished:
            path.unlink()
    whole = [row for _, row in rows if row is not None]
    for part in uncopied:
        keep(run_dir, part[0], part[-1], whole)
    return whole


def _path(run_dir: Path, last: int) -> Path:
    return run_dir / "records" / f"round_{last:06d}.zip"


def _read(path: Path) -> dict[str, bytes] | None:
    """Return the members of a copy by name; None if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if one.compress_type == zipfile.ZIP_STORED]  # no bombs
            return {one.filename: archive.read(one) for one in members}
    except Exception:  # a damaged archive fails in many ways
        return None


def _text(row: Row | None) -> object:
    """Return what tells one row from another; NaN is equal to NaN."""
    return None if row is None else {name: repr(float(value)) for name, value in row.items()}


def _rounds(numbers: Iterable[int]) -> str:
    """Return ``round 3``, ``rounds 1 to 4, 7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [f"{a}" if a == b else f"{a} to {b}" for a, b in runs]
    shown = ", ".join(parts[:5]) + (" ..." if len(parts) > 5 else "")
    return f"round{'s' if len(runs) > 1 or runs[0][0] != runs[0][1] else ''} {shown}"
