"""Clips in Parquet files, as copies on model hubs hold them: sound as bytes, classes by name."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.data.audioset.classes import ClassTable, targets_of
from peas.data.audioset.youtube_files import stems_of, youtube_ids
from peas.data.cache import ResampledCache
from peas.data.columns import Rows, Targets
from peas.data.sounds import Sounds, Source
from peas.errors import AudioError, DataError
from peas.utils.text import some

if TYPE_CHECKING:
    from datasets import Dataset

IDS = ("video_id", "youtube_id", "ytid", "id")
LABELS = ("labels", "human_labels", "label")
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")
_FORM = f"a copy of AudioSet has the columns {IDS[0]}, audio and {LABELS[0]} or {LABELS[1]}"


class EncodedSounds(Sounds):
    """Clips whose sound files are bytes in a column of a data set on disk.

    Args:
        decoder: Decodes, resamples and remembers.
        audio: `[N]` structs with the field `bytes`; memory-mapped, so that processes share it.
        names: `[N]` what messages call the clips.
    """

    def __init__(self, decoder: ResampledCache, audio: pa.ChunkedArray, names: pa.Array) -> None:
        super().__init__(decoder)
        self.audio = audio
        self.names = names

    def __len__(self) -> int:
        return len(self.audio)

    def source(self, row: int, crop: float | None = None) -> Source:
        """Bytes of a clip.

        Raises:
            AudioError: The row has none.
        """
        data, name = self.audio[row]["bytes"].as_py(), self.names[row].as_py()
        if not data:
            raise AudioError(f"{name}: its row of the Parquet copy holds no sound; fetch it again")
        return Source(data, name)

    def extents(self, rows: Rows) -> Rows:
        """Sizes of the encoded sounds."""
        sizes = [pc.binary_length(pc.struct_field(chunk, "bytes")) for chunk in self.audio.chunks]
        found: Rows = np.concatenate([size.fill_null(0).to_numpy() for size in sizes])
        return found[rows].astype(np.int64)


@dataclass(frozen=True)
class ParquetClips:
    """Rows of Parquet files. N clips.

    Attributes:
        files: The files.
        ends: `[files]` number of rows up to the end of each file.
        ids: `[N]` names of the clips.
        targets: Classes of each clip.
        sounds: Sound of each clip.
        present: Rows that hold sound, rising.
    """

    files: list[Path]
    ends: Rows
    ids: pa.Array
    targets: Targets
    sounds: Sounds
    present: Rows

    def place(self, row: int) -> str:
        """Where a row stands, for messages."""
        return _place(self.files, self.ends, row)


def read_parquet(files: list[Path], classes: ClassTable, decoder: ResampledCache) -> ParquetClips:
    """Open Parquet files for reading by row.

    A row of Parquet can only be read with its whole row group, so `datasets` first writes the
    rows into Arrow files, once: as large as the Parquet files, in `$HF_DATASETS_CACHE` or
    `~/.cache/huggingface/datasets`. From there a row is read by itself.

    Args:
        files: All shards, in order.
        classes: Numbers of the classes; a column may hold machine ids, display names, or numbers
            of a class feature.
        decoder: Decodes the sound.

    Raises:
        DataError: A file is damaged, a column is missing, or a class is unknown.
    """
    sizes, names = zip(*(_footer(file) for file in files), strict=True)
    label = next((name for name in LABELS if name in names[0]), "")
    identity = next((name for name in IDS if name in names[0]), "")
    for file, present in zip(files, names, strict=True):
        lacking = [name for name in ("audio", label or LABELS[0]) if name not in present]
        if lacking:
            raise DataError(
                f"{file} has no column {some(lacking)}, but {some(sorted(present), 8)}: {_FORM}"
            )
    ends = np.cumsum(sizes)
    if not ends[-1]:
        raise DataError(f"{files[0]} holds no rows: fetch it again")
    table = _arrow(files, [name for name in (identity, "audio", label) if name])
    audio = table.data.column("audio")
    # In one piece: looking up a name in a column of many pieces costs more than the name.
    ids = _text(table.data.column(identity) if identity else _paths(audio))
    if not identity:
        found, _ = youtube_ids(stems_of(ids))
        ids = pc.coalesce(found, ids)
    if ids.null_count:
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{_place(files, ends, row)} has no name: {_FORM}")
    targets = _targets(table, label, classes, files, ends)
    full = pc.greater(pc.binary_length(pc.struct_field(audio, "bytes")), 0)
    here = pc.fill_null(full, False).to_numpy()
    return ParquetClips(
        files, ends, ids, targets, EncodedSounds(decoder, audio, ids), np.flatnonzero(here)
    )


def require_shards(files: list[Path]) -> None:
    """Check that names such as `train-00001-of-00004.parquet` leave out no number.

    Raises:
        DataError: A shard is missing.
    """
    shards: defaultdict[tuple[Path, str, str], set[int]] = defaultdict(set)
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            shards[file.parent, match[1], match[3]].add(int(match[2]))
    for (folder, name, count), numbers in shards.items():
        absent = [
            f"{name}-{number:0{len(count)}}-of-{count}"
            for number in sorted(set(range(int(count))) - numbers)
        ]
        if absent:
            raise DataError(
                f"{folder}: {len(absent)} of {int(count)} shards of {name} are missing: "
                f"{some(absent)}; fetch them, or name the files that are meant as "
                "data.init_args.train or evaluation"
            )


def _footer(file: Path) -> tuple[int, list[str]]:
    """Number of rows of a file, and names of its columns."""
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _broken(file, error) from None
    return footer.num_rows, list(footer.schema.to_arrow_schema().names)


def _broken(file: Path, error: Exception) -> DataError:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(
        f"{file}: cannot be read as Parquet ({said[0].rstrip('.')}); it is damaged or cut short: "
        "fetch it again"
    )


def _arrow(files: list[Path], columns: list[str]) -> Dataset:
    """The rows of all files in the cache of `datasets`, some columns only."""
    from datasets import Audio, load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        table = load_dataset(
            "parquet",
            data_files=[glob.escape(str(file.absolute())) for file in files],
            columns=columns,
            split="train",
        )
    except (DatasetGenerationError, pa.ArrowException, OSError) as error:
        for file in files:
            _read_through(file)
        raise DataError(
            f"{files[0].parent}: its Parquet files could not be brought into the cache of "
            f"`datasets` ({error.__cause__ or error}); it needs as much room as they have, in "
            "$HF_DATASETS_CACHE or ~/.cache/huggingface/datasets"
        ) from error
    # The bytes as they are: decoding is the reader's.
    return table.cast_column("audio", Audio(decode=False))


def _read_through(file: Path) -> None:
    """Raise DataError when a part of a file cannot be read."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                source.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise _broken(file, error) from None


