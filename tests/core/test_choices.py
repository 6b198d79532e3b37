"""What there is to choose from is read as text: complete, a line each, packages of other people among it."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from fedgh.cli import list as command
from fedgh.core import choices
from fedgh.core.configs import CONFIG_DIR
from fedgh.core.errors import ConfigurationError

GROUPS = sorted(choices.groups())


@pytest.mark.parametrize("group", GROUPS)
def test_every_yaml_of_a_group_has_a_line(group):
    found = choices.choices(group)
    assert {choice.name for choice in found} >= {path.stem for path in (CONFIG_DIR / group).glob("*.yaml")}
    assert [choice.name for choice in found if not choice.summary] == []
    for choice in found:
        assert f"  {choice.name} " in choices.listing(group)


def test_a_choice_may_be_in_a_folder_of_its_group():
    names = [choice.name for choice in choices.choices("experiment")]
    assert "leaderboard/sampled" in names
    assert "cifar10" in names


def test_every_group_says_what_it_decides():
    assert {"algorithm", "dataset", "hydra/launcher"} <= set(GROUPS)
    assert [name for name, said in choices.groups().items() if not said] == []
    assert choices.groups()["algorithm"] == "what a client computes"


@pytest.mark.parametrize("group", ["algorithm", "aggregator"])
def test_every_method_of_ours_has_a_purpose_that_we_know(group):
    assert {
        choice.name: choice.purpose for choice in choices.choices(group) if choice.purpose not in choices.PURPOSES
    } == {}


def test_a_summary_is_the_modules_own_or_the_yamls():
    by_name = {choice.name: choice for choice in choices.choices("aggregator")}
    assert by_name["krum"].summary == "Krum and Multi-Krum: the updates with the closest neighbors."
    assert by_name["ida"].summary.startswith("Inverse distance aggregation")  # geometric_median.py holds it
    assert by_name["clipped"].purpose == "on top of any rule"


def test_purposes_come_in_our_order_and_what_names_none_comes_last():
    made = [choices.Choice("algorithm", str(i), "", p) for i, p in enumerate(["", "mine", "fairness", "client drift"])]
    assert list(choices.by_purpose(made)) == ["client drift", "fairness", "mine", "others"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that brings one method, and cannot be imported."""
    folder = tmp_path / "my_paper"
    (folder / "configs" / "algorithm").mkdir(parents=True)
    (folder / "algorithm").mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "algorithm" / "mine.py").write_text('"""Mine: a method of my own."""\n')
    (folder / "configs" / "algorithm" / "mine.yaml").write_text("_target_: my_paper.algorithm.mine.Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = types.SimpleNamespace(name="my_paper", value="my_paper.configs")
    monkeypatch.setattr(choices, "entry_points", lambda group: [entry] if group == "fedgh.configs" else [])
    choices.folders.cache_clear()
    yield
    choices.folders.cache_clear()


@pytest.mark.usefixtures("package")
def test_installed_packages_are_listed_without_being_imported():
    mine = next(choice for choice in choices.choices("algorithm") if choice.name == "mine")
    assert (mine.summary, mine.purpose) == ("Mine: a method of my own.", "")
    assert "mine         Mine: a method of my own." in choices.listing("algorithm")


def test_a_group_that_there_is_not_is_refused_with_what_is_near():
    with pytest.raises(ConfigurationError, match=r"no group agregator \(did you mean aggregator\?\)"):
        choices.choices("agregator")


@pytest.mark.parametrize(
    ("word", "group"),
    [("algorithms", "algorithm"), ("dataset", "dataset"), ("launchers", "hydra/launcher"), ("shapes", "shapes")],
)
def test_a_group_may_be_said_in_the_plural(word, group):
    assert command.singular(word) == group


@pytest.mark.parametrize(
    ("words", "status", "says"), [([], 0, "algorithm "), (["algorithm"], 0, "fedprox"), (["x"], 2, "")]
)
def test_the_command_answers(monkeypatch, capsys, words, status, says):
    monkeypatch.setattr(sys, "argv", ["fedgh-list", *words])
    if status:
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == status
        assert capsys.readouterr().err.startswith("error: there is no group x")
    else:
        command.main()
        assert says in capsys.readouterr().out


def test_nothing_heavy_is_loaded():
    code = (
        "import sys; from fedgh.cli import list as command; sys.argv = ['fedgh-list', 'algorithms']; command.main();"
        "print([name for name in ('torch', 'hydra', 'numpy', 'fedgh.algorithm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_has_every_choice_by_purpose(monkeypatch, capsys):
    from fedgh.config import entry

    monkeypatch.setattr(sys, "argv", ["fedgh-train", "--help"])
    entry.launch(lambda cfg: None, "train")
    text = capsys.readouterr().out
    for group in GROUPS:
        for path in (Path(CONFIG_DIR) / group).glob("*.yaml"):
            assert f" {path.stem} " in text
    assert text.index("client drift:") < text.index("personal models:")
