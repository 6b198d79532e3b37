"""The README's commands, as written: every one composes and passes validation; its links lead somewhere."""

import itertools
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from fedgh import config
from fedgh.cli import paper as reproduce

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^(fedgh-(?:train|replay|report|evaluate)\b[^#\n]*)", TEXT, flags=re.MULTILINE)


def jobs(command):
    """Return the overrides of every job of a command; a placeholder such as <folder> becomes a word."""
    words = shlex.split(re.sub(r"<[a-z ]+>", "placeholder", command))[1:]
    overrides = [word for word in words if not word.startswith("-")]
    if "-m" not in words:
        return [overrides]
    choices = [
        [f"{key}={value}" for value in values.split(",")] for key, values in (o.split("=", 1) for o in overrides)
    ]
    return [list(job) for job in itertools.product(*choices)]


def test_there_are_commands_of_every_kind():
    assert {command.split()[0] for command in COMMANDS} == {
        "fedgh-train",
        "fedgh-replay",
        "fedgh-report",
        "fedgh-evaluate",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes_and_is_valid(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # one command asks for a GPU
    name = command.split()[0].removeprefix("fedgh-")
    for overrides in jobs(command):
        composed = config.compose(overrides, name)
        if name == "train":
            config.validate(composed)


@pytest.mark.parametrize("command", re.findall(r"^fedgh-paper ([^#\n]*)", TEXT, flags=re.MULTILINE))
def test_a_command_selects_cells(command):
    request = reproduce.read(shlex.split(command.replace("<folder>", "placeholder")))
    assert request.cells
    config.validate(config.compose([*request.cells[0].overrides, *request.extra]))


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_two_commands_are_make_targets(target):
    assert f"$ make {target} " in TEXT
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http|#)[^)#]+)", TEXT))))
def test_a_link_leads_to_a_file(link):
    assert (ROOT / link).exists()


def test_ci_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_text_set_of_the_recipe_is_complete():
    """One file and three lines of yaml: what a newcomer copies runs."""
    from fedgh.config.build import build_model, try_model
    from fedgh.core.flat import FlatModel

    recipe = TEXT[TEXT.index("**A data set**") :]
    code = textwrap.dedent(recipe.split("```python\n")[1].split("   ```")[0])
    namespace = {"__name__": "messages"}
    exec(code, namespace)
    dataset = namespace["load"](num_tokens=1000, length=8)
    factory = config.build(config.compose(["model=embedding_bag"]).model)
    model = FlatModel(build_model(factory, dataset))
    assert try_model(model, dataset, "embedding_bag").shape == (8, 2)
    assert dataset.input_shape == (8,)
