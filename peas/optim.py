"""Learning rates and parameter groups of the papers' recipes, as pure functions.

A schedule is a factor of (optimiser step, epoch) and has no state, so a resumed run follows the
unbroken one exactly.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


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


def head_groups(
    model: nn.Module, head_names: Iterable[str], lr: float, head_lr_factor: float
) -> list[dict[str, Any]]:
    """Two parameter groups: the encoder, and the head at `lr * head_lr_factor`.

    Args:
        model: Its parameters without gradient are left out.
        head_names: Prefixes of the head's parameter names, such as `head` and `fc_norm`.
        lr: Learning rate of the encoder.
        head_lr_factor: The official code's `head_lr`.
    """
    prefixes = tuple(f"{name}." for name in head_names)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    body = [p for name, p in named if not name.startswith(prefixes)]
    head = [p for name, p in named if name.startswith(prefixes)]
    return [
        {"params": body, "lr": lr, "base_lr": lr, "name": "encoder"},
        {"params": head, "lr": lr * head_lr_factor, "base_lr": lr * head_lr_factor, "name": "head"},
    ]
