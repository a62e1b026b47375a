"""A recipe: optimiser, parameter groups and learning rate."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from peas.models import Encoder
from peas.recipes import Recipe, RunLength


class LinearSGD(Recipe):
    """SGD with momentum, a rate that falls linearly to 0, and a smaller one for lower layers.

    Args:
        lr: Learning rate of the last layer at the first step.
        momentum: Of SGD.
        layer_decay: Ratio of one layer's rate to the next one's.
    """

    def __init__(self, lr: float = 0.05, momentum: float = 0.9, layer_decay: float = 0.9) -> None:
        super().__init__(lr)
        self.momentum, self.layer_decay = momentum, layer_decay

    def optimizer(self, model: Encoder, others: Sequence[nn.Module], rate: float) -> Optimizer:
        """A group for each layer; objectives' heads are trained as the last one is."""
        last = model.depth + 1
        named = [(model.layer_of(name), weight) for name, weight in model.named_parameters()]
        named += [(last, weight) for module in others for weight in module.parameters()]
        groups = []
        for layer in range(last, -1, -1):
            weights = [weight for at, weight in named if at == layer and weight.requires_grad]
            base = rate * self.layer_decay ** (last - layer)
            if weights:
                groups.append({"params": weights, "base_lr": base, "name": f"layer_{layer}"})
        return torch.optim.SGD(groups, lr=rate, momentum=self.momentum)

    def factor(self, step: int, epoch: int, rate: float, run: RunLength) -> float:
        """Depends on the step alone, so a run resumes exactly."""
        return max(0.0, 1 - step / run.steps)
