"""Finds the sound files below a folder, and what is skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.audio import ffmpeg
from peas.audio.decode import SOUND_ENDINGS
from peas.errors import DataError
from peas.utils.text import some

FOREIGN = "files that only ffmpeg decodes"
HIDDEN = "hidden files and folders"
LINKED = "links to folders that are read already"
NOT_UTF8 = "sound files and folders with names that are not UTF-8"
OTHER = "files with other endings than those of sound"
_BATCH = 65_536

_Way = tuple[str, tuple[tuple[int, int], ...]]
"""Path of a folder from the root, and the identities of the folders on the way to it."""


@dataclass
class PassedOver:
    """What a walk has not taken, counted by the reason.

    Attributes:
        counts: Number of files (or folders, or links) for each reason.
        examples: The first of them by name, for each reason.
        endings: Number of files with each ending that is not a sound's.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    endings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count something that was passed over."""
        self.counts[reason] += count
        self.examples[reason] = min(name, self.examples.get(reason, name))
        if reason == OTHER:
            self.endings[os.path.splitext(name)[1].lower() or "no ending"] += count

    def join(self, other: PassedOver) -> None:
        """Count what another walk has passed over as well."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            example = other.examples[reason]
            self.examples[reason] = min(example, self.examples.get(reason, example))
        self.endings.update(other.endings)

    @property
    def sound(self) -> bool:
        """Whether some of it may well be sound that was meant."""
        return bool(set(self.counts) - {HIDDEN, LINKED, OTHER})

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        parts = []
        for reason, count in sorted(self.counts.items()):
            such = f"{'such as ' if count > 1 else ''}{self.examples[reason]!a}"
            if reason == OTHER:
                tally = (f"{ending}: {number}" for ending, number in self.endings.most_common())
                such = some(tally, 5)
            parts.append(f"{count} {reason} ({such})")
        return f"left out {', '.join(parts)}"


@dataclass
class Walk:
    """What lies below a folder.

    Attributes:
        paths: `[N]` paths of the sound files from the walk's root, in no particular order.
        passed: What was passed over.
        loops: Links that lead back to a folder in which they lie: they are not followed.
        foreign: Sound files and folders whose names are not UTF-8: no column can hold them.
    """

    paths: pa.Array
    passed: PassedOver
    loops: list[str]
    foreign: list[str]

    def sorted_paths(self) -> list[str]:
        """Paths by name.

        Raises:
            DataError: There is a link that leads in a circle, or a name that is not UTF-8: what
                lies there would be missing.
        """
        if self.loops:
            raise DataError(
                f"the link {min(self.loops)} leads back to a folder in which it lies: remove it"
            )
        if self.foreign:
            raise DataError(
                f"{os.path.dirname(min(self.foreign))!a}: {len(self.foreign)} names of files are "
                f"not UTF-8, such as {os.path.basename(min(self.foreign))!a}: rename them"
            )
        return sorted(self.paths.to_pylist())


def walk(root: Path, inside: str = "", *, endings: tuple[str, ...] = SOUND_ENDINGS) -> Walk:
    """Find all sound files below a folder, by their names.

    Linked folders are followed, and each real folder is read once. Names that begin with a dot
    are passed over. No file is opened or asked for its state.

    Args:
        root: Where the paths start.
        inside: Folder below `root` that is walked, from `root`; empty = `root` itself.
        endings: Of the names of sound files, in small letters.

    Raises:
        DataError: A folder cannot be read.
    """
    passed = PassedOver()
    chunks = [pa.array([], pa.large_string())]
    loops: list[str] = []
    foreign: list[str] = []
    steps = inside.split("/") if inside else []
    chain = tuple(_identity(root.joinpath(*steps[:n])) for n in range(len(steps) + 1))
    if chain[-1] in chain[:-1]:
        return Walk(chunks[0], passed, [str(root / inside)], foreign)
    seen = {chain[-1]}
    folders: list[_Way] = [(inside, chain)]
    # Links come last, so that a folder is known by its own path where it has one below the root.
    links: list[_Way] = []
    while folders or links:
        here, chain = folders.pop() if folders else links.pop(0)
        for names, entries in listed(root / here, foreign, endings):
            sound = _are_sounds(names, entries, endings)
            chunks.append(join_paths(here, names.filter(pa.array(sound))))
            for row in np.flatnonzero(~sound):
                entry = entries[row]
                path = f"{here}/{entry.name}" if here else entry.name
                if entry.name.startswith("."):
                    passed.add(HIDDEN, path)
                elif entry.is_symlink() and _leads_to_folder(entry, loops):
                    links.append((path, chain))
                elif entry.is_dir(follow_symlinks=False):
                    folders += _followed(root, [(path, chain)], seen, loops, passed)
                elif entry.name.lower().endswith(ffmpeg.ENDINGS):
                    passed.add(FOREIGN, path)
                else:
                    passed.add(OTHER, path)
        if not folders:
            folders += _followed(root, links, seen, loops, passed)
    for name in foreign:
        passed.add(NOT_UTF8, name)
    return Walk(pa.concat_arrays(chunks), passed, loops, foreign)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one.

    Raises:
        DataError: A link cannot be followed, such as one to itself.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        raise DataError(
            f"{entry.path}: a link that cannot be followed ({error.strerror}): remove it"
        ) from error


def _leads_to_folder(link: os.DirEntry[str], loops: list[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:
        # A link to itself.
        loops.append(link.path)
        return False


def _followed(
    root: Path, ways: list[_Way], seen: set[tuple[int, int]], loops: list[str], passed: PassedOver
) -> list[_Way]:
    """The first way, by name, to a folder that was not read yet; the ways before it are done."""
    ways.sort()
    while ways:
        path, chain = ways.pop(0)
        identity = _identity(root / path)
        if identity in chain:
            loops.append(str(root / path))
        elif identity in seen:
            passed.add(LINKED, path)
        else:
            seen.add(identity)
            return [(path, (*chain, identity))]
    return []


def _are_sounds(
    names: pa.Array, entries: list[os.DirEntry[str]], endings: tuple[str, ...]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which entries are sound files by their names, `[N]`."""
    ending = pc.replace_substring_regex(pc.utf8_lower(names), r"(?s)^.*(\.[^.]*)$", r"\1")
    known = pc.is_in(ending, pa.array(endings, pa.large_string()))
    sound = np.array(pc.and_not(known, pc.starts_with(names, ".")), dtype=bool)
    for row in np.flatnonzero(sound):
        # Known from the listing, but for links.
        if entries[row].is_dir(follow_symlinks=False):
            sound[row] = False
    return sound


