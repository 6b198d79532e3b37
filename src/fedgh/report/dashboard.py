"""Many runs on one page, finished or not: curves, conflict, layers, tables; no account, no network, no other file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from fedgh.metric.summary import main_of
from fedgh.plot.style import DASHES
from fedgh.report.board import Board, cosines, curves, layers
from fedgh.report.cells import Result, begun, results
from fedgh.report.compare import Score
from fedgh.report.cost import seconds
from fedgh.report.document import beside, whole_page
from fedgh.report.groups import Group, Groups
from fedgh.report.paper import TITLES, grid, size_note
from fedgh.report.runs import find_all, identity, once
from fedgh.report.seeds import EXPLAINED, over_seeds, percent
from fedgh.storage.jobs import JobRecord, read_jobs
from fedgh.storage.portable import anonymous
from fedgh.storage.run import Run


def write_dashboard(sources: Iterable[Path], folder: Path) -> Path:
    """Write ``dashboard.html`` from runs in whatever state.

    Args:
        sources: As for :func:`fedgh.report.runs.find_all`.
        folder: Where the page goes.

    Returns:
        The path of the page.

    Raises:
        DataError: If no run is there.
    """
    sources = [Path(source) for source in sources]
    found, problems = find_all(sources)
    finished, repeats = once([run for run in found if run.finished])
    done = {identity(run) for run in finished}
    unfinished, _ = once([run for run in found if not run.finished and identity(run) not in done])
    runs = finished + unfinished
    jobs = _jobs(sources)
    problems += repeats + _not_run(jobs, found)
    groups = Groups.of(runs)
    page = Board(folder, f"Dashboard: {', '.join(groups.datasets)}", groups=groups, problems=problems)
    cells, _, complaints = results(finished)
    page.problems += complaints + _versions(runs) + _unfinished(runs)
    page.html.append(_tiles(groups, runs))
    page.html.append(_legend(groups))
    for add in (curves, cosines, layers):
        add(page)
    _outcomes(page)
    _paper(page, cells)
    _runs(page, jobs)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dashboard.html"
    path.write_text(whole_page(page.title, _html(page)), encoding="utf-8")
    return path


def _tiles(groups: Groups, runs: Sequence[Run]) -> str:
    numbers = {
        "runs": len(runs),
        "finished": sum(run.finished for run in runs),
        "methods": len(groups.methods),
        "settings of the federation": len(groups.federations),
        "seeds": len({run.seed for run in runs}),
    }
    drawn = "".join(f"<div><b>{number}</b><span>{name}</span></div>" for name, number in numbers.items())
    return f"<section class='tiles'>{drawn}</section>"


def _jobs(sources: Sequence[Path]) -> dict[Path, JobRecord]:
    """Return what sweeps noted of their jobs, by the directory, also where the sweep was moved as a whole."""
    sweeps = [path.parent for source in sources for path in sorted(source.rglob("sweep.json"))]
    return {(sweep / job.directory.name).resolve(): job for sweep in sweeps for job in read_jobs(sweep)}


def _not_run(jobs: Mapping[Path, JobRecord], found: Sequence[Run]) -> list[str]:
    begun = {run.path.resolve() for run in found}
    return [
        f"job {job.number} of {path.parent} {job.status} before its first round: {job.error}"
        for path, job in jobs.items()
        if job.error and path not in begun
    ]


def _unfinished(runs: Sequence[Run]) -> list[str]:
    open_ = [run for run in runs if not run.finished]
    return [
        f"{len(open_)} of {len(runs)} runs are not finished: they are drawn as thin lines, count in no mean, and stand "
        "last in the table of runs; go on with one: `fedgh-train resume=<its directory>`."
    ] * bool(open_)


def _versions(runs: Sequence[Run]) -> list[str]:
    """Say where the runs shown were not made by one version of the code."""
    told = []
    for what, of in (
        ("commits", lambda run: run.provenance.get("commit")),
        ("versions of torch", lambda run: run.provenance.get("versions", {}).get("torch")),
    ):
        counts = Counter(str(version) for version in map(of, runs) if version)
        if len(counts) > 1:
            listed = ", ".join(f"{version} ({count} run{'s' * (count > 1)})" for version, count in counts.items())
            told.append(f"these runs were made by several {what}: {listed}; compare them with care.")
    return told


def _legend(groups: Groups) -> str:
    """Return switches for methods, and for federations where there are several; CSS does the switching."""
    lines, rules = [], []
    named = {"method": groups.methods, "federation": groups.federations if len(groups.federations) > 1 else []}
    for kind, names in named.items():
        boxes = []
        for index, name in enumerate(names):
            key = f"{kind}-{index}"
            mark = _swatch(*groups.styles[index]) if kind == "method" else ""
            boxes.append(f"<label><input type='checkbox' id='{key}' checked>{mark}{escape(name)}</label>")
            rules.append(f"body:has(#{key}:not(:checked)) main [data-{kind}='{index}'] {{ display: none; }}")
        lines += [f"<div><b>{kind}</b><span>{''.join(boxes)}</span></div>"] * bool(boxes)
    return f"<style>{' '.join(rules)}</style><nav aria-label='show'>{''.join(lines)}</nav>"


def _swatch(colour: str, dash: int) -> str:
    style = f" stroke-dasharray='{' '.join(map(str, DASHES[dash]))}'" * bool(dash)
    return f"<svg width='26' height='10'><line x1='0' x2='26' y1='5' y2='5' stroke='{colour}'{style}/></svg>"


def _outcomes(page: Board) -> None:
    """Add a line a group: mean and standard deviation over seeds."""
    page.heading("Over seeds")
    page.note(EXPLAINED)
    head, rows = over_seeds(page.groups)
    kinds = ["method" if name == "method" else "" if name == "federation" else "number" for name in head]
    cells = [list(zip(row, kinds, strict=True)) for row in rows]
    page.html.append(_table(page, head, list(zip(page.groups.members, cells, strict=True))))


def _paper(page: Board, cells: Sequence[Result]) -> None:
    """Add the paper's tables with our numbers, where the runs are cells of them."""
    for preset in dict.fromkeys(result.cell.preset for result in cells):
        shown = begun(cells, preset)
        page.heading(f"The paper's tables at preset {preset}")
        page.text(size_note([result for of in shown.values() for result in of]))
        page.text(
            "Accuracy in percent after the last round, mean ± standard deviation over seeds (their number). Gains in "
            "accuracy are in points, paired by seed, with a 95 % interval and the p-value of a two-sided paired t-test."
        )
        for place, of in shown.items():
            page.heading(TITLES.get(place, place), 3)
            page.table(*grid(of))


