import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from fedgh.cli import report as summarize
from fedgh.core.command import resume_command
from fedgh.core.errors import ConfigurationError, DataError
from fedgh.partition.base import Partition
from fedgh.report.page import write_page
from fedgh.storage.run import open_run
from fedgh.storage.tables import write_rows
from fedgh.tracking.recorder import CsvTable

PICTURES = {"rounds", "partition", "sorted_cosines", "cosine_history", "layers", "cosine_matrix", "projections", "harm"}


@pytest.fixture
def run_dir(tmp_path):
    """A run of three clients and two rounds, of three that were asked for."""
    run = tmp_path / "run <1>"
    run.mkdir()
    groups = ("server_optimizer", "partition", "model", "sampler", "executor")
    settings = {
        "name": "FedAvg + FedGH on digits",
        "num_rounds": 3,
        "seed": 7,
        "algorithm": {"_target_": "fedgh.algorithm.fedavg.FedAvg", "local_epochs": 5},
        "aggregator": {"_target_": "fedgh.aggregator.fedgh.FedGH"},
        "dataset": {"_target_": "fedgh.dataset.digits.digits"},
        **{group: {"_target_": f"fedgh.{group}.part.Part"} for group in groups},
    }
    OmegaConf.save(OmegaConf.create(settings), run / "config.yaml")
    (run / "summary.json").write_text(json.dumps({"rounds": 2, "final/acc": 0.625}))
    (run / "provenance.json").write_text(json.dumps({"commit": "abc123", "versions": {"torch": "2.11"}}))
    table = CsvTable(run / "metrics.csv")
    for number, accuracy in ((1, 0.5), (2, 0.625)):
        metrics = {"global/test/acc": accuracy, "conflict/ratio": 1 / 3, "conflict/label_distance_correlation": -0.5}
        table.append({"round": number, **metrics, "time/train_seconds": 2.0, "time/aggregate_seconds": 0.5})
    labels, owners = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    Partition.from_owners(labels, 2, owners, 3, {"name": "hand"}).save(run / "partition.npz")
    return run


def observe(run):
    for number in (1, 2):
        pairs = {
            "first": np.array([0, 0, 1]),
            "second": np.array([1, 2, 2]),
            "cosine": np.array([-0.5, 0.0, 0.5]),
            "cosine_after": np.array([0.25, 0.0, 0.5]),
            "bent_first": np.array([1.0, 0, 0]),
            "bent_second": np.array([1.0, 0, 0]),
        }
        write_rows(run / "conflict" / "pairs", number, pairs)
        layers = {"layer": ["body", "head"], "ratio": [0.5, 0.25], "cosine_mean": [0.1, -0.1]}
        write_rows(run / "conflict" / "layers", number, layers)
        clients = {
            "client": [0, 1, 2],
            "cosine_mean": [-0.25, 0.0, 0.25],
            "removed_norm": [0.5, 0.25, 0.0],
            "gain": [1.5, 1.25, 1.0],
            "times_projected": [1.0, 1.0, 0.0],
            "times_projecting": [1.0, 1.0, 0.0],
        }
        write_rows(run / "conflict" / "clients", number, clients)
    losses = {"loss_before": [1.0, 1.0], "loss_mean": [1.5, 0.5], "loss_after": [0.75, 1.125]}
    write_rows(run / "conflict" / "harm", 1, {"client": [0, 2], **losses})


