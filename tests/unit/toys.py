"""A small task, clips and a trainer's stand-in, so that hooks can be called one by one."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from made import classification

from peas.callbacks.masking import MaskingStrategy
from peas.callbacks.outputs import ClipOutputs
from peas.data.batch import Batch
from peas.data.synthetic import SOUNDS, SyntheticSounds, make_sounds
from peas.models import vit
from peas.tasks import Classification
from peas.tasks.augmentation import augment

vit.SIZES.setdefault("toy", vit.Size(32, 2, 2))

LABELS = list(SOUNDS)[:4]
FACTS: dict[str, Any] = {
    "labels": LABELS,
    "mean": -5.2411,
    "std": 4.1377,
    "frames": 128,
    "multi_label": False,
}


class StandIn(SimpleNamespace):
    """What hooks ask of a trainer."""

    def __init__(self, root: Path | None = None, **facts: Any) -> None:
        super().__init__(
            **{
                "current_epoch": 0,
                "max_epochs": 25,
                "max_steps": -1,
                "num_training_batches": 10,
                "global_step": 0,
                "world_size": 1,
                "global_rank": 0,
                "precision": "32-true",
                "accumulate_grad_batches": 1,
                "training": True,
                "sanity_checking": False,
                "is_global_zero": True,
                "callbacks": [],
                "loggers": [],
                "datamodule": None,
                "default_root_dir": str(root),
                "precision_plugin": SimpleNamespace(forward_context=nullcontext),
                **facts,
            }
        )


def make_task(trainer: StandIn | None = None, **settings: Any) -> Classification:
    """A built task whose head draws something that depends on what it hears."""
    torch.manual_seed(3)
    task = classification(
        **{"pretrained": None, "size": "toy", "stride": (16, 16), **FACTS, **settings}
    )
    task.build(initialise=False)
    with torch.no_grad():
        for p in (*task.model.generative_head.parameters(), task.model.encoder.pos_embed):
            p.mul_(8)
        task.model.head.weight.mul_(20)
    task._trainer = trainer or StandIn()  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return task


def clips(count: int = 8, *, step: int = 0, seconds: float = 1.28) -> Batch:
    """The loader's keys of a training batch of `count` clips, the same for the same `step`."""
    samples = round(seconds * 16_000)
    rows = [
        make_sounds(LABELS[row % 4], 1, samples, 16_000, seed=100 * step + row)[0]
        for row in range(count)
    ]
    return Batch(
        waveform=torch.from_numpy(np.stack(rows)).float(),
        length=torch.full((count,), samples),
        target=torch.arange(count) % 4,
        id=[f"clip{step}_{row}" for row in range(count)],
        mixed=torch.zeros(count, dtype=torch.bool),
        step=step,
        row=torch.arange(count),
        global_size=count,
    )


def part(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some clips of a batch, which stay rows of the same global batch."""
    some: dict[str, Any] = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            some[key] = value[list(rows)]
    some["id"] = [batch["id"][row] for row in rows]
    return some  # type: ignore[return-value]


def heard(task: Classification, batch: Batch) -> Batch:
    """A copy of the batch with the front end's keys, noised and rolled if the task does so."""
    strategy, task.masking = task.masking, None
    try:
        return task.on_after_batch_transfer(batch.copy(), 0)
    finally:
        task.masking = strategy


def masked(strategy: MaskingStrategy, task: Classification, batch: Batch) -> Batch:
    """A copy of a heard batch, augmented anew with the strategy's mask in its place."""
    batch = batch.copy()
    rolled: object = batch.pop("roll", None)
    augmentation = replace(task.augmentation, noise_roll=rolled is not None)
    batch["log_mel"], batch["frames"], batch["valid"] = batch["clean"]
    augment(task, batch, strategy, augmentation)
    return batch


def data(sounds: Path, **settings: Any) -> SyntheticSounds:
    """The sounds of the fixture, read in this process and kept nowhere."""
    return SyntheticSounds(
        str(sounds),
        **{
            "classes": 4,
            "clips_per_class": 10,
            "seconds": 0.64,
            "frames": 64,
            "batch_size": 8,
            "num_workers": 0,
            "cache_dir": "",
            **settings,
        },
    )


class Run(NamedTuple):
    """A finished run."""

    folder: Path
    trainer: Trainer
    task: Classification
    module: SyntheticSounds
    checkpoint: Path


def quiet_trainer(folder: Path, **settings: Any) -> Trainer:
    """A trainer on the CPU that prints and saves nothing by itself."""
    return Trainer(
        **{
            "default_root_dir": folder,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **settings,
        }
    )


def fit(sounds: Path, folder: Path, *callbacks: Callback, epochs: int = 1, **settings: Any) -> Run:
    """Trains the small task on the sounds, with logits per clip and a log in the folder."""
    torch.manual_seed(0)
    task = classification(
        **{"pretrained": None, "size": "toy", "stride": (16, 16), "lr": 1e-3, **settings}
    )
    module = data(sounds)
    trainer = quiet_trainer(
        folder,
        max_epochs=epochs,
        callbacks=[*callbacks, ClipOutputs(folder)],
        logger=CSVLogger(folder, name="logs"),
        log_every_n_steps=1,
    )
    trainer.fit(task, datamodule=module)
    checkpoint = folder / "run.ckpt"
    trainer.save_checkpoint(checkpoint)
    return Run(folder, trainer, task, module, checkpoint)
