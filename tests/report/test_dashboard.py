"""The page as text: what is on it, what is left out and said; a browser opens it in ``tests/test_dashboard.py``."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fedgh.core.errors import DataError
from fedgh.metric.summary import closing_numbers
from fedgh.report import board
from fedgh.report.board import thinned
from fedgh.report.dashboard import write_dashboard
from tests.report.made import cell, make_run, observe, rows_of, write_run

FEDAVG, FEDGH = cell("table1", "cifar10_a0.1_k20"), cell("table1", "cifar10_a0.1_k20", aggregator="fedgh")
CONFLICT = {"conflict/ratio": 0.5}


class Page(HTMLParser):
    """Collects headings, rows of tables, text, and every address the page could load."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.headings, self.rows, self.loads, self.tags, self.words = [], [], [], [], []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.loads += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data", "poster")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        inside = self.get_starttag_text() or ""
        if inside.startswith(("<h1", "<h2", "<h3", "<h4")) and data.strip():
            self.headings.append(data.strip())
        if inside.startswith(("<style", "<script")):
            return
        self.words.append(data)
        if (
            self.rows
            and self.rows[-1]
            and data.strip()
            and self.tags[-1][0] in ("td", "th", "span", "line", "small", "br")
        ):
            self.rows[-1][-1] += data

    def of(self, kind):
        return [attrs for _, attrs in self.tags if kind in attrs.get("class", "").split()]


@pytest.fixture
def runs_dir(tmp_path):
    for of in (FEDAVG, FEDGH):
        for seed in (1, 2):
            path = write_run(make_run(tmp_path / "runs", of, seed, accuracies=(0.25, 0.5 + seed / 100), row=CONFLICT))
            observe(path)
    return tmp_path / "runs"


def page_of(source, tmp_path):
    return Page(write_dashboard([source], tmp_path / "out"))


def test_every_part_is_there_and_nothing_is_loaded(runs_dir, tmp_path):
    page = page_of(runs_dir, tmp_path)
    assert page.headings[0] == "Dashboard: CIFAR-10"
    parts = ["Accuracy over rounds", "Conflict ratio over rounds", "Cosines over rounds", "Layers", "Over seeds"]
    assert [name for name in page.headings if name in parts] == parts
    assert "The paper's tables at preset quick" in page.headings
    assert page.headings[-1] == "Runs"
    assert len(page.of("lines")) == 2
    assert len(page.of("heat")) == 4  # cosines and layers of two groups
    assert page.loads
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.loads)
    assert not re.search(r"@import|url\((?!#)|https?://", page.text)
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "dashboard.html"]


def test_lines_are_means_over_seeds_with_their_spread(runs_dir, tmp_path):
    accuracy, conflict = (json.loads(chart["data-chart"]) for chart in page_of(runs_dir, tmp_path).of("lines"))
    mean, fedgh = accuracy["lines"]
    assert (mean["name"], fedgh["name"]) == ("Part, 2 seeds", "Part + Part, 2 seeds")
    assert (mean["rounds"], mean["values"]) == ([1, 2], [25.0, 51.5])
    spread = 100 * np.std([0.51, 0.52], ddof=1)
    np.testing.assert_allclose(mean["ends"], [[25, 51.5 - spread], [25, 51.5 + spread]], atol=0.01)
    assert conflict["lines"][0]["values"] == [50.0, 50.0]


def test_regressions_are_drawn_by_their_score_and_beside_others_in_a_chart_of_their_own(runs_dir, tmp_path):
    other = {"dataset._target_": "fedgh.dataset.diabetes.load"}
    made = [make_run(runs_dir, FEDAVG, seed, (-0.5, 0.25), row=CONFLICT, **other) for seed in (3, 4)]
    for run in made:
        rows = [{key.replace("/test/acc", "/test/r2"): value for key, value in row.items()} for row in run.rows]
        summary = {"rounds": run.summary["rounds"], **closing_numbers(rows, "r2")}
        write_run(dataclasses.replace(run, rows=rows, summary=summary))
    page = page_of(runs_dir, tmp_path)
    charts = [name for name in page.headings if name.endswith("over rounds")]
    assert charts[:3] == ["Accuracy over rounds", "r2 over rounds", "Conflict ratio over rounds"]
    accuracy, score, *_ = (json.loads(chart["data-chart"]) for chart in page.of("lines"))
    assert [line["values"] for line in accuracy["lines"]] == [[25.0, 51.5], [25.0, 51.5]]
    assert [line["values"] for line in score["lines"]] == [[-0.5, 0.25]], "no percentages"


