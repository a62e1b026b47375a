"""Pretraining of an encoder by any sum of objectives: SSAST, AudioMAE, MAM-CLAP, SupMAM-CLAP."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from peas.audio.frontend import FrontEnd, KaldiLogMel
from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.masking import PatchMasking, RandomPatches
from peas.masking.patches import OWN
from peas.models import AudioMAE, Encoder
from peas.models.weights import load_pretrained
from peas.objectives import Objective, Reconstruction
from peas.objectives.base import (
    BuildInfo,
    Losses,
    View,
    check_objectives,
    compose,
    encode,
    norm_pix,
)
from peas.parts import made
from peas.recipes import AudioMAEPretrainingRecipe, Recipe
from peas.tasks.base import BaseTask, MetricNames
from peas.tasks.restoring import agree_on_objectives, require_equal_teachers
from peas.training.nonfinite import counted
from peas.training.randomness import run_seed, uniform_by_name

Stage = Literal["train", "val"]


class Pretraining(BaseTask):
    """Pretrains an encoder on masked patches with any sum of objectives.

    | system | encoder | `masking` | objectives and weights |
    |---|---|---|---|
    | SSAST | `SSAST` | `ClusteredPatches(400)` | `PatchContrast` 1, `Reconstruction` 10 |
    | AudioMAE | `AudioMAE` | `RandomPatches(0.8)` | `Reconstruction` |
    | MAM-CLAP | `AudioMAE`, 1 block | `RandomPatches(0.2)` | `FeatureDistillation` |
    | SupMAM | `AudioMAE` | `RandomPatches(0.4)` | `Reconstruction`, `LabelClassification` 0.01 |
    | SupMAM-CLAP | `AudioMAE`, 1 block | `RandomPatches(0.2)` | `FeatureDistillation`, \
