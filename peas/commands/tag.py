"""`peas tag CLIP... --checkpoint C`: labels for sound files, from a checkpoint alone."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peas import audio
from peas.errors import CheckpointError, PeasError
from peas.models.checkpoints import read_state
from peas.tasks.classification import Classification


class Window(NamedTuple):
    """Scores of one stretch of a file."""

    start: float
    """Seconds."""
    end: float
    scores: Tensor
    """`[C]` probabilities."""


def parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    p = argparse.ArgumentParser(prog="peas tag", description=__doc__)
    p.add_argument("clips", nargs="+", metavar="CLIP", help="sound files of any rate and length")
    p.add_argument(
        "--checkpoint", required=True, help="best.ckpt or last.ckpt of a fine-tuning run"
    )
    p.add_argument("--top", type=int, default=5, help="labels per clip (default 5)")
    p.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    p.add_argument("--per-window", action="store_true", help="also the scores of each window")
    return p


def load(checkpoint: str | Path) -> Classification:
    """The task of a checkpoint, on the fastest device, ready to score.

    Raises:
        CheckpointError: The file is no checkpoint of a fine-tuning run.
    """
    hparams = read_state(Path(checkpoint)).get("hyper_parameters") or {}
    if not hparams.get("labels"):
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of a fine-tuning run (it names no labels). Give "
            "RUN/checkpoints/best.ckpt, or make one from an official file with `peas import`"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    task = Classification.load_from_checkpoint(checkpoint, map_location=device, weights_only=True)
    return task.eval()


def windows(samples: int, length: int) -> list[int]:
    """Starts of windows over a file: end to end, the last one moved to end with the file."""
    if samples <= length:
        return [0]
    starts = list(range(0, samples - length + 1, length))
    if starts[-1] + length < samples:
        starts.append(samples - length)
    return starts


@torch.no_grad()
def score(task: Classification, waveform: Tensor) -> list[Window]:
    """Scores of every window of a file.

    Args:
        task: From `load`.
        waveform: `[S]` at the front end's rate.
    """
    front = task.front_end
    length = (task.hparams["frames"] - 1) * front.rate // 100 + front.rate * 25 // 1000
    found = []
    for start in windows(len(waveform), length):
        part = waveform[start : start + length].to(task.device)
        log_mel = front(part[None]).log_mel
        logits = task(log_mel).float()[0].cpu()
        several = task.hparams["loss"] == "bce"
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
) -> None:
    mean = torch.stack([part.scores for part in parts]).mean(dim=0)
    result: dict[str, Any] = {"clip": clip, "seconds": round(seconds, 3)}
    result["tags"] = _top(mean, labels, args.top)
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
        print(json.dumps(result))
        return
    print(f"{clip}  ({seconds:.2f} s)")
    rows = [("", result["tags"])]
    rows += [(f"{w['start']:.2f}-{w['end']:.2f} s", w["tags"]) for w in result.get("windows", [])]
    for name, tags in rows:
        if name:
            print(f"  {name}")
        for tag in tags:
            print(f"    {tag['score']:7.2%}  {tag['label']}")


def main(argv: list[str]) -> None:
    """Runs the command; files that cannot be read are named at the end."""
    args = parser().parse_args(argv)
    task = load(args.checkpoint)
    failed: list[str] = []
    for clip in args.clips:
        try:
            waveform = audio.load(clip, task.front_end.rate)
        except PeasError as error:
            failed.append(str(error))
            continue
        seconds = len(waveform) / task.front_end.rate
        _show(clip, seconds, score(task, waveform), args, task.hparams["labels"])
    sys.stdout.flush()
    if failed:
        raise PeasError("\n".join(failed))
