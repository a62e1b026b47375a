"""One global batch on one process and on two (`gloo`): are the losses the same, on real sound?

AudioMAE pretrains on UrbanSound8K and PEAS fine-tunes on ESC-10, from a pretrained SSAST, by the
configs of `configs/examples/`, dropout taken away since each process draws its own. The loss of
every step is the mean over the clips of all processes.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import group
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

CONFIGS = Path(__file__).parents[1] / "configs" / "examples"
GOAL = 1e-5


class Losses(Callback):
    """Writes the loss of every step, and takes dropout away.

    Args:
        path: File of a JSON list.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.losses: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes dropout away."""
        for part in pl_module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds up over the processes."""
        loss = outputs["loss"].detach().double().clone()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(loss)
        self.losses.append(float(loss) / trainer.world_size)
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.losses))


def losses(folder: Path, config: Path, batch: int, world: int, argv: list[str]) -> list[float]:
    """Losses of a run on so many processes that share a global batch."""
    path = folder / f"{config.stem}_{world}.json"
    recorder = {"class_path": "ddp_equality.Losses", "init_args": {"path": str(path)}}
    command = ["--config", str(config), *argv, f"--trainer.callbacks+={json.dumps(recorder)}"]
    command += [f"--data.init_args.batch_size={batch // world}"]
    command += ["--trainer.default_root_dir", str(folder / f"run_{config.stem}_{world}")]
    command += ["--trainer.limit_val_batches=0", "--trainer.use_distributed_sampler=false"]
    group.finish(group.start(command, world))
    found: list[float] = json.loads(path.read_text())
    return found


def main() -> None:
    """Train, compare, and print the table."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--us8k", type=Path, required=True, help="UrbanSound8K with clips.csv")
    p.add_argument("--esc", type=Path, required=True, help="ESC-10 or ESC-50")
    p.add_argument("--ssast", type=Path, required=True, help="a checkpoint of SSAST, mini")
    p.add_argument("--steps", type=int, default=10)
    options = p.parse_args()
    steps = f"--trainer.max_steps={options.steps}"
    systems = {
        "AudioMAE on UrbanSound8K": (
            CONFIGS / "pretrain_urbansound8k_audiomae.yaml",
            [steps, f"--data.init_args.root={options.us8k.resolve()}"],
        ),
        "PEAS fine-tuning on ESC-10": (
            CONFIGS / "esc10_mini_peas.yaml",
            [
                steps,
                f"--data.init_args.root={options.esc.resolve()}",
                f"--model.init_args.pretrained={options.ssast.resolve()}",
            ],
        ),
    }
    print("| | steps | first loss | last loss | largest difference |")
    print("|---|---:|---:|---:|---:|")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, (config, argv) in systems.items():
            one, two = (losses(Path(scratch), config, 16, world, argv) for world in (1, 2))
            worst = max(abs(a - b) for a, b in zip(one, two, strict=True))
            failed |= worst > GOAL or len(one) != options.steps
            print(f"| {name} | {len(one)} | {one[0]:.6f} | {one[-1]:.6f} | {worst:.1e} |")
    print(f"\nGoal: {GOAL:.0e}.")
    sys.exit(failed)


if __name__ == "__main__":
    main()
