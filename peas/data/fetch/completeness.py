"""Whether a public data set is there as it was published: counts, tables, every clip decodable."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from peas.data.fetch import sources
from peas.data.fetch.download import Progress
from peas.data.labels import read_labels
from peas.errors import AudioError, DataError
from peas.utils.text import some

_CHUNK = 16
_AGAIN = "run the same command with --again to fetch and unpack it once more"
_SEGMENT = re.compile(rb'([\w-]{11}), \d+\.\d+, \d+\.\d+, "([^"]+)"')


def esc50(root: Path, workers: int, progress: Progress) -> list[str]:
    """Checks ESC-50, which has no published checksum, down to the last sample.

    Args:
        root: Folder with `meta/` and `audio/`.
        workers: Processes that decode; 0 = this one.
        progress: Told after every clip.

    Returns:
        What is there, a line each.

    Raises:
        DataError: Something is not as published.
    """
    table, expected = root / "meta" / "esc50.csv", sources.ESC50_COUNTS
    with _readable(table).open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = list(csv.DictReader(lines, restval=""))
    lacking = {"filename", "fold", "target", "category"} - set(rows[0] if rows else ())
    if lacking:
        raise DataError(f"{table}: no column {some(sorted(lacking))}; {_AGAIN}")
    classes = Counter((row["target"], row["category"]) for row in rows)
    folds = Counter(row["fold"] for row in rows)
    _equal(f"{table}: rows", len(rows), expected.clips)
    _equal(f"{table}: classes", len(classes), expected.classes)
    _equal(f"{table}: folds", len(folds), expected.folds)
    official = {(str(number), name) for number, name in enumerate(read_labels("esc50"))}
    strange = sorted(set(classes) - official)
    if strange:
        number, name = strange[0]
        raise DataError(f"{table}: class {number} is called {name!r}, which is no class of ESC-50")
    for number, count in sorted(Counter(row["target"] for row in rows).items()):
        _equal(f"{table}: clips of class {number}", count, expected.clips // expected.classes)
    for fold, count in sorted(folds.items()):
        _equal(f"{table}: clips of fold {fold}", count, expected.clips // expected.folds)
    names = {row["filename"] for row in rows}
    clips = [root / "audio" / name for name in sorted(names)]
    absent = [clip.name for clip in clips if not clip.is_file()]
    if absent or len(names) < len(rows):
        what = f"{some(absent)} not there" if absent else "names a clip twice"
        raise DataError(f"{table}: {what}; {_AGAIN}")
    faults = _undecodable(clips, workers, progress)
    if faults:
        raise DataError(
            f"{len(faults)} of the {len(clips)} clips cannot be decoded; {_AGAIN}\n"
            + "\n".join(faults[:10])
        )
    return [
        f"{len(clips):,} clips, all of which decode; {len(classes)} classes, {len(folds)} folds "
        f"of {expected.clips // len(folds)}"
    ]


def _undecodable(clips: Sequence[Path], workers: int, progress: Progress) -> list[str]:
    """A message for each clip that cannot be decoded from its first to its last sample."""
    # Here, since torch takes seconds to import.
    from peas.audio import decode as audio
    from peas.data.workers import in_order

    def decode(rows: range) -> list[str]:
        found = []
        for row in rows:
            try:
                # At its own rate: resampling would find nothing more.
                audio.load(clips[row], audio.probe(clips[row]).rate)
            except AudioError as error:
                found.append(str(error))
        return found

    faults: list[str] = []
    results = in_order(decode, len(clips), size=_CHUNK, workers=workers)
    for done, found in enumerate(results, 1):
        faults += found
        progress("decoding", min(done * _CHUNK, len(clips)), len(clips))
    return faults


def speech_commands(root: Path, version: str) -> list[str]:
    """Checks the main archive of Speech Commands; see `esc50`."""
    expected = sources.SPEECH_COMMANDS_COUNTS[version]
    with os.scandir(root) as entries:
        words = [
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(("_", "."))
        ]
    words = [word for word in words if word != sources.SPEECH_COMMANDS_TEST[version].into]
    _equal(f"{root}: folders of words", len(words), expected.words)
    clips = sum(_count(root / word, ".wav") for word in words)
    _equal(f"{root}: clips of words", clips, expected.clips)
    noises = _count(root / "_background_noise_", ".wav")
    _equal(f"{root / '_background_noise_'}: noises", noises, expected.noises)
    for name, lines in (
        ("validation_list.txt", expected.validation),
        ("testing_list.txt", expected.test),
    ):
        text = _readable(root / name).read_text("utf-8", "replace")
        _equal(f"{root / name}: clips", len(text.split()), lines)
    left = clips - expected.validation - expected.test
    return [
        f"version {version}: {clips:,} clips of {len(words)} words: {left:,} for training, "
        f"{expected.validation:,} for validation, {expected.test:,} for test; {noises} noises"
    ]


def speech_commands_test(root: Path, version: str) -> list[str]:
    """Checks the separate test set of the 12-class task; see `esc50`."""
    folder = root / str(sources.SPEECH_COMMANDS_TEST[version].into)
    clips = _count(folder, ".wav")
    _equal(f"{folder}: clips", clips, sources.SPEECH_COMMANDS_TEST_CLIPS[version])
    return [f"test set of version {version}: {clips:,} clips in {folder}"]


def librispeech(root: Path, subset: str) -> list[str]:
    """Checks a part of LibriSpeech; see `esc50`."""
    clips = _count(root / subset, ".flac")
    _equal(f"{root / subset}: clips", clips, sources.LIBRISPEECH_CLIPS[subset])
    with os.scandir(root / subset) as entries:
        speakers = sum(entry.is_dir() for entry in entries)
    return [f"{subset}: {clips:,} clips of {speakers:,} speakers"]


def audioset(root: Path) -> list[str]:
    """Checks AudioSet's tables; see `esc50`."""
    shipped = resources.files("peas.data.labels") / "audioset_class_labels_indices.csv"
    table = root / sources.AUDIOSET_LABELS
    ours = list(csv.reader(shipped.read_text(encoding="utf-8").splitlines()))
    theirs = list(csv.reader(_readable(table).read_text("utf-8", "replace").splitlines()))
    if theirs != ours:
        line = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False), 1) if a != b),
            min(len(ours), len(theirs)) + 1,
        )
        raise DataError(
            f"{table} line {line}: differs from AudioSet's table of {len(ours) - 1} classes, as "
            f"peas ships it; {_AGAIN}"
        )
    known = {row[1].encode() for row in ours[1:]}
    lines = []
    for name, expected in sources.AUDIOSET_ROWS.items():
        rows, labels = _segments(root / name, known)
        _equal(f"{root / name}: rows", rows, expected)
        lines.append(f"{name}: {rows:,} clips, {labels} classes")
    return [*lines, f"{table.name}: {len(known)} classes"]


