"""The base of all masking strategies of fine-tuning."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.masking.blocks import masked_fraction
from peas.tasks.augmentation import Stage
from peas.tasks.base import BaseTask
from peas.training.epoch_means import EpochMeans
from peas.training.trainer import callbacks_of


class MaskingContext(NamedTuple):
    """The training batch to be masked."""

    task: BaseTask
    batch: Batch

    def rand(self, stream: str, *shape: int) -> Tensor:
        """Uniform random numbers in [0, 1), `[B, *shape]` on the batch's device.

        They depend on seed, epoch, step and row alone, so that masks are the same on any number
        of processes and after a restart.

        Args:
            stream: Name of these numbers; two names give independent ones.
            shape: Of one clip's numbers.
        """
        numbers = self.task.random_numbers(self.batch, f"mask_{stream}", shape)
        return numbers.to(self.batch["log_mel"].device)


class MaskingStrategy(Callback, ABC):
    """Chooses the bins of the training clips that are masked. The config's key is `masking`.

    A subclass implements `mask`, of any shape, and is named in the config by its class path. The
    task calls it once per training batch, at the strategy's stage, and fills the masked bins:
    strategies differ only in where they mask. Logs the epoch's `mask/fraction`, the masked share of
    the bins.

    Args:
        stage: `after_noise` masks the model's input; `before_noise` masks first, as the official
            loader does, so that noise is added to the masked bins and the roll moves the mask.
    """

    def __init__(self, stage: Stage = "after_noise") -> None:
        self.stage = stage
        self.means = EpochMeans()

    @abstractmethod
    def mask(self, log_mel: Tensor, valid: Tensor, context: MaskingContext) -> Tensor:
        """`[B, T, F]` bool, True = masked.

        Args:
            log_mel: `[B, T, F]` unmasked, normalised, at this strategy's stage.
            valid: `[B, T]` bool, real sound in `log_mel`.
            context: The batch, the task, and random numbers.
        """

    def key(self, name: str) -> str:
        """Name of an argument of this strategy for messages."""
        return f"{type(self).__name__}.init_args.{name}"

    def mask_batch(self, task: BaseTask, batch: Batch) -> Tensor:
        """The mask of a training batch, checked and counted; the task calls it.

        Raises:
            ConfigError: The strategy returns something else than a mask of the batch.
        """
        if batch["step"] == 0:
            self.means.reset()
        log_mel = batch["log_mel"]
        mask = self.mask(log_mel, batch["valid"], MaskingContext(task, batch))
        if mask.shape != log_mel.shape or mask.dtype != torch.bool:
            raise ConfigError(
                f"`masking`: {type(self).__name__}.mask returns {mask.dtype} of "
                f"{list(mask.shape)}: it must be torch.bool of {list(log_mel.shape)} (clips, "
                "frames, mel bins)"
            )
        self.means.add("mask/fraction", masked_fraction(mask))
        return mask

    # --- hooks ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Registers with the task; refuses pretraining, and two strategies at once."""
        assert isinstance(pl_module, BaseTask)
        pl_module.require_maskable("masking")
        if len(strategies := callbacks_of(trainer, MaskingStrategy)) > 1:  # type: ignore[type-abstract]
            names = ", ".join(type(callback).__name__ for callback in strategies)
            raise ConfigError(
                f"`trainer.callbacks` has several masking strategies: {names}. Keep one, under "
                "the key `masking`"
            )
        pl_module.masking = self

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch."""
        self.means.log(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Sums of all processes, so that a resumed run logs the same; call it in every process."""
        return {"means": self.means.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from saved sums."""
        self.means.load_state_dict(state_dict["means"])
