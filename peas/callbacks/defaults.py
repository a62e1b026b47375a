"""What every run does without being asked, and how to switch it off."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelSummary

from peas.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, WriteAfterLog
from peas.callbacks.outputs import ClipOutputs
from peas.callbacks.progress import BadClipCount, EpochLine, Progress, SizeSummary
from peas.callbacks.run_checks import MonitorCheck, ResumeCheck
from peas.callbacks.stopping import SaveBeforeEarlyEnd, SaveOnSignal, StopOnSignal
from peas.callbacks.wandb_run import WandbRun
from peas.training.run_checkpoints import CHECKPOINTS


@dataclass(frozen=True)
class Defaults:
    """What a run does without being asked: `--defaults.NAME false` switches one off.

    Lightning's keys switch off the others: `trainer.logger` (all logs),
    `trainer.enable_checkpointing` (`best.ckpt`, `last.ckpt`, and with them `signals` and
    `early_end`), `trainer.enable_progress_bar` and `trainer.enable_model_summary`.

    Args:
        run_files: `config.yaml`, `environment.json` and `labels.csv` in the run's folder.
        csv_log: `logs/version_N/metrics.csv`.
        wandb: With a W&B logger: its files in the run's folder, the best value of each metric,
            tables of class scores, and a run that continues without W&B when that fails.
        outputs: `logits/*.npz` with tables of class scores. `predict` always writes
            `predictions.csv`.
        bad_clips: Counts bad clips after each epoch, as `data/unreadable` where they are skipped.
        epoch_line: A line with the metrics of each epoch.
        monitor_check: Before training, refuses a `monitor` that is not a metric of the run.
        resume_check: When a run resumes, reports changed settings, and refuses those that make it
            another run.
        signals: On SIGTERM, SIGUSR1 and Ctrl-C, finishes the optimizer step, saves and exits.
        early_end: Saves before `max_steps`, `max_time` or an early stop ends an epoch early.
    """

    run_files: bool = True
    csv_log: bool = True
    wandb: bool = True
    outputs: bool = True
    bad_clips: bool = True
    epoch_line: bool = True
    monitor_check: bool = True
    resume_check: bool = True
    signals: bool = True
    early_end: bool = True


@dataclass(frozen=True)
class RunSettings:
    """What the default callbacks depend on.

    Attributes:
        folder: Of the run.
        verb: `fit`, `validate`, `test` or `predict`.
        config: The complete configuration, plain.
        monitor: Metric that selects the best checkpoint, and whether less or more is better.
        own: Callbacks of the user, which come before most defaults.
        wandb: Whether a logger is W&B's.
    """

    folder: Path
    verb: str
    config: Mapping[str, Any]
    monitor: tuple[str, Literal["min", "max"]]
    own: list[Callback]
    wandb: bool

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Settings of the trainer."""
        trainer: Mapping[str, Any] = self.config["trainer"]
        return trainer


def shows_bar(trainer: Mapping[str, Any]) -> bool:
    """Whether there is a progress bar: wanted, and on a terminal."""
    return trainer["enable_progress_bar"] is not False and sys.stderr.isatty()


def default_callbacks(on: Defaults, run: RunSettings) -> list[Callback]:
    """The user's callbacks between those of the defaults.

    Args:
        on: Which defaults are on.
        run: The run.
    """
    fit, first, last = run.verb == "fit", list[Callback](), list[Callback]()
    if on.bad_clips:
        last.append(BadClipCount())
    if on.outputs or run.verb == "predict":
        last.append(ClipOutputs(run.folder))
    if on.wandb and run.wandb:
        last.append(WandbRun(run.folder))
    if on.epoch_line:
        last.append(EpochLine())
    if shows_bar(run.trainer):
        last.append(Progress())
    if fit and on.monitor_check:
        last.append(MonitorCheck())
    if fit and summarises(run):
        last.append(SizeSummary())
    if fit and run.trainer["enable_checkpointing"] is not False:
        first.append(WriteAfterLog())
        last += _checkpoints(run)
        if on.signals:
            stop = StopOnSignal()
            first.append(stop)
            last.append(SaveOnSignal(stop))
        if on.early_end:
            last.append(SaveBeforeEarlyEnd())
    if fit:
        last.append(ResumeCheck(run.config, compare=on.resume_check))
    return [*first, *run.own, *last]


def summarises(run: RunSettings) -> bool:
    """Whether the model's summary is printed by `SizeSummary`."""
    own = any(isinstance(callback, ModelSummary) for callback in run.own)
    return run.trainer["enable_model_summary"] is not False and not own


def _checkpoints(run: RunSettings) -> list[Callback]:
    """`best.ckpt` and `last.ckpt`, beside whatever the config saves."""
    folder = run.folder / CHECKPOINTS
    per_epoch = run.trainer["check_val_every_n_epoch"]
    every = run.config["checkpoints"]["every_n_train_steps"]
    # The last one saves after the best was chosen. Where validations count steps, an epoch may be
    # 100,000 of them.
    return [
        BestCheckpoint(folder, *run.monitor, every_n_epochs=per_epoch or 1),
        LastCheckpoint(folder, every, after_epochs=per_epoch is not None),
    ]
