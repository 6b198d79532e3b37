"""``metrics.csv``: a line a round, also after a kill in the middle of one; damage is named."""

import errno
import logging
import math
import os
import random
from pathlib import Path

import pytest

from fedgh.core.errors import DataError, StorageError
from fedgh.storage.csv_table import CsvTable, parse_rows, read_csv


def filled(path, rounds=3):
    table = CsvTable(path)
    for t in range(1, rounds + 1):
        table.append({"round": t, "global/test/acc": t / 7, "client/train/loss": 1e-5 * t})
    return table


def test_columns_and_values(tmp_path):
    filled(tmp_path / "metrics.csv")
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "round,global/test/acc,client/train/loss"
    assert lines[1] == f"1,{1 / 7!r},1e-05"
    assert read_csv(tmp_path / "metrics.csv") == [
        {"round": t, "global/test/acc": t / 7, "client/train/loss": 1e-5 * t} for t in (1, 2, 3)
    ]


def test_a_new_column_rewrites_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    table = filled(path, 2)
    table.append({"round": 3, "global/test/acc": 0.5, "conflict/ratio": 0.25})
    table.append({"round": 4, "conflict/ratio": math.nan})
    assert path.read_text().splitlines()[0] == "round,global/test/acc,client/train/loss,conflict/ratio"
    rows = read_csv(path)
    assert rows[2] == {"round": 3, "global/test/acc": 0.5, "conflict/ratio": 0.25}
    assert math.isnan(rows[3]["conflict/ratio"])
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_run_drops_what_it_repeats_and_gives_the_same_file(tmp_path):
    filled(tmp_path / "straight.csv", 5)
    path = tmp_path / "resumed.csv"
    table = CsvTable(path, filled(path, 4).rows[:2])
    assert [row["round"] for row in read_csv(path)] == [1, 2]
    for t in (3, 4, 5):
        table.append({"round": t, "global/test/acc": t / 7, "client/train/loss": 1e-5 * t})
    assert path.read_bytes() == (tmp_path / "straight.csv").read_bytes()


def test_a_line_cut_anywhere_by_a_kill_is_as_if_it_had_not_been_written(tmp_path):
    """Whatever is left of it: half a number must neither stop the resumed run nor pass for a result."""
    path = tmp_path / "metrics.csv"
    filled(path)
    whole = path.read_bytes()
    start = whole.index(b"\n3,") + 1
    for end in range(start, len(whole) - 2):  # up to the last digit, without the end of the line
        path.write_bytes(whole[:end])
        assert [row["round"] for row in read_csv(path)] == [1, 2], whole[start:end]
    path.write_bytes(whole)
    assert len(read_csv(path)) == 3


def test_a_file_cut_in_its_header(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,glo")
    assert read_csv(path) == []
    path.write_text("round,glo\n1,0.5,3\n")
    with pytest.raises(DataError, match=r"metrics.csv is damaged: line 2 cannot be read"):
        read_csv(path)


def test_values_keep_every_bit(tmp_path):
    numbers = random.Random(0)
    values = [numbers.uniform(-1, 1) * 10 ** numbers.randint(-30, 30) for _ in range(200)]
    table = CsvTable(tmp_path / "metrics.csv")
    for t, value in enumerate(values, 1):
        table.append({"round": t, "x": value})
    assert [row["x"] for row in read_csv(tmp_path / "metrics.csv")] == values


def test_line_ends_and_names_with_commas_and_quotes(tmp_path):
    path, row = tmp_path / "metrics.csv", {"round": 1, 'a, "b"': 0.5, "ü": -math.inf}
    CsvTable(path, [row])
    assert read_csv(path) == [row]
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))  # as an editor saves it
    assert read_csv(path) == [row]


@pytest.mark.parametrize("how", ["removed", "emptied", "truncated", "longer", "without its header"])
def test_a_file_changed_while_the_run_goes_on_is_written_anew(tmp_path, caplog, how):
    path = tmp_path / "metrics.csv"
    table, whole = filled(path, 3), (tmp_path / "metrics.csv").read_bytes()
    if how == "removed":
        path.unlink()
    else:
        lines = whole.splitlines(keepends=True)
        path.write_bytes(
            {
                "emptied": b"",
                "truncated": whole[:-9],
                "longer": whole + b"x",
                "without its header": b"".join(lines[1:]),
            }[how]
        )
    with caplog.at_level(logging.WARNING, "fedgh"):
        table.append({"round": 4, "global/test/acc": 0.5})
        table.append({"round": 5, "global/test/acc": 0.5})
    assert [row["round"] for row in read_csv(path)] == [1, 2, 3, 4, 5]
    assert path.read_bytes().startswith(whole)
    assert [r.message for r in caplog.records] == [
        f"somebody has changed or removed {path} while the run goes on; it is written anew"
    ]


@pytest.mark.parametrize(
    ("content", "rounds", "problems"),
    [
        (b"", [], []),
        (b"round,a\n", [], []),
        (b"round,a\n1,0.5\n2,0.25\n", [1, 2], []),
        (b"1,0.5\n2,0.25\n", [], ["its header is lost"]),
        (b"round,a,a\n1,0.5,1\n", [], ["its header is lost"]),
        (b"round,a\n1,0.\xff5\n2,0.25\n", [2], ["line 2 cannot be read"]),
        (b"round,a\n1,0.5\nx,0.25\n3,1\n", [1, 3], ["line 3 cannot be read"]),
        (b"round,a\n1,0.5,7\n2\n", [], ["line 2 cannot be read", "line 3 cannot be read"]),
        (b"round,a\ninf,0.5\nnan,0\n,1\n", [], [f"line {n} cannot be read" for n in (2, 3, 4)]),
        (b'round,a\n1,"0.5\n2,1\n', [2], ["line 2 cannot be read"]),
        (b"round,a\n1,0.5\x00\n\n", [], ["line 2 cannot be read", "line 3 cannot be read"]),
    ],
)
def test_damage_is_told_line_by_line(tmp_path, content, rounds, problems):
    found = parse_rows(content)
    assert ([row["round"] for row in found[0]], found[1]) == (rounds, problems)
    (tmp_path / "metrics.csv").write_bytes(content)
    if problems:
        message = rf"metrics.csv is damaged: {problems[0]}; going on mends it: fedgh-train resume={tmp_path}"
        with pytest.raises(DataError, match=message):
            read_csv(tmp_path / "metrics.csv")
    else:
        assert [row["round"] for row in read_csv(tmp_path / "metrics.csv")] == rounds


def test_no_flipped_bit_raises_anything_else(tmp_path):
    path, places = tmp_path / "metrics.csv", random.Random(0)
    filled(path, 4)
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        content[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        rows, problems = parse_rows(bytes(content))
        assert problems or rows


@pytest.mark.parametrize("at", ["line", "new column"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, at):
    table = filled(tmp_path / "metrics.csv", 2)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"cannot write .*metrics.csv: No space left on device"):
        table.append({"round": 3, **({"x": 1.0} if at == "new column" else {})})
    monkeypatch.undo()
    assert [row["round"] for row in read_csv(tmp_path / "metrics.csv")] == [1, 2]


def test_the_rows_that_it_was_given_stay_as_they_are(tmp_path):
    given = [{"round": 1, "a": 0.5}]
    CsvTable(tmp_path / "metrics.csv", given).append({"round": 2, "a": 0.25})
    assert given == [{"round": 1, "a": 0.5}]
