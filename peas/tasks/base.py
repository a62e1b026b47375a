"""What every task shares: parts, log-mels on the device, learning rate, steps, random numbers."""

import copy
import math
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from peas.audio.frontend import FrontEnd
from peas.audio.roll_gain import ROLL_GAIN_NUMBERS, roll_and_gain
from peas.data.batch import Batch
from peas.data.fingerprint import Fingerprint
from peas.errors import CheckpointError, ConfigError, PeasError
from peas.models.encoder import Encoder, compile_blocks
from peas.models.weights import read_state
from peas.models.weights.checking import check_run
from peas.parts import made, plain
from peas.recipes.base import Recipe, RunLength
from peas.recipes.learning_rate import global_lr
from peas.tasks import restoring
from peas.training import randomness, run_clips
from peas.training.distributed import is_first
from peas.training.epoch_means import forget_sums, save_sums
from peas.training.nonfinite import RunningStatistics, Skipped, finite_gradients
from peas.utils import migration
from peas.utils.processes import keep_freed_memory

if TYPE_CHECKING:
    from peas.tasks.augmentation import Masker

SETTINGS = "settings"
"""Part of a checkpoint that holds the entire configuration."""


class MetricNames(NamedTuple):
    """Names of a task's metrics, without `train/` and `val/`."""

    train: set[str]
    val: set[str]
    step: set[str]


