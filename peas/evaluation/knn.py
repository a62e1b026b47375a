"""kNN classification on frozen features."""

import torch
from torch import Tensor
from torch.nn import functional

_AT_ONCE = 1024
"""Clips whose similarities to all others are in memory at once."""


def nearest_classes(train: Tensor, classes: Tensor, test: Tensor, k: int) -> Tensor:
    """Classes of clips by a vote of the k nearest training clips.

    Features are standardised by the training clips; votes are weighted by 1 / cosine distance, as
    in `examples/frozen_features.py` with scikit-learn.

    Args:
        train: `[M, D]` features of the training clips.
        classes: `[M]` int64, theirs.
        test: `[K, D]` features of the clips to classify.
        k: Number of neighbours, M at most.

    Returns:
        `[K]` int64.
    """
    train, test = train.double(), test.double()
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    # A constant feature would be divided by zero.
    std = torch.where(std == 0, 1.0, std)
    train = functional.normalize((train - mean) / std)
    test = functional.normalize((test - mean) / std)
    predicted = [_vote(train, classes, part, k) for part in torch.split(test, _AT_ONCE)]
    return torch.cat(predicted) if predicted else classes[:0]


def _vote(train: Tensor, classes: Tensor, test: Tensor, k: int) -> Tensor:
    similarity, index = (test @ train.T).topk(k, dim=1)
    # An equal clip outvotes all others.
    weights = 1 / (1 - similarity).clamp(min=1e-12)
    votes = weights.new_zeros(len(test), int(classes.max()) + 1)
    return votes.scatter_add(1, classes[index], weights).argmax(dim=1)
