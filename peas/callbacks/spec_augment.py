"""Masking strategies that look at no error: conventional SpecAugment and random blocks.

Each writes `mask` into the batch before the training step, which fills it. The filling rule is
the task's, so strategies differ only in where they mask. `PEAS` is in `peas.callbacks.peas`.
"""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from peas.augment.blocks import DRAWS, AxisPlan, Selection, random_plan
from peas.augment.masks import Overlap, blocks_to_mask, check_width, cross, masked_fraction
from peas.augment.schedule import final_phase
from peas.augment.spectrogram import roll_time
from peas.callbacks.means import EpochMeans
from peas.callbacks.siblings import siblings
from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.processes import gather, is_first
from peas.tasks.base import BaseTask

Stage = Literal["after_noise", "before_noise"]


class Masking(Callback):
    """What the strategies share: checks, the stage, and the log of what was hidden.

    Logs per epoch `mask/fraction` (hidden share of the cells) and, over the whole run so far,
    `mask/adaptive_share` (adaptive blocks among all blocks).

    Args:
        max_time: Mask parameter in frames; widths are uniform on 0 … max_time - 1.
        max_freq: Mask parameter in mel bins.
        n_time: Blocks along time.
        n_freq: Blocks along frequency.
        stage: `after_noise` masks what the model would have seen; `before_noise` masks first, as
            the official loader does, so that noise lies over the hidden cells and the roll moves
            the mask.
    """

    def __init__(
        self, max_time: int, max_freq: int, n_time: int, n_freq: int, stage: Stage
    ) -> None:
        for key, count in (("n_time", n_time), ("n_freq", n_freq)):
            if count < 0:
                raise ConfigError(f"`{self.key(key)}` is {count}: use 0 or more blocks")
        self.max_time, self.max_freq = max_time, max_freq
        self.n_time, self.n_freq = n_time, n_freq
        self.stage = stage
        self.means = EpochMeans()
        self._blocks = torch.zeros(2, dtype=torch.float64)

    def key(self, name: str) -> str:
        """Name of a setting of this callback for messages."""
        return f"{type(self).__name__}.init_args.{name}"

    def plans(
        self, trainer: Trainer, task: BaseTask, batch: Batch, log_mel: Tensor, valid: Tensor
    ) -> tuple[AxisPlan, AxisPlan]:
        """Blocks along time and frequency.

        Args:
            trainer: Knows the epoch.
            task: Knows the draws and the model.
            batch: Clips on the device.
            log_mel: `[B, T, F]` unmasked input at this strategy's stage.
            valid: `[B, T]` real sound in `log_mel`.
        """
        raise NotImplementedError

    def countable(
        self, task: BaseTask, log_mel: Tensor, valid: Tensor, sounding: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Frames `[B, T]` and mel bins `[B, F]` that count for a score of windows; None = all."""
        return None, None

    def sounding(self, task: BaseTask, batch: Batch) -> Tensor:
        """`[B, F]` mel bins that hold sound in each clip, before noise lies over them."""
        log_mel = batch["log_mel"]
        if "noise" in batch:
            # It moved with the clip, and a bin's frames are counted wherever they lie.
            log_mel = log_mel - batch["noise"]
        return task.front_end.sounding_bins(log_mel, batch["valid"])

    # --- hooks ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses masks that do not fit, two strategies at once, and an endless run."""
        assert isinstance(pl_module, BaseTask)
        check_width(self.key("max_time"), self.max_time, pl_module.hparams["frames"])
        check_width(self.key("max_freq"), self.max_freq, pl_module.front_end.n_mels)
        if len(found := siblings(trainer, Masking)) > 1:
            names = ", ".join(type(callback).__name__ for callback in found)
            raise ConfigError(
                f"`trainer.callbacks` has several masking strategies: {names}. Keep one"
            )
        if not trainer.max_epochs or trainer.max_epochs < 0:
            raise ConfigError("`trainer.max_epochs` is not set: masking schedules depend on it")

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes `mask`, and `mask_noise` when the noise lies over it."""
        assert isinstance(pl_module, BaseTask)
        if batch_idx == 0:
            self.means.reset()
        log_mel, valid, roll = batch["log_mel"], batch["valid"], batch.get("roll")
        before = self.stage == "before_noise" and roll is not None
        if before:
            log_mel = roll_time(log_mel - batch["noise"], -roll)
            valid = roll_time(valid, -roll)
        time, freq = self.plans(trainer, pl_module, batch, log_mel, valid)
        mask = cross(
            blocks_to_mask(time.blocks, log_mel.shape[1]),
            blocks_to_mask(freq.blocks, log_mel.shape[2]),
        )
        if before:
            mask = roll_time(mask, roll)
            batch["mask_noise"] = batch["noise"]
        batch["mask"] = mask
        batch["mask_plan"] = (time, freq)
        self._count(mask, time, freq)

    def _count(self, mask: Tensor, time: AxisPlan, freq: AxisPlan) -> None:
        self.means.add("mask/fraction", masked_fraction(mask))
        adaptive = time.adaptive.sum() + freq.adaptive.sum()
        total = time.adaptive.numel() + freq.adaptive.numel()
        self._blocks = self._blocks.to(mask.device)
        self._blocks = self._blocks + torch.stack([adaptive, torch.full_like(adaptive, total)])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch."""
        self.means.log(pl_module)
        share = (self._blocks[0] / self._blocks[1].clamp(min=1)).float()
        pl_module.log("mask/adaptive_share", share, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Counts of all processes, so that a resumed run logs the same; every process must ask."""
        blocks = [sum(column) for column in zip(*gather(self._blocks.tolist()), strict=True)]
        return {"means": self.means.state_dict(), "blocks": blocks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with saved counts."""
        self.means.load_state_dict(state_dict["means"])
        if is_first():
            self._blocks = torch.tensor(state_dict["blocks"], dtype=torch.float64)

    def uniform(self, task: BaseTask, batch: Batch, axis: str, count: int) -> Tensor:
        """Draws `[B, count, DRAWS]` of one axis, the same for every strategy."""
        return task.draws(batch, f"mask_{axis}", (count, DRAWS)).to(batch["log_mel"].device)


class SpecAugment(Masking):
    """Conventional SpecAugment: one random interval along each axis, all epochs alike.

    torchaudio's law, width ⌊U·M⌋ and start ⌊U·(size - U·M)⌋, which the official SSAST loader
    applies before normalisation and noise; drawn here for each clip by itself.

    Args:
        max_time: Mask parameter in frames (`timem`): 96 for ESC-50, 48 for Speech Commands.
        max_freq: Mask parameter in mel bins (`freqm`): 24 for ESC-50, 48 for Speech Commands.
        stage: `before_noise` (official) or `after_noise` (where `RandomMasking` and `PEAS` mask).
    """

    def __init__(
        self, max_time: int = 96, max_freq: int = 24, stage: Stage = "before_noise"
    ) -> None:
        super().__init__(max_time, max_freq, n_time=1, n_freq=1, stage=stage)

    def plans(
        self, trainer: Trainer, task: BaseTask, batch: Batch, log_mel: Tensor, valid: Tensor
    ) -> tuple[AxisPlan, AxisPlan]:
        """One random block an axis."""
        return (
            random_plan(
                self.uniform(task, batch, "time", 1),
                Selection(self.max_time),
                log_mel.shape[1],
                key=self.key("max_time"),
            ),
            random_plan(
                self.uniform(task, batch, "freq", 1),
                Selection(self.max_freq),
                log_mel.shape[2],
                key=self.key("max_freq"),
            ),
        )


class RandomMasking(Masking):
    """PEAS's masker with random positions: its number of blocks and widths, no selector.

    The paper's "Random Masking" rows (Table III), read as PEAS with no adaptive block.

    Args:
        n_time: Blocks along time, T of (T, F).
        n_freq: Blocks along frequency, F of (T, F).
        max_time: Mask parameter in frames.
        max_freq: Mask parameter in mel bins.
        final_phase: Last share of the epochs in which every mask has the fixed width M // 2;
            0 is off.
        overlap: `forbid` keeps a block off the earlier ones of its axis while there is room, so
            that random and adaptive masks hide equal areas; `allow` draws each by itself.
        stage: `after_noise` or `before_noise`.
    """

    def __init__(
        self,
        n_time: int = 1,
        n_freq: int = 1,
        max_time: int = 96,
        max_freq: int = 24,
        final_phase: float = 0.2,
        overlap: Overlap = "forbid",
        stage: Stage = "after_noise",
    ) -> None:
        super().__init__(max_time, max_freq, n_time, n_freq, stage)
        if not 0 <= final_phase <= 1:
            raise ConfigError(f"`{self.key('final_phase')}` is {final_phase}: a share in [0, 1]")
        self.final_phase = final_phase
        self.overlap = overlap

    def selection(self, trainer: Trainer, max_width: int) -> Selection:
        """Rules of one axis in this epoch."""
        return Selection(
            max_width, overlap=self.overlap, fixed_width=self.fixed(trainer, max_width)
        )

    def fixed(self, trainer: Trainer, max_width: int) -> int | None:
        """Width of every mask in the final phase, else None."""
        assert trainer.max_epochs
        last = final_phase(trainer.current_epoch, trainer.max_epochs, self.final_phase)
        return max_width // 2 if last else None

    def plans(
        self, trainer: Trainer, task: BaseTask, batch: Batch, log_mel: Tensor, valid: Tensor
    ) -> tuple[AxisPlan, AxisPlan]:
        """Random blocks of this epoch's widths."""
        return (
            random_plan(
                self.uniform(task, batch, "time", self.n_time),
                self.selection(trainer, self.max_time),
                log_mel.shape[1],
                key=self.key("max_time"),
            ),
            random_plan(
                self.uniform(task, batch, "freq", self.n_freq),
                self.selection(trainer, self.max_freq),
                log_mel.shape[2],
                key=self.key("max_freq"),
            ),
        )
