"""`peas tag CLIP... --checkpoint C`: labels for sound files, from a checkpoint alone."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peas.audio import decode as audio
from peas.cli.arguments import Arguments
from peas.errors import AudioError, CheckpointError, PeasError, printable, say
from peas.models.weights import read_state
from peas.models.weights.checking import AGAIN, check_run
from peas.parts import is_dotted
from peas.tasks.classification import Classification

_CLASSES = (None, "peas.tasks.Classification", "peas.tasks.classification.Classification")


class Window(NamedTuple):
    """Scores of one stretch of a file."""

    start: float
    """Seconds."""
    end: float
    scores: Tensor
    """`[C]` probabilities."""


def parser() -> Arguments:
    """Arguments of the command."""
    p = Arguments(prog="peas tag", description=__doc__)
    p.add_argument("clips", nargs="+", metavar="CLIP", help="sound files of any rate and length")
    p.add_argument(
        "--checkpoint", required=True, help="best.ckpt or last.ckpt of a fine-tuning run"
    )
    p.add_argument("--top", type=_count, default=5, help="labels per clip, at least 1 (default 5)")
    p.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    p.add_argument(
        "--per-window",
        action="store_true",
        help="also the scores of each window of a clip that is longer than the model's input, "
        "which is scored by its beginning, as in `peas test`",
    )
    p.add_argument(
        "--allow-module",
        action="append",
        default=[],
        type=_module,
        metavar="NAME",
        help="module whose parts the checkpoint may name, with those below it, besides `peas`; "
        "its code is executed. May be given several times",
    )
    return p


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of labels: give 1 or more")
    return int(text)


def _module(text: str) -> str:
    if not is_dotted(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a module: give PACKAGE.MODULE")
    return text


def load(checkpoint: str | Path, *, modules: Sequence[str] = ()) -> Classification:
    """The task of a checkpoint, on the fastest device, ready to score.

    Args:
        checkpoint: The file.
        modules: Modules besides `peas` whose parts it may name, each with those below it.

    Raises:
        CheckpointError: The file is no checkpoint of a fine-tuning run, or names a part that may
            not be made.
    """
    where = str(checkpoint)
    content = read_state(Path(checkpoint))
    check_run(content, where)
    settings = content.get("hyper_parameters") or {}
    named = settings.get("_class_path")
    if not settings.get("labels") or "state_dict" not in content or named not in _CLASSES:
        why = f"it is of {named}" if named not in _CLASSES else "it names no labels"
        raise CheckpointError(
            f"{where}: not a checkpoint of a fine-tuning run ({why}). Give "
            "RUN/checkpoints/best.ckpt of one, fine-tune it (`--model.init_args.pretrained "
            f"{where}`), or make one from an official file with `peas import`"
        )
    if "model.head.weight" not in content["state_dict"]:
        raise CheckpointError(f"{where}: state_dict: model.head.weight is missing; {AGAIN}")
    task = Classification.restore(content, where, modules=modules)
    return task.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def windows(samples: int, length: int) -> list[int]:
    """Starts of windows over a file: end to end, the last one moved to end with the file."""
    if samples <= length:
        return [0]
    starts = list(range(0, samples - length + 1, length))
    if starts[-1] + length < samples:
        starts.append(samples - length)
    return starts


@torch.no_grad()
def score(task: Classification, waveform: Tensor, *, every: bool = True) -> list[Window]:
    """Scores of the windows of a file.

    The first one is scored as `peas test` scores the file: the front end hears all of it, whose
    mean it takes away, and keeps the model's frames.

    Args:
        task: From `load`.
        waveform: `[S]` at the front end's rate.
        every: All windows; False = the first alone.
    """
    front = task.front_end
    length = front.samples()
    several = task.hparams["loss"] == "bce"
    found = []
    for start in windows(len(waveform), length)[: None if every else 1]:
        part = waveform[start : start + length]
        heard = (part if start else waveform).to(task.device)
        logits = task(front(heard[None]).log_mel).float()[0].cpu()
        scores = logits.sigmoid() if several else logits.softmax(dim=-1)
        found.append(Window(start / front.rate, (start + len(part)) / front.rate, scores))
    return found


def _top(scores: Tensor, labels: list[str], count: int) -> list[dict[str, Any]]:
    values, indices = scores.topk(min(count, len(labels)))
    return [
        {"label": labels[i], "score": round(v, 6)}
        for v, i in zip(values.tolist(), indices.tolist(), strict=True)
    ]


def _show(
    clip: str, seconds: float, parts: list[Window], args: argparse.Namespace, labels: list[str]
) -> list[str]:
    """Lines about a clip."""
    first = parts[0]
    result: dict[str, Any] = {"clip": clip, "seconds": round(seconds, 3)}
    result["scored"] = round(first.end, 3)
    result["tags"] = _top(first.scores, labels, args.top)
    if args.per_window:
        result["windows"] = [
            {
                "start": round(p.start, 3),
                "end": round(p.end, 3),
                "tags": _top(p.scores, labels, args.top),
            }
            for p in parts
        ]
    if args.json:
        return [json.dumps(result)]
    part = f", scored by its first {first.end:.2f} s" if first.end < seconds else ""
    lines = [f"{printable(clip)}  ({seconds:.2f} s{part})"]
    rows = [("", result["tags"])]
    rows += [(f"{w['start']:.2f}-{w['end']:.2f} s", w["tags"]) for w in result.get("windows", [])]
    for name, tags in rows:
        if name:
            lines.append(f"  {name}")
        lines += [f"    {tag['score']:7.2%}  {printable(tag['label'])}" for tag in tags]
    return lines


def _read(clip: str, task: Classification) -> Tensor:
    """Waveform of a clip as the model's training heard it, `[S]`."""
    path = Path(clip)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise AudioError(f"{clip}: is {kind} and no sound file; give the path of a file")
    source: Path | bytes = path
    try:
        clip.encode()
    except UnicodeEncodeError:
        # The decoder takes no name that is not UTF-8.
        source = path.read_bytes() if path.exists() else path
    return audio.load(source, task.front_end.rate, task.front_end.channels or "mean", name=clip)


def _print(lines: list[str]) -> None:
    """Prints at once, so that what is told about a file stands before its successor's fault.

    Raises:
        PeasError: Standard output takes nothing.
    """
    try:
        say("\n".join(lines))
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would try again, and complain, when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PeasError(
            f"standard output: cannot be written ({error.strerror}); make room, or write elsewhere"
        ) from error


def main(argv: list[str]) -> None:
    """Runs the command; files that cannot be read are named at the end."""
    args = parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        # A label or a name may hold what the terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    task = load(args.checkpoint, modules=args.allow_module)
    failed: list[str] = []
    for clip in args.clips:
        try:
            waveform = _read(clip, task)
        except PeasError as error:
            failed.append(str(error))
            continue
        except (OSError, MemoryError, ValueError, RuntimeError) as error:
            failed.append(f"{clip}: cannot be read ({error}); leave it out")
            continue
        seconds = len(waveform) / task.front_end.rate
        parts = score(task, waveform, every=args.per_window)
        if not all(bool(part.scores.isfinite().all()) for part in parts):
            failed.append(
                f"{clip}: the model of {args.checkpoint} gives scores that are no numbers; take "
                "an earlier checkpoint"
            )
            continue
        _print(_show(clip, seconds, parts, args, task.hparams["labels"]))
    if failed:
        raise PeasError("\n".join(failed))
