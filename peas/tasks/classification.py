"""Fine-tuning of a masked model as a classifier of clips."""

from typing import Any, Literal, Self

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric

from peas.augment.peas import error_maps
from peas.data.batch import Batch
from peas.errors import CheckpointError, ConfigError
from peas.metrics import ClipScores
from peas.models.mae import MaskedAutoencoder, decoder_of
from peas.models.positions import Raster, official_raster
from peas.models.ssast import SSAST
from peas.objectives import ClassificationLoss, as_soft, classification_loss
from peas.optim import LrRule, cosine_factor, staircase_warmup, step_decay
from peas.tasks.augmentation import augment
from peas.tasks.base import BaseTask
from peas.tasks.classifier import (
    STRIDES,
    build_model,
    check_settings,
    fill,
    freeze_encoder,
    make_optimizer,
    train_drawing,
)
from peas.tasks.finite import OnNonFinite, counted
from peas.tasks.pixel_probe import fit_pixel_probe


class Classification(BaseTask):
    """Fine-tunes SSAST or AudioMAE with the recipes of their papers, PEAS's and SupMAM-CLAP's.

    The config's `masking` says which bins of a training clip are masked. Noise, roll and the
    mask's fill are applied in `peas.tasks.augmentation`, so every masking strategy shares one
    filling rule. The callback `PatchDropping` writes `hidden_patches`: these do not reach the
    encoder.

    Args:
        pretrained: File of weights: an official SSAST or AudioMAE file (pretrained or fine-tuned)
            or a checkpoint of `peas`. `timm:NAME` takes ImageNet weights from timm's hub,
            `timm:FILE` from a file of such weights. Null starts from random weights and must be
            typed: the default, an empty string, is refused when a run starts.
        encoder: Family, `ssast` or `audiomae`.
        size: `mini`, `tiny`, `small`, `base` or `large`.
        patch: Patch shape (mel bins, frames): (16, 16), or (128, 2) for frame models.
        stride: Patch stride in fine-tuning (mel bins, frames). SSAST overlaps its patches with
            (10, 10), its frame models with (128, 1); AudioMAE's is its patch. Null is (10, 10) for
            `ssast` and the patch for `audiomae`.
        positions: Raster of `audiomae`'s fixed table: `stored` as in the released files, or
            `geometric`. Null is the official code's: `stored`, and `geometric` where patches
            overlap. A file of weights brings its own.
        pooling: `mean` over patch tokens (official default), or `cls` (the class tokens).
        drop_path: Rate of stochastic depth: AudioMAE 0.1, SSAST and PEAS 0.
        loss: `ce` with true soft targets, or `bce`.
        label_smoothing: Of `ce`, in training: share of a target that is spread evenly over all
            classes. AudioMAE's script for ESC-50 has 0.1; 0 is off.
        lr: Learning rate of the encoder, by `lr_rule`.
        lr_rule: `absolute`, or `batch256`: the rate of a batch of 256 clips, which grows with the
            global batch (AudioMAE). Both are printed at the start.
        optimizer: `adam` (SSAST) or `adamw` (AudioMAE: vectors, biases, special tokens and
            positions undecayed).
        head_lr_factor: Of `adam`: times `lr` for the classifier, the official `head_lr`.
        layer_decay: Of `adamw`: ratio of a layer's rate to that of the next one, 0.75 in
            AudioMAE; 1 is off.
        weight_decay: L2 term inside Adam, as official in SSAST; decoupled in AdamW.
        betas: SSAST has (0.95, 0.999). AudioMAE's paper has (0.9, 0.95), its code (0.9, 0.999).
        schedule: `staircase` (SSAST: warm-up of stairs, decay by epochs), or `cosine` (AudioMAE:
            linear warm-up and half a cosine over `trainer.max_epochs`, set in every iteration).
        warmup_steps: Of `staircase`: length of the warm-up; 0 is off. SSAST has 1000 for Speech
            Commands.
        decay_start: Of `staircase`: first epoch, from 0, whose rate decays; null is off. SSAST has
            6 for ESC-50 (AST's recipe of equally many epochs as PEAS has 5) and 5 for Speech
            Commands.
        decay_factor: Of `staircase`: factor of one decay.
        decay_every: Of `staircase`: epochs from one decay to the next; SSAST has 5 for AudioSet's
            balanced part.
        warmup_epochs: Of `cosine`: length of the warm-up; AudioMAE has 4 of 60.
        min_lr: Of `cosine`: rate at the end, of the layers at the whole rate.
        freeze: `encoder` trains the classifier alone, on features without gradient, dropout or
            stochastic depth (linear probe). The classifier is a LayerNorm of the pooled tokens
            (`fc_norm`, trained with it) and a linear layer. Null trains everything.
        noise_roll: The official loader's noise and roll along time (SSAST on; AST's ESC-50
            recipe off). PEAS states neither. AudioMAE's paper has it for Speech Commands; in every
            published script it is off.
        roll_gain: AudioMAE's augmentation of waveforms: `paper` rolls a clip cyclically and
            multiplies its loudness by 0.5 to 1.5, `official` does the latter alone, as the
            published code really does. A mixture is augmented as one clip.
        fill: Value of hidden cells: `raw_zero` (0 before normalisation, as official) or `zero`
            (the data set's mean).
        aux_loss_weight: Weight of the mean errors of PEAS's auxiliary tasks (equations 1 and 2) in
            the loss. The paper updates the model by the classification loss alone: 0.
        reconstruction: What draws spectrograms for PEAS: the pretrained `head`, or `probe`, a
            linear pixel head that is fitted on the encoder as it starts, for weights that came
            without one (MAM-CLAP, SupMAM-CLAP, fine-tuned files). See `peas.models.pixel_probe`.
        on_nonfinite: When a gradient is no number: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).
        compile: Compile the transformer blocks (`torch.compile`, in place).
        labels: Names of the classes; null takes them from the data.
        mean: Mean of the log-mel; null takes it from the data.
        std: Standard deviation of the log-mel; null takes it from the data.
        frames: Frames of the input; null takes them from the data.
        multi_label: Whether a clip may have several labels; null takes it from the data.
        channels: What becomes of several channels of a clip; null takes it from the data. `peas
            tag` reads sound so.

    Raises:
        ConfigError: A value is impossible, or belongs to a recipe that was not chosen; the message
            names the key.
    """

    facts_keys = (*BaseTask.facts_keys, "channels")
    shape_keys = ("encoder", "size", "patch", "stride", "pooling", "reconstruction")
    resume_keys = ("optimizer", "freeze", "positions")
    scores: ClipScores
    evaluation_loss: MeanMetric
    train_loss: MeanMetric
    train_accuracy: MeanMetric

    def __init__(
        self,
        # No required argument: the parser would fill it with null, as its type allows.
        pretrained: str | None = "",
        encoder: Literal["ssast", "audiomae"] = "ssast",
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] | None = None,
        positions: Raster | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
        loss: ClassificationLoss = "ce",
        label_smoothing: float = 0.0,
        lr: float = 1e-4,
        lr_rule: LrRule = "absolute",
        optimizer: Literal["adam", "adamw"] = "adam",
        head_lr_factor: float = 1.0,
        layer_decay: float = 1.0,
        weight_decay: float = 5e-7,
        betas: tuple[float, float] = (0.95, 0.999),
        schedule: Literal["staircase", "cosine"] = "staircase",
        warmup_steps: int = 0,
        decay_start: int | None = 6,
        decay_factor: float = 0.85,
        decay_every: int = 1,
        warmup_epochs: float = 4.0,
        min_lr: float = 1e-6,
        freeze: Literal["encoder"] | None = None,
        noise_roll: bool = True,
        roll_gain: Literal["none", "official", "paper"] = "none",
        fill: Literal["raw_zero", "zero"] = "raw_zero",
        aux_loss_weight: float = 0.0,
        reconstruction: Literal["head", "probe"] = "head",
        on_nonfinite: OnNonFinite = "stop",
        compile: bool = False,
        labels: list[str] | None = None,
        mean: float | None = None,
        std: float | None = None,
        frames: int | None = None,
        multi_label: bool | None = None,
        channels: Literal["mean", "first"] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if stride is None:
            self.hparams["stride"] = STRIDES.get(encoder, patch)
        if positions is None:
            # SSAST has no such table: as in checkpoints of before there was a default.
            ours = encoder == "audiomae"
            raster = official_raster(patch, self.hparams["stride"]) if ours else "stored"
            self.hparams["positions"] = raster
        check_settings(self.hparams)

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
        self.model = build_model(h)
        if initialise:
            self._load_pretrained(h["pretrained"])
        if h["freeze"]:
            freeze_encoder(self.model)
            self.model.eval()
        # A run that goes on gets its decoder from the checkpoint.
        if h["aux_loss_weight"] > 0 and (initialise or isinstance(self.model, SSAST)):
            train_drawing(self.model)
        self.scores = ClipScores(h["multi_label"])
        self.evaluation_loss = MeanMetric()
        self.train_loss = MeanMetric()
        self.train_accuracy = MeanMetric()
        # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
        self.train_loss.persistent(True)
        self.train_accuracy.persistent(True)

    def _load_pretrained(self, path: str | None) -> None:
        fill(self.model, path)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of training; a frozen encoder stays in that of evaluation."""
        super().train(mode)
        if self.built and self.hparams["freeze"]:
            self.model.eval()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in `BaseTask`; a decoder is made before the optimiser asks for its weights."""
        # Checkpoints written before there were two families, probes, and `channels`.
        saved = checkpoint.get("hyper_parameters", {})
        saved.setdefault("encoder", "ssast")
        saved.setdefault("reconstruction", "head")
        told = saved.get("channels")
        saved.setdefault("channels", self.hparams["channels"] or "mean")
        super().on_load_checkpoint(checkpoint)
        self._require_channels_of_data(told)
        if isinstance(self.model, MaskedAutoencoder) and self.hparams["aux_loss_weight"] > 0:
            state = checkpoint["state_dict"]
            self.model.attach_decoder(
                decoder_of(state, "model."),
                pixels="model.decoder.pred.weight" in state,
                norm_pix=bool(state["model.geometry"][4]),
            )
            train_drawing(self.model)

    def _require_channels_of_data(self, saved: str | None) -> None:
        """Refuses to score clips that are read in another way than those that trained."""
        if self._trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            return
        heard = getattr(getattr(self.trainer, "datamodule", None), "heard_channels", None)
        if saved is not None and heard is not None and heard != saved:
            raise CheckpointError(
                f"{self.trainer.ckpt_path} was trained on the {saved} of several channels, and the "
                f"data gives their {heard}: set data.init_args.channels to {saved}"
            )

    @staticmethod
    def monitor(multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """Accuracy; mAP where clips have several labels."""
        return ("val/mAP" if multi_label else "val/accuracy"), "max"

    # --- training ---------------------------------------------------------------------------

    def augment(self, batch: Batch) -> None:
        """Noise, roll and mask, see `peas.tasks.augmentation`."""
        augment(self, batch, self.masking)

    def on_fit_start(self) -> None:
        """As in `BaseTask`; a new run fits its pixel probe."""
        super().on_fit_start()
        self.prepare_reconstruction()

    def prepare_reconstruction(self) -> None:
        """Fits the pixel probe, unless the run goes on and its checkpoint has brought it."""
        if self.hparams["reconstruction"] == "probe" and self.model.pixel_probe is None:
            fit_pixel_probe(self)

    def forward(self, log_mel: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of normalised log-mels `[B, T, F]`.

        Args:
            log_mel: `[B, T, F]`.
            hidden: `[B, N]` bool, patches that do not reach the encoder, in the model's own order.
        """
        logits: Tensor = self.model(log_mel, hidden)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classifies the masked clips without their `hidden_patches`, and returns the loss."""
        log_mel = batch["masked_log_mel"] if "mask" in batch else batch["log_mel"]
        logits = self(log_mel, batch.get("hidden_patches"))
        target = as_soft(batch["target"], logits.shape[-1])
        loss = classification_loss(
            logits, target, self.hparams["loss"], self.hparams["label_smoothing"]
        )
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
        self.train_loss.update(*counted(loss.detach(), clips))
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

    def warmup(self) -> tuple[str, float]:
        """`warmup_steps` of the staircase, `warmup_epochs` of the cosine."""
        h = self.hparams
        if h["schedule"] == "cosine":
            return "warmup_epochs", h["warmup_epochs"] * self.steps_per_epoch
        return "warmup_steps", h["warmup_steps"]

    def lr_factor(self, step: int, epoch: int) -> float:
        """Factor of the recipe's schedule."""
        h = self.hparams
        if h["schedule"] == "cosine":
            epochs = self.trainer.max_epochs
            assert epochs
            at = self.epochs_passed(step)
            return cosine_factor(at, h["warmup_epochs"], epochs, h["min_lr"] / self.rate)
        decay = step_decay(epoch, h["decay_start"], h["decay_factor"], h["decay_every"])
        return staircase_warmup(step, h["warmup_steps"]) * decay

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimiser; `lr_factor` sets the rates."""
        h = self.hparams
        if h["schedule"] == "cosine":
            if not self.trainer.max_epochs or self.trainer.max_epochs < 0:
                raise ConfigError(
                    "`trainer.max_epochs` is not set: `schedule: cosine` must know the end"
                )
            if h["min_lr"] >= self.rate:
                raise ConfigError(
                    f"`model.init_args.min_lr` is {h['min_lr']:g} and the rate of this run "
                    f"{self.rate:g}, so the rate would rise: lower min_lr, or raise lr or the "
                    "batch size"
                )
        return make_optimizer(self.model, h, self.rate)

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