`LabelClassification` 0.0001 |

    Masks depend on seed, epoch and step; in evaluation on seed and clip only. Evaluation logs each
    objective beside its baseline, the best constant prediction, over patches of real sound that
    are not constant.

    Args:
        pretrained: File of weights to start from: an official file of the encoder's family or a
            checkpoint of `peas`. Null starts from random weights.
        encoder: Such as `peas.models.AudioMAE` (default) or `peas.models.SSAST`.
        front_end: Such as `peas.audio.KaldiLogMel` (default).
        masking: Which patches are masked, such as `peas.masking.RandomPatches` (default).
        eval_masking: The same in evaluation; null = `masking`. SSAST's official code masks 400
            there whatever it trains with.
        objectives: What is learnt, each under a name of your own by which logs call it:
            `peas.objectives.Reconstruction`, `FeatureDistillation`, `LabelClassification`,
            `PatchContrast`, or a subclass of `peas.objectives.Objective` from elsewhere. A name
            that is null is left out.
        passes: `shared`, one masked pass for all objectives; or `separate`, a pass and a mask for
            each, as SSAST's official code has it (its paper's algorithm has one).
        recipe: Such as `peas.recipes.AudioMAEPretrainingRecipe` (default).
        roll_gain: `none` as SupMAM-CLAP; `official` or `paper` for AudioMAE's augmentation. It
            would misplace a teacher's targets.
        grad_norm_every: Steps between two logs of each objective's gradient norm at the encoder's
            output, when there are several; 0 = never.
        compile: Compile the transformer blocks (`torch.compile`, in place).
        labels: Names of the classes; null takes them from the data.
        multi_label: Whether a clip may have several labels; null takes it from the data.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    purpose = "pretraining"
    own_keys = ("objectives",)
    part_bases: ClassVar[dict[str, type[Any]]] = {
        **BaseTask.part_bases,
        "masking": PatchMasking,
        "eval_masking": PatchMasking,
        "objectives": Objective,
    }
    default_parts: ClassVar[dict[str, type[Any]]] = {
        "encoder": AudioMAE,
        "front_end": KaldiLogMel,
        "masking": RandomPatches,
        "recipe": AudioMAEPretrainingRecipe,
    }
    objectives: nn.ModuleDict
    meters: "LossMeters"

    def __init__(
        self,
        pretrained: str | None = None,
        encoder: Encoder | None = None,
        front_end: FrontEnd | None = None,
        masking: PatchMasking | None = None,
        eval_masking: PatchMasking | None = None,
        objectives: dict[str, Objective | None] | None = None,
        passes: Literal["shared", "separate"] = "shared",
        recipe: Recipe | None = None,
        roll_gain: Literal["none", "official", "paper"] = "none",
        grad_norm_every: int = 50,
        compile: bool = False,
        labels: list[str] | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            ignore=["encoder", "front_end", "masking", "eval_masking", "objectives", "recipe"]
        )
        if passes not in ("shared", "separate"):
            raise ConfigError(
                f"`model.init_args.passes` is {passes!r}: choose one of shared, separate"
            )
        self.adopt(encoder, front_end, recipe)
        if objectives is None:
            objectives = {"reconstruction": Reconstruction()}
        named = {name: made(part, Objective) for name, part in objectives.items()}
        chosen = {name: part for name, part in named.items() if part is not None}
        check_objectives(chosen, set(objectives) - set(chosen), roll_gain, self.model)
        self.patch_masking = made(masking, PatchMasking) or self.default_parts["masking"]()
        self.eval_patch_masking = made(eval_masking, PatchMasking) or self.patch_masking
        self.hparams["masking"] = self.patch_masking.spec()
        other = self.eval_patch_masking is not self.patch_masking
        self.hparams["eval_masking"] = self.eval_patch_masking.spec() if other else None
        self.hparams["objectives"] = {name: part.spec() for name, part in chosen.items()}
        self.objectives = nn.ModuleDict(chosen)
        self._prepared = False

    # --- building ---------------------------------------------------------------------------

    @property
    def parts(self) -> dict[str, Objective]:
        """The objectives by name."""
        return cast(dict[str, Objective], dict(self.objectives.items()))

    def needs(self, what: str) -> bool:
        """Whether an objective needs something, see `peas.models.encoder.Need`."""
        return any(what in part.needs for part in self.parts.values())

    @property
    def roll_gain(self) -> str:
        """Augmentation of the waveforms."""
        return str(self.hparams["roll_gain"])

    def setup(self, stage: str) -> None:
        """Prepares the objectives, fills open settings and builds, before `fit`."""
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
        own = {name: value for name, value in prints.items() if value}
        require_equal_teachers(self.hparams.setdefault("objective_fingerprints", own), own)

    def build(self, *, initialise: bool) -> None:
        """Makes encoder, heads and meters, and loads `pretrained`."""
        h, model = self.hparams, self.model
        frames, patch = self.front_end.frames, model.patch
        overlaps = getattr(model, "stride", patch) != patch
        if patch[1] < 1 or (frames % patch[1] and not overlaps):
            raise ConfigError(
                f"`frames` is {frames}, which is no multiple of the patch's {patch[1]} frames "
                "(`model.init_args.encoder.init_args.patch`): set `data.init_args.frames` to a "
                "multiple"
            )
        pixels = [part for part in self.parts.values() if "pixels" in part.needs]
        model.build(
            frames,
            self.front_end.n_mels,
            needs={need for part in self.parts.values() for need in part.needs},
            norm_pix=all(map(norm_pix, pixels)),
        )
        for key in ("masking", "eval_masking"):
            # Refuses a mask of all, or of nothing.
            try:
                getattr(self, key.replace("masking", "patch_masking")).visible(model.grid)
            except ConfigError as error:
                hint = "; null = as `masking`" if key == "eval_masking" else ""
                raise ConfigError(f"`model.init_args.{key}`: {error}{hint}") from error
        if initialise and h["pretrained"]:
            rank_zero_info(str(load_pretrained(model, Path(h["pretrained"]))))
        # PEAS must not be given what a head predicts that was not trained with this encoder.
        model.reconstructs.fill_(self.needs("pixels"))
        bins = patch[0] * patch[1]
        info = BuildInfo(model.width, model.decoder_width, bins, len(h["labels"]), model)
        for part in self.parts.values():
            part.build(info)
        metrics = [name for part in self.parts.values() for name in part.metrics]
        self.meters = LossMeters([*self.parts, *metrics])

    def monitor(self, multi_label: bool) -> tuple[str, Literal["min", "max"]]:
        """The recipe's metric; else the total loss of evaluation."""
        return self.recipe.monitor or ("val/loss", "min")

    def metric_names(self) -> MetricNames:
        """What is logged of training, evaluation, and each step."""
        parts = self.parts.values()
        step = set(self.meters.training_means)
        return MetricNames(
            train=step | {name for part in parts for name in part.sums},
            val=step | {name for part in parts for name in part.baselines},
            step=step,
        )

    def require_labels(self, saved: list[str], where: str) -> None:
        """Any data will do, unless an objective knows the classes."""
        if self.needs("labels"):
            super().require_labels(saved, where)

    def load_own(self, checkpoint: dict[str, Any], resuming: bool) -> None:
        """Refuses other objectives, or the features of another teacher."""
        saved = checkpoint.get("hyper_parameters") or {}
        fingerprints = saved.get("objective_fingerprints", {})
        own = self.hparams.setdefault("objective_fingerprints", fingerprints)
        require_equal_teachers(fingerprints, own)
        self.recipe.load_state_dict(checkpoint.get("recipe") or {})
        if not resuming:
            return
        before, now = saved.get("objectives", {}), self.hparams["objectives"]
        agree_on_objectives(self.parts, before, now)
        # The optimiser's moments have the order of the weights.
        self.objectives = nn.ModuleDict({name: self.objectives[name] for name in before})
        self.hparams["objectives"] = {name: now[name] for name in before}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the recipe has seen."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["recipe"] = self.recipe.state_dict()

    # --- batches ----------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Lets objectives add to a batch, such as cached maps of a teacher."""
        for part in self.parts.values():
            part.read(batch)
        return batch

    def mask_random_numbers(self, batch: Batch, stage: Stage, stream: str, count: int) -> Tensor:
        """Uniform random numbers `[B, count]` for the masks of a batch, on the CPU.

        In training they depend on the seed and epoch and step, in evaluation on seed
        and clip only, so that two evaluations can be compared.
        """
        if stage == "train":
            return self.random_numbers(batch, stream, (count,))
        return uniform_by_name(batch["id"], run_seed(), stream, (count,))

    def masked_patches(self, batch: Batch, stage: Stage, own: str | None = None) -> Tensor:
        """Patches to mask, `[B, N]` bool, in the order of the encoder's tokens.

        Args:
            batch: With `log_mel`, and the clips' names or their epoch and step.
            stage: Whose masking; `val` depends on seed and clip only.
            own: `Objective.stream` of the objective whose own pass it is; None = it is shared.
        """
        masking = self.patch_masking if stage == "train" else self.eval_patch_masking
        grid = self.model.grid

        def stream(name: str) -> str:
            if own is None:
                return name
            return own if name == OWN else f"{own}_{name}"

        rand = {
            name: self.mask_random_numbers(batch, stage, stream(name), count)
            for name, count in masking.random_numbers(grid).items()
        }
        masked = masking.mask(rand, grid, batch["log_mel"])
        if self.model.time_major:
            return masked
        return masked.view(len(masked), grid[1], grid[0]).transpose(1, 2).flatten(1)

    def losses(self, batch: Batch, stage: Stage) -> Losses:
        """Masks patches of a batch, encodes it, and takes every objective."""
        shared = self._view(batch, stage, None) if self.hparams["passes"] == "shared" else None

        def view(name: str) -> View:
            return shared or self._view(batch, stage, self.parts[name].stream)

        return compose(self.parts, view)

    def _view(self, batch: Batch, stage: Stage, own: str | None) -> View:
        return encode(
            self.model,
            batch,
            self.masked_patches(batch, stage, own),
            rand=lambda name, count: self.mask_random_numbers(batch, stage, name, count),
            total=self._all_processes,
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
        """Moves teachers to the device and checks the batch size."""
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
            main = name == "loss" or name in losses.terms
            self.log(name, value, prog_bar=main, on_step=True, batch_size=clips)
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

    def trained_beside(self) -> list[nn.Module]:
        """The objectives, whose heads are trained."""
        return [self.objectives]

    # --- evaluation -------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Checks that there are weights, and moves teachers to the device."""
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
        """Logs means and baselines, and passes them to the recipe."""
        metrics = self._log_evaluation("val")
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.recipe.observe(
                {name: float(value) for name, value in metrics.items()}, self.trainer.global_step
            )

    def on_test_epoch_end(self) -> None:
        """Logs the means over the test split."""
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> Mapping[str, Tensor]:
        metrics = self.meters.compute()
        for part in self.parts.values():
            metrics |= part.baseline()
        main = self.monitor(False)[0].removeprefix("val/")
        for name, value in metrics.items():
            self.log(f"{stage}/{name}", value.float(), prog_bar=name == main, sync_dist=False)
        return metrics

    def require_maskable(self, key: str) -> None:
        """Refuses the masks of fine-tuning.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"`{key}` holds masks of fine-tuning, which pretraining does not use: leave them "
            "out; here `model.init_args.masking` chooses the masked patches"
        )

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """There is nothing to predict.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "a pretraining run knows no classes, so there is nothing to predict: fine-tune it "
            "first, with `peas.tasks.Classification` and `pretrained: RUN/checkpoints/last.ckpt`"
        )


