"""Picture of how long the clips of a set are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

BARS = 60
CLIPS = "#2f6fd0"
INPUT = "#d1495b"


def draw(seconds: NDArray[np.floating[Any]], input_seconds: float, title: str) -> Figure:
    """Histogram of lengths, with the length of the model's input.

    The number of clips is on a logarithmic scale: most sets have one common length, and the few
    other clips are what is looked for.

    Args:
        seconds: `[N]` lengths of clips, at least one.
        input_seconds: What fills the model's input.
        title: Above the picture.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # From 0, so that clips of one common length are one bar and not a range of rounding errors.
    top = 1.05 * max(float(seconds.max()), input_seconds)
    axes.hist(seconds, bins=BARS, range=(0.0, top), color=CLIPS, log=True)
    axes.axvline(input_seconds, color=INPUT, lw=1.5, label=f"model's input, {input_seconds:.2f} s")
    axes.axvline(
        float(np.median(seconds)),
        color="black",
        lw=1,
        ls="--",
        label=f"median, {np.median(seconds):.2f} s",
    )
    axes.set_xlim(0, top)
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("clips")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.legend(frameon=False, fontsize=9)
    return figure
