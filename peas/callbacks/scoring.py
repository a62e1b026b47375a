"""PEAS's auxiliary passes: how hard each frame and each mel bin of some clips is for the model."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from peas.data.batch import Batch
from peas.masking.peas.scores import (
    ErrorNorm,
    Score,
    complementary,
    complementary_groups,
    error_maps,
    patches_to_bins,
)
from peas.masking.peas.selector import Marginals, marginals
from peas.models.encoder import Encoder
from peas.tasks.base import BaseTask
from peas.training.epoch_means import EpochMeans


class AuxiliaryModel:
    """The encoder and head of the auxiliary passes.

    A copy is kept outside the module tree, hidden from the optimiser, DDP and the task's
    `state_dict`; its weights are in the callback's state, so that a resumed run has them.

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
        """Makes the copy; a resumed run restores the saved weights."""
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


TIMED_EVERY = 50
"""Scorings between two that are timed on a GPU."""


class Scoring:
    """Runs the passes of equations 1 and 2 without gradients, and reduces the maps to marginals.

    Adds `peas/e_rec`, `peas/e_pred` and `peas/seconds_per_pass` to the epoch's means.

    Args:
        means: Of the epoch.
        auxiliary: Whose errors.
        score: As in `peas.callbacks.PEAS`, like the other keys.
        aux_grid: Patches of the passes.
        aux_input_mask: Whether parts are masked in turn.
        aux_passes: Number of complementary passes.
        aux_precision: Of the passes.
        error_norm: Of the input of equation 2.
    """

    def __init__(
        self,
        means: EpochMeans,
        auxiliary: AuxiliaryModel,
        *,
        score: Score | Literal["shuffled"],
        aux_grid: Literal["nonoverlap", "finetune"],
        aux_input_mask: Literal["none", "complementary"],
        aux_passes: int,
        aux_precision: Literal["same", "bf16"],
        error_norm: ErrorNorm,
    ) -> None:
        self.means = means
        self.auxiliary = auxiliary
        self.score = score
        self.aux_grid, self.aux_input_mask, self.aux_passes = aux_grid, aux_input_mask, aux_passes
        self.aux_precision = aux_precision
        self.error_norm = error_norm
        self._count = 0

    @property
    def passes(self) -> int:
        """Passes through the model that one scoring takes."""
        if self.score == "energy":
            return 0
        each = self.aux_passes if self.aux_input_mask == "complementary" else 1
        return each if self.score == "rec" else 2 * each

    def start(self, task: BaseTask) -> None:
        """Checks that the task's model can be scored, and copies it if needed.

        Raises:
            NoReconstruction: The model cannot reconstruct.
            ConfigError: The patches cannot be masked in turn.
        """
        if self.passes:
            task.prepare_reconstruction()
            task.model.require_reconstruction()
        if self.aux_input_mask == "complementary":
            task.model.require_head_for(torch.ones(1, 1, dtype=torch.bool))
            model, frames = task.model, task.front_end.frames
            grid = model.token_grid(frames, self.aux_grid)
            groups = complementary_groups(torch.zeros(1, grid[0] * grid[1]), self.aux_passes)
            patches_to_bins(groups, model.patch, grid, frames, task.front_end.n_mels)
        self.auxiliary.start(task)

    def marginals(
        self,
        trainer: Trainer,
        task: BaseTask,
        batch: Batch,
        log_mel: Tensor,
        time_ok: Tensor | None,
        freq_ok: Tensor | None,
    ) -> Marginals:
        """Mean scores of clips.

        Args:
            trainer: Knows the precision.
            task: Its model is used, unless there is a copy.
            batch: The clips, for random numbers.
            log_mel: `[B, T, F]` unmasked.
            time_ok: `[B, T]` frames that count; None = all.
            freq_ok: `[B, F]` mel bins that count; None = all.
        """
        timed = self._is_timed(log_mel)
        since = time.perf_counter()
        with (
            torch.no_grad(),
            self.precision(trainer, log_mel.device.type),
            self.auxiliary.evaluating(task) as model,
        ):
            maps = error_maps(
                self._reconstruction(model, task, batch, log_mel),
                log_mel,
                score="pred" if self.score == "shuffled" else self.score,
                error_norm=self.error_norm,
            )
        reduced = marginals(maps.score, time_ok, freq_ok)
        for name, error in (("peas/e_rec", maps.e_rec), ("peas/e_pred", maps.e_pred)):
            if error is not None:
                self.means.add(name, error.mean(dim=(1, 2)))
        if timed:
            if log_mel.is_cuda:
                torch.cuda.synchronize()
            spent = (time.perf_counter() - since) / self.passes
            self.means.add("peas/seconds_per_pass", torch.tensor(spent))
        return reduced

    def precision(self, trainer: Trainer, device: str) -> Any:
        """Callback hooks run outside autocast: enters the trainer's own, or bf16."""
        if self.aux_precision == "bf16":
            return torch.autocast(device, torch.bfloat16)
        return trainer.precision_plugin.forward_context()

    def _is_timed(self, log_mel: Tensor) -> bool:
        """Whether to time this scoring: on a GPU only some, since each waits for the device."""
        self._count += 1
        if not self.passes or (log_mel.is_cuda and self._count % TIMED_EVERY):
            return False
        if log_mel.is_cuda:
            torch.cuda.synchronize()
        return True

    def _reconstruction(
        self, model: Encoder, task: BaseTask, batch: Batch, log_mel: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """G(E(.)) as the keys say."""

        def reconstruct(x: Tensor, masked: Tensor | None = None) -> Tensor:
            result: Tensor = model.reconstruct(x, masked, grid=self.aux_grid)
            return result

        if self.aux_input_mask == "none":
            return reconstruct
        grid = model.token_grid(log_mel.shape[1], self.aux_grid)
        u = task.random_numbers(batch, "complementary", (grid[0] * grid[1],)).to(log_mel.device)
        return complementary(reconstruct, u, self.aux_passes, patch=model.patch, grid=grid)
