"""`EmbeddingStore`: what `peas embed` writes, an embedding of every clip of a set, and its columns.

A folder: `manifest.json` (settings, labels, layers, files), `clips.arrow` (id, classes, split,
recording, speaker) and shards of embeddings, a column for each layer. The files are Arrow's own
format, so that pandas, Polars and `datasets` read them too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from peas import __version__
from peas.data.columns import Rows, Targets, duplicates
from peas.data.shards import LeftOut, StoredFile, read_json, write_json
from peas.errors import ConfigError, DataError
from peas.utils.files import atomic_write, checksum
from peas.utils.text import some

FORMAT = "peas-embeddings"
VERSION = 1
"""Of the folder's layout; other versions are refused."""

MANIFEST = "manifest.json"
INDEX = "clips.arrow"
COMMAND = "peas embed"
AGAIN = "run the same `peas embed` again, which writes what is missing"

Embeddings = NDArray[np.float32]


class ClipFrames(NamedTuple):
    """Embeddings of one clip over time.

    Attributes:
        embeddings: `[T', D']` of one layer, or `[L, T', D']`.
        times: `[T']` centre of each in milliseconds from the clip's beginning.
    """

    embeddings: Embeddings
    times: Embeddings


@dataclass(frozen=True)
class StoredShard(StoredFile):
    """A shard of a store; its name is empty where not one of its clips could be read.

    Attributes:
        first: Row of its first clip among those that were to be embedded.
        stop: Row after its last.
        left_out: Clips among them that could not be read.
    """

    first: int = 0
    stop: int = 0
    left_out: list[LeftOut] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        return {**vars(self), "left_out": [clip.to_json() for clip in self.left_out]}


@dataclass
class Manifest:
    """Metadata of a store.

    Attributes:
        settings: What decides its content.
        layers: Numbers of the layers.
        labels: Names of the classes.
        multi_label: Whether a clip may have several classes.
        frames: Whether it has embeddings over time.
        shards: The finished ones, in order.
        index: The file of the other columns; None while shards are missing.
        peas: Version that wrote it.
    """

    settings: dict[str, Any]
    layers: list[int]
    labels: list[str]
    multi_label: bool
    frames: bool
    shards: list[StoredShard] = field(default_factory=list)
    index: StoredFile | None = None
    peas: str = __version__

    @property
    def left_out(self) -> list[LeftOut]:
        """Clips that could not be read."""
        return [clip for shard in self.shards for clip in shard.left_out]

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Manifest:
        """Manifest of the file's content.

        Raises:
            KeyError, TypeError: It lacks something.
        """
        own = {key: content[key] for key in cls.__dataclass_fields__}
        own["shards"] = [
            StoredShard(**{**entry, "left_out": [LeftOut(**clip) for clip in entry["left_out"]]})
            for entry in content["shards"]
        ]
        own["index"] = content["index"] and StoredFile(**content["index"])
        return cls(**own)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **vars(self),
            "shards": [shard.to_json() for shard in self.shards],
            "index": self.index and asdict(self.index),
        }


@dataclass(frozen=True)
class Columns:
    """What a store holds of its clips besides embeddings. N clips.

    Attributes:
        ids: Name of each.
        targets: Classes of each.
        split: Split of each (`train`, `validation`, `test`), or the name of its fold; empty =
            unknown.
        recording: Recording that each was cut from; None = unknown.
        speaker: Speaker of each; None = unknown.
    """

    ids: list[str]
    targets: Targets
    split: list[str]
    recording: list[str] | None = None
    speaker: list[str] | None = None

    def take(self, rows: Sequence[int]) -> Columns:
        """The columns of some clips."""

        def some(values: list[str] | None) -> list[str] | None:
            return values and [values[row] for row in rows]

        return Columns(
            some(self.ids) or [],
            self.targets.take(rows),
            some(self.split) or [],
            some(self.recording),
            some(self.speaker),
        )


