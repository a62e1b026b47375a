"""What all plots of clips share: panels, the choice of clips, and where the files go."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from peas.audio.decode import is_sound

PLOTS = "plots"
"""Subfolder of a run, and W&B's group."""
FRAME_SECONDS = 0.01
_LONGEST = 120
"""Bytes of a clip's part of a file name: epoch, kind and suffix stay below the usual 255."""
_INVALID = re.compile(r"[/\x00-\x1f\x7f]")


def new_figure(height: float) -> Figure:
    """An empty page, 13 inches wide, that needs no display."""
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def log_mel_scale(log_mel: Tensor) -> dict[str, Any]:
    """Colour scale of a log-mel spectrogram."""
    return {"vmin": float(log_mel.min()), "vmax": float(log_mel.max()), "cmap": "magma"}


def error_scale(errors: Tensor) -> dict[str, Any]:
    """Colour scale of errors, which a few extreme bins do not darken."""
    top = float(errors.flatten().quantile(0.99)) if errors.numel() else 1.0
    return {"vmin": 0.0, "vmax": max(top, 1e-12), "cmap": "viridis"}


def add_map(
    figure: Figure,
    box: Any,
    values: Tensor,
    title: str,
    extent: tuple[float, float],
    unit: str = "",
    **scale: Any,
) -> Any:
    """Add a panel with a map over time and frequency; returns its axes.

    Args:
        figure: The page.
        box: Where on its grid.
        values: `[T, F]`, NaN where there is nothing to show.
        title: Of the panel.
        extent: Seconds and mel bins that the map covers.
        unit: Label of the colour bar.
        scale: Colour scale, for matplotlib's `imshow`.
    """
    axes = figure.add_subplot(box)
    image = axes.imshow(
        values.T.numpy(),
        origin="lower",
        aspect="auto",
        extent=(0.0, extent[0], 0.0, extent[1]),
        interpolation="nearest",
        **scale,
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("seconds", fontsize=8)
    axes.set_ylabel("mel bin", fontsize=8)
    axes.tick_params(labelsize=7)
    return axes


def file_name(text: str) -> str:
    """A part of a file name for a clip or a label.

    The complete id is used: in some data sets only the folder distinguishes two clips. A name that
    is too long or has invalid characters ends in a hash of the id.

    Args:
        text: Id of a clip, or name of a class.
    """
    stem = os.path.splitext(text)[0] if is_sound(text) else text
    name = stem.replace("/", "_")
    valid = _INVALID.sub("_", name)
    if valid == name and len(os.fsencode(name)) <= _LONGEST:
        return name
    digest = hashlib.blake2b(os.fsencode(text), digest_size=4).hexdigest()
    return f"{os.fsencode(valid)[:_LONGEST].decode(errors='ignore')}_{digest}"


def save_plot(trainer: Trainer, figure: Figure, clip: str, kind: str = "") -> None:
    """Save the plot of a clip as PNG and PDF into `plots/` of the run, and to W&B.

    Args:
        trainer: Knows the run's folder, epoch and loggers.
        figure: The plot.
        clip: Id of the clip.
        kind: Of plot, for the name; empty for the run's main ones.
    """
    folder = Path(trainer.default_root_dir) / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    name = [*([kind] if kind else []), file_name(clip)]
    stem = "_".join([f"epoch_{trainer.current_epoch + 1:03d}", *name])
    figure.savefig(folder / f"{stem}.png", dpi=130)
    figure.savefig(folder / f"{stem}.pdf")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            key = "/".join([PLOTS, *name])
            logger.log_image(key, [str(folder / f"{stem}.png")], step=trainer.global_step)
