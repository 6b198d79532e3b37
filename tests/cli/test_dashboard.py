"""``fedgh-dashboard`` as a user meets it: from a real run, in a real browser, with and without W&B."""

import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from PIL import Image

from fedgh.cli import dashboard
from fedgh.core.errors import DataError
from fedgh.report import workspace
from fedgh.tracking import offline
from tests.report.made import cell, make_run, observe, write_run

CELLS = [cell("table1", "cifar10_a0.1_k20", aggregator=aggregator) for aggregator in ("mean", "fedgh")]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nor is the browser to call home
)
PROBE = """
<script>
  const tell = (name, value) => (document.documentElement.dataset[name] = value);
  const chart = document.querySelector("svg.lines");
  const box = chart.getBoundingClientRect();
  const there = { clientX: box.right - 20, clientY: box.top + 60 };
  const point = () => chart.dispatchEvent(new PointerEvent("pointermove", there));
  const shown = (part) => getComputedStyle(part).display !== "none";
  const seen = (selector) => [...document.querySelectorAll(selector)].filter(shown).length;
  point();
  tell("both", chart.parentElement.querySelector(".tip").innerText);
  tell("before", seen("main [data-method='1']"));
  document.getElementById("method-1").click();
  point();
  tell("one", chart.parentElement.querySelector(".tip").innerText);
  tell("after", seen("main [data-method='1']"));
  tell("loaded", performance.getEntriesByType("resource").map((entry) => entry.name).join(" "));
</script>
"""


@pytest.fixture
def command(root_config, tmp_path, capsys):
    """Return ``command(*overrides)``: what is said to the user; the page goes to ``tmp_path / "out"``."""

    def run(*overrides):
        dashboard.run(root_config(f"paths.output_dir={tmp_path / 'out'}", *overrides, root="dashboard"))
        return capsys.readouterr()

    return run


@pytest.fixture
def sweep(tmp_path):
    """Two methods, three seeds, three alphas, twenty rounds; made up."""
    draw = np.random.default_rng(0)
    for of in CELLS:
        for seed in (1, 2, 3):
            for alpha in (0.05, 0.1, 1.0):
                curve = 0.9 - np.exp(-np.arange(1, 21) / 5) * draw.uniform(0.6, 0.8)
                name = f"{of.aggregator}_{seed}_{alpha}"
                more = {"row": {"conflict/ratio": 0.4 + 0.1 * alpha}, "partition.alpha": alpha}
                run = make_run(tmp_path / "runs", of, seed, curve.tolist(), name, **more)
                observe(write_run(run), draw.normal(-0.1, 0.3, (20, 190)).clip(-1, 1), ["conv1", "conv2", "fc", "head"])
    return tmp_path / "runs"


