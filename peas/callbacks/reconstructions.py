"""Pictures of what a pretraining model makes of hidden patches, and of a teacher's features."""

from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional

from peas.callbacks.picture_files import save_picture
from peas.callbacks.reconstruction_figure import draw
from peas.data.batch import Batch
from peas.data.module import ClipDataModule
from peas.errors import ConfigError
from peas.models.encoder import Encoder
from peas.models.patches import fold_average
from peas.objectives import FeatureDistillation, Reconstruction, Term
from peas.tasks.pretraining import Pretraining
from peas.utils.text import some


class FeatureView(NamedTuple):
    """A teacher's features on the patch grid, F' rows (the lowest first) and T' columns."""

    target: Tensor
    """`[F', T']`, projection on the first principal component of this clip's targets."""
    predicted: Tensor
    """`[F', T']`, projection of the prediction on the same one."""
    cosine: Tensor
    """`[F', T']`, cosine of the angle between the two. NaN where there is no sound, as above."""
    constant: float
    """Mean cosine of the clip's mean target with its targets: what knowing nothing gives."""
    share: float
    """Share of the targets' variance along the component."""


class ReconstructionView(NamedTuple):
    """Everything that one picture shows, on the CPU. T frames, F mel bins."""

    title: str
    log_mel: Tensor
    """`[T, F]` the input."""
    hidden: Tensor
    """`[T, F]` bool, cells that the encoder does not see."""
    frames: int
    """Frames of the clip; the rest is padding."""
    valid: Tensor
    """`[T]` bool, frames of real sound."""
    drawn: Tensor | None = None
    """`[T, F]` the prediction, None without a pixel head."""
    own_level: bool = False
    """Whether drawn patches have been given the mean and deviation of the input's."""
    features: FeatureView | None = None


