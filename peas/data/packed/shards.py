"""The Arrow files of a packed folder, each under another name until it is whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from peas.data.packed.manifest import INDEX, Stored
from peas.utils.files import checksum as file_sum

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

UNFINISHED = ".part"
"""What the name of a file ends in while it is written."""

# A record batch is held in memory while it grows, and readers keep a little for each.
_BATCH_ROWS = 1000
_BATCH_BYTES = 16 * 2**20
# The columns of all shards together may need offsets of 64 bits.
_WIDE = {pa.string(): pa.large_string(), pa.list_(pa.int32()): pa.large_list(pa.int32())}


@contextmanager
def named_when_whole(file: Path) -> Iterator[BinaryIO]:
    """A stream to a file that gets its name when all of it is on the disk, and else is removed."""
    part = file.with_name(file.name + UNFINISHED)
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, file)


def stored(file: Path, rows: int, part: str = "", saturated: int = 0) -> Stored:
    """What the manifest says of a whole file."""
    return Stored(file.name, rows, file.stat().st_size, file_sum(file), part, saturated)


def shard_name(number: int, part: str) -> str:
    """Name of a shard: its place among all, and its part."""
    return f"shard-{number:05d}-{re.sub(r'[^A-Za-z0-9.-]+', '_', part)}.arrow"


class ShardWriter:
    """Writes one shard, which exists when its context is left without an error.

    Args:
        file: The shard.

    Attributes:
        rows: Clips written so far.
        sound: Bytes of sound written so far.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = 0
        self.sound = 0
        self._pending: list[Mapping[str, Any]] = []
        self._pending_sound = 0

    def __enter__(self) -> ShardWriter:
        self._context = named_when_whole(self.file)
        self._writer = pa.ipc.new_stream(self._context.__enter__(), SCHEMA)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self._flush()
                self._writer.close()
            except BaseException as failure:
                self._context.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._context.__exit__(kind, error, trace)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one clip, by the names of `SCHEMA`."""
        size = len(row["audio"]["bytes"])
        self._pending.append(row)
        self._pending_sound += size
        self.rows += 1
        self.sound += size
        if len(self._pending) >= _BATCH_ROWS or self._pending_sound >= _BATCH_BYTES:
            self._flush()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write many clips at once."""
        self._flush()
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=SCHEMA))
            self._pending, self._pending_sound = [], 0


def write_index(folder: Path, shards: Sequence[Stored], parts: Sequence[str]) -> pa.RecordBatch:
    """Write the columns of all shards but the sound, in the order of the set that was packed.

    Args:
        folder: Where the shards lie.
        shards: The shards, in order.
        parts: Names of the parts, in order.

    Returns:
        What was written.
    """
    whole = pa.concat_tables([_columns(folder / shard.file) for shard in shards]).combine_chunks()
    part = np.repeat([parts.index(shard.part) for shard in shards], [s.rows for s in shards])
    whole = whole.append_column("part", pa.array(part, pa.int32()))
    rows = whole.column("row").to_numpy()
    order = np.argsort(rows, kind="stable")
    if (np.diff(rows) < 0).any():
        whole = whole.take(pa.array(order)).combine_chunks()
    # Number of each clip among those of all shards.
    whole = whole.append_column("place", pa.array(order, pa.int64()))
    batch = whole.to_batches()[0]
    with named_when_whole(folder / INDEX) as stream, pa.ipc.new_file(stream, batch.schema) as file:
        file.write_batch(batch)
    return batch


def _columns(shard: Path) -> pa.Table:
    """A shard without its sound."""
    with pa.memory_map(str(shard)) as mapped:
        table = pa.ipc.open_stream(mapped).read_all().drop_columns(["audio"])
    fields = [(field.name, _WIDE.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))
