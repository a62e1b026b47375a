"""Lists of AST, SSAST and AudioMAE: a JSON object of sound files and their classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from peas.data.audioset.classes import ClassTable
from peas.data.audioset.youtube_files import stems_of, youtube_ids
from peas.data.columns import Rows, Targets
from peas.data.walk import join_paths, listed
from peas.errors import DataError

_FORM = '{"data": [{"wav": PATH, "labels": "mid,mid"}, …]}'


@dataclass(frozen=True)
class JsonList:
    """Rows of a JSON list. N clips.

    Attributes:
        file: The list.
        ids: `[N]` names of the clips.
        wavs: `[N]` paths as they are written.
        targets: Classes of each clip.
    """

    file: Path
    ids: pa.Array
    wavs: pa.Array
    targets: Targets

    def place(self, row: int) -> str:
        """Where a row stands, for messages."""
        return _place(self.file, row)


def read_json(file: Path, classes: ClassTable) -> JsonList:
    """Read a list such as `balanced_train_data.json`.

    A clip's id is the YouTube id in its file's name; where there is none, the path as written.

    Args:
        file: An object with the key `data`: a list of objects with the keys `wav`, a path, and
            `labels`, machine ids joined by commas. Other keys are passed over.
        classes: Numbers of the classes.

    Raises:
        DataError: The file cannot be read or has another form, or a class is unknown.
    """
    clips = _clips(file)
    wavs = clips.field("wav").cast(pa.large_string())
    labels = clips.field("labels")
    for key, values in (("wav", wavs), ("labels", labels)):
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{_place(file, row)} has no {key!r}: the list must be {_FORM}")
    targets = classes.targets(pc.split_pattern(labels, ","), lambda row: _place(file, row))
    ids, _ = youtube_ids(stems_of(wavs))
    return JsonList(file, pc.coalesce(ids, wavs), wavs, targets)


def resolve(wavs: pa.Array, bases: list[Path]) -> tuple[pa.Array, Rows]:
    """Find listed files: each folder that is named is listed once, and no file asked for.

    Args:
        wavs: `[N]` paths, absolute or from one of `bases`.
        bases: Where relative paths may start; the first that has the file counts.

    Returns:
        Paths of the files that are there, absolute or from the first base; `[found]` their rows in
        `wavs`, rising.

    Raises:
        DataError: A folder cannot be read.
    """
    folders = pc.unique(pc.replace_substring_regex(wavs, r"[^/]*$", "")).to_pylist()
    left = np.arange(len(wavs))
    found, rows = [pa.array([], pa.large_string())], [left[:0]]
    for number, base in enumerate(bases):
        present = pc.is_in(wavs, value_set=_present(base, folders))
        chosen = wavs.filter(present)
        if number:
            whole = pc.starts_with(chosen, "/")
            chosen = pc.if_else(whole, chosen, join_paths(str(base.absolute()), chosen))
        here = present.to_numpy(zero_copy_only=False)
        found.append(chosen)
        rows.append(left[here])
        wavs, left = wavs.filter(pc.invert(present)), left[~here]
    places = np.concatenate(rows)
    order = np.argsort(places)
    return pa.concat_arrays(found).take(pa.array(order)), places[order]


def _present(base: Path, folders: list[str]) -> pa.Array:
    """Paths of everything in some folders, written as the folders are."""
    nothing = pa.scalar("", pa.large_string())
    lists = [
        pc.binary_join_element_wise(pa.scalar(folder, pa.large_string()), names, nothing)
        for folder in folders
        if (base / folder).is_dir()
        for names, _ in listed(base / folder, [])
    ]
    return pa.concat_arrays([pa.array([], pa.large_string()), *lists])


def _clips(file: Path) -> pa.StructArray:
    """The list of clips, with the fields `wav` and `labels`."""
    clip = pa.struct([("wav", pa.string()), ("labels", pa.string())])
    try:
        data = file.read_bytes()
        # One row that holds everything, so that the parser must see all of it in one block.
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(block_size=len(data) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=pa.schema([("data", pa.list_(clip))]),
                newlines_in_values=True,
                unexpected_field_behavior="ignore",
            ),
        )
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except (pa.ArrowInvalid, OverflowError) as error:
        raise DataError(
            f"{file}: is no list of clips ({error}); it must be {_FORM}, whole"
        ) from None
    clips = pa.concat_arrays(
        [pa.array([], clip), *(pc.list_flatten(chunk) for chunk in table["data"].chunks)]
    )
    if not len(clips):
        raise DataError(f"{file} lists no clips: it must be {_FORM}")
    return clips


def _place(file: Path, row: int) -> str:
    return f"{file} entry {row + 1}"
