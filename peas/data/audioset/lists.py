"""AudioSet's lists of clips, segments CSV and JSON, joined with the sound files that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from peas.data.audioset.layout import LAYOUTS, Listing
from peas.data.audioset.youtube_files import YouTubeFiles, stems_of, youtube_ids
from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Rows, Strings, Targets
from peas.data.labels import ClassTable
from peas.data.sounds import SoundFiles, Sounds
from peas.data.walk import join_paths, listed
from peas.errors import DataError
from peas.utils.text import some

_LINE = 'YTID, start_seconds, end_seconds, "mid,mid"'
_FORM = '{"data": [{"wav": PATH, "labels": "mid,mid"}, …]}'


class Context(NamedTuple):
    """What the reading of a list needs.

    Attributes:
        root: Folder of the data set.
        classes: Class numbers.
        decoder: Decodes the sound.
        files: Gives the sound files of the folder, which is walked once.
    """

    root: Path
    classes: ClassTable
    decoder: ResampledCache
    files: Callable[[], YouTubeFiles]


@dataclass(frozen=True)
class ListedClips:
    """The clips of one list. N clips, of which `table` has those with sound.

    Attributes:
        part: Part of AudioSet.
        source: What messages call the list.
        where: Describes a row, for messages.
        ids: `[N]` all clips.
        table: The clips whose sound is there.
        absent: The others.
        notes: Remarks on its files, one sentence each.
    """

    part: str
    source: str
    where: Callable[[int], str]
    ids: pa.Array
    table: ClipTable
    absent: Strings
    notes: list[str] = field(default_factory=list)

    @classmethod
    def join(
        cls,
        listing: Listing,
        where: Callable[[int], str],
        ids: pa.Array,
        targets: Targets,
        present: Rows,
        sounds: Sounds,
        notes: Sequence[str] = (),
    ) -> ListedClips:
        """The clips of a list, where `sounds` are those of the rows `present`."""
        absent = np.setdiff1d(np.arange(len(ids)), present)
        names = ids
        if len(absent):
            names, targets = ids.take(pa.array(present)), targets.take(present)
        return cls(
            listing.part,
            str(listing),
            where,
            ids,
            ClipTable(Strings(names), targets, sounds),
            Strings(ids.take(pa.array(absent))),
            list(notes),
        )

    def missing(self, root: Path) -> str:
        """Message about the clips without sound; empty if all have it."""
        if not len(self.absent):
            return ""
        return (
            f"{len(self.absent)} of the {len(self.ids)} clips of {self.source} have no sound in "
            f"{root}: {some(self.absent)}"
        )


def require_once(lists: Sequence[ListedClips]) -> None:
    """Check that no clip is listed twice.

    Raises:
        DataError: One is.
    """
    ids = pa.concat_arrays([clips.ids.cast(pa.large_string()) for clips in lists])
    counts = pc.value_counts(ids)
    if len(counts) == len(ids):
        return
    duplicates = pc.struct_field(counts, "values").filter(
        pc.greater(pc.struct_field(counts, "counts"), 1)
    )
    name = duplicates[0].as_py()
    rows = [
        clips.where(int(row))
        for clips in lists
        for row in np.flatnonzero(pc.equal(clips.ids, name).to_numpy(zero_copy_only=False))
    ]
    raise DataError(
        f"{name} is listed twice: {rows[0]} and {rows[1]}"
        + (f" (and {len(duplicates) - 1} more clips are)" if len(duplicates) > 1 else "")
        + "; a clip is for training or evaluation, and once: remove it from one list"
    )


def require_sound(lists: Sequence[ListedClips], root: Path) -> None:
    """Check that some clip of each list has sound.

    Raises:
        DataError: None has.
    """
    for clips in lists:
        if not len(clips.table):
            notes = "".join(f" {note}" for note in clips.notes)
            raise DataError(
                f"{clips.missing(root)}: no clip is left.{notes} Known layouts: {LAYOUTS}"
            )


def segment_clips(listing: Listing, context: Context) -> ListedClips:
    """Clips of a `*_segments.csv`, whose sound is found by file name.

    Lines that begin with `#` (the official three at the top) and empty ones are skipped. The
    official lines have a space after each comma, which makes CSV parsers miss the quotes of the
    last field; here the first three commas separate the fields.

    Raises:
        DataError: The file cannot be read, a line has another format, or a class is unknown.
    """
    file = listing.files[0]
    lines = _lines(file)
    is_clip = pc.invert(pc.or_(pc.equal(lines, ""), pc.starts_with(lines, "#")))
    kept = np.flatnonzero(is_clip.to_numpy(zero_copy_only=False))
    if len(kept) and lines[kept[0]].as_py().lower().startswith("ytid"):
        kept = kept[1:]
    if not len(kept):
        raise DataError(f"{file} lists no clips: its lines must be {_LINE}; fetch it again")
    fields = pc.split_pattern(lines.take(pa.array(kept)), ",", max_splits=3)
    counts = pc.list_value_length(fields).to_numpy(zero_copy_only=False)
    short = np.flatnonzero(counts < 4)
    if len(short):
        _refuse_line(file, int(kept[short[0]]), lines)
    flat = pc.list_flatten(fields)
    ids, starts, ends, labels = (
        pc.ascii_trim(flat.take(pa.array(np.arange(column, 4 * len(kept), 4))), characters=' \t"')
        for column in range(4)
    )
    number = r"^[0-9]+(\.[0-9]*)?$"
    valid = pc.and_(*(pc.match_substring_regex(column, number) for column in (starts, ends)))
    wrong = np.flatnonzero(~pc.and_(valid, pc.not_equal(ids, "")).to_numpy(zero_copy_only=False))
    if len(wrong):
        _refuse_line(file, int(kept[wrong[0]]), lines)

    def where(row: int) -> str:
        return f"{file} line {kept[row] + 1}"

    targets = context.classes.targets(pc.split_pattern(labels, ","), where)
    files = context.files()
    matches = files.find(ids, starts.cast(pa.float64()).to_numpy(zero_copy_only=False))
    present = np.flatnonzero(matches.files >= 0)
    paths = Strings(files.paths.take(pa.array(matches.files[present])))
    sounds = SoundFiles(context.decoder, context.root, paths)
    notes = []
    if matches.duplicates:
        first, second = matches.example
        notes.append(
            f"{matches.duplicates} clips of {listing} have several sound files: formats without "
            f"ffmpeg are preferred, then the first path, such as {first} over {second}."
        )
    if matches.elsewhere:
        notes.append(
            f"{matches.elsewhere} sound files have the id of a clip of {listing} and another start "
            f"than in the list, such as {matches.other_start}: they are not used."
        )
    return ListedClips.join(listing, where, ids, targets, present, sounds, notes)


def _lines(file: Path) -> pa.Array:
    """Lines of a text file, stripped."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    try:
        text = pa.array([data.removeprefix(b"\xef\xbb\xbf")], pa.large_binary())
        text = text.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise DataError(f"{file}: is no text in UTF-8; fetch it again") from None
    return pc.ascii_trim_whitespace(pc.list_flatten(pc.split_pattern(text, "\n")))


