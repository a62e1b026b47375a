"""Clips held out of a set that has no splits of its own, drawn by the names of their origins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.columns import Rows, Strings, Targets
from peas.training.randomness import stable_hash


def assign_parts(
    origins: Strings, speakers: Strings | None, targets: Targets, shares: Sequence[float]
) -> NDArray[np.int8]:
    """Draw parts of the clips such that no origin and no speaker is in two of them.

    Clips that share an origin or a speaker, even through others, are a group and stay together.
    Within a class, groups are sorted by a hash of their first name and dealt out in that order: the
    draw is the same everywhere, and clips that are added later move few others. A group of
    several classes counts for its rarest.

    Args:
        origins: Name of each clip's recording, or of the clip. N clips.
        speakers: Name of each clip's speaker, empty = not known; None = none is known.
        targets: Classes of the clips.
        shares: Wanted share of the clips of part 1, 2, …; what is left is part 0.

    Returns:
        `[N]` part of each clip.
    """
    coded = pc.dictionary_encode(origins.array)
    order = pc.sort_indices(coded.dictionary)
    names = coded.dictionary.take(order)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order.to_numpy()] = np.arange(len(names))
    origin: Rows = rank[coded.indices.to_numpy()]
    groups, group = np.unique(_joined(origin, speakers), return_inverse=True)
    # A group bears the rank of its first name.
    first = names.take(pa.array(groups)).to_pylist()
    hashes = np.array([stable_hash("holdout", name) for name in first])
    sizes = np.bincount(group)
    classes = _rarest(group, len(groups), targets)
    parts = np.zeros(len(groups), dtype=np.int8)
    dealt = np.lexsort((hashes, classes))
    ends = np.flatnonzero(np.diff(classes[dealt])) + 1
    for rows in np.split(dealt, ends):
        parts[rows] = _deal(sizes[rows], shares)
    return parts[group]


def _joined(origin: Rows, speakers: Strings | None) -> Rows:
    """Number of each clip's group: the least origin that speakers tie it to."""
    if speakers is None:
        return origin
    voice = pc.dictionary_encode(speakers.array).indices.to_numpy().astype(np.int64)
    # Clips of unknown speakers are tied by their origin alone.
    unknown = np.asarray(pc.equal(speakers.array, ""))
    voice[unknown] = len(origin) + origin[unknown]
    group = origin
    while True:
        before = group
        for tie in (np.unique(voice, return_inverse=True)[1], origin):
            least = np.full(tie.max() + 1, len(origin))
            np.minimum.at(least, tie, group)
            group = least[tie]
        if np.array_equal(group, before):
            return group


def _rarest(group: Rows, groups: int, targets: Targets) -> Rows:
    """Class of each group by which it is dealt out, `[groups]`: 0 the rarest, and so on."""
    counts = np.bincount(targets.classes)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    least = np.full(groups, len(counts))
    np.minimum.at(least, np.repeat(group, targets.sizes), rank[targets.classes])
    return least


def _deal(sizes: Rows, shares: Sequence[float]) -> NDArray[np.int8]:
    """Parts of the groups of one class, in their order."""
    parts = np.zeros(len(sizes), dtype=np.int8)
    wanted = [share * float(sizes.sum()) for share in shares]
    for row, size in enumerate(sizes.tolist()):
        for part, left in enumerate(wanted, 1):
            # A group goes in if that brings the part nearer to its share.
            if size < 2 * left:
                parts[row] = part
                wanted[part - 1] -= size
                break
        if max(wanted) <= 0.5:
            break
    return parts
