"""What a target cache says about itself: `manifest.json`, replaced after each shard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peas.data.packed.journal import write_text
from peas.errors import ConfigError, DataError
from peas.teachers.grid import Extent
from peas.utils.files import checksum as file_sum

FORMAT = "peas-targets"
VERSION = 1
"""Of the folder's layout. A reader refuses every other one."""

MANIFEST = "manifest.json"
IDS = "ids.npy"
ROWS = "rows.npy"
LOCK = ".lock"
"""Held by the process that writes into the folder."""

AGAIN = "run the same `peas data targets` again, which makes what is missing or damaged"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the content of a cache.

    Attributes:
        teacher: Name of the teacher, for results.
        fingerprint: Hash of the teacher's weights and front end, or of ready maps.
        first_centre: Of the maps' `Extent`.
        step: Likewise.
        freq_edges: Likewise.
        shape: (F', T', D) of a map.
        sound: How the sound was read for the teacher; empty for ready maps.
        set: Name of the set in `peas data`.
        clips: Clips that were to get a map.
        ids: Checksum of their ids.
        shard_clips: Clips of a shard; the last one has what is left.
    """

    teacher: str
    fingerprint: str
    first_centre: float
    step: float
    freq_edges: list[float]
    shape: list[int]
    sound: str
    set: str
    clips: int
    ids: str
    shard_clips: int

    @property
    def extent(self) -> Extent:
        """Where the cells of a map lie."""
        return Extent(self.first_centre, self.step, tuple(self.freq_edges))

    @property
    def shards(self) -> list[range]:
        """Places of the clips of each shard, in the order of the ids."""
        firsts = range(0, self.clips, self.shard_clips)
        return [range(first, min(first + self.shard_clips, self.clips)) for first in firsts]


@dataclass(frozen=True)
class LeftOut:
    """A clip of the set that has no map, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Stored:
    """A whole file of the folder.

    Attributes:
        file: Its name.
        bytes: Its size.
        checksum: As `sha256:...`.
        left_out: Clips of a shard that could not be read; their rows are zeros.
    """

    file: str
    bytes: int
    checksum: str
    left_out: list[LeftOut] = field(default_factory=list)

    @classmethod
    def of(cls, file: Path, left_out: list[LeftOut] | None = None) -> Stored:
        """What there is to say of a file."""
        return cls(file.name, file.stat().st_size, file_sum(file), left_out or [])

    def fault(self, folder: Path, *, sums: bool = False) -> str:
        """What is wrong with the file, or nothing.

        Args:
            folder: Where it lies.
            sums: Compare its checksum too, which reads all of it.
        """
        file = folder / self.file
        try:
            size = file.stat().st_size
            if size != self.bytes:
                return f"{file} has {size} of {self.bytes} bytes"
            if sums and file_sum(file) != self.checksum:
                return f"{file} is damaged, its checksum is another one"
        except OSError as error:
            return f"{file} cannot be opened ({error.strerror})"
        return ""


@dataclass
class Manifest:
    """What a cache says about itself.

    Attributes:
        peas: Version that wrote it.
        recipe: What was asked for.
        shards: The shards in order; None = not made yet.
        index: The files of ids and rows; empty while shards are missing.
        left_out: Clips of the set that have no map.
    """

    peas: str
    recipe: Recipe
    shards: list[Stored | None]
    index: list[Stored] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every clip has its map."""
        return bool(self.index) and None not in self.shards

    @property
    def files(self) -> list[Stored]:
        """The whole files."""
        return [*self.index, *(shard for shard in self.shards if shard is not None)]

    def save(self, folder: Path) -> None:
        """Replace the folder's manifest by this one."""
        said = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(folder / MANIFEST, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Manifest of a cache, finished or not.

    Raises:
        DataError: The folder is no cache, or one that is damaged or of another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise DataError(f"there is no {file}: give the folder that `peas data targets` wrote")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file}: damaged, not JSON ({error}); delete {folder} and run `peas data targets` "
            "again"
        ) from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise DataError(
            f"{file}: not the manifest of a target cache; give the folder that "
            "`peas data targets` wrote"
        )
    if said.get("version") != VERSION:
        raise DataError(
            f"{file}: version {said.get('version')} of the format, written by peas "
            f"{said.get('peas')}, and this peas reads version {VERSION}: make the cache again"
        )
    try:
        return _parsed(said)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(
            f"{file}: damaged ({error}); delete {folder} and run `peas data targets` again"
        ) from None


def _parsed(said: dict[str, Any]) -> Manifest:
    recipe = Recipe(**said["recipe"])
    rows, _, _ = recipe.shape
    if recipe.extent.rows != rows:
        raise ValueError(f"maps of {rows} rows beside an extent of {recipe.extent.rows}")
    shards = [None if one is None else _stored(one) for one in said["shards"]]
    if len(shards) != len(recipe.shards):
        raise ValueError(f"{len(shards)} shards in place of {len(recipe.shards)}")
    return Manifest(
        said["peas"],
        recipe,
        shards,
        [_stored(one) for one in said["index"]],
        [LeftOut(**clip) for clip in said["left_out"]],
    )


def _stored(said: dict[str, Any]) -> Stored:
    return Stored(**{**said, "left_out": [LeftOut(**clip) for clip in said["left_out"]]})
