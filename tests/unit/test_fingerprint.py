"""What is remembered of a table of clips, and what of its changes is noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from peas.data import fingerprint
from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Strings, Targets
from peas.data.fingerprint import Changes, Fingerprint, compare, hash_strings
from peas.data.sounds import SoundFiles

NAMES = [f"clip{number}.wav" for number in range(6)]
CLASSES: list[list[int]] = [[0], [0, 1], [], [2], [1], [2]]
READER = ResampledCache(None, rate=16_000, channels="mean")
NONE = Changes(0, 0, 0, 0, False)
KNOWN = 8774246471845232857
"""Hash of the first name, which checkpoints hold."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(bytes(10 + number))
    return tmp_path


def table(root: Path, names: list[str] = NAMES, classes: Any = CLASSES, **cut: Any) -> ClipTable:
    sounds = SoundFiles(READER, root, Strings(names), **cut)
    return ClipTable(Strings(names), Targets.several(classes), sounds)


def changed(root: Path, **other: Any) -> Changes:
    return compare(Fingerprint.of(table(root)), Fingerprint.of(table(root, **other)))


def test_the_same_clips_are_the_same(files: Path) -> None:
    assert changed(files) == NONE
    assert not changed(files)


@pytest.mark.parametrize(
    ("rows", "classes", "expected"),
    [
        ([0, 1, 2, 3], None, Changes(0, 2, 0, 0, False)),
        ([1, 0, 2, 3, 4, 5], None, Changes(0, 0, 0, 0, True)),
        ([5, 4, 3, 2, 1], None, Changes(0, 1, 0, 0, True)),
        # The order of a clip's classes tells nothing, their number does.
        (range(6), [[0], [1, 0], [], [2], [1], [2]], NONE),
        (range(6), [[0], [0], [1], [2], [1], [2]], Changes(0, 0, 2, 0, False)),
        (range(6), [[1], [0, 1], [], [2], [0], [2]], Changes(0, 0, 2, 0, False)),
    ],
)
def test_what_changed_is_counted(
    files: Path, rows: Any, classes: list[list[int]] | None, expected: Changes
) -> None:
    names = [NAMES[row] for row in rows]
    given = classes or [CLASSES[row] for row in rows]
    assert changed(files, names=names, classes=given) == expected


def test_added_clips_and_changed_sound_are_counted(files: Path) -> None:
    before = Fingerprint.of(table(files))
    (files / "new.wav").write_bytes(b"new")
    (files / NAMES[2]).write_bytes(b"another length")
    (files / NAMES[4]).unlink()
    now = Fingerprint.of(table(files, [*NAMES, "new.wav"], [*CLASSES, [0]]))
    # Of a file that cannot be read nothing is known.
    assert compare(before, now) == Changes(1, 0, 0, 1, False)


def test_a_clip_that_is_cut_elsewhere_is_another_sound(files: Path) -> None:
    start, stop = np.arange(6.0), np.arange(6.0) + 1
    before = Fingerprint.of(table(files, start=start, stop=stop))
    later = start.copy()
    later[3] += 0.5
    now = Fingerprint.of(table(files, start=later, stop=stop))
    assert compare(before, now).replaced == 1


def test_a_part_of_a_table_and_joined_tables_have_the_hashes_of_their_clips(files: Path) -> None:
    whole = Fingerprint.of(table(files))
    part = Fingerprint.of(table(files).take([4, 1]))
    joined = Fingerprint.of(
        ClipTable.concatenate([table(files).take([0, 1, 2]), table(files).take([3, 4, 5])])
    )
    for name in ("ids", "classes", "sounds"):
        assert getattr(part, name).tolist() == getattr(whole, name)[[4, 1]].tolist()
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist()


def test_of_many_files_a_fixed_part_is_looked_at(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "LOOKED_AT", 2)
    found = Fingerprint.of(table(files))
    looked = {NAMES[row] for row in np.flatnonzero(found.sounds.numpy())}
    assert len(looked) < len(NAMES)
    fewer = Fingerprint.of(table(files, NAMES[:5], CLASSES[:5]))
    assert {NAMES[row] for row in np.flatnonzero(fewer.sounds.numpy())} == looked - {NAMES[5]}


def test_hashes_of_names_are_the_same_everywhere_and_see_every_byte() -> None:
    names = ["", "a", "b", "ab", "ba", "aa", "ä", "x" * 300, "x" * 299, "ab"]
    hashes = hash_strings(Strings(names))
    assert len(set(hashes.tolist())) == len(names) - 1
    assert hashes[3] == hashes[-1]
    # Beside whatever chunks and slices a column has.
    chunked = pa.chunked_array([pa.array(names[:4]), pa.array(["0", *names[4:]]).slice(1)])
    assert hash_strings(Strings(chunked)).tolist() == hashes.tolist()
    assert int(hash_strings(Strings(["clip0.wav"]))[0]) == KNOWN
