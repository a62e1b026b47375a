"""Plots that explain a masking strategy: the PEAS paper's Figure 2 for clips of the run."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from peas.callbacks.masking import MaskingContext, MaskingStrategy
from peas.callbacks.plots import (
    FRAME_SECONDS,
    add_map,
    error_scale,
    log_mel_scale,
    new_figure,
    save_plot,
)
from peas.callbacks.progress import PlotsInSteps
from peas.callbacks.spec_augment import BlockMasking
from peas.data.batch import Batch
from peas.data.module import ClipDataModule
from peas.errors import ConfigError
from peas.masking.blocks import blocks_to_mask, cross
from peas.masking.peas.scores import error_maps
from peas.masking.peas.selector import (
    NUMBERS,
    AxisPlan,
    Selection,
    marginals,
    random_plan,
    window_scores,
)
from peas.tasks.augmentation import roll_time
from peas.tasks.base import BaseTask
from peas.training.randomness import run_seed
from peas.training.trainer import callbacks_of
from peas.utils.text import some

WINDOW = "#2f6fd0"
ADAPTIVE = "#d1495b"
RANDOM = "#7a7a7a"
EMPTY: dict[str, Any] = {
    "facecolor": "#bbbbbb",
    "edgecolor": "#555555",
    "hatch": "//",
    "alpha": 0.4,
    "lw": 0,
}


class ClipView(NamedTuple):
    """Content of one plot, on the CPU. T frames, F mel bins."""

    title: str
    log_mel: Tensor
    """`[T, F]` the model's input without a mask."""
    masked: Tensor
    """`[T, F]` its input."""
    empty: Tensor
    """`[F]` bool, mel bins without sound."""
    conventional: Tensor | None = None
    """`[T, F]` bool, a conventional SpecAugment mask with the same random numbers. None, as what
    follows, where the masks are not made of blocks."""
    time: AxisPlan | None = None
    """Plan of this clip, one row."""
    freq: AxisPlan | None = None
    source: str = "G(E(x))"
    """What the reconstruction comes from."""
    reconstruction: Tensor | None = None
    """`[T, F]`, None when the model cannot reconstruct."""
    e_rec: Tensor | None = None
    e_pred: Tensor | None = None
    time_scores: Tensor | None = None
    """`[T - w + 1]` mean e_pred of every window."""
    freq_scores: Tensor | None = None


