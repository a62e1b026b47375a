"""What a recipe is: an optimiser, its parameter groups, and a schedule of the learning rate."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn
from torch.optim import Optimizer

from peas.errors import ConfigError
from peas.models.encoder import Encoder
from peas.parts import Part

OnNonFinite = Literal["stop", "skip"]


class RunLength(NamedTuple):
    """How long a run is."""

    steps_per_epoch: int
    """Optimiser steps of an epoch."""
    max_epochs: int | None
    """`trainer.max_epochs`; None or negative = no bound."""
    max_steps: int
    """`trainer.max_steps`; negative = no bound."""

    @property
    def steps(self) -> float:
        """Optimiser steps of the run."""
        bounded = self.max_epochs is not None and self.max_epochs > 0
        epochs = self.max_epochs if bounded and self.max_epochs else math.inf
        return min(
            self.steps_per_epoch * epochs, self.max_steps if self.max_steps > 0 else math.inf
        )


class Recipe(Part, ABC):
    """How weights are trained. A schedule is a function of (step, epoch), so a run resumes exactly.

    A subclass takes its settings in `__init__`, and gives `optimizer` and `factor`; the rest may
    be left out.

    Args:
        lr: Learning rate. It and the rate of the run are printed at the start.
        base_batch_size: Linear scaling rule: `lr` belongs to a global batch of so many clips and is
            scaled in proportion to the run's (AudioMAE: 256). Null uses `lr` as it is.
        on_nonfinite: When a gradient is not finite: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose: ClassVar[Literal["fine-tuning", "pretraining"] | None] = None
    """What the recipe is for; None = both."""
    monitor: tuple[str, Literal["min", "max"]] | None = None
    """Metric of evaluation that selects the best checkpoint; None leaves it to the task."""

    def __init__(
        self,
        lr: float,
        base_batch_size: int | None = None,
        on_nonfinite: OnNonFinite = "stop",
    ) -> None:
        if not lr > 0:
            raise ConfigError(f"{key('lr')} is {lr}: it must be positive")
        if base_batch_size is not None and base_batch_size < 1:
            raise ConfigError(
                f"{key('base_batch_size')} is {base_batch_size}: give a number of clips, or null"
            )
        self.lr = lr
        self.base_batch_size = base_batch_size
        self.on_nonfinite: OnNonFinite = on_nonfinite

    @abstractmethod
    def optimizer(self, model: Encoder, others: Sequence[nn.Module], rate: float) -> Optimizer:
        """The optimiser over all that is trained.

        Each parameter group has a `name` and `base_lr`, its learning rate at factor 1.

        Args:
            model: The encoder; `layer_of` gives the depth of a parameter by name. Parameters
                without gradient are to be left out.
            others: Modules beside it, such as objectives.
            rate: Learning rate of this run, scaled to its batch.
        """

    @abstractmethod
    def factor(self, step: int, epoch: int, rate: float, run: RunLength) -> float:
        """Factor of every group's base rate.

        Args:
            step: Optimiser step, from 0.
            epoch: Epoch, from 0.
            rate: As in `optimizer`.
            run: Length of the run.
        """

    def check(self, rate: float, run: RunLength) -> None:
        """Raises ConfigError where this recipe does not fit the run's length or rate."""

    def warmup(self, run: RunLength) -> tuple[str, float]:
        """Name of the warm-up's setting, and its length in optimiser steps."""
        return "", 0.0

    def observe(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes the metrics of an evaluation during training, named without `val/`."""

    def state_dict(self) -> dict[str, Any]:
        """State that `observe` has changed, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""


def key(name: str) -> str:
    """Name of a setting in messages."""
    return f"`model.init_args.recipe.init_args.{name}`"