class Reader(HTMLParser):
    """Collects the text, the cells of every table row, and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.words, self.rows, self.loads, self.tags = [], [], [], []
        self.feed(text)
        self.text = " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.words.append(data)
        if self.rows:
            self.rows[-1].append(data)


def read(path):
    return Reader(path.read_text())


def test_a_watched_run_has_everything_on_one_page(run_dir, tmp_path):
    observe(run_dir)
    page = read(write_page(run_dir, tmp_path / "out"))
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == PICTURES
    assert len(page.loads) == len(PICTURES)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.loads)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search("https?:", re.sub(r"base64,[^\"]*", "", (tmp_path / "out" / "report.html").read_text()))
    for text in ("FedAvg + FedGH on digits, seed 7", "62.5%", "33.3%", "2 of 3", "5.0 s", "abc123", "-0.50 on average"):
        assert text in page.text
    assert "algorithm.local_epochs: 5" in page.text
    assert "run <1>" in page.text  # escaped
    assert "Not on this page" not in page.text


def test_the_table_of_clients_by_hand(run_dir, tmp_path):
    observe(run_dir)
    page = read(write_page(run_dir, tmp_path / "out"))
    (head,) = [row for row in page.rows if row[:1] == ["client"]]
    rows = {row[0]: dict(zip(head, row, strict=False)) for row in page.rows if row and row[0] in ("0", "1", "2")}
    assert rows["0"] == {
        "client": "0",
        "samples": "2",
        "most of": "0 (100%)",
        "label entropy (bits)": "0.00",
        "rounds": "2",
        "mean cosine": "-0.25",
        "removed": "0.50",
        "coefficient": "1.50",
        "projected": "2",
        "projecting": "2",
        "change of loss under the mean": "+0.500",
        "change of loss under FedGH": "-0.250",
    }
    assert rows["1"]["change of loss under FedGH"] == "–"
    assert rows["2"]["change of loss under FedGH"] == "+0.125"


def test_a_page_of_ten_thousand_clients_is_no_longer_than_one_of_two_hundred(run_dir, tmp_path):
    """Twenty of them a round; the table and the matrices have those whose updates opposed the others' most."""
    many, labels = 10_000, np.arange(20_000) % 10
    Partition.from_owners(labels, 10, np.arange(20_000) // 2, many, {"name": "hand"}).save(run_dir / "partition.npz")
    draw = np.random.default_rng(0)
    first, second = np.triu_indices(300, k=1)
    for number in (1, 2):
        ids = draw.permutation(many)[:300]
        cosine, bent = draw.uniform(-1, 1, len(first)), (draw.uniform(size=len(first)) < 0.5).astype(float)
        pairs = {"first": np.minimum(ids[first], ids[second]), "second": np.maximum(ids[first], ids[second])}
        bends = {"bent_first": bent, "bent_second": bent}
        write_rows(run_dir / "conflict" / "pairs", number, {**pairs, "cosine": cosine, "cosine_after": cosine, **bends})
        clients = {"client": ids, "cosine_mean": np.linspace(-1, 1, 300), "times_projected": np.arange(300.0)}
        write_rows(run_dir / "conflict" / "clients", number, clients)
    path = write_page(run_dir, tmp_path / "out")
    page = read(path)
    (head,) = [row for row in page.rows if row[:1] == ["client"]]
    rows = [dict(zip(head, row, strict=False)) for row in page.rows if len(row) >= len(head) and row[0].isdigit()]
    assert len(rows) == 200
    assert max(float(row["mean cosine"]) for row in rows) < -0.2
    assert "The 200 of 10,000 clients whose updates opposed the others' most." in page.text
    assert "The 200 of 10,000 clients that were projected most often." in page.text
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} >= {"partition", "cosine_matrix", "projections"}
    assert path.stat().st_size < 2_500_000


def test_a_half_finished_run_says_so(run_dir, tmp_path):
    page = read(write_page(run_dir, tmp_path / "out"))
    assert "not finished: 2 of 3 rounds" in page.text
    assert resume_command(run_dir) in page.text


def test_a_run_that_was_not_watched_says_what_is_missing(run_dir, tmp_path):
    page = read(write_page(run_dir, tmp_path / "out"))
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"rounds", "partition"}
    assert "observatory's tables. Runs with callback=default" in page.text
    assert "callback=harm_report tell" in page.text


def test_a_run_stopped_in_its_first_round(run_dir, tmp_path):
    for name in ("summary.json", "metrics.csv", "provenance.json", "partition.npz"):
        (run_dir / name).unlink()
    page = read(write_page(run_dir, tmp_path / "out"))
    for text in ("0 of 3 rounds", "no round is finished yet", "Who holds what", "provenance.json is missing"):
        assert text in page.text


def test_a_damaged_table_costs_only_its_part(run_dir, tmp_path):
    observe(run_dir)
    (run_dir / "conflict" / "layers" / "round_000002.parquet").write_bytes(b"half")
    page = read(write_page(run_dir, tmp_path / "out"))
    assert "round_000002.parquet cannot be read" in page.text
    assert "mean cosine" in page.text


def test_what_is_not_a_run_is_refused(run_dir, tmp_path):
    with pytest.raises(DataError, match=r"run=.*nowhere is not a directory; expected a run such as logs/train/runs"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no config\.yaml.*for a folder of runs type runs=<folder>"):
        open_run(tmp_path)
    (run_dir / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(DataError, match=r"config\.yaml lacks aggregator\._target_, algorithm\._target_, num_rounds"):
        open_run(run_dir)
    (run_dir / "config.yaml").write_text("- a list\n")
    with pytest.raises(DataError, match="cannot be read"):
        open_run(run_dir)


@pytest.mark.parametrize("given", [{"run": None, "runs": None}, {"run": "a", "runs": "b"}])
def test_the_report_wants_one_run_or_many(given):
    with pytest.raises(ConfigurationError, match=r"needs either run=.*or runs="):
        summarize.run(OmegaConf.create({**given, "paths": {"output_dir": "out"}}))


def test_the_entry_point_writes_the_page(run_dir, tmp_path, capsys):
    out = tmp_path / "out"
    summarize.run(OmegaConf.create({"run": str(run_dir), "runs": None, "paths": {"output_dir": str(out)}}))
    assert f"written to {out / 'report.html'}" in capsys.readouterr().out


def test_names_of_the_mean_do_not_repeat_its_curve(run_dir, tmp_path):
    from fedgh.report.page import _history

    observe(run_dir)
    same = SimpleNamespace(settings={"aggregator._target_": "fedgh.aggregator.mean.Mean"})
    table = {"cosine": np.array([0.5]), "cosine_after": np.array([0.5])}
    for number in (1, 2):
        write_rows(tmp_path / "pairs", number, table)
    assert len(_history(tmp_path / "pairs", [1, 2], same).axes) == 2  # one panel and its scale
