"""AudioMAE's masking in fine-tuning: patch dropout along time and frequency."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from peas.errors import ConfigError
from peas.masking.patches import time_freq_mask
from peas.models.encoder import Encoder
from peas.tasks.base import BaseTask
from peas.training.trainer import callbacks_of


class PatchDropout(Callback):
    """Drops a random share of the columns (times) and rows (bands) of patches in training.

    The other patches keep their values and positions; the sequence is shorter, so a step is
    faster. Of T' x F' patches ⌊T'(1 - time)⌋ x ⌊F'(1 - freq)⌋ are kept: with 0.2 and 0.2 of
    AudioMAE's 64 x 8 patches 51 x 6 = 306, so 40 % are dropped. Evaluation drops none.

    It belongs in `trainer.callbacks`. A masking strategy, under the key `masking`, can be used with
    it: that one fills bins of the log-mel, this one shortens the sequence.

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
                    f"`PatchDropout.init_args.{key}` is {share}: give a share from 0 to below 1"
                )
        self.time, self.freq = time, freq

    def kept(self, model: Encoder) -> tuple[int, int]:
        """Numbers of times and bands that are kept."""
        bands, times = model.grid
        return _kept(times, self.time), _kept(bands, self.freq)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses shares that keep nothing, and a second such callback; logs what is kept."""
        assert isinstance(pl_module, BaseTask)
        pl_module.require_maskable("trainer.callbacks")
        if len(callbacks_of(trainer, PatchDropout)) > 1:
            raise ConfigError("`trainer.callbacks` has several `PatchDropout`: keep one")
        bands, times = pl_module.model.grid
        kept_times, kept_bands = self.kept(pl_module.model)
        for key, count, total in (("time", kept_times, times), ("freq", kept_bands, bands)):
            if not count:
                raise ConfigError(
                    f"`PatchDropout.init_args.{key}` is {getattr(self, key)}, which keeps none of "
                    f"{total} {'times' if key == 'time' else 'bands'} of patches: give less than "
                    f"{1 - 1 / total:g}, or 0"
                )
        rank_zero_info(
            f"PatchDropout keeps {kept_times} of {times} times and {kept_bands} of {bands} bands: "
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
    # A product such as 10 * (1 - 0.9) is slightly below its integer.
    return math.floor(count * (1 - share) + 1e-9)
