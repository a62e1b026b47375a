"""`peas tag`: labels for sound files, from a checkpoint alone."""

from __future__ import annotations

import json as json_lines
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peas.errors import AudioError, CheckpointError, PeasError, UsageError, printable, say

if TYPE_CHECKING:
    from torch import Tensor

    from peas.tasks.classification import Classification

_CLASSES = (None, "peas.tasks.Classification", "peas.tasks.classification.Classification")


class Window(NamedTuple):
    """Scores of one window of a file."""

    start: float
    """Seconds."""
    end: float
    scores: Tensor
    """`[C]` probabilities."""


def tag(
    clips: list[str],
    *,
    checkpoint: str,
    top: int = 5,
    json: bool = False,
    per_window: bool = False,
    allow_module: list[str] | None = None,
) -> None:
    """Label sound files, from a checkpoint alone.

    Args:
        clips: Sound files of any rate and length.
        checkpoint: best.ckpt or last.ckpt of a fine-tuning run.
        top: Labels per clip.
        json: One JSON object a line instead of text.
        per_window: Also the scores of each window of a clip that is longer than the model's input,
            which is scored by its beginning, as in `peas test`.
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
    task = load(checkpoint, modules=allow_module or [])
    failed: list[str] = []
    for clip in clips:
        try:
            waveform = _read(clip, task)
        except PeasError as error:
            failed.append(str(error))
            continue
        except (OSError, MemoryError, ValueError, RuntimeError) as error:
            failed.append(f"{clip}: cannot be read ({error}); leave it out")
            continue
        windows = score(task, waveform, every=per_window)
        if not all(bool(window.scores.isfinite().all()) for window in windows):
            failed.append(
                f"{clip}: the model of {checkpoint} gives non-finite scores; take an earlier "
                "checkpoint"
            )
            continue
        seconds = len(waveform) / task.front_end.rate
        result = _result(clip, seconds, windows, task.hparams["labels"], top, per_window)
        _print(json_lines.dumps(result) if json else _text(result))
    if failed:
        raise PeasError("\n".join(failed))


def load(checkpoint: str | Path, *, modules: Sequence[str] = ()) -> Classification:
    """The task of a checkpoint, on the fastest device, ready to score.

    Args:
        checkpoint: The file.
        modules: Modules besides `peas` whose parts it may name, each with those below it.

    Raises:
        CheckpointError: The file is not of a fine-tuning run, or names a part that is not allowed.
    """
    import torch

    from peas.models.weights import read_state
    from peas.models.weights.checking import AGAIN, check_run
    from peas.tasks.classification import Classification

    path = str(checkpoint)
    content = read_state(Path(checkpoint))
    check_run(content, path)
    settings = content.get("hyper_parameters") or {}
    named = settings.get("_class_path")
    if not settings.get("labels") or "state_dict" not in content or named not in _CLASSES:
        why = f"it is of {named}" if named not in _CLASSES else "it names no labels"
        raise CheckpointError(
            f"{path}: not a checkpoint of a fine-tuning run ({why}). Give "
            "RUN/checkpoints/best.ckpt of one, fine-tune it (`--model.init_args.pretrained "
            f"{path}`), or make one from an official file with `peas import`"
        )
    if "model.head.weight" not in content["state_dict"]:
        raise CheckpointError(f"{path}: state_dict: model.head.weight is missing; {AGAIN}")
    task = Classification.restore(content, path, modules=modules)
    return task.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def window_starts(samples: int, length: int) -> list[int]:
    """Starts of windows over a file: end to end, the last one moved to end with the file."""
    if samples <= length:
        return [0]
    starts = list(range(0, samples - length + 1, length))
    if starts[-1] + length < samples:
        starts.append(samples - length)
    return starts


def score(task: Classification, waveform: Tensor, *, every: bool = True) -> list[Window]:
    """Scores of the windows of a file.

    The first one is scored as `peas test` scores the file: the front end gets all of it, to
    subtract its mean, and keeps the model's frames.

    Args:
        task: From `load`.
        waveform: `[S]` at the front end's rate.
        every: All windows; False = the first alone.
    """
    import torch

    front_end = task.front_end
    length = front_end.samples()
    windows = []
    for start in window_starts(len(waveform), length)[: None if every else 1]:
        part = waveform[start : start + length]
        with torch.no_grad():
            sound = (part if start else waveform).to(task.device)
            logits = task(front_end(sound[None]).log_mel).float()[0].cpu()
        scores = logits.sigmoid() if task.hparams["loss"] == "bce" else logits.softmax(dim=-1)
        end = start + len(part)
        windows.append(Window(start / front_end.rate, end / front_end.rate, scores))
    return windows


def _result(
    clip: str,
    seconds: float,
    windows: list[Window],
    labels: list[str],
    top: int,
    per_window: bool,
) -> dict[str, Any]:
    def tags(scores: Tensor) -> list[dict[str, Any]]:
        values, indices = scores.topk(min(top, len(labels)))
        pairs = zip(values.tolist(), indices.tolist(), strict=True)
        return [{"label": labels[i], "score": round(v, 6)} for v, i in pairs]

    result: dict[str, Any] = {
        "clip": clip,
        "seconds": round(seconds, 3),
        "scored": round(windows[0].end, 3),
        "tags": tags(windows[0].scores),
    }
    if per_window:
        result["windows"] = [
            {"start": round(w.start, 3), "end": round(w.end, 3), "tags": tags(w.scores)}
            for w in windows
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


def _read(clip: str, task: Classification) -> Tensor:
    """Waveform of a clip as in the model's training, `[S]`."""
    from peas.audio import decode

    path = Path(clip)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise AudioError(f"{clip}: is {kind}, not a sound file; give the path of a file")
    source: Path | bytes = path
    try:
        clip.encode()
    except UnicodeEncodeError:
        # The decoder takes only names in UTF-8.
        source = path.read_bytes() if path.exists() else path
    return decode.load(source, task.front_end.rate, task.front_end.channels or "mean", name=clip)


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
