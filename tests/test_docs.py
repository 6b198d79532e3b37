"""What ``docs/algorithms.md`` says of hooks and methods is complete, and its example runs."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from fedgh import config
from fedgh.algorithm.base import HOOKS, Algorithm
from fedgh.algorithm.fedavg import FedAvg
from fedgh.executor.sequential import SequentialExecutor
from fedgh.executor.vectorized import VectorizedExecutor
from fedgh.federation.round import first_state, run_round

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXT = (DOCS / "algorithms.md").read_text()
SHIPPED = sorted(path.stem for path in (ROOT / "configs" / "algorithm").glob("*.yaml"))


def rows(heading):
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if line[:3] == "| `"
    ]


def test_every_hook_is_in_the_table_with_its_arguments():
    found = {}
    for row in rows("The hooks"):
        name, arguments = re.fullmatch(r"`(\w+)\((.*)\)`", row[0]).groups()
        found[name] = arguments.split(", ")
    assert found == {name: list(inspect.signature(getattr(Algorithm, name)).parameters)[1:] for name in HOOKS}


def test_every_method_is_in_both_tables():
    assert {row[0].strip("`") for row in rows("All methods")} >= set(SHIPPED)
    page = (DOCS / "methods.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) >= set(SHIPPED)


def test_every_rule_is_in_its_table():
    """First cells name a rule or several."""
    cells = re.findall(r"^\| (`[^|]+) \|", (DOCS / "rules.md").read_text(), flags=re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {path.stem for path in (ROOT / "configs" / "aggregator").glob("*.yaml")} - named == set()


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_no_row_of_a_table_is_there_twice(page):
    """Merges of two who add a row leave both."""
    for table in re.findall(r"(?:^\|.*\n)+", (DOCS / page).read_text(), flags=re.MULTILINE):
        first = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
        assert sorted({cell for cell in first if first.count(cell) > 1}) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_the_table_names_every_setting(name):
    node = config.compose([f"algorithm={name}"]).algorithm
    plain = set(config.compose(["algorithm=fedavg"]).algorithm)
    line = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` "))
    assert [key for key in set(node) - plain if f"`{key}`" not in line] == []


def test_the_site_has_a_row_and_a_section_per_yaml():
    pytest.importorskip("mkdocs", reason="pip install 'fedgh[docs]'")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="methods.md"))
    text = hooks.on_page_markdown((DOCS / "methods.md").read_text(), page)
    assert "| Client drift | |" in text
    for path in (ROOT / "configs" / "algorithm").glob("*.yaml"):
        assert f"| [`{path.stem}`](#{path.stem}) | " in text
        assert f"## {path.stem} {{ #{path.stem} }}" in text
    assert "::: fedgh.algorithm.fedprox.FedProx" in text
    assert hooks.on_page_markdown("[`a.py`](../src/a.py) [b](b.md)", page) == "`a.py` [b](b.md)"
    assert hooks.on_page_markdown("![p](../results/p.png)", page) == "![p](results/p.png)"
    page.file.src_uri = "choices.md"
    assert "| `iid` | No skew: an equal random split. |" in hooks.on_page_markdown("<!-- choices partition -->", page)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'fedgh[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for page in tmp_path.rglob("*.html"):  # nothing is loaded from outside
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://(?!.*canonical)", page.read_text())


@pytest.fixture
def steady(monkeypatch):
    """The class of the example, in a module of its own."""
    module = types.ModuleType("steady")
    monkeypatch.setitem(sys.modules, "steady", module)
    exec(TEXT.split("```python\n")[1].split("```")[0], vars(module))
    return module.Steady


def test_the_example_runs(make, steady):
    """FedAvg to the bit at strength 0; the server's c is the mean of all clients' own; executors agree."""
    settings = yaml.safe_load(TEXT.split("```yaml\n")[1].split("```")[0])
    assert settings.pop("_target_") == "fedgh.algorithm.steady.Steady"
    assert settings.pop("defaults") == ["fedavg"]

    def play(method, executor=SequentialExecutor, **settings):
        algorithm = make.algorithm(method, lr=0.05, momentum=0.9, local_epochs=2, **settings)
        federation = make.federation(algorithm=algorithm, executor=executor, fraction=0.7)
        server = first_state(federation)
        for _ in range(3):
            server = run_round(federation, server).server
        return server

    end = play(steady, **settings)
    own = sum(state["own"] for state in end.clients.values()) / 3
    torch.testing.assert_close(end.memory["c"], own)
    assert own.abs().max() > 0
    together = play(steady, partial(VectorizedExecutor, width=2), **settings)
    torch.testing.assert_close(together.params, end.params, rtol=1e-4, atol=1e-6)
    assert torch.equal(play(steady, **{**settings, "strength": 0.0}).params, play(FedAvg).params)
    assert not torch.equal(end.params, play(FedAvg).params)
