"""One federation from its parts to its results, as ``fedgh-train`` does it; reads from top to bottom as a recipe."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fedgh import config
from fedgh.config.entry import in_sweep
from fedgh.core.command import command, resume_command, setting
from fedgh.core.errors import LostError, StorageError
from fedgh.core.types import ServerState
from fedgh.federation.completion import complete
from fedgh.federation.loop import Preparing, memories, recall, train
from fedgh.federation.round import Federation, first_state, to_device
from fedgh.federation.rounding import rounding_note
from fedgh.federation.stopping import last_words
from fedgh.metric.summary import closing_numbers, final_score
from fedgh.plot import picture
from fedgh.storage import checkpoint as checkpoints
from fedgh.storage.checkpoint import Checkpoint
from fedgh.storage.client_store import ClientStore
from fedgh.storage.durable import cause_of, is_about_the_disk
from fedgh.storage.provenance import check_writable, provenance
from fedgh.sweep import search
from fedgh.tracking.recorder import Recorder, close_loggers, read_csv

log = logging.getLogger(__name__)


def carry_out(cfg: DictConfig, resumed: Checkpoint | None = None, path: Path | None = None) -> float | None:
    """Run a federation to its end, from its beginning or from a checkpoint read from a path; its directory is held."""
    run_dir = Path(cfg.paths.output_dir)
    check_writable(run_dir)
    name, group = name_run(cfg)
    schedule, callbacks = config.build_schedule(cfg), [*config.build_callbacks(cfg), *search.reporting()]

    federation = config.build_federation(cfg)
    stamp = Checkpoint(
        server=first_state(federation),
        config=config.to_text(cfg),
        wandb_id=resumed.wandb_id if resumed else config.new_wandb_id(),
        layout=checkpoints.layout_of(federation.model),
        dataset=federation.dataset.fingerprint,
        partition=federation.partition.hash,
    )
    if resumed and path:
        checkpoints.check_fits(resumed, path, stamp.layout, stamp.dataset, stamp.partition)
        server = to_device(resumed.server, federation.model.device)
        stamp = replace(stamp, server=server, recorded=resumed.recorded)
        recall(callbacks, resumed.callbacks)
        log.info("resuming %s after round %d", run_dir, server.round_index)
    folder = run_dir / "checkpoints"
    memory_limit = OmegaConf.select(cfg, "checkpoint.client_states_mib", default=64) << 20  # none in older runs
    clients = ClientStore.of(stamp.server.clients, checkpoints.client_folder(folder), memory_limit)
    checkpoints.remove_leftovers(folder, clients)
    if federation.algorithm.overrides("report"):  # of the others no client keeps anything
        stamp = replace(stamp, server=replace(stamp.server, clients=clients))
    for callback in callbacks:
        if isinstance(callback, Preparing):
            callback.prepare(federation, schedule, stamp.server)

    def save(server: ServerState) -> Path:
        recorded = recorder.keep(server.round_index) if server.round_index else ()
        now = replace(stamp, server=server, callbacks=memories(callbacks), recorded=recorded)
        return checkpoints.save(now, folder, cfg.checkpoint.keep)

    with ExitStack() as opened:  # closed should anything fail before training
        opened.callback(federation.executor.close)
        federation.executor.open()
        loggers = config.build_loggers(cfg, run_dir, stamp.wandb_id, name, group)
        opened.callback(close_loggers, loggers, "failed")
        if not resumed:
            save(stamp.server)  # first of all: whatever is in the directory from here on can be gone on with
        introduce(cfg, federation, run_dir)
        recorder = Recorder(run_dir, loggers, first_round=stamp.server.round_index + 1, kept=stamp.recorded)
        figure = picture.partition_figure(federation.partition.class_counts)
        picture.save_png(figure, run_dir / "partition.png")
        recorder.picture("partition", figure)
        opened.pop_all()

    again, status, summary = resume_command(run_dir, *again_words(cfg)), "failed", dict[str, float]()
    try:
        with last_words(lost_to_ray(again)) if federation.executor.may_end_the_process else nullcontext():
            server, signal_number = train(federation, stamp.server, schedule, recorder, save, callbacks)
        status = "success" if not signal_number else "failed"
        main = federation.dataset.task.main
        summary = summarize(run_dir, server.round_index, f"{cfg.name}, seed {cfg.seed}", main)
        if server.round_index == cfg.num_rounds and federation.algorithm.overrides("complete"):
            completed, metrics = complete(federation, server, schedule)
            checkpoints.save(replace(stamp, server=replace(completed, clients={})), run_dir / "completed", keep=1)
            (run_dir / "completed.json").write_text(json.dumps(metrics, indent=2) + "\n")
            summary |= {f"completed/{main}": metrics[f"completed/global/test/{main}"]}
        if cfg.checkpoint.artifact and not signal_number:
            recorder.artifact(newest(run_dir))
    except LostError as error:
        raise LostError(f"{error}: {again}") from error
    except (StorageError, OSError) as error:
        if isinstance(error, OSError) and not is_about_the_disk(error):
            raise
        what = error if isinstance(error, StorageError) else f"cannot write to {run_dir}: {cause_of(error)}"
        raise StorageError(f"{what}; free space there, then go on: {again}") from error
    finally:
        federation.executor.close()
        recorder.close(status, summary if status == "success" else None)
    print_results(cfg, server.round_index, summary)
    if signal_number:
        sys.exit(128 + signal_number)
    return final_score(summary)


def introduce(cfg: DictConfig, federation: Federation, run_dir: Path) -> None:
    """Write what a reader of the run needs, and print the partition's card."""
    config.save(cfg, run_dir / "config.yaml")
    (run_dir / "provenance.json").write_text(json.dumps(provenance(federation.model.device), indent=2) + "\n")
    federation.partition.save(run_dir / "partition.npz")
    dataset, held = federation.dataset, federation.validation
    held_out = "" if held is None else f", {len(held.dataset.test_inputs):,} held-out"
    sys.stdout.write(
        f"{dataset.name}: {len(dataset.train_inputs):,} training{held_out} and {len(dataset.test_inputs):,} test "
        f"{dataset.noun}, {dataset.num_classes} classes; {type(federation.model.module).__name__} with "
        f"{federation.model.params.numel():,} parameters on {federation.model.device}\n{federation.partition.card()}\n"
        f"if it is stopped     {resume_command(run_dir, *again_words(cfg))}\n"
    )
    if note := rounding_note(federation.model.module, federation.algorithm):
        log.info("%s", note)


