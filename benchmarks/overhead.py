"""What a run pays beside its steps, at base size: checkpoints, logs, plots, and safety.

Each event is measured by itself on AudioMAE's pretraining (ViT-B) with its AdamW state, by the code
that `peas fit` calls, and stated for an hour of training at the frequencies given. Nothing is
measured by the difference of two runs: a share of a few per mille would drown in their noise.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import disable_possible_user_warnings

from peas.callbacks import ReconstructionPlots
from peas.callbacks.checkpoints import AtomicCheckpointIO
from peas.data.synthetic import SyntheticSounds
from peas.models import AudioMAE
from peas.recipes import AudioMAEPretrainingRecipe
from peas.tasks import Pretraining
from peas.training.nonfinite import finite_gradients
from peas.training.run_checkpoints import is_complete

GOAL = 0.03
"""Share of an hour."""


class TimedSteps(Callback):
    """Notes the seconds of each training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Stops it."""
        self.seconds.append(time.perf_counter() - self._since)


class TimedPlots(ReconstructionPlots):
    """`ReconstructionPlots` that notes how long each validation batch takes it."""

    def __init__(self, clips: int) -> None:
        super().__init__(clips, every_n_epochs=1)
        self.seconds: list[float] = []

    def on_validation_batch_end(self, *batch: Any, **more: Any) -> None:
        """As its base."""
        draw = super().on_validation_batch_end
        self.seconds.append(timing.seconds_of(lambda: draw(*batch, **more)))


def started(
    folder: Path, plots: TimedPlots, steps: TimedSteps, epochs: int
) -> tuple[Trainer, Pretraining]:
    """A trainer that has made some steps of ViT-B, so that there are moments to save."""
    data = SyntheticSounds(
        str(folder / "sounds"), classes=4, clips_per_class=10, frames=1024, batch_size=8,
        eval_batch_size=plots.clips, num_workers=0, cache_dir="",
    )  # fmt: skip
    task = Pretraining(
        encoder=AudioMAE("base"), recipe=AudioMAEPretrainingRecipe(lr=1e-4, warmup_epochs=0)
    )
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        limit_train_batches=1,
        accelerator="cpu",
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[plots, steps],
    )
    trainer.fit(task, datamodule=data)
    return trainer, task


def times(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call."""
    return [timing.seconds_of(work) for _ in range(repeats)]


def main() -> None:
    """Measure, and print the table."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument(
        "--out", type=Path, help="folder on the disk to be measured (default: temporary)"
    )
    p.add_argument("--checkpoints", type=float, default=6, help="an hour (default 6)")
    p.add_argument("--steps", type=float, help="an hour (default: as this machine makes them)")
    p.add_argument("--log-every", type=int, default=50, help="steps (default 50, as Lightning's)")
    p.add_argument("--epochs", type=float, default=2, help="an hour, each with plots (default 2)")
    p.add_argument("--clips", type=int, default=4, help="of the plots of an epoch (default 4)")
    options = p.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    disable_possible_user_warnings()
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        folder = Path(scratch)
        plots, steps = TimedPlots(options.clips), TimedSteps()
        trainer, task = started(folder, plots, steps, options.repeats)
        drawing = plots.seconds
        state = trainer._checkpoint_connector.dump_checkpoint(False)
        path = folder / "checkpoints" / "last.ckpt"
        writer = AtomicCheckpointIO()
        saving = times(lambda: writer.save_checkpoint(state, path), options.repeats)
        size = path.stat().st_size
        checking = times(lambda: is_complete(path), options.repeats)
        row = {f"metric_{number}": torch.tensor(0.5) for number in range(8)}
        csv = CSVLogger(folder, name="logs")
        wandb = WandbLogger(project="overhead", save_dir=str(folder))
        _ = wandb.experiment
        places = iter(range(10**9))

        def log() -> None:
            place = next(places)
            for logger in (csv, wandb):
                logger.log_metrics({key: float(value) for key, value in row.items()}, place)
                logger.save()

        logs = times(log, 20 * options.repeats)
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        trained = [q for q in task.parameters() if q.requires_grad]
        guards = times(lambda: finite_gradients(trained), 5 * options.repeats)
        wandb.experiment.finish()
    step = sorted(steps.seconds)[len(steps.seconds) // 2]
    often = options.steps or 3600 / step
    print(timing.heading("cpu"))
    print(f"A step of 8 clips takes {step:.2f} s here: {3600 / step:.0f} an hour.\n")
    events = [
        (f"checkpoint ({size / 2**20:.0f} MiB, written through to the disk)", saving,
         options.checkpoints),
        ("a line of the log, 8 figures, CSV and W&B offline", logs,
         often / options.log_every),
        ("are all gradients numbers?", guards, often),
        (f"plots of {options.clips} clips", drawing, options.epochs),
    ]  # fmt: skip
    print("| | median (s) | min | max | times an hour | share of an hour |")
    print("|---|---:|---:|---:|---:|---:|")
    total = 0.0
    for name, values, count in events:
        ordered = sorted(values)
        median = ordered[len(ordered) // 2]
        share = median * count / 3600
        total += share
        print(
            f"| {name} | {median:.4f} | {ordered[0]:.4f} | {ordered[-1]:.4f} | {count:.3g} | "
            f"{share:.2%} |"
        )
    print(f"| together | | | | | **{total:.2%}** (goal {GOAL:.0%}) |")
    middle = sorted(checking)[len(checking) // 2]
    print(f"\nOnce, when a run goes on: is the last checkpoint whole? {middle:.2f} s.")


if __name__ == "__main__":
    main()
