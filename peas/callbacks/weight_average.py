"""A moving average of the trained weights, which is what a run validates and saves."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from peas.errors import CheckpointError, ConfigError

LIVE = "current_model_state"
"""Key of a checkpoint that holds the weights which are trained; `state_dict` holds the average."""


class WeightAverage(Callback):
    """Keeps an exponential moving average of the trained weights.

    Validation and checkpoints use the average; a run that resumes finds the trained weights beside
    it. Buffers and frozen parameters are the module's own: averaged, an integer would be rounded
    down, and a constant would drift away from what `test` builds.

    Args:
        decay: Share of the old average that stays after an optimizer step.

    Raises:
        ConfigError: `decay` is out of its range.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"WeightAverage: decay is {decay}: give 0 or more, and less than 1")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the optimizer step that training starts from."""
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
        """Averages after an optimizer step; the first one's weights are the first average."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        weights = _trained(pl_module)
        if not self._average:
            self._average = {name: weight.detach().clone() for name, weight in weights.items()}
            return
        average = [self._average[name] for name in weights]
        torch._foreach_lerp_(average, list(weights.values()), 1.0 - self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average in the place of the trained weights."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the trained weights back."""
        self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the model."""
        self._fill(pl_module, self._average)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as the state, and the trained weights beside it."""
        state = checkpoint["state_dict"]
        if self._average:
            checkpoint[LIVE] = {name: state[name] for name in self._average}
            checkpoint["state_dict"] = {**state, **self._average}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the trained weights and the average from a checkpoint, to go on with training.

        A checkpoint of a run without an average starts one from its weights. Evaluation keeps the
        average, which the model has been given.

        Raises:
            CheckpointError: One of the two lacks a weight, or has one of another shape.
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
        self._average = {name: state[name].to(weight) for name, weight in weights.items()}
        # The model holds what was loaded: `to` copies nothing where the device is the same.
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
