"""The Arrow files of a packed folder: shards with the sound, and the index of all other columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from peas.data.packed.manifest import INDEX, PackedFile
from peas.utils.files import atomic_write, checksum

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        # Not the `Audio` feature of `datasets`, which needs torchcodec to be written.
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("labels", pa.list_(pa.int32())),
        ("recording", pa.string()),
        ("speaker", pa.string()),
        ("seconds", pa.float32()),
        ("rate", pa.int32()),
        ("sum", pa.string()),
    ]
)
"""Columns of a shard. `row` is the clip's row in the set that was packed."""

# The columns of all shards together may need offsets of 64 bits.
_WIDE = {pa.string(): pa.large_string(), pa.list_(pa.int32()): pa.large_list(pa.int32())}
# A record batch is held in memory while it grows, and mapped files keep a little for each.
_BATCH_ROWS = 1000
_BATCH_BYTES = 16 * 2**20


def shard_name(number: int, part: str) -> str:
    """File name of a shard: its number among all, and its part."""
    return f"shard-{number:05d}-{re.sub(r'[^A-Za-z0-9.-]+', '_', part)}.arrow"


def packed_file(file: Path, rows: int, part: str = "", saturated: int = 0) -> PackedFile:
    """Manifest entry of a complete file."""
    return PackedFile(file.name, file.stat().st_size, checksum(file), rows, part, saturated)


@contextmanager
def arrow_shard(file: Path) -> Iterator[ArrowShard]:
    """Open a shard to be written; there is no file if the context ends with an error.

    Args:
        file: The shard.
    """
    with atomic_write(file) as stream, pa.ipc.new_stream(stream, SCHEMA) as writer:
        shard = ArrowShard(writer)
        yield shard
        shard.flush()


class ArrowShard:
    """A shard that is being written.

    Attributes:
        rows: Clips written so far.
        sound: Bytes of sound written so far.
    """

    def __init__(self, writer: pa.ipc.RecordBatchStreamWriter) -> None:
        self.writer = writer
        self.rows = 0
        self.sound = 0
        self._pending: list[Mapping[str, Any]] = []
        self._pending_sound = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one clip, by the names of `SCHEMA`."""
        size = len(row["audio"]["bytes"])
        self._pending.append(row)
        self._pending_sound += size
        self.rows += 1
        self.sound += size
        if len(self._pending) >= _BATCH_ROWS or self._pending_sound >= _BATCH_BYTES:
            self.flush()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write many clips at once."""
        self.writer.write_batch(batch)
        self.rows += batch.num_rows

    def flush(self) -> None:
        """Write the pending clips."""
        if self._pending:
            self.writer.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=SCHEMA))
            self._pending, self._pending_sound = [], 0


def write_index(folder: Path, shards: Sequence[PackedFile], parts: Sequence[str]) -> pa.RecordBatch:
    """Write the columns of all shards but the sound, in the order of the set that was packed.

    Args:
        folder: Folder of the shards.
        shards: The shards, in order.
        parts: Names of the parts, in order.

    Returns:
        What was written.
    """
    table = pa.concat_tables([_columns(folder / shard.file) for shard in shards]).combine_chunks()
    part = np.repeat([parts.index(shard.part) for shard in shards], [s.rows for s in shards])
    table = table.append_column("part", pa.array(part, pa.int32()))
    rows = table.column("row").to_numpy()
    order = np.argsort(rows, kind="stable")
    if (np.diff(rows) < 0).any():
        table = table.take(pa.array(order)).combine_chunks()
    # Number of each clip among those of all shards.
    table = table.append_column("place", pa.array(order, pa.int64()))
    batch = table.to_batches()[0]
    with atomic_write(folder / INDEX) as stream, pa.ipc.new_file(stream, batch.schema) as file:
        file.write_batch(batch)
    return batch


def _columns(shard: Path) -> pa.Table:
    """A shard without its sound."""
    with pa.memory_map(str(shard)) as mapped:
        table = pa.ipc.open_stream(mapped).read_all().drop_columns(["audio"])
    fields = [(field.name, _WIDE.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))