class MaskPlots(PlotsInSteps):
    """Plots chosen training clips as PNG and PDF into `plots/` of the run, and to W&B.

    Shows a clip with the very mask of the training step, in the first epoch, the last one, and
    every `every_n_epochs` between. Only training clips have such a mask.

    Args:
        clips: Ids of training clips, or how many: then the first ones that the run trains on.
        every_n_epochs: Epochs between two plots of a clip.
    """

    def __init__(self, clips: int | list[str] = 2, every_n_epochs: int = 10) -> None:
        self.clips = clips
        self.every = max(1, every_n_epochs)
        self._ids: list[str] = list(clips) if isinstance(clips, list) else []
        self._batch: Batch | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """The chosen clips, so that a resumed run plots the same ones."""
        return {"ids": self._ids}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the same clips, unless others are named."""
        if isinstance(self.clips, int):
            self._ids = state_dict["ids"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses clips that the run does not train on.

        Raises:
            ConfigError: `clips` names some.
        """
        data = getattr(trainer, "datamodule", None)
        if isinstance(self.clips, int) or not isinstance(data, ClipDataModule):
            return
        absent = sorted(set(self.clips) - set(data.training_clips(run_seed()).ids))
        if absent:
            raise ConfigError(
                f"`MaskPlots.init_args.clips` names {some(absent)}, which are no training clips of "
                "this run: name some of those, by their ids, or give a number"
            )

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps the batch for the hook that has none."""
        self._batch = batch if self._due(trainer) else None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Plots the chosen clips of this batch, with the weights that chose its mask.

        Each process plots its own; the first one chooses where `clips` is a number.
        """
        batch, self._batch = self._batch, None
        strategy = next(iter(callbacks_of(trainer, MaskingStrategy)), None)  # type: ignore[type-abstract]
        if batch is None or strategy is None or "mask" not in batch:
            return
        assert isinstance(pl_module, BaseTask)
        if isinstance(self.clips, int) and trainer.is_global_zero:
            # A clip may occur twice where clips are sampled by weight.
            new = [clip for clip in dict.fromkeys(batch["id"]) if clip not in self._ids]
            self._ids += new[: max(0, self.clips - len(self._ids))]
        chosen = [index for index, clip in enumerate(batch["id"]) if clip in self._ids]
        with self.plotting():
            for index in chosen:
                view = _view(trainer, pl_module, strategy, batch, index)
                save_plot(trainer, plot_clip(view), batch["id"][index])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shares the chosen clips with all processes; warns once if there are too few."""
        if not isinstance(self.clips, int) or not self._due(trainer):
            return
        self._ids = trainer.strategy.broadcast(self._ids)
        if 0 < len(self._ids) < self.clips and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"`MaskPlots.init_args.clips` is {self.clips}, and the first process trained on "
                f"{len(self._ids)} clips in the epoch: those are plotted"
            )

    def _due(self, trainer: Trainer) -> bool:
        epoch, last = trainer.current_epoch, (trainer.max_epochs or 0) - 1
        return epoch == last or epoch % self.every == 0


def _view(
    trainer: Trainer, task: BaseTask, strategy: MaskingStrategy, batch: Batch, index: int
) -> ClipView:
    """One clip of the batch, with the model's errors."""
    one = slice(index, index + 1)
    x, valid, masked = batch["log_mel"][one], batch["valid"][one], batch["masked_log_mel"][one]
    clean = batch["clean"]
    if strategy.stage == "before_noise" and "roll" in batch:
        # The mask was chosen before noise and roll: plot the clip in its own time.
        x, valid = clean.log_mel[one], clean.valid[one]
        masked = roll_time(masked, -batch["roll"][one])
    sounding = task.front_end.sounding_bins(clean.log_mel, clean.valid)[one]
    view = ClipView(
        f"{batch['id'][index]}, epoch {trainer.current_epoch + 1}, {type(strategy).__name__}",
        x[0].cpu(),
        masked[0].cpu(),
        ~sounding[0].cpu(),
    )
    if isinstance(strategy, BlockMasking):
        time, freq = (_row(plan, index) for plan in batch["mask_plan"])
        conventional = _conventional(strategy, MaskingContext(task, batch), x, one)
        view = view._replace(conventional=conventional, time=time, freq=freq)
    if not task.model.can_reconstruct:
        return view
    training = task.model.training
    task.model.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        maps = error_maps(task.model.reconstruct, x)
        reconstruction = task.model.reconstruct(x)
    task.model.train(training)
    assert maps.e_rec is not None
    assert maps.e_pred is not None
    probe = task.model.pixel_probe is not None
    view = view._replace(
        source="a linear pixel probe" if probe else "G(E(x))",
        reconstruction=reconstruction[0].float().cpu(),
        e_rec=maps.e_rec[0].cpu(),
        e_pred=maps.e_pred[0].cpu(),
    )
    if not isinstance(strategy, BlockMasking):
        return view
    time_ok, freq_ok = strategy.countable(task, x, valid, sounding)
    lines = marginals(maps.e_pred, time_ok, freq_ok)
    return view._replace(
        time_scores=window_scores(lines.time, max(1, strategy.max_time), time_ok)[0].cpu(),
        freq_scores=window_scores(lines.freq, max(1, strategy.max_freq), freq_ok)[0].cpu(),
    )


def _conventional(strategy: BlockMasking, context: MaskingContext, x: Tensor, one: slice) -> Tensor:
    """`[T, F]` bool: one random block an axis for a clip, of the strategy's mask parameters."""
    lines = (
        blocks_to_mask(
            random_plan(context.rand(axis, 1, NUMBERS)[one], Selection(width), size).blocks, size
        )
        for axis, width, size in (
            ("time", strategy.max_time, x.shape[1]),
            ("freq", strategy.max_freq, x.shape[2]),
        )
    )
    return cross(*lines)[0].cpu()


def _row(plan: AxisPlan, index: int) -> AxisPlan:
    one = slice(index, index + 1)
    return AxisPlan(
        type(plan.blocks)(plan.blocks.start[one].cpu(), plan.blocks.width[one].cpu()),
        plan.window_start[one].cpu(),
        plan.window_width[one].cpu(),
        plan.adaptive[one].cpu(),
    )