class LossMeters(nn.Module):
    """Means of the total loss, of each objective and of its metrics.

    Args:
        names: Of objectives and metrics.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        names = ["loss", *names]
        self.training_means = nn.ModuleDict({name: MeanMetric() for name in names})
        self.evaluation_means = nn.ModuleDict({name: MeanMetric() for name in names})
        for mean in self.training_means.values():
            # Saved with the weights: a run resumed inside an epoch logs that epoch's true mean.
            cast(MeanMetric, mean).persistent(True)

    def count(
        self, losses: Losses, clips: int, *, first: bool
    ) -> Iterator[tuple[str, MeanMetric, Tensor]]:
        """Counts a training batch; yields each loss's name, running mean and value."""
        for name, value, weight in _values(losses, clips):
            mean = cast(MeanMetric, self.training_means[name])
            if first:
                mean.reset()
            mean.update(*counted(value.detach(), weight))
            yield name, mean, value.detach()

    def evaluate(self, losses: Losses, clips: int) -> None:
        """Counts a batch of evaluation."""
        for name, value, weight in _values(losses, clips):
            if weight:
                cast(MeanMetric, self.evaluation_means[name]).update(value, weight)

    def compute(self) -> dict[str, Tensor]:
        """Means of the evaluation by name, and resets."""
        metrics: dict[str, Tensor] = {}
        for name, mean in self.evaluation_means.items():
            metrics[name] = cast(MeanMetric, mean).compute()
            cast(MeanMetric, mean).reset()
        return metrics


def _values(losses: Losses, clips: int) -> Iterator[tuple[str, Tensor, int]]:
    """Name, value and number of clips of the sum, of each objective and of its metrics."""
    yield "loss", losses.total, clips
    for name, term in losses.terms.items():
        counted = clips if term.clips is None else term.clips
        yield name, term.loss, counted
        for metric, value in term.metrics.items():
            yield metric, value, counted
