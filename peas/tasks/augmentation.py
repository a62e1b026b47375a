"""Noise, roll and mask of a training batch in fine-tuning, in one declared order."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from peas.audio.frontend import Spectrogram
from peas.data.batch import Batch
from peas.masking.blocks import fill_masked
from peas.tasks.base import BaseTask

Stage = Literal["after_noise", "before_noise"]
NOISE_SCALE = 0.1
ROLL_FRAMES = 10


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a training clip besides the mask.

    Args:
        noise_roll: The official loader's noise and roll along time (SSAST on; AST's ESC-50
            recipe off). PEAS states neither. AudioMAE's paper has it for Speech Commands; in every
            published script it is off.
        roll_gain: AudioMAE's augmentation of waveforms: `paper` rolls a clip cyclically and
            multiplies its loudness by 0.5 to 1.5, `official` does the latter alone, as the
            published code really does. A mixture is augmented as one clip.
        fill: Value of masked bins: `raw_zero` (0 before normalisation, as official) or `zero`
            (the data set's mean).
    """

    noise_roll: bool = True
    roll_gain: Literal["none", "official", "paper"] = "none"
    fill: Literal["raw_zero", "zero"] = "raw_zero"


class Masker(Protocol):
    """What the task needs of a masking strategy (`peas.callbacks.MaskingStrategy`)."""

    stage: Stage

    def mask_batch(self, task: BaseTask, batch: Batch) -> Tensor:
        """`[B, T, F]` bool, True = masked, of the batch's `log_mel` as it is now."""


def augment(
    task: BaseTask, batch: Batch, masker: Masker | None, augmentation: Augmentation
) -> None:
    """Applies noise, roll and mask to the front end's output.

    The order is that of the masker's stage:

        before_noise: mask → noise → roll (SSAST's loader: masked bins get noise too, and the mask
            rolls with the clip)
        after_noise: noise → roll → mask

    `log_mel` stays unmasked, for losses and plots; `masked_log_mel` is what the model gets.

    Args:
        task: Owns the random numbers.
        batch: With `log_mel`, `frames` and `valid` of the front end.
        masker: Masking strategy of the run.
        augmentation: Noise, roll and fill.
    """
    batch["clean"] = Spectrogram(batch["log_mel"], batch["frames"], batch["valid"])
    if masker is not None and masker.stage == "before_noise":
        _mask(task, batch, masker, augmentation.fill)
    if augmentation.noise_roll:
        _noise_and_roll(task, batch)
    if masker is not None and masker.stage == "after_noise":
        _mask(task, batch, masker, augmentation.fill)


def _mask(task: BaseTask, batch: Batch, masker: Masker, kind: Literal["raw_zero", "zero"]) -> None:
    with torch.no_grad():
        mask = masker.mask_batch(task, batch)
    fill = task.front_end.fill_value(kind)
    batch["mask"] = mask
    batch["masked_log_mel"] = fill_masked(batch["log_mel"], mask, fill)


def _noise_and_roll(task: BaseTask, batch: Batch) -> None:
    log_mel = batch["log_mel"]
    u_noise = task.random_numbers(batch, "noise", tuple(log_mel.shape[1:])).to(log_mel)
    u_clip = task.random_numbers(batch, "noise_roll", (2,)).to(log_mel)
    batch["log_mel"], roll = noise_and_roll(log_mel, u_noise, u_clip)
    batch["roll"] = roll
    batch["valid"] = roll_time(batch["valid"], roll)
    if "mask" in batch:
        batch["mask"] = roll_time(batch["mask"], roll)
        batch["masked_log_mel"], _ = noise_and_roll(batch["masked_log_mel"], u_noise, u_clip)


class Augmented(NamedTuple):
    """A noised and rolled batch."""

    log_mel: Tensor
    """`[B, T, F]`."""
    roll: Tensor
    """`[B]` i64 frames that each clip was shifted by, towards later times."""


def roll_time(x: Tensor, shift: Tensor) -> Tensor:
    """Shifts each clip circularly along time.

    Args:
        x: `[B, T, ...]`.
        shift: `[B]` i64 frames towards later times; may be negative.
    """
    frames = x.shape[1]
    source = (torch.arange(frames, device=x.device) - shift.unsqueeze(1)) % frames
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), source]


def noise_and_roll(log_mel: Tensor, u_noise: Tensor, u_clip: Tensor) -> Augmented:
    """The official loader's last step: positive noise, then a roll along time.

    Each bin gets U(0, 1) times one U(0, 0.1) of its clip; each clip is rolled by an integer in
    [-10, 9] (SSAST's `dataloader.py`).

    Args:
        log_mel: `[B, T, F]` normalised.
        u_noise: `[B, T, F]` uniform random numbers.
        u_clip: `[B, 2]` uniform random numbers: noise scale and shift.
    """
    noise = u_noise * (u_clip[:, 0] * NOISE_SCALE).view(-1, 1, 1)
    roll = (u_clip[:, 1] * 2 * ROLL_FRAMES).floor().long() - ROLL_FRAMES
    return Augmented(roll_time(log_mel + noise, roll), roll)