def _refuse_line(file: Path, line: int, lines: pa.Array) -> NoReturn:
    text = lines[line].as_py()
    raise DataError(
        f"{file} line {line + 1} is {text[:60]!r}: it must be {_LINE}; correct it or fetch it again"
    )


def json_clips(listing: Listing, context: Context) -> ListedClips:
    """Clips of a list of AST, SSAST or AudioMAE, such as `balanced_train_data.json`.

    An object with the key `data`: a list of objects with the keys `wav`, a path, and `labels`,
    machine ids joined by commas. Other keys are ignored. A clip's id is the YouTube id in its
    file's name; if there is none, the path as written.

    Raises:
        DataError: The file cannot be read or has another format, or a class is unknown.
    """
    file = listing.files[0]
    rows = _json_rows(file)
    paths, labels = rows.field("wav").cast(pa.large_string()), rows.field("labels")

    def where(row: int) -> str:
        return f"{file} entry {row + 1}"

    for key, values in (("wav", paths), ("labels", labels)):
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise DataError(f"{where(row)} has no {key!r}: the list must be {_FORM}")
    targets = context.classes.targets(pc.split_pattern(labels, ","), where)
    ids, _ = youtube_ids(stems_of(paths))
    existing, present = _existing(paths, [context.root, file.parent])
    sounds = SoundFiles(context.decoder, context.root, Strings(existing))
    notes = []
    if not len(present):
        notes.append(
            f"The first file of {file} is {paths[0]}: it must be absolute, or from {context.root} "
            f"or {file.parent}."
        )
    return ListedClips.join(
        listing, where, pc.coalesce(ids, paths), targets, present, sounds, notes
    )


def _existing(paths: pa.Array, bases: list[Path]) -> tuple[pa.Array, Rows]:
    """Paths of the files that exist, absolute or from the first base, and their rows, rising.

    Each folder is listed once, and no file is opened.

    Args:
        paths: `[N]` paths, absolute or from one of `bases`, the first that has the file.
        bases: Folders.
    """
    folders = pc.unique(pc.replace_substring_regex(paths, r"[^/]*$", "")).to_pylist()
    remaining = np.arange(len(paths))
    existing, rows = [pa.array([], pa.large_string())], [remaining[:0]]
    for number, base in enumerate(bases):
        present = pc.is_in(paths, value_set=_present(base, folders))
        chosen = paths.filter(present)
        if number:
            absolute = pc.starts_with(chosen, "/")
            chosen = pc.if_else(absolute, chosen, join_paths(str(base.absolute()), chosen))
        mask = present.to_numpy(zero_copy_only=False)
        existing.append(chosen)
        rows.append(remaining[mask])
        paths, remaining = paths.filter(pc.invert(present)), remaining[~mask]
    all_rows = np.concatenate(rows)
    order = np.argsort(all_rows)
    return pa.concat_arrays(existing).take(pa.array(order)), all_rows[order]


def _present(base: Path, folders: list[str]) -> pa.Array:
    """Paths of everything in some folders, in the spelling of the folders."""
    nothing = pa.scalar("", pa.large_string())
    lists = [
        pc.binary_join_element_wise(pa.scalar(folder, pa.large_string()), names, nothing)
        for folder in folders
        if (base / folder).is_dir()
        for names, _ in listed(base / folder, [])
    ]
    return pa.concat_arrays([pa.array([], pa.large_string()), *lists])


def _json_rows(file: Path) -> pa.StructArray:
    """The list of clips, with the fields `wav` and `labels`."""
    clip = pa.struct([("wav", pa.string()), ("labels", pa.string())])
    try:
        data = file.read_bytes()
        # A single row holds everything, so the parser needs all of it in one block.
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
            f"{file}: is no complete list of clips ({error}); it must be {_FORM}"
        ) from None
    clips = pa.concat_arrays(
        [pa.array([], clip), *(pc.list_flatten(chunk) for chunk in table["data"].chunks)]
    )
    if not len(clips):
        raise DataError(f"{file} lists no clips: it must be {_FORM}")
    return clips
