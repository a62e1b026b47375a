"""What every task shares: facts of the data, front end on the device, optimiser, randomness."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from peas import randomness
from peas.allocator import keep_freed_memory
from peas.augment.waveform import ROLL_GAIN_DRAWS, roll_and_gain
from peas.data.batch import Batch
from peas.data.fingerprint import Fingerprint
from peas.errors import CheckpointError, ConfigError
from peas.frontend import LogMel
from peas.models.masked import MaskedModel, compile_blocks
from peas.processes import is_first
from peas.tasks import run_clips
from peas.tasks.running_means import forget_sums
from peas.tasks.stepping import SteppingModule

if TYPE_CHECKING:
    from peas.tasks.augmentation import Masker

MEASURED = ("mean", "std")
"""Facts that a data set may measure over its training clips."""
SETTINGS = "settings"
"""Part of a checkpoint that holds the whole configuration."""


class BaseTask(SteppingModule):
    """A task owns its front end, so that a checkpoint alone turns sound into scores.

    Facts of the data (`labels`, `mean`, `std`, `frames`, `multi_label`) are arguments that
    default to null. `fit` fills them from `trainer.datamodule.facts` and writes them to `hparams`;
    every other use reads them from the checkpoint.

    Subclasses implement `build`, which makes the modules once the facts are known, and
    `lr_factor`.
    """

    facts_keys: ClassVar[tuple[str, ...]] = ("labels", "mean", "std", "frames", "multi_label")
    """Hyperparameters that the data module knows."""
    shape_keys: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a checkpoint cannot be loaded without agreeing on."""
    resume_keys: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a run cannot change when it goes on: weights or moments of other
    settings would be read as if they fitted."""
    resumes: bool = False
    """Whether a checkpoint of this very run follows, so that `pretrained` is not asked for. Set by
    the command line: Lightning tells a task only after `setup`."""
    masking: "Masker | None" = None
    """Masking strategy of this `fit`; a `MaskingStrategy` sets itself when it starts."""
    front_end: LogMel
    model: MaskedModel
    _clips: dict[str, Fingerprint] | None = None
    _measured: frozenset[str] = frozenset()

    # --- building ---------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether the modules exist."""
        return hasattr(self, "front_end")

    def build(self, *, initialise: bool) -> None:
        """Makes the modules from complete `hparams`.

        Args:
            initialise: Load `pretrained` weights; False when a checkpoint follows anyway.
        """
        raise NotImplementedError

    def monitor(self, multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """Metric by which the best checkpoint is chosen, and whether less or more is better."""
        raise NotImplementedError

    def build_front_end(self) -> None:
        """Makes `front_end` from the facts in `hparams`."""
        h = self.hparams
        self.front_end = LogMel(frames=h["frames"], mean=h["mean"], std=h["std"])

    def setup(self, stage: str) -> None:
        """Fills the facts from the data module and builds, before `fit`."""
        # Of an earlier `fit` of this object.
        self.masking = None
        if self.built or stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        facts = getattr(data, "facts", None)
        if getattr(data, "measures", False):
            self._measured = frozenset(key for key in MEASURED if self.hparams[key] is None)
        for key in self.facts_keys:
            if self.hparams[key] is None:
                if facts is None:
                    raise ConfigError(
                        f"`model.init_args.{key}` is null and no data module tells it: "
                        f"give `data`, or set the key"
                    )
                value = getattr(facts, key)
                self.hparams[key] = list(value) if isinstance(value, tuple) else value
        self.build(initialise=not self.resumes)

    def configure_model(self) -> None:
        """Builds for a callback that averages the weights and asks before `setup` is called.

        Raises:
            ConfigError: It averages what must stay exact.
        """
        if self._trainer is not None and self.trainer.training:
            callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
            if any(isinstance(callback, EMAWeightAveraging) for callback in callbacks):
                raise ConfigError(
                    "lightning.pytorch.callbacks.EMAWeightAveraging averages buffers and frozen "
                    "weights too, which changes the model's geometry: use "
                    "`class_path: peas.callbacks.WeightAverage` (configs/overlays/ema.yaml)"
                )
            self.setup("fit")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes facts from the checkpoint, builds, and refuses one of another shape."""
        where = getattr(self._trainer, "ckpt_path", None) or "the checkpoint"
        saved = checkpoint.get("hyper_parameters")
        keys = (*self.facts_keys, *self.shape_keys)
        if not saved or any(key not in saved for key in keys):
            raise CheckpointError(
                f"{where}: holds no settings of {type(self).__name__} "
                f"(`hyper_parameters` with {', '.join(keys)}): it was not written by "
                "this task. Weights of other origin go into `--model.init_args.pretrained`."
            )
        self._require_labels_of_data(saved["labels"], where)
        goes_on = self._trainer is not None and self.trainer.training
        for key in keys:
            ours, theirs = self.hparams[key], saved[key]
            if ours is None:
                self.hparams[key] = theirs
            elif key in self._measured and goes_on and theirs is not None and ours != theirs:
                # Of other clips, which are told below. The front end is the checkpoint's.
                rank_zero_warn(
                    f"{key} of the training clips is {ours:.6g} now; the run keeps "
                    f"`model.init_args.{key}: {theirs:.6g}`, which its weights were trained with"
                )
                self.hparams[key] = theirs
            elif _plain(ours) != _plain(theirs):
                raise CheckpointError(_refusal(key, ours, theirs, where))
        for key in self.resume_keys:
            ours, theirs = self.hparams[key], saved.get(key, self.hparams[key])
            if goes_on and _plain(ours) != _plain(theirs):
                raise CheckpointError(_refusal(key, ours, theirs, where))
        other = sorted(
            key
            for key, value in self.hparams.items()
            if not key.startswith("_")
            and key != "pretrained"
            and key in saved
            and _plain(saved[key]) != _plain(value)
        )
        super().on_load_checkpoint(checkpoint)
        if not is_first():
            forget_sums(self, checkpoint)
        # With its settings a run has a fuller account of them, see `peas.callbacks.continuity`.
        if other and goes_on and SETTINGS not in checkpoint:
            changes = ", ".join(f"{k}: {saved[k]!r} → {self.hparams[k]!r}" for k in other)
            rank_zero_warn(f"the run goes on with other settings than before: {changes}")
        if not self.built:
            self.build(initialise=False)
        if self._trainer is not None:
            run_clips.check(self.trainer, checkpoint, where)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is remembered of the clips."""
        super().on_save_checkpoint(checkpoint)
        if self._clips is not None:
            checkpoint[run_clips.KEY] = run_clips.as_saved(self._clips)

    def _require_labels_of_data(self, saved: list[str], where: str) -> None:
        """Refuses to score a model on data whose classes are not its own."""
        if self._trainer is None or not (self.trainer.validating or self.trainer.testing):
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        # Not its facts: those may have to be measured, over training clips that are not there.
        if not hasattr(data, "take_labels") or data.take_labels(list(saved)):
            return
        labels = list(data.labels)
        pairs = zip(saved, labels, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        told = f"; the first that differs: {first[0]!r} against {first[1]!r}" if first else ""
        raise CheckpointError(
            f"{where} was trained on {len(saved)} classes, and the data has {len(labels)} "
            f"classes{told}: scores would be of the wrong classes. Give the data set that the "
            "checkpoint was trained on (its run's config.yaml), or use `peas predict`."
        )

    def prepare_reconstruction(self) -> None:
        """Callbacks call it when `fit` starts, before they ask the model to reconstruct.

        Theirs is the earlier hook. Here there is nothing to do.
        """

    def require_maskable(self, key: str) -> None:
        """Raises ConfigError where masks of fine-tuning have no place.

        Args:
            key: Where in the config they come from.
        """

    def require_weights(self) -> None:
        """Raises ConfigError when evaluation starts without a checkpoint."""
        if not self.built:
            raise ConfigError(
                "this needs the weights of a run: add "
                "`--ckpt_path RUN/checkpoints/best.ckpt` (or last.ckpt)"
            )

    def on_validation_start(self) -> None:
        """Checks that there are weights to validate."""
        self.require_weights()

    def on_test_start(self) -> None:
        """Checks that there are weights to test."""
        self.require_weights()

    def on_predict_start(self) -> None:
        """Checks that there are weights to predict with."""
        self.require_weights()

    # --- sound to log-mel -------------------------------------------------------------------

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Adds `log_mel`, `frames` and `valid` on the device; in training also augments."""
        self.require_weights()
        if self.trainer.training and self.hparams.get("roll_gain", "none") != "none":
            self._roll_and_gain(batch)
        spectrogram = self.front_end(batch["waveform"], batch["length"])
        batch["log_mel"] = spectrogram.log_mel
        batch["frames"] = spectrogram.frames
        batch["valid"] = spectrogram.valid
        if self.trainer.training:
            self.augment(batch)
        return batch

    def augment(self, batch: Batch) -> None:
        """Augments the log-mels of a training batch in place; here there is nothing to do."""

    def _roll_and_gain(self, batch: Batch) -> None:
        waveform = batch["waveform"]
        u = self.draws(batch, "roll_gain", (ROLL_GAIN_DRAWS,)).to(waveform.device)
        length = batch["length"].to(waveform.device)
        roll = self.hparams["roll_gain"] == "paper"
        batch["waveform"] = roll_and_gain(waveform, length, u, roll=roll)

    def draws(self, batch: Batch, stream: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform draws of this batch's clips, `[B, *shape]` on the CPU; see `peas.randomness`."""
        source = randomness.generator(
            randomness.run_seed(), stream, self.trainer.current_epoch, batch["step"]
        )
        return randomness.uniform_rows(batch["row"], batch["global_size"], shape, source)

    # --- training ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Prints the settings that decide a result; on a CPU, lets steps reuse their memory."""
        super().on_fit_start()
        trainer = self.trainer
        # Now, and not when the first checkpoint is written: a clip may vanish meanwhile. The first
        # process writes for all.
        if is_first():
            self._clips = run_clips.clips_of(trainer)
        if self.hparams["compile"]:
            compile_blocks(self.model)
        if self.device.type == "cpu":
            keep_freed_memory()
        if str(trainer.precision).endswith("true") and not str(trainer.precision).startswith("32"):
            raise ConfigError(
                f"`trainer.precision: {trainer.precision}` would change the waveform, and the "
                "front end needs float32: use `bf16-mixed` or `32-true`"
            )
        batch = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        world = trainer.world_size
        accumulate = trainer.accumulate_grad_batches
        total = self.global_batch or "?"
        rank_zero_info(
            f"base lr {self.hparams.get('lr')}, global batch {total} = {batch} clips x {world} "
            f"processes x {accumulate} accumulated, resulting lr {self.rate:.6g}; "
            f"seed {randomness.run_seed()}"
        )


def _refusal(key: str, ours: Any, theirs: Any, where: str) -> str:
    return (
        f"`model.init_args.{key}` is {_short(ours)}, but {where} was trained with "
        f"{_short(theirs)}: use the run's own config.yaml with its checkpoint. "
        "To start a new run from these weights use `--model.init_args.pretrained`."
    )


def _plain(value: Any) -> Any:
    """Lists for tuples, so that settings compare equal after a round trip through YAML."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(value)} items)"
