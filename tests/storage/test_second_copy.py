"""Tables with a second copy: whatever happens to the first, a run that goes on says so and mends it."""

import errno
import logging
import os
import random
import shutil
import zipfile

import numpy as np
import pytest

from fedgh.core.errors import StorageError
from fedgh.storage import durable, second_copy
from fedgh.storage.csv_table import CsvTable, read_csv
from fedgh.storage.second_copy import keep, restore, sync_tables
from fedgh.storage.tables import read_rounds, read_rows, write_rows

KEPT = (1, 2, 5)


@pytest.fixture
def run_dir(tmp_path):
    """Five rounds with two tables, a checkpoint after rounds 1, 2 and 5; then a sixth, whose checkpoint never came."""
    run = tmp_path / "run"
    run.mkdir()
    table, first = CsvTable(run / "metrics.csv"), 1
    for t in range(1, 7):
        table.append({"round": t, "acc": t / 7, "nan": float("nan"), **({"late": 1.0} if t > 3 else {})})
        write_rows(run / "conflict" / "pairs", t, {"cosine": np.linspace(-1, 1, 20) * t})
        if t != 4:
            write_rows(run / "conflict" / "layers", t, {"layer": ["a", "b"], "ratio": [t / 10, 0.5]})
        if t in KEPT:
            keep(run, first, t, table.rows)
            first = t + 1
    return run


def content(run):
    """All that is to be there after going on from round 5."""
    rows = [{k: repr(v) for k, v in row.items()} for row in read_csv(run / "metrics.csv") if row["round"] <= 5]
    files = {p.relative_to(run).as_posix(): p.read_bytes() for p in run.glob("conflict/*/round_*.parquet")}
    return rows, {name: data for name, data in files.items() if "000006" not in name}


