"""Ranking metrics against scikit-learn, which the official code calls class by class."""

import math

import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from peas.evaluation.metrics import ClipScores, class_scores, d_prime


def scores_and_targets(seed: int, levels: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """300 clips, 12 classes: class 3 nobody has, class 5 everybody."""
    source = torch.Generator().manual_seed(seed)
    scores = torch.randn(300, 12, generator=source)
    if levels:
        scores = (scores * levels).round() / levels
    positives = (torch.rand(300, 12, generator=source) < 0.15).float()
    positives[:, 3], positives[:, 5] = 0, 1
    return scores, positives


# Few levels make nearly every score a tie; AudioSet's scores lie below the bins of binned metrics.
@pytest.mark.parametrize(("levels", "scale"), [(None, 1.0), (None, 1e-6), (2, 1.0), (1, 1.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_class_scores_equal_scikit_learns(levels: int | None, scale: float, seed: int) -> None:
    scores, positives = scores_and_targets(seed, levels)
    got = class_scores(scores * scale, positives)
    for c in range(12):
        if c == 3:
            assert math.isnan(got.average_precision[c])
        else:
            wanted = average_precision_score(positives[:, c], scores[:, c] * scale)
            assert abs(float(got.average_precision[c]) - wanted) < 1e-9
        if c in (3, 5):
            assert math.isnan(got.auc[c])
        else:
            wanted = roc_auc_score(positives[:, c], scores[:, c] * scale)
            assert abs(float(got.auc[c]) - wanted) < 1e-9


def test_constant_scores_know_nothing() -> None:
    positives = torch.tensor([[1.0], [0], [0], [1], [0]])
    got = class_scores(torch.zeros(5, 1), positives)
    assert float(got.average_precision) == pytest.approx(0.4, abs=1e-12)
    assert float(got.auc) == pytest.approx(0.5, abs=1e-12)


def test_d_prime() -> None:
    for auc in (0.5, 0.73, 0.999, 0.02):
        assert d_prime(auc) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-9)


@pytest.mark.parametrize("multi_label", [False, True])
def test_metric_sees_all_batches_at_once(multi_label: bool) -> None:
    logits, targets = scores_and_targets(0, 4)
    if not multi_label:
        targets = torch.nn.functional.one_hot(torch.arange(300) % 11, 12).float()
    metric = ClipScores(multi_label)
    for start in range(0, 300, 64):
        metric.update(logits[start : start + 64], targets[start : start + 64])
    got = metric.compute()
    present = [c for c in range(12) if targets[:, c].any()]
    mean_ap = sum(average_precision_score(targets[:, c], logits[:, c]) for c in present)
    assert float(got["mAP"]) == pytest.approx(mean_ap / len(present), abs=1e-9)
    both = [c for c in present if not targets[:, c].all()]
    auc = sum(roc_auc_score(targets[:, c], logits[:, c]) for c in both) / len(both)
    assert float(got["AUC"]) == pytest.approx(auc, abs=1e-9)
    assert float(got["d_prime"]) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-6)
    assert (got["classes"], got["clips"]) == (11, 300)
    assert ("accuracy" in got) == (not multi_label)
    if not multi_label:
        hits = sum(
            int(row.argmax()) == int(t.argmax()) for row, t in zip(logits, targets, strict=True)
        )
        assert float(got["accuracy"]) == pytest.approx(hits / 300, abs=1e-12)
    metric.reset()
    metric.update(logits[:2], targets[:2])
    assert metric.compute()["clips"] == 2
