"""Plots of a pretraining model's reconstructions, and of a teacher's features."""

import math
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from peas.audio.filter_bank import LOW_FREQUENCY
from peas.callbacks.plots import (
    FRAME_SECONDS,
    add_map,
    error_scale,
    log_mel_scale,
    new_figure,
    save_plot,
)
from peas.data.batch import Batch
from peas.data.module import ClipDataModule
from peas.errors import ConfigError
from peas.models.encoder import Encoder
from peas.models.patches import fold_average
from peas.objectives import FeatureDistillation, Reconstruction, Term
from peas.tasks.pretraining import Pretraining
from peas.utils.text import some

NOTHING = "#d9d9d9"
"""Colour of bins without a value."""
LAST_WINDOW = 4
"""Frames at a clip's end that its last window needs, which are not counted as padding."""
HERTZ = (200, 500, 1000, 2000, 4000, 7000)
_TOP = 8000.0


class FeatureView(NamedTuple):
    """A teacher's features on the patch grid, F' rows (the lowest first) and T' columns."""

    target: Tensor
    """`[F', T']`, projection on the first principal component of this clip's targets."""
    predicted: Tensor
    """`[F', T']`, projection of the prediction on the same one."""
    cosine: Tensor
    """`[F', T']`, cosine of the angle between the two. NaN where there is no sound, as above."""
    constant: float
    """Mean cosine of the clip's mean target with its targets: the constant baseline."""
    share: float
    """Share of the targets' variance along the component."""


class ReconstructionView(NamedTuple):
    """Content of one plot, on the CPU. T frames, F mel bins."""

    title: str
    log_mel: Tensor
    """`[T, F]` the input."""
    masked: Tensor
    """`[T, F]` bool, bins that the encoder does not see."""
    frames: int
    """Frames of the clip; the rest is padding."""
    valid: Tensor
    """`[T]` bool, frames of real sound."""
    prediction: Tensor | None = None
    """`[T, F]` the reconstruction, None without a pixel head."""
    own_level: bool = False
    """Whether reconstructed patches were given the mean and deviation of the input's."""
    features: FeatureView | None = None


