"""Fine-tuning of a masked model as a classifier of clips."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric

from peas.audio.frontend import FrontEnd, KaldiLogMel
from peas.data.batch import Batch
from peas.errors import CheckpointError, ConfigError
from peas.evaluation.metrics import ClipScores
from peas.masking.peas.scores import error_maps
from peas.models import SSAST, Encoder
from peas.models.weights import load_pretrained
from peas.models.weights.imagenet import PREFIX, load_imagenet
from peas.objectives import ClassificationLoss, as_soft, classification_loss
from peas.recipes import Recipe, SSASTRecipe
from peas.recipes.ssast import CLASSIFIER
from peas.tasks.augmentation import Augmentation, augment
from peas.tasks.base import BaseTask, MetricNames
from peas.tasks.pixel_probe import fit_pixel_probe
from peas.training.nonfinite import counted

SCORES = {"mAP", "AUC", "d_prime", "classes", "clips", "loss"}
"""Metrics of evaluation; `accuracy` too where a clip has one class."""


class Classification(BaseTask):
    """Fine-tunes an encoder with the recipes of SSAST's and AudioMAE's papers and of PEAS.

    The config's `masking` chooses the masked bins of a training clip. Noise, roll and the
    mask's fill are applied in `peas.tasks.augmentation`, so every masking strategy shares one
    filling rule. The callback `PatchDropout` writes `dropped_patches`: these do not reach the
    encoder.

    Args:
        pretrained: File of weights: an official file of the encoder's family (pretrained or
            fine-tuned) or a checkpoint of `peas`. `timm:NAME` takes ImageNet weights from timm's
            hub, `timm:FILE` from a file of such weights. Null starts from random weights and must
            be typed: the default, an empty string, is refused when a run starts.
        encoder: Such as `peas.models.SSAST` (default) or `peas.models.AudioMAE`.
        front_end: Such as `peas.audio.KaldiLogMel` (default).
        recipe: Such as `peas.recipes.SSASTRecipe` (default) or `AudioMAERecipe`.
        augmentation: Noise, roll, gain, and the fill of masked bins.
        loss: `ce` with true soft targets, or `bce`.
        label_smoothing: Of `ce`, in training: share of a target that is spread evenly over all
            classes. AudioMAE's script for ESC-50 has 0.1; 0 is off.
        freeze: `encoder` trains only the classifier, on features without gradient, dropout or
            stochastic depth (linear probe). The classifier is a LayerNorm of the pooled tokens
            (`fc_norm`, trained with it) and a linear layer. Null trains everything.
        aux_loss_weight: Weight of the mean errors of PEAS's auxiliary tasks (equations 1 and 2) in
            the loss. The paper updates the model by the classification loss only: 0.
        reconstruction: What reconstructs spectrograms for PEAS: the pretrained `head`, or `probe`,
            a linear pixel head that is fitted on the encoder as it starts, for weights that came
            without one (MAM-CLAP, SupMAM-CLAP, fine-tuned files). See `peas.models.reconstructor`.
        compile: Compile the transformer blocks (`torch.compile`, in place).
        labels: Names of the classes; null takes them from the data.
        multi_label: Whether a clip may have several labels; null takes it from the data.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose = "fine-tuning"
    shape_keys = ("reconstruction",)
    resume_keys = ("freeze",)
    default_parts: ClassVar[dict[str, type[Any]]] = {
        "encoder": SSAST,
        "front_end": KaldiLogMel,
        "recipe": SSASTRecipe,
    }
    scores: ClipScores
    evaluation_loss: MeanMetric
    train_loss: MeanMetric
    train_accuracy: MeanMetric

    def __init__(
        self,
        # No required argument: the parser would fill it with null, as its type allows.
        pretrained: str | None = "",
        encoder: Encoder | None = None,
        front_end: FrontEnd | None = None,
        recipe: Recipe | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        loss: ClassificationLoss = "ce",
        label_smoothing: float = 0.0,
        freeze: Literal["encoder"] | None = None,
        aux_loss_weight: float = 0.0,
        reconstruction: Literal["head", "probe"] = "head",
        compile: bool = False,
        labels: list[str] | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["encoder", "front_end", "recipe", "augmentation"])
        self.adopt(encoder, front_end, recipe)
        # A checkpoint's settings are plain.
        plain: Any = augmentation
        self.augmentation = Augmentation(**plain) if isinstance(plain, dict) else plain
        self.hparams["augmentation"] = asdict(self.augmentation)
        _check_settings(self.hparams)

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
        self.model.build(self.front_end.frames, self.front_end.n_mels, len(h["labels"]))
        if initialise:
            _fill(self.model, h["pretrained"])
        if h["freeze"]:
            _freeze_encoder(self.model)
            self.model.eval()
        # A resumed run may get its pixel head from the checkpoint.
        if h["aux_loss_weight"] > 0 and (initialise or self.model.can_reconstruct):
            self.model.require_trainable_pixels()
        self.scores = ClipScores(h["multi_label"])
        self.evaluation_loss = MeanMetric()
        self.train_loss = MeanMetric()
        self.train_accuracy = MeanMetric()
        # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
        self.train_loss.persistent(True)
        self.train_accuracy.persistent(True)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of training; a frozen encoder stays in that of evaluation."""
        super().train(mode)
        if self.built and self.hparams["freeze"]:
            self.model.eval()
        return self

    def load_own(self, checkpoint: dict[str, Any], resuming: bool) -> None:
        """Makes a decoder that is trained too, before the optimiser is made."""
        channels = checkpoint["hyper_parameters"]["front_end"]["init_args"].get("channels")
        self._require_channels_of_data(channels)
        if self.hparams["aux_loss_weight"] > 0:
            self.model.adopt_heads(checkpoint["state_dict"], "model.")
            self.model.require_trainable_pixels()

    def _require_channels_of_data(self, saved: str | None) -> None:
        """Refuses to score clips that are read in another way than those that trained."""
        if self._trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            return
        channels = getattr(getattr(self.trainer, "datamodule", None), "channel_mode", None)
        if saved is not None and channels is not None and channels != saved:
            raise CheckpointError(
                f"{self.trainer.ckpt_path} was trained on the {saved} of several channels, and the "
                f"data gives their {channels}: set data.init_args.channels to {saved}"
            )

    @property
    def roll_gain(self) -> str:
        """Augmentation of the waveforms."""
        return self.augmentation.roll_gain

    def metric_names(self) -> MetricNames:
        """What is logged of training, evaluation, and each step."""
        accuracy = set() if self.hparams["multi_label"] else {"accuracy"}
        auxiliary = {"aux_loss"} if self.hparams["aux_loss_weight"] > 0 else set()
        return MetricNames({"loss"} | accuracy | auxiliary, SCORES | accuracy, {"loss"})

    @staticmethod
    def monitor(multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """Accuracy; mAP where clips have several labels."""
        return ("val/mAP" if multi_label else "val/accuracy"), "max"

    # --- training ---------------------------------------------------------------------------

    def augment(self, batch: Batch) -> None:
        """Noise, roll and mask, see `peas.tasks.augmentation`."""
        augment(self, batch, self.masking, self.augmentation)

    def on_fit_start(self) -> None:
        """As in `BaseTask`; a new run fits its pixel probe."""
        super().on_fit_start()
        self.prepare_reconstruction()

    def prepare_reconstruction(self) -> None:
        """Fits the pixel probe, unless a resumed checkpoint has brought it."""
        if self.hparams["reconstruction"] == "probe" and self.model.pixel_probe is None:
            fit_pixel_probe(self)

    def forward(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of normalised log-mels `[B, T, F]`.

        Args:
            log_mel: `[B, T, F]`.
            masked: `[B, N]` bool, patches that do not reach the encoder, in the model's own order.
        """
        logits: Tensor = self.model(log_mel, masked)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Classifies the masked clips without their `dropped_patches`, and returns the loss."""
        log_mel = batch["masked_log_mel"] if "mask" in batch else batch["log_mel"]
        logits = self(log_mel, batch.get("dropped_patches"))
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
        main = self.monitor(self.hparams["multi_label"])[0].removeprefix("val/")
        for name, value in scores.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == main, sync_dist=False)


def _check_settings(h: Mapping[str, Any]) -> None:
    """Refuse settings that are impossible, or that contradict each other.

    Args:
        h: Hyperparameters of `Classification`.

    Raises:
        ConfigError: The message names the key.
    """
    key = "`model.init_args.{}`".format
    if h["labels"] is not None and not h["labels"]:
        raise ConfigError(f"{key('labels')} is empty: give at least one class")
    if not 0 <= h["label_smoothing"] < 1:
        raise ConfigError(
            f"{key('label_smoothing')} is {h['label_smoothing']}: give 0 or more, and less than 1"
        )
    if h["label_smoothing"] and h["loss"] == "bce":
        raise ConfigError(
            f"{key('label_smoothing')} is {h['label_smoothing']}, which belongs to `loss: ce`, and "
            "`loss` is bce: set it to 0"
        )
    if h["reconstruction"] not in ("head", "probe"):
        raise ConfigError(
            f"{key('reconstruction')} is {h['reconstruction']!r}: choose head or probe"
        )
    if h["reconstruction"] == "probe" and h["aux_loss_weight"]:
        raise ConfigError(
            f"{key('reconstruction')} is probe, which is fitted once and never trained, and "
            f"{key('aux_loss_weight')} is {h['aux_loss_weight']}: set that to 0"
        )
    if h["freeze"] and h["aux_loss_weight"]:
        raise ConfigError(
            f"{key('freeze')}: {h['freeze']} trains only the classifier, so an auxiliary loss has "
            f"nothing to do: set {key('aux_loss_weight')} to 0"
        )


def _fill(model: Encoder, pretrained: str | None) -> None:
    """Load the weights that a run starts from, and print what became of them.

    Args:
        model: Filled in place.
        pretrained: As in `Classification`.

    Raises:
        ConfigError: It is not given.
        CheckpointError: The weights cannot be used.
    """
    if pretrained == "":
        raise ConfigError(
            "`model.init_args.pretrained` is not given: name a file of weights, such as "
            "SSAST-Base-Patch-400.pth (linked from github.com/YuanGongND/ssast), or type "
            "`null` for random weights"
        )
    if pretrained is None:
        rank_zero_warn(
            "`pretrained: null`: the encoder starts from random weights. Its error maps, and "
            "so PEAS's choice of blocks, mean little until it has been pretrained."
        )
    elif pretrained.startswith(PREFIX):
        rank_zero_info(str(load_imagenet(model, pretrained.removeprefix(PREFIX))))
    else:
        rank_zero_info(str(load_pretrained(model, Path(pretrained))))


def _freeze_encoder(model: Encoder) -> None:
    """Leave nothing to train but the classifier: `fc_norm` and `head`."""
    model.requires_grad_(False)
    for name in CLASSIFIER:
        model.get_submodule(name).requires_grad_(True)