def _text(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(
        [pa.array([], pa.large_string()), *column.cast(pa.large_string()).chunks]
    )


def _paths(audio: pa.ChunkedArray) -> pa.ChunkedArray:
    """Name of the file that each clip once was."""
    return pc.struct_field(audio, "path")


def _targets(
    table: Dataset, label: str, classes: ClassTable, files: list[Path], ends: Rows
) -> Targets:
    """Classes of each row."""
    column = table.data.column(label)
    feature: Any = table.features[label]
    lists = pa.concat_arrays(column.chunks)
    if pa.types.is_string(lists.type) or pa.types.is_large_string(lists.type):
        # Machine ids have no comma in them, display names have: those come as lists.
        ids = pc.all(pc.starts_with(lists, "/")).as_py()
        lists = pc.split_pattern(lists, "," if ids else "\n")
    elif not pa.types.is_list(lists.type) and not pa.types.is_large_list(lists.type):
        lists = pa.ListArray.from_arrays(np.arange(len(lists) + 1, dtype=np.int32), lists)
    values = pc.list_flatten(lists)
    if not pa.types.is_integer(values.type):
        return classes.targets(lists, lambda row: _place(files, ends, row))
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    count = len(classes) if names is None else len(names)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= count))
    if len(wrong):
        raise DataError(
            f"{_place(files, ends, int(rows[wrong[0]]))}: class number {numbers[wrong[0]]} of "
            f"column {label} is none of 0 to {count - 1}; give the table of its classes as "
            "data.init_args.class_labels"
        )
    if names is not None:
        known = classes.numbers(pa.array(names, pa.string()))
        strange = [name for name, number in zip(names, known, strict=True) if number < 0]
        if strange:
            raise DataError(
                f"{files[0]}: its column {label} knows the class {strange[0]!r}, which is none of "
                f"{classes.source}; give the table of its classes as data.init_args.class_labels"
            )
        numbers = known[numbers]
    return targets_of(rows, numbers, len(lists), len(classes))


def _place(files: list[Path], ends: Rows, row: int) -> str:
    number = int(np.searchsorted(ends, row, side="right"))
    before = int(ends[number - 1]) if number else 0
    return f"{files[number]} row {row - before}"
