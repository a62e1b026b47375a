"""Whose errors PEAS looks at: the model in training, its start, or its moving average."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from peas.models.encoder import Encoder
from peas.tasks.base import BaseTask


class AuxiliaryModel:
    """The encoder and head of the auxiliary passes.

    A copy is kept outside the module tree: the optimiser, DDP and the task's `state_dict` do not
    see it; its weights are in the callback's state, so that a resumed run goes on with them.

    Args:
        kind: `live`, `frozen` or `ema`.
        decay: Of the moving average, per optimiser step.
    """

    def __init__(self, kind: Literal["live", "frozen", "ema"], decay: float) -> None:
        self.kind = kind
        self.decay = decay
        self._copy: Encoder | None = None
        self._saved: dict[str, Any] | None = None
        self._step = 0

    def start(self, task: BaseTask) -> None:
        """Makes the copy; a resumed run takes the saved weights."""
        if self.kind == "live":
            return
        self._copy = copy.deepcopy(task.model).requires_grad_(False).eval()
        if self._saved is not None:
            self._copy.load_state_dict(self._saved)
            self._saved = None

    def follow(self, task: BaseTask, step: int) -> None:
        """Moves the average towards the model, once per optimiser step."""
        if self.kind != "ema" or self._copy is None or step == self._step:
            return
        self._step = step
        with torch.no_grad():
            pairs = zip(self._copy.parameters(), task.model.parameters(), strict=True)
            for mean, live in pairs:
                mean.lerp_(live.detach(), 1 - self.decay)

    @contextmanager
    def evaluating(self, task: BaseTask) -> Iterator[Encoder]:
        """The model of the passes, with stochastic depth off."""
        if self._copy is not None:
            yield self._copy
            return
        model = task.model
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)

    def state_dict(self) -> dict[str, Any]:
        """The copy's weights and the step of its last move."""
        weights = self._copy.state_dict() if self._copy is not None else None
        return {"weights": weights, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps the weights until `start`."""
        self._saved, self._step = state["weights"], state["step"]
