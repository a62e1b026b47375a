"""`peas data stats SET ROOT`: mean and std of the log-mel, class counts, lengths."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from peas import __version__
from peas.cli.data.bar import Bar
from peas.cli.data.sets import SetParser
from peas.data.checks.report import columns, lengths, spread
from peas.data.clips import FRAME_SECONDS
from peas.data.module import SPLITS, ClipDataModule
from peas.data.normalisation import Measured, measure
from peas.data.workers import default_workers
from peas.errors import AudioError, DataError, say
from peas.utils.text import some

SHIFT = 0.01
"""Seconds from one frame to the next."""


def parser(argv: list[str]) -> SetParser:
    """Arguments of the command."""
    p = SetParser(
        "stats",
        "Mean and std of the raw log-mel over the training split, for the normalisation of the "
        "model's input, class counts of every split, and lengths.",
        argv,
    )
    add = p.parser.add_argument
    add("--out", metavar="DIR", help="folder for stats.json and lengths.png; default: print only")
    add("--workers", type=int, default=default_workers(), help="processes; 0 = this one alone")
    add(
        "--padded",
        action="store_true",
        help="count the zeros that fill shorter clips up to the model's input as well, as the "
        "official numbers do",
    )
    return p


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: The command line after `peas data stats`.

    Raises:
        ConfigError: The command line is wrong.
        DataError: The set is missing or contradicts itself, or a process was ended from outside.
        AudioError: Clips cannot be read; the statistics of the others are given first.
    """
    options, module = parser(argv).parse()
    clips = module.clips("train")
    out = None if options.out is None else Path(options.out).expanduser()
    if out is not None:
        # Before the work, which may take hours.
        out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    try:
        with Bar() as bar:
            show = bar.of(options.set)
            found = measure(
                clips,
                module.frames,
                padded=options.padded,
                workers=options.workers,
                on_error="skip",
                progress=lambda done, total: show("decoding", done, total),
            )
    except KeyboardInterrupt:
        say("\nstopped: nothing was written", sys.stderr)
        return 130
    seconds = time.monotonic() - begun
    command = shlex.join(["peas", "data", "stats", *argv])
    facts = {
        "peas": __version__,
        "command": command,
        "set": options.set,
        "root": str(module.root),
        **_statistics(found, module.frames, options.padded),
        "splits": dict(_splits(module)),
    }
    say("\n".join([command, "", *_text(facts)]))
    say(
        f"\n{len(clips):,} clips in {seconds:.1f} s, {len(clips) / max(seconds, 1e-9):.0f} a second"
    )
    if out is not None:
        _write(facts, found, out)
    if found.unreadable:
        raise AudioError(
            f"{len(found.unreadable)} of {len(clips)} training clips cannot be read and were left "
            f"out; peas data verify lists them all: {some(found.unreadable.values())}"
        )
    return 0


def _statistics(found: Measured, frames: int, padded: bool) -> dict[str, Any]:
    """Facts about the clips that could be read."""
    seconds = found.seconds[found.seconds > 0].astype(np.float64)
    whole = input_seconds(frames)
    return {
        "mean": found.mean,
        "std": found.std,
        "cells": found.moments.count,
        "padded": padded,
        "frames": frames,
        "clips": len(seconds),
        "unreadable": len(found.unreadable),
        "hours": round(float(seconds.sum()) / 3600, 4),
        "lengths": lengths(seconds),
        "cut": int((seconds >= whole + SHIFT).sum()),
        "padding": round(float(np.maximum(1 - seconds / whole, 0).mean()), 4),
    }


def input_seconds(frames: int) -> float:
    """Length of sound that fills the frames of a model's input."""
    return (frames - 1) * SHIFT + FRAME_SECONDS


def _splits(module: ClipDataModule) -> Iterator[tuple[str, dict[str, Any]]]:
    """Number of clips of each split, and of each class in it."""
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


def _text(facts: dict[str, Any]) -> Iterator[str]:
    spread_of = ", ".join(f"{name} {value:.2f}" for name, value in facts["lengths"].items())
    yield f"{facts['clips']:,} training clips, {facts['hours']:.2f} h; seconds: {spread_of}"
    yield (
        f"{facts['frames']} frames of input, {input_seconds(facts['frames']):.2f} s: "
        f"{facts['cut']:,} clips lose their end, and {facts['padding']:.1%} is padding"
    )
    yield ""
    rows = [("split", "clips", "classes", "clips of a class")]
    for name, split in facts["splits"].items():
        counts = list(split["classes"].values())
        rows.append((name, f"{split['clips']:,}", str(len(counts)), spread(counts)))
    yield from columns(rows)
    for name, split in facts["splits"].items():
        if "message" in split:
            yield f"{name}: {split['message']}"
    yield ""
    yield (
        "for data.init_args of a config (every cell of the log-mel, padding "
        f"{'counted' if facts['padded'] else 'left out'}):"
    )
    yield f"mean: {facts['mean']:.7g}"
    yield f"std: {facts['std']:.7g}"


def _write(facts: dict[str, Any], found: Measured, out: Path) -> None:
    from peas.cli.data.lengths_figure import draw

    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (out / "stats.json").write_text(text + "\n", encoding="utf-8")
    seconds = found.seconds[found.seconds > 0]
    title = f"{facts['set']} {facts['root']}: {len(seconds):,} training clips"
    draw(seconds, input_seconds(facts["frames"]), title).savefig(out / "lengths.png", dpi=110)
    say(f"more: {out / 'stats.json'}, {out / 'lengths.png'}")
