"""Pretraining on visible patches: AudioMAE, MAM-CLAP, SupMAM and SupMAM-CLAP by composition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from peas import migration
from peas.data.batch import Batch
from peas.errors import CheckpointError, ConfigError
from peas.masking import PatchMasking, RandomPatches
from peas.models.checkpoints.audiomae import load_pretrained
from peas.models.grid import Pair
from peas.models.mae import MaskedAutoencoder
from peas.models.mae_decoder import DecoderShape
from peas.models.positions import Raster, official_raster
from peas.objectives import Objective, Reconstruction
from peas.objectives.base import BuildInfo
from peas.objectives.composition import Losses, compose, encode
from peas.optim import LrRule, cosine_factor, decay_groups
from peas.tasks.finite import OnNonFinite
from peas.tasks.loss_meters import LossMeters
from peas.tasks.pretraining import PretrainingTask, Stage


class MaskedAudioModeling(PretrainingTask):
    """Pretrains a `MaskedAutoencoder` with any sum of objectives.

    | system | objectives and weights | `masking` | `decoder_depth` |
    |---|---|---|---|
    | AudioMAE | `Reconstruction` | `RandomPatches(0.8)` | 16 |
    | MAM-CLAP | `FeatureDistillation` | `RandomPatches(0.2)` | 1 |
    | SupMAM | `Reconstruction`, `LabelClassification` 0.01 | `RandomPatches(0.4)` | 16 |
    | SupMAM-CLAP | `FeatureDistillation`, `LabelClassification` 0.0001 | `RandomPatches(0.2)` | 1 |

    Masks depend on the seed and the place in training; in evaluation on the seed and the clip
    alone. Evaluation logs each objective beside its baseline, the best constant prediction, over
    patches of real sound that are not constant.

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
        masking: Which patches are masked, such as `peas.masking.RandomPatches`.
        decoder: `local` attention in windows, or `global`.
        decoder_width: Width of its tokens.
        decoder_depth: Its blocks: officially 16 local ones or 8 global ones. The single block of
            SupMAM-CLAP's paper is stated for MAM-CLAP and SupMAM-CLAP alone.
        decoder_heads: Its attention heads.
        decoder_window: Side of a window in patches.
        decoder_first_shift: 0: the first local block is not shifted; 1: it is, as "a single
            transformer block with shifted local attention" may be read.
        objectives: What is learnt, each under a name of your own by which logs call it:
            `peas.objectives.Reconstruction`, `FeatureDistillation`, `LabelClassification`,
            `PatchContrast`, or a subclass of `peas.objectives.Objective` from elsewhere. A name
            that is null is left out.
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

    masks_by = "masking"
    shape_keys = ("size", "patch", "stride", "decoder", "decoder_width", "decoder_depth")
    resume_keys = ("positions", "decoder_heads", "decoder_window", "decoder_first_shift")
    model: MaskedAutoencoder
    objectives: nn.ModuleDict
    meters: LossMeters

    def __init__(
        self,
        pretrained: str | None = None,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] | None = None,
        positions: Raster | None = None,
        masking: PatchMasking | None = None,
        decoder: Literal["local", "global"] = "local",
        decoder_width: int = 512,
        decoder_depth: int = 16,
        decoder_heads: int = 16,
        decoder_window: int = 4,
        decoder_first_shift: Literal[0, 1] = 0,
        objectives: dict[str, Objective | None] | None = None,
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
        if not lr > 0:
            raise ConfigError(f"`model.init_args.lr` is {lr}: it must be positive")
        given = {"reconstruction": Reconstruction()} if objectives is None else objectives
        chosen = {name: part for name, part in given.items() if part is not None}
        _require_possible(chosen, roll_gain)
        self.patch_masking = masking or RandomPatches()
        self.save_hyperparameters(ignore=["objectives", "masking"])
        if positions is None:
            self.hparams["positions"] = official_raster(patch, stride or patch)
        self.hparams["masking"] = self.patch_masking.spec()
        self.hparams["objectives"] = {name: part.spec() for name, part in chosen.items()}
        self.objectives = nn.ModuleDict(chosen)
        self._prepared = False

    # --- building ---------------------------------------------------------------------------

    @property
    def parts(self) -> dict[str, Objective]:
        """The objectives by name."""
        return cast(dict[str, Objective], dict(self.objectives.items()))

    def needs(self, what: str) -> bool:
        """Whether an objective needs something, see `peas.objectives.base.Need`."""
        return any(what in part.needs for part in self.parts.values())

    def setup(self, stage: str) -> None:
        """Lets the objectives see the data, fills the facts and builds, before `fit`."""
        if not self._prepared:
            self._prepare()
        super().setup(stage)

    def _prepare(self) -> None:
        self._prepared = True
        for name, part in self.parts.items():
            part.prepare(getattr(self.trainer, "datamodule", None))
            if description := part.description():
                rank_zero_info(f"{name}: {description}")
        prints = {name: part.fingerprint() for name, part in self.parts.items()}
        found = {name: value for name, value in prints.items() if value}
        _require_equal_teacher(self.hparams.setdefault("objective_fingerprints", found), found)

    def build(self, *, initialise: bool) -> None:
        """Makes front end, model, heads and meters, and loads `pretrained`."""
        h = self.hparams
        self.build_front_end()
        self.model = self._model(self.front_end.n_mels)
        cells = h["patch"][0] * h["patch"][1]
        # Refuses a share that masks all, or nothing.
        self.patch_masking.visible(self.model.grid)
        if initialise and h["pretrained"]:
            rank_zero_info(str(load_pretrained(self.model, Path(h["pretrained"]))))
        info = BuildInfo(self.model.width, h["decoder_width"], cells, len(h["labels"]), self.model)
        for part in self.parts.values():
            part.build(info)
        self.meters = LossMeters(self.parts)

    def _model(self, mels: int) -> MaskedAutoencoder:
        h = self.hparams
        patch: Pair = tuple(h["patch"])
        stride: Pair = patch if h["stride"] is None else tuple(h["stride"])
        if h["frames"] % patch[1] and stride == patch:
            raise ConfigError(
                f"`frames` is {h['frames']}, which is no multiple of the patch's {patch[1]} frames "
                "(`model.init_args.patch`): set `data.init_args.frames` to a multiple"
            )
        shape = DecoderShape(
            h["decoder"],
            h["decoder_width"],
            h["decoder_depth"],
            h["decoder_heads"],
            h["decoder_window"],
            h["decoder_first_shift"],
        )
        pixels = [part for part in self.parts.values() if "pixels" in part.needs]
        return MaskedAutoencoder(
            h["size"],
            frames=h["frames"],
            mels=mels,
            patch=patch,
            stride=stride,
            positions=h["positions"],
            decoder=shape if self.needs("decoder") else None,
            pixels=bool(pixels),
            norm_pix=all(getattr(part, "norm_pix", True) for part in pixels),
            drop_path=h["drop_path"],
        )

    def monitor(self, multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """The total loss of evaluation."""
        return "val/loss", "min"

    def _require_labels_of_data(self, saved: list[str], where: str) -> None:
        """Any data will do, unless an objective knows the classes."""
        if self.needs("labels"):
            super()._require_labels_of_data(saved, where)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses other objectives, or the features of another teacher."""
        if migration.is_old(checkpoint.get("hyper_parameters") or {}):
            checkpoint["hyper_parameters"] = migration.pretraining(checkpoint["hyper_parameters"])
            checkpoint["state_dict"] = migration.weights(checkpoint["state_dict"])
        saved = checkpoint.get("hyper_parameters") or {}
        known = self.hparams.setdefault(
            "objective_fingerprints", saved.get("objective_fingerprints", {})
        )
        _require_equal_teacher(saved.get("objective_fingerprints", {}), known)
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or not self.trainer.training:
            return
        before, now = saved.get("objectives", {}), self.hparams["objectives"]
        for name in sorted(before.keys() ^ now.keys()):
            raise CheckpointError(_changed(name, before.get(name), now.get(name)))
        for name, part in self.parts.items():
            if before[name]["class_path"] != now[name]["class_path"]:
                raise CheckpointError(_changed(name, before[name], now[name]))
            for key in part.fixed:
                theirs, ours = (spec[name]["init_args"].get(key) for spec in (before, now))
                if theirs != ours:
                    raise CheckpointError(_changed(f"{name}.init_args.{key}", theirs, ours))
        # The optimiser's moments lie in the order of the weights.
        self.objectives = nn.ModuleDict({name: self.objectives[name] for name in before})
        self.hparams["objectives"] = {name: now[name] for name in before}

    # --- batches ----------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lets objectives add to a batch, such as cached maps of a teacher."""
        for part in self.parts.values():
            part.read(batch)
        return batch

    def hide(self, batch: Batch, stage: Stage) -> Tensor:
        """Patches to mask, `[B, N]` bool, time-major."""
        grid = self.model.grid
        rand = {
            name: self.mask_draws(batch, stage, name, count)
            for name, count in self.patch_masking.random_numbers(grid).items()
        }
        return self.patch_masking.mask(rand, grid, batch["log_mel"])

    def losses(self, batch: Batch, stage: Stage) -> Losses:
        """Masks patches of a batch, encodes the others and takes every objective."""
        masked = self.hide(batch, stage)
        view = encode(
            self.model,
            batch,
            masked,
            rand=lambda name, count: self.mask_draws(batch, stage, name, count),
            total=self._all_processes,
            processes=self.trainer.world_size if self.trainer.training else 1,
        )
        batch["hidden_patches"] = view.masked
        return compose(self.parts, view)

    def _all_processes(self, count: Tensor) -> Tensor:
        """Sum over the processes of a number of labelled clips; in evaluation each is by itself."""
        if self.trainer.world_size == 1 or not self.trainer.training:
            return count
        # Lightning reduces in place.
        return self.trainer.strategy.reduce(count.clone(), reduce_op="sum")

    # --- training ---------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Moves what is beside the model, and prints the settings that decide a result."""
        super().on_fit_start()
        self._move()
        clips = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        for name, part in self.parts.items():
            if clips is not None and clips < part.min_batch_size:
                raise ConfigError(
                    f"`data.init_args.batch_size` is {clips}, and "
                    f"`model.init_args.objectives.{name}` needs {part.min_batch_size} clips in a "
                    "batch: raise it (or, of LabelClassification, set `norm: none`: a BatchNorm "
                    "has no variance of one clip)"
                )

    def _move(self) -> None:
        for part in self.parts.values():
            part.move(self.trainer.strategy.root_device)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps, and lets moving averages follow."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for part in self.parts.values():
            part.after_step(self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the objectives."""
        losses = self.losses(batch, "train")
        clips = len(batch["id"])
        every = self.hparams["grad_norm_every"]
        if every and len(losses.terms) > 1 and self.trainer.global_step % every == 0:
            for name, value in losses.gradient_norms().items():
                self.log(f"grad/{name}", value, batch_size=clips)
        for name, mean, value in self.meters.count(losses, clips, first=batch_idx == 0):
            self.log(name, value, prog_bar=True, on_step=True, batch_size=clips)
            self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=clips)
        for term in losses.terms.values():
            for name, value in term.sums.items():
                self.log(
                    f"train/{name}",
                    value,
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
        trained = nn.ModuleList((self.model, self.objectives))
        groups = decay_groups(trained, self.rate, h["weight_decay"])
        return torch.optim.AdamW(groups, betas=tuple(h["betas"]), fused=True)

    # --- evaluation -------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Checks that there are weights, and moves what is beside the model."""
        super().on_validation_start()
        self._move()

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        super().on_test_start()
        self._move()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Takes the objectives with the clips' own fixed masks."""
        losses = self.losses(batch, "val")
        self.meters.evaluate(losses, len(batch["id"]))
        for name, part in self.parts.items():
            part.evaluate(losses.terms[name])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`, on the test split."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Logs the means and the baselines."""
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Logs the means over the test split."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        found = self.meters.compute()
        for part in self.parts.values():
            found |= part.baseline()
        for name, value in found.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == "loss", sync_dist=False)


def _require_possible(parts: dict[str, Objective], roll_gain: str) -> None:
    key = "`model.init_args.objectives`"
    if not parts:
        raise ConfigError(f"{key} is empty: give one objective at least")
    for name, part in parts.items():
        if not part.weight > 0:
            raise ConfigError(
                f"`model.init_args.objectives.{name}.init_args.weight` is {part.weight}: give a "
                "number above 0, or null in the place of the objective to leave it out"
            )
        if "clips" in part.needs and roll_gain != "none":
            raise ConfigError(
                f"`model.init_args.roll_gain` is {roll_gain}, and the targets of "
                f"`model.init_args.objectives.{name}` belong to the clip as it is: set roll_gain "
                "to none"
            )


def _require_equal_teacher(saved: dict[str, Any], found: dict[str, Any]) -> None:
    for name in saved.keys() & found.keys():
        if saved[name] != found[name]:
            raise CheckpointError(
                f"`model.init_args.objectives.{name}`: the run was trained with {saved[name]}, "
                f"and this teacher gives {found[name]}: use the same teacher or cache"
            )


def _changed(key: str, before: Any, now: Any) -> str:
    return (
        f"`model.init_args.objectives.{key}` is {now}, but the run had {before}: this cannot "
        "change in a run. Use its own config.yaml with its checkpoint. To start a new run from "
        "these weights use `--model.init_args.pretrained`."
    )