class ReconstructionPlots(Callback):
    """Plots chosen validation clips as PNG and PDF into `plots/` of the run, and to W&B.

    Shows the input, the mask, the reconstruction and its error; with a teacher also its features
    beside the prediction. A clip's mask is that of its evaluation, which depends on the run's seed
    and the clip alone, so that plots of different epochs compare. They are made at the validation
    of the first epoch, of the last one, and of every `every_n_epochs` between.

    Args:
        clips: Ids of validation clips, or how many: then the first ones of the set.
        every_n_epochs: Epochs between two plots of a clip.

    Raises:
        ConfigError: A value is impossible.
    """

    def __init__(self, clips: int | list[str] = 2, every_n_epochs: int = 10) -> None:
        if every_n_epochs < 1 or (isinstance(clips, int) and clips < 1):
            raise ConfigError(
                f"`ReconstructionPlots.init_args.clips` is {clips} and `every_n_epochs` is "
                f"{every_n_epochs}: give 1 or more"
            )
        self.clips = clips
        self.every = every_n_epochs
        self._ids: set[str] = set()
        self._epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The epoch of the last plots, so that a resumed run keeps the interval."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it; earlier releases call it `drawn`."""
        self._epoch = state_dict.get("epoch", state_dict.get("drawn"))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the clips, and refuses a task without reconstructions.

        Raises:
            ConfigError: The task is not pretraining, or predicts neither patches nor features;
                or the validation set lacks a clip.
        """
        if not isinstance(pl_module, Pretraining):
            raise ConfigError(
                "`trainer.callbacks` holds ReconstructionPlots, which is for pretraining: use "
                "`peas.callbacks.MaskPlots` in fine-tuning"
            )
        if not pl_module.model.reconstructs and _feature_name(pl_module) is None:
            raise ConfigError(
                "`trainer.callbacks` holds ReconstructionPlots, and this task's objectives predict "
                "neither patches nor a teacher's features: take the callback out"
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ClipDataModule)
        ids = data.clips("validation").ids
        if isinstance(self.clips, int):
            self._ids = {clip for clip, _ in zip(ids, range(self.clips), strict=False)}
            return
        self._ids = set(self.clips)
        absent = sorted(self._ids - set(ids))
        if absent:
            raise ConfigError(
                f"`ReconstructionPlots.init_args.clips` names {some(absent)}, which are not in the "
                "validation set: name clips of it, or give a number"
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
        """Plots the chosen clips of this batch; each process its own."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        rows = [row for row, clip in enumerate(batch["id"]) if clip in self._ids]
        if rows and self._due(trainer):
            assert isinstance(pl_module, Pretraining)
            self._save(trainer, pl_module, _take(batch, rows))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the epoch."""
        if not trainer.sanity_checking and self._due(trainer):
            self._epoch = trainer.current_epoch

    def _due(self, trainer: Trainer) -> bool:
        # Counted from the last plots: not every epoch need have a validation.
        epoch, last = trainer.current_epoch, (trainer.max_epochs or 0) - 1
        due = self._epoch is None or epoch - self._epoch >= self.every
        return due or epoch in (last, self._epoch)

    def _save(self, trainer: Trainer, task: Pretraining, batch: Batch) -> None:
        # Hooks run outside autocast.
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            views = reconstruction_views(task, batch)
        for clip, view in zip(batch["id"], views, strict=True):
            named = view._replace(title=f"{clip}, epoch {trainer.current_epoch + 1}")
            save_plot(trainer, plot_clip(named), clip, "reconstruction")


def reconstruction_views(task: Pretraining, batch: Batch) -> list[ReconstructionView]:
    """Content of the plots of some clips, from a task in evaluation mode.

    Args:
        task: The task.
        batch: With `log_mel`, `frames` and `valid`, and the teacher's keys where it has one.
    """
    model, log_mel = task.model, batch["log_mel"]
    masked = task.masked_patches(batch, "val", _mask_stream(task)).to(log_mel.device)
    rows, columns = model.grid
    if model.time_major:
        masked = masked.view(-1, columns, rows).transpose(1, 2).flatten(1)
    prediction = model.reconstruct(log_mel, masked) if model.reconstructs else None
    features: Term | None = None
    if name := _feature_name(task):
        features = task.losses(batch, "val").terms[name]
    bins = masked_bins(model, masked, log_mel.shape[1], log_mel.shape[2])
    return [
        ReconstructionView(
            clip,
            log_mel[row].float().cpu(),
            bins[row].cpu(),
            int(batch["frames"][row]),
            batch["valid"][row].cpu(),
            None if prediction is None else prediction[row].float().cpu(),
            bool(getattr(model, "norm_pix", False)),
            None if features is None else _feature_view(features, row, (rows, columns)),
        )
        for row, clip in enumerate(batch["id"])
    ]


def masked_bins(model: Encoder, masked: Tensor, frames: int, mels: int) -> Tensor:
    """Bins that are under masked patches and under no visible one.

    Args:
        model: Knows the patches.
        masked: `[B, N]` bool, frequency-major.
        frames: Number of frames T.
        mels: Number of mel bins F.

    Returns:
        `[B, T, F]` bool.
    """
    size = model.patch[0] * model.patch[1]
    patches = masked.float().unsqueeze(2).expand(-1, -1, size)
    return fold_average(patches, model.patch, model.stride, frames, mels) > 1 - 1e-4


def _mask_stream(task: Pretraining) -> str | None:
    """Random stream of the mask: the shared one, or that of the reconstruction."""
    return None if task.hparams["passes"] == "shared" else Reconstruction.stream


def _feature_name(task: Pretraining) -> str | None:
    """Name of the objective that predicts a teacher's features; None without one."""
    names = (n for n, part in task.parts.items() if isinstance(part, FeatureDistillation))
    return next(names, None)


def _feature_view(term: Term, row: int, grid: tuple[int, int]) -> FeatureView:
    """Target and prediction of one clip along the first principal component of its targets."""
    assert term.rows is not None
    assert term.predicted is not None
    target = term.rows.targets[row].float().cpu()
    predicted = term.predicted[row].float().cpu()
    sound = term.rows.valid[row].cpu()
    if int(sound.sum()) < 2:
        sound = torch.ones_like(sound)
    mean = target[sound].mean(dim=0)
    _, lengths, axes = torch.linalg.svd(target[sound] - mean, full_matrices=False)
    # The sign of a component is arbitrary: without a rule it would flip from epoch to epoch.
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
    """Some clips of a batch, as they were before the task masked patches."""
    taken: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            taken[key] = value[rows]
        elif key == "id":
            taken[key] = [batch["id"][row] for row in rows]
    taken.pop("dropped_patches", None)
    return cast(Batch, taken)


