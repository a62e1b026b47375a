"""Two processes of DDP on this machine, beside what its cores allow.

AudioMAE at a size for a CPU trains on generated sounds: alone with one thread; as two processes of
one thread each that share the global batch (`gloo`); and, for the limit, two runs of one thread
that have nothing to do with each other, at once. Each figure is clips a second between the first
and the last step of an epoch, without start and validation.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import group
import timing
import yaml
from lightning.pytorch import Callback, Trainer

from peas.data.synthetic import write_sounds


class Clock(Callback):
    """Writes the clips a second of a process, warm-up steps left out.

    Args:
        path: File of the first process's figure.
        warmup: Steps that do not count.
    """

    def __init__(self, path: str, warmup: int = 5) -> None:
        self.path, self.warmup = Path(path), warmup
        self.clips, self.since = 0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts."""
        if batch_idx + 1 == self.warmup:
            self.clips, self.since = 0, time.perf_counter()
        elif batch_idx >= self.warmup:
            self.clips += len(batch["id"]) * trainer.world_size
            rate = self.clips / (time.perf_counter() - self.since)
            if trainer.is_global_zero:
                self.path.write_text(str(rate))


def config(sounds: Path, figure: Path, batch: int, steps: int) -> dict[str, Any]:
    """A run of one epoch that writes nothing but its figure."""
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "limit_train_batches": steps,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "callbacks": [
                {"class_path": "ddp_efficiency.Clock", "init_args": {"path": str(figure)}}
            ],
        },
        "model": {
            "class_path": "peas.tasks.Pretraining",
            "init_args": {
                "encoder": {
                    "class_path": "peas.models.AudioMAE",
                    "init_args": {"size": "tiny", "decoder_width": 128, "decoder_depth": 4,
                                  "decoder_heads": 4},
                },
                "recipe": {"class_path": "peas.recipes.AudioMAEPretrainingRecipe"},
            },
        },
        "data": {
            "class_path": "peas.data.ESC50",
            "init_args": {"root": str(sounds), "batch_size": batch, "mean": -5.2, "std": 4.1,
                          "frames": 512, "num_workers": 0, "cache_dir": ""},
        },
    }  # fmt: skip


def run(folder: Path, sounds: Path, batch: int, steps: int, world: int, groups: int) -> float:
    """Clips a second of `groups` runs of `world` processes each, added up."""
    started, figures = [], []
    for number in range(groups):
        figure = folder / f"{world}_{number}.txt"
        figures.append(figure)
        path = folder / f"{world}_{number}.yaml"
        path.write_text(yaml.safe_dump(config(sounds, figure, batch // world, steps)))
        run_folder = str(folder / f"run_{world}_{number}")
        argv = ["--config", str(path), "--trainer.default_root_dir", run_folder]
        started += group.start(argv, world)
    group.finish(started)
    return sum(float(figure.read_text()) for figure in figures)


def main() -> None:
    """Measure in turn, and print the table."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--batch", type=int, default=16, help="global batch (default 16)")
    p.add_argument("--steps", type=int, default=30)
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clips = options.batch * (options.steps + 1) * 5 // 4 // 8 + 5
        sounds = write_sounds(folder / "sounds", classes=8, clips_per_class=clips, seconds=2.0)

        def side(world: int, groups: int) -> float:
            return run(folder, sounds, options.batch, options.steps, world, groups)

        figures = timing.interleaved(
            {
                "one process": lambda: side(1, 1),
                "two processes of DDP": lambda: side(2, 1),
                "two runs at once": lambda: side(1, 2),
            },
            options.repeats,
        )
    print(timing.heading("cpu"))
    rows: list[timing.Row] = [(f"{name} (clips/s)", values, 1) for name, values in figures.items()]
    alone = figures["one process"]
    speed = timing.quotients(figures["two processes of DDP"], alone)
    limit = timing.quotients(figures["two runs at once"], alone)
    rows += [
        ("DDP, times as fast", speed, 2),
        ("the limit: two runs, times as fast", limit, 2),
    ]
    print(timing.table(rows))
    share = statistics.median(timing.quotients(speed, limit))
    print(f"\nDDP reaches {share:.0%} of what the two cores allow.")


if __name__ == "__main__":
    main()