class Reconstructions(Callback):
    """Draws chosen validation clips as PNG and PDF into `pictures/` of the run, and to W&B.

    Shows the input, what is hidden, the prediction in its place and its error; with a teacher also
    the target map against the prediction. A clip's mask is that of its evaluation, which depends
    on the run's seed and the clip alone, so the pictures of all epochs compare. They are drawn at
    the validation of the first epoch, of the last one, and of every `every_n_epochs` between.

    Args:
        clips: Ids of validation clips, or how many: then the first ones of the set.
        every_n_epochs: Epochs between two pictures of a clip.

    Raises:
        ConfigError: A value is impossible.
    """

    def __init__(self, clips: int | list[str] = 2, every_n_epochs: int = 10) -> None:
        if every_n_epochs < 1 or (isinstance(clips, int) and clips < 1):
            raise ConfigError(
                f"`Reconstructions.init_args.clips` is {clips} and `every_n_epochs` is "
                f"{every_n_epochs}: give 1 or more"
            )
        self.wanted = clips
        self.every = every_n_epochs
        self._ids: set[str] = set()
        self._drawn: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The epoch of the last pictures, so that a resumed run keeps their distance."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the last pictures."""
        self._drawn = state_dict["drawn"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the clips, and refuses a task that has nothing to show.

        Raises:
            ConfigError: The task is none of pretraining, or predicts neither patches nor features;
                or the validation set lacks a clip.
        """
        if not isinstance(pl_module, Pretraining):
            raise ConfigError(
                "`trainer.callbacks` holds Reconstructions, which is for pretraining tasks: use "
                "`peas.callbacks.Pictures` in fine-tuning"
            )
        if not pl_module.model.reconstructs and _feature_name(pl_module) is None:
            raise ConfigError(
                "`trainer.callbacks` holds Reconstructions, and this task's objectives predict "
                "neither patches nor a teacher's features: take the callback out"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ClipDataModule)
        ids = data.clips("validation").ids
        if isinstance(self.wanted, int):
            self._ids = {clip for clip, _ in zip(ids, range(self.wanted), strict=False)}
            return
        self._ids = set(self.wanted)
        absent = sorted(self._ids - set(ids))
        if absent:
            raise ConfigError(
                f"`Reconstructions.init_args.clips` names {some(absent)}, which the validation set "
                "does not have: name clips of its, or give a number"
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the chosen clips of this batch; each process those that it has."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        rows = [row for row, clip in enumerate(batch["id"]) if clip in self._ids]
        if rows and self._due(trainer):
            assert isinstance(pl_module, Pretraining)
            self._save(trainer, pl_module, _take(batch, rows))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the epoch."""
        if not trainer.sanity_checking and self._due(trainer):
            self._drawn = trainer.current_epoch

    def _due(self, trainer: Trainer) -> bool:
        # Counted from the last ones: not every epoch need have a validation.
        epoch, last = trainer.current_epoch, (trainer.max_epochs or 0) - 1
        rested = self._drawn is None or epoch - self._drawn >= self.every
        return rested or epoch in (last, self._drawn)

    def _save(self, trainer: Trainer, task: Pretraining, batch: Batch) -> None:
        # Hooks run outside autocast.
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            views = reconstruction_views(task, batch)
        for clip, view in zip(batch["id"], views, strict=True):
            named = view._replace(title=f"{clip}, epoch {trainer.current_epoch + 1}")
            save_picture(trainer, draw(named), clip, "reconstruction")


def reconstruction_views(task: Pretraining, batch: Batch) -> list[ReconstructionView]:
    """What the pictures of some clips show, from a task in evaluation mode.

    Args:
        task: The task.
        batch: With `log_mel`, `frames` and `valid`, and the teacher's keys where it has one.
    """
    model, log_mel = task.model, batch["log_mel"]
    hidden = task.masked_patches(batch, "val", _own_stream(task)).to(log_mel.device)
    rows, columns = model.grid
    by_frequency = hidden
    if model.time_major:
        by_frequency = hidden.view(-1, columns, rows).transpose(1, 2).flatten(1)
    drawn = model.reconstruct(log_mel, by_frequency) if model.reconstructs else None
    features: Term | None = None
    if name := _feature_name(task):
        features = task.losses(batch, "val").terms[name]
    cells = hidden_cells(model, by_frequency, log_mel.shape[1], log_mel.shape[2])
    return [
        ReconstructionView(
            clip,
            log_mel[row].float().cpu(),
            cells[row].cpu(),
            int(batch["frames"][row]),
            batch["valid"][row].cpu(),
            None if drawn is None else drawn[row].float().cpu(),
            bool(getattr(model, "norm_pix", False)),
            None if features is None else _features(features, row, (rows, columns)),
        )
        for row, clip in enumerate(batch["id"])
    ]


def hidden_cells(model: Encoder, hidden: Tensor, frames: int, mels: int) -> Tensor:
    """Cells that lie under hidden patches and under no visible one.

    Args:
        model: Knows the patches.
        hidden: `[B, N]` bool, frequency-major.
        frames: Number of frames T.
        mels: Number of mel bins F.

    Returns:
        `[B, T, F]` bool.
    """
    size = model.patch[0] * model.patch[1]
    patches = hidden.float().unsqueeze(2).expand(-1, -1, size)
    return fold_average(patches, model.patch, model.stride, frames, mels) > 1 - 1e-4


def _own_stream(task: Pretraining) -> str | None:
    """Whose mask is shown: the shared one, or that of what is reconstructed."""
    return None if task.hparams["passes"] == "shared" else Reconstruction.stream


def _feature_name(task: Pretraining) -> str | None:
    """Name of the objective that predicts a teacher's features; None without one."""
    found = (n for n, part in task.parts.items() if isinstance(part, FeatureDistillation))
    return next(found, None)


def _features(term: Term, row: int, grid: tuple[int, int]) -> FeatureView:
    """Target and prediction of one clip along the axis on which its targets differ most."""
    assert term.rows is not None
    assert term.predicted is not None
    target = term.rows.targets[row].float().cpu()
    predicted = term.predicted[row].float().cpu()
    sound = term.rows.valid[row].cpu()
    if int(sound.sum()) < 2:
        sound = torch.ones_like(sound)
    mean = target[sound].mean(dim=0)
    _, lengths, axes = torch.linalg.svd(target[sound] - mean, full_matrices=False)
    # An axis has no sign of its own: without a rule it would turn over from epoch to epoch.
    axis = axes[0] * axes[0][axes[0].abs().argmax()].sign()

    def on_grid(values: Tensor) -> Tensor:
        known = torch.where(sound, values, torch.nan)
        return known.view(grid[1], grid[0]).T

    constant = functional.cosine_similarity(target[sound], mean.expand_as(target[sound]), dim=1)
    return FeatureView(
        on_grid((target - mean) @ axis),
        on_grid((predicted - mean) @ axis),
        on_grid(functional.cosine_similarity(target, predicted, dim=1)),
        float(constant.mean()),
        float(lengths[0].square() / lengths.square().sum().clamp(min=1e-20)),
    )


def _take(batch: Batch, rows: list[int]) -> Batch:
    """Some clips of a batch, as they were before the task hid patches of them."""
    taken: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            taken[key] = value[rows]
        elif key == "id":
            taken[key] = [batch["id"][row] for row in rows]
    taken.pop("dropped_patches", None)
    return cast(Batch, taken)
