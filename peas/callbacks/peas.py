"""PEAS: masks where the model's own errors are large, more of them as training proceeds."""

import math
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from peas.callbacks.masking import MaskingContext
from peas.callbacks.scoring import AuxiliaryModel, Scoring
from peas.callbacks.selector_log import SelectorLog
from peas.callbacks.spec_augment import RandomMasking
from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.masking.blocks import Overlap
from peas.masking.peas.error_cache import ErrorCache, due
from peas.masking.peas.schedule import Ramp, Rounding, adaptive_count, adaptive_level
from peas.masking.peas.scores import ErrorNorm, Score
from peas.masking.peas.selector import (
    AxisPlan,
    BlockWidth,
    Marginals,
    Placement,
    Select,
    Selection,
    adaptive_blocks,
    touching,
)
from peas.tasks.augmentation import Stage, roll_time
from peas.tasks.base import BaseTask


class PEAS(RandomMasking):
    """Prediction-error-based adaptive SpecAugment (Zhang et al., equations 1-3).

    Two passes without gradient over the unmasked input give e_rec (1) and e_pred (2); the mask
    position selector ranks windows of time and of frequency by their mean error; a growing share
    (3) of the blocks is sampled inside the hardest windows, the rest at random. No pass is made in
    an epoch without an adaptive block. Defaults are the readings that the paper's text favours;
    every choice that it leaves open is an argument.

    Args:
        n_time: Blocks along time, T of (T, F).
        n_freq: Blocks along frequency, F of (T, F).
        max_time: Mask parameter in frames.
        max_freq: Mask parameter in mel bins.
        score: What is ranked: `pred` e_pred (paper); `rec` e_rec (one pass); `predicted` the
            predicted difficulty G(E(e_rec)); controls `energy` mean x² (no pass), `shuffled`
            another clip's e_pred (the next row's of this process), `easy` the smallest e_pred.
        aux_grid: Patches of the passes: `nonoverlap` the grid that G was trained on, or
            `finetune` the overlapping one, averaged (bins that it misses do not count).
        aux_input_mask: `none` (equation 1 as printed), or `complementary`: `aux_passes` passes,
            each masking another part, so that every bin is predicted while masked; needs patches
            that do not overlap.
        aux_passes: Number of complementary passes K.
        aux_encoder: Whose errors: `live` the model being trained (paper: a single model),
            `frozen` its state at the start, `ema` its moving average.
        ema_decay: Of `ema`, per optimiser step.
        aux_precision: `same` as the trainer, or `bf16`. Scores are float32 always.
        error_norm: `none`, or `standardise` e_rec to the input's statistics before equation 2.
        block_width: Unit of the windows: `max` the mask parameter, `expected` half of it,
            `sampled` the width sampled for the clip.
        placement: A narrower mask in its window: `uniform`, `start`, `centre`, `best`.
        select: Several windows: `nms` apart from each other, `topk` the plain ranking.
        rounding: Of equation 3: `floor`, `round`, `ceil`, or `stochastic` for each clip.
        ramp: Equation 3's rise: `absolute` 0.1 e as printed (25 epochs), `relative` 2.5 e / e_t,
            `off` all blocks adaptive from the start.
        progressive_single: Apply equation 3 to a single block too; the paper introduces it for
            more than one.
        final_phase: Last share of the epochs in which every mask has the fixed width M // 2;
            0 is off.
        overlap: One rule for random and adaptive blocks: `forbid` or `allow`.
        stage: `after_noise` or `before_noise`.
        exclude_padding: Leave zero padding and digital silence out of the scores. As printed
            the paper scores them, and on real sets a third or more of the clips then put
            their time window on the padded tail.
        exclude_empty_bins: Leave out mel bins that hold no sound (`FrontEnd.sounding_bins`), clip
            by clip: those above a recording's own Nyquist frequency, and filters without an FFT
            bin. As printed the paper scores them, and then clips of 8 to 12 kHz put their
            frequency window on the empty band.
        refresh_every: Epochs between two scorings of a clip, 1 = always. In between its last
            marginals are used, rolled with the clip; clips in a mixture are always scored.
    """

    def __init__(
        self,
        n_time: int = 1,
        n_freq: int = 1,
        max_time: int = 96,
        max_freq: int = 24,
        score: Score | Literal["shuffled"] = "pred",
        aux_grid: Literal["nonoverlap", "finetune"] = "nonoverlap",
        aux_input_mask: Literal["none", "complementary"] = "none",
        aux_passes: int = 4,
        aux_encoder: Literal["live", "frozen", "ema"] = "live",
        ema_decay: float = 0.999,
        aux_precision: Literal["same", "bf16"] = "same",
        error_norm: ErrorNorm = "none",
        block_width: BlockWidth = "max",
        placement: Placement = "uniform",
        select: Select = "nms",
        rounding: Rounding = "floor",
        ramp: Ramp = "absolute",
        progressive_single: bool = False,
        final_phase: float = 0.2,
        overlap: Overlap = "forbid",
        stage: Stage = "after_noise",
        exclude_padding: bool = False,
        exclude_empty_bins: bool = False,
        refresh_every: int = 1,
    ) -> None:
        super().__init__(n_time, n_freq, max_time, max_freq, final_phase, overlap, stage)
        if refresh_every < 1:
            raise ConfigError(f"`{self.key('refresh_every')}` is {refresh_every}: 1 or more epochs")
        if not 0 <= ema_decay <= 1:
            raise ConfigError(f"`{self.key('ema_decay')}` is {ema_decay}: a share in [0, 1]")
        self.score, self.aux_grid = score, aux_grid
        self.block_width, self.placement = block_width, placement
        self.select, self.rounding, self.ramp = select, rounding, ramp
        self.progressive_single = progressive_single
        self.exclude_padding = exclude_padding
        self.exclude_empty_bins = exclude_empty_bins
        self.refresh_every = refresh_every
        self.scoring = Scoring(
            self.means,
            AuxiliaryModel(aux_encoder, ema_decay),
            score=score,
            aux_grid=aux_grid,
            aux_input_mask=aux_input_mask,
            aux_passes=aux_passes,
            aux_precision=aux_precision,
            error_norm=error_norm,
        )
        self.cache = ErrorCache()
        self.selector_log = SelectorLog()

    # --- rules ------------------------------------------------------------------------------

    def selection(self, trainer: Trainer, max_width: int) -> Selection:
        """Rules of one axis in this epoch."""
        return Selection(
            max_width,
            block_width=self.block_width,
            placement=self.placement,
            select=self.select,
            overlap=self.overlap,
            fixed_width=self.fixed(trainer, max_width),
        )

    def adaptive(self, trainer: Trainer, n_total: int, u: Tensor) -> Tensor:
        """`[B]` adaptive blocks of one axis in this epoch (equation 3)."""
        assert trainer.max_epochs
        return adaptive_count(
            n_total,
            trainer.current_epoch,
            trainer.max_epochs,
            rounding=self.rounding,
            ramp=self.ramp,
            progressive_single=self.progressive_single,
            u=u,
        )

    def plans(
        self, log_mel: Tensor, valid: Tensor, context: MaskingContext
    ) -> tuple[AxisPlan, AxisPlan]:
        """Adaptive blocks in the hardest windows, random ones for the rest."""
        task, batch = context
        trainer = task.trainer
        u_count = task.random_numbers(batch, "adaptive_count", (2,)).to(log_mel.device)
        n_time = self.adaptive(trainer, self.n_time, u_count[:, 0])
        n_freq = self.adaptive(trainer, self.n_freq, u_count[:, 1])
        # A property of the epoch, not of this batch's random numbers: no pass is wasted, and all
        # processes agree.
        if not self.adapts(trainer):
            return super().plans(log_mel, valid, context)
        sounding = self.sounding(task, batch)
        time_ok, freq_ok = self.countable(task, log_mel, valid, sounding)
        errors = self.errors(trainer, task, batch, log_mel, time_ok, freq_ok)
        if self.score == "shuffled":
            errors = Marginals(errors.time.roll(1, 0), errors.freq.roll(1, 0))
        time_plan = adaptive_blocks(
            errors.time,
            n_time,
            self.rand(context, "time", self.n_time),
            self.selection(trainer, self.max_time),
            ok=time_ok,
            key=self.key("max_time"),
        )
        freq_plan = adaptive_blocks(
            errors.freq,
            n_freq,
            self.rand(context, "freq", self.n_freq),
            self.selection(trainer, self.max_freq),
            ok=freq_ok,
            key=self.key("max_freq"),
        )
        self.means.add("peas/windows_on_padding", _share(time_plan, valid))
        self.means.add("peas/windows_on_empty_bins", _share(freq_plan, sounding))
        self.selector_log.count(time_plan, freq_plan, log_mel.shape[1], log_mel.shape[2])
        return time_plan, freq_plan

    def sounding(self, task: BaseTask, batch: Batch) -> Tensor:
        """`[B, F]` mel bins that hold sound in each clip, before noise lies over them."""
        clean = batch["clean"]
        return task.front_end.sounding_bins(clean.log_mel, clean.valid)

    def adapts(self, trainer: Trainer) -> bool:
        """Whether any clip may have an adaptive block in this epoch."""
        assert trainer.max_epochs
        levels = [
            adaptive_level(
                n,
                trainer.current_epoch,
                trainer.max_epochs,
                ramp=self.ramp,
                progressive_single=self.progressive_single,
            )
            for n in (self.n_time, self.n_freq)
        ]
        if self.rounding in ("stochastic", "ceil"):
            return max(levels) > 0
        counts = [round(x) if self.rounding == "round" else math.floor(x) for x in levels]
        return max(counts) > 0

    def countable(
        self, task: BaseTask, log_mel: Tensor, valid: Tensor, sounding: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Frames `[B, T]` and mel bins `[B, F]` that count for the scores; None = all."""
        time_ok = valid if self.exclude_padding else None
        freq_ok = sounding if self.exclude_empty_bins else None
        if self.aux_grid == "finetune" and self.score != "energy":
            covered_time, covered_freq = (
                line.to(log_mel.device)
                for line in task.model.coverage(log_mel.shape[1], "finetune")
            )
            time_ok = covered_time.expand(valid.shape) if time_ok is None else valid & covered_time
            freq_ok = covered_freq & (torch.ones_like(sounding) if freq_ok is None else freq_ok)
        return time_ok, freq_ok

    # --- errors -----------------------------------------------------------------------------

    def errors(
        self,
        trainer: Trainer,
        task: BaseTask,
        batch: Batch,
        log_mel: Tensor,
        time_ok: Tensor | None,
        freq_ok: Tensor | None,
    ) -> Marginals:
        """Marginal errors of every clip, from the passes or from the cache."""
        if self.refresh_every == 1:
            return self.scoring.marginals(trainer, task, batch, log_mel, time_ok, freq_ok)
        ids, mixed = batch["id"], batch["mixed"].cpu()
        fresh = (
            mixed | self.cache.missing(ids) | due(ids, trainer.current_epoch, self.refresh_every)
        )
        # There is none yet where masks come first: entries are in the clip's own time.
        roll = batch.get("roll")
        device = log_mel.device
        result = Marginals(
            torch.empty(log_mel.shape[:2], device=device),
            torch.empty(len(ids), log_mel.shape[2], device=device),
        )
        if fresh.any():
            at = fresh.nonzero().flatten().to(device)
            new = self.scoring.marginals(
                trainer,
                task,
                _rows(batch, fresh),
                log_mel[at],
                *(None if ok is None else ok[at] for ok in (time_ok, freq_ok)),
            )
            result.time[at], result.freq[at] = new.time, new.freq
            still = new.time if roll is None else roll_time(new.time, -roll[at])
            keep = ~mixed[fresh]
            self.cache.store(
                [
                    clip
                    for clip, new_one, mix in zip(ids, fresh, mixed, strict=True)
                    if new_one and not mix
                ],
                Marginals(still[keep.to(device)], new.freq[keep.to(device)]),
            )
        if not fresh.all():
            at = (~fresh).nonzero().flatten().to(device)
            old = self.cache.read(
                [clip for clip, new_one in zip(ids, fresh, strict=True) if not new_one]
            )
            still = old.time.to(device)
            result.time[at] = still if roll is None else roll_time(still, roll[at])
            result.freq[at] = old.freq.to(device)
        return result

    # --- hooks ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the masks and that the model can reconstruct, and copies it if needed."""
        super().on_fit_start(trainer, pl_module)
        assert isinstance(pl_module, BaseTask)
        if self.refresh_every > 1 and pl_module.roll_gain == "paper":
            raise ConfigError(
                f"`{self.key('refresh_every')}` is {self.refresh_every}, and `model.init_args."
                "augmentation.roll_gain: paper` begins a clip elsewhere in every epoch, so errors "
                "of an earlier one are at other times: set refresh_every to 1, or roll_gain to "
                "official"
            )
        self.scoring.start(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the moving average."""
        assert isinstance(pl_module, BaseTask)
        self.scoring.auxiliary.follow(pl_module, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch and shares the processes' scores."""
        super().on_train_epoch_end(trainer, pl_module)
        self.selector_log.write(trainer)
        self.cache.gather()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compares the scores on the first validation clips, the same in every epoch."""
        assert isinstance(pl_module, BaseTask)
        first = batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking
        if first and self.score != "energy":
            widths = (max(self.max_time, 1), max(self.max_freq, 1))
            with torch.no_grad(), self.scoring.precision(trainer, pl_module.device.type):
                self.selector_log.agreement(pl_module, batch["log_mel"], widths)

    def state_dict(self) -> dict[str, Any]:
        """Counts, cache and copy; Lightning calls it in every process, so they share first."""
        self.cache.gather()
        return {
            **super().state_dict(),
            "cache": self.cache.state_dict(),
            "cache_leaves_out": self._left_out(),
            "auxiliary": self.scoring.auxiliary.state_dict(),
            "selector_log": self.selector_log.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores counts, cache and copy."""
        super().load_state_dict(state_dict)
        # Marginals over other bins are not this run's; older checkpoints have no empty bins.
        before = state_dict.get("cache_leaves_out", [self.exclude_padding, False])
        if before == self._left_out():
            self.cache.load_state_dict(state_dict["cache"])
        self.scoring.auxiliary.load_state_dict(state_dict["auxiliary"])
        self.selector_log.load_state_dict(state_dict["selector_log"])

    def _left_out(self) -> list[bool]:
        """Which bins the cached marginals leave out."""
        return [self.exclude_padding, self.exclude_empty_bins]


def _rows(batch: Batch, keep: Tensor) -> Batch:
    """The keys that random numbers need, of some clips of a batch."""
    return Batch(
        step=batch["step"],
        global_size=batch["global_size"],
        row=batch["row"][keep.to(batch["row"].device)],
    )


def _share(plan: AxisPlan, ok: Tensor) -> Tensor:
    """For each adaptive window, whether it touches a bin that is not ok; empty without any."""
    touched = touching(plan.window_start, plan.window_width, ok)
    return touched[plan.adaptive].double()
