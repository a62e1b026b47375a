"""AudioSet in Parquet files, as on the Hugging Face hub: sound as bytes, classes by name."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.data.audioset.layout import Listing
from peas.data.audioset.lists import Context, ListedClips
from peas.data.audioset.youtube_files import stems_of, youtube_ids
from peas.data.cache import ResampledCache
from peas.data.columns import Rows, Targets
from peas.data.labels import ClassTable, targets_of
from peas.data.sounds import Sounds, Source
from peas.errors import AudioError, DataError
from peas.utils.text import some

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

PREFIX = "hf://"
_SECONDS = 10
IDS = ("video_id", "youtube_id", "ytid", "id")
LABELS = ("labels", "human_labels", "label")
_FORM = f"a copy of AudioSet has the columns {IDS[0]}, audio and {LABELS[0]} or {LABELS[1]}"


class EncodedSounds(Sounds):
    """Clips whose encoded sound is a column of a data set on disk.

    Args:
        decoder: Decodes, resamples and caches.
        audio: `[N]` structs with the field `bytes`; memory-mapped, so that processes share it.
        names: `[N]` names of the clips in messages.
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
        lengths: Rows = np.concatenate([size.fill_null(0).to_numpy() for size in sizes])
        return lengths[rows].astype(np.int64)


def parquet_clips(listing: Listing, context: Context) -> ListedClips:
    """Clips of Parquet files.

    A row of Parquet can only be read with its entire row group, so `datasets` first writes the
    rows into Arrow files, once: as large as the Parquet files, in `$HF_DATASETS_CACHE` or
    `~/.cache/huggingface/datasets`. There a row can be read by itself.

    A column of classes may hold machine ids, display names, or numbers of a class feature.

    Raises:
        DataError: A file is damaged, a column is missing, or a class is unknown.
    """
    files = listing.files
    sizes, columns = zip(*(_footer(file) for file in files), strict=True)
    label = next((name for name in LABELS if name in columns[0]), "")
    identity = next((name for name in IDS if name in columns[0]), "")
    for file, present in zip(files, columns, strict=True):
        missing = [name for name in ("audio", label or LABELS[0]) if name not in present]
        if missing:
            raise DataError(
                f"{file} has no column {some(missing)}, but {some(sorted(present), 8)}: {_FORM}"
            )
    ends = np.cumsum(sizes)
    if not ends[-1]:
        raise DataError(f"{files[0]} holds no rows: fetch it again")

    def where(row: int) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        return f"{files[number]} row {row - (int(ends[number - 1]) if number else 0)}"

    table = _arrow(files, [name for name in (identity, "audio", label) if name])
    audio = table.data.column("audio")
    # One chunk: looking up a name in a column of many pieces costs more than the name.
    names = table.data.column(identity) if identity else pc.struct_field(audio, "path")
    ids = pa.concat_arrays([pa.array([], pa.large_string()), *names.cast(pa.large_string()).chunks])
    if not identity:
        ids = pc.coalesce(youtube_ids(stems_of(ids))[0], ids)
    if ids.null_count:
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{where(row)} has no name: {_FORM}")
    targets = _targets(table, label, context.classes, where)
    has_sound = pc.greater(pc.binary_length(pc.struct_field(audio, "bytes")), 0)
    rows = np.flatnonzero(pc.fill_null(has_sound, False).to_numpy())
    sounds: Sounds = EncodedSounds(context.decoder, audio, ids)
    if len(rows) < len(ids):
        sounds = sounds.take(rows)
    return ListedClips.join(listing, where, ids, targets, rows, sounds)


def _footer(file: Path) -> tuple[int, list[str]]:
    """Number of rows of a file, and names of its columns."""
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None
    return footer.num_rows, list(footer.schema.to_arrow_schema().names)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file}: cannot be read as Parquet ({_first_line(error)}); it is damaged or cut short: "
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
    # The bytes as they are: decoding comes later.
    return table.cast_column("audio", Audio(decode=False))


def _read_through(file: Path) -> None:
    """Raise DataError when a part of a file cannot be read."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                source.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from None


def _targets(
    table: Dataset, label: str, classes: ClassTable, where: Callable[[int], str]
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
        return classes.targets(lists, where)
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    count = len(classes) if names is None else len(names)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= count))
    if len(wrong):
        raise DataError(
            f"{where(int(rows[wrong[0]]))}: class number {numbers[wrong[0]]} of "
            f"column {label} is none of 0 to {count - 1}; give the table of its classes as "
            "data.init_args.class_labels"
        )
    if names is not None:
        own = classes.numbers(pa.array(names, pa.string()))
        unknown = [name for name, number in zip(names, own, strict=True) if number < 0]
        if unknown:
            raise DataError(
                f"{where(0)}: its column {label} has the class {unknown[0]!r}, which is none of "
                f"{classes.source}; give the table of its classes as data.init_args.class_labels"
            )
        numbers = own[numbers]
    return targets_of(rows, numbers, len(lists), len(classes))


def hub_folder(name: str, select: Callable[[str], bool]) -> Path:
    """Folder of a hub repository in the local cache; what is missing is downloaded first.

    Without a network, or with `HF_HUB_OFFLINE=1`, the copy in the cache is used.

    Args:
        name: `hf://owner/name`, or `hf://owner/name@revision`.
        select: Whether a file is needed, by its path in the repository.

    Raises:
        DataError: There is no such repository or no such file in it, or it cannot be reached and
            its copy in the cache is incomplete.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise DataError(f"data.init_args.root is {name!r}: a hub copy is {PREFIX}owner/name")
    where: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset"}
    where["revision"] = revision or None
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        info = HfApi().dataset_info(repository, revision=revision or None, timeout=_SECONDS)
        files = [file.rfilename for file in info.siblings or [] if select(file.rfilename)]
    except HfHubHTTPError as error:
        raise DataError(
            f"{name}: the hub refuses access ({_first_line(error)}); check its name, and log in "
            "with `hf auth login` if it is not public"
        ) from error
    # The classes of connection errors change with the hub client's HTTP library.
    except Exception as error:
        return _cached_folder(name, where, select, f"no connection to the hub ({error})")
    if not files:
        raise DataError(
            f"{name} has no file that can be used: give a copy with Parquet files, whose names or "
            "folders tell training from evaluation"
        )
    try:
        # By exact name: other parts may be terabytes.
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(**where, allow_patterns=patterns))
    except Exception as error:
        raise DataError(
            f"{name}: the download was interrupted ({_first_line(error)}); the same command "
            "resumes it"
        ) from error


def _cached_folder(
    name: str, where: dict[str, Any], select: Callable[[str], bool], reason: str
) -> Path:
    """The copy in the cache, complete as far as the cache knows its files."""
    from huggingface_hub import snapshot_download

    patterns = None
    try:
        # Newer than the oldest client that `datasets` accepts.
        from huggingface_hub import get_cached_repo_tree

        patterns = [glob.escape(f.path) for f in get_cached_repo_tree(**where) if select(f.path)]
    except Exception:
        log.debug("%s: the cache has no list of its files", name)
    try:
        folder = snapshot_download(**where, local_files_only=True, allow_patterns=patterns)
    except Exception as error:
        state = "is incomplete" if hasattr(error, "snapshot_path") else "is missing"
        raise DataError(
            f"{name}: {reason}, and its copy in the hub's cache {state}; fetch it where there is a "
            f"network (`hf download --repo-type dataset {where['repo_id']} --local-dir DIR`) and "
            "give DIR as data.init_args.root"
        ) from None
    log.warning("%s: %s: using the copy in the cache, %s", name, reason, folder)
    return Path(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
