"""What every task shares: facts of the data, front end on the device, optimiser, randomness."""

import copy
import inspect
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from peas.audio.frontend import FrontEnd
from peas.augment.mixup import ROLL_GAIN_DRAWS, roll_and_gain
from peas.data.batch import Batch
from peas.data.fingerprint import Fingerprint
from peas.errors import CheckpointError, ConfigError
from peas.models.encoder import Encoder, compile_blocks
from peas.models.weights import read_state
from peas.models.weights.checking import check_run, malformed
from peas.parts import make_parts, plain
from peas.recipes.base import Recipe
from peas.tasks.stepping import SteppingModule
from peas.training import randomness, run_clips
from peas.training.distributed import is_first
from peas.training.epoch_means import forget_sums
from peas.utils import migration
from peas.utils.processes import keep_freed_memory

if TYPE_CHECKING:
    from peas.tasks.augmentation import Masker

MEASURED = ("mean", "std")
"""Settings of the front end that a data set may measure over its training clips."""
SETTINGS = "settings"
"""Part of a checkpoint that holds the whole configuration."""


class MetricNames(NamedTuple):
    """Names of a task's metrics, without `train/` and `val/`."""

    train: set[str]
    val: set[str]
    step: set[str]


class BaseTask(SteppingModule):
    """Base of `peas.tasks.Pretraining` and `peas.tasks.Classification`.

    A task owns its front end, so that a checkpoint alone turns sound into scores.

    Facts of the data (`labels`, `multi_label`; of the front end `frames`, `mean`, `std`,
    `channels`) are settings that default to null. `fit` fills them from
    `trainer.datamodule.facts` and writes them to `hparams`; every other use reads them from the
    checkpoint.

    Subclasses call `adopt` with their parts, and implement `build`, which makes the modules once
    the facts are known.

    Attributes:
        model: The encoder.
        front_end: Waveforms to log-mels.
        recipe: Optimiser and schedule.
    """

    facts_keys: ClassVar[tuple[str, ...]] = ("labels", "multi_label")
    """Hyperparameters that the data module knows."""
    shape_keys: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a checkpoint cannot be loaded without agreeing on."""
    resume_keys: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a run cannot change when it goes on: weights or moments of other
    settings would be read as if they fitted."""
    own_keys: ClassVar[tuple[str, ...]] = ()
    """More hyperparameters that a checkpoint of this task has, and one of another has not."""
    part_bases: ClassVar[dict[str, type[Any]]] = {
        "encoder": Encoder,
        "front_end": FrontEnd,
        "recipe": Recipe,
    }
    """What a setting that names a part must be."""
    default_parts: ClassVar[dict[str, type[Any]]] = {}
    """Classes of the parts that are not given, or of which only settings are."""
    resumes: bool = False
    """Whether a checkpoint of this very run follows, so that `pretrained` is not asked for. Set by
    the command line: Lightning tells a task only after `setup`."""
    masking: "Masker | None" = None
    """Masking strategy of this `fit`; a `MaskingStrategy` sets itself when it starts."""
    front_end: FrontEnd
    model: Encoder
    _clips: dict[str, Fingerprint] | None = None
    _measured: frozenset[str] = frozenset()

    # --- building ---------------------------------------------------------------------------

    @classmethod
    def restore(
        cls, content: dict[str, Any], where: str, *, modules: Sequence[str] = (), **settings: Any
    ) -> Self:
        """A task with its weights, from a checkpoint's content.

        Args:
            content: From `read_state`, checked by `check_run`.
            where: The file, for errors.
            modules: Modules besides `peas` whose parts it may name, each with those below it.
            settings: In the place of the checkpoint's.

        Raises:
            CheckpointError: It is none of this task, or names a part that may not be made.
        """
        saved = content.get("hyper_parameters") or {}
        accepted = inspect.signature(cls).parameters
        given = {key: saved[key] for key in saved if key in accepted}
        given = make_parts(
            given, cls.part_bases, where=f"{where}: hyper_parameters", modules=modules
        )
        try:
            with malformed(where):
                task = cls(**{**given, **settings})
                task.on_load_checkpoint(content)
                task.load_state_dict(content["state_dict"])
        except ConfigError as error:
            # Its keys are the file's, and whoever reads it has none.
            raise CheckpointError(f"{where}: {error}") from error
        return task

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        modules: Sequence[str] = (),
        weights_only: Literal[True] = True,
        **settings: Any,
    ) -> Self:
        """A task with its weights, from a run's file; nothing in the file is executed.

        Lightning's own would import and build whatever class the file names.

        Args:
            checkpoint_path: `best.ckpt` or `last.ckpt` of a run, of this release or of 0.1.
            map_location: Device of the task; None = the CPU.
            modules: Modules besides `peas` whose parts it may name, each with those below it.
            weights_only: Always; torch's word for it.
            settings: In the place of the checkpoint's.

        Raises:
            CheckpointError: It is none of this task, or names a part that may not be made.
        """
        where = str(checkpoint_path)
        content = read_state(Path(checkpoint_path))
        check_run(content, where)
        task = cls.restore(content, where, modules=modules, **settings)
        return task if map_location is None else task.to(map_location)

    def adopt(self, encoder: Encoder, front_end: FrontEnd, recipe: Recipe) -> None:
        """Takes the parts that every task has."""
        self.model, self.front_end, self.recipe = encoder, front_end, recipe
        self._note_parts()

    def _note_parts(self) -> None:
        """Writes the parts, by class path and settings, to `hparams`."""
        self.hparams["encoder"] = self.model.spec()
        self.hparams["front_end"] = self.front_end.spec()
        self.hparams["recipe"] = self.recipe.spec()

    @property
    def hparams_initial(self) -> MutableMapping[str, Any]:  # type: ignore[override]
        """What loggers write: settings as they were given, and the parts, which came later."""
        given: MutableMapping[str, Any] = super().hparams_initial
        parts = {key: value for key, value in self.hparams.items() if key not in given}
        given.update(copy.deepcopy(parts))
        return given

    @property
    def built(self) -> bool:
        """Whether the modules exist."""
        return self.model.built

    def build(self, *, initialise: bool) -> None:
        """Makes the modules from complete settings.

        Args:
            initialise: Load `pretrained` weights; False when a checkpoint follows anyway.
        """
        raise NotImplementedError

    def monitor(self, multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """Metric by which the best checkpoint is chosen, and whether less or more is better."""
        raise NotImplementedError

    def metric_names(self) -> MetricNames:
        """What a run with validation logs."""
        raise NotImplementedError

    @property
    def roll_gain(self) -> str:
        """Augmentation of the waveforms: `none`, `official` or `paper`."""
        return "none"

    def setup(self, stage: str) -> None:
        """Fills the facts from the data module and builds, before `fit`."""
        # Of an earlier `fit` of this object.
        self.masking = None
        if self.built or stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        facts = getattr(data, "facts", None)
        ours = self.front_end
        if getattr(data, "measures", False):
            self._measured = frozenset(key for key in MEASURED if ours.setting(key) is None)
        rate = getattr(data, "rate", ours.rate)
        if rate != ours.rate:
            raise ConfigError(
                f"`model.init_args.front_end`: {type(ours).__name__} takes sound of "
                f"{ours.rate} Hz, and the data gives {rate} Hz: let its `rate` be {rate}, and "
                "resample in `forward`"
            )
        missing = [key for key in ours.fixed if ours.setting(key) is None and key != "channels"]
        if not ours.data_statistics and (own := [key for key in MEASURED if key in missing]):
            raise ConfigError(
                f"`model.init_args.front_end.init_args`: {' and '.join(own)} of "
                f"{type(ours).__name__} are null, and data sets know those of KaldiLogMel alone: "
                "give its own, over the log-mels of the training clips"
            )
        for key, owner in (
            *((key, "") for key in self.facts_keys if self.hparams[key] is None),
            *((key, "front_end.init_args.") for key in missing),
        ):
            if facts is None:
                raise ConfigError(
                    f"`model.init_args.{owner}{key}` is null and no data module tells it: "
                    "give `data`, or set the key"
                )
            if not owner:
                value = getattr(facts, key)
                self.hparams[key] = list(value) if isinstance(value, tuple) else value
        if facts is not None and ours.setting("channels") is None:
            missing.append("channels")
        ours.build(**{key: getattr(facts, key) for key in missing})
        self._build(initialise=not self.resumes)

    def _build(self, *, initialise: bool) -> None:
        self.build(initialise=initialise)
        self._note_parts()

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
        migration.checkpoint(checkpoint)
        saved = checkpoint.get("hyper_parameters")
        keys = (*self.facts_keys, *self.shape_keys)
        wanted = (*keys, "encoder", "front_end", "recipe", *self.own_keys)
        if not saved or any(key not in saved for key in wanted):
            raise CheckpointError(
                f"{where}: holds no settings of {type(self).__name__} "
                f"(`hyper_parameters` with {', '.join(wanted)}): it was not written by "
                "this task. Weights of other origin go into `--model.init_args.pretrained`."
            )
        self._require_labels_of_data(saved["labels"], where)
        goes_on = self._trainer is not None and self.trainer.training
        for key in keys:
            ours, theirs = self.hparams[key], saved[key]
            if ours is None:
                self.hparams[key] = theirs
            elif plain(ours) != plain(theirs):
                raise CheckpointError(_refusal(key, ours, theirs, where))
        self._agree_on_part("front_end", self.front_end, saved, where, goes_on)
        self._agree_on_part("encoder", self.model, saved, where, goes_on)
        self._note_parts()
        if goes_on:
            for key in self.resume_keys:
                ours, theirs = self.hparams[key], saved.get(key, self.hparams[key])
                if plain(ours) != plain(theirs):
                    raise CheckpointError(_refusal(key, ours, theirs, where))
            ours, theirs = (h["recipe"]["class_path"] for h in (self.hparams, saved))
            if ours != theirs:
                raise CheckpointError(_refusal("recipe.class_path", ours, theirs, where))
        told = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        told.pop("pretrained", None)
        other = _differences(plain(saved), plain(told))
        super().on_load_checkpoint(checkpoint)
        if not is_first():
            forget_sums(self, checkpoint)
        # With its settings a run has a fuller account of them, see `peas.callbacks.run_checks`.
        if other and goes_on and SETTINGS not in checkpoint:
            changes = ", ".join(f"{key}: {old!r} → {new!r}" for key, (old, new) in other.items())
            rank_zero_warn(f"the run goes on with other settings than before: {changes}")
        if not self.built:
            self._build(initialise=False)
        self.load_own(checkpoint, goes_on)
        if self._trainer is not None:
            run_clips.check(self.trainer, checkpoint, where)

    def load_own(self, checkpoint: dict[str, Any], goes_on: bool) -> None:
        """Takes more of a checkpoint, once the modules exist; here there is nothing.

        Args:
            checkpoint: Its content.
            goes_on: Whether training goes on.
        """

    def _agree_on_part(
        self, name: str, part: Encoder | FrontEnd, saved: dict[str, Any], where: str, goes_on: bool
    ) -> None:
        """Takes what a part's settings leave open from the checkpoint, and refuses others."""
        ours, theirs = self.hparams[name]["class_path"], saved[name]["class_path"]
        if ours != theirs:
            raise CheckpointError(_refusal(f"{name}.class_path", ours, theirs, where))
        taken: dict[str, Any] = {}
        for key in part.fixed:
            mine, found = part.setting(key), saved[name]["init_args"].get(key)
            # Null on both sides is a default of the part's own.
            if found is None or plain(mine) == plain(found):
                continue
            if mine is None:
                taken[key] = found
            elif key in self._measured and goes_on:
                # Of other clips, which are told below. The front end is the checkpoint's.
                rank_zero_warn(
                    f"{key} of the training clips is {mine:.6g} now; the run keeps "
                    f"`model.init_args.{name}.init_args.{key}: {found:.6g}`, which its weights "
                    "were trained with"
                )
                taken[key] = found
            else:
                raise CheckpointError(_refusal(f"{name}.init_args.{key}", mine, found, where))
        if isinstance(part, FrontEnd):
            part.build(**taken)
        else:
            part.settle(**taken)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is remembered of the clips; leaves out what Lightning would execute."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.get("hyper_parameters", {}).pop("_instantiator", None)
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
        if self.trainer.training and self.roll_gain != "none":
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
        roll = self.roll_gain == "paper"
        batch["waveform"] = roll_and_gain(waveform, length, u, roll=roll)

    def draws(self, batch: Batch, stream: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform random numbers of this batch's clips, `[B, *shape]`, on the CPU.

        See `peas.training.randomness`.
        """
        source = randomness.generator(
            randomness.run_seed(), stream, self.trainer.current_epoch, batch["step"]
        )
        return randomness.uniform_rows(batch["row"], batch["global_size"], shape, source)

    # --- training ---------------------------------------------------------------------------

    def trained_beside(self) -> list[nn.Module]:
        """Modules that are trained beside the encoder."""
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimiser; `lr_factor` sets the rates."""
        # Away from a trainer there is no run that the recipe could not fit.
        if self._trainer is not None:
            self.recipe.check(self.rate, self.length)
        return self.recipe.optimizer(self.model, self.trained_beside(), self.rate)

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
            f"base lr {self.recipe.lr}, global batch {total} = {batch} clips x {world} "
            f"processes x {accumulate} accumulated, resulting lr {self.rate:.6g}; "
            f"seed {randomness.run_seed()}"
        )


def _differences(before: Any, now: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that both have and that differ, by their dotted keys."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return {} if before == now else {key: (before, now)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(before.keys() & now.keys()):
        found |= _differences(before[name], now[name], f"{key}.{name}" if key else name)
    return found


def _refusal(key: str, ours: Any, theirs: Any, where: str) -> str:
    return (
        f"`model.init_args.{key}` is {_short(ours)}, but {where} was trained with "
        f"{_short(theirs)}: use the run's own config.yaml with its checkpoint. "
        "To start a new run from these weights use `--model.init_args.pretrained`."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(value)} items)"
