"""`peas data stats`: mean and std of the log-mel, class counts, lengths."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peas import __version__
from peas.cli.data.sets import Bar, DataSet
from peas.errors import AudioError, DataError, say
from peas.utils.text import some

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from peas.data.module import ClipDataModule
    from peas.data.statistics import Measured

SHIFT = 0.01
"""Seconds from one frame to the next."""


def stats(
    data_set: DataSet, *, out: str | None = None, workers: int | None = None, padded: bool = False
) -> None:
    """Mean and std of a set's log-mel, class counts, and lengths.

    Mean and std are of the raw log-mel over the training split, for the normalisation of the
    model's input.

    Args:
        data_set: The set.
        out: Folder for stats.json and lengths.png; default: print only.
        workers: Processes; default one a core; 0 = this one.
        padded: Include the zeros that fill shorter clips up to the model's input, as the official
            statistics do.

    Raises:
        DataError: The set is missing or inconsistent, or a worker was killed.
        AudioError: Clips cannot be read; the statistics of the others are given first.
    """
    from peas.data.statistics import measure
    from peas.data.workers import default_workers

    module = data_set.module
    clips = module.clips("train")
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        # Before the work, which may take hours.
        folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with Bar() as bar:
        show = bar.of(data_set.name)
        measured = measure(
            clips,
            module.frames,
            padded=padded,
            workers=default_workers() if workers is None else workers,
            on_error="skip",
            progress=lambda done, total: show("decoding", done, total),
        )
    seconds = time.monotonic() - begun
    result = {
        "peas": __version__,
        "command": data_set.command,
        "set": data_set.name,
        "root": str(module.root),
        **_statistics(measured, module.frames, padded),
        "splits": dict(_splits(module)),
    }
    say("\n".join([data_set.command, "", *_text(result)]))
    say(
        f"\n{len(clips):,} clips in {seconds:.1f} s, {len(clips) / max(seconds, 1e-9):.0f} a second"
    )
    if folder is not None:
        text = json.dumps(result, indent=2, ensure_ascii=False)
        (folder / "stats.json").write_text(text + "\n", encoding="utf-8")
        lengths = measured.seconds[measured.seconds > 0]
        title = f"{data_set.name} {module.root}: {len(lengths):,} training clips"
        figure = plot(lengths, input_seconds(module.frames), title)
        figure.savefig(folder / "lengths.png", dpi=110)
        say(f"more: {folder / 'stats.json'}, {folder / 'lengths.png'}")
    if measured.unreadable:
        raise AudioError(
            f"{len(measured.unreadable)} of {len(clips)} training clips cannot be read and were "
            f"left out; peas data verify lists them all: {some(measured.unreadable.values())}"
        )


def _statistics(measured: Measured, frames: int, padded: bool) -> dict[str, Any]:
    """Of the clips that could be read."""
    import numpy as np

    from peas.data.checks.report import lengths

    seconds = measured.seconds[measured.seconds > 0].astype(np.float64)
    full = input_seconds(frames)
    return {
        "mean": measured.mean,
        "std": measured.std,
        "bins": measured.moments.count,
        "padded": padded,
        "frames": frames,
        "clips": len(seconds),
        "unreadable": len(measured.unreadable),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "lengths": lengths(seconds),
        "cut": int((seconds >= full + SHIFT).sum()),
        "padding": round(float(np.maximum(1 - seconds / full, 0).mean()), 4),
    }


def input_seconds(frames: int) -> float:
    """Length of sound that fills the frames of a model's input."""
    from peas.data.clips import FRAME_SECONDS

    return (frames - 1) * SHIFT + FRAME_SECONDS


def _splits(module: ClipDataModule) -> Iterator[tuple[str, dict[str, Any]]]:
    """Number of clips of each split, and of each class in it."""
    from peas.data.module import SPLITS

    labels = module.labels
    for split in SPLITS:
        try:
            table = module.clips(split)
        except DataError as error:
            yield split, {"clips": 0, "classes": {}, "message": str(error)}
            continue
        counts = table.targets.counts(len(labels)).tolist()
        classes = {name: count for name, count in zip(labels, counts, strict=True) if count}
        yield split, {"clips": len(table), "classes": classes}


def _text(result: dict[str, Any]) -> Iterator[str]:
    from peas.data.checks.report import columns, spread

    lengths = ", ".join(f"{name} {value:.2f}" for name, value in result["lengths"].items())
    yield f"{result['clips']:,} training clips, {result['hours']:.2f} h; seconds: {lengths}"
    yield (
        f"{result['frames']} frames of input, {input_seconds(result['frames']):.2f} s: "
        f"{result['cut']:,} clips are cut, and {result['padding']:.1%} is padding"
    )
    yield ""
    rows = [("split", "clips", "classes", "clips of a class")]
    for name, split in result["splits"].items():
        counts = list(split["classes"].values())
        rows.append((name, f"{split['clips']:,}", str(len(counts)), spread(counts)))
    yield from columns(rows)
    for name, split in result["splits"].items():
        if "message" in split:
            yield f"{name}: {split['message']}"
    yield ""
    padding = "included" if result["padded"] else "left out"
    yield f"for data.init_args of a config (every bin of the log-mel, padding {padding}):"
    yield f"mean: {result['mean']:.7g}"
    yield f"std: {result['std']:.7g}"


def plot(seconds: NDArray[np.floating[Any]], input_length: float, title: str) -> Figure:
    """Histogram of lengths, with the length of the model's input.

    The number of clips is on a logarithmic scale: most sets have one common length, and the few
    other clips matter.

    Args:
        seconds: `[N]` lengths of clips, at least one.
        input_length: Seconds that fill the model's input.
        title: Of the plot.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # From 0, so that clips of one length are one bar and not a range of rounding errors.
    top = 1.05 * max(float(seconds.max()), input_length)
    axes.hist(seconds, bins=60, range=(0.0, top), color="#2f6fd0", log=True)
    axes.axvline(
        input_length, color="#d1495b", lw=1.5, label=f"model's input, {input_length:.2f} s"
    )
    median = float(np.median(seconds))
    axes.axvline(median, color="black", lw=1, ls="--", label=f"median, {median:.2f} s")
    axes.set_xlim(0, top)
    axes.set_ylim(bottom=0.5)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("seconds")
    axes.set_ylabel("clips")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.legend(frameon=False, fontsize=9)
    return figure