def go_on(run, caplog, finished=5, kept=KEPT):
    """Return what is said, without the run's directory."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "fedgh"):
        CsvTable(run / "metrics.csv", restore(run, finished, kept))
    assert all("\n" not in r.getMessage() for r in caplog.records)
    return [r.getMessage().replace(f"{run}/", "") for r in caplog.records]


def test_nothing_is_said_of_a_whole_run(run_dir, caplog):
    before = content(run_dir)
    assert go_on(run_dir, caplog) == []
    assert content(run_dir) == before
    assert [row["round"] for row in read_csv(run_dir / "metrics.csv")] == [1, 2, 3, 4, 5]
    assert go_on(run_dir, caplog) == []


def flip(path, place=-30):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def without_header(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def without_rows(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[3]]))


def other_number(path):
    path.write_bytes(path.read_bytes().replace(repr(2 / 7).encode(), b"0.9"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "rounds 1 to 5 (it is missing)"),
        (lambda path: path.write_bytes(b""), "rounds 1 to 5 (it is empty)"),
        (lambda path: path.write_bytes(path.read_bytes()[:90]), "rounds 3 to 5"),
        (lambda path: path.write_bytes(bytes(200)), "rounds 1 to 5 (it is empty)"),
        (without_header, "rounds 1 to 5 (its header is lost)"),
        (without_rows, "rounds 2, 4 to 5"),
        (other_number, "round 2"),
        (lambda path: flip(path, 8), "rounds 1 to 5"),  # in the name of a column
        (lambda path: flip(path, path.read_bytes().index(b"\n3,") + 4), "round 3 (line 4 cannot be read)"),
    ],
)
def test_metrics_are_mended_whatever_happened_to_them(run_dir, caplog, damage, said):
    before = content(run_dir)
    damage(run_dir / "metrics.csv")
    assert go_on(run_dir, caplog) == [f"metrics.csv was damaged in {said}; mended from its second copy"]
    assert content(run_dir) == before
    assert go_on(run_dir, caplog) == []


def test_any_flipped_bit_is_mended(run_dir, caplog):
    before, places = content(run_dir), random.Random(0)
    files = [run_dir / "metrics.csv", *run_dir.glob("conflict/*/round_00000[1-5].parquet")]
    for _ in range(100):
        path = places.choice(files)
        whole = path.read_bytes()
        flip(path, places.randrange(len(whole)))
        said = go_on(run_dir, caplog)
        assert content(run_dir) == before
        assert len(said) == 1 or path.name == "metrics.csv"  # in what is repeated anyway, nothing needs to be said


def test_tables_are_mended_whatever_happened_to_them(run_dir, caplog):
    before, pairs, layers = content(run_dir), run_dir / "conflict" / "pairs", run_dir / "conflict" / "layers"
    flip(pairs / "round_000002.parquet")
    (pairs / "round_000003.parquet").write_bytes(b"")
    (pairs / "round_000005.parquet").unlink()
    shutil.rmtree(layers)
    assert sorted(go_on(run_dir, caplog)) == [
        "conflict/layers was damaged in rounds 1 to 3, 5; mended from its second copy",
        "conflict/pairs was damaged in rounds 2 to 3, 5; mended from its second copy",
    ]
    assert content(run_dir) == before
    assert read_rounds(layers) == [1, 2, 3, 5]
    assert read_rows(pairs, 5)["cosine"][-1] == 5


def test_a_damaged_copy_is_made_anew(run_dir, caplog):
    before = content(run_dir)
    flip(run_dir / "records" / "round_000005.zip", 100)
    (run_dir / "records" / "round_000001.zip").unlink()
    assert go_on(run_dir, caplog) == ["the second copy of rounds 1, 3 to 5 in records was damaged; made anew"]
    assert content(run_dir) == before
    assert go_on(run_dir, caplog) == []
    shutil.rmtree(run_dir / "conflict")
    (run_dir / "metrics.csv").unlink()
    assert len(go_on(run_dir, caplog)) == 3
    assert content(run_dir) == before


def test_what_is_lost_twice_is_said(run_dir, caplog):
    (run_dir / "metrics.csv").unlink()
    (run_dir / "records" / "round_000005.zip").unlink()
    said = go_on(run_dir, caplog)
    assert "metrics.csv was damaged in rounds 1 to 2 (it is missing); mended from its second copy" in said
    assert "metrics.csv has lost rounds 3 to 5, and there is no second copy of them" in said
    assert [row["round"] for row in read_csv(run_dir / "metrics.csv")] == [1, 2]


def test_a_run_of_an_older_version_has_no_copies(run_dir, caplog):
    shutil.rmtree(run_dir / "records")
    assert go_on(run_dir, caplog, kept=()) == []
    without_rows(run_dir / "metrics.csv")
    assert go_on(run_dir, caplog, kept=()) == [
        "metrics.csv has lost rounds 2, 4 to 5, and there is no second copy of them"
    ]


def test_going_on_from_an_older_checkpoint_drops_what_came_later(run_dir, caplog):
    assert go_on(run_dir, caplog, finished=2, kept=(1, 2)) == []
    assert [row["round"] for row in read_csv(run_dir / "metrics.csv")] == [1, 2]
    assert sorted(path.name for path in (run_dir / "records").iterdir()) == ["round_000001.zip", "round_000002.zip"]


def test_a_copy_from_somebody_else_writes_nothing_else(run_dir, tmp_path, caplog):
    """A run directory is data: a copy may name tables only, and may not be a bomb."""
    path = run_dir / "records" / "round_000001.zip"
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../evil.txt", "conflict/../../evil.txt", str(tmp_path / "evil.txt"), "config.yaml"):
            archive.writestr(zipfile.ZipInfo(name), b"evil")
        archive.writestr("conflict/pairs/round_000001.parquet.exe", b"evil")
        archive.writestr("conflict/bomb/round_000001.parquet", bytes(1 << 20), zipfile.ZIP_DEFLATED)
    assert go_on(run_dir, caplog) == []
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (run_dir / "config.yaml").exists()
    assert {p.name for p in (run_dir / "conflict").iterdir()} == {"pairs", "layers"}


def test_copy_and_metrics_are_synced(run_dir, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", synced.append)
    keep(run_dir, 6, 6, [{"round": 6, "acc": 0.5}])
    assert {p.relative_to(run_dir).as_posix() for p in synced} == {
        "records/round_000006.zip",
        "records",
        "metrics.csv",
        ".",
    }
    synced.clear()
    sync_tables(run_dir)
    tables = {p.relative_to(run_dir).as_posix() for p in run_dir.rglob("*.parquet")}
    assert tables < {p.relative_to(run_dir).as_posix() for p in synced}


def test_a_full_disk_is_one_line(run_dir, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(StorageError, match=r"cannot write .*records/round_000006.zip: No space left on device"):
        keep(run_dir, 6, 6, [])
    with pytest.raises(StorageError, match=r"cannot write .*pairs/round_000007.parquet: No space left on device"):
        write_rows(run_dir / "conflict" / "pairs", 7, {"cosine": [0.5]})
    monkeypatch.undo()
    assert not list(run_dir.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([3], "round 3"),
        ([2, 1], "rounds 1 to 2"),
        ([7, 1, 2, 4], "rounds 1 to 2, 4, 7"),
        ([1, 3, 5, 7, 9], "rounds 1, 3, 5, 7, 9"),
        ([1, 3, 5, 7, 9, 11, 12], "rounds 1, 3, 5, 7, 9 ..."),
    ],
)
def test_rounds_are_told_in_short(numbers, said):
    assert second_copy._rounds(numbers) == said
