"""W&B's offline files, written here record by record."""

import json
import struct

import pytest

from fedgh.tracking.offline import history, last_round, offline_files

BLOCK = 32768


def encode(*payloads):
    """Write LevelDB's log format: 32 KiB blocks of fragments (full 1, first 2, middle 3, last 4)."""
    data = bytearray(b"\x00" * 7)
    for payload in payloads:
        rest, first = payload, True
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += b"\x00" * left
                continue
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if not rest else 2) if first else (3 if rest else 4)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not rest:
                break
    return bytes(data)


def row(**values):
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    for key, value in values.items():
        item = record.history.item.add()
        if "/" in key:
            item.key = key
        else:
            item.nested_key.append(key)
        item.value_json = json.dumps(value)
    return record.SerializeToString()


def other():
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    record.run.run_id = "abc"
    return record.SerializeToString()


@pytest.fixture
def run_dir(tmp_path):
    def write(*payloads, run_id="abc", stamp="20260101_000000", cut=None):
        folder = tmp_path / "wandb" / f"offline-run-{stamp}-{run_id}"
        folder.mkdir(parents=True)
        (folder / f"run-{run_id}.wandb").write_bytes(encode(*payloads)[:cut])
        return tmp_path

    return write


def test_rows_in_order_other_records_left_out(run_dir):
    (path,) = offline_files(run_dir(other(), row(round=1, **{"a/b": 0.5}), other(), row(round=2)), "abc")
    assert list(history(path)) == [{"round": 1, "a/b": 0.5}, {"round": 2}]


@pytest.mark.parametrize("size", [BLOCK - 80, BLOCK - 60, BLOCK - 40, 3 * BLOCK, 100_000])
def test_records_across_blocks(run_dir, size):
    (path,) = offline_files(run_dir(row(round=1, text="x" * size), row(round=2), row(round=3)), "abc")
    rows = list(history(path))
    assert [r["round"] for r in rows] == [1, 2, 3]
    assert len(rows[0]["text"]) == size


def test_every_filling_of_the_first_block(run_dir):
    """The end of a block may be too short for a header; then it is padding."""
    for number, size in enumerate(range(BLOCK - 70, BLOCK - 20)):
        folder = run_dir(row(round=1, text="x" * size), row(round=2), run_id=f"r{number}")
        assert last_round(folder, f"r{number}") == 2


def test_a_file_cut_by_a_kill_gives_what_is_whole(run_dir):
    payloads = [row(round=t, text="x" * 500) for t in (1, 2, 3)]
    whole = len(encode(*payloads))
    second = len(encode(*payloads[:2]))
    for number, cut in enumerate((second, second + 3, second + 7, second + 100, whole - 1)):
        assert last_round(run_dir(*payloads, run_id=f"r{number}", cut=cut), f"r{number}") == 2
    assert last_round(run_dir(*payloads, run_id="none", cut=0), "none") == -1


def test_the_last_round_over_all_files_of_one_run(run_dir):
    run_dir(row(round=1), row(round=2), stamp="20260101_000000")
    run_dir(row(round=3), stamp="20260101_000100")
    folder = run_dir(row(round=9), run_id="another")
    assert [p.parent.name[12:27] for p in offline_files(folder, "abc")] == ["20260101_000000", "20260101_000100"]
    assert last_round(folder, "abc") == 3
    assert last_round(folder, "unknown") == -1
