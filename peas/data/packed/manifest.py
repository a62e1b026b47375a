"""What a packed folder says about itself: `manifest.json`, written last and read first."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peas.errors import DataError

FORMAT = "peas-packed"
VERSION = 1
"""Of the folder's layout. A reader refuses what is newer than itself."""

MANIFEST = "manifest.json"
INDEX = "index.arrow"
JOURNAL = "packing.json"
"""Exists while a set is being packed: what is finished, and with which settings it was begun."""

AGAIN = "copy the folder again from where it was packed, or delete it and run `peas data pack`"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a packed folder's content.

    Attributes:
        set: Name of the set, as `peas data` knows it.
        clips: Number of clips of the set.
        table: Checksum over names, parts, classes, recordings and speakers of all clips.
        labels: Names of the classes, in the order of the targets.
        multi_label: Whether a clip may have several classes, or none.
        frames: Frames of the model's input by the set's module.
        rate: Samples per second of the packed sound; None = each clip its own.
        audio: `flac`, `wav`, or `keep` for the very bytes of the files.
        channels: What became of several channels, `mean` or `first`; `keep` leaves them.
        resampler: Name of the resampler.
        shard_bytes: Bytes of sound after which a shard is closed.
        software: Versions of the libraries that wrote the bytes.
    """

    set: str
    clips: int
    table: str
    labels: list[str]
    multi_label: bool
    frames: int
    rate: int | None
    audio: str
    channels: str
    resampler: str
    shard_bytes: int
    software: str


@dataclass(frozen=True)
class Part:
    """A split or fold that was packed.

    Attributes:
        name: Its name.
        clips: Clips in it.
        seconds: Their length together.
        classes: Clips of each class.
        cells: Count, mean and sum of squared distances from the mean of the cells of the
            log-mel, where the set's module did not know them; else a count of 0.
    """

    name: str
    clips: int
    seconds: float
    classes: list[int]
    cells: tuple[int, float, float]


@dataclass(frozen=True)
class Stored:
    """A file of the folder.

    Attributes:
        file: Its name.
        rows: Clips in it.
        bytes: Its size.
        checksum: As `sha256:...`.
        part: Name of the part that its clips belong to; empty for the index.
        saturated: Clips in it that exceeded full scale and were cut there, 16 bits having no room.
    """

    file: str
    rows: int
    bytes: int
    checksum: str
    part: str = ""
    saturated: int = 0


@dataclass(frozen=True)
class LeftOut:
    """A clip of the set that could not be read and was not packed."""

    id: str
    part: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What a packed folder says about itself.

    Attributes:
        peas: Version that wrote it.
        recipe: What was packed, and how.
        mean: Mean of the log-mel by the set's module; None = it did not know, and the parts do.
        std: Standard deviation likewise.
        parts: Its parts, in order.
        clips: Clips in it.
        seconds: Their length together.
        shortest: Length of the shortest clip in seconds.
        longest: Length of the longest one.
        recordings: Whether the set knows which recording its clips were cut from.
        speakers: Whether it knows who speaks.
        left_out: Clips that could not be read.
        absent: Names of clips of which the set had no sound.
        notes: Whatever else the set had to say.
        index: The index file.
        shards: The shards, in order.
    """

    peas: str
    recipe: Recipe
    mean: float | None
    std: float | None
    parts: list[Part]
    clips: int
    seconds: float
    shortest: float
    longest: float
    recordings: bool
    speakers: bool
    index: Stored
    shards: list[Stored]
    left_out: list[LeftOut] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, said: dict[str, Any]) -> Manifest:
        """Manifest of what stands in the file.

        Raises:
            KeyError, TypeError: Something is missing, or too much.
        """
        said = {key: value for key, value in said.items() if key not in ("format", "version")}
        said["recipe"] = Recipe(**said["recipe"])
        said["index"] = Stored(**said["index"])
        for key, kind in (("parts", Part), ("shards", Stored), ("left_out", LeftOut)):
            said[key] = [kind(**one) for one in said[key]]
        return cls(**said)

    def text(self) -> str:
        """What stands in the file."""
        said = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(said, indent=1, ensure_ascii=False) + "\n"


def read_manifest(root: str | Path) -> Manifest:
    """Manifest of a packed folder.

    Raises:
        DataError: The folder is no packed set, an unfinished or damaged one, or one of a version
            that is not known here.
    """
    root = Path(root).expanduser()
    file = root / MANIFEST
    if not file.is_file():
        if (root / JOURNAL).is_file():
            raise DataError(
                f"{root}: packing is not finished; run the same `peas data pack` again, which goes "
                "on where it stopped"
            )
        raise DataError(f"there is no {file}: give the folder that `peas data pack` wrote")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: damaged, not JSON ({error}); {AGAIN}") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise DataError(
            f"{file}: not the manifest of a packed set; give the folder that `peas data pack` wrote"
        )
    if said.get("version") != VERSION:
        raise DataError(
            f"{file}: version {said.get('version')} of the format, written by peas "
            f"{said.get('peas')}, and this peas reads version {VERSION}: update peas, or pack again"
        )
    try:
        return Manifest.parse(said)
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); {AGAIN}") from None
