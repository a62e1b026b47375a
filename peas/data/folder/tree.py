"""A folder for each class: which sound files lie in it, of which class and split."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from peas.data.columns import Strings, Targets
from peas.data.folder.table import SPLIT_NAMES, Listing, in_order
from peas.data.listing import some
from peas.data.module import SPLITS, Split
from peas.errors import DataError

log = logging.getLogger(__name__)

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
"""Names of sound files end in one of these, in either case."""

_NOT_DECODED = (".m4a", ".aac", ".mp4", ".webm", ".wma")


def list_tree(root: Path) -> Listing:
    """Clips of `ROOT/<class>/**`, or of `ROOT/<split>/<class>/**`.

    The first folders are splits when all of them are called so, or `train` and another one are.
    Folders whose names begin with a dot or an underscore are left alone.

    Raises:
        DataError: There are no class folders, or one without a sound file.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: check data.init_args.root")
    splits = _splits(root)
    names: list[str] = []
    classes: list[str] = []
    parts: list[int] = []
    for name, split in splits.items() or [("", SPLITS[0])]:
        prefix = f"{name}/" if name else ""
        for label in _classes(root / name):
            found = [f"{prefix}{label}/{file}" for file in _sounds(root / name / label)]
            names += found
            classes += [label] * len(found)
            parts += [SPLITS.index(split)] * len(found)
    labels = in_order(set(classes))
    numbers = {label: number for number, label in enumerate(labels)}
    return Listing(
        source=root,
        paths=Strings(names),
        targets=Targets.one_each([numbers[label] for label in classes]),
        labels=labels,
        split=np.array(parts, dtype=np.int8) if splits else None,
    )


def _splits(root: Path) -> dict[str, Split]:
    """Folders of splits; none where the first folders are classes."""
    folders = _folders(root)
    named = {name: SPLIT_NAMES[name.lower()] for name in folders if name.lower() in SPLIT_NAMES}
    # A class may well be called train, or test.
    if len(named) < len(folders) and not ("train" in named.values() and len(named) > 1):
        return {}
    strange = [name for name in folders if name not in named]
    if strange:
        raise DataError(
            f"{root} has folders of splits ({some(named)}) and others beside them "
            f"({some(strange)}): put every class into a split, or move the others away"
        )
    if len(set(named.values())) < len(named):
        raise DataError(f"{root} has several folders of one split ({some(named)}): join them")
    return named


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in names if not name.startswith((".", "_")))


def _classes(folder: Path) -> list[str]:
    classes = _folders(folder)
    if not classes:
        loose = sum(path.suffix.lower() in ENDINGS for path in folder.iterdir())
        raise DataError(
            f"{folder} has no folder of a class ({loose} sound files lie in it): make a folder "
            "for each class, or list the clips in a CSV with the columns path and label "
            "(data.init_args.csv)"
        )
    return classes


def _sounds(folder: Path) -> list[str]:
    """Sound files below a class's folder, by name."""
    found: list[str] = []
    others: list[str] = []
    for here, _, names in os.walk(folder):
        inside = os.path.relpath(here, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        # Files whose names begin with a dot are left by some systems beside the real ones.
        names = [f"{prefix}{name}" for name in names if not name.startswith(".")]
        found += [name for name in names if name.lower().endswith(ENDINGS)]
        others += [name for name in names if name.lower().endswith(_NOT_DECODED)]
    if others:
        log.warning(
            "%s: left out %d files in formats that are not decoded, such as %s; convert them: "
            "ffmpeg -i IN OUT.wav",
            folder,
            len(others),
            min(others),
        )
    if not found:
        raise DataError(
            f"the class folder {folder} has no sound file ({', '.join(ENDINGS)}): add some, or "
            "move the folder away"
        )
    foreign = [name for name in found if not _is_utf8(name)]
    if foreign:
        raise DataError(
            f"{folder}: {len(foreign)} names of files are not UTF-8, such as {foreign[0]!a}: "
            "rename them"
        )
    return sorted(found)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
