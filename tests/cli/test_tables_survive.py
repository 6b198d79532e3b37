"""What a run has recorded survives damage, cleaners and full disks; what was lost is said in one line."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from fedgh.storage.csv_table import read_csv
from fedgh.storage.tables import read_rounds
from fedgh.tracking import offline
from fedgh.tracking.recorder import Recorder
from tests.cli.test_train import QUIET, TINY, assert_same, final, straight_run, table

WATCHED = [*TINY, "logger=csv"]


def summary(run_dir):
    closing = json.loads((run_dir / "summary.json").read_text())
    return {name: value for name, value in closing.items() if "seconds" not in name}


@pytest.mark.parametrize(
    "how",
    ["removed", "flipped", *(pytest.param(h, marks=pytest.mark.slow) for h in ("emptied", "header lost", "rows lost"))],
)
def test_metrics_damaged_between_stop_and_resume_are_mended(cli, how):
    straight = straight_run(cli, *QUIET)
    run_dir = cli(*QUIET, "num_rounds=3").run_dir
    path = run_dir / "metrics.csv"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    flipped = content.replace(b"\n2,", b"\n\xf2,")
    damaged = {"emptied": b"", "flipped": flipped, "header lost": b"".join(lines[1:]), "rows lost": b"".join(lines[:2])}
    path.unlink() if how == "removed" else path.write_bytes(damaged[how])
    answer = cli(f"resume={run_dir}", "num_rounds=4")
    assert answer.code == 0, answer.err
    said = re.findall(r"metrics.csv was damaged in (.*); mended from its second copy", answer.out + answer.err)
    assert said == [
        {
            "emptied": "rounds 1 to 3 (it is empty)",
            "removed": "rounds 1 to 3 (it is missing)",
            "flipped": "round 2 (line 3 cannot be read)",
            "header lost": "rounds 1 to 3 (its header is lost)",
            "rows lost": "rounds 2 to 3",
        }[how]
    ]
    assert_same(run_dir, straight)
    assert summary(run_dir) == summary(straight)


def test_the_observatorys_tables_are_mended_too(cli):
    straight = straight_run(cli, *WATCHED)
    run_dir = cli(*WATCHED, "num_rounds=3").run_dir
    (run_dir / "conflict" / "pairs" / "round_000001.parquet").write_bytes(b"")
    shutil.rmtree(run_dir / "conflict" / "layers")
    answer = cli(f"resume={run_dir}", "num_rounds=4")
    assert answer.code == 0, answer.err
    said = answer.out + answer.err
    assert "conflict/pairs was damaged in round 1; mended" in said
    assert "conflict/layers was damaged in rounds 1 to 3; mended" in said
    for name in ("pairs", "layers", "clients"):
        assert read_rounds(run_dir / "conflict" / name) == [1, 2, 3, 4]
        for file in (run_dir / "conflict" / name).iterdir():
            assert file.read_bytes() == (straight / "conflict" / name / file.name).read_bytes()


def test_a_folder_of_tables_removed_while_the_run_goes_on(cli, monkeypatch, in_round, tmp_path):
    runs = tmp_path / "logs" / "train" / "runs"

    def remove():
        (run_dir,) = runs.iterdir()
        (run_dir / "metrics.csv").unlink()
        shutil.rmtree(run_dir / "conflict")

    straight = straight_run(cli, *WATCHED)
    in_round(monkeypatch, 3, remove)
    answer = cli(*WATCHED)
    assert answer.code == 0, answer.err
    assert "somebody has changed or removed" in answer.out + answer.err
    assert table(answer.run_dir) == table(straight)
    assert read_rounds(answer.run_dir / "conflict" / "pairs") == [3, 4]
    monkeypatch.undo()
    assert cli(f"resume={answer.run_dir}").code == 0
    assert read_rounds(answer.run_dir / "conflict" / "pairs") == [1, 2, 3, 4]


def wandb_rows(run_dir):
    import wandb

    wandb.teardown()
    (path,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    return [row for row in offline.history(path) if "round" in row]


def test_wandb_gets_the_numbers_of_a_round_whose_pictures_cannot_be_stored(cli, monkeypatch):
    """A cleaner empties the folder where W&B puts pictures before it stores them."""
    from wandb.sdk.data_types import _private

    observe = [*TINY, "logger.mode=offline", "num_rounds=3", "callback.observatory.every=1"]
    real, calls = Recorder.record, []

    def record(self, row):
        calls.append(row.round)
        if row.round == 2:
            shutil.rmtree(_private.MEDIA_TMP.name)
        real(self, row)
        Path(_private.MEDIA_TMP.name).mkdir(exist_ok=True)

    monkeypatch.setattr(Recorder, "record", record)
    answer = cli(*observe)
    assert (answer.code, calls) == (0, [1, 2, 3])
    rows, recorded = wandb_rows(answer.run_dir), read_csv(answer.run_dir / "metrics.csv")
    assert [row["round"] for row in rows] == [1, 2, 3], "a row each, although pictures are sent apart"
    for row, line in zip(rows, recorded, strict=True):
        assert {name: row[name] for name in line} == line
        assert "conflict/cosine._type" in row or "conflict/cosine" in row
    pictures = [any("sorted_cosines" in name for name in row) for row in rows]
    assert pictures == [True, False, True]
    assert "W&B did not take conflict/sorted_cosines of round 2" in answer.out + answer.err


def test_a_damaged_file_of_wandb_stops_no_resume(cli):
    run_dir = cli(*TINY, "logger.mode=offline", "num_rounds=2", "callback=none").run_dir
    wandb_rows(run_dir)
    (path,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    content = bytearray(path.read_bytes())
    content[content.index(b"global/test/acc") - 3 : content.index(b"global/test/acc") + 4] = b"\xff" * 7
    path.write_bytes(content)
    answer = cli(f"resume={run_dir}", "num_rounds=3")
    assert answer.code == 0, answer.err
    assert [row["round"] for row in read_csv(run_dir / "metrics.csv")] == [1, 2, 3]


def refuse_from(number):
    """Return a ``write_bytes`` that finds the disk full for files of a round."""
    real = Path.write_bytes

    def write_bytes(self, content):
        if number in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, content)

    return write_bytes


@pytest.mark.parametrize("what", ["checkpoint", "second copy", "metrics", "tables"])
def test_a_full_disk_is_one_line_with_the_command_to_go_on(cli, monkeypatch, what):
    straight = straight_run(cli, *WATCHED)
    with monkeypatch.context() as patch:
        if what == "checkpoint":
            real = torch.save

            def save(content, file):
                if content["server"]["round_index"] == 3:
                    cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0") from cause
                real(content, file)

            patch.setattr(torch, "save", save)
        elif what == "metrics":
            opened = Path.open

            def full(self, mode="r", *others, **settings):
                if self.name == "metrics.csv" and mode == "ab" and b"\n2," in self.read_bytes():
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return opened(self, mode, *others, **settings)

            patch.setattr(Path, "open", full)
        else:
            patch.setattr(Path, "write_bytes", refuse_from({"second copy": "03.zip", "tables": "03.parquet"}[what]))
        answer = cli(*WATCHED)
    assert answer.code == 2
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    file = {"checkpoint": "round_000003.ckpt", "metrics": "metrics.csv", "second copy": "round_000003.zip"}
    assert re.fullmatch(
        rf"error: cannot write .*{file.get(what, 'round_000003.parquet')}: No space left on device; free space there, "
        rf"then go on: fedgh-train resume={answer.run_dir}",
        line,
    )
    assert "Traceback" not in answer.err
    assert final(answer.run_dir).round_index == 2
    assert cli(f"resume={answer.run_dir}").code == 0
    assert_same(answer.run_dir, straight)
    assert not list(answer.run_dir.rglob("*.tmp"))


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(cli, monkeypatch, in_round):
    def fail():
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    in_round(monkeypatch, 2, fail)
    answer = cli(*QUIET)
    assert answer.code == 2
    assert "free space" not in answer.err
