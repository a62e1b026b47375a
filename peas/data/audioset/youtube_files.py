"""Sound files cut from YouTube videos: one walk of their folder, and which file is which clip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.data.columns import Rows
from peas.errors import DataError

# Decoded by libsndfile; and so before the others where a clip has both.
_NATIVE = "wav|flac|ogg|oga|opus|mp3|aif|aiff|aifc|au|caf|w64|rf64"
# Decoded through an ffmpeg on the path.
_FOREIGN = "m4a|mp4|mov|webm|mkv|mka|aac|wma|3gp"
_SOUND_NAME = rf"(?i)^[^.].*\.({_NATIVE}|{_FOREIGN})$"
_FOREIGN_NAME = rf"(?i)\.({_FOREIGN})$"

# An id has eleven characters and may itself hold underscores, begin with a Y or look like a
# number. Its length alone parts it from what surrounds it: a Y before it, which AudioSet's tools
# add, and the start and end after it. No name can be read in two ways.
YOUTUBE_ID = "[0-9A-Za-z_-]{11}"
_NAME = rf"^Y?(?P<id>{YOUTUBE_ID})(?:_(?P<start>[0-9]+(?:\.[0-9]+)?)(?:_[0-9]+(?:\.[0-9]+)?)?)?$"
_BATCH = 65_536


def youtube_ids(stems: pa.Array) -> tuple[pa.Array, pa.Array]:
    """YouTube id and start that each file name states.

    Args:
        stems: `[N]` file names without folder and extension: `<id>`, `<id>_<start>` or
            `<id>_<start>_<end>`, each with or without a `Y` before it.

    Returns:
        `[N]` ids, null where the name is none of these; `[N]` starts as they are written, null
        where the name states none.
    """
    parts = pc.extract_regex(stems, pattern=_NAME)
    start = pc.struct_field(parts, "start")
    return pc.struct_field(parts, "id"), pc.if_else(pc.equal(start, ""), None, start)


def stems_of(paths: pa.Array) -> pa.Array:
    """File names without folder and extension."""
    return pc.replace_substring_regex(
        pc.replace_substring_regex(paths, r"^.*/", ""), r"\.[^.]*$", ""
    )


def list_names(folder: str) -> pa.Array:
    """Names of everything in one folder.

    Raises:
        DataError: The folder cannot be read.
    """
    return pa.concat_arrays([names for names, _ in _listed(folder)])


def walk_sounds(root: Path) -> pa.Array:
    """Paths of all sound files in a folder and the folders in it, from `root`.

    Names that begin with a dot are passed over. No file is opened or asked for its state.

    Returns:
        `[N]`, in no particular order.

    Raises:
        DataError: A folder cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: correct data.init_args.root")
    chunks = []
    # A link may lead back to where the walk came from.
    waiting, seen = [""], {_identity(str(root))}
    while waiting:
        inner = waiting.pop()
        for names, entries in _listed(os.path.join(root, inner)):
            sound = pc.match_substring_regex(names, pattern=_SOUND_NAME)
            chunks.append(join_paths(inner, names.filter(sound)))
            # Whether something is a folder may cost a call to the file system, so sounds are
            # not asked.
            for row in np.flatnonzero(~sound.to_numpy(zero_copy_only=False)):
                entry = entries[row]
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                identity = _identity(entry.path)
                if identity not in seen:
                    seen.add(identity)
                    waiting.append(os.path.join(inner, entry.name))
    return pa.concat_arrays(chunks)


def join_paths(folder: str, names: pa.Array) -> pa.Array:
    """Paths of names in a folder; an empty folder adds nothing."""
    if not folder:
        return names
    before, slash = (pa.scalar(text, pa.large_string()) for text in (folder.rstrip("/"), "/"))
    return pc.binary_join_element_wise(before, names, slash)


def _listed(folder: str) -> Iterator[tuple[pa.Array, list[os.DirEntry[str]]]]:
    """Names in a folder with their entries, some at a time: few are Python objects at once.

    A name that is no text in UTF-8 is no clip's, and no column of text could hold it.
    """
    try:
        with os.scandir(folder) as source:
            while True:
                batch = list(islice(source, _BATCH))
                entries = [entry for entry in batch if entry.name.isascii() or _is_text(entry.name)]
                yield pa.array([entry.name for entry in entries], pa.large_string()), entries
                if not batch:
                    return
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); check the path and "
            "its permissions"
        ) from error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(folder: str) -> tuple[int, int]:
    """What is the same for a folder and all links to it."""
    state = os.stat(folder)
    return state.st_dev, state.st_ino


