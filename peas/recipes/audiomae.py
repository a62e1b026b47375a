"""AudioMAE's recipes, which SupMAM-CLAP shares: AdamW, linear warm-up, half a cosine."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from peas.errors import ConfigError
from peas.models.encoder import Encoder
from peas.recipes.base import OnNonFinite, Recipe, RunLength, key
from peas.recipes.learning_rate import cosine_factor
from peas.recipes.parameter_groups import decay_groups, layer_groups


class AudioMAERecipe(Recipe):
    """Fine-tuning of AudioMAE: AdamW, rates that fall with depth, a cosine over the run.

    Vectors, biases, special tokens and positions are not decayed.

    Args:
        lr: Learning rate of the last layer.
        base_batch_size: Batch that `lr` is meant for (linear scaling); null uses `lr` as it is.
        layer_decay: Ratio of a layer's rate to that of the next one; 1 trains all alike.
        weight_decay: Decoupled, as in AdamW.
        betas: AudioMAE's paper has (0.9, 0.95), its code (0.9, 0.999).
        warmup_epochs: Length of the linear warm-up; AudioMAE has 4 of 60.
        min_lr: Rate at the end, of the layers at the full rate.
        on_nonfinite: When a gradient is not finite: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose = "fine-tuning"

    def __init__(
        self,
        lr: float = 1e-3,
        base_batch_size: int | None = 256,
        layer_decay: float = 0.75,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_epochs: float = 4.0,
        min_lr: float = 1e-6,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(lr, base_batch_size, on_nonfinite)
        for name, value in (("min_lr", min_lr), ("warmup_epochs", warmup_epochs)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{key(name)} is {value}: give 0 or more")
        if not 0 < layer_decay <= 1:
            raise ConfigError(
                f"{key('layer_decay')} is {layer_decay}: give a number above 0 and up to 1 "
                "(1 trains every layer at the same rate)"
            )
        self.layer_decay, self.weight_decay = layer_decay, weight_decay
        self.betas = (betas[0], betas[1])
        self.warmup_epochs, self.min_lr = warmup_epochs, min_lr

    def optimizer(self, model: Encoder, others: Sequence[nn.Module], rate: float) -> Optimizer:
        """AdamW with a group for each depth."""
        groups = layer_groups(model, rate, self.weight_decay, self.layer_decay)
        return torch.optim.AdamW(
            groups, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )

    def factor(self, step: int, epoch: int, rate: float, run: RunLength) -> float:
        """Linear warm-up, then half a cosine, in every iteration."""
        assert run.max_epochs
        at = step / run.steps_per_epoch
        return cosine_factor(at, self.warmup_epochs, run.max_epochs, self.min_lr / rate)

    def check(self, rate: float, run: RunLength) -> None:
        """Refuses a run of unknown length, and a rate that would rise."""
        if not run.max_epochs or run.max_epochs < 0:
            raise ConfigError(
                "`trainer.max_epochs` is not set: AudioMAERecipe's cosine needs the run's length"
            )
        if self.min_lr >= rate:
            raise ConfigError(
                f"{key('min_lr')} is {self.min_lr:g} and the rate of this run {rate:g}, so the "
                "rate would rise: lower min_lr, or raise lr or the batch size"
            )

    def warmup(self, run: RunLength) -> tuple[str, float]:
        """`warmup_epochs`."""
        return "warmup_epochs", self.warmup_epochs * run.steps_per_epoch


class AudioMAEPretrainingRecipe(Recipe):
    """Pretraining of AudioMAE and SupMAM-CLAP: AdamW on matrices, a cosine over the run.

    Args:
        lr: Learning rate.
        base_batch_size: Batch that `lr` is meant for (linear scaling); null uses `lr` as it is.
        weight_decay: Of matrices, class and mask tokens; not of vectors.
        betas: AdamW's.
        warmup_epochs: Length of the linear warm-up.
        min_lr: Rate at the end of the cosine, which is not scaled.
        on_nonfinite: When a gradient is not finite: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose = "pretraining"

    def __init__(
        self,
        lr: float = 2e-4,
        base_batch_size: int | None = 256,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_epochs: float = 3.0,
        min_lr: float = 0.0,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(lr, base_batch_size, on_nonfinite)
        self.weight_decay, self.betas = weight_decay, (betas[0], betas[1])
        self.warmup_epochs, self.min_lr = warmup_epochs, min_lr

    def optimizer(self, model: Encoder, others: Sequence[nn.Module], rate: float) -> Optimizer:
        """AdamW; vectors and biases are not decayed."""
        groups = decay_groups(nn.ModuleList((model, *others)), rate, self.weight_decay)
        return torch.optim.AdamW(groups, betas=self.betas, fused=True)

    def factor(self, step: int, epoch: int, rate: float, run: RunLength) -> float:
        """Linear warm-up, then half a cosine, in every iteration."""
        epochs: float = run.max_epochs or 0
        if epochs <= 0:
            epochs = run.max_steps / run.steps_per_epoch
        warmup = min(self.warmup_epochs, epochs)
        return cosine_factor(step / run.steps_per_epoch, warmup, epochs, self.min_lr / rate)

    def check(self, rate: float, run: RunLength) -> None:
        """Refuses a run of unknown length."""
        if (not run.max_epochs or run.max_epochs < 0) and run.max_steps <= 0:
            raise ConfigError(
                "the cosine of AudioMAEPretrainingRecipe needs the run's length: set "
                "`trainer.max_epochs`, or `trainer.max_steps`"
            )

    def warmup(self, run: RunLength) -> tuple[str, float]:
        """`warmup_epochs`."""
        return "warmup_epochs", self.warmup_epochs * run.steps_per_epoch
