"""Where a run's numbers go: each round once, also after a kill in the middle of a line."""

import logging
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from fedgh.tracking.recorder import CsvTable, Recorder, Row, _cosine_bins, read_csv


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
    filled(path, 4)
    table = CsvTable(path, first_round=3)
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
        assert [row["round"] for row in CsvTable(path, first_round=3).rows] == [1, 2]
    path.write_bytes(whole)
    assert len(read_csv(path)) == 3


def test_a_file_cut_in_its_header(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,glo")
    table = CsvTable(path)
    table.append({"round": 1, "global/test/acc": 0.5})
    assert read_csv(path) == [{"round": 1, "global/test/acc": 0.5}]


def test_values_keep_every_bit(tmp_path):
    numbers = random.Random(0)
    values = [numbers.uniform(-1, 1) * 10 ** numbers.randint(-30, 30) for _ in range(200)]
    table = CsvTable(tmp_path / "metrics.csv")
    for t, value in enumerate(values, 1):
        table.append({"round": t, "x": value})
    assert [row["x"] for row in read_csv(tmp_path / "metrics.csv")] == values


class Broken:
    """A logger out of reach."""

    def log_metrics(self, metrics, step):
        raise ConnectionError("no route to host")

    def finalize(self, status):
        self.status = status


class Listening:
    def __init__(self):
        self.seen = []

    def log_metrics(self, metrics, step):
        self.seen.append((step, metrics))

    def finalize(self, status):
        self.status = status


def test_a_logger_that_fails_is_reported_and_the_others_go_on(tmp_path, caplog):
    listening = Listening()
    recorder = Recorder(tmp_path, [Broken(), listening])
    with caplog.at_level(logging.WARNING, "fedgh"):
        recorder.record(Row(1, {"global/test/acc": 0.5}))
    assert "Broken did not take round 1: no route to host" in caplog.text
    assert listening.seen == [(1, {"global/test/acc": 0.5})]
    assert read_csv(tmp_path / "metrics.csv") == [{"round": 1, "global/test/acc": 0.5}]
    recorder.close("failed")
    assert listening.status == "failed"
    assert recorder.wandb_id == ""


def test_cosines_are_binned_on_one_axis():
    counts, edges = _cosine_bins(np.array([-1.0, -0.5, 0.0, 0.999, 1.0]))
    assert (edges[0], edges[-1], len(counts)) == (-1.0, 1.0, 64)
    assert counts.sum() == 5
    assert counts[-1] == 2
    assert _cosine_bins(np.array([]))[0].sum() == 0


class Drawing:
    """What makes a figure, and counts how often it is asked to."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        from matplotlib.figure import Figure

        self.count += 1
        return Figure(figsize=(2, 1))


def test_pictures_are_drawn_once_and_only_where_a_logger_takes_them(tmp_path):
    from pytorch_lightning.loggers import TensorBoardLogger

    pytest.importorskip("tensorboard")
    draw = Drawing()
    Recorder(tmp_path, [Listening()]).record(Row(1, figures={"a": draw}))
    assert draw.count == 0
    loggers = [TensorBoardLogger(tmp_path, name=name, version="") for name in ("one", "two")]
    recorder = Recorder(tmp_path, [Listening(), *loggers])
    recorder.record(Row(2, figures={"a": draw}))
    assert draw.count == 1
    recorder.close()


@pytest.mark.parametrize(("from_round", "count"), [(2, 1), (3, 0)])
def test_wandb_gets_no_picture_of_a_round_that_it_has(tmp_path, from_round, count):
    recorder, draw = Recorder(tmp_path, []), Drawing()
    sent = []
    recorder.loggers = [fake_wandb(sent)]
    recorder._wandb_from = from_round
    recorder.record(Row(2, {"conflict/ratio": 0.5}, figures={"a": draw}))
    assert draw.count == count
    assert [(step, content["a"].image.size) for step, content in sent] == [(2, (200, 100))] * count


def fake_wandb(sent):
    from pytorch_lightning.loggers import WandbLogger

    logger = WandbLogger.__new__(WandbLogger)
    logger._experiment = SimpleNamespace(log=lambda content, step: sent.append((step, content)), id="x")
    return logger


def test_a_picture_that_fails_costs_only_itself(tmp_path, caplog):
    def broken():
        raise ValueError("no colours")

    recorder, sent = Recorder(tmp_path, []), []
    recorder.loggers = [fake_wandb(sent)]
    with caplog.at_level(logging.WARNING, "fedgh"):
        recorder.record(Row(1, {"conflict/ratio": 0.5}, figures={"broken": broken, "fine": Drawing()}))
    assert "picture broken of round 1 was not drawn: no colours" in caplog.text
    assert sent[0][1].keys() == {"round", "conflict/ratio", "fine"}


def test_tensorboard_takes_metrics_histograms_and_figures(tmp_path):
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from matplotlib.figure import Figure
    from pytorch_lightning.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
    recorder = Recorder(tmp_path, [logger])
    for t in (1, 2):
        recorder.record(Row(t, {"conflict/ratio": t / 2}, {"conflict/cosine": np.array([-0.5, 0.5])}, {}))
    recorder.record(Row(3, {}, {}, {"conflict/cosine_matrix": Figure}))
    recorder.close()
    events = event_file.EventAccumulator(str(tmp_path / "tensorboard"), {"histograms": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("conflict/ratio")] == [(1, 0.5), (2, 1.0)]
    assert [e.step for e in events.Histograms("conflict/cosine")] == [1, 2]
    assert events.Histograms("conflict/cosine")[0].histogram_value.num == 2
    assert events.Tags()["images"] == ["conflict/cosine_matrix"]
