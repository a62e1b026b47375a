"""Fine-tuning of a masked model as a classifier of clips."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from peas.augment.masks import fill_masked
from peas.augment.peas import error_maps
from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.metrics import ClipScores
from peas.models.checkpoints.ssast import load_pretrained
from peas.models.ssast import SSAST
from peas.objectives import ClassificationLoss, as_soft, classification_loss
from peas.optim import head_groups, staircase_warmup, step_decay
from peas.tasks.base import BaseTask


class Classification(BaseTask):
    """Fine-tunes SSAST with the recipes of the SSAST and PEAS papers.

    Masks are not made here: a callback of `peas.callbacks` writes `mask` into the batch, and the
    training step fills it with `fill`. So every masking strategy shares one filling rule.

    Args:
        pretrained: File of weights: an official SSAST file (pretrained or fine-tuned) or a
            checkpoint of `peas`. Null starts from random weights and must be typed: the default,
            an empty string, is refused when a run starts.
        size: `tiny`, `small` or `base`.
        patch: Patch shape (mel bins, frames): (16, 16), or (128, 2) for frame models.
        stride: Patch stride in fine-tuning (mel bins, frames): SSAST overlaps its patches with
            (10, 10), its frame models with (128, 1).
        pooling: `mean` over patch tokens (official default), or `cls` (the two class tokens).
        drop_path: Rate of stochastic depth; the papers use none.
        loss: `ce` with true soft targets, or `bce`.
        lr: Learning rate of the encoder.
        head_lr_factor: Times `lr` for the classifier, the official `head_lr`.
        weight_decay: L2 term inside Adam, as official.
        betas: Of Adam; the official code has (0.95, 0.999).
        warmup_steps: Length of the official staircase warm-up; 0 is off. SSAST has 1000 for
            Speech Commands.
        decay_start: First epoch, from 0, whose rate decays; null is off. SSAST has 6 for ESC-50
            (AST's recipe of equally many epochs as PEAS has 5) and 5 for Speech Commands.
        decay_factor: Factor of one decay.
        decay_every: Epochs from one decay to the next; SSAST has 5 for AudioSet's balanced part.
        noise_roll: The official loader's noise and roll along time (SSAST on; AST's ESC-50
            recipe off). PEAS states neither.
        fill: Value of hidden cells: `raw_zero` (0 before normalisation, as official) or `zero`
            (the data set's mean).
        aux_loss_weight: Weight of the mean errors of PEAS's auxiliary tasks (equations 1 and 2) in
            the loss. The paper updates the model by the classification loss alone: 0.
        labels: Names of the classes; null takes them from the data.
        mean: Mean of the log-mel; null takes it from the data.
        std: Standard deviation of the log-mel; null takes it from the data.
        frames: Frames of the input; null takes them from the data.
        multi_label: Whether a clip may have several labels; null takes it from the data.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    shape_keys = ("size", "patch", "stride", "pooling")
    scores: ClipScores
    evaluation_loss: MeanMetric
    train_loss: MeanMetric
    train_accuracy: MeanMetric

    def __init__(
        self,
        # No required argument: the parser would fill it with null, as its type allows.
        pretrained: str | None = "",
        size: Literal["tiny", "small", "base"] = "base",
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (10, 10),
        pooling: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
        loss: ClassificationLoss = "ce",
        lr: float = 1e-4,
        head_lr_factor: float = 1.0,
        weight_decay: float = 5e-7,
        betas: tuple[float, float] = (0.95, 0.999),
        warmup_steps: int = 0,
        decay_start: int | None = 6,
        decay_factor: float = 0.85,
        decay_every: int = 1,
        noise_roll: bool = True,
        fill: Literal["raw_zero", "zero"] = "raw_zero",
        aux_loss_weight: float = 0.0,
        labels: list[str] | None = None,
        mean: float | None = None,
        std: float | None = None,
        frames: int | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if labels is not None and not labels:
            raise ConfigError("`model.init_args.labels` is empty: 0 classes cannot be told apart")
        if lr <= 0:
            raise ConfigError(f"`model.init_args.lr` is {lr}: it must be positive")
        if decay_every < 1:
            raise ConfigError(f"`model.init_args.decay_every` is {decay_every}: give 1 or more")

    # --- building ---------------------------------------------------------------------------

    def build(self, *, initialise: bool) -> None:
        """Makes front end, model and metrics, and loads `pretrained`."""
        h = self.hparams
        if not h["labels"]:
            raise ConfigError(
                "the data has 0 classes: check its labels, or set `model.init_args.labels`"
            )
        if h["multi_label"] and h["loss"] == "ce":
            raise ConfigError(
                "`model.init_args.loss: ce` fits one label per clip, and this data has several: "
                "use `bce`"
            )
        self.build_front_end()
        self.model = SSAST(
            h["size"],
            num_classes=len(h["labels"]),
            frames=h["frames"],
            patch=tuple(h["patch"]),
            stride=tuple(h["stride"]),
            pooling=h["pooling"],
            drop_path=h["drop_path"],
        )
        if initialise:
            self._load_pretrained(h["pretrained"])
        if h["aux_loss_weight"] > 0:
            self.model.require_reconstruction()
            self.model.generative_head.requires_grad_(True)
        self.scores = ClipScores(h["multi_label"])
        self.evaluation_loss = MeanMetric()
        self.train_loss = MeanMetric()
        self.train_accuracy = MeanMetric()
        # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
        self.train_loss.persistent(True)
        self.train_accuracy.persistent(True)

    def _load_pretrained(self, path: str | None) -> None:
        if path == "":
            raise ConfigError(
                "`model.init_args.pretrained` is not given: name a file of weights, such as "
                "SSAST-Base-Patch-400.pth (linked from github.com/YuanGongND/ssast), or type "
                "`null` for random weights"
            )
        if path is None:
            rank_zero_warn(
                "`pretrained: null`: the encoder starts from random weights. Its error maps, and "
                "so PEAS's choice of blocks, mean little until it has been pretrained."
            )
            return
        rank_zero_info(str(load_pretrained(self.model, Path(path))))

    @staticmethod
    def monitor(multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """Accuracy; mAP where clips have several labels."""
        return ("val/mAP" if multi_label else "val/accuracy"), "max"

    # --- training ---------------------------------------------------------------------------

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits `[B, C]` of normalised log-mels `[B, T, F]`."""
        logits: Tensor = self.model(log_mel)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Hides what `mask` says, classifies, and returns the loss."""
        log_mel = batch["log_mel"]
        if "mask" in batch:
            fill = self.front_end.fill_value(self.hparams["fill"])
            log_mel = fill_masked(log_mel, batch["mask"], fill, batch.get("mask_noise"))
        logits = self(log_mel)
        target = as_soft(batch["target"], logits.shape[-1])
        loss = classification_loss(logits, target, self.hparams["loss"])
        if self.hparams["aux_loss_weight"] > 0:
            maps = error_maps(self.model.reconstruct, batch["log_mel"], score="pred")
            assert maps.e_rec is not None
            assert maps.e_pred is not None
            auxiliary = maps.e_rec.mean() + maps.e_pred.mean()
            loss = loss + self.hparams["aux_loss_weight"] * auxiliary
            self.log("train/aux_loss", auxiliary.detach(), batch_size=len(logits))
        self._log_training(loss, logits, target, batch_idx)
        return loss

    def _log_training(self, loss: Tensor, logits: Tensor, target: Tensor, batch_idx: int) -> None:
        if batch_idx == 0:
            self.train_loss.reset()
            self.train_accuracy.reset()
        clips = len(logits)
        self.train_loss.update(loss.detach(), clips)
        self.log("loss", loss.detach(), prog_bar=True, on_step=True, batch_size=clips)
        self.log("train/loss", self.train_loss, on_epoch=True, on_step=False, batch_size=clips)
        if not self.hparams["multi_label"]:
            self.train_accuracy.update((logits.argmax(-1) == target.argmax(-1)).float())
            self.log(
                "train/accuracy",
                self.train_accuracy,
                on_epoch=True,
                on_step=False,
                batch_size=clips,
            )

    def lr_factor(self, step: int, epoch: int) -> float:
        """Staircase warm-up times the decay of the epoch (section d of both recipes)."""
        h = self.hparams
        decay = step_decay(epoch, h["decay_start"], h["decay_factor"], h["decay_every"])
        return staircase_warmup(step, h["warmup_steps"]) * decay

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam over the encoder and the head; `lr_factor` sets the rates."""
        h = self.hparams
        groups = head_groups(self.model, ("fc_norm", "head"), h["lr"], h["head_lr_factor"])
        return torch.optim.Adam(
            groups, betas=tuple(h["betas"]), weight_decay=h["weight_decay"], fused=True
        )

    # --- evaluation -------------------------------------------------------------------------

    def _evaluate(self, batch: Batch) -> dict[str, Any]:
        logits = self(batch["log_mel"]).float()
        target = as_soft(batch["target"], logits.shape[-1])
        self.scores.update(logits, target)
        loss = classification_loss(logits, target, self.hparams["loss"])
        self.evaluation_loss.update(loss, len(logits))
        return {"id": batch["id"], "logits": logits, "target": target}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Scores a batch without masks; returns ids, logits and targets for the run folder."""
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As `validation_step`, on the test split."""
        return self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Ids and logits `[B, C]` of a batch."""
        return {"id": batch["id"], "logits": self(batch["log_mel"]).float()}

    def on_validation_epoch_end(self) -> None:
        """Logs exact metrics over every validation clip."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs exact metrics over every test clip."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        scores = self.scores.compute()
        scores["loss"] = self.evaluation_loss.compute()
        self.scores.reset()
        self.evaluation_loss.reset()
        shown = self.monitor(self.hparams["multi_label"])[0].removeprefix("val/")
        for name, value in scores.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == shown, sync_dist=False)
