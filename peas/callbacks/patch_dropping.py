"""AudioMAE's masking in fine-tuning: whole times and whole bands of patches are left out."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from peas.callbacks.siblings import siblings
from peas.errors import ConfigError
from peas.masking.patches import time_freq_mask
from peas.models.encoder import Encoder
from peas.tasks.base import BaseTask


class PatchDropping(Callback):
    """Drops a share of the times and of the bands of patches in training, drawn for each clip.

    The patches that stay keep their values and places; the sequence is shorter, so a step is
    faster. Of T' x F' patches ⌊T'(1 - time)⌋ x ⌊F'(1 - freq)⌋ stay: with 0.2 and 0.2 of AudioMAE's
    64 x 8 patches 51 x 6 = 306, that is 40 % are dropped. In evaluation all are there.

    It stands in `trainer.callbacks`. A masking strategy, under the key `masking`, may go beside it:
    that one fills bins of the log-mel, this one takes patches out of the sequence.

    Args:
        time: Share of the times that are dropped. AudioMAE's published commands have 0.2 for both,
            the text of its paper 0.3; SupMAM-CLAP's "SpecAugment 0.2" is read as these.
        freq: Share of the bands that are dropped.

    Raises:
        ConfigError: A share is out of its range.
    """

    def __init__(self, time: float = 0.2, freq: float = 0.2) -> None:
        for key, share in (("time", time), ("freq", freq)):
            if not 0 <= share < 1:
                raise ConfigError(
                    f"`PatchDropping.init_args.{key}` is {share}: give a share from 0 to below 1"
                )
        self.time, self.freq = time, freq

    def kept(self, model: Encoder) -> tuple[int, int]:
        """Numbers of times and of bands that stay."""
        bands, times = model.grid
        return _kept(times, self.time), _kept(bands, self.freq)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses shares that leave nothing, and a second such callback; says what stays."""
        assert isinstance(pl_module, BaseTask)
        pl_module.require_maskable("trainer.callbacks")
        if len(siblings(trainer, PatchDropping)) > 1:
            raise ConfigError("`trainer.callbacks` has several `PatchDropping`: keep one")
        bands, times = pl_module.model.grid
        kept_times, kept_bands = self.kept(pl_module.model)
        for key, count, whole in (("time", kept_times, times), ("freq", kept_bands, bands)):
            if not count:
                raise ConfigError(
                    f"`PatchDropping.init_args.{key}` is {getattr(self, key)}, which keeps none of "
                    f"{whole} {'times' if key == 'time' else 'bands'} of patches: give less than "
                    f"{1 - 1 / whole:g}, or 0"
                )
        rank_zero_info(
            f"PatchDropping keeps {kept_times} of {times} times and {kept_bands} of {bands} bands: "
            f"{kept_times * kept_bands} of {times * bands} patches"
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Writes `dropped_patches` in the model's own order."""
        assert isinstance(pl_module, BaseTask)
        model, device = pl_module.model, batch["log_mel"].device
        bands, times = model.grid
        hidden = time_freq_mask(
            pl_module.random_numbers(batch, "drop_time", (times,)).to(device),
            pl_module.random_numbers(batch, "drop_freq", (bands,)).to(device),
            *self.kept(model),
        )
        batch["dropped_patches"] = (hidden if model.time_major else hidden.mT).flatten(1)


def _kept(count: int, share: float) -> int:
    # A product such as 10 * (1 - 0.9) is a hair below its whole number.
    return math.floor(count * (1 - share) + 1e-9)