def name_run(cfg: DictConfig) -> tuple[str, str | None]:
    """Return name and group of the W&B run: a sweep's overrides and directory, or what the config says.

    The config keeps them, so that a job of a sweep has them still when it is resumed alone.
    """
    name, group = os.environ.get("WANDB_NAME") or f"{cfg.name}, seed {cfg.seed}", None
    if in_sweep():
        hydra = HydraConfig.get()
        name, group = hydra.job.override_dirname or f"job {hydra.job.num}", Path(hydra.sweep.dir).name
    elif config.in_wandb_sweep() and HydraConfig.initialized():
        name = HydraConfig.get().job.override_dirname or name
    if cfg.logger.get("wandb"):
        cfg.logger.wandb.name = config.literal(cfg.logger.wandb.name or name)  # it may hold ${ as letters
        cfg.logger.wandb.group = config.literal(cfg.logger.wandb.group or group or "") or None
    return name, group


def summarize(run_dir: Path, finished: int, name: str, main: str) -> dict[str, float]:
    """Return and write the run's closing numbers, by its task's main score; draw its curves."""
    rows = read_csv(run_dir / "metrics.csv") if (run_dir / "metrics.csv").exists() else []
    summary: dict[str, float] = {"rounds": finished} | closing_numbers(rows, main)
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    curves = {
        "round": [row["round"] for row in rows],
        "accuracy": [row.get(f"global/test/{main}", float("nan")) for row in rows],
        "conflict_ratio": [row.get("conflict/ratio", float("nan")) for row in rows],
    }
    picture.save_png(picture.run_figure({name: curves}), run_dir / "run.png")
    return summary


def lost_to_ray(again: str) -> str:
    """Return what is said when Ray ends this process, which it does without a word.

    Args:
        again: What to type to go on.
    """
    return (
        "error: this process was ended from outside, by Ray if its head or its node on this machine is lost; finished "
        f"rounds are kept. Start Ray again where it was started by hand, then go on: {again}"
    )


def print_results(cfg: DictConfig, finished: int, summary: dict[str, float]) -> None:
    """Print the summary, where everything is, and the commands that come next."""
    run_dir, trust, again = Path(cfg.paths.output_dir), trust_words(cfg), again_words(cfg)
    lines = [""]
    if "final/acc" in summary:
        lines += [
            f"accuracy        {summary['final/acc']:.2%} final, {summary['last10/acc_best']:.2%} best of the last 10"
        ]
    if "final/r2" in summary:
        lines += [
            f"r2              {summary['final/r2']:.3f} final, {summary['last10/r2_best']:.3f} best of the last 10"
        ]
    if "final/val_acc" in summary:
        lines += [f"validation      {summary['final/val_acc']:.2%} final, on held-out training data"]
    if "completed/acc" in summary:
        lines += [f"completed       {summary['completed/acc']:.2%} after the algorithm's phase after training"]
    if "final/personal_acc" in summary:
        lines += [f"personal        {summary['final/personal_acc']:.2%} final, mean over the clients' own models"]
    if "final/fine_tuned_acc" in summary:
        lines += [f"fine-tuned      {summary['final/fine_tuned_acc']:.2%} final, mean over the clients' own models"]
    if "final/conflict_ratio" in summary:
        lines += [
            f"conflict ratio  {summary['final/conflict_ratio']:.1%} final, "
            f"{summary['mean/conflict_ratio']:.1%} mean over the rounds"
        ]
    if "total/bytes_up" in summary:
        down, up = (summary[f"total/bytes_{way}"] / 1e6 for way in ("down", "up"))
        lines += [f"sent            {down:,.1f} MB to clients, {up:,.1f} MB back"]
    lines += [f"rounds          {finished} of {cfg.num_rounds}", f"written to      {run_dir}"]
    if finished:
        lines += [f"evaluate        {command('fedgh-evaluate', setting('checkpoint', newest(run_dir)), *trust)}"]
    if finished < cfg.num_rounds:
        lines += [f"resume          {resume_command(run_dir, *again)}"]
    else:
        lines += [f"go on           {resume_command(run_dir, setting('num_rounds', 2 * cfg.num_rounds), *again)}"]
    sys.stdout.write("\n".join(lines) + "\n")


def trust_words(cfg: DictConfig) -> list[str]:
    """Return the setting without which a stored config would not build this run's own parts, if it has any."""
    packages = config.foreign(cfg)
    return [setting("trust", packages)] if packages else []


def again_words(cfg: DictConfig) -> list[str]:
    """Return these, and the settings without which a resumed run would not leave its directory, if it does."""
    return [*trust_words(cfg), *(setting(key, value) for key, value in config.outside(cfg).items())]


def newest(run_dir: Path) -> Path:
    """Return the newest checkpoint file of a run."""
    return max((run_dir / "checkpoints").glob(checkpoints.PATTERN))