def _runs(page: Board, jobs: Mapping[Path, JobRecord]) -> None:
    """Add a line a run."""
    page.heading("Runs")
    head = ["federation"] * (len(page.groups.federations) > 1)
    head += ["method", "seed", "rounds", "state", "accuracy (%)", "pairs in conflict (%)", "training (s)"]
    head += ["commit", "where"]
    listed = [(group, run) for group in page.groups.members for run in (*group.finished, *group.unfinished)]
    rows = [
        (group, _run_cells(page, group, run, jobs)) for group, run in sorted(listed, key=lambda x: not x[1].finished)
    ]
    page.html.append(_table(page, head, rows))


def _run_cells(page: Board, group: Group, run: Run, jobs: Mapping[Path, JobRecord]) -> list[tuple[str, str]]:
    done = int(run.rows[-1]["round"]) if run.rows else int(run.summary.get("rounds", 0))
    job = jobs.get(run.path.resolve())
    state = "finished" if run.finished else (job.status if job and job.status != "finished" else "not finished")
    state += f": {job.error}" if job and job.error and not run.finished else ""
    accuracy = [row["global/test/acc"] for row in run.rows if "global/test/acc" in row]
    main = main_of(run.summary) or "acc"
    final = run.summary.get(f"final/{main}", accuracy[-1] if accuracy else np.nan)
    conflict = run.summary.get("mean/conflict_ratio", Score.of(run.curve("conflict/ratio")).mean)
    return [
        *_names(page, group),
        (str(run.seed), "number"),
        (f"{done} of {run.settings['num_rounds']}", "number"),
        (state, "state" if run.finished else "state open"),
        (percent(Score.of([final])) if main == "acc" else f"{main} {final:.3f}", "number"),
        (percent(Score.of([conflict])), "number"),
        (f"{seconds(run):,.1f}" if np.isfinite(seconds(run)) else "", "number"),
        (str(run.provenance.get("commit") or ""), "commit"),
        (anonymous(str(run.path)), "path"),
    ]


def _names(page: Board, group: Group) -> list[tuple[str, str]]:
    federation = [(page.groups.federations[group.federation], "")] * (len(page.groups.federations) > 1)
    return [*federation, (page.groups.methods[group.method], "method")]


def _table(page: Board, head: Sequence[str], rows: Sequence[tuple[Group, Sequence[tuple[str, str]]]]) -> str:
    """Return a table whose rows come and go with their group; a cell is a text and its class."""
    numbers = [kind == "number" for _, kind in rows[0][1]]
    top = "".join(f"<th{' class=number' * n}>{escape(name)}</th>" for name, n in zip(head, numbers, strict=True))
    lines = []
    for group, cells in rows:
        drawn = "".join(_cell(page, group, text, kind) for text, kind in cells)
        lines.append(f"<tr data-method='{group.method}' data-federation='{group.federation}'>{drawn}</tr>")
    body = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f"<div class='wide'><table class='runs'>{body}</table></div>"


def _cell(page: Board, group: Group, text: str, kind: str) -> str:
    if kind.startswith("state"):
        return f"<td><span class='{kind}'>{escape(text)}</span></td>"
    key = _swatch(*page.groups.styles[group.method]) if kind == "method" else ""
    return f"<td class='{kind}'>{key}{escape(text)}</td>"


def _html(page: Board) -> str:
    style, script = beside("dashboard.css"), beside("dashboard.js")
    parts, page.html = page.html, []
    if page.problems:
        page.points(page.problems, kind="warning")
    return "\n".join([f"<style>{style}</style>", *page.html, *parts, f"<script>{script}</script>"])