def browse(page, folder, *arguments):
    """Open a page in a browser of its own and return what that says."""
    if BROWSER is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome")
    profile = f"--user-data-dir={folder / 'profile'}"
    line = [BROWSER, *QUIET, profile, "--enable-logging=stderr", *arguments, page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(folder / "profile")
    return done


@pytest.mark.slow  # the next one notices what is missing, this one what is not seen
def test_the_page_of_a_sweep_in_a_browser(command, sweep, tmp_path):
    said = command(f"runs={sweep}")
    page = tmp_path / "out" / "dashboard.html"
    assert said.out == f"written to  {page}\n"
    picture = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1280,2600")
    with Image.open(picture) as image:
        assert image.size == (1280, 2600)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert len(colours) > 500  # a blank page has one, text alone some dozen greys
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # both methods


def test_the_browser_runs_the_page_without_errors_or_network(command, sweep, tmp_path):
    command(f"runs={sweep}")
    page = tmp_path / "out" / "dashboard.html"
    page.write_text(page.read_text() + PROBE)
    done = browse(page, tmp_path, "--dump-dom")
    dom = done.stdout
    assert "CONSOLE" not in done.stderr  # where the browser reports errors of a page
    assert 'data-ready="yes"' in dom
    for heading in ("Accuracy over rounds", "Conflict ratio over rounds", "Cosines over rounds", "Layers", "Runs"):
        assert f"<h2>{heading}</h2>" in dom
    assert dom.count('class="chart lines"') == 6
    assert dom.count('class="chart heat"') == 12
    told = {name: unescape(value) for name, value in re.findall(r'data-(both|one|before|after|loaded)="([^"]*)"', dom)}
    assert told["both"].startswith("round 19\n")
    assert told["both"].count("3 seeds: ") == 2
    assert told["one"].count("3 seeds: ") == 1
    assert int(told["before"]) > 15
    assert told["after"] == "0"
    assert told["loaded"] == ""  # besides the page itself


def test_a_real_run_and_its_offline_file_make_the_same_page(cli, command, tmp_path):
    """And every metric of the panels in W&B is one that a run logs: a misspelt one would be an empty panel."""
    tiny = ("num_rounds=2", "partition=iid", "partition.num_clients=3", "dataset.train_fraction=0.1", "trainer=cpu")
    answer = cli(*tiny, "aggregator=fedgh", "logger.mode=offline", "callback.observatory.every=1")
    assert answer.code == 0, answer.err
    command(f"runs={answer.run_dir}")
    whole = (tmp_path / "out" / "dashboard.html").read_text()
    (file,) = answer.run_dir.glob("wandb/offline-run-*/run-*.wandb")
    command(f"runs={file}")
    from_file = (tmp_path / "out" / "dashboard.html").read_text()
    heat = "<svg class='chart heat'.*?</svg>"
    assert re.findall(heat, from_file) == re.findall(heat, whole)[:1]  # the cosines; layers are in the directory alone
    curves = "data-chart='([^']*)'"
    assert re.findall(curves, from_file) == re.findall(curves, whole) != []

    logged = offline.contents(file)
    names = {
        re.sub(r"\.(_type|path|sha256|size|format|width|height|values|bins)$", "", k) for r in logged.rows for k in r
    }
    drawn = {metric for panels in workspace.CURVES.values() for metrics in panels.values() for metric in metrics}
    assert drawn | set(workspace.HISTOGRAMS.values()) | set(workspace.PICTURES.values()) <= names
    for key in workspace.GROUPED_BY:
        group, _, rest = key.partition(".")
        assert rest in logged.config[group]


def test_without_a_key_it_says_so_and_writes_the_page(command, sweep, monkeypatch):
    monkeypatch.setattr("fedgh.config.wandb_mode", lambda mode: "offline")
    said = command(f"runs={sweep}", "project=fedgh")
    assert "project=fedgh needs W&B online, but there is no key" in said.err
    assert "type `wandb login`" in said.err
    assert said.out.startswith("written to  ")


def test_with_a_key_both_are_built_and_the_page_is_written(command, sweep, monkeypatch):
    asked = []
    monkeypatch.setattr("fedgh.config.wandb_mode", lambda mode: "online")
    monkeypatch.setattr(workspace, "publish", lambda *of: asked.append(of) or ("https://w/1", "https://w/2"))
    said = command(f"runs={sweep}", "project=fedgh", "entity=me")
    assert asked == [("fedgh", "me")]
    lines = said.out.splitlines()
    assert lines[:2] == ["workspace   https://w/1", "report      https://w/2"]
    assert lines[2].startswith("written to  ")
    nowhere = command("runs=nowhere", "project=fedgh")
    assert nowhere.out.splitlines() == lines[:2]
    assert "runs=nowhere does not exist" in nowhere.err


def test_wandb_out_of_reach_costs_only_wandb(command, sweep, monkeypatch):
    import wandb

    def unreachable(**_):
        raise wandb.errors.AuthenticationError("Failed to authenticate")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", unreachable)
    monkeypatch.setattr(wandb, "Api", unreachable)
    said = command(f"runs={sweep}", "project=fedgh")
    assert said.err == "project=fedgh could not be opened in W&B: Failed to authenticate\n"
    assert said.out.startswith("written to  ")


def test_with_nothing_to_show_both_reasons_are_given(command, tmp_path, monkeypatch):
    monkeypatch.setattr("fedgh.config.wandb_mode", lambda mode: "offline")
    with pytest.raises(DataError, match=r"(?s)needs W&B online.*no run below"):
        command(f"runs={tmp_path / 'none'}", "project=fedgh")


def test_a_list_of_folders(command, tmp_path):
    for number, of in enumerate(CELLS):
        write_run(make_run(tmp_path / f"{number}", of))
    command(f"runs=[{tmp_path / '0'},{tmp_path / '1'}]")
    assert "<b>2</b><span>runs</span>" in (tmp_path / "out" / "dashboard.html").read_text()
