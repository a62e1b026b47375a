"""Classes by the nearest neighbours: what frozen features know, with nothing trained."""

import torch
from torch import Tensor
from torch.nn import functional

_AT_ONCE = 1024
"""Clips whose similarities to all others are held at once."""


def nearest_classes(train: Tensor, classes: Tensor, test: Tensor, k: int) -> Tensor:
    """Classes of some clips by the vote of the k nearest training clips.

    Features are standardised by the training clips; near means a small cosine distance, and a vote
    weighs 1 / distance. So `examples/frozen_features.py` has it, with scikit-learn.

    Args:
        train: `[M, D]` features of the training clips.
        classes: `[M]` int64, theirs.
        test: `[K, D]` features of the clips to classify.
        k: Voters of a clip, M at most.

    Returns:
        `[K]` int64.
    """
    train, test = train.double(), test.double()
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    # What never varies tells nothing, and would be divided by zero.
    std = torch.where(std == 0, 1.0, std)
    known = functional.normalize((train - mean) / std)
    asked = functional.normalize((test - mean) / std)
    found = [_vote(known, classes, some, k) for some in torch.split(asked, _AT_ONCE)]
    return torch.cat(found) if found else classes[:0]


def _vote(known: Tensor, classes: Tensor, asked: Tensor, k: int) -> Tensor:
    near, index = (asked @ known.T).topk(k, dim=1)
    # An equal clip outvotes all others.
    weights = 1 / (1 - near).clamp(min=1e-12)
    votes = weights.new_zeros(len(asked), int(classes.max()) + 1)
    return votes.scatter_add(1, classes[index], weights).argmax(dim=1)
