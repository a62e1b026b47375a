"""How every task steps: its rate, its random numbers, and what may not reach the weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import Optimizer

from peas import randomness
from peas.data.batch import Batch
from peas.errors import PeasError
from peas.optim import global_lr
from peas.tasks.finite import RunningStatistics, Skipped, finite_gradients
from peas.tasks.running_means import save_sums


class SteppingModule(L.LightningModule):
    """A LightningModule whose optimiser steps depend on their place in training alone.

    Subclasses have `on_nonfinite` among their hyperparameters, and implement `lr_factor`.

    Attributes:
        skipped_steps: Optimiser steps of the run that were left out, because a gradient was no
            number.
    """

    skipped_steps: int = 0

    @property
    def global_batch(self) -> int | None:
        """Clips of one optimiser step, over all processes; None without a data module."""
        batch = getattr(getattr(self._trainer, "datamodule", None), "batch_size", None)
        if batch is None:
            return None
        return int(batch * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    @property
    def rate(self) -> float:
        """Learning rate at factor 1: `lr` by its `lr_rule`."""
        rule = self.hparams.get("lr_rule", "absolute")
        return global_lr(self.hparams["lr"], rule, self.global_batch)

    def epochs_passed(self, step: int) -> float:
        """Epochs trained before an optimiser step, with the fraction of the current one.

        Args:
            step: Optimiser step, from 0.
        """
        batches, accumulate = (
            self.trainer.num_training_batches,
            self.trainer.accumulate_grad_batches,
        )
        return step / math.ceil(batches / accumulate)

    def lr_factor(self, step: int, epoch: int) -> float:
        """Factor of every group's base rate at an optimiser step, both counted from 0."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate and reseeds dropout, both from the place in training alone."""
        factor = self.lr_factor(self.trainer.global_step, self.trainer.current_epoch)
        optimizer = cast(Optimizer, self.optimizers(use_pl_optimizer=False))
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=len(batch["id"]))
        # Lightning saves no generator states: without this, dropout after a resume differs.
        torch.manual_seed(
            randomness.stable_hash(
                randomness.run_seed(),
                "dropout",
                self.trainer.current_epoch,
                batch["step"],
                self.global_rank,
            )
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps, unless a gradient is no number, and lets go of the gradients.

        Lightning would keep them through the next forward: at its end, where a step needs the most
        memory, they would lie there unused.

        Raises:
            PeasError: A gradient is no number, and `on_nonfinite` is `stop`.
        """
        # Half floats overflow now and then, and their scaler leaves such steps out by itself.
        scaled = str(self.trainer.precision).startswith("16")
        closure = optimizer_closure if scaled else partial(self._checked, optimizer_closure)
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        except Skipped:
            self.skipped_steps += 1
        optimizer.zero_grad()

    def _checked(self, closure: Callable[[], Any] | None) -> Any:
        """Forward and backward; what comes of it must be numbers before the weights change."""
        assert closure is not None
        loss = closure()
        if finite_gradients(p for p in self.parameters() if p.requires_grad):
            self._statistics.keep()
            return loss
        self._statistics.restore()
        if self.hparams["on_nonfinite"] == "skip":
            raise Skipped
        raise PeasError(
            f"step {self.trainer.global_step + 1}, epoch {self.trainer.current_epoch + 1}: a "
            "gradient is not a number, or too large for one. The weights are those of the step "
            "before, and no checkpoint holds it. Lower `model.init_args.lr`, clip "
            "(`trainer.gradient_clip_val`), or set `model.init_args.on_nonfinite: skip` to leave "
            "out and count such steps"
        )

    def on_train_start(self) -> None:
        """Notes the statistics of BatchNorms."""
        self._statistics = RunningStatistics(self)

    def on_train_epoch_end(self) -> None:
        """Logs how many steps of the run were left out so far."""
        if self.hparams["on_nonfinite"] == "skip":
            self.log("train/skipped_steps", float(self.skipped_steps), rank_zero_only=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the number of steps that were left out, and the sums of all processes."""
        checkpoint["skipped_steps"] = self.skipped_steps
        save_sums(self, checkpoint)
