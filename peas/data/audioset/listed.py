"""Lists of AudioSet's clips, joined with the sound that is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.data.audioset.classes import ClassTable
from peas.data.audioset.json_lists import read_json, resolve
from peas.data.audioset.parquet import read_parquet
from peas.data.audioset.segments import read_segments
from peas.data.audioset.sources import LAYOUTS, Listing
from peas.data.audioset.youtube_files import YouTubeFiles
from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Rows, Strings, Targets
from peas.data.sounds import SoundFiles, Sounds
from peas.errors import DataError
from peas.utils.text import some


class Place(NamedTuple):
    """What the reading of any list needs.

    Attributes:
        root: Folder of the data set.
        classes: Numbers of the classes.
        decoder: Decodes the sound.
        files: Gives the sound files of the folder, walked once.
    """

    root: Path
    classes: ClassTable
    decoder: ResampledCache
    files: Callable[[], YouTubeFiles]


@dataclass(frozen=True)
class ListedClips:
    """The clips of one list. N clips, of which `table` has those with sound.

    Attributes:
        part: Which part of AudioSet it is.
        source: What messages call the list.
        where: Where a row stands in it, for messages.
        ids: `[N]` every clip.
        table: The clips whose sound is there.
        absent: The other ones.
        notes: What is worth knowing of its files, one sentence each.
    """

    part: str
    source: str
    where: Callable[[int], str]
    ids: pa.Array
    table: ClipTable
    absent: Strings
    notes: list[str] = field(default_factory=list)

    def missing(self, root: Path) -> str:
        """Tells of the clips without sound; nothing where all have it."""
        if not len(self.absent):
            return ""
        return (
            f"{len(self.absent)} of the {len(self.ids)} clips of {self.source} have no sound in "
            f"{root}: {some(self.absent)}"
        )


def read_list(listing: Listing, place: Place) -> ListedClips:
    """Read a list and find the sound of its clips.

    Raises:
        DataError: The list cannot be read, or names an unknown class.
    """
    readers = {"segments": _segments, "json": _json, "parquet": _parquet}
    return readers[listing.form](listing, place)


def require_once(lists: Sequence[ListedClips]) -> None:
    """Check that no clip is listed twice.

    Raises:
        DataError: One is.
    """
    ids = pa.concat_arrays([one.ids.cast(pa.large_string()) for one in lists])
    counts = pc.value_counts(ids)
    if len(counts) == len(ids):
        return
    doubled = pc.struct_field(counts, "values").filter(
        pc.greater(pc.struct_field(counts, "counts"), 1)
    )
    clip = doubled[0].as_py()
    places = [
        one.where(int(row))
        for one in lists
        for row in np.flatnonzero(pc.equal(one.ids, clip).to_numpy(zero_copy_only=False))
    ]
    raise DataError(
        f"{clip} is listed twice: {places[0]} and {places[1]}"
        + (f" (and {len(doubled) - 1} more clips are)" if len(doubled) > 1 else "")
        + "; a clip is trained on or tested, and once: remove it from one list"
    )


def require_sound(lists: Sequence[ListedClips], root: Path) -> None:
    """Check that some clip of each list has sound: where none has, files are in another place.

    Raises:
        DataError: None has.
    """
    for one in lists:
        if not len(one.table):
            notes = "".join(f" {note}" for note in one.notes)
            raise DataError(
                f"{one.missing(root)}: no clip is left.{notes} Known layouts: {LAYOUTS}"
            )


def _joined(
    listing: Listing,
    where: Callable[[int], str],
    ids: pa.Array,
    targets: Targets,
    present: Rows,
    sounds: Sounds,
    notes: list[str],
) -> ListedClips:
    """The clips, where `sounds` are those of the rows `present`."""
    whole = len(present) == len(ids)
    names = ids if whole else ids.take(pa.array(present))
    absent = np.setdiff1d(np.arange(len(ids)), present)
    return ListedClips(
        listing.part,
        str(listing),
        where,
        ids,
        ClipTable(Strings(names), targets if whole else targets.take(present), sounds),
        Strings(ids.take(pa.array(absent))),
        notes,
    )


def _segments(listing: Listing, place: Place) -> ListedClips:
    rows = read_segments(listing.files[0], place.classes)
    files = place.files()
    found = files.find(rows.ids, rows.starts)
    present = np.flatnonzero(found.files >= 0)
    paths = Strings(files.paths.take(pa.array(found.files[present])))
    sounds = SoundFiles(place.decoder, place.root, paths)
    notes = []
    if found.doubled:
        first, second = found.example
        notes.append(
            f"{found.doubled} clips of {listing} have several sound files: formats that need no "
            f"ffmpeg go first, then the first path, such as {first} before {second}."
        )
    if found.elsewhere:
        notes.append(
            f"{found.elsewhere} sound files have the id of a clip of {listing} and another start "
            f"than the list says, such as {found.cut}: they are not used."
        )
    return _joined(listing, rows.place, rows.ids, rows.targets, present, sounds, notes)


def _json(listing: Listing, place: Place) -> ListedClips:
    file = listing.files[0]
    rows = read_json(file, place.classes)
    paths, present = resolve(rows.wavs, [place.root, file.parent])
    sounds = SoundFiles(place.decoder, place.root, Strings(paths))
    notes = []
    if not len(present):
        notes.append(
            f"The first file of {file} is {rows.wavs[0]}: it must be absolute, or from {place.root}"
            f" or {file.parent}."
        )
    return _joined(listing, rows.place, rows.ids, rows.targets, present, sounds, notes)


def _parquet(listing: Listing, place: Place) -> ListedClips:
    rows = read_parquet(listing.files, place.classes, place.decoder)
    whole = len(rows.present) == len(rows.ids)
    sounds = rows.sounds if whole else rows.sounds.take(rows.present)
    return _joined(listing, rows.place, rows.ids, rows.targets, rows.present, sounds, [])
