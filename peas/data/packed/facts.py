"""What the manifest says of a set that is packed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile
import torch

from peas import __version__
from peas.audio import decode as audio
from peas.data.inventory import Inventory
from peas.data.module import ClipDataModule
from peas.data.packed.encoding import Coding
from peas.data.packed.journal import Journal
from peas.data.packed.manifest import INDEX, Manifest, Part, Recipe
from peas.data.packed.shards import stored, write_index
from peas.data.statistics import Moments
from peas.errors import DataError


def recipe_of(
    module: ClipDataModule, name: str, inventory: Inventory, coding: Coding, shard_bytes: int
) -> Recipe:
    """Everything that decides the packed folder's content.

    Args:
        module: The set.
        name: Its name in `peas data`.
        inventory: Its clips.
        coding: How the sound is stored.
        shard_bytes: Bytes of sound after which a shard is closed.
    """
    return Recipe(
        set=name,
        clips=len(inventory.table),
        table=_table_sum(inventory),
        labels=module.labels,
        multi_label=module.multi_label,
        frames=module.frames,
        rate=coding.rate,
        audio=coding.audio,
        channels=coding.channels,
        resampler=audio.RESAMPLER,
        shard_bytes=shard_bytes,
        software=(
            f"libsndfile {soundfile.__libsndfile_version__}, pyarrow {pa.__version__}, "
            f"torch {torch.__version__}"
        ),
    )


def stated_moments(module: ClipDataModule) -> tuple[float, float] | None:
    """Mean and standard deviation of the log-mel by a module, unless it would measure them.

    Args:
        module: The set.
    """
    # Where a class measures, it has properties of these names and no attributes.
    mean, std = (vars(module).get(key, math.nan) for key in ("mean", "std"))
    return None if math.isnan(mean) else (mean, std)


def _table_sum(inventory: Inventory) -> str:
    """Checksum over all columns but the sound."""
    digest = hashlib.blake2b("\0".join(inventory.parts).encode(), digest_size=16)
    for strings in (inventory.table.ids, inventory.recordings, inventory.speakers):
        digest.update(b"\0")
        if strings is not None:
            array = strings.array.cast(pa.large_binary())
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            digest.update(pc.binary_length(array).to_numpy().tobytes())
            _, ends, data = array.buffers()
            first, last = np.frombuffer(ends, np.int64)[[array.offset, array.offset + len(array)]]
            if data is not None:
                digest.update(memoryview(data)[first:last])
    targets = inventory.table.targets
    for numbers in (inventory.part, targets.sizes, targets.classes):
        digest.update(np.asarray(numbers, dtype=np.int64).tobytes())
    return digest.hexdigest()


def manifest_of(module: ClipDataModule, inventory: Inventory, journal: Journal) -> Manifest:
    """Manifest of the finished shards; writes their index.

    Args:
        module: The set.
        inventory: Its clips.
        journal: What was packed.

    Raises:
        DataError: Not one clip could be read.
    """
    if not journal.shards:
        raise DataError(
            f"{module.root}: not one clip could be read, the first being: "
            f"{journal.left_out[0].reason}"
        )
    mean, std = stated_moments(module) or (None, None)
    index = write_index(journal.out, journal.shards, inventory.parts)
    return Manifest(
        peas=__version__,
        recipe=journal.recipe,
        mean=mean,
        std=std,
        parts=_parts(index, inventory.parts, journal),
        clips=index.num_rows,
        seconds=_seconds(index.column("seconds")),
        shortest=pc.min(index.column("seconds")).as_py(),
        longest=pc.max(index.column("seconds")).as_py(),
        recordings=inventory.recordings is not None,
        speakers=inventory.speakers is not None,
        index=stored(journal.out / INDEX, index.num_rows),
        shards=journal.shards,
        left_out=journal.left_out,
        absent=list(inventory.absent),
        notes=list(inventory.notes),
    )


def _parts(index: pa.RecordBatch, names: list[str], journal: Journal) -> list[Part]:
    cells = dict.fromkeys(names, Moments())
    for one in journal.done:
        if one.shard is not None:
            cells[one.shard.part] += one.cells
    part = index.column("part").to_numpy()
    labels = index.column("labels")
    of_label = np.repeat(part, np.diff(labels.offsets.to_numpy()))
    parts = []
    for number, name in enumerate(names):
        here = pa.array(part == number)
        numbers = labels.values.to_numpy()[of_label == number]
        counts = np.bincount(numbers, minlength=len(journal.recipe.labels)).tolist()
        seconds = _seconds(index.column("seconds").filter(here))
        clips = int((part == number).sum())
        parts.append(Part(name, clips, seconds, counts, astuple(cells[name])))
    return parts


def _seconds(column: pa.Array) -> float:
    """Sum of a column, to the millisecond."""
    return round(float(column.to_numpy().sum(dtype=np.float64)), 3)
