"""One resumable writer for folders of shards: packed sets, target caches, embeddings.

A folder holds a manifest (JSON), an index and shards, each of which has consecutive rows. Every
file is written atomically, and after each shard the finished ones are recorded, so the same
command resumes after a kill, with equal settings only. `ShardWriter` does all of that; a subclass
says how rows become a shard and what its manifest holds.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from peas.errors import ConfigError, DataError
from peas.utils.files import PARTIAL, checksum, disk_errors, lock, write_text
from peas.utils.text import some

LOCK = ".lock"
"""Held by the process that writes into the folder."""
_UNFINISHED = re.compile(
    r"(shard-.*|packing\.json|manifest\.json|(index|clips)\.arrow|(ids|rows)\.npy)"
    rf"(\.part|\.[0-9a-f]{{8}}{re.escape(PARTIAL)})"
)
"""Files of this package that a killed process was writing; `.part` is of release 0.1."""

Progress = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""
Manifest = TypeVar("Manifest")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class LeftOut:
    """A clip that could not be read.

    Attributes:
        id: Name of the clip.
        reason: Why.
        part: Split or fold of the clip, where the folder has parts.
    """

    id: str
    reason: str
    part: str = ""

    def to_json(self) -> dict[str, str]:
        """Its entry in a manifest."""
        return {key: value for key, value in vars(self).items() if key != "part" or value}


@dataclass(frozen=True)
class StoredFile:
    """A complete file of the folder.

    Attributes:
        file: Its name.
        bytes: Its size.
        checksum: As `sha256:...`.
    """

    file: str
    bytes: int
    checksum: str

    def fault(self, folder: Path, *, checksums: bool = False) -> str:
        """What is wrong with the file, or nothing.

        Args:
            folder: The file's folder.
            checksums: Read the file and compare its checksum.
        """
        file = folder / self.file
        fault = size_fault(file, self.bytes)
        if not fault and checksums and checksum(file) != self.checksum:
            fault = "damaged, its checksum is not the manifest's"
        return f"{file}: {fault}" if fault else ""


def size_fault(file: str | Path, size: int) -> str:
    """What is wrong with the size of a file, or nothing.

    Args:
        file: The file.
        size: Bytes that it should have.
    """
    try:
        actual = Path(file).stat().st_size
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    return "" if actual == size else f"has {actual} of {size} bytes"


@dataclass
class Shard:
    """Consecutive rows that are finished.

    Attributes:
        rows: The rows.
        file: The file that holds them; None = every one was left out.
        left_out: Clips that could not be read.
        info: Whatever else a format records.
    """

    rows: range
    file: StoredFile | None
    left_out: list[LeftOut] = field(default_factory=list)
    info: Any = None


class ShardWriter(ABC, Generic[Manifest, Encoded]):
    """Writes a folder of shards, or what is missing or damaged in it.

    Args:
        out: The folder: new, empty, or begun with equal settings.
        settings: Everything that decides the content, as JSON values.
        rows: Number of rows.
        skip: Whether clips that cannot be read are left out.
        progress: Called with the rows done and the rows in all.

    Attributes:
        shards: The finished shards, in order.
    """

    manifest_file: ClassVar[str] = "manifest.json"
    state_file: ClassVar[str]
    """What records the finished shards; may be the manifest itself."""
    option_names: ClassVar[Mapping[str, str]]
    """The command's option of a setting."""
    skip_option: ClassVar[str]
    """The command's option that leaves clips out."""
    checksums: ClassVar[bool] = False
    """Whether finished shards are read and compared when resuming, or their sizes alone."""

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        rows: int,
        *,
        skip: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.out = out
        self.settings = settings
        self.rows = rows
        self.skip = skip
        self.progress = progress
        self.done = 0
        self.shards: list[Shard] = []

    @property
    def left_out(self) -> list[LeftOut]:
        """Clips that could not be read."""
        return [clip for shard in self.shards for clip in shard.left_out]

    def run(self) -> Manifest:
        """Write what is missing.

        Raises:
            DataError: The folder holds something else or was begun with other settings, or the
                disk is full.
            ConfigError: Clips were left out before, and none may be now.
            Locked: Another process is writing here.
        """
        with disk_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
        with lock(self.out / LOCK, self.out), disk_errors(self.out):
            for path in self.out.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink()
            complete = self.resume()
            self._require_policy()
            if complete is not None:
                return complete
            missing = self._missing()
            self.done = self.rows - sum(map(len, missing))
            self.prepare(missing)
            self.save()
            with closing(self.encode(missing)) as encoded:
                for rows in missing:
                    while rows:
                        shard = self.write(encoded, rows)
                        self._add(shard)
                        rows = range(shard.rows.stop, rows.stop)
            return self.finish()

    def advance(self, rows: int = 1) -> None:
        """Report rows as done."""
        self.done += rows
        self.progress(self.done, self.rows)

    @abstractmethod
    def resume(self) -> Manifest | None:
        """Read what an earlier process left into `shards`; a complete folder gives its manifest."""

    @abstractmethod
    def encode(self, missing: list[range]) -> Generator[Encoded]:
        """Encode the missing rows in order; closing the generator ends its workers."""

    @abstractmethod
    def write(self, encoded: Generator[Encoded], rows: range) -> Shard:
        """Write one shard that begins with the first of the rows and may end before the last."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What is recorded after each shard, as JSON."""

    @abstractmethod
    def finish(self) -> Manifest:
        """Write index and manifest of the finished shards."""

    def prepare(self, missing: list[range]) -> None:
        """Check what can be checked before the work, such as disk space."""

    def save(self) -> None:
        """Record the finished shards."""
        write_json(self.out / self.state_file, self.state())

    def require_settings(self, begun: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> None:
        """Refuse to resume with other settings.

        Args:
            begun: Settings that the folder was begun with.
            but: Settings that may differ.

        Raises:
            DataError: One differs.
        """
        for key, now in self.settings.items():
            before = begun.get(key)
            if before != now and key not in but:
                if isinstance(before, list) and isinstance(now, list | tuple):
                    # Long lists may differ where neither is shown.
                    pairs = zip_longest(before, now)
                    before, now = next(((a, b) for a, b in pairs if a != b), (before, now))
                raise DataError(
                    f"{self.out} was begun with other settings: {self.option_names.get(key, key)} "
                    f"was {_short(before)} and is {_short(now)} now. Repeat the first command, or "
                    "give another --out"
                )

    def fault(self, shard: Shard) -> str:
        """What is wrong with the file of a finished shard, or nothing."""
        return shard.file.fault(self.out, checksums=self.checksums) if shard.file else ""

    def _add(self, shard: Shard) -> None:
        self.shards.append(shard)
        self.shards.sort(key=lambda one: one.rows.start)
        self.save()

    def _missing(self) -> list[range]:
        """Rows that no finished shard holds."""
        gaps, first = [], 0
        for shard in self.shards:
            gaps.append(range(first, shard.rows.start))
            first = shard.rows.stop
        return [gap for gap in (*gaps, range(first, self.rows)) if gap]

    def _refuse_foreign(self) -> None:
        names = sorted(path.name for path in self.out.iterdir() if path.name != LOCK)
        ours = {self.state_file, self.manifest_file}
        if names and not any(name in ours or _UNFINISHED.fullmatch(name) for name in names):
            raise DataError(
                f"{self.out}: the folder holds other files ({some(names)}): give a new or an empty "
                "one as --out"
            )

    def _require_policy(self) -> None:
        clips = self.left_out
        if clips and not self.skip:
            raise ConfigError(
                f"{self.out}: begun with {self.skip_option}, and {len(clips)} clips were left out "
                f"({some(clip.id for clip in clips)}): give {self.skip_option} again, or another "
                "--out"
            )


def _short(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(file: Path, *, format: str, version: int, command: str) -> dict[str, Any]:
    """Content of a manifest.

    Args:
        file: The manifest.
        format: Name of the format.
        version: Version that is understood.
        command: What writes it, for messages.

    Raises:
        DataError: It is missing, damaged, or of another format or version.
    """
    if not file.is_file():
        raise DataError(f"there is no {file}: give the folder that `{command}` wrote")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file}: damaged, not JSON ({error}); delete the folder and run `{command}` again"
        ) from None
    if not isinstance(content, dict) or content.get("format") != format:
        raise DataError(f"{file}: not a manifest of `{command}`; give the folder that it wrote")
    if content.get("version") != version:
        raise DataError(
            f"{file}: version {content.get('version')} of the format, written by peas "
            f"{content.get('peas')}, and this peas reads version {version}: update peas, or run "
            f"`{command}` again"
        )
    return content
