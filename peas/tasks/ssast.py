"""Pretraining of SSAST: hidden patches are told apart and drawn."""

from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.models.checkpoints.ssast import load_pretrained
from peas.models.patch_masking import SIDES
from peas.models.patch_sampler import PatchSampler, SamplerName
from peas.models.ssast import SSAST
from peas.objectives import NCEAxis
from peas.optim import staircase_warmup
from peas.plateau import Plateau, next_plateau
from peas.tasks.finite import OnNonFinite, counted
from peas.tasks.pretraining import PretrainingTask, Stage
from peas.tasks.ssast_pretext import Objective, Pretext, pretext
from peas.trivial import AgainstTrivial, valid_patches


class SSASTPretraining(PretrainingTask):
    """Pretrains SSAST (Gong et al., 2022) on spectrograms alone; clips need no classes.

    A share of the patches is hidden behind one learnt embedding. The discriminative objective
    (InfoNCE) asks which hidden patch of the clip is which; the generative one (mean squared error)
    asks to draw it, and its head is G of PEAS. The targets are the patches of the normalised
    log-mel. Masks depend on the seed and the place in training; in evaluation on the seed and the
    clip alone, so that figures of two evaluations compare.

    Evaluation also logs `val/valid_mse`, the error over patches of real sound that are not
    constant, beside `val/trivial_mse`, that of the best constant patch over the same ones (see
    `peas.trivial`).

    Args:
        pretrained: File of weights to go on from: an official SSAST file or a checkpoint of
            `peas`. Null, as in the paper, starts from random weights.
        size: `mini`, `tiny`, `small`, `base` or `large`; the paper has tiny, small and base.
        patch: Patch shape (mel bins, frames): (16, 16), or (128, 2) for frame models.
        masked: Patches hidden of each clip: 400 of 512; the paper also has 250 and 100.
        eval_masked: The same in evaluation: officially 400, whatever `masked` is; null = `masked`,
            as grids of 400 or fewer patches need it.
        sampler: Of hidden patches: `batched`, the official law for a whole batch; `official`, the
            official loop; `unbiased`, clusters that favour no place. See `PatchSampler`.
        sides: Sides of the clusters, one of which each clip draws; frame models have no clusters.
        objective: `joint`, or one of the two, `discriminative` or `generative`.
        mse_weight: Weight of the generative loss in the joint one.
        nce_axis: What the softmax of InfoNCE runs over: `code` as in the official checkpoints, or
            `paper`, its equation 1.
        passes: Forward passes of the joint objective: 2 with masks of their own, as the official
            code has it, or 1 shared, as in the paper's algorithm, at half of the cost.
        lr: Learning rate; officially 1e-4 for base and 5e-4 for tiny.
        weight_decay: L2 term inside Adam, as official.
        betas: Of Adam.
        warmup_steps: Length of the official staircase warm-up; 0 is off.
        plateau_every: Optimiser steps between two evaluations that decide about the rate, 4000
            officially (800 for tiny); null = a constant rate. It takes the first validation at or
            after each multiple: set `trainer.val_check_interval` to the same number.
        plateau_factor: What the rate is multiplied by when the evaluations stop getting better:
            the accuracy of InfoNCE, or the mean squared error without it.
        plateau_patience: Evaluations in a row, no better than the best, that are borne.
        on_nonfinite: When a gradient is no number: `stop`, before it reaches the weights, or
            `skip` that step and count it (`train/skipped_steps`).
        compile: Compile the transformer blocks (`torch.compile`, in place).
        labels: Names of the classes of the data, perhaps none; null takes them from the data.
        mean: Mean of the log-mel; null takes it from the data.
        std: Standard deviation of the log-mel; null takes it from the data.
        frames: Frames of the input, a multiple of the patch's; null takes them from the data.
        multi_label: Whether a clip may have several labels; null takes it from the data.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    masks_by = "masked"
    shape_keys = ("size", "patch", "objective")
    model: SSAST
    train_means: nn.ModuleDict
    evaluation_means: nn.ModuleDict
    against_trivial: AgainstTrivial

    def __init__(
        self,
        pretrained: str | None = None,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        masked: int = 400,
        eval_masked: int | None = 400,
        sampler: SamplerName = "batched",
        sides: tuple[int, ...] = SIDES,
        objective: Objective = "joint",
        mse_weight: float = 10.0,
        nce_axis: NCEAxis = "code",
        passes: Literal[1, 2] = 2,
        lr: float = 1e-4,
        weight_decay: float = 5e-7,
        betas: tuple[float, float] = (0.95, 0.999),
        warmup_steps: int = 1000,
        plateau_every: int | None = 4000,
        plateau_factor: float = 0.5,
        plateau_patience: int = 2,
        on_nonfinite: OnNonFinite = "stop",
        compile: bool = False,
        labels: list[str] | None = None,
        mean: float | None = None,
        std: float | None = None,
        frames: int | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for key, value, choices in (
            ("objective", objective, get_args(Objective)),
            ("nce_axis", nce_axis, get_args(NCEAxis)),
            ("passes", passes, (1, 2)),
        ):
            if value not in choices:
                said = ", ".join(str(choice) for choice in choices)
                raise ConfigError(f"`model.init_args.{key}` is {value!r}: choose one of {said}")
        if lr <= 0:
            raise ConfigError(f"`model.init_args.lr` is {lr}: it must be positive")
        if mse_weight < 0:
            raise ConfigError(f"`model.init_args.mse_weight` is {mse_weight}: give 0 or more")
        if plateau_every is not None and plateau_every < 1:
            raise ConfigError(
                f"`model.init_args.plateau_every` is {plateau_every}: give 1 or more, or null"
            )
        if not 0 < plateau_factor <= 1:
            raise ConfigError(
                f"`model.init_args.plateau_factor` is {plateau_factor}: give more than 0, and 1 "
                "at most"
            )
        self.plateau = Plateau()

    # --- building ---------------------------------------------------------------------------

    @property
    def tells(self) -> bool:
        """Whether hidden patches are told apart."""
        return bool(self.hparams["objective"] != "generative")

    @property
    def draws_patches(self) -> bool:
        """Whether hidden patches are drawn."""
        return bool(self.hparams["objective"] != "discriminative")

    def build(self, *, initialise: bool) -> None:
        """Makes front end, model, samplers and meters, and loads `pretrained`."""
        h = self.hparams
        patch = tuple(h["patch"])
        if patch[1] < 1 or h["frames"] % patch[1]:
            raise ConfigError(
                f"`frames` is {h['frames']}, which is no multiple of the patch's {patch[1]} frames "
                "(`model.init_args.patch`): set `data.init_args.frames` to a multiple"
            )
        self.build_front_end()
        self.model = SSAST(h["size"], frames=h["frames"], patch=patch)
        self.samplers = {
            stage: self._sampler(key)
            for stage, key in (("train", "masked"), ("val", "eval_masked"))
        }
        if initialise and h["pretrained"]:
            rank_zero_info(str(load_pretrained(self.model, Path(h["pretrained"]))))
        # A head that gets no gradient would make DistributedDataParallel wait for one in vain.
        self.model.contrastive_head.requires_grad_(self.tells)
        self.model.generative_head.requires_grad_(self.draws_patches)
        # PEAS must not be given the drawings of a head that was not trained with this encoder.
        self.model.reconstructs.fill_(self.draws_patches)
        names = ["loss", *("nce", "accuracy") * self.tells, *("mse",) * self.draws_patches]
        self.train_means = nn.ModuleDict({name: MeanMetric() for name in names})
        self.evaluation_means = nn.ModuleDict({name: MeanMetric() for name in names})
        for mean in _meters(self.train_means).values():
            # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
            mean.persistent(True)
        self.against_trivial = AgainstTrivial(patch[0] * patch[1])

    def _sampler(self, key: str) -> PatchSampler:
        h = self.hparams
        count = h["masked"] if h[key] is None else h[key]
        try:
            return PatchSampler(self.model.encoder.grid, count, h["sampler"], tuple(h["sides"]))
        except ConfigError as error:
            hint = "; null = as many as `masked`" if key == "eval_masked" else ""
            raise ConfigError(f"`model.init_args.{key}`: {error}{hint}") from error

    def monitor(self, multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """Accuracy of InfoNCE; without it the mean squared error."""
        return ("val/nce_accuracy", "max") if self.tells else ("val/mse", "min")

    def _require_labels_of_data(self, saved: list[str], where: str) -> None:
        """Any data will do: nothing here knows the classes."""

    # --- the pretext task ---------------------------------------------------------------------

    def pretext(self, batch: Batch, stage: Stage) -> Pretext:
        """Hides patches of a batch and does the objectives.

        Args:
            batch: With `log_mel`.
            stage: Whose number of hidden patches; `val` draws by seed and clip alone.
        """
        h = self.hparams
        # By what is done with it: an evaluation draws the same patches in one pass and in two.
        names = {"discriminative": ["told"], "generative": ["drawn"]}
        masks = names.get(h["objective"], ["told", "drawn"][-h["passes"] :])
        return pretext(
            self.model,
            batch["log_mel"],
            [self.hide(batch, stage, name) for name in masks],
            objective=h["objective"],
            mse_weight=h["mse_weight"],
            nce_axis=h["nce_axis"],
        )

    def hide(self, batch: Batch, stage: Stage, stream: str = "drawn") -> Tensor:
        """Patches that one pass hides, `[B, N]` bool on the CPU, frequency-major.

        Args:
            batch: With the clips' names, or their place in training.
            stage: As in `pretext`.
            stream: `drawn` of the generative objective, or `told` of the discriminative one.
        """
        sampler = self.samplers[stage]
        return sampler(self.mask_draws(batch, stage, stream, sampler.draws))

    # --- training -----------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        values, _ = self.pretext(batch, "train")
        clips = len(batch["id"])
        for name, mean in _meters(self.train_means).items():
            if batch_idx == 0:
                mean.reset()
            value = values[name].detach()
            mean.update(*counted(value, clips))
            self.log(name, value, prog_bar=name != "accuracy", on_step=True, batch_size=clips)
            self.log(f"train/{name}", mean, on_step=False, on_epoch=True, batch_size=clips)
        return values["loss"]

    def warmup(self) -> tuple[str, float]:
        """`warmup_steps`."""
        return "warmup_steps", self.hparams["warmup_steps"]

    def lr_factor(self, step: int, epoch: int) -> float:
        """Staircase warm-up times what the plateau schedule has come to."""
        return staircase_warmup(step, self.hparams["warmup_steps"]) * self.plateau.factor

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam over all that is trained; `lr_factor` sets the rate."""
        h = self.hparams
        trained = [p for p in self.model.parameters() if p.requires_grad]
        group = {"params": trained, "lr": h["lr"], "base_lr": h["lr"], "name": "model"}
        return torch.optim.Adam(
            [group], betas=tuple(h["betas"]), weight_decay=h["weight_decay"], fused=True
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the plateau schedule."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["plateau"] = self.plateau._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the state of the plateau schedule too."""
        super().on_load_checkpoint(checkpoint)
        self.plateau = Plateau(**checkpoint["plateau"])

    # --- evaluation ---------------------------------------------------------------------------

    def _evaluate(self, batch: Batch) -> None:
        values, drawn = self.pretext(batch, "val")
        for name, mean in _meters(self.evaluation_means).items():
            mean.update(values[name], len(batch["id"]))
        if drawn is not None:
            valid = valid_patches(batch["valid"], self.model.encoder.grid).gather(1, drawn.ids)
            self.against_trivial.update(drawn.errors, drawn.patches, valid)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Does the pretext task with the clips' own fixed masks."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`, on the test split."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the means, and lets the plateau schedule see them."""
        means = self._log_means("val")
        h = self.hparams
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if h["plateau_every"] is None or not fitting:
            return
        self.plateau = next_plateau(
            self.plateau,
            means["accuracy"] if self.tells else -means["mse"],
            self.trainer.global_step,
            factor=h["plateau_factor"],
            patience=h["plateau_patience"],
            every=h["plateau_every"],
        )

    def on_test_epoch_end(self) -> None:
        """Logs the means over the test split."""
        self._log_means("test")

    def _log_means(self, stage: str) -> dict[str, float]:
        meters = _meters(self.evaluation_means)
        means = {name: meter.compute() for name, meter in meters.items()}
        logged = {"nce_accuracy" if name == "accuracy" else name: v for name, v in means.items()}
        if self.draws_patches:
            logged |= self.against_trivial.compute()
        shown = self.monitor(False)[0].removeprefix("val/")
        for name, value in logged.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == shown, sync_dist=False)
        for meter in (*meters.values(), self.against_trivial):
            meter.reset()
        return {name: float(value) for name, value in means.items()}


def _meters(group: nn.ModuleDict) -> dict[str, MeanMetric]:
    """The means of a group, with their own type."""
    return {name: cast(MeanMetric, meter) for name, meter in group.items()}
