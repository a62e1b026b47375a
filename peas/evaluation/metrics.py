"""Exact metrics of a data set: top-1 accuracy, mAP, AUC and d-prime.

All are computed once from the scores of every clip, in float64 and never binned: on scores as low
as AudioSet's, binned average precision is off by tenths. N clips, C classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class ClassScores(NamedTuple):
    """Ranking quality of each class; NaN where the set holds no clip (or only clips) of it."""

    average_precision: Tensor
    """`[C]` float64."""
    auc: Tensor
    """`[C]` float64."""


def class_scores(scores: Tensor, positives: Tensor) -> ClassScores:
    """Average precision and area under the ROC curve of each class, ties handled exactly.

    Equal to scikit-learn's `average_precision_score` and `roc_auc_score`, which the official
    SSAST code calls class by class.

    Args:
        scores: `[N, C]`, higher means more likely.
        positives: `[N, C]`, non-zero where the clip belongs to the class.
    """
    ordered, order = torch.sort(scores, dim=0, descending=True)
    hit = torch.gather((positives > 0).double(), 0, order)
    n, classes = hit.shape
    rank = torch.arange(1, n + 1, device=hit.device, dtype=torch.float64).unsqueeze(1)
    # Clips of equal score share a threshold: each uses the counts at the end of its group.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    row = torch.arange(n, device=hit.device).unsqueeze(1).expand(n, classes)
    end = torch.where(last, row, n).flip(0).cummin(dim=0).values.flip(0)
    true_positives = torch.gather(hit.cumsum(dim=0), 0, end)
    retrieved = torch.gather(rank.expand(n, classes), 0, end)
    total = hit.sum(dim=0)
    average_precision = (hit * true_positives / retrieved).sum(dim=0) / total

    false_positives = retrieved - true_positives
    group_first = torch.where(torch.cat([torch.ones_like(last[:1]), last[:-1]]), row, 0)
    start = group_first.cummax(dim=0).values
    before = torch.gather((rank - 1).expand(n, classes), 0, start)
    hits_before = torch.gather(hit.cumsum(dim=0) - hit, 0, start)
    negatives = n - total
    higher = (false_positives + (before - hits_before)) / 2
    auc = 1 - (hit * higher).sum(dim=0) / (total * negatives)
    undefined = torch.full_like(auc, math.nan)
    return ClassScores(
        torch.where(total > 0, average_precision, undefined),
        torch.where((total > 0) & (negatives > 0), auc, undefined),
    )


def d_prime(auc: float) -> float:
    """Sensitivity index of an area under the ROC curve: sqrt(2) times the normal quantile."""
    quantile = torch.special.ndtri(torch.tensor(auc, dtype=torch.float64))
    return math.sqrt(2) * float(quantile)


class ClipScores(Metric):
    """Collects logits and targets of every clip, over all processes, and scores them.

    Classes without a positive clip are left out of the means, and `classes` counts the rest.
    """

    full_state_update = False

    def __init__(self, multi_label: bool) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.logits: list[Tensor]
        self.targets: list[Tensor]
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch: logits `[B, C]`, targets `[B, C]` (one-hot or multi-label)."""
        self.logits.append(logits.detach().float())
        self.targets.append(target.detach().float())

    def compute(self) -> dict[str, Tensor]:
        """Scores as `{accuracy | mAP, AUC, d_prime, classes, clips}`, each a scalar."""
        logits, targets = _cat(self.logits), _cat(self.targets)
        per_class = class_scores(logits, targets)
        scored = ~per_class.average_precision.isnan()
        auc = per_class.auc[~per_class.auc.isnan()].mean()
        scores = {
            "mAP": per_class.average_precision[scored].mean(),
            "AUC": auc,
            "d_prime": torch.tensor(d_prime(float(auc))),
            "classes": scored.sum().float(),
            "clips": torch.tensor(float(len(logits))),
        }
        if not self.multi_label:
            hits = logits.argmax(dim=-1) == targets.argmax(dim=-1)
            scores["accuracy"] = hits.double().mean()
        return scores


def _cat(parts: list[Tensor] | Tensor) -> Tensor:
    return torch.cat(parts) if isinstance(parts, list) else parts
