"""An average of the trained weights, which a run validates and saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from peas.errors import CheckpointError, ConfigError
from peas.training.trainer import callbacks_of

LIVE = "current_model_state"
"""Key of a checkpoint that holds the weights which are trained; `state_dict` holds the average."""


class WeightAverage(Callback):
    """Keeps an exponential moving average of the trained weights, or the mean of epochs' ends.

    Validation and checkpoints use the average; checkpoints also hold the trained weights, for a
    run that resumes. The mean is that of SSAST's and AST's results on AudioSet (`wa_start` of their
    code): until its first epoch ends, validation and checkpoints use the trained weights. Buffers
    and frozen parameters are not averaged: an integer would be rounded down, and a constant would
    drift away from what `test` builds.

    Args:
        decay: Of the moving average, per optimizer step.
        equal_from: First epoch, from 0, whose weights at its end enter an equal mean; null is the
            moving average. The official `wa_start: 6` counts from 1, so it is 5.

    Raises:
        ConfigError: A value is out of its range.
    """

    def __init__(self, decay: float = 0.9999, equal_from: int | None = None) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"WeightAverage: decay is {decay}: give 0 or more, and less than 1")
        if equal_from is not None and equal_from < 0:
            raise ConfigError(f"WeightAverage: equal_from is {equal_from}: give 0 or more, or null")
        self.decay = decay
        self.equal_from = equal_from
        self._average: dict[str, Tensor] = {}
        self._models = 0
        self._step = 0

    @property
    def state_key(self) -> str:
        """Of the two kinds: Lightning refuses callbacks of the same key before `on_fit_start`."""
        equal = "" if self.equal_from is None else "{'equal': True}"
        return f"{type(self).__qualname__}{equal}"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a second average: validation would use a mixture of both."""
        if len(callbacks_of(trainer, WeightAverage)) > 1:
            raise ConfigError(
                "`trainer.callbacks` has several WeightAverage: keep one (configs for AudioSet "
                "with `equal_from` average already, without configs/overlays/ema.yaml)"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step at which training starts."""
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Averages after an optimizer step, or after the last batch of an epoch."""
        stepped = trainer.global_step != self._step
        self._step = trainer.global_step
        if self.equal_from is None:
            if stepped:
                self._update(pl_module, get_ema_multi_avg_fn(self.decay))  # type: ignore[no-untyped-call]
        elif trainer.current_epoch >= self.equal_from and trainer.is_last_batch:
            # Before the epoch's validation, which scores the mean that includes this epoch.
            self._update(pl_module, get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
            self._models += 1

    def _update(self, module: nn.Module, average: Callable[..., None]) -> None:
        """Updates the average in place; it starts as a copy of the weights."""
        weights = _trained(module)
        if not self._average:
            self._average = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        averages = [self._average[name] for name in weights]
        average(averages, list(weights.values()), self._models)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swaps the average into the model."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swaps the trained weights back."""
        self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the model."""
        self._fill(pl_module, self._average)

    def state_dict(self) -> dict[str, Any]:
        """Number of epochs in an equal mean."""
        return {"models": self._models}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the number."""
        self._models = state_dict["models"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as the model's state, and the trained weights beside it."""
        state = checkpoint["state_dict"]
        if self._average:
            checkpoint[LIVE] = {name: state[name] for name in self._average}
            checkpoint["state_dict"] = {**state, **self._average}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the trained weights and the average, to resume training.

        A checkpoint without an average starts a moving one from its weights, and an equal mean at
        the end of the next epoch. For evaluation the average is already in the model.

        Raises:
            CheckpointError: A weight is missing, or has another shape.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        live, state = checkpoint.get(LIVE), checkpoint["state_dict"]
        weights = _trained(pl_module)
        for part in (state, live or {}):
            for name, weight in weights.items():
                if part and (name not in part or part[name].shape != weight.shape):
                    raise CheckpointError(
                        f"{trainer.ckpt_path}: its averaged weights do not fit the model at "
                        f"{name}; use the run's own config.yaml with its checkpoint"
                    )
        if live is None and self.equal_from is not None:
            return
        self._average = {name: state[name].to(weight) for name, weight in weights.items()}
        # A copy: `to` copies nothing where the device is the same.
        self._average = {name: weight.clone() for name, weight in self._average.items()}
        if live:
            self._fill(pl_module, live)

    @torch.no_grad()
    def _fill(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        for name, weight in _trained(module).items():
            if name in state:
                weight.copy_(state[name])

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        for name, weight in _trained(module).items():
            if name in self._average:
                kept = weight.clone()
                weight.copy_(self._average[name])
                self._average[name].copy_(kept)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
