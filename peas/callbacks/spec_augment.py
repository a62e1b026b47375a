"""Masking strategies without a model: conventional SpecAugment and random blocks.

Their masks are blocks along time crossed with blocks along frequency, like those of `PEAS` in
`peas.callbacks.peas`.
"""

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from peas.callbacks.masking import MaskingContext, MaskingStrategy
from peas.errors import ConfigError
from peas.masking.blocks import Overlap, blocks_to_mask, check_width, cross
from peas.masking.peas.schedule import final_phase
from peas.masking.peas.selector import NUMBERS, AxisPlan, Selection, random_plan
from peas.tasks.augmentation import Stage
from peas.tasks.base import BaseTask
from peas.training.distributed import gather, is_first


class BlockMasking(MaskingStrategy):
    """Masks of blocks of frames and of mel bins; a subclass plans the blocks.

    Logs, over the run so far, `mask/adaptive_share` (adaptive blocks among all blocks).

    Args:
        max_time: Mask parameter in frames; widths are uniform on 0 … max_time - 1.
        max_freq: Mask parameter in mel bins.
        n_time: Blocks along time.
        n_freq: Blocks along frequency.
        stage: `after_noise` or `before_noise`.
    """

    def __init__(
        self, max_time: int, max_freq: int, n_time: int, n_freq: int, stage: Stage
    ) -> None:
        super().__init__(stage)
        for key, count in (("n_time", n_time), ("n_freq", n_freq)):
            if count < 0:
                raise ConfigError(f"`{self.key(key)}` is {count}: use 0 or more blocks")
        self.max_time, self.max_freq = max_time, max_freq
        self.n_time, self.n_freq = n_time, n_freq
        self._blocks = torch.zeros(2, dtype=torch.float64)

    @abstractmethod
    def plans(
        self, log_mel: Tensor, valid: Tensor, context: MaskingContext
    ) -> tuple[AxisPlan, AxisPlan]:
        """Blocks along time and frequency; arguments as of `mask`."""

    def countable(
        self, task: BaseTask, log_mel: Tensor, valid: Tensor, sounding: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Frames `[B, T]` and mel bins `[B, F]` that count for a score of windows; None = all."""
        return None, None

    def mask(self, log_mel: Tensor, valid: Tensor, context: MaskingContext) -> Tensor:
        """The planned blocks; writes `mask_plan` into the batch."""
        time, freq = self.plans(log_mel, valid, context)
        context.batch["mask_plan"] = (time, freq)
        adaptive = time.adaptive.sum() + freq.adaptive.sum()
        total = time.adaptive.numel() + freq.adaptive.numel()
        self._blocks = self._blocks.to(log_mel.device)
        self._blocks = self._blocks + torch.stack([adaptive, torch.full_like(adaptive, total)])
        return cross(
            blocks_to_mask(time.blocks, log_mel.shape[1]),
            blocks_to_mask(freq.blocks, log_mel.shape[2]),
        )

    def rand(self, context: MaskingContext, axis: str, count: int) -> Tensor:
        """Random numbers `[B, count, NUMBERS]` of one axis, the same for every block strategy."""
        return context.rand(axis, count, NUMBERS)

    # --- hooks ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Also refuses masks that do not fit, and a run without `max_epochs`."""
        super().on_fit_start(trainer, pl_module)
        assert isinstance(pl_module, BaseTask)
        check_width(self.key("max_time"), self.max_time, pl_module.front_end.frames)
        check_width(self.key("max_freq"), self.max_freq, pl_module.front_end.n_mels)
        if not trainer.max_epochs or trainer.max_epochs < 0:
            raise ConfigError("`trainer.max_epochs` is not set: masking schedules depend on it")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        share = (self._blocks[0] / self._blocks[1].clamp(min=1)).float()
        pl_module.log("mask/adaptive_share", share, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        """Also the numbers of blocks, of all processes."""
        blocks = [sum(column) for column in zip(*gather(self._blocks.tolist()), strict=True)]
        return {**super().state_dict(), "blocks": blocks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from saved counts."""
        super().load_state_dict(state_dict)
        if is_first():
            self._blocks = torch.tensor(state_dict["blocks"], dtype=torch.float64)


class SpecAugment(BlockMasking):
    """Conventional SpecAugment: one random interval along each axis, all epochs alike.

    torchaudio's distribution, width ⌊U·M⌋ and start ⌊U·(size - U·M)⌋, which the official SSAST
    loader applies before normalisation and noise; sampled here for each clip.

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
        self, log_mel: Tensor, valid: Tensor, context: MaskingContext
    ) -> tuple[AxisPlan, AxisPlan]:
        """One random block per axis."""
        return (
            random_plan(
                self.rand(context, "time", 1),
                Selection(self.max_time),
                log_mel.shape[1],
                key=self.key("max_time"),
            ),
            random_plan(
                self.rand(context, "freq", 1),
                Selection(self.max_freq),
                log_mel.shape[2],
                key=self.key("max_freq"),
            ),
        )


class RandomMasking(BlockMasking):
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
            that random and adaptive masks cover equal areas; `allow` samples each independently.
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
        self, log_mel: Tensor, valid: Tensor, context: MaskingContext
    ) -> tuple[AxisPlan, AxisPlan]:
        """Random blocks of this epoch's widths."""
        return (
            random_plan(
                self.rand(context, "time", self.n_time),
                self.selection(context.task.trainer, self.max_time),
                log_mel.shape[1],
                key=self.key("max_time"),
            ),
            random_plan(
                self.rand(context, "freq", self.n_freq),
                self.selection(context.task.trainer, self.max_freq),
                log_mel.shape[2],
                key=self.key("max_freq"),
            ),
        )
