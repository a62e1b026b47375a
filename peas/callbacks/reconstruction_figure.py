"""One page that shows a clip, its hidden patches, what was predicted there, and how wrong."""

import math
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from peas.audio.filter_bank import LOW_FREQUENCY
from peas.callbacks.figure import FRAME_SECONDS

if TYPE_CHECKING:
    from peas.callbacks.reconstructions import FeatureView, ReconstructionView

NOTHING = "#d9d9d9"
"""Colour of cells that a panel has nothing to say about."""
LAST_WINDOW = 4
"""Frames at a clip's end that its last window needs: no padding worth a word."""
HERTZ = (200, 500, 1000, 2000, 4000, 7000)
_TOP = 8000.0


def draw(view: "ReconstructionView") -> Figure:
    """Draws one clip: input and mask, prediction and error, target features and prediction."""
    rows = 1 + (view.drawn is not None) + (view.features is not None)
    figure = Figure(figsize=(13, 0.5 + 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 6)
    mels = view.log_mel.shape[1]
    level: dict[str, Any] = {
        "vmin": float(view.log_mel.min()),
        "vmax": float(view.log_mel.max()),
        "cmap": "magma",
    }
    unit = "normalised log-mel"
    _map(figure, grid[0, :3], view.log_mel, "(a) input", unit, view, mels, **level)
    seen = view.log_mel.masked_fill(view.hidden, math.nan)
    title = f"(b) what the encoder sees: {float(view.hidden.float().mean()):.0%} hidden (grey)"
    _map(figure, grid[0, 3:], seen, title, unit, view, mels, **level)
    if view.drawn is not None:
        pasted = torch.where(view.hidden, view.drawn, view.log_mel)
        title = "(c) prediction in the hidden patches, input in the others; white lines part them"
        if view.own_level:
            title += "\nlevel and contrast of each drawn patch are the input's own (norm_pix)"
        axes = _map(figure, grid[1, :3], pasted, title, unit, view, mels, **level)
        _outline(axes, view.hidden)
        error = (view.drawn - view.log_mel).square().masked_fill(~view.hidden, math.nan)
        counted = error[view.valid & ~error.isnan().all(dim=1)]
        mean = float(counted.nanmean()) if counted.numel() else math.nan
        top = float(error[view.hidden].quantile(0.99)) if view.hidden.any() else 1.0
        title = f"(d) squared error of hidden cells, mean {mean:.3f} where there is sound"
        scale = {"vmin": 0.0, "vmax": max(top, 1e-12), "cmap": "viridis"}
        _map(figure, grid[1, 3:], error, title, "squared error", view, mels, **scale)
    if view.features is not None:
        _features(figure, [grid[rows - 1, 2 * i : 2 * i + 2] for i in range(3)], view)
    figure.suptitle(view.title, parse_math=False)
    return figure


def _features(figure: Figure, places: list[Any], view: "ReconstructionView") -> None:
    found: FeatureView | None = view.features
    assert found is not None
    reach = float(found.target.nan_to_num().abs().max()) or 1.0
    level = {"vmin": -reach, "vmax": reach, "cmap": "coolwarm"}
    mels = view.log_mel.shape[1]
    title = (
        "(e) teacher's features where there is sound: first\n"
        f"principal component, {found.share:.0%} of the variance"
    )
    unit = "along the component"
    _map(figure, places[0], found.target.T, title, unit, view, mels, **level)
    title = "(f) their prediction\non the same component"
    _map(figure, places[1], found.predicted.T, title, unit, view, mels, **level)
    mean = float(found.cosine.nanmean())
    title = (
        f"(g) cosine of target and prediction: mean {mean:.3f}\n"
        f"(the clip's mean target has {found.constant:.3f})"
    )
    low = min(0.0, float(found.cosine.nan_to_num(1.0).min()))
    scale = {"vmin": low, "vmax": 1.0, "cmap": "viridis"}
    _map(figure, places[2], found.cosine.T, title, "cosine", view, mels, **scale)


def _map(
    figure: Figure,
    place: Any,
    cells: Tensor,
    title: str,
    unit: str,
    view: "ReconstructionView",
    mels: int,
    **how: Any,
) -> Any:
    """A map `[T, F]` or `[T', F']` over the whole clip."""
    axes = figure.add_subplot(place)
    seconds = view.log_mel.shape[0] * FRAME_SECONDS
    axes.set_facecolor(NOTHING)
    image = axes.imshow(
        cells.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0.0, seconds, 0.0, float(mels)),
        interpolation="nearest",
        **how,
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if view.frames < view.log_mel.shape[0] - LAST_WINDOW:
        end = view.frames * FRAME_SECONDS
        axes.axvline(end, color="white", lw=2)
        axes.axvline(end, color="black", lw=1, ls="--")
        where = axes.get_xaxis_transform()
        axes.text(end, 0.98, " end of the sound", transform=where, va="top", fontsize=7)
    axes.set_yticks([place_of(hertz, mels) for hertz in HERTZ], [f"{hertz:,}" for hertz in HERTZ])
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("Hz (mel scale)", fontsize=8)
    axes.tick_params(labelsize=7)
    return axes


def _outline(axes: Any, hidden: Tensor) -> None:
    """Draws the borders of the hidden cells `[T, F]`."""
    frames, mels = hidden.shape
    seconds = (torch.arange(frames) + 0.5) * FRAME_SECONDS
    bins = torch.arange(mels) + 0.5
    axes.contour(
        seconds.numpy(),
        bins.numpy(),
        hidden.T.float().numpy(),
        levels=[0.5],
        colors="white",
        linewidths=0.8,
    )


def place_of(hertz: float, mels: int) -> float:
    """Height of a frequency on an axis where mel bin i reaches from i to i + 1.

    The bank's filters have their centres on equal steps of the mel scale between 20 Hz and 8 kHz.
    """
    low, high, mel = (1127.0 * math.log1p(x / 700.0) for x in (LOW_FREQUENCY, _TOP, hertz))
    return (mel - low) / (high - low) * (mels + 1) - 0.5
