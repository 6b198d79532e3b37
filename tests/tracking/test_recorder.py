"""Where a run's numbers go: each round once, and one destination that fails costs no other anything."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgh.tracking.recorder import Recorder, Row, read_csv
from fedgh.tracking.wandb_run import bin_cosines


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
    counts, edges = bin_cosines(np.array([-1.0, -0.5, 0.0, 0.999, 1.0]))
    assert (edges[0], edges[-1], len(counts)) == (-1.0, 1.0, 64)
    assert counts.sum() == 5
    assert counts[-1] == 2
    assert bin_cosines(np.array([]))[0].sum() == 0


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
    pictures = [(step, content["a"].image.size) for step, content in sent if "a" in content]
    assert pictures == [(2, (200, 100))] * count
    assert [content for _, content in sent[:1]] == [{"round": 2, "conflict/ratio": 0.5}] * count


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
    assert [list(content) for _, content in sent] == [["round", "conflict/ratio"], ["fine"]]


@pytest.mark.parametrize("what", ["figures", "histograms", "tables"])
def test_what_wandb_does_not_take_costs_neither_numbers_nor_the_others(tmp_path, caplog, monkeypatch, what):
    """As when a cleaner empties the folder where W&B puts pictures before it stores them."""
    import wandb

    def refuse(*_, **__):
        raise FileNotFoundError("/gone/media")

    part = {"figures": "Image", "histograms": "Histogram", "tables": "Table"}[what]
    monkeypatch.setattr(wandb, part, refuse)
    recorder, sent = Recorder(tmp_path, []), []
    recorder.loggers = [fake_wandb(sent)]
    row = Row(1, {"conflict/ratio": 0.5}, {"h": np.zeros(3)}, {"f": Drawing()}, {"t": {"client": [1]}})
    with caplog.at_level(logging.WARNING, "fedgh"):
        recorder.record(row)
    lost = {"figures": "f", "histograms": "h", "tables": "t"}[what]
    assert sent[0] == (1, {"round": 1, "conflict/ratio": 0.5})
    assert [list(content) for _, content in sent[1:]] == [[name] for name in "hft" if name != lost]
    assert {step for step, _ in sent} == {1}
    assert [r.message for r in caplog.records] == [f"W&B did not take {lost} of round 1: /gone/media"]


def test_a_metric_is_a_float_or_left_out(tmp_path, caplog):
    recorder = Recorder(tmp_path, [])
    metrics = {"a": np.float32(0.5), "b": torch.tensor(2), "c": True, "d": "high", "e": torch.ones(2), "f": None}
    with caplog.at_level(logging.WARNING, "fedgh"):
        recorder.record(Row(1, metrics))
    assert read_csv(tmp_path / "metrics.csv") == [{"round": 1, "a": 0.5, "b": 2.0, "c": 1.0}]
    assert [r.message.split(":")[1] for r in caplog.records] == [
        " d is not a number but a str; left out",
        " e is not a number but a Tensor; left out",
        " f is not a number but a NoneType; left out",
    ]


def test_a_checkpoint_names_a_copy_of_what_came_since_the_one_before(tmp_path):
    recorder = Recorder(tmp_path, [])
    assert recorder.keep(0) == ()
    for t in (1, 2, 3):
        recorder.record(Row(t, {"x": t / 3}))
    assert recorder.keep(2) == (2,), "round 3 was abandoned"
    assert recorder.keep(2) == (2,)
    recorder = Recorder(tmp_path, [], first_round=3, kept=(2,))
    assert [row["round"] for row in recorder.table.rows] == [1, 2]
    recorder.record(Row(3, {"x": 1.0}))
    assert recorder.keep(3) == (2, 3)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == ["round_000002.zip", "round_000003.zip"]


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