class BaseTask(L.LightningModule):
    """Base of `peas.tasks.Pretraining` and `peas.tasks.Classification`.

    A task owns its front end, so that a checkpoint alone turns sound into scores. Settings that
    depend on the data (`labels`, `multi_label`; of the front end `frames`, `mean`, `std`,
    `channels`) default to null: `fit` fills them from the data module and writes them to
    `hparams`, every other use reads them from the checkpoint.

    Learning rate and random numbers of a step depend only on seed, epoch and step, so a resumed
    run equals an uninterrupted one.

    Subclasses call `adopt` with their parts, and implement `build`, which makes the modules once
    all settings are known.

    Attributes:
        model: The encoder.
        front_end: Waveforms to log-mels.
        recipe: Optimiser and schedule.
        skipped_steps: Optimiser steps of the run that were skipped because of a non-finite
            gradient.
        measured: Statistics of the front end that the data set measured.
    """

    purpose: ClassVar[Literal["fine-tuning", "pretraining"]]
    info_keys: ClassVar[tuple[str, ...]] = ("labels", "multi_label")
    """Hyperparameters that the data module knows."""
    shape_keys: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a checkpoint cannot be loaded without agreeing on."""
    resume_keys: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that cannot change when a run resumes: its weights or moments would silently
    be read as those of other settings."""
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
    """Whether a checkpoint of this run follows, so that `pretrained` is not needed. Set by the
    command line: Lightning loads the checkpoint only after `setup`."""
    masking: "Masker | None" = None
    """Masking strategy of this `fit`; a `MaskingStrategy` sets itself when it starts."""
    front_end: FrontEnd
    model: Encoder
    recipe: Recipe
    skipped_steps: int = 0
    measured: frozenset[str] = frozenset()
    _clips: dict[str, Fingerprint] | None = None
    _saved_sizes: list[tuple[Any, int]] | None = None

    # --- building ---------------------------------------------------------------------------

    @classmethod
    def restore(
        cls, content: dict[str, Any], where: str, *, modules: Sequence[str] = (), **settings: Any
    ) -> Self:
        """A task with its weights, from the content of a checkpoint that `check_run` accepted.

        The arguments are those of `load_from_checkpoint`; `where` names the file in errors.
        """
        return restoring.restore(cls, content, where, modules=modules, **settings)

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
            weights_only: Always.
            settings: Override the checkpoint's.

        Raises:
            CheckpointError: It is none of this task, or names a part that may not be made.
        """
        where = str(checkpoint_path)
        content = read_state(Path(checkpoint_path))
        check_run(content, where)
        task = cls.restore(content, where, modules=modules, **settings)
        return task if map_location is None else task.to(map_location)

    def adopt(
        self, encoder: Encoder | None, front_end: FrontEnd | None, recipe: Recipe | None
    ) -> None:
        """Takes the parts that every task has; None, or a checkpoint's table, makes one.

        Raises:
            ConfigError: The recipe is for another task.
        """
        self.model = made(encoder, Encoder) or self.default_parts["encoder"]()
        self.front_end = made(front_end, FrontEnd) or self.default_parts["front_end"]()
        self.recipe = recipe = made(recipe, Recipe) or self.default_parts["recipe"]()
        if recipe.purpose not in (None, self.purpose):
            raise ConfigError(
                f"`model.init_args.recipe`: {type(recipe).__name__} is for {recipe.purpose}, and "
                f"{type(self).__name__} does {self.purpose}: choose another recipe"
            )
        self.note_parts()

    def note_parts(self) -> None:
        """Writes the parts, by class path and settings, to `hparams`."""
        self.hparams["encoder"] = self.model.spec()
        self.hparams["front_end"] = self.front_end.spec()
        self.hparams["recipe"] = self.recipe.spec()

    @property
    def hparams_initial(self) -> MutableMapping[str, Any]:  # type: ignore[override]
        """For loggers: the initial settings, and the parts."""
        settings: MutableMapping[str, Any] = super().hparams_initial
        parts = {key: value for key, value in self.hparams.items() if key not in settings}
        settings.update(copy.deepcopy(parts))
        return settings

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
        """Fills open settings from the data module and builds, before `fit`."""
        # Of an earlier `fit` of this object.
        self.masking = None
        if self.built or stage != "fit":
            return
        restoring.fill_from_data(self, getattr(self.trainer, "datamodule", None))
        self._build(initialise=not self.resumes)

    def _build(self, *, initialise: bool) -> None:
        self.build(initialise=initialise)
        self.note_parts()

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
        """Takes open settings from the checkpoint, builds, and refuses one of another shape."""
        where = getattr(self._trainer, "ckpt_path", None) or "the checkpoint"
        migration.checkpoint(checkpoint)
        saved = checkpoint.get("hyper_parameters") or {}
        resuming = self._trainer is not None and self.trainer.training
        restoring.agree_on_settings(self, saved, where, resuming)
        own = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        own.pop("pretrained", None)
        changed = restoring.differences(plain(saved), plain(own))
        self.skipped_steps = checkpoint.get("skipped_steps", 0)
        states = checkpoint.get("optimizer_states")
        if states:
            self._saved_sizes = [
                (group.get("name"), len(group["params"])) for group in states[0]["param_groups"]
            ]
        elif resuming and states is not None:
            raise CheckpointError(
                f"{where}: optimizer_states is empty, so the run cannot be resumed: take another "
                "checkpoint of it, or start a new run with `--model.init_args.pretrained`"
            )
        if not is_first():
            forget_sums(self, checkpoint)
        # A checkpoint with all settings is compared in full by `peas.callbacks.run_checks`.
        if changed and resuming and SETTINGS not in checkpoint:
            changes = ", ".join(f"{key}: {old!r} → {new!r}" for key, (old, new) in changed.items())
            rank_zero_warn(f"the run resumes with changed settings: {changes}")
        if not self.built:
            self._build(initialise=False)
        self.load_own(checkpoint, resuming)
        if self._trainer is not None:
            run_clips.check(self.trainer, checkpoint, where)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds skipped steps, metric sums of all processes, and the clips."""
        checkpoint["skipped_steps"] = self.skipped_steps
        save_sums(self, checkpoint)
        # Lightning would import and call it.
        checkpoint.get("hyper_parameters", {}).pop("_instantiator", None)
        if self._clips is not None:
            checkpoint[run_clips.KEY] = run_clips.as_saved(self._clips)

    def require_labels(self, saved: list[str], where: str) -> None:
        """Refuses to score a model on data whose classes are not its own."""
        restoring.require_labels_of_data(self, saved, where)

    def load_own(self, checkpoint: dict[str, Any], resuming: bool) -> None:
        """Takes more of a checkpoint once the modules exist.

        Args:
            checkpoint: Its content.
            resuming: Whether training continues.
        """

    def prepare_reconstruction(self) -> None:
        """Callbacks call this when `fit` starts, before they ask the model to reconstruct."""

    def require_maskable(self, key: str) -> None:
        """Raises ConfigError if masks of fine-tuning make no sense for this task.

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
        """Augments the log-mels of a training batch in place."""

    def _roll_and_gain(self, batch: Batch) -> None:
        waveform = batch["waveform"]
        u = self.random_numbers(batch, "roll_gain", (ROLL_GAIN_NUMBERS,)).to(waveform.device)
        length = batch["length"].to(waveform.device)
        roll = self.roll_gain == "paper"
        batch["waveform"] = roll_and_gain(waveform, length, u, roll=roll)

    def random_numbers(self, batch: Batch, stream: str, shape: tuple[int, ...]) -> Tensor:
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
        # Without a trainer there is no run to check against.
        if self._trainer is not None:
            self.recipe.check(self.rate, self.length)
        return self.recipe.optimizer(self.model, self.trained_beside(), self.rate)

    def on_fit_start(self) -> None:
        """Prepares the run and prints its learning rate.

        Raises:
            ConfigError: The precision does not fit the front end.
            CheckpointError: The saved optimiser trains other parameters.
        """
        self._require_same_parameters()
        trainer = self.trainer
        # Not when the first checkpoint is written: a clip may be deleted until then. The first
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

    # --- optimiser steps ---------------------------------------------------------------------

    @property
    def global_batch(self) -> int | None:
        """Clips of one optimiser step, over all processes; None without a data module."""
        batch = getattr(getattr(self._trainer, "datamodule", None), "batch_size", None)
        if batch is None:
            return None
        return int(batch * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    @property
    def rate(self) -> float:
        """Learning rate at factor 1: the recipe's `lr` scaled to the batch."""
        return global_lr(self.recipe.lr, self.recipe.base_batch_size, self.global_batch)

    @property
    def length(self) -> RunLength:
        """How long the run is, as far as it is known."""
        trainer = self.trainer
        batches: float = trainer.num_training_batches
        finite = math.isfinite(batches)
        steps = math.ceil(batches / trainer.accumulate_grad_batches) if finite else 0
        return RunLength(steps, trainer.max_epochs, trainer.max_steps)

    def lr_factor(self, step: int, epoch: int) -> float:
        """Factor of every group's base rate at an optimiser step, both counted from 0."""
        return self.recipe.factor(step, epoch, self.rate, self.length)

    def _require_same_parameters(self) -> None:
        """Notes the optimiser's settings before a checkpoint's state replaces them."""
        optimizer = self._optimizer()
        self._group_settings = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups
        ]
        sizes = [(group["name"], len(group["params"])) for group in optimizer.param_groups]
        saved = self._saved_sizes
        if saved is not None and saved != sizes:
            raise CheckpointError(
                f"{self.trainer.ckpt_path}: its optimiser trains other "
                f"parameters ({_counts(saved)}) than the present settings do "
                f"({_counts(sizes)}). Resume with the run's own config.yaml, or start a new run "
                "from these weights with `--model.init_args.pretrained`"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the learning rate and reseeds dropout, both as functions of epoch and step."""
        factor = self.lr_factor(self.trainer.global_step, self.trainer.current_epoch)
        optimizer = self._optimizer()
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=len(batch["id"]))
        # Lightning saves no generator states: without this, dropout after a resume differs.
        torch.manual_seed(
            randomness.stable_hash(
                randomness.run_seed(),
                "dropout",
                self.trainer.current_epoch,
                batch["step"],
                self.global_rank,
            )
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps unless a gradient is non-finite, and frees the gradients.

        Lightning would keep them through the next forward pass, whose end needs the most memory.

        Raises:
            PeasError: A gradient is non-finite, and `on_nonfinite` is `stop`.
        """
        # The gradient scaler of float16 skips such steps by itself.
        scaled = str(self.trainer.precision).startswith("16")
        closure = optimizer_closure if scaled else partial(self._checked, optimizer_closure)
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        except Skipped:
            self.skipped_steps += 1
        optimizer.zero_grad()

    def _checked(self, closure: Callable[[], Any] | None) -> Any:
        """Forward and backward; gradients must be finite before the weights change."""
        assert closure is not None
        loss = closure()
        if finite_gradients(p for p in self.parameters() if p.requires_grad):
            self._statistics.keep()
            return loss
        self._statistics.restore()
        if self.recipe.on_nonfinite == "skip":
            raise Skipped
        raise PeasError(
            f"step {self.trainer.global_step + 1}, epoch {self.trainer.current_epoch + 1}: a "
            "gradient is non-finite. The weights are those of the previous step, and no checkpoint "
            "contains it. Lower "
            "`model.init_args.recipe.init_args.lr`, clip (`trainer.gradient_clip_val`), or set "
            "`model.init_args.recipe.init_args.on_nonfinite: skip` to skip and count such "
            "steps"
        )

    def _optimizer(self) -> Optimizer:
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

    def on_train_start(self) -> None:
        """Replaces the optimiser's restored rates, decay and betas by those of the settings."""
        for group, settings in zip(
            self._optimizer().param_groups, self._group_settings, strict=True
        ):
            group.update(settings)
        self._statistics = RunningStatistics(self)
        self._warn_of_long_warmup()

    def _warn_of_long_warmup(self) -> None:
        total = self.length.steps
        key, warmup = self.recipe.warmup(self.length)
        if 3 * warmup <= total:
            return
        at_zero = sum(self.lr_factor(step, 0) == 0 for step in range(1, min(int(total), 100)))
        zero = f". Its first {1 + at_zero} steps train at a rate of 0" if at_zero else ""
        rank_zero_warn(
            f"`model.init_args.recipe.init_args.{key}` warms the learning rate up over "
            f"{warmup:.0f} steps, and the run has {total:.0f}: lower it, or train longer{zero}"
        )

    def on_train_epoch_end(self) -> None:
        """Logs the rate, and how many steps of the run were skipped so far."""
        # Only some steps are logged, and a short epoch may have none of those.
        self.log("lr", self._optimizer().param_groups[0]["lr"], rank_zero_only=True)
        if self.recipe.on_nonfinite == "skip":
            self.log("train/skipped_steps", float(self.skipped_steps), rank_zero_only=True)


def _counts(sizes: list[tuple[Any, int]]) -> str:
    if len(sizes) > 4:
        return f"{sum(count for _, count in sizes)} in {len(sizes)} groups"
    return ", ".join(f"{name}: {count}" for name, count in sizes)
