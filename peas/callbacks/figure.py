"""One page that shows a clip, its errors, the ranked windows and the mask."""

from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from peas.masking.peas.selector import AxisPlan

if TYPE_CHECKING:
    from peas.callbacks.pictures import ClipView

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
FRAME_SECONDS = 0.01


def draw(view: "ClipView") -> Figure:
    """Draws one clip.

    Left the conventional mask and this run's mask on the same clip, in the middle input,
    reconstruction and the two errors, right the window scores with the chosen windows and blocks.
    Of a strategy whose masks are not made of blocks, what is about blocks stays away.
    """
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3)
    low, high = float(view.log_mel.min()), float(view.log_mel.max())
    level = {"vmin": low, "vmax": high, "cmap": "magma"}

    _map(figure, grid[0, 0], view.log_mel, "input log-mel", **level)
    if view.conventional is not None:
        hidden = view.log_mel.masked_fill(view.conventional, float("nan"))
        _map(figure, grid[1, 0], hidden, "(a) conventional mask, same widths' law", **level)
    axes = _map(figure, grid[2, 0], view.masked, "(b) what the model gets in this step", **level)
    if view.time is not None and view.freq is not None:
        _blocks(axes, view.time, view.freq)
    empty = _runs(view.empty)

    if view.reconstruction is None or view.e_rec is None or view.e_pred is None:
        axes = figure.add_subplot(grid[:, 1:])
        axes.text(0.5, 0.5, "this model has no reconstruction head", ha="center")
        axes.axis("off")
    else:
        _map(
            figure,
            grid[0, 1],
            view.reconstruction,
            f"(i) reconstruction by {view.drawn_by}",
            **level,
        )
        _map(
            figure, grid[1, 1], view.e_rec, "e_rec, equation 1", cmap="viridis", **_top(view.e_rec)
        )
        axes = _map(
            figure,
            grid[2, 1],
            view.e_pred,
            "(ii) e_pred, equation 2",
            cmap="viridis",
            **_top(view.e_pred),
        )
        for start, end in empty:
            axes.axhspan(start, end, **EMPTY)
        frames, mels = view.log_mel.shape
        if view.time is not None and view.time_scores is not None:
            _scores(figure, grid[0, 2], view.time_scores, view.time, frames, "time", FRAME_SECONDS)
        if view.freq is not None and view.freq_scores is not None:
            axes = _scores(figure, grid[1, 2], view.freq_scores, view.freq, mels, "frequency", 1.0)
            for start, end in empty:
                axes.axvspan(start, end, **EMPTY)
            _legend(figure, grid[2, 2])
    figure.suptitle(view.title, parse_math=False)
    return figure


def _top(error: Tensor) -> dict[str, float]:
    """Colour scale that a few extreme cells do not darken."""
    return {"vmin": 0.0, "vmax": max(float(error.flatten().quantile(0.99)), 1e-12)}


def _map(figure: Figure, place: Any, cells: Tensor, title: str, **how: Any) -> Any:
    axes = figure.add_subplot(place)
    frames, mels = cells.shape
    extent = (0.0, frames * FRAME_SECONDS, 0.0, float(mels))
    axes.set_facecolor("white")
    image = axes.imshow(
        cells.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        interpolation="nearest",
        **how,
    )
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("mel bin", fontsize=8)
    axes.tick_params(labelsize=8)
    return axes


def _spans(plan: AxisPlan) -> list[tuple[int, int, bool]]:
    """Start, end and whether adaptive, of every block that hides something."""
    starts, widths = plan.blocks.start[0].tolist(), plan.blocks.width[0].tolist()
    rows = zip(starts, widths, plan.adaptive[0].tolist(), strict=True)
    return [(start, start + width, adaptive) for start, width, adaptive in rows if width]


def _runs(flags: Tensor) -> list[tuple[int, int]]:
    """Start and end of every run of True in `[L]`."""
    padded = [False, *flags.tolist(), False]
    edges = [i for i in range(len(padded) - 1) if padded[i] != padded[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _blocks(axes: Any, time: AxisPlan, freq: AxisPlan) -> None:
    for start, end, adaptive in _spans(time):
        colour = ADAPTIVE if adaptive else RANDOM
        axes.axvspan(start * FRAME_SECONDS, end * FRAME_SECONDS, fill=False, ec=colour, lw=1.5)
    for start, end, adaptive in _spans(freq):
        axes.axhspan(start, end, fill=False, ec=ADAPTIVE if adaptive else RANDOM, lw=1.5)


def _scores(
    figure: Figure,
    place: Any,
    scores: Tensor,
    plan: AxisPlan,
    size: int,
    axis: str,
    unit: float,
) -> Any:
    axes = figure.add_subplot(place)
    width = size - len(scores) + 1
    centre = [(start + width / 2) * unit for start in range(len(scores))]
    axes.plot(centre, scores.numpy(), color="black", lw=1)
    for start, end, adaptive in _spans(plan):
        axes.axvspan(start * unit, end * unit, color=ADAPTIVE if adaptive else RANDOM, alpha=0.35)
    chosen = zip(plan.window_start[0].tolist(), plan.window_width[0].tolist(), strict=True)
    for start, span in chosen:
        if span:
            axes.axvspan(start * unit, (start + span) * unit, fill=False, ec=WINDOW, lw=1.5)
    axes.set_xlim(0, size * unit)
    label = "seconds" if unit != 1.0 else "mel bin"
    axes.set_title(f"(iii) mean e_pred of {width}-wide windows, {axis}", fontsize=10)
    axes.set_xlabel(f"{label} (centre of the window)", fontsize=8)
    axes.tick_params(labelsize=8)
    return axes


def _legend(figure: Figure, place: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axes = figure.add_subplot(place)
    axes.axis("off")
    axes.legend(
        handles=[
            Line2D([], [], color="black", label="score of the window centred here"),
            Patch(fill=False, ec=WINDOW, label="window chosen by the mask position selector"),
            Patch(color=ADAPTIVE, alpha=0.5, label="adaptive block, drawn inside its window"),
            Patch(color=RANDOM, alpha=0.5, label="random block"),
            Patch(**EMPTY, label="mel bins without sound"),
        ],
        loc="center left",
        frameon=False,
    )
