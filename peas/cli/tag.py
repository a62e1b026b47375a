"""`peas tag`: labels for sound files, from a checkpoint alone."""

from __future__ import annotations

import json as json_lines
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peas.errors import CheckpointError, PeasError, UsageError, printable, say

if TYPE_CHECKING:
    from torch import Tensor

    from peas.inference.model import AudioModel, WindowScores


def tag(
    clips: list[str],
    *,
    checkpoint: str,
    top: int = 5,
    json: bool = False,
    overlap: float = 0.0,
    long: Literal["mean", "first"] = "mean",
    per_window: bool = False,
    allow_module: list[str] | None = None,
) -> None:
    """Label sound files, from a checkpoint alone.

    Args:
        clips: Sound files of any rate and length.
        checkpoint: best.ckpt or last.ckpt of a fine-tuning run, or whatever else `peas.load` takes.
        top: Labels per clip.
        json: One JSON object a line instead of text.
        overlap: Share of a window of a long clip that the next one repeats.
        long: A clip that is longer than the model's input is scored by the mean over its windows,
            or by its beginning, as in `peas test`.
        per_window: Also the scores of each window.
        allow_module: Module whose parts the checkpoint may name, with those below it, besides
            `peas`; its code is executed. May be repeated.

    Raises:
        PeasError: Files that cannot be read; the labels of the others are printed first.
    """
    from peas.parts import is_dotted

    if not 1 <= top <= 10**6:
        raise UsageError(f"`--top` is {top}: give 1 or more")
    for module in allow_module or []:
        if not is_dotted(module):
            raise UsageError(f"`--allow_module` is {module!r}: give PACKAGE.MODULE")
    if not 0 <= overlap < 1:
        raise UsageError(f"`--overlap` is {overlap}: give a share of a window, from 0 to below 1")
    from peas import load

    model = load(checkpoint, modules=allow_module or [])
    if not model.labels:
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of a fine-tuning run (it has no classes). Give "
            "RUN/checkpoints/best.ckpt of one, or fine-tune it (`--model.init_args.pretrained "
            f"{checkpoint}`)"
        )
    failed: list[str] = []
    taken: list[tuple[str, float]] = []

    def waveforms() -> Iterator[Tensor]:
        for clip, waveform in _sounds(clips, model, failed):
            taken.append((clip, len(waveform) / model.sample_rate))
            yield waveform

    for number, windows in enumerate(model.score_windows(waveforms(), overlap=overlap)):
        clip, seconds = taken[number]
        if not bool(windows.scores.isfinite().all()):
            failed.append(
                f"{clip}: the model of {checkpoint} gives non-finite scores; take an earlier "
                "checkpoint"
            )
            continue
        result = _result(clip, seconds, windows, model, long, top, per_window)
        _print(json_lines.dumps(result) if json else _text(result))
    if failed:
        raise PeasError("\n".join(failed))


def _sounds(
    clips: Sequence[str], model: AudioModel, failed: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Names and waveforms of the files; `failed` gets why one cannot be read."""
    from peas.inference.sound import waveforms

    for clip in clips:
        try:
            yield clip, next(waveforms(clip, None, model.front_end))
        except PeasError as error:
            failed.append(str(error))
        except (OSError, MemoryError, ValueError, RuntimeError) as error:
            failed.append(f"{clip}: cannot be read ({error}); leave it out")


def _result(
    clip: str,
    seconds: float,
    windows: WindowScores,
    model: AudioModel,
    long: Literal["mean", "first"],
    top: int,
    per_window: bool,
) -> dict[str, Any]:
    def tags(scores: Tensor) -> list[dict[str, Any]]:
        values, indices = scores.topk(min(top, len(model.labels)))
        pairs = zip(values.tolist(), indices.tolist(), strict=True)
        return [{"label": model.labels[i], "score": round(v, 6)} for v, i in pairs]

    starts = [start / 1000 for start in windows.start.tolist()]
    ends = [min(start + model.window_ms / 1000, seconds) for start in starts]
    result: dict[str, Any] = {
        "clip": clip,
        "seconds": round(seconds, 3),
        "scored": round(ends[0] if long == "first" else seconds, 3),
        "tags": tags(windows.of_clip(long)),
    }
    if per_window:
        result["windows"] = [
            {"start": round(start, 3), "end": round(end, 3), "tags": tags(scores)}
            for start, end, scores in zip(starts, ends, windows.scores, strict=True)
        ]
    return result


def _text(result: dict[str, Any]) -> str:
    cut = result["scored"] < result["seconds"]
    scored = f", scored by its first {result['scored']:.2f} s" if cut else ""
    lines = [f"{printable(result['clip'])}  ({result['seconds']:.2f} s{scored})"]
    for window in [result, *result.get("windows", [])]:
        if "start" in window:
            lines.append(f"  {window['start']:.2f}-{window['end']:.2f} s")
        lines += [f"    {t['score']:7.2%}  {printable(t['label'])}" for t in window["tags"]]
    return "\n".join(lines)


def _print(text: str) -> None:
    """Prints at once, so that a file's labels come before its successor's fault.

    Raises:
        PeasError: Standard output cannot be written.
    """
    try:
        say(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would try again, and complain, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PeasError(
            f"standard output: cannot be written ({error.strerror}); make room, or write elsewhere"
        ) from error
