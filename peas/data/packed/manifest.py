"""Metadata of a packed folder: `manifest.json`, written last and read first."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peas.data.shards import LeftOut, StoredFile, read_json
from peas.errors import DataError

FORMAT = "peas-packed"
VERSION = 1
"""Of the folder's layout; other versions are refused."""

MANIFEST = "manifest.json"
INDEX = "index.arrow"
JOURNAL = "packing.json"
"""Exists while a set is being packed: the settings and the finished shards."""

AGAIN = "copy the folder again from where it was packed, or delete it and run `peas data pack`"


@dataclass(frozen=True)
class PackSettings:
    """Everything that decides a packed folder's content.

    Attributes:
        set: Name of the set in `peas data`.
        clips: Number of clips of the set.
        table: Checksum over ids, parts, classes, recordings and speakers of all clips.
        labels: Names of the classes, in the order of the targets.
        multi_label: Whether a clip may have several classes, or none.
        frames: Frames of the model's input by the set's module.
        rate: Sampling rate of the packed sound in Hz; None = each clip its own.
        audio: `flac`, `wav`, or `keep` for the bytes of the files.
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
        clips: Number of clips.
        seconds: Their total length.
        classes: Clips of each class.
        cells: `Moments` of the log-mel, where the set's module did not know mean and std; else a
            count of 0.
    """

    name: str
    clips: int
    seconds: float
    classes: list[int]
    cells: tuple[int, float, float]


@dataclass(frozen=True)
class PackedFile(StoredFile):
    """A shard, or the index.

    Attributes:
        rows: Number of clips.
        part: Part that its clips belong to; empty for the index.
        saturated: Clips that exceeded full scale and were clipped, 16 bits having no headroom.
    """

    rows: int
    part: str = ""
    saturated: int = 0


@dataclass(frozen=True)
class Manifest:
    """Metadata of a packed folder.

    Attributes:
        peas: Version that wrote it.
        settings: What was packed, and how.
        mean: Mean of the log-mel by the set's module; None = measured for each part.
        std: Standard deviation likewise.
        parts: Splits or folds, in order.
        clips: Number of clips.
        seconds: Their total length.
        shortest: Length of the shortest clip in seconds.
        longest: Length of the longest one.
        recordings: Whether the recordings of the clips are known.
        speakers: Whether the speakers are known.
        left_out: Clips that could not be read.
        absent: Names of clips without sound in the set.
        notes: Further notes of the set.
        index: The index file.
        shards: The shards, in order.
    """

    peas: str
    settings: PackSettings
    mean: float | None
    std: float | None
    parts: list[Part]
    clips: int
    seconds: float
    shortest: float
    longest: float
    recordings: bool
    speakers: bool
    index: PackedFile
    shards: list[PackedFile]
    left_out: list[LeftOut] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Manifest:
        """Manifest of the file's content.

        Raises:
            KeyError, TypeError: A key is missing or unknown.
        """
        content = {key: content[key] for key in content if key not in ("format", "version")}
        content["settings"] = PackSettings(**content.pop("recipe"))
        content["index"] = PackedFile(**content["index"])
        for key, kind in (("parts", Part), ("shards", PackedFile), ("left_out", LeftOut)):
            content[key] = [kind(**entry) for entry in content[key]]
        return cls(**content)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        content = asdict(self)
        peas, settings = content.pop("peas"), content.pop("settings")
        head = {"format": FORMAT, "version": VERSION, "peas": peas, "recipe": settings}
        return head | content

    def fault(self) -> str:
        """What has an impossible type or range, or nothing; its numbers decide what is opened."""
        labels = self.settings.labels
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            return "its labels are not a list of names"
        if not _is_count(self.settings.frames) or not self.settings.frames:
            return f"its frames are {self.settings.frames!r}, not a positive number"
        for key, value, least in (("mean", self.mean, -math.inf), ("std", self.std, 0.0)):
            number = isinstance(value, int | float) and math.isfinite(value) and value > least
            if value is not None and not number:
                return f"its {key} is {value!r}"
        for stored in (self.index, *self.shards):
            plain = isinstance(stored.file, str) and Path(stored.file).name == stored.file
            if not plain or not _is_count(stored.rows) or not _is_count(stored.bytes):
                return f"its file {stored.file!r} has no plain name or count"
        for part in self.parts:
            counted = isinstance(part.classes, list) and len(part.classes) == len(labels)
            if not isinstance(part.name, str) or not _is_count(part.clips) or not counted:
                return f"its part {part.name!r} has no counts of its classes"
        rows = sum(shard.rows for shard in self.shards)
        clips = sum(part.clips for part in self.parts)
        if not rows == clips == self.clips:
            return f"its shards have {rows} clips, its parts {clips}, and it claims {self.clips}"
        return ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def read_manifest(root: str | Path) -> Manifest:
    """Manifest of a packed folder.

    Raises:
        DataError: The folder is no packed set, an unfinished or damaged one, or one of an unknown
            version.
    """
    root = Path(root).expanduser()
    file = root / MANIFEST
    if not file.is_file() and (root / JOURNAL).is_file():
        raise DataError(
            f"{root}: packing is not finished; run the same `peas data pack` again to resume"
        )
    content = read_json(file, format=FORMAT, version=VERSION, command="peas data pack")
    try:
        manifest = Manifest.parse(content)
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); {AGAIN}") from None
    fault = manifest.fault()
    if fault:
        raise DataError(f"{file}: damaged: {fault}; {AGAIN}")
    return manifest
