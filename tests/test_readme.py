"""Commands of the README and of every page compose as written, links lead somewhere, and texts keep their size."""

import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from fedgh import config
from fedgh.cli import paper as reproduce
from fedgh.config.build import build_model, try_model
from fedgh.core import choices
from fedgh.core.flat import FlatModel
from fedgh.dataset.base import TensorDataset
from fedgh.task.base import PADDING

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
TEXT = PAGES["README.md"]
MARKDOWN = [
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md", "results/*.md", "results/fedlag/*.md", ".github/*.md")
    for path in ROOT.glob(pattern)
]
ALL = "\n".join(PAGES.values()).replace("\\\n", " ")  # commands of two lines


def commands(kinds):
    """Return the commands that stand on a line of their own, each once, but those that are abridged."""
    found = re.findall(rf"^(?:\$ )?(fedgh-(?:{kinds})\b[^#\n]*)", ALL, flags=re.MULTILINE)
    return sorted({command.strip() for command in found if " ... " not in command})


COMMANDS = commands("train|replay|report|evaluate|export|dashboard")


def jobs(command):
    """Return overrides of jobs that try every value of a command; a placeholder such as <folder> becomes a word."""
    words = shlex.split(re.sub(r"<[\w -]+>", "placeholder", command))[1:]
    overrides = [word for word in words if not word.startswith("-")]
    if "-m" not in words:
        return [overrides]
    values_of = [
        [f"{key}={value}" for value in values.split(",")]
        for key, values in (override.split("=", 1) for override in overrides)
        if "(" not in values  # what a search draws from
    ]
    return [[some[job % len(some)] for some in values_of] for job in range(max(map(len, values_of)))]


def test_there_are_commands_of_every_kind():
    assert {command.split()[0] for command in COMMANDS} == {
        "fedgh-train",
        "fedgh-replay",
        "fedgh-report",
        "fedgh-evaluate",
        "fedgh-export",
        "fedgh-dashboard",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes_and_is_valid(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # one command asks for a GPU
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    name = command.split()[0].removeprefix("fedgh-")
    for overrides in jobs(command):
        composed = config.compose(overrides, name)
        if name == "train":
            config.validate(composed)


@pytest.mark.parametrize("command", commands("paper"))
def test_a_command_selects_cells(command):
    request = reproduce.read(shlex.split(command.replace("<folder>", "placeholder"))[1:])
    assert request.cells
    config.validate(config.compose([*request.cells[0].overrides, *request.extra]))


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_two_commands_are_make_targets(target):
    assert f"$ make {target} " in TEXT
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in MARKDOWN))
def test_links_lead_to_a_file_and_to_a_heading(page):
    text = (ROOT / page).read_text()
    for link, anchor in re.findall(r"\]\(((?!https?:|#)[^)#\s]+)(#[^)]*)?\)", text):
        target = ROOT / page
        target = target.parent / link
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor[1:] in anchors(target.read_text()), link + anchor


def anchors(text):
    """Return the names that headings get, as the site and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in MARKDOWN))
def test_lines_are_short(page):
    """But for rows of tables, which cannot be broken, and what a command has printed."""
    text = re.sub(r"^```console\n.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [line[:60] for line in text.splitlines() if len(line) > 200 and not line.lstrip().startswith("|")] == []


def test_the_readme_is_short():
    prose = re.sub(r"^(?:```.*?^```|\|.*?)$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(prose.split()) < 700
    assert len(TEXT.split()) < 1100  # lists of methods grow


def test_the_readme_names_every_method():
    for group in ("algorithm", "aggregator"):
        missing = [choice.name for choice in choices.choices(group) if f"`{choice.name}`" not in TEXT]
        assert missing == []


def test_ci_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def recipe(heading):
    """Return what the example below a heading of the page of recipes defines."""
    section = PAGES["docs/own.md"].split(f"## {heading}\n")[1]
    namespace = {"__name__": "recipe"}
    exec(section.split("```python\n")[1].split("```")[0], namespace)
    return namespace


def test_the_text_set_of_the_recipe_is_complete():
    """One file and three lines of yaml: what a newcomer copies runs."""
    dataset = recipe("A data set")["load"](num_tokens=1000, length=8)
    factory = config.build(config.compose(["model=embedding_bag"]).model)
    model = FlatModel(build_model(factory, dataset))
    assert try_model(model, dataset, "embedding_bag").shape == (8, 2)
    assert dataset.input_shape == (8,)


def test_the_task_of_the_recipe_is_complete():
    """Its loss by hand: outputs are logarithms of rates, exp(0) - 1 * 0 = 1 and exp(log 2) - 2 log 2."""
    task = recipe("A task")["Count"]()
    outputs, targets = torch.tensor([[0.0], [2.0]]).log1p(), torch.tensor([1.0, 3.0])
    outputs[1] = torch.tensor(2.0).log()
    by_hand = (1 + 2 - 3 * math.log(2)) / 2
    assert task.loss(outputs, targets).item() == pytest.approx(by_hand)
    padded = torch.cat([outputs, torch.ones(1, 1)]), torch.tensor([1.0, 3.0, PADDING])
    assert task.loss(*padded).item() == pytest.approx(by_hand)
    assert task.scores(*padded)["exact"].tolist() == [1, 0, 0]
    assert task.strata(torch.tensor([0.0, 1.0, 7.0])).tolist() == [0, 1, 2]
    images, counts = torch.rand(6, 4), torch.arange(6.0)
    dataset = TensorDataset("counts", images, counts, images, counts, task)
    assert (dataset.num_classes, dataset.task.fault(counts.long(), 6) is None) == (3, False)