def _segments(file: Path, known: set[bytes]) -> tuple[int, int]:
    """Number of rows and of different labels of a table of segments."""
    rows, seen = 0, set[bytes]()
    with _readable(file).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(b"#"):
                continue
            match = _SEGMENT.fullmatch(line.rstrip())
            if match is None:
                raise DataError(f"{file} line {number}: {line[:80]!r} is no segment; {_AGAIN}")
            seen.update(match[2].split(b","))
            rows += 1
    strange = sorted(seen - known)
    if strange:
        raise DataError(f"{file}: {strange[0].decode()} is no label of AudioSet; {_AGAIN}")
    return rows, len(seen)


def _count(folder: Path, suffix: str) -> int:
    """Number of files below a folder that end so, without hidden ones that macOS packs along."""
    return sum(
        name.endswith(suffix) and not name.startswith(".")
        for _, _, names in os.walk(folder)
        for name in names
    )


def _equal(what: str, found: int, expected: int) -> None:
    if found > expected:
        raise DataError(
            f"{what}: {found:,} instead of {expected:,}. Where something else lies in the folder, "
            f"such as another version of the set, give an empty one; otherwise {_AGAIN}"
        )
    if found < expected:
        raise DataError(f"{what}: {found:,} instead of {expected:,}; {_AGAIN}")


def _readable(file: Path) -> Path:
    if not file.is_file():
        raise DataError(f"there is no {file}; {_AGAIN}")
    return file
