"""Sound files cut from YouTube videos: one walk of their folder, and which file is which clip."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from peas.audio import ffmpeg
from peas.audio.decode import SOUND_ENDINGS
from peas.data.columns import Rows
from peas.data.walk import walk
from peas.errors import DataError

log = logging.getLogger(__name__)

# Of several files of a clip, those that libsndfile decodes are preferred.
_FOREIGN_NAME = rf"(?i)({'|'.join(map(re.escape, ffmpeg.ENDINGS))})$"

# An id has eleven characters and may itself hold underscores, begin with a Y or look like a
# number. Its length alone separates it from a Y before it, which AudioSet's tools add, and from the
# start and end after it, so no name is ambiguous.
YOUTUBE_ID = "[0-9A-Za-z_-]{11}"
_NAME = rf"^Y?(?P<id>{YOUTUBE_ID})(?:_(?P<start>[0-9]+(?:\.[0-9]+)?)(?:_[0-9]+(?:\.[0-9]+)?)?)?$"


def youtube_ids(stems: pa.Array) -> tuple[pa.Array, pa.Array]:
    """YouTube id and start in each file name.

    Args:
        stems: `[N]` file names without folder and extension: `<id>`, `<id>_<start>` or
            `<id>_<start>_<end>`, each with or without a `Y` before it.

    Returns:
        `[N]` ids, null if the name is none of these; `[N]` starts as written, null if there is
        none.
    """
    parts = pc.extract_regex(stems, pattern=_NAME)
    start = pc.struct_field(parts, "start")
    return pc.struct_field(parts, "id"), pc.if_else(pc.equal(start, ""), None, start)


def stems_of(paths: pa.Array) -> pa.Array:
    """File names without folder and extension."""
    return pc.replace_substring_regex(
        pc.replace_substring_regex(paths, r"^.*/", ""), r"\.[^.]*$", ""
    )


def walk_sounds(root: Path) -> pa.Array:
    """Paths of all sound files below a folder, `[N]` in no particular order.

    Skipped files are logged.

    Raises:
        DataError: A folder cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: correct data.init_args.root")
    result = walk(root, endings=(*SOUND_ENDINGS, *ffmpeg.ENDINGS))
    if result.passed:
        log.info("%s: %s", root, result.passed)
    if result.loops:
        log.warning("%s: not followed, as it leads back to a parent folder", min(result.loops))
    return result.paths


@dataclass(frozen=True)
class FoundFiles:
    """The sound files of some clips. N clips.

    Attributes:
        files: `[N]` row of each clip's file, -1 if there is none.
        duplicates: Number of clips that have several files.
        example: Two files of one such clip, the chosen one first.
        elsewhere: Number of files whose name has another start than the list.
        other_start: Such a file.
    """

    files: Rows
    duplicates: int = 0
    example: tuple[str, str] = ("", "")
    elsewhere: int = 0
    other_start: str = ""


class YouTubeFiles:
    """Sound files, found by the clip in their names.

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

    def find(self, ids: pa.Array, starts: NDArray[np.float64]) -> FoundFiles:
        """Find the files of clips.

        A clip's file is named by its id exactly, or as for `youtube_ids`. A start in the name, in
        seconds or in thousandths, must be the clip's, since other data sets use other segments of
        the same videos. Of several files, one that libsndfile decodes is preferred, then the first
        by path.

        Args:
            ids: `[N]` names of clips, each once.
            starts: `[N]` where they begin in their videos, in seconds.
        """
        ids = ids.cast(pa.large_string())
        clips = _rows_in(self._ids, ids)
        file_starts = self._starts
        if not pc.all(pc.match_substring_regex(ids, pattern=f"^{YOUTUBE_ID}$")).as_py():
            # The name of a clip that is no YouTube id may end like a start.
            exact = _rows_in(self._stems, ids)
            clips = np.where(exact >= 0, exact, clips)
            file_starts = np.where(exact >= 0, np.nan, file_starts)
        files = np.flatnonzero(clips >= 0)
        clips = clips[files]
        differ = _differ(file_starts[files], starts[clips])
        others = files[differ]
        files, clips = files[~differ], clips[~differ]
        best, duplicates, example = self._choose(files, clips, len(ids))
        other = self._path(others[0]) if len(others) else ""
        return FoundFiles(best, duplicates, example, len(others), other)

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
    """Row of each value in a table, -1 if it is not there."""
    indices = pc.fill_null(pc.index_in(values, value_set=table), -1)
    rows: Rows = indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return rows


def _differ(names: NDArray[np.float64], listed: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether a start in a name is neither the listed one in seconds nor in thousandths.

    Names may be rounded or truncated.
    """
    seconds = np.abs(names - listed) < 1
    thousandths = np.abs(names - 1000 * listed) < 1
    differ: NDArray[np.bool_] = ~(np.isnan(names) | seconds | thousandths)
    return differ
