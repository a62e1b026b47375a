"""Fingerprints of a run's clips, by which a later start finds those that changed.

16 bytes a clip: hashes of its name, its classes and the identity of its sound. Whole columns are
hashed at once: two million clips take a few seconds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from peas.data.clips import ClipTable
from peas.data.columns import Rows, Strings, Targets

Hashes = NDArray[np.uint64]

LOOKED_AT = 1 << 16
"""Files whose size is checked, of a set of files: two million would take minutes."""

_ROWS = 1 << 16
_STEP = 0x9E3779B97F4A7C15
_BYTES: Hashes = np.frombuffer(
    b"".join(hashlib.blake2b(bytes([value]), digest_size=8).digest() for value in range(256)),
    dtype="<u8",
)


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of the clips of a table, in its order. N clips.

    Attributes:
        ids: `[N]` int64, of the names.
        classes: `[N]` int32, of the classes.
        sounds: `[N]` int32, of the identity of the sound; 0 where it was not checked.
    """

    ids: Tensor
    classes: Tensor
    sounds: Tensor

    @classmethod
    def of(cls, table: ClipTable) -> Fingerprint:
        """Hash a table of clips."""
        ids = hash_strings(table.ids)
        rows = np.arange(len(ids))
        if table.sounds.costly:
            # Chosen by name: a set that grows looks at the same files again.
            share = 1
            while len(ids) > share * LOOKED_AT:
                share *= 2
            rows = np.flatnonzero(ids % np.uint64(share) == 0)
        sounds = np.zeros(len(ids), dtype=np.int32)
        extents = table.sounds.extents(rows)
        sounds[rows] = np.where(extents == 0, 0, _folded(_mixed(extents.view(np.uint64))) | 1)
        return cls(
            torch.from_numpy(ids.view(np.int64)),
            torch.from_numpy(_folded(_hash_classes(table.targets))),
            torch.from_numpy(sounds),
        )

    def is_part_of(self, other: Fingerprint) -> bool:
        """Whether all clips of this table are in another one, with the same sound."""
        order = np.argsort(other.ids.numpy(), kind="stable")
        ordered = other.ids.numpy()[order]
        if not len(ordered):
            return not len(self.ids)
        position = order[np.minimum(np.searchsorted(ordered, self.ids.numpy()), len(ordered) - 1)]
        sounds, others = self.sounds.numpy(), other.sounds.numpy()[position]
        same = (sounds == others) | (sounds == 0) | (others == 0)
        return bool(((other.ids.numpy()[position] == self.ids.numpy()) & same).all())

    def digest(self) -> str:
        """Hash of the names in their order."""
        return hashlib.blake2b(self.ids.numpy().tobytes(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Changes:
    """How the clips of a split differ from what they were.

    Attributes:
        added: Clips that were not there.
        removed: Clips that are gone.
        relabelled: Clips of other classes than before.
        replaced: Clips whose sound is another one, where that can be seen.
        reordered: Whether the clips that stayed come in another order.
    """

    added: int
    removed: int
    relabelled: int
    replaced: int
    reordered: bool

    def __bool__(self) -> bool:
        return self != Changes(0, 0, 0, 0, False)

    def __str__(self) -> str:
        changes = [
            f"{count} clips {what}"
            for count, what in (
                (self.added, "added"),
                (self.removed, "removed"),
                (self.relabelled, "with other classes"),
                (self.replaced, "with other sound"),
            )
            if count
        ]
        return ", ".join([*changes, *["another order"] * self.reordered])


def compare(before: Fingerprint, now: Fingerprint) -> Changes:
    """What changed between two tables of clips."""
    old, new = before.ids.numpy(), now.ids.numpy()
    stayed_old, stayed_new = np.isin(old, new), np.isin(new, old)
    same = old[stayed_old], new[stayed_new]
    reordered = len(same[0]) != len(same[1]) or not np.array_equal(*same)
    if reordered:
        # By name; of names that come twice, in the order of their classes.
        first = np.flatnonzero(stayed_old)[np.argsort(same[0], kind="stable")]
        second = np.flatnonzero(stayed_new)[np.argsort(same[1], kind="stable")]
        count = min(len(first), len(second))
        first, second = first[:count], second[:count]
    else:
        first, second = np.flatnonzero(stayed_old), np.flatnonzero(stayed_new)
    sounds = before.sounds.numpy()[first], now.sounds.numpy()[second]
    return Changes(
        added=int((~stayed_new).sum()),
        removed=int((~stayed_old).sum()),
        relabelled=int((before.classes.numpy()[first] != now.classes.numpy()[second]).sum()),
        replaced=int(((sounds[0] != sounds[1]) & (sounds[0] != 0) & (sounds[1] != 0)).sum()),
        reordered=reordered,
    )


def hash_strings(strings: Strings) -> Hashes:
    """Hash of each string of a column, `[N]`, the same on every machine."""
    array = strings.array
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    parts = [
        _hash_chunk(chunk.slice(first, _ROWS).cast(pa.large_binary()))
        for chunk in chunks
        for first in range(0, len(chunk), _ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _hash_chunk(array: pa.Array) -> Hashes:
    _, offsets_of, data_of = array.buffers()
    offsets: Rows = np.frombuffer(offsets_of, dtype=np.int64)[array.offset :][: len(array) + 1]
    sizes = np.diff(offsets)
    data = np.frombuffer(data_of or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    position = np.arange(len(data)) - np.repeat(starts, sizes)
    powers = np.cumprod(np.full(int(sizes.max(initial=0)) + 1, _STEP, dtype=np.uint64))
    return _mixed(_sums(_BYTES[data] * powers[position], starts, sizes) + sizes.astype(np.uint64))


def _hash_classes(targets: Targets) -> Hashes:
    # A clip's classes are a set: their order does not matter.
    each = _mixed(targets.classes.astype(np.uint64) + np.uint64(1))
    return _mixed(_sums(each, targets.offsets[:-1], targets.sizes))


def _sums(values: Hashes, starts: Rows, sizes: Rows) -> Hashes:
    """Sums of consecutive stretches, modulo 2^64; `np.add.reduceat` has none for an empty one."""
    running = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values, dtype=np.uint64)])
    sums: Hashes = running[starts + sizes] - running[starts]
    return sums


def _mixed(values: Hashes) -> Hashes:
    """Every bit of the input moves every bit of the output (splitmix64)."""
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def _folded(values: Hashes) -> NDArray[np.int32]:
    folded: NDArray[np.int32] = (values >> np.uint64(32)).astype(np.uint32).view(np.int32)
    return folded
