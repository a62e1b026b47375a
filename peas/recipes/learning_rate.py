"""The learning rate: of a run, by its global batch, and its factor at each step and epoch."""

import math

from peas.errors import ConfigError
from peas.recipes.base import key


def global_lr(lr: float, base_batch_size: int | None, global_batch: int | None) -> float:
    """Learning rate of a run, from the rate that its recipe states.

    Args:
        lr: The recipe's rate.
        base_batch_size: Batch that `lr` is meant for: `lr * global_batch / base_batch_size`. None
            uses `lr` as it is.
        global_batch: Clips of one optimiser step: those of a batch, times processes, times
            accumulated batches. None = unknown.

    Raises:
        ConfigError: The batch size is needed and unknown.
    """
    if base_batch_size is None:
        return lr
    if global_batch is None:
        raise ConfigError(
            f"{key('base_batch_size')} is {base_batch_size}, which needs the data module's batch "
            "size: give `data`, or set it to null to use `lr` as it is"
        )
    return lr * global_batch / base_batch_size


def cosine_factor(
    progress_epochs: float, warmup_epochs: float, epochs: float, min_factor: float = 0.0
) -> float:
    """Linear warm-up from zero, then half a cosine down to `min_factor` (AudioMAE, MAE).

    Args:
        progress_epochs: Epochs trained so far, with the fraction of the current one; so the rate
            changes in every iteration.
        warmup_epochs: Length of the warm-up; 0 is off.
        epochs: Epochs of the run, warm-up included.
        min_factor: Factor at the end, the recipe's least rate over its rate. The warm-up begins
            at 0 all the same, as officially.
    """
    if progress_epochs < warmup_epochs:
        return progress_epochs / warmup_epochs
    if progress_epochs >= epochs:
        return min_factor
    share = (progress_epochs - warmup_epochs) / (epochs - warmup_epochs)
    return min_factor + (1.0 - min_factor) * 0.5 * (1.0 + math.cos(math.pi * share))


def staircase_warmup(step: int, steps: int, every: int = 50) -> float:
    """Warm-up of the official SSAST code: a rising staircase that starts at zero.

    The rate is updated at every 50th step to `step / steps`, so the first 50 steps train at zero.

    Args:
        step: Optimiser step, from 0.
        steps: Length of the warm-up; 0 switches it off.
        every: Width of one stair.
    """
    if steps <= 0 or step >= steps:
        return 1.0
    return (step // every) * every / steps


def step_decay(epoch: int, start: int | None, gamma: float, every: int = 1) -> float:
    """Decay by `gamma` every so many epochs from `start` on (`MultiStepLR` with such milestones).

    Epochs 0 … start-1 run at the full rate, epoch `start` at `gamma`, `every` epochs later at
    `gamma²`.

    Args:
        epoch: Epoch, from 0.
        start: First epoch of the decay; `None` switches it off.
        gamma: Factor of one decay, 0.85 in SSAST's recipes for ESC-50 and Speech Commands.
        every: Epochs from one decay to the next; 5 in its recipe for AudioSet's balanced part.
    """
    if start is None or epoch < start:
        return 1.0
    return float(gamma ** ((epoch - start) // every + 1))
