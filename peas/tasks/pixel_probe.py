"""Fits the pixel probe of a fine-tuning run before its first step, on the encoder as it is then."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from peas.data.module import ClipDataModule
from peas.errors import ConfigError
from peas.models.patches import Grid
from peas.models.reconstructor import RIDGE, FittedProbe, ProbeSums
from peas.tasks.base import BaseTask
from peas.training.distributed import are_several

CLIPS = 4096
"""Training clips, spread evenly over the set, that are enough for a linear layer."""


def fit_pixel_probe(task: BaseTask) -> None:
    """Give a task's model a linear pixel head, and save it with the run's checkpoints.

    One pass over the training clips, whose labels are not read; processes share it. Patches are
    those of both grids that PEAS may ask for. The head stays as it is while the encoder is
    fine-tuned, as a pretrained one does.

    Args:
        task: Built, with its weights loaded, and attached to a trainer with a data module.

    Raises:
        ConfigError: There is no data module with training clips.
    """
    trainer, model = task.trainer, task.model
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ClipDataModule):
        raise ConfigError(
            "`model.init_args.reconstruction` is probe, and no data module gives the clips to fit "
            "it on: give `data`, or set it to head"
        )
    table = data.clips("train")
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), CLIPS)).round())
    device = task.device
    grids: list[Grid] = ["nonoverlap"]
    if model.stride != model.patch:
        grids.append("finetune")
    sums = ProbeSums(model.width, model.patch[0] * model.patch[1], device)
    training = model.training
    model.eval()
    # Loaders sample a seed for their workers, which must not change the run's random state.
    with torch.no_grad(), isolate_rng():
        for batch in data.loader(table.take(rows)):
            waveform, length = batch["waveform"].to(device), batch["length"].to(device)
            log_mel = task.front_end(waveform, length).log_mel
            for grid in grids:
                sums.add(*model.patch_tokens(log_mel, grid))
    model.train(training)
    if are_several():
        sums.gather()
    fitted = sums.solve()
    model.pixel_probe = fitted.probe
    rank_zero_info(
        "reconstruction: errors of a linear pixel probe, fitted on the frozen encoder's tokens of "
        f"{len(rows):,} training clips; mean squared error {fitted.error:.4f}, of the mean patch "
        f"{fitted.variance:.4f}"
    )
    if trainer.is_global_zero:
        path = _save(Path(trainer.default_root_dir), fitted, len(rows), task)
        rank_zero_info(f"{path}")


def _save(run: Path, fitted: FittedProbe, clips: int, task: BaseTask) -> Path:
    """Write the probe and what it was fitted on; an earlier run's file is left alone."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path, count = folder / "pixel_probe.pt", 0
    while path.exists():
        count += 1
        path = folder / f"pixel_probe-v{count}.pt"
    content: dict[str, Any] = {
        **fitted.probe.state_dict(),
        "pretrained": str(task.hparams["pretrained"]),
        "clips": clips,
        "patches": fitted.patches,
        "ridge": RIDGE,
        "error": fitted.error,
        "variance": fitted.variance,
    }
    partial = path.with_name(f".{path.name}")
    torch.save(content, partial)
    partial.replace(path)
    return path
