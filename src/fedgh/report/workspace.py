"""The dashboard in W&B: a workspace and a report of one project, with an account and the package wandb-workspaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgh.core.errors import ConfigurationError, DataError
from fedgh.report.cells import begun, results
from fedgh.report.document import Document
from fedgh.report.groups import Groups
from fedgh.report.paper import TITLES, grid, size_note
from fedgh.report.runs import once
from fedgh.report.seeds import over_seeds
from fedgh.storage.run import Run
from fedgh.tracking.wandb_files import read_project

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces.interface import Workspace

GROUPED_BY = ("algorithm._target_", "aggregator._target_")
"""Keys of the config."""

CURVES: Mapping[str, Mapping[str, list[Any]]] = {
    "Accuracy": {
        "Test accuracy": ["global/test/acc"],
        "Worst tenth of the clients": ["client/test/acc_worst10"],
        "Test loss": ["global/test/loss"],
    },
    "Conflict": {
        "Pairs in conflict": ["conflict/ratio"],
        "Pairs in conflict after harmonization": ["harmonization/conflict_ratio"],
        "Update against the plain mean (length)": ["harmonization/norm_ratio"],
    },
    "Cosines over rounds": {
        "Quantiles": [f"conflict/cosine_{quantile}" for quantile in ("q05", "q25", "median", "q75", "q95")],
    },
    "Cost": {
        "Seconds of training a round": ["time/train_seconds"],
        "Seconds of aggregation a round": ["time/aggregate_seconds"],
        "Local steps a round": ["federation/local_steps"],
    },
}
"""Section -> title -> what is drawn over rounds, mean and standard deviation over the runs of a group."""

HISTOGRAMS = {"Before": "conflict/cosine", "After harmonization": "harmonization/cosine"}
PICTURES = {"Cosines over rounds": "conflict/sorted_cosines", "Layers": "conflict/layers"}
SECTIONS = ("Accuracy", "Conflict", "Cosines over rounds", "Layers", "Cost", "Runs")


def publish(project: str, entity: str | None) -> tuple[str, str]:
    """Save a new workspace and a new report of a project.

    Args:
        project: Of W&B.
        entity: Whose; None for the account's own.

    Returns:
        The addresses of the two.

    Raises:
        ConfigurationError: If wandb-workspaces is not installed.
        DataError: If W&B cannot be reached, refuses the key, or has no such project.
    """
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f'project={project} needs the package wandb-workspaces: pip install "fedgh[dashboard]"'
        ) from error
    import wandb

    try:
        api = wandb.Api()
        owner = entity or str(api.default_entity)
        runs, _ = once([run for run in read_project(api.runs(f"{owner}/{project}")) if run.finished])
        saved: tuple[Any, Any] = workspace(owner, project), report(owner, project, runs)
        for dashboard in saved:
            dashboard.save()
    except (wandb.Error, OSError, ValueError) as error:
        line = str(error).strip().splitlines()[:1]
        raise DataError(f"project={project} could not be opened in W&B: {' '.join(line)}") from error
    return str(saved[0].url), str(saved[1].url)


def workspace(entity: str, project: str) -> Workspace:
    """Return the workspace, not yet saved: a section a subject, runs grouped by algorithm and aggregator."""
    import wandb_workspaces.workspaces.interface as ws
    from wandb_workspaces import expr

    return ws.Workspace(
        entity=entity,
        project=project,
        name="FedGH",
        sections=[ws.Section(name=name, panels=panels(name), is_open=True) for name in SECTIONS],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(key) for key in GROUPED_BY],
            pinned_columns=["config:partition.value.alpha", "config:seed.value", "summary:final/acc"],
        ),
    )


def report(entity: str, project: str, runs: Sequence[Run]) -> Report:
    """Return the report, not yet saved.

    Args:
        entity: Whose.
        project: Of W&B.
        runs: The finished ones of the project, for the tables.
    """
    import wandb_workspaces.reports.v2.interface as wr

    grouped = [f"config.{key}" for key in GROUPED_BY]
    blocks: list[Any] = [wr.TableOfContents()]
    for name in SECTIONS:
        runset = wr.Runset(entity=entity, project=project, name="Runs", groupby=[] if name == "Runs" else grouped)
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runset], panels=panels(name))]
    blocks += [wr.MarkdownBlock(text) for text in tables(runs)]
    told = "Lines are means over the runs of an algorithm and aggregator. Filter by partition.alpha to compare."
    return wr.Report(
        entity=entity, project=project, title="FedGH dashboard", description=told, blocks=blocks, width="fluid"
    )


def panels(section: str) -> list[Any]:
    """Return the panels of a section, new ones each time."""
    import wandb_workspaces.reports.v2.interface as wr

    found: list[Any] = [
        wr.LinePlot(title=title, x="round", y=metrics, groupby_aggfunc="mean", groupby_rangefunc="stddev")
        for title, metrics in CURVES.get(section, {}).items()
    ]
    if section == "Cosines over rounds":
        found += [wr.LinePlot(title=f"Histogram: {title}", x="round", y=[key]) for title, key in HISTOGRAMS.items()]
    if section in PICTURES:
        found.append(wr.MediaBrowser(title=section, media_keys=[PICTURES[section]], num_columns=2))
    if section == "Runs":
        found.append(wr.RunComparer(diff_only="split"))
    for index, panel in enumerate(found):
        panel.layout = wr.Layout(x=8 * (index % 3), y=8 * (index // 3), w=24 if len(found) == 1 else 8, h=8)
    return found


def tables(runs: Sequence[Run]) -> list[str]:
    """Return Markdown: means over seeds, and the paper's tables where runs are cells of it."""
    if not runs:
        return []
    document = Document(Path(), "")
    document.heading("Over seeds")
    document.table(*over_seeds(Groups.of(runs)))
    found, _, problems = results(runs)
    for preset in dict.fromkeys(result.cell.preset for result in found):
        shown = begun(found, preset)
        document.heading(f"The paper's tables at preset {preset}")
        document.text(size_note([result for of in shown.values() for result in of]))
        for place, of in shown.items():
            document.heading(TITLES.get(place, place), 3)
            document.table(*grid(of))
    if problems:
        document.points(problems)
    return ["\n\n".join(document.markdown)]
