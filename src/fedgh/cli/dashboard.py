"""Many runs at a glance: an offline page, ``fedgh-dashboard runs=...``; in W&B, ``fedgh-dashboard project=...``."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from fedgh import config
from fedgh.config.entry import launch
from fedgh.core.errors import ConfigurationError, DataError, FedGHError
from fedgh.report.dashboard import write_dashboard


def main() -> None:
    """Entry point of ``fedgh-dashboard``."""
    launch(run, "dashboard")


def run(cfg: DictConfig) -> None:
    """Build workspace and report where a project is named and W&B is at hand; write the page of local runs.

    Raises:
        DataError: If neither could be made, saying why.
    """
    cfg = config.resolve(cfg)
    said, problems = [], []
    if cfg.project is not None:
        try:
            workspace, report = _publish(cfg)
            said += [f"workspace   {workspace}", f"report      {report}"]
        except FedGHError as error:
            problems.append(str(error))
    try:
        said.append(f"written to  {write_dashboard(_sources(cfg), Path(cfg.paths.output_dir))}")
    except DataError as error:
        problems.append(str(error))
    if not said:
        raise DataError("\n".join(problems))
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    sys.stdout.write("\n".join(said) + "\n")


def _publish(cfg: DictConfig) -> tuple[str, str]:
    from fedgh.report.workspace import publish

    if config.wandb_mode("auto") != "online":
        raise ConfigurationError(
            f"project={cfg.project} needs W&B online, but there is no key, or WANDB_MODE says otherwise; type `wandb "
            "login` or set WANDB_API_KEY. The offline page of local runs needs neither."
        )
    return publish(str(cfg.project), cfg.entity)


def _sources(cfg: DictConfig) -> list[Path]:
    return [Path(str(runs)) for runs in (cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs])]


if __name__ == "__main__":
    main()
