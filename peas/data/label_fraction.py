"""Which training clips a share of the labels is: a fixed part of every class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peas.data.columns import Rows, Targets
from peas.training.randomness import stable_hash


def chosen_rows(targets: Targets, classes: int, fraction: float, seed: int) -> Rows:
    """Rows of the clips that train with a share of the labels.

    All clips are put in a random order by the seed.

    - Where every clip has one class, the first `round(fraction * n)` clips of each class are
      taken, n being its clips, and at least one.
    - Where clips may have several classes or none, the first `round(fraction * N)` of all N clips
      are, and then the first clip of each class that has come out empty. An exact share of every
      class does not exist there, and a random part keeps how often classes come together.

    So a smaller fraction is a part of a larger one of the same seed.

    Args:
        targets: Classes of each clip.
        classes: Number of classes.
        fraction: Share of the clips, above 0 and up to 1.
        seed: Seed of the run.

    Returns:
        `[K]` rows, ascending.
    """
    clips = len(targets)
    order = np.random.default_rng(stable_hash(seed, "label_fraction")).permutation(clips)
    if (targets.sizes == 1).all():
        turn = _turn(targets.classes[order])
        counts = targets.counts(classes)
        # Rounded half up, so that the share of a class never falls when it has a clip more.
        counts_used = np.maximum(np.floor(fraction * counts + 0.5).astype(np.int64), 1)
        return np.sort(order[turn < counts_used[targets.classes[order]]])
    count = max(int(np.floor(fraction * clips + 0.5)), 1)
    rest = targets.take(order[count:])
    present, first = np.unique(rest.classes, return_index=True)
    empty = targets.take(order[:count]).counts(classes)[present] == 0
    owner = np.repeat(np.arange(len(rest)), rest.sizes)
    return np.sort(np.concatenate([order[:count], order[count:][np.unique(owner[first[empty]])]]))


def count_line(table: Targets, chosen: Targets, classes: int) -> str:
    """Message: how many clips of a table and of its classes are used.

    Args:
        table: Classes of each clip of the table.
        chosen: Classes of each clip that was chosen.
        classes: Number of classes.
    """
    line = f"{len(chosen):,} of {len(table):,} training clips"
    present = table.counts(classes) > 0
    if not present.any():
        return line
    counts = chosen.counts(classes)[present]
    return f"{line}, {counts.min():,} to {counts.max():,} of each of {len(counts)} classes"


def _turn(classes: NDArray[np.int32]) -> Rows:
    """How many clips of the same class come before each, `[N]`."""
    by_class = np.argsort(classes, kind="stable")
    turn = np.empty(len(classes), dtype=np.int64)
    sorted_classes = classes[by_class]
    starts = np.searchsorted(sorted_classes, sorted_classes, side="left")
    turn[by_class] = np.arange(len(classes)) - starts
    return turn
