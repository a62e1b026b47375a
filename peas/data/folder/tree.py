"""A folder for each class: which sound files lie in it, of which class and split."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from peas.audio.decode import SOUND_ENDINGS, is_sound
from peas.data.columns import Strings, Targets
from peas.data.folder.listing import SPLIT_NAMES, Listing, in_order, require_different
from peas.data.folder.spelling import one_spelling
from peas.data.module import SPLITS, Split
from peas.data.walk import HIDDEN, PassedOver, is_folder, is_utf8, walk
from peas.errors import DataError
from peas.utils.text import some

LOOSE = "sound files beside the folders of the classes"
UNUSED = "sound files in folders whose names begin with an underscore"


@dataclass
class _Clips:
    """Clips as the walk finds them, and what it leaves out."""

    paths: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)

    def add(self, paths: list[str], label: str, split: Split) -> None:
        self.paths += paths
        self.classes += [label] * len(paths)
        self.parts += [SPLITS.index(split)] * len(paths)


def list_tree(root: Path, *, unlabelled: bool = False) -> Listing:
    """Clips of `ROOT/<class>/**`, or of `ROOT/<split>/<class>/**`.

    The first folders are splits when all of them are called so, or `train` and another one are.
    Folders whose names begin with a dot or an underscore are left alone. What is left out is
    counted in the listing's notes.

    Args:
        root: The folder.
        unlabelled: Sound files outside of class folders are clips without a class.

    Raises:
        DataError: There are no class folders, or one without a sound file.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: check data.init_args.root")
    splits = _splits(root)
    clips = _Clips()
    for name, split in splits.items() or [("", SPLITS[0])]:
        folder = f"{name}/" if name else ""
        loose = _look_around(root, name, clips.passed)
        if unlabelled:
            clips.add(loose, "", split)
        else:
            for path in loose:
                clips.passed.add(LOOSE, path)
        for label in _classes(root / name, len(loose), unlabelled=unlabelled):
            found = walk(root, f"{folder}{label}")
            paths = found.sorted_paths()
            if not paths and not unlabelled:
                raise DataError(
                    f"the class folder {root / folder / label} has no sound file "
                    f"({', '.join(SOUND_ENDINGS)}): add some, or move the folder away"
                    + (f" ({found.passed})" if found.passed else "")
                )
            clips.add(paths, label, split)
            clips.passed.join(found.passed)
    if not clips.paths:
        raise DataError(f"{root} has no sound file ({', '.join(SOUND_ENDINGS)})")
    # Two spellings of one name are one class.
    named = {label: one_spelling(label) for label in set(clips.classes)}
    labels = in_order(set(named.values()) - {""})
    numbers = {label: number for number, label in enumerate(labels)}
    listing = Listing(
        source=root,
        paths=Strings(clips.paths),
        targets=Targets.several(
            [numbers[named[label]]] if label else [] for label in clips.classes
        ),
        labels=labels,
        split=np.array(clips.parts, dtype=np.int8) if splits else None,
        notes=list(_merged(named)),
        passed=clips.passed,
    )
    require_different(listing)
    return listing


def _merged(named: dict[str, str]) -> Iterable[str]:
    """A sentence for each class that several folders are spelled as."""
    spelled = defaultdict(list)
    for folder, label in named.items():
        spelled[label].append(folder)
    for label, folders in sorted(spelled.items()):
        if len(folders) > 1:
            yield f"{len(folders)} spellings of the folder {label} are one class"


def _look_around(root: Path, name: str, passed: PassedOver) -> list[str]:
    """Sound files that lie beside class folders, from the root; counts what is not a class's."""
    loose = []
    for entry in sorted(os.scandir(root / name), key=lambda entry: entry.name):
        path = f"{name}/{entry.name}" if name else entry.name
        folder = is_folder(entry)
        if entry.name.startswith("."):
            passed.add(HIDDEN, path)
        elif folder and entry.name.startswith("_"):
            found = walk(root, path)
            if len(found.paths):
                passed.add(UNUSED, path, len(found.paths))
        elif not folder and is_sound(entry.name):
            _require_utf8(root / name, [entry.name])
            loose.append(path)
    return loose


def _splits(root: Path) -> dict[str, Split]:
    """Folders of splits; none where the first folders are classes."""
    folders = _folders(root)
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    # A class may well be called train, or test.
    if len(named) < len(folders) and not ("train" in named.values() and len(named) > 1):
        return {}
    others = [name for name in folders if name not in named]
    if others:
        raise DataError(
            f"{root} has folders of splits ({some(named)}) and others beside them "
            f"({some(others)}): put every class into a split, or move the others away"
        )
    if len(set(named.values())) < len(named):
        raise DataError(f"{root} has several folders of one split ({some(named)}): join them")
    return named


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_folder(entry)]
    names = [name for name in names if not name.startswith((".", "_"))]
    _require_utf8(folder, names)
    return sorted(names)


def _classes(folder: Path, loose: int, *, unlabelled: bool) -> list[str]:
    classes = _folders(folder)
    if not classes and not unlabelled:
        raise DataError(
            f"{folder} has no folder of a class ({loose} sound files lie in it): make a folder "
            "for each class, or list the clips in a CSV with the columns path and label "
            "(data.init_args.csv)"
        )
    return classes


def _require_utf8(folder: Path, names: list[str]) -> None:
    foreign = [name for name in names if not is_utf8(name)]
    if foreign:
        raise DataError(
            f"{folder}: {len(foreign)} names are not UTF-8, such as {min(foreign)!a}: rename them"
        )
