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

# Where a clip has both, what libsndfile decodes goes first.
_FOREIGN_NAME = rf"(?i)({'|'.join(map(re.escape, ffmpeg.ENDINGS))})$"

# An id has eleven characters and may itself hold underscores, begin with a Y or look like a
# number. Its length alone parts it from what surrounds it: a Y before it, which AudioSet's tools
# add, and the start and end after it. No name can be read in two ways.
YOUTUBE_ID = "[0-9A-Za-z_-]{11}"
_NAME = rf"^Y?(?P<id>{YOUTUBE_ID})(?:_(?P<start>[0-9]+(?:\.[0-9]+)?)(?:_[0-9]+(?:\.[0-9]+)?)?)?$"


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


def walk_sounds(root: Path) -> pa.Array:
    """Paths of all sound files in a folder and the folders in it, from `root`.

    What is passed over is said in the log: a clip is looked for by its name, and what has another
    name is none.

    Returns:
        `[N]`, in no particular order.

    Raises:
        DataError: A folder cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: correct data.init_args.root")
    found = walk(root, endings=(*SOUND_ENDINGS, *ffmpeg.ENDINGS))
    if found.passed:
        log.info("%s: %s", root, found.passed)
    if found.loops:
        log.warning("%s: not followed, as it leads back to a folder it lies in", min(found.loops))
    return found.paths


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
