"""SSAST's recipes, which PEAS shares: Adam, a staircase of warm-up, decay by epochs or plateaus."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from peas.errors import CheckpointError, ConfigError
from peas.models.encoder import Encoder
from peas.recipes.base import OnNonFinite, Recipe, RunLength, key
from peas.recipes.learning_rate import staircase_warmup, step_decay
from peas.recipes.parameter_groups import head_groups

CLASSIFIER = ("fc_norm", "head")


class SSASTRecipe(Recipe):
    """Fine-tuning of SSAST, AST and PEAS: Adam, warm-up of stairs, decay by epochs.

    Args:
        lr: Learning rate of the encoder.
        base_batch_size: Batch that `lr` is meant for (linear scaling); null uses `lr` as it is.
        head_lr_mult: Times `lr` for the classifier, the official `head_lr`.
        weight_decay: L2 term inside Adam, as official.
        betas: Of Adam.
        warmup_steps: Length of the warm-up; 0 is off. SSAST has 1000 for Speech Commands.
        decay_start: First epoch, from 0, whose rate decays; null is off. SSAST has 6 for ESC-50
            (AST's recipe of equally many epochs as PEAS has 5) and 5 for Speech Commands.
        decay_factor: Factor of one decay.
        decay_every: Epochs from one decay to the next; SSAST has 5 for AudioSet's balanced part.
        on_nonfinite: When a gradient is not finite: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose = "fine-tuning"

    def __init__(
        self,
        lr: float = 1e-4,
        base_batch_size: int | None = None,
        head_lr_mult: float = 1.0,
        weight_decay: float = 5e-7,
        betas: tuple[float, float] = (0.95, 0.999),
        warmup_steps: int = 0,
        decay_start: int | None = 6,
        decay_factor: float = 0.85,
        decay_every: int = 1,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(lr, base_batch_size, on_nonfinite)
        if decay_every < 1:
            raise ConfigError(f"{key('decay_every')} is {decay_every}: give 1 or more")
        self.head_lr_mult, self.weight_decay = head_lr_mult, weight_decay
        self.betas = (betas[0], betas[1])
        self.warmup_steps = warmup_steps
        self.decay_start, self.decay_factor = decay_start, decay_factor
        self.decay_every = decay_every

    def optimizer(self, model: Encoder, others: Sequence[nn.Module], rate: float) -> Optimizer:
        """Adam over encoder and classifier."""
        groups = head_groups(model, CLASSIFIER, rate, self.head_lr_mult)
        trained = [group for group in groups if group["params"]]
        return torch.optim.Adam(
            trained, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )

    def factor(self, step: int, epoch: int, rate: float, run: RunLength) -> float:
        """Staircase warm-up times the decay of the epoch."""
        decay = step_decay(epoch, self.decay_start, self.decay_factor, self.decay_every)
        return staircase_warmup(step, self.warmup_steps) * decay

    def warmup(self, run: RunLength) -> tuple[str, float]:
        """`warmup_steps`."""
        return "warmup_steps", self.warmup_steps


class SSASTPretrainingRecipe(Recipe):
    """Pretraining of SSAST: Adam, warm-up of stairs, a rate that falls on plateaus.

    Args:
        lr: Learning rate; officially 1e-4 for base and 5e-4 for tiny.
        weight_decay: L2 term inside Adam, as official.
        betas: Of Adam.
        warmup_steps: Length of the official staircase warm-up; 0 is off.
        plateau_every: Optimiser steps between two evaluations that decide about the rate, 4000
            officially (800 for tiny); null = a constant rate. It takes the first validation at or
            after each multiple: set `trainer.val_check_interval` to the same number.
        plateau_factor: What the rate is multiplied by when evaluations stop getting better.
        plateau_patience: Evaluations in a row, no better than the best, that are tolerated.
        monitor: What gets better, and chooses the best checkpoint: `nce_accuracy` of InfoNCE; or,
            without it, an error such as `mse`. A name with `accuracy` is better when larger.
        on_nonfinite: When a gradient is not finite: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose = "pretraining"

    def __init__(
        self,
        lr: float = 1e-4,
        weight_decay: float = 5e-7,
        betas: tuple[float, float] = (0.95, 0.999),
        warmup_steps: int = 1000,
        plateau_every: int | None = 4000,
        plateau_factor: float = 0.5,
        plateau_patience: int = 2,
        monitor: str = "nce_accuracy",
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        super().__init__(lr, None, on_nonfinite)
        if plateau_every is not None and plateau_every < 1:
            raise ConfigError(f"{key('plateau_every')} is {plateau_every}: give 1 or more, or null")
        if not 0 < plateau_factor <= 1:
            raise ConfigError(
                f"{key('plateau_factor')} is {plateau_factor}: give more than 0, and 1 at most"
            )
        self.weight_decay, self.betas = weight_decay, (betas[0], betas[1])
        self.warmup_steps = warmup_steps
        self.plateau_every, self.plateau_factor = plateau_every, plateau_factor
        self.plateau_patience = plateau_patience
        self.watched = monitor
        self.monitor = (f"val/{monitor}", "max" if "accuracy" in monitor else "min")
        self.plateau = Plateau()

    def optimizer(self, model: Encoder, others: Sequence[nn.Module], rate: float) -> Optimizer:
        """Adam over all that is trained."""
        modules = (model, *others)
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        group = {"params": trained, "lr": rate, "base_lr": rate, "name": "model"}
        return torch.optim.Adam(
            [group], betas=self.betas, weight_decay=self.weight_decay, fused=True
        )

    def factor(self, step: int, epoch: int, rate: float, run: RunLength) -> float:
        """Staircase warm-up times the factor of the plateaus."""
        return staircase_warmup(step, self.warmup_steps) * self.plateau.factor

    def warmup(self, run: RunLength) -> tuple[str, float]:
        """`warmup_steps`."""
        return "warmup_steps", self.warmup_steps

    def observe(self, metrics: Mapping[str, float], step: int) -> None:
        """Lowers the rate when the monitored metric stops getting better.

        Raises:
            ConfigError: The run has no such metric.
        """
        if self.plateau_every is None:
            return
        value = metrics.get(self.watched)
        if value is None:
            raise ConfigError(
                f"{key('monitor')} is {self.watched!r}, which this run does not log: "
                f"give one of {', '.join(sorted(metrics))}"
            )
        self.plateau = next_plateau(
            self.plateau,
            value if "accuracy" in self.watched else -value,
            step,
            factor=self.plateau_factor,
            patience=self.plateau_patience,
            every=self.plateau_every,
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the plateau schedule."""
        return self.plateau._asdict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the plateau schedule.

        Raises:
            CheckpointError: It is damaged.
        """
        numbers = all(type(value) in (int, float) for value in state.values())
        if not numbers or not set(state) <= set(Plateau._fields):
            raise CheckpointError(
                f"the checkpoint's `recipe` is {state}, and not the state of a plateau schedule: "
                "the file is damaged, get it again"
            )
        self.plateau = Plateau(**state)


class Plateau(NamedTuple):
    """State of a plateau schedule.

    Attributes:
        best: Best value so far.
        bad: Evaluations since then that were no better.
        factor: Factor of the learning rate.
        step: Optimiser step of the latest evaluation that counted.
    """

    best: float = -math.inf
    bad: int = 0
    factor: float = 1.0
    step: int = 0


def next_plateau(
    state: Plateau, value: float, step: int, *, factor: float, patience: int, every: int
) -> Plateau:
    """State after one evaluation; the rules are those of PyTorch's `ReduceLROnPlateau`.

    The first evaluation at or after each multiple of `every` steps counts. Better is what exceeds
    the best by one part in ten thousand of it: so of negative values, such as an error's negative,
    one that is worse by less than that counts as better too, as in the official run.

    Args:
        state: State before it.
        value: What was evaluated; more is better.
        step: Optimiser steps so far.
        factor: What the rate is multiplied by after more than `patience` evaluations in a row
            that were no better.
        patience: Number of such evaluations that are tolerated.
        every: Steps from one evaluation that counts to the next.
    """
    if step // every <= state.step // every:
        return state
    if value > state.best * (1 + 1e-4):
        return Plateau(value, 0, state.factor, step)
    if state.bad + 1 > patience:
        return Plateau(state.best, 0, state.factor * factor, step)
    return Plateau(state.best, state.bad + 1, state.factor, step)
