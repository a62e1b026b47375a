"""Scores of each class as a table, and the best and worst of them in a few lines."""

import csv
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from peas.evaluation.metrics import class_scores
from peas.utils.text import some

_SHOWN = 3


@dataclass(frozen=True)
class ClassRow:
    """One class. A score is NaN where no clip (or, for the AUC, every clip) is of the class.

    Attributes:
        index: Number of the class.
        label: Its name.
        clips: Clips that are of the class.
        average_precision: Average precision.
        auc: Area under the ROC curve.
        recall: Share of its clips for which it has the highest score of all classes.
    """

    index: int
    label: str
    clips: int
    average_precision: float
    auc: float
    recall: float


def class_rows(logits: Tensor, targets: Tensor, labels: list[str]) -> list[ClassRow]:
    """Scores of each class.

    Args:
        logits: `[N, C]` float32.
        targets: `[N, C]`, non-zero where the clip is of the class.
        labels: Names of the classes.
    """
    scores = class_scores(logits, targets)
    positives = targets > 0
    top = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    clips = positives.sum(dim=0)
    columns = (
        clips.tolist(),
        scores.average_precision.tolist(),
        scores.auc.tolist(),
        ((positives & top).sum(dim=0) / clips).tolist(),
    )
    return [
        ClassRow(index, label, *values)
        for index, (label, *values) in enumerate(zip(labels, *columns, strict=True))
    ]


def write_class_table(path: Path, rows: list[ClassRow]) -> None:
    """Write the table as CSV, whole or not at all; a score that does not exist is left empty."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(ClassRow)])
        for row in rows:
            facts, scores = astuple(row)[:3], astuple(row)[3:]
            cells = ("" if value != value else f"{value:.6f}" for value in scores)
            writer.writerow([*facts, *cells])
    os.replace(partial, path)


def summary(rows: list[ClassRow], clips: int) -> str:
    """How many clips and classes were scored, the best and the worst classes.

    Args:
        rows: The table.
        clips: Number of clips scored.
    """
    known = sorted(
        (row for row in rows if row.clips), key=lambda row: row.average_precision, reverse=True
    )
    empty = [row.label for row in rows if not row.clips]
    lines = [f"{clips:,} clips, {len(known)} of {len(rows)} classes have one"]
    if empty:
        lines.append(f"left out of the means, without a clip: {some(empty, 5)}")
    lines.append("best by average precision:  " + _named(known[:_SHOWN]))
    lines.append("worst by average precision: " + _named(known[: -_SHOWN - 1 : -1]))
    return "\n".join(lines)


def _named(rows: list[ClassRow]) -> str:
    return ", ".join(f"{row.label} {row.average_precision:.3f}" for row in rows)
