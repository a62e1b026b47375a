"""Writes a target cache: a shard is whole or not there, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from peas import __version__
from peas.data.columns import Rows, Strings
from peas.data.packed.shards import UNFINISHED, named_when_whole
from peas.errors import ConfigError, DataError
from peas.teachers.manifest import (
    IDS,
    LOCK,
    MANIFEST,
    ROWS,
    LeftOut,
    Manifest,
    Recipe,
    Stored,
    read_manifest,
)
from peas.utils.files import disk_errors, lock, require_space
from peas.utils.text import some

log = logging.getLogger(__name__)

_SETTINGS = {
    "teacher": "the teacher",
    "fingerprint": "the fingerprint of the teacher or of the ready maps",
    "first_centre": "first_centre of the extent",
    "step": "step of the extent",
    "freq_edges": "freq_edges of the extent",
    "shape": "the shape (F', T', D) of a map",
    "sound": "the way sound is read",
    "set": "SET",
    "clips": "the number of clips",
    "ids": "the checksum of the clips' ids",
    "shard_clips": "--shard-clips",
}
"""Keys of a recipe, and what the user calls them."""


class Block(NamedTuple):
    """Maps of consecutive clips.

    Attributes:
        maps: `[n, F', T', D]` float16; the rows of clips that could not be read are zeros.
        left_out: Those clips.
    """

    maps: NDArray[np.float16]
    left_out: list[LeftOut]


class MapSource(Protocol):
    """Where maps come from."""

    def blocks(self, shards: Sequence[range]) -> Generator[Block]:
        """Maps of the clips of some shards, in order; no block reaches beyond its shard.

        Args:
            shards: Places in the sorted ids.

        Raises:
            PeasError: There is no map of a clip.
        """
        ...


def sorted_ids(ids: Strings) -> Rows:
    """Rows of a column of ids in the order of a cache: by their UTF-8 bytes.

    Raises:
        DataError: An id is there twice, so that it names no map.
    """
    names = np.array([name.encode() for name in ids], dtype=bytes)
    order = np.argsort(names, kind="stable")
    doubled = np.flatnonzero(names[order][1:] == names[order][:-1])
    if len(doubled):
        lost = sorted({ids[int(order[place])] for place in doubled})
        raise DataError(
            f"{len(lost)} ids name more than one clip of the set: {some(lost)}; a map is kept by "
            "its clip's id, so give each clip an id of its own"
        )
    return order


def ids_sum(ids: Sequence[str]) -> str:
    """Checksum over some ids in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ids:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()


def write_targets(
    out: Path,
    recipe: Recipe,
    ids: Strings,
    source: MapSource,
    *,
    left_out: Sequence[LeftOut] = (),
    allow_missing: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write a cache, or what is missing or damaged of it.

    Every file that an earlier run left is compared with its size and checksum, and what is whole
    stays. So the same call finishes a run that was killed, repairs a folder, and leaves one that
    is whole as it is.

    Args:
        out: Folder of the cache: new, empty, or begun by the same call.
        recipe: What is written.
        ids: Ids of the clips, sorted; see `sorted_ids`.
        source: Where the maps come from.
        left_out: Clips of the set for which there is no map to be had.
        allow_missing: Whether shards of an earlier run may lack clips.
        progress: Called with the clips done and the clips in all.

    Raises:
        ConfigError: An earlier run left clips out, and none may be missing.
        DataError: The folder holds something else or was begun otherwise, or its disk is full.
        PeasError: The source has no map of a clip.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(out)
        stamp = _stamp(out)
        manifest = _found(out, recipe)
    _require_policy(out, manifest, allow_missing)
    if manifest.complete:
        return manifest
    todo = [number for number, shard in enumerate(manifest.shards) if shard is None]
    # Called before the lock is taken: it may fork workers, and they would hold the lock as well
    # until they notice that this process was killed.
    blocks = source.blocks([recipe.shards[number] for number in todo])
    with closing(blocks), lock(out / LOCK, out), disk_errors(out):
        if _stamp(out) != stamp:
            raise DataError(f"{out}: another process has written here just now; run this again")
        needed = 2 * math.prod(recipe.shape) * sum(len(recipe.shards[number]) for number in todo)
        require_space(out / MANIFEST, needed)
        manifest.save(out)
        writer = _Writer(out, manifest, blocks, progress)
        for number in todo:
            manifest.shards[number] = writer.write(number)
            manifest.save(out)
        _finish(out, manifest, ids, left_out)
    return manifest


class _Writer:
    """Puts the blocks of a source into shards.

    Args:
        out: Folder of the cache.
        manifest: What is there.
        blocks: Maps of all clips whose shard is not there.
        progress: Called with the clips done and the clips in all.
    """

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        blocks: Generator[Block],
        progress: Callable[[int, int], None],
    ) -> None:
        self.out = out
        self.manifest = manifest
        self.blocks = blocks
        self.progress = progress
        shards = zip(manifest.recipe.shards, manifest.shards, strict=True)
        self.done = sum(len(clips) for clips, shard in shards if shard is not None)

    def write(self, number: int) -> Stored:
        """Write one shard."""
        recipe = self.manifest.recipe
        clips = recipe.shards[number]
        file = self.out / f"shard-{number:05d}.npy"
        left_out: list[LeftOut] = []
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(clips), *recipe.shape)}
        with named_when_whole(file) as stream:
            np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
            written = 0
            while written < len(clips):
                block = next(self.blocks)
                # Not mapped and filled: a disk that is full would end the process.
                stream.write(np.ascontiguousarray(block.maps, dtype="<f2").data)
                left_out += block.left_out
                written += len(block.maps)
                self.done += len(block.maps)
                self.progress(self.done, recipe.clips)
        return Stored.of(file, left_out)


