"""Pretraining on visible patches: AudioMAE, MAM-CLAP, SupMAM and SupMAM-CLAP by composition."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from peas.data.batch import Batch
from peas.errors import CheckpointError, ConfigError
from peas.models.checkpoints.audiomae import load_pretrained
from peas.models.clap import Teacher
from peas.models.mae import MaskedAutoencoder
from peas.models.mam_heads import LabelNorm
from peas.models.masked import visible_places
from peas.models.patch_masking import random_patches, times_and_bands
from peas.models.positions import Raster, official_raster
from peas.models.target_grid import TargetGrid
from peas.objectives import FeatureLoss, LabelLoss, NCEAxis, TargetNorm
from peas.optim import LrRule, cosine_factor, decay_groups
from peas.tasks.feature_targets import FeatureTargets
from peas.tasks.finite import OnNonFinite
from peas.tasks.mae_meters import MaeMeters
from peas.tasks.mae_model import (
    OBJECTIVES,
    build_heads,
    build_model,
    check_settings,
    kept_counts,
    visible_count,
)
from peas.tasks.mae_objectives import Composition, Heads, Losses, compose
from peas.tasks.pretraining import PretrainingTask, Stage


class MaskedAudioModeling(PretrainingTask):
    """Pretrains a `MaskedAutoencoder` with any sum of four objectives.

    Each objective has a weight, and 0 leaves it out:

    | system | weights | `mask_ratio` | `decoder_depth` |
    |---|---|---|---|
    | AudioMAE | `reconstruction: 1` | 0.8 | 16 |
    | MAM-CLAP | `distillation: 1` | 0.2 | 1 |
    | SupMAM | `reconstruction: 1`, `classification: 0.01` | 0.4 | 16 |
    | SupMAM-CLAP | `distillation: 1`, `classification: 0.0001` | 0.2 | 1 |

    Masks depend on the seed and the place in training; in evaluation on the seed and the clip
    alone. Evaluation logs each objective beside that of its trivial predictor, over patches of
    real sound that are not constant: `val/valid_mse` and `val/trivial_mse` (mean patch),
    `val/feature_mse` and `val/trivial_feature_mse` (mean target), `val/classification` and
    `val/trivial_classification` (frequencies of the classes).

    Args:
        pretrained: File of weights to go on from: an official AudioMAE file or a checkpoint of
            `peas`. Null starts from random weights.
        size: Key of `peas.models.encoder.SIZES`.
        patch: Patch shape (mel bins, frames).
        stride: Step between patches; null = the patch. AudioMAE's overlapping variant has
            (10, 10) and windows of 6.
        positions: Raster of the fixed positions: `stored`, that of AudioMAE's released files, or
            `geometric`. Null is the official code's: `stored`, and `geometric` where patches
            overlap. See `peas.models.positions`.
        mask_ratio: Share of the patches that is hidden.
        masking: `random` patches, or `structured`: whole columns and bands.
        time_ratio: Share of columns hidden by structured masking.
        freq_ratio: Share of bands hidden by structured masking.
        decoder: `local` attention in windows, or `global`.
        decoder_width: Width of its tokens.
        decoder_depth: Its blocks: officially 16 local ones or 8 global ones. The single block of
            SupMAM-CLAP's paper is stated for MAM-CLAP and SupMAM-CLAP alone.
        decoder_heads: Its attention heads.
        decoder_window: Side of a window in patches.
        decoder_first_shift: 0: the first local block is not shifted; 1: it is, as "a single
            transformer block with shifted local attention" may be read.
        reconstruction: Weight of the error of hidden patches.
        distillation: Weight of the error of a teacher's features.
        classification: Weight lambda of the classification branch.
        contrastive: Weight of InfoNCE among hidden patches, as MAE-AST has it.
        nce_axis: Of InfoNCE, as in `SSASTPretraining`.
        norm_pix: Whether patches are drawn normalised by their own mean and deviation.
        teacher: Runs on every batch. Null with `targets`.
        targets: Folder of maps written by `peas data targets`, in the place of a live teacher.
            With both, the cache must be that teacher's.
        target_grid: How patches find the teacher's cells, see `peas.models.target_grid`.
        target_norm: `l2` (unit length), `layer`, or `none`.
        feature_loss: `mse`, `l2`, `frobenius` (the printed norm), `cosine` or `smooth_l1`.
        visible_path: Y of visible patches: `direct`, from the encoder's output through the
            decoder's embedding, or `decoder`, from its last block as for the hidden ones.
        feature_padding: `exclude` patches without sound from the feature loss, or `keep` them.
        label_loss: `soft`: cross entropy against the labels divided by their number; `multi_hot`:
            undivided; `bce`.
        temperature: tau, by which the branch's logits are divided.
        label_hidden: Width of the branch's hidden layer; null = four times the encoder's.
        label_norm: `batch`, `sync` (over processes) or `none`.
        visible_fraction: Share of the visible patches that the branch's pooling takes.
        grad_norm_every: Steps between two logs of each objective's gradient norm at the encoder's
            output, when there are several; 0 = never.
        roll_gain: `none` as SupMAM-CLAP; `official` or `paper` for AudioMAE's augmentation. It
            would misplace a teacher's targets.
        drop_path: Rate of stochastic depth.
        lr: Learning rate, by `lr_rule`.
        lr_rule: `batch256`: of 256 clips, in proportion to the global batch; or `absolute`.
        min_lr: Least rate of the cosine, as it is.
        warmup_epochs: Of the linear warm-up.
        weight_decay: Of AdamW, on matrices alone.
        betas: Of AdamW.
        on_nonfinite: When a gradient is no number: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).
        compile: Compile the transformer blocks (`torch.compile`, in place).
        labels: Names of the classes; null takes them from the data.
        mean: Mean of the log-mel; null takes it from the data.
        std: Standard deviation of the log-mel; null takes it from the data.
        frames: Frames of the input; null takes them from the data.
        multi_label: Whether a clip may have several labels; null takes it from the data.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    shape_keys = ("size", "patch", "stride", "decoder", "decoder_width", "decoder_depth")
    resume_keys = (
        "positions",
        "decoder_heads",
        "decoder_window",
        "decoder_first_shift",
        "norm_pix",
        "label_hidden",
        "label_norm",
    )
    model: MaskedAutoencoder
    heads: Heads

    def __init__(
        self,
        pretrained: str | None = None,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] | None = None,
        positions: Raster | None = None,
        mask_ratio: float = 0.8,
        masking: Literal["random", "structured"] = "random",
        time_ratio: float = 0.7,
        freq_ratio: float = 0.3,
        decoder: Literal["local", "global"] = "local",
        decoder_width: int = 512,
        decoder_depth: int = 16,
        decoder_heads: int = 16,
        decoder_window: int = 4,
        decoder_first_shift: Literal[0, 1] = 0,
        reconstruction: float = 1.0,
        distillation: float = 0.0,
        classification: float = 0.0,
        contrastive: float = 0.0,
        nce_axis: NCEAxis = "code",
        norm_pix: bool = True,
        teacher: Teacher | None = None,
        targets: str | None = None,
        target_grid: TargetGrid = "physical",
        target_norm: TargetNorm = "l2",
        feature_loss: FeatureLoss = "mse",
        visible_path: Literal["direct", "decoder"] = "direct",
        feature_padding: Literal["exclude", "keep"] = "exclude",
        label_loss: LabelLoss = "soft",
        temperature: float = 10.0,
        label_hidden: int | None = None,
        label_norm: LabelNorm = "batch",
        visible_fraction: float = 1.0,
        grad_norm_every: int = 50,
        roll_gain: Literal["none", "official", "paper"] = "none",
        drop_path: float = 0.0,
        lr: float = 2e-4,
        lr_rule: LrRule = "batch256",
        min_lr: float = 0.0,
        warmup_epochs: float = 3,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        on_nonfinite: OnNonFinite = "stop",
        compile: bool = False,
        labels: list[str] | None = None,
        mean: float | None = None,
        std: float | None = None,
        frames: int | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["teacher"])
        if positions is None:
            self.hparams["positions"] = official_raster(patch, stride or patch)
        # In a tuple, where no module, optimiser, DDP or checkpoint finds it.
        self._teacher = (teacher,)
        self._targets: FeatureTargets | None = None
        check_settings(self.hparams)

    # --- building ---------------------------------------------------------------------------

    @property
    def composition(self) -> Composition:
        """Which objectives there are, and how they are weighed."""
        h = self.hparams
        weights = {name: h[name] for name in OBJECTIVES if h[name] > 0}
        return Composition(
            weights=weights,
            feature_loss=h["feature_loss"],
            visible_path=h["visible_path"],
            label_loss=h["label_loss"],
            temperature=h["temperature"],
            nce_axis=h["nce_axis"],
        )

    def setup(self, stage: str) -> None:
        """Opens the teacher or its cache, fills the facts and builds, before `fit`."""
        if self.hparams["distillation"] > 0 and self._targets is None:
            self._open_targets()
        super().setup(stage)

    def _open_targets(self) -> None:
        h = self.hparams
        self._targets = FeatureTargets(
            self._teacher[0], h["targets"], h["target_grid"], h["target_norm"]
        )
        self._targets.prepare(self.trainer.datamodule)  # type: ignore[attr-defined]
        for key, value in (
            ("teacher_fingerprint", self._targets.fingerprint),
            ("feature_width", self._targets.width),
        ):
            known = h.setdefault(key, value)
            if known != value:
                raise CheckpointError(
                    f"the run was trained on another teacher's features ({key} {known}) than "
                    f"{self._targets.name} gives ({value}): use its own teacher or cache"
                )
        rank_zero_info(f"teacher: {self._targets.name}, {self._targets.fingerprint[:12]}…")

    def build(self, *, initialise: bool) -> None:
        """Makes front end, model, heads and meters, and loads `pretrained`."""
        h = self.hparams
        self.build_front_end()
        self.model = build_model(h, self.front_end.n_mels)
        self.heads = build_heads(h, self.model.width)
        self.visible = visible_count(h, self.model.grid)
        if initialise and h["pretrained"]:
            rank_zero_info(str(load_pretrained(self.model, Path(h["pretrained"]))))
        self.meters = MaeMeters(
            list(self.composition.weights),
            cells=h["patch"][0] * h["patch"][1],
            features=h.get("feature_width", 0),
            classes=len(h["labels"]),
            label_loss=h["label_loss"],
        )

    def monitor(self, multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """The total loss of evaluation."""
        return "val/loss", "min"

    def _require_labels_of_data(self, saved: list[str], where: str) -> None:
        """Any data will do, unless the branch knows the classes."""
        if self.hparams["classification"] > 0:
            super()._require_labels_of_data(saved, where)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the features' width too, and refuses another teacher's cache."""
        saved = checkpoint.get("hyper_parameters") or {}
        for key in ("feature_width", "teacher_fingerprint"):
            if key not in saved:
                continue
            known = self.hparams.setdefault(key, saved[key])
            if known != saved[key]:
                raise CheckpointError(
                    f"the checkpoint was trained on features of another teacher ({key} "
                    f"{saved[key]}) than this run's ({known}): use the same teacher or cache"
                )
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or not self.trainer.training:
            return
        # Their weights may change, their modules may not.
        for key in OBJECTIVES:
            before, now = saved[key], self.hparams[key]
            if (before > 0) != (now > 0):
                raise CheckpointError(
                    f"`model.init_args.{key}` is {now}, but the run had {before}: an objective can "
                    "neither come nor go in a run. Use its own config.yaml with its checkpoint. To "
                    "start a new run from these weights use `--model.init_args.pretrained`."
                )

    # --- batches ----------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Adds the cached maps of the teacher."""
        if self._targets is not None:
            self._targets.read(batch)
        return batch

    def hide(self, batch: Batch, stage: Stage) -> Tensor:
        """Patches to hide, `[B, N]` bool on the CPU, time-major."""
        rows, columns = self.model.grid
        if self.hparams["masking"] == "random":
            u = self.mask_draws(batch, stage, "patches", rows * columns)
            return random_patches(u, self.visible)
        bands, times = kept_counts(self.hparams, (rows, columns))
        u_time = self.mask_draws(batch, stage, "times", columns)
        u_freq = self.mask_draws(batch, stage, "bands", rows)
        return times_and_bands(u_time, u_freq, times, bands).flatten(1)

    def objectives(self, batch: Batch, stage: Stage) -> Losses:
        """Hides patches of a batch, encodes the others and takes every objective.

        Raises:
            ConfigError: A masking strategy of fine-tuning is among the callbacks.
        """
        self.require_no_masking(batch, "mask_ratio")
        hidden = self.hide(batch, stage)
        visible = visible_places(hidden)
        pooled = None
        if self.hparams["visible_fraction"] < 1 and self.hparams["classification"] > 0:
            taken = max(1, round(self.visible * self.hparams["visible_fraction"]))
            u = self.mask_draws(batch, stage, "pooled", self.visible)
            pooled = visible_places(random_patches(u, taken)).to(self.device)
        batch["hidden_patches"] = hidden.to(self.device)
        return compose(
            self.model,
            self.heads,
            batch,
            visible.to(self.device),
            self.composition,
            features=None if self._targets is None else self._targets.of(batch, self.model),
            keep_padding=self.hparams["feature_padding"] == "keep",
            pooled=pooled,
            all_processes=self._all_processes,
            processes=self.trainer.world_size if self.trainer.training else 1,
        )

    def _all_processes(self, count: Tensor) -> Tensor:
        """Sum over the processes of a number of labelled clips; in evaluation each is by itself."""
        if self.trainer.world_size == 1 or not self.trainer.training:
            return count
        # Lightning reduces in place.
        return self.trainer.strategy.reduce(count.clone(), reduce_op="sum")

    # --- training ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Moves the teacher beside the model, and prints the settings that decide a result."""
        super().on_fit_start()
        if self._targets is not None:
            self._targets.move(self.trainer)
        batch = getattr(getattr(self.trainer, "datamodule", None), "batch_size", 2)
        if batch < 2 and isinstance(getattr(self.heads.label, "norm", None), nn.BatchNorm1d):
            raise ConfigError(
                "`data.init_args.batch_size` is 1, and the classification branch has a BatchNorm, "
                "which needs two clips: raise it, or set `model.init_args.label_norm: none`"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the objectives."""
        losses = self.objectives(batch, "train")
        clips = len(batch["id"])
        every = self.hparams["grad_norm_every"]
        if every and len(losses.terms) > 1 and self.trainer.global_step % every == 0:
            for name, value in losses.gradient_norms().items():
                self.log(f"grad/{name}", value, batch_size=clips)
        for name, mean, value in self.meters.count(losses, clips, first=batch_idx == 0):
            self.log(name, value, prog_bar=True, on_step=True, batch_size=clips)
            self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=clips)
        if losses.unlabelled is not None:
            self.log(
                "train/unlabelled",
                losses.unlabelled,
                reduce_fx="sum",
                on_step=False,
                on_epoch=True,
                batch_size=clips,
                sync_dist=True,
            )
        return losses.total

    def warmup(self) -> tuple[str, float]:
        """`warmup_epochs`."""
        return "warmup_epochs", self.hparams["warmup_epochs"] * self.steps_per_epoch

    def lr_factor(self, step: int, epoch: int) -> float:
        """Linear warm-up, then half a cosine, in every iteration."""
        h = self.hparams
        trainer = self.trainer
        epochs: float = trainer.max_epochs or 0
        if epochs <= 0:
            if trainer.max_steps <= 0:
                raise ConfigError(
                    "the cosine needs the run's length: set `trainer.max_epochs`, or "
                    "`trainer.max_steps`"
                )
            epochs = self.epochs_passed(trainer.max_steps)
        warmup = min(h["warmup_epochs"], epochs)
        return cosine_factor(self.epochs_passed(step), warmup, epochs, h["min_lr"] / self.rate)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; vectors and biases are not decayed."""
        h = self.hparams
        trained = nn.ModuleList((self.model, self.heads))
        groups = decay_groups(trained, self.rate, h["weight_decay"])
        return torch.optim.AdamW(groups, betas=tuple(h["betas"]), fused=True)

    # --- evaluation -------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Checks that there are weights, and moves the teacher beside them."""
        super().on_validation_start()
        if self._targets is not None:
            self._targets.move(self.trainer)

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        super().on_test_start()
        if self._targets is not None:
            self._targets.move(self.trainer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Takes the objectives with the clips' own fixed masks."""
        self.meters.evaluate(self.objectives(batch, "val"), len(batch["id"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`, on the test split."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs the means and the trivial predictors."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs the means over the test split."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        for name, value in self.meters.compute().items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == "loss", sync_dist=False)
