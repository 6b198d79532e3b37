"""Every notebook runs from top to bottom, and keeps the outputs of a run that names no folder of its machine."""

import ast
import json
import re
from pathlib import Path

import pandas
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_in_order_and_hold_no_absolute_path(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    for text in map("".join, texts):
        assert not re.search(r"(?<![\w./])/\w+/[\w./-]+", text), text


def shown(source, scope):
    """Run a cell and return what Jupyter would show of its last expression, as text."""
    tree = ast.parse(source.replace("%matplotlib inline\n", ""))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    return None if last is None else repr(eval(compile(ast.Expression(last.value), "cell", "eval"), scope))


def test_the_numbers_of_the_papers_tables_are_those_of_the_kept_report(monkeypatch):
    """Notebook 3 quotes ``results/paper/paper_tables.csv``: what it shows is what that file says today."""
    path = next(path for path in NOTEBOOKS if path.stem == "03_paper_tables")
    monkeypatch.chdir(path.parents[1])
    scope, compared = {}, 0
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            with pandas.option_context("display.max_columns", 20, "display.width", 80):  # as in a notebook
                now = shown("".join(cell["source"]), scope)
            for output in cell["outputs"]:
                text = "".join(output.get("data", {}).get("text/plain", ""))
                if text and not text.startswith("<Figure"):
                    assert text == now
                    compared += 1
    assert compared == 3
    assert "24.12" in path.read_text()  # the first number of the README's table