def listed(
    folder: Path, foreign: list[str], endings: tuple[str, ...] = SOUND_ENDINGS
) -> Iterator[tuple[pa.Array, list[os.DirEntry[str]]]]:
    """Names in a folder with their entries, some at a time: few are Python objects at once.

    Args:
        folder: The folder.
        foreign: Filled with the sound files and folders whose names are not UTF-8.
        endings: Of the names of sound files, in small letters.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as source:
            while True:
                batch = list(islice(source, _BATCH))
                entries = [entry for entry in batch if entry.name.isascii() or is_utf8(entry.name)]
                if len(entries) < len(batch):
                    foreign += [
                        entry.path
                        for entry in batch
                        if not is_utf8(entry.name)
                        and (entry.name.lower().endswith(endings) or entry.is_dir())
                    ]
                yield pa.array([entry.name for entry in entries], pa.large_string()), entries
                if not batch:
                    return
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); check the path and "
            "its permissions"
        ) from error


def join_paths(folder: str, names: pa.Array) -> pa.Array:
    """Paths of names in a folder; an empty folder adds nothing."""
    if not folder:
        return names
    before, slash = (pa.scalar(text, pa.large_string()) for text in (folder.rstrip("/"), "/"))
    return pc.binary_join_element_wise(before, names, slash)


def is_utf8(name: str) -> bool:
    """Whether a name of a file is text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _identity(folder: Path) -> tuple[int, int]:
    """What is the same for a folder and all links to it."""
    try:
        state = os.stat(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}); check the path and its permissions"
        ) from error
    return state.st_dev, state.st_ino