class EmbeddingStore:
    """A folder that `peas embed` wrote. N clips, L layers.

    Embeddings are mapped into memory and read when they are asked for.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        ids: Name of each clip.
        split: Split of each clip, or the name of its fold; empty = unknown.
        recording: Recording that each clip was cut from; None = unknown.
        speaker: Speaker of each clip; None = unknown.
        labels: Names of the classes; empty without classes.
        multi_label: Whether a clip may have several classes.
        layers: Numbers of the layers, as in `AudioModel`.
        settings: What decides the content: checkpoint and its checksum, set, pool, and so on.
        left_out: Clips of the set that could not be read.
        has_frames: Whether there are embeddings over time.

    Raises:
        DataError: The folder is no store, an unfinished one, or a file of it is missing or of
            another size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        manifest = read_manifest(self.folder)
        if manifest.index is None:
            raise DataError(f"{self.folder}: the embeddings are not finished; {AGAIN}")
        self._shards = [shard for shard in manifest.shards if shard.file]
        for stored in (manifest.index, *self._shards):
            if fault := stored.fault(self.folder):
                raise DataError(f"{fault}; {AGAIN}")
        self.settings: dict[str, Any] = manifest.settings
        self.layers: list[int] = manifest.layers
        self.labels: list[str] = manifest.labels
        self.multi_label: bool = manifest.multi_label
        self.has_frames: bool = manifest.frames
        self.left_out: list[LeftOut] = manifest.left_out
        columns = _read_index(self.folder / INDEX)
        self.ids: list[str] = columns.ids
        self.split: list[str] = columns.split
        self.recording: list[str] | None = columns.recording
        self.speaker: list[str] | None = columns.speaker
        self._targets = columns.targets

    @classmethod
    def open(cls, folder: str | Path) -> EmbeddingStore:
        """The store of a folder."""
        return cls(folder)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.ids)

    @property
    def classes(self) -> Rows:
        """Class of each clip, `[N]` int64; -1 where it has none, or several."""
        classes = np.full(len(self), -1, dtype=np.int64)
        single = self._targets.sizes == 1
        classes[single] = self._targets.classes[self._targets.offsets[:-1][single]]
        return classes

    @property
    def targets(self) -> NDArray[np.bool_]:
        """Classes of each clip, `[N, C]` bool."""
        targets = np.zeros((len(self), len(self.labels)), dtype=bool)
        targets[np.repeat(np.arange(len(self)), self._targets.sizes), self._targets.classes] = True
        return targets

    def embeddings(self, layer: int | None = None) -> Embeddings:
        """Embeddings in the order of `ids`.

        Args:
            layer: Number of a layer, negative ones from the end of `layers`; None = all.

        Returns:
            `[N, D]` float32 of one layer, or of a store of one layer; else `[L, N, D]`.

        Raises:
            ConfigError: The store has no such layer.
        """
        numbers = self._chosen(layer)
        columns = [
            np.concatenate([_matrix(table.column(name_of(one))) for table in self._tables])
            for one in numbers
        ]
        return columns[0] if len(numbers) == 1 else np.stack(columns)

    def frames(self, row: int, layer: int | None = None) -> ClipFrames:
        """Embeddings of one clip over time.

        Args:
            row: Of `ids`.
            layer: As for `embeddings`.

        Raises:
            ConfigError: The store has no frames, or no such layer.
        """
        if not self.has_frames:
            raise ConfigError(f"{self.folder} has no frames: write it by `peas embed --frames`")
        row = range(len(self))[row]
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        table, row = self._tables[number], row - int(self._firsts[number])
        clips = [
            _matrix(table.column(name_of(one, frames=True)).chunk(0)[row].values)
            for one in self._chosen(layer)
        ]
        times = table.column("times").chunk(0)[row].values.to_numpy(zero_copy_only=False)
        return ClipFrames(clips[0] if len(clips) == 1 else np.stack(clips), times)

    @cached_property
    def _tables(self) -> list[pa.Table]:
        return [_mapped(self.folder / shard.file) for shard in self._shards]

    @cached_property
    def _firsts(self) -> Rows:
        return np.cumsum([0, *(len(table) for table in self._tables[:-1])])

    def _chosen(self, layer: int | None) -> list[int]:
        if layer is None:
            return self.layers
        if layer in self.layers:
            return [layer]
        if -len(self.layers) <= layer < 0:
            return [self.layers[layer]]
        raise ConfigError(
            f"{self.folder} has no layer {layer}: it has {', '.join(map(str, self.layers))}; more "
            "are written by `peas embed --layers`"
        )


def read_manifest(folder: Path) -> Manifest:
    """Manifest of a store, complete or not.

    Raises:
        DataError: The folder is no store, or one that is damaged or of another version.
    """
    file = folder / MANIFEST
    content = read_json(file, format=FORMAT, version=VERSION, command=COMMAND)
    try:
        return Manifest.parse(content)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{file}: damaged ({error}); delete {folder} and run `{COMMAND}` again"
        ) from None


def write_store(
    folder: str | Path,
    embeddings: ArrayLike,
    ids: Sequence[str],
    *,
    layers: Sequence[int] = (0,),
    labels: Sequence[str] = (),
    classes: ArrayLike | None = None,
    targets: ArrayLike | None = None,
    split: Sequence[str] | None = None,
    recording: Sequence[str] | None = None,
    speaker: Sequence[str] | None = None,
    frames: Sequence[ClipFrames] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> EmbeddingStore:
    """Write embeddings that are in memory, such as those of another model.

    Args:
        folder: The folder: new or empty; it is made.
        embeddings: `[N, D]`, or `[L, N, D]` of several layers.
        ids: Name of each clip.
        layers: Numbers of the layers.
        labels: Names of the classes.
        classes: `[N]` class of each clip; -1 = none.
        targets: `[N, C]` instead, for clips of any number of classes.
        split: Split or fold of each clip.
        recording: Recording that each clip was cut from.
        speaker: Speaker of each clip.
        frames: Embeddings of each clip over time, of the same layers.
        settings: How they were made.

    Raises:
        ConfigError: Shapes or lengths do not fit each other, an id is there twice, or a class has
            no label.
        DataError: The folder holds something.
    """
    folder, array = Path(folder), np.asarray(embeddings, dtype=np.float32)
    if array.ndim == 2:
        array = array[None]
    if array.shape[:2] != (len(layers), len(ids)):
        raise ConfigError(
            f"embeddings of {list(array.shape)} for {len(layers)} layers of {len(ids)} clips: give "
            "[N, D] or [L, N, D]"
        )
    given = {
        "classes": classes,
        "targets": targets,
        "split": split,
        "recording": recording,
        "speaker": speaker,
        "frames": frames,
    }
    for name, values in given.items():
        if values is not None and len(cast(Sequence[Any], values)) != len(ids):
            raise ConfigError(
                f"{name} has {len(cast(Sequence[Any], values))} entries for {len(ids)} clips: give "
                "one for each"
            )
    if twice := duplicates(pa.array(ids, pa.string())):
        raise ConfigError(f"ids name more than one clip: {some(twice)}; give each clip its own")
    if classes is not None and len(ids):
        lowest, highest = np.min(classes), np.max(classes)
        if lowest < -1 or highest >= len(labels):
            raise ConfigError(
                f"classes are {lowest} to {highest} for {len(labels)} labels: give -1, or the "
                "number of a label"
            )
    if targets is not None and np.shape(targets) != (len(ids), len(labels)):
        raise ConfigError(
            f"targets of {list(np.shape(targets))} for {len(ids)} clips and {len(labels)} labels: "
            "give [N, C]"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there already; give a new or an empty folder")
    columns = Columns(
        list(ids),
        _targets(len(ids), classes, targets),
        list(split if split is not None else [""] * len(ids)),
        None if recording is None else list(recording),
        None if speaker is None else list(speaker),
    )
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        dict(settings or {}), list(layers), list(labels), targets is not None, frames is not None
    )
    file = write_shard(folder / shard_name(0), layers, columns.ids, array, frames)
    manifest.shards = [StoredShard(**vars(file), first=0, stop=len(ids))]
    manifest.index = write_index(folder, columns)
    write_json(folder / MANIFEST, manifest.to_json())
    return EmbeddingStore(folder)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.arrow"


def name_of(layer: int, *, frames: bool = False) -> str:
    """Column of a layer in a shard."""
    return f"frames_{layer}" if frames else f"layer_{layer}"


def write_shard(
    file: Path,
    layers: Sequence[int],
    ids: Sequence[str],
    embeddings: Embeddings,
    frames: Sequence[ClipFrames] | None = None,
) -> StoredFile:
    """Write a shard.

    Args:
        file: Where to.
        layers: Numbers of the layers.
        ids: Name of each clip.
        embeddings: `[L, N, D]`.
        frames: Of each clip, likewise of all layers.
    """
    columns: dict[str, pa.Array] = {"id": pa.array(ids, pa.string())}
    for layer, values in zip(layers, embeddings, strict=True):
        columns[name_of(layer)] = _vectors(values)
    if frames is not None:
        ends = np.cumsum([0, *(len(clip.times) for clip in frames)]).astype(np.int32)
        for number, layer in enumerate(layers):
            parts = [clip.embeddings.reshape(len(layers), len(clip.times), -1) for clip in frames]
            values = _vectors(np.concatenate([part[number] for part in parts]))
            columns[name_of(layer, frames=True)] = pa.ListArray.from_arrays(ends, values)
        times = np.concatenate([clip.times for clip in frames]).astype(np.float32)
        columns["times"] = pa.ListArray.from_arrays(ends, pa.array(times))
    return _write(file, columns)


def write_index(folder: Path, columns: Columns) -> StoredFile:
    """Write what a store holds besides embeddings."""
    ends = columns.targets.offsets.astype(np.int32)
    classes = pa.ListArray.from_arrays(ends, pa.array(columns.targets.classes, pa.int32()))
    arrays = {
        "id": pa.array(columns.ids, pa.string()),
        "classes": classes,
        "split": pa.array(columns.split, pa.string()),
    }
    for name in ("recording", "speaker"):
        if (values := getattr(columns, name)) is not None:
            arrays[name] = pa.array(values, pa.string())
    return _write(folder / INDEX, arrays)


def _write(file: Path, columns: dict[str, pa.Array]) -> StoredFile:
    batch = pa.RecordBatch.from_pydict(columns)
    with atomic_write(file) as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return StoredFile(file.name, file.stat().st_size, checksum(file))


def _read_index(file: Path) -> Columns:
    table = _mapped(file)
    names = table.column_names
    classes = table.column("classes").combine_chunks()
    if isinstance(classes, pa.ChunkedArray):
        classes = classes.chunk(0)
    return Columns(
        table.column("id").to_pylist(),
        Targets(classes.offsets.to_numpy(), classes.values.to_numpy()),
        table.column("split").to_pylist(),
        table.column("recording").to_pylist() if "recording" in names else None,
        table.column("speaker").to_pylist() if "speaker" in names else None,
    )


def _mapped(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: damaged ({error}); delete it, and {AGAIN}") from None


def _vectors(values: Embeddings) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> Embeddings:
    """`[N, D]` of a column of vectors."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, width) for chunk in chunks]
    joined: Embeddings = np.concatenate(parts)
    return joined


def _targets(clips: int, classes: ArrayLike | None, targets: ArrayLike | None) -> Targets:
    if targets is not None:
        rows, numbers = np.nonzero(np.asarray(targets))
        sizes = np.bincount(rows, minlength=clips)
        return Targets(np.concatenate([[0], np.cumsum(sizes)]), numbers)
    if classes is None:
        return Targets.none(clips)
    values = np.asarray(classes)
    return Targets(np.concatenate([[0], np.cumsum(values >= 0)]), values[values >= 0])
