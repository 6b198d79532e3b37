"""A package of one's own: made by one command, found by every other, tested by its own tests."""

import os
import subprocess
import sys

import pytest

from fedgh.cli import new


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A new package, and what an installation of it would leave on the path."""
    folder = new.create("my_paper", tmp_path)
    installed = tmp_path / "site" / "my_paper-0.0.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my_paper\nVersion: 0.0.1\n")
    (installed / "entry_points.txt").write_text("[fedgh.configs]\nmy_paper = my_paper.configs\n")
    places = [str(folder / "src"), str(installed.parent)]
    for place in places:
        monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")]))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_paper"]:
        del sys.modules[name]


def test_what_it_brings_is_found_by_its_name(package, cli):
    small = ["num_rounds=1", "partition.num_clients=4", "logger=csv", "callback=none"]
    answer = cli("algorithm=my_method", "aggregator=my_rule", "algorithm.damping=0.5", *small)
    assert answer.code == 0
    assert "_target_: my_paper.my_method.MyMethod" in (answer.run_dir / "config.yaml").read_text()
    assert "trust=[my_paper]" in answer.out  # the command that goes on with it
    again = cli("algorithm=my_methd", *small)
    assert again.code == 2
    assert "did you mean my_method?" in again.err


def test_nothing_of_ours_is_named_in_it_but_fedgh(package):
    text = "".join(path.read_text() for path in package.rglob("*") if path.is_file())
    assert "$" not in text
    assert "NAME" not in text


@pytest.mark.slow
def test_its_own_tests_pass(package):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=package, capture_output=True, text=True)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "says"), [("My-Paper", "small letters"), ("class", "small letters"), ("torch", "another package")]
)
def test_names_that_cannot_be(name, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        new.create(name, tmp_path)


def test_a_folder_that_is_there_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_paper").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedgh-new", "my_paper"])
    with pytest.raises(SystemExit, match="2"):
        new.main()
    assert "is there already" in capsys.readouterr().err