def plot_clip(view: ClipView) -> Figure:
    """Plot one clip.

    Left the conventional mask and this run's mask on the same clip, in the middle input,
    reconstruction and the two errors, right the window scores with the chosen windows and blocks.
    Panels about blocks are left out where masks are not made of blocks.
    """
    figure = new_figure(7.6)
    grid = figure.add_gridspec(3, 3)
    scale = log_mel_scale(view.log_mel)
    frames, mels = view.log_mel.shape
    extent = (frames * FRAME_SECONDS, float(mels))
    add_map(figure, grid[0, 0], view.log_mel, "input log-mel", extent, **scale)
    if view.conventional is not None:
        visible = view.log_mel.masked_fill(view.conventional, float("nan"))
        title = "(a) conventional mask, same distribution of widths"
        add_map(figure, grid[1, 0], visible, title, extent, **scale)
    title = "(b) the model's input in this step"
    axes = add_map(figure, grid[2, 0], view.masked, title, extent, **scale)
    if view.time is not None and view.freq is not None:
        _outline_blocks(axes, view.time, view.freq)
    if view.reconstruction is None or view.e_rec is None or view.e_pred is None:
        axes = figure.add_subplot(grid[:, 1:])
        axes.text(0.5, 0.5, "this model has no reconstruction head", ha="center")
        axes.axis("off")
    else:
        empty = _runs(view.empty)
        title = f"(i) reconstruction by {view.source}"
        add_map(figure, grid[0, 1], view.reconstruction, title, extent, **scale)
        for row, error, title in (
            (1, view.e_rec, "e_rec, equation 1"),
            (2, view.e_pred, "(ii) e_pred, equation 2"),
        ):
            axes = add_map(figure, grid[row, 1], error, title, extent, **error_scale(error))
        for start, end in empty:
            axes.axhspan(start, end, **EMPTY)
        if view.time is not None and view.time_scores is not None:
            _plot_scores(figure.add_subplot(grid[0, 2]), view.time_scores, view.time, frames)
        if view.freq is not None and view.freq_scores is not None:
            axes = figure.add_subplot(grid[1, 2])
            _plot_scores(axes, view.freq_scores, view.freq, mels, of_time=False)
            for start, end in empty:
                axes.axvspan(start, end, **EMPTY)
            _add_legend(figure.add_subplot(grid[2, 2]))
    figure.suptitle(view.title, parse_math=False)
    return figure


def _spans(plan: AxisPlan) -> list[tuple[int, int, bool]]:
    """Start, end and whether adaptive, of every block that is not empty."""
    starts, widths = plan.blocks.start[0].tolist(), plan.blocks.width[0].tolist()
    rows = zip(starts, widths, plan.adaptive[0].tolist(), strict=True)
    return [(start, start + width, adaptive) for start, width, adaptive in rows if width]


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """Start and end of every run of True in `[L]`."""
    padded = [False, *flags.tolist(), False]
    edges = [i for i in range(len(padded) - 1) if padded[i] != padded[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _outline_blocks(axes: Any, time: AxisPlan, freq: AxisPlan) -> None:
    for plan, span, unit in ((time, axes.axvspan, FRAME_SECONDS), (freq, axes.axhspan, 1.0)):
        for start, end, adaptive in _spans(plan):
            colour = ADAPTIVE if adaptive else RANDOM
            span(start * unit, end * unit, fill=False, ec=colour, lw=1.5)


def _plot_scores(
    axes: Any, scores: Tensor, plan: AxisPlan, size: int, *, of_time: bool = True
) -> None:
    """Scores of the windows along an axis, with the chosen windows and the blocks."""
    name, label, unit = ("time", "seconds", FRAME_SECONDS)
    if not of_time:
        name, label, unit = ("frequency", "mel bin", 1.0)
    width = size - len(scores) + 1
    centre = [(start + width / 2) * unit for start in range(len(scores))]
    axes.plot(centre, scores.numpy(), color="black", lw=1)
    for start, end, adaptive in _spans(plan):
        colour = ADAPTIVE if adaptive else RANDOM
        axes.axvspan(start * unit, end * unit, color=colour, alpha=0.35)
    windows = zip(plan.window_start[0].tolist(), plan.window_width[0].tolist(), strict=True)
    for start, span in windows:
        if span:
            axes.axvspan(start * unit, (start + span) * unit, fill=False, ec=WINDOW, lw=1.5)
    axes.set_xlim(0, size * unit)
    axes.set_title(f"(iii) mean e_pred of {width}-wide windows, {name}", fontsize=9)
    axes.set_xlabel(f"{label} (centre of the window)", fontsize=8)
    axes.tick_params(labelsize=7)


def _add_legend(axes: Any) -> None:
    axes.axis("off")
    axes.legend(
        handles=[
            Line2D([], [], color="black", label="score of the window centred here"),
            Patch(fill=False, ec=WINDOW, label="window chosen by the mask position selector"),
            Patch(color=ADAPTIVE, alpha=0.5, label="adaptive block, sampled inside its window"),
            Patch(color=RANDOM, alpha=0.5, label="random block"),
            Patch(**EMPTY, label="mel bins without sound"),
        ],
        loc="center left",
        frameon=False,
    )