def plot_clip(view: ReconstructionView) -> Figure:
    """Plot one clip: input and mask, prediction and error, target features and prediction."""
    rows = 1 + (view.prediction is not None) + (view.features is not None)
    figure = new_figure(0.5 + 2.9 * rows)
    grid = figure.add_gridspec(rows, 6)
    scale, unit = log_mel_scale(view.log_mel), "normalised log-mel"
    _map(figure, grid[0, :3], view.log_mel, "(a) input", unit, view, **scale)
    visible = view.log_mel.masked_fill(view.masked, math.nan)
    title = f"(b) the encoder's input: {float(view.masked.float().mean()):.0%} masked (grey)"
    _map(figure, grid[0, 3:], visible, title, unit, view, **scale)
    if view.prediction is not None:
        merged = torch.where(view.masked, view.prediction, view.log_mel)
        title = "(c) prediction of the masked patches, input elsewhere (white outline)"
        if view.own_level:
            title += "\nlevel and contrast of each predicted patch are the input's (norm_pix)"
        axes = _map(figure, grid[1, :3], merged, title, unit, view, **scale)
        _outline(axes, view.masked)
        error = (view.prediction - view.log_mel).square().masked_fill(~view.masked, math.nan)
        counted = error[view.valid & ~error.isnan().all(dim=1)]
        mean = float(counted.nanmean()) if counted.numel() else math.nan
        title = f"(d) squared error of masked bins, mean {mean:.3f} where there is sound"
        scale = error_scale(error[view.masked])
        _map(figure, grid[1, 3:], error, title, "squared error", view, **scale)
    if view.features is not None:
        boxes = [grid[rows - 1, 2 * i : 2 * i + 2] for i in range(3)]
        _plot_features(figure, boxes, view, view.features)
    figure.suptitle(view.title, parse_math=False)
    return figure


def _plot_features(
    figure: Figure, boxes: list[Any], view: ReconstructionView, features: FeatureView
) -> None:
    reach = float(features.target.nan_to_num().abs().max()) or 1.0
    scale = {"vmin": -reach, "vmax": reach, "cmap": "coolwarm"}
    title = (
        "(e) teacher's features where there is sound: first\n"
        f"principal component, {features.share:.0%} of the variance"
    )
    unit = "along the component"
    _map(figure, boxes[0], features.target.T, title, unit, view, **scale)
    title = "(f) their prediction\non the same component"
    _map(figure, boxes[1], features.predicted.T, title, unit, view, **scale)
    title = (
        f"(g) cosine of target and prediction: mean {float(features.cosine.nanmean()):.3f}\n"
        f"(the clip's mean target has {features.constant:.3f})"
    )
    low = min(0.0, float(features.cosine.nan_to_num(1.0).min()))
    scale = {"vmin": low, "vmax": 1.0, "cmap": "viridis"}
    _map(figure, boxes[2], features.cosine.T, title, "cosine", view, **scale)


def _map(
    figure: Figure,
    cell: Any,
    values: Tensor,
    title: str,
    unit: str,
    view: ReconstructionView,
    **scale: Any,
) -> Any:
    """A panel over the complete clip, with its end and with frequencies in Hz."""
    frames, mels = view.log_mel.shape
    extent = (frames * FRAME_SECONDS, float(mels))
    axes = add_map(figure, cell, values, title, extent, unit, **scale)
    axes.set_facecolor(NOTHING)
    if view.frames < frames - LAST_WINDOW:
        end = view.frames * FRAME_SECONDS
        axes.axvline(end, color="white", lw=2)
        axes.axvline(end, color="black", lw=1, ls="--")
        transform = axes.get_xaxis_transform()
        axes.text(end, 0.98, " end of the sound", transform=transform, va="top", fontsize=7)
    axes.set_yticks([mel_bin(hertz, mels) for hertz in HERTZ], [f"{hertz:,}" for hertz in HERTZ])
    axes.set_ylabel("Hz (mel scale)", fontsize=8)
    return axes


def _outline(axes: Any, masked: Tensor) -> None:
    """Outlines the masked bins `[T, F]`."""
    frames, mels = masked.shape
    axes.contour(
        ((torch.arange(frames) + 0.5) * FRAME_SECONDS).numpy(),
        (torch.arange(mels) + 0.5).numpy(),
        masked.T.float().numpy(),
        levels=[0.5],
        colors="white",
        linewidths=0.8,
    )


def mel_bin(hertz: float, mels: int) -> float:
    """Position of a frequency on an axis where mel bin i extends from i to i + 1.

    The filters' centres are at equal steps of the mel scale between 20 Hz and 8 kHz.
    """
    low, high, mel = (1127.0 * math.log1p(x / 700.0) for x in (LOW_FREQUENCY, _TOP, hertz))
    return (mel - low) / (high - low) * (mels + 1) - 0.5