def test_tables_of_groups_and_of_runs(runs_dir, tmp_path):
    page = page_of(runs_dir, tmp_path)
    assert ["Part", "2", "51.50 ± 0.71", "38.25 ± 0.35", ""] in page.rows
    runs = [row for row in page.rows if len(row) == 9][1:]
    assert [row[:5] for row in runs[:2]] == [
        ["Part", "1", "2 of 20", "finished", "51.00"],
        ["Part", "2", "2 of 20", "finished", "52.00"],
    ]
    assert len(runs) == 4
    assert {row[8] for row in runs} == {str(path) for path in runs_dir.iterdir()}


def test_a_group_is_hidden_by_its_switch_without_a_script(runs_dir, tmp_path):
    page = page_of(runs_dir, tmp_path)
    switches = {attrs["id"] for tag, attrs in page.tags if tag == "input"}
    assert switches == {"method-0", "method-1"}
    for switch in switches:
        kind, index = switch.split("-")
        assert f"body:has(#{switch}:not(:checked)) main [data-{kind}='{index}'] {{ display: none; }}" in page.text
        assert any(attrs.get(f"data-{kind}") == index for _, attrs in page.tags)


def test_unfinished_runs_are_drawn_and_named_but_not_averaged(runs_dir, tmp_path):
    half = make_run(tmp_path / "runs", FEDGH, 3, accuracies=(0.125,), row=CONFLICT)
    write_run(dataclasses.replace(half, summary={}))
    page = page_of(runs_dir, tmp_path)
    assert "1 of 5 runs are not finished" in "".join(page.words)
    assert len(page.of("thin")) == 2  # accuracy and conflict
    accuracy = json.loads(page.of("lines")[0]["data-chart"])
    assert [line["values"][0] for line in accuracy["lines"]] == [25.0, 25.0]
    row = next(row for row in page.rows if str(half.path) in row)
    assert row[1:5] == ["3", "1 of 20", "not finished", "12.50"]


def test_a_page_of_unfinished_runs_only(tmp_path):
    run = make_run(tmp_path / "runs", FEDAVG, accuracies=(0.125, 0.25))
    observe(write_run(dataclasses.replace(run, summary={})))
    write_run(dataclasses.replace(make_run(tmp_path / "runs", FEDAVG, 2), summary={}, rows=[]))
    page = page_of(tmp_path / "runs", tmp_path)
    assert "2 of 2 runs are not finished" in "".join(page.words)
    assert len(page.of("thin")) == 1
    assert len(page.of("heat")) == 2
    assert "No run has its rounds at hand." in "".join(page.words)  # of the conflict ratio


def test_an_unfinished_try_of_a_finished_run_is_not_shown(tmp_path):
    run = make_run(tmp_path / "runs", FEDAVG, name="whole")
    write_run(run)
    write_run(dataclasses.replace(run, path=tmp_path / "runs" / "try", summary={}, rows=rows_of((0.1,))))
    page = page_of(tmp_path / "runs", tmp_path)
    assert "not finished" not in "".join(page.words)
    assert not [row for row in page.rows if str(tmp_path / "runs" / "try") in row]


def test_jobs_that_failed_are_named(runs_dir, tmp_path):
    sweep = tmp_path / "runs" / "sweep"
    half = make_run(sweep, FEDGH, 3, accuracies=(0.125,), name="0")
    write_run(dataclasses.replace(half, summary={}))
    (sweep / ".jobs").mkdir()
    (sweep / "sweep.json").write_text("{}")
    for number in (0, 1):
        job = {"job": number, "overrides": ["seed=3"], "status": "failed", "error": f"broken <{number}>"}
        (sweep / ".jobs" / f"{number}.json").write_text(json.dumps({**job, "directory": f"elsewhere/{number}"}))
    page = page_of(runs_dir, tmp_path)
    assert f"job 1 of {sweep} failed before its first round: broken <1>" in "".join(page.words)
    assert next(row for row in page.rows if str(half.path) in row)[3] == "failed: broken <0>"


