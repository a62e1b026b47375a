"""kNN classification on frozen features."""

import torch
from torch import Tensor
from torch.nn import functional

from peas.evaluation.logistic import standardise

_AT_ONCE = 1024
"""Clips whose similarities to all others are in memory at once."""
XARES_TEMPERATURE = 0.07


def nearest_classes(train: Tensor, classes: Tensor, test: Tensor, k: int) -> Tensor:
    """Classes of clips by a vote of the k nearest training clips.

    Args:
        train: `[M, D]` features of the training clips.
        classes: `[M]` int64, theirs.
        test: `[K, D]` features of the clips to classify.
        k: Number of neighbours, M at most.

    Returns:
        `[K]` int64.
    """
    return votes(train, functional.one_hot(classes), test, k).argmax(dim=1)


def votes(train: Tensor, targets: Tensor, test: Tensor, k: int) -> Tensor:
    """Votes of the k nearest training clips.

    Features are standardised by the training clips; votes are weighted by 1 / cosine distance, as
    by scikit-learn's `KNeighborsClassifier(metric="cosine", weights="distance")`.

    Args:
        train: `[M, D]` features of the training clips.
        targets: `[M, C]`, theirs, non-zero where a clip is of a class.
        test: `[K, D]` features of the clips to classify.
        k: Number of neighbours, M at most.

    Returns:
        `[K, C]` float64.
    """
    scaled = (functional.normalize(part) for part in standardise(train, test))
    train, test = scaled
    found = []
    for part in torch.split(test, _AT_ONCE):
        similarity, index = (part @ train.T).topk(k, dim=1)
        # An equal clip outvotes all others.
        weights = 1 / (1 - similarity).clamp(min=1e-12)
        found.append((weights.unsqueeze(2) * targets[index]).sum(dim=1))
    return torch.cat(found)


def xares_votes(train: Tensor, targets: Tensor, test: Tensor, k: int = 10) -> Tensor:
    """Votes by the protocol of X-ARES 0.1 (`xares.trainer.KNN`), to compare with its scores.

    Features are not standardised. Each feature is divided by its norm over the training clips, each
    test clip by its own norm, and votes are a softmax of the products at temperature 0.07. (X-ARES
    means cosines, and normalises the transposed training features.)

    Args:
        train: As of `votes`.
        targets: As of `votes`.
        test: As of `votes`.
        k: Number of neighbours, M at most.

    Returns:
        `[K, C]` float64.
    """
    train = functional.normalize(train.double(), dim=0)
    test = functional.normalize(test.double(), dim=1)
    found = []
    for part in torch.split(test, _AT_ONCE):
        similarity, index = (part @ train.T).topk(k, dim=1)
        weights = (similarity / XARES_TEMPERATURE).softmax(dim=1)
        found.append((weights.unsqueeze(2) * targets[index]).sum(dim=1))
    return torch.cat(found)
