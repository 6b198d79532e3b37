"""The workspace and the report as W&B would get them; nothing is sent."""

import json
import sys
from types import SimpleNamespace

import pytest

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.report import workspace as made
from fedgh.tracking.wandb_files import read_project
from tests.report.made import cell, make_run

pytest.importorskip("wandb_workspaces")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, within wandb-workspaces

FEDAVG, FEDGH = cell("table1", "cifar10_a0.1_k20"), cell("table1", "cifar10_a0.1_k20", aggregator="fedgh")
GROUPING = [
    {"section": "config", "name": "algorithm.value._target_"},
    {"section": "config", "name": "aggregator.value._target_"},
]


def spec_of(model):
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))


@pytest.fixture
def known_project(monkeypatch):
    """W&B as far as a report asks it when it is put together: the number of its project."""
    from wandb_workspaces.reports.v2 import interface

    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "7"}})


def test_the_workspace_has_a_section_a_subject():
    section = spec_of(made.workspace("me", "fedgh")._to_model())["section"]
    sections = section["panelBankConfig"]["sections"]
    assert [part["name"] for part in sections] == [
        "Accuracy",
        "Conflict",
        "Cosines over rounds",
        "Layers",
        "Cost",
        "Runs",
    ]
    assert all(part["panels"] for part in sections)
    (runs,) = section["runSets"]
    assert runs["grouping"] == GROUPING
    panel = sections[0]["panels"][0]
    assert panel["viewType"] == "Run History Line Plot"
    assert {"metrics": ["global/test/acc"], "xAxis": "round", "groupAgg": "mean", "groupArea": "stddev"}.items() <= (
        panel["config"].items()
    )
    assert sections[3]["panels"][0]["config"]["mediaKeys"] == ["conflict/layers"]
    assert sections[-1]["panels"][0]["viewType"] == "Run Comparer"


def test_the_report_shows_the_same_and_the_tables(known_project, tmp_path):
    runs = [make_run(tmp_path, of, seed) for of in (FEDAVG, FEDGH) for seed in (1, 2)]
    blocks = spec_of(made.report("me", "fedgh", runs)._to_model())["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert tuple(headings) == made.SECTIONS
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert [grid["runSets"][0]["grouping"] for grid in grids] == [GROUPING] * 5 + [[]]
    assert {grid["runSets"][0]["project"]["name"] for grid in grids} == {"fedgh"}
    (text,) = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert "## Over seeds" in text
    assert "### Table 1: CIFAR-10 and CIFAR-100" in text
    assert "50.00 ± 0.00 (2)" in text


def test_without_finished_runs_there_are_no_tables(known_project):
    assert made.tables([]) == []
    assert made.report("me", "fedgh", [])._to_model()


def of_wandb(run, **more):
    nested = {"algorithm": {"_target_": "fedgh.algorithm.fedavg.FedAvg"}, "_wandb": {"x": 1}}
    config = {key: value for key, value in run.settings.items() if not key.startswith("algorithm._t")} | nested
    return SimpleNamespace(config={**config, **more}, summary_metrics={**run.summary, "other": "x"}, url="https://w/1")


def test_runs_of_a_project_are_read_and_others_passed_over(tmp_path):
    run = make_run(tmp_path, FEDAVG)
    table = SimpleNamespace(config={"sweep": "x"}, summary_metrics={}, url="https://w/2")
    (read,) = read_project([table, of_wandb(run)])
    assert (read.settings["algorithm._target_"], read.summary) == ("fedgh.algorithm.fedavg.FedAvg", run.summary)
    assert read.finished
    assert read.rows == []


class Api:
    default_entity = "me"

    def __init__(self, runs=()):
        self.found, self.asked = runs, []

    def runs(self, path):
        self.asked.append(path)
        return self.found


@pytest.fixture
def saved(monkeypatch, known_project):
    """Catch what is saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    kept = []
    for kind, name in ((ws.Workspace, "workspace"), (wr.Report, "report")):
        monkeypatch.setattr(kind, "save", lambda self: kept.append(self) or self)
        monkeypatch.setattr(kind, "url", f"https://w/{name}")
    return kept


def test_both_are_saved_once(monkeypatch, tmp_path, saved):
    api = Api([of_wandb(make_run(tmp_path, FEDAVG))])
    monkeypatch.setattr("wandb.Api", lambda: api)
    assert made.publish("fedgh", None) == ("https://w/workspace", "https://w/report")
    assert api.asked == ["me/fedgh"]
    assert [type(item).__name__ for item in saved] == ["Workspace", "Report"]
    assert {(item.entity, item.project) for item in saved} == {("me", "fedgh")}
    made.publish("fedgh", "us")
    assert saved[-1].entity == "us"


@pytest.mark.parametrize("error", [OSError("no route\nto host"), ValueError("no such project")])
def test_what_wandb_refuses_is_said_in_one_line(monkeypatch, error):
    def refuse():
        raise error

    monkeypatch.setattr("wandb.Api", refuse)
    with pytest.raises(DataError, match=r"^project=fedgh could not be opened in W&B: no (route|such project)$"):
        made.publish("fedgh", None)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ConfigurationError, match=r'project=fedgh needs .*pip install "fedgh\[dashboard\]"'):
        made.publish("fedgh", None)
