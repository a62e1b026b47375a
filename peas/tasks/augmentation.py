"""Noise, roll and mask of a training batch in fine-tuning, in one declared order."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from peas.augment.masks import fill_masked
from peas.augment.spectrogram import noise_and_roll, roll_time
from peas.data.batch import Batch
from peas.frontend import Spectrogram
from peas.tasks.base import BaseTask

Stage = Literal["after_noise", "before_noise"]


class Masker(Protocol):
    """What the task asks of a masking strategy (`peas.callbacks.MaskingStrategy`)."""

    stage: Stage

    def mask_batch(self, task: BaseTask, batch: Batch) -> Tensor:
        """`[B, T, F]` bool, True = masked, of the batch's `log_mel` as it is now."""


def augment(task: BaseTask, batch: Batch, masker: Masker | None) -> None:
    """Applies noise, roll and mask to the front end's output.

    The order is that of the masker's stage:

        before_noise: mask → noise → roll (SSAST's loader: noise lies over the masked bins, and
            the mask rolls with the clip)
        after_noise: noise → roll → mask

    `log_mel` stays unmasked, for losses and plots; `masked_log_mel` is what the model gets.

    Args:
        task: Owns the settings and the random numbers.
        batch: With `log_mel`, `frames` and `valid` of the front end.
        masker: Masking strategy of the run.
    """
    batch["clean"] = Spectrogram(batch["log_mel"], batch["frames"], batch["valid"])
    if masker is not None and masker.stage == "before_noise":
        _mask(task, batch, masker)
    if task.hparams["noise_roll"]:
        _noise_and_roll(task, batch)
    if masker is not None and masker.stage == "after_noise":
        _mask(task, batch, masker)


def _mask(task: BaseTask, batch: Batch, masker: Masker) -> None:
    with torch.no_grad():
        mask = masker.mask_batch(task, batch)
    fill = task.front_end.fill_value(task.hparams["fill"])
    batch["mask"] = mask
    batch["masked_log_mel"] = fill_masked(batch["log_mel"], mask, fill)


def _noise_and_roll(task: BaseTask, batch: Batch) -> None:
    log_mel = batch["log_mel"]
    u_noise = task.draws(batch, "noise", tuple(log_mel.shape[1:])).to(log_mel)
    u_clip = task.draws(batch, "noise_roll", (2,)).to(log_mel)
    batch["log_mel"], roll = noise_and_roll(log_mel, u_noise, u_clip)
    batch["roll"] = roll
    batch["valid"] = roll_time(batch["valid"], roll)
    if "mask" in batch:
        batch["mask"] = roll_time(batch["mask"], roll)
        batch["masked_log_mel"], _ = noise_and_roll(batch["masked_log_mel"], u_noise, u_clip)