@dataclass(frozen=True)
class Found:
    """Which files hold the sound of some clips. N clips.

    Attributes:
        files: `[N]` row of each clip's file, -1 where there is none.
        doubled: Clips that have several files.
        example: Two files of one such clip, the chosen one first.
        elsewhere: Files whose name states a start that is not the list's.
        cut: Such a file.
    """

    files: Rows
    doubled: int = 0
    example: tuple[str, str] = ("", "")
    elsewhere: int = 0
    cut: str = ""


class YouTubeFiles:
    """Sound files, found by the clip that their names state.

    Args:
        paths: `[M]` paths, as `walk_sounds` gives them.
    """

    def __init__(self, paths: pa.Array) -> None:
        self.paths = paths
        self._stems = stems_of(paths)
        self._ids, starts = youtube_ids(self._stems)
        self._starts: NDArray[np.float64] = (
            starts.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        )

    def find(self, ids: pa.Array, starts: NDArray[np.float64]) -> Found:
        """Find the files of clips.

        A clip's file is named by its id exactly, or as `youtube_ids` says. A start in the name, in
        seconds or in thousandths, must be the clip's, since other data sets cut other pieces from
        the same videos. Of several files, one that libsndfile decodes goes before the others, then
        the first by path.

        Args:
            ids: `[N]` names of clips, each once.
            starts: `[N]` where they begin in their videos, in seconds.
        """
        wanted = ids.cast(pa.large_string())
        clips = _rows_in(self._ids, wanted)
        stated = self._starts
        if not pc.all(pc.match_substring_regex(wanted, pattern=f"^{YOUTUBE_ID}$")).as_py():
            # The name of a clip that is no YouTube id may end like a start.
            whole = _rows_in(self._stems, wanted)
            clips = np.where(whole >= 0, whole, clips)
            stated = np.where(whole >= 0, np.nan, stated)
        files = np.flatnonzero(clips >= 0)
        clips = clips[files]
        other = _differ(stated[files], starts[clips])
        cut = files[other]
        files, clips = files[~other], clips[~other]
        best, doubled, example = self._choose(files, clips, len(ids))
        return Found(best, doubled, example, len(cut), self._path(cut[0]) if len(cut) else "")

    def _choose(self, files: Rows, clips: Rows, count: int) -> tuple[Rows, int, tuple[str, str]]:
        """One file of each clip; how many clips had several; two files of one of them."""
        best = np.full(count, -1, dtype=np.int64)
        best[clips] = files
        several = np.bincount(clips, minlength=count) > 1
        rivals = several[clips]
        if not rivals.any():
            return best, 0, ("", "")
        paths = self.paths.take(pa.array(files[rivals]))
        table = pa.table(
            {
                "clip": clips[rivals],
                "foreign": pc.match_substring_regex(paths, _FOREIGN_NAME),
                "path": paths,
                "file": files[rivals],
            }
        ).sort_by([("clip", "ascending"), ("foreign", "ascending"), ("path", "ascending")])
        sorted_clips, sorted_files = table["clip"].to_numpy(), table["file"].to_numpy()
        names, first = np.unique(sorted_clips, return_index=True)
        best[names] = sorted_files[first]
        return best, len(names), (self._path(sorted_files[0]), self._path(sorted_files[1]))

    def _path(self, file: int) -> str:
        path: str = self.paths[int(file)].as_py()
        return path


def _rows_in(values: pa.Array, table: pa.Array) -> Rows:
    """Row of each value in a table, -1 where it is not there."""
    found = pc.fill_null(pc.index_in(values, value_set=table), -1)
    rows: Rows = found.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def _differ(stated: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a start in a name is neither the true one in seconds nor in thousandths.

    Names may round or cut to whole seconds, or to whole thousandths.
    """
    seconds = np.abs(stated - true) < 1
    thousandths = np.abs(stated - 1000 * true) < 1
    differ: NDArray[np.bool_] = ~(np.isnan(stated) | seconds | thousandths)
    return differ