def test_several_versions_are_named(runs_dir, tmp_path):
    run = make_run(tmp_path / "runs", FEDGH, 3, row=CONFLICT)
    write_run(dataclasses.replace(run, provenance={"commit": "def456", "versions": {"torch": "2.11"}}))
    words = "".join(page_of(runs_dir, tmp_path).words)
    assert "these runs were made by several commits: abc123 (4 runs), def456 (1 run)" in words
    assert "versions of torch" not in words  # only one is known


def test_cells_of_two_configs_are_named_and_the_rest_is_shown(tmp_path):
    for seed, layout in ((3, "channels_first"), (4, "channels_last")):
        write_run(make_run(tmp_path / "runs", FEDGH, seed, memory_format=layout))
    page = page_of(tmp_path / "runs", tmp_path)
    assert "they are not averaged, and the cell is left out" in "".join(page.words)
    assert {"memory format channels_first", "memory format channels_last"} <= set(page.words)


def test_what_cannot_be_read_costs_only_itself(runs_dir, tmp_path):
    first, *_, second = sorted(runs_dir.iterdir())
    (first / "conflict" / "pairs" / "round_000002.parquet").write_bytes(b"PAR1 broken")
    (second / "config.yaml").write_text("{")
    page = page_of(runs_dir, tmp_path)
    words = "".join(page.words)
    assert "round_000002.parquet cannot be read" in words
    assert f"run {second} cannot be read" in words
    assert len(page.of("heat")) == 4


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no run below"):
        write_dashboard([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_tables_cosines_are_drawn_from_their_quantiles(tmp_path):
    quantiles = {f"conflict/cosine_{name}": value for name, value in (("median", 0.0), ("q25", -0.1), ("q75", 0.1))}
    quantiles |= {"conflict/cosine_q05": -0.3, "conflict/cosine_q95": 0.3}
    for of in (FEDAVG, FEDGH):
        write_run(make_run(tmp_path / "runs", of, row=quantiles))
    page = page_of(tmp_path / "runs", tmp_path)
    fans = [json.loads(chart["data-chart"]) for chart in page.of("lines")][1:]
    assert [fan["lines"][0]["ends"] for fan in fans] == [[[-0.1, -0.1], [0.1, 0.1]]] * 2
    assert not page.of("heat")
    assert "None of these runs has the tables of its layers" in "".join(page.words)


def test_runs_read_from_wandb_bring_their_histograms(tmp_path, monkeypatch):
    values = [0.0] * 64
    values[20] = 3.0
    run = dataclasses.replace(make_run(tmp_path, FEDAVG), cosines={1: values, 2: values, 3: [1.0]})
    monkeypatch.setattr("fedgh.report.dashboard.find_all", lambda sources: ([run], []))
    page = page_of(tmp_path, tmp_path)
    assert len(page.of("heat")) == 1


def test_many_groups_show_the_first_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "MOST_PICTURES", 2)
    for number in range(3):
        observe(write_run(make_run(tmp_path / "runs", FEDAVG, name=f"{number}", **{"partition.alpha": 1.0 + number})))
    page = page_of(tmp_path / "runs", tmp_path)
    assert len(page.of("heat")) == 4
    assert "".join(page.words).count("The first 2 of 3 groups; runs=<a part> shows others.") == 2


def test_layers_that_differ_between_seeds_are_those_of_the_first(tmp_path):
    observe(write_run(make_run(tmp_path / "runs", FEDAVG, 1)))
    observe(write_run(make_run(tmp_path / "runs", FEDAVG, 2)), layers=("other",))
    words = page_of(tmp_path / "runs", tmp_path).words
    assert "body" in words
    assert "other" not in words


def test_long_runs_are_thinned_evenly():
    assert thinned([3, 1]) == [3, 1]
    kept = thinned(list(range(1, 301)))
    assert (len(kept), kept[0], kept[-1]) == (60, 1, 300)
    assert set(np.diff(kept)) <= {5, 6}
