"""Scores of each class: the table, its means, and what is said of it."""

import csv
import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import average_precision_score

from peas.callbacks.outputs import class_rows, summary, write_class_table
from peas.evaluation.metrics import ClipScores

LABELS = [f"class {number}" for number in range(8)]


def _scores() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 8, generator=source)
    targets = (torch.rand(200, 8, generator=source) < 0.2).float()
    targets[:, 5] = 0
    logits[:, 2] += 3 * targets[:, 2]
    return logits, targets


def test_table_agrees_with_scikit_learn_and_with_the_logged_mean(tmp_path: Path) -> None:
    logits, targets = _scores()
    rows = class_rows(logits, targets, LABELS)
    for row in rows:
        if row.index != 5:
            wanted = average_precision_score(targets[:, row.index], logits[:, row.index])
            assert row.average_precision == pytest.approx(wanted, abs=1e-9)
            hits = (logits.argmax(1) == row.index) & (targets[:, row.index] > 0)
            assert row.recall == pytest.approx(float(hits.sum() / targets[:, row.index].sum()))
    assert rows[5].clips == 0
    assert math.isnan(rows[5].average_precision)
    write_class_table(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [row["label"] for row in read] == LABELS
    assert read[5]["average_precision"] == read[5]["recall"] == ""
    written = [float(row["average_precision"]) for row in read if row["average_precision"]]
    metric = ClipScores(multi_label=True)
    metric.update(logits, targets)
    assert sum(written) / 7 == pytest.approx(float(metric.compute()["mAP"]), abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_summary_names_counts_empty_classes_best_and_worst() -> None:
    logits, targets = _scores()
    rows = class_rows(logits, targets, LABELS)
    text = summary(rows, 200)
    assert "200 clips; 7 of 8 classes" in text
    assert "clips: class 5" in text
    best, worst = text.splitlines()[-2:]
    assert best.split("precision:")[1].strip().startswith("class 2 ")
    known = [row for row in rows if row.clips]
    lowest = min(known, key=lambda row: row.average_precision)
    assert worst.split("precision:")[1].strip().startswith(f"{lowest.label} ")
