"""How every task steps: its rate, its random numbers, and what may not reach the weights."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from peas.data.batch import Batch
from peas.errors import CheckpointError, PeasError
from peas.recipes.base import Recipe, RunLength, global_lr
from peas.training import randomness
from peas.training.epoch_means import save_sums
from peas.training.nonfinite import RunningStatistics, Skipped, finite_gradients


class SteppingModule(L.LightningModule):
    """A LightningModule whose optimiser steps depend on their place in training alone.

    Attributes:
        recipe: Optimiser and schedule.
        skipped_steps: Optimiser steps of the run that were left out, because a gradient was no
            number.
    """

    recipe: Recipe
    skipped_steps: int = 0
    _saved_sizes: list[tuple[Any, int]] | None = None

    @property
    def global_batch(self) -> int | None:
        """Clips of one optimiser step, over all processes; None without a data module."""
        batch = getattr(getattr(self._trainer, "datamodule", None), "batch_size", None)
        if batch is None:
            return None
        return int(batch * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    @property
    def rate(self) -> float:
        """Learning rate at factor 1: the recipe's `lr` by its `lr_rule`."""
        return global_lr(self.recipe.lr, self.recipe.lr_rule, self.global_batch)

    @property
    def length(self) -> RunLength:
        """How long the run is, as far as it is known."""
        trainer = self.trainer
        batches: float = trainer.num_training_batches
        known = math.isfinite(batches)
        steps = math.ceil(batches / trainer.accumulate_grad_batches) if known else 0
        return RunLength(steps, trainer.max_epochs, trainer.max_steps)

    def lr_factor(self, step: int, epoch: int) -> float:
        """Factor of every group's base rate at an optimiser step, both counted from 0."""
        return self.recipe.factor(step, epoch, self.rate, self.length)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate and reseeds dropout, both from the place in training alone."""
        factor = self.lr_factor(self.trainer.global_step, self.trainer.current_epoch)
        optimizer = self._optimizer()
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
        if self.recipe.on_nonfinite == "skip":
            raise Skipped
        raise PeasError(
            f"step {self.trainer.global_step + 1}, epoch {self.trainer.current_epoch + 1}: a "
            "gradient is not a number, or too large for one. The weights are those of the step "
            "before, and no checkpoint holds it. Lower "
            "`model.init_args.recipe.init_args.lr`, clip (`trainer.gradient_clip_val`), or set "
            "`model.init_args.recipe.init_args.on_nonfinite: skip` to leave out and count such "
            "steps"
        )

    def on_fit_start(self) -> None:
        """Notes what the settings ask of the optimiser, before a checkpoint's state comes over it.

        Raises:
            CheckpointError: The state belongs to other parameters than those that train now.
        """
        optimizer = self._optimizer()
        self._asked = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups
        ]
        sizes = [(group["name"], len(group["params"])) for group in optimizer.param_groups]
        saved = self._saved_sizes
        if saved is not None and saved != sizes:
            raise CheckpointError(
                f"{self.trainer.ckpt_path}: its optimiser trains other "
                f"parameters ({_counts(saved)}) than the present settings do "
                f"({_counts(sizes)}). Go on with the run's own config.yaml, or start a new run "
                "from these weights with `--model.init_args.pretrained`"
            )

    def _optimizer(self) -> Optimizer:
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

    def on_train_start(self) -> None:
        """Lets the settings win over the optimiser's saved ones; notes BatchNorm's statistics.

        Rates, decay and betas stand in the optimiser's state beside the moments. Those of the
        present settings are trained with, whatever the checkpoint says.
        """
        for group, asked in zip(self._optimizer().param_groups, self._asked, strict=True):
            group.update(asked)
        self._statistics = RunningStatistics(self)
        self._warn_of_long_warmup()

    def _warn_of_long_warmup(self) -> None:
        total = self.length.steps
        key, warmup = self.recipe.warmup(self.length)
        if 3 * warmup <= total:
            return
        at_zero = sum(self.lr_factor(step, 0) == 0 for step in range(1, min(int(total), 100)))
        told = f". Its first {1 + at_zero} steps train at a rate of 0" if at_zero else ""
        rank_zero_warn(
            f"`model.init_args.recipe.init_args.{key}` lets the learning rate rise through "
            f"{warmup:.0f} steps, and the whole run has {total:.0f}: lower it, or train "
            f"longer{told}"
        )

    def on_train_epoch_end(self) -> None:
        """Logs the rate, and how many steps of the run were left out so far."""
        # Steps are logged now and then, and a short epoch may have none of those.
        self.log("lr", self._optimizer().param_groups[0]["lr"], rank_zero_only=True)
        if self.recipe.on_nonfinite == "skip":
            self.log("train/skipped_steps", float(self.skipped_steps), rank_zero_only=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which parameters the saved optimiser trains."""
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        states = checkpoint.get("optimizer_states")
        if states:
            self._saved_sizes = [
                (group.get("name"), len(group["params"])) for group in states[0]["param_groups"]
            ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the number of steps that were left out, and the sums of all processes."""
        checkpoint["skipped_steps"] = self.skipped_steps
        save_sums(self, checkpoint)


def _counts(sizes: list[tuple[Any, int]]) -> str:
    if len(sizes) > 4:
        return f"{sum(count for _, count in sizes)} in {len(sizes)} groups"
    return ", ".join(f"{name}: {count}" for name, count in sizes)