def _finish(out: Path, manifest: Manifest, ids: Strings, left_out: Sequence[LeftOut]) -> None:
    """Write the index, with which the cache is complete."""
    unreadable = [clip for shard in manifest.shards if shard for clip in shard.left_out]
    lost = {clip.id for clip in unreadable}
    if len(lost) == len(ids):
        raise DataError(f"{out}: not one of the {len(ids)} clips could be read: no map was made")
    rows: Rows = np.arange(len(ids))
    names = np.array([name.encode() for name in ids], dtype=bytes)
    if lost:
        kept = np.array([name not in lost for name in ids])
        rows, names = rows[kept], names[kept]
    manifest.index = []
    for name, array in ((IDS, names), (ROWS, rows)):
        with named_when_whole(out / name) as stream:
            np.save(stream, array, allow_pickle=False)
        manifest.index.append(Stored.of(out / name))
    manifest.left_out = [*left_out, *unreadable]
    manifest.save(out)


def _refuse_foreign(out: Path) -> None:
    names = sorted(path.name for path in out.iterdir() if path.name != LOCK)
    if names and not {MANIFEST, MANIFEST + UNFINISHED} & set(names):
        raise DataError(
            f"{out}: the folder holds other files ({some(names)}): give a new or an empty one "
            "as --out"
        )


def _stamp(out: Path) -> bytes:
    """The manifest as it lies there; nothing before the first run."""
    file = out / MANIFEST
    return file.read_bytes() if file.is_file() else b""


def _found(out: Path, recipe: Recipe) -> Manifest:
    """What an earlier run left and is whole."""
    if not (out / MANIFEST).is_file():
        return Manifest(__version__, recipe, [None] * len(recipe.shards))
    manifest = read_manifest(out)
    for key, text in _SETTINGS.items():
        was, now = getattr(manifest.recipe, key), getattr(recipe, key)
        if was != now:
            raise DataError(
                f"{out} was begun otherwise: {text} was {was} then, and is {now} now; repeat the "
                "first call, or give another --out"
            )
    for number, shard in enumerate(manifest.shards):
        fault = "" if shard is None else shard.fault(out, sums=True)
        if fault:
            log.warning("%s: made again", fault)
            manifest.shards[number] = None
    if any(one.fault(out, sums=True) for one in manifest.index) or None in manifest.shards:
        manifest.index = []
    return manifest


def _require_policy(out: Path, manifest: Manifest, allow_missing: bool) -> None:
    lost = [clip.id for shard in manifest.shards if shard for clip in shard.left_out]
    if lost and not allow_missing:
        raise ConfigError(
            f"{out}: begun with --allow-missing, and {len(lost)} clips could not be read "
            f"({some(lost)}): give --allow-missing again, or another --out"
        )
