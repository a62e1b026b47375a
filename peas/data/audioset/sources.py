"""What a folder holds of AudioSet: segment lists, JSON lists or Parquet files, of which part."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Literal, get_args

from peas.data.audioset.parquet import require_shards
from peas.errors import DataError
from peas.utils.text import some

Form = Literal["segments", "json", "parquet"]
Part = Literal["balanced", "unbalanced", "whole", "train", "evaluation", "validation"]
Subset = Literal["as2m", "as20k"]
PARTS: tuple[Part, ...] = get_args(Part)

LAYOUTS = (
    "the official *_segments.csv lists with sound files named Y<id>.wav, <id>.flac, "
    "<id>_<start>.wav or <id>_<start>_<end>.m4a in any folder below; the JSON lists of AST; "
    "Parquet files of a hub copy; or a folder made by `peas data pack`"
)
_FOLDERS = ("", "csv", "meta", "metadata", "json", "datafiles", "lists", "data")
_SEGMENTS: dict[Part, tuple[str, ...]] = {
    "balanced": ("balanced_train_segments.csv",),
    "unbalanced": ("unbalanced_train_segments.csv",),
    "evaluation": ("eval_segments.csv",),
}
_JSON: dict[Part, tuple[str, ...]] = {
    "balanced": ("balanced_train_data.json", "balanced_train.json", "train_20k.json"),
    "unbalanced": ("unbalanced_train_data.json", "unbalanced_train.json"),
    "whole": ("whole_train_data.json", "full_train_data.json", "train_2m.json"),
    "train": ("train_data.json", "train.json"),
    "evaluation": ("eval_data.json", "eval.json", "test_data.json", "test.json"),
}
# Folders that copies keep Parquet files in, down to three levels.
_PARQUET_FOLDERS = (
    *("data", "balanced", "unbalanced", "bal_train", "unbal_train", "balanced_train"),
    *("unbalanced_train", "full", "whole", "20k", "2m", "train", "eval", "test", "evaluation"),
    *("validation", "valid", "val"),
)
# A folder with more entries than this and no Parquet file among the first holds sound files.
_MANY = 10_000


@dataclass(frozen=True)
class Listing:
    """Files that list the clips of one part.

    Attributes:
        part: Which part; `train` where nothing says which training set it is.
        form: How the files are read.
        files: One list, or all shards in order.
    """

    part: str
    form: Form
    files: list[Path]

    def __str__(self) -> str:
        if len(self.files) == 1:
            return str(self.files[0])
        return f"{len(self.files)} files in {self.files[0].parent}"


def parquet_part(path: PurePath) -> Part | None:
    """Part of AudioSet that a Parquet file of a hub copy holds, by its name and folders.

    `data/bal_train/00.parquet`, `data/train-00000-of-00007.parquet`, `unbalanced/test/0.parquet`.

    Args:
        path: Path from the copy's folder.
    """
    if path.suffix != ".parquet":
        return None
    words = set(re.split(r"[^a-z0-9]+", str(path.with_suffix("")).lower()))
    if words & {"eval", "evaluation", "test"}:
        return "evaluation"
    if words & {"validation", "valid", "val"}:
        return "validation"
    if words & {"unbalanced", "unbal"}:
        return "unbalanced"
    if words & {"balanced", "bal", "20k"}:
        return "balanced"
    if words & {"2m", "full", "whole"}:
        return "whole"
    return "train" if "train" in words else None


def look(root: Path) -> list[Listing]:
    """Lists of clips in a folder, in the most particular form that is there.

    Parquet files hold the sound themselves, so they go before JSON lists, and those, which name
    each file, before segment lists, which any copy may have beside it.

    Raises:
        DataError: There is no such folder, or one part lies in several places.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: correct data.init_args.root")
    return _parquet(root) or _by_name(root, "json", _JSON) or _by_name(root, "segments", _SEGMENTS)


def training_lists(found: list[Listing], subset: Subset, root: Path) -> list[Listing]:
    """The lists that make up a training set.

    Raises:
        DataError: One of them is not there.
    """
    parts = {listing.part: listing for listing in found}
    wanted = ["balanced"] if subset == "as20k" else ["balanced", "unbalanced"]
    if all(part in parts for part in wanted):
        return [parts[part] for part in wanted]
    for other in ("whole", "train") if subset == "as2m" else ("train",):
        if other in parts:
            return [parts[other]]
    have = f"only {some(map(str, found), 5)}" if found else "no list of clips"
    lacking = " and ".join(part for part in wanted if part not in parts)
    raise DataError(
        f"{root} has {have}: data.init_args.subset {subset} lacks the {lacking} training part. "
        f"Known layouts: {LAYOUTS}; or name the files as data.init_args.train"
    )


def evaluation_lists(found: list[Listing], root: Path) -> list[Listing]:
    """The list of the evaluation clips.

    Raises:
        DataError: It is not there.
    """
    lists = [listing for listing in found if listing.part == "evaluation"]
    if not lists:
        have = f"only {some(map(str, found), 5)}" if found else "no list of clips"
        raise DataError(
            f"{root} has {have}: the evaluation part is missing. Known layouts: {LAYOUTS}; or name "
            "the file as data.init_args.evaluation"
        )
    return lists


def locate(root: Path, name: str) -> Path:
    """Place of a file that the user names: from the data set's folder, else the working one."""
    given = Path(name).expanduser()
    return root / given if (root / given).exists() or not given.exists() else given


def named(root: Path, names: list[str], part: str, key: str) -> list[Listing]:
    """Lists that the user names: CSV, JSON or Parquet files, or folders of Parquet files.

    Args:
        root: Where relative names start.
        names: The files and folders, for `locate`.
        part: What they are for.
        key: Argument that names them, for messages.

    Raises:
        DataError: One is missing or of no known form.
    """
    lists = []
    shards: list[Path] = []
    for name in names:
        path = locate(root, name)
        if path.is_dir():
            inner = sorted(path.glob("*.parquet"))
            if not inner:
                raise DataError(f"{path} has no *.parquet file: correct data.init_args.{key}")
            require_shards(inner)
            shards += inner
        elif not path.is_file():
            raise DataError(f"there is no {path}: correct data.init_args.{key}")
        elif path.suffix == ".parquet":
            shards.append(path)
        elif path.suffix in (".csv", ".json"):
            form: Form = "json" if path.suffix == ".json" else "segments"
            lists.append(Listing(_own_part(path, part), form, [path]))
        else:
            raise DataError(
                f"{path} is none of *.csv, *.json and *.parquet, nor a folder of the last: correct "
                f"data.init_args.{key}"
            )
    if shards:
        lists.append(Listing(part, "parquet", shards))
    return lists


def _own_part(path: Path, part: str) -> str:
    """Keeps the official lists' own parts, so that reports can tell them apart."""
    if part == "train":
        for name, files in (*_SEGMENTS.items(), *_JSON.items()):
            if path.name in files:
                return name
    return part


def _by_name(root: Path, form: Form, names: dict[Part, tuple[str, ...]]) -> list[Listing]:
    """Lists with the usual names: the first name, in the first folder, for each part."""
    lists = []
    for part, files in names.items():
        places = (root / folder / file for file in files for folder in _FOLDERS)
        place = next((place for place in places if place.is_file()), None)
        if place is not None:
            lists.append(Listing(part, form, [place]))
    return lists


def _parquet(root: Path) -> list[Listing]:
    parts: defaultdict[Part, list[Path]] = defaultdict(list)
    for file in sorted(_parquet_files(root, 3)):
        part = parquet_part(file.relative_to(root))
        if part is not None:
            parts[part].append(file)
    # AudioSet has one part that is not for training, by whichever name; who cut a part for
    # validation from the training clips has the other one as well.
    aside = parts.pop("validation", [])
    if aside and "evaluation" not in parts:
        parts["evaluation"] = aside
    for part, files in parts.items():
        folders = sorted({str(file.parent) for file in files})
        if len(folders) > 1:
            raise DataError(
                f"{root} has Parquet files of the {part} part in {len(folders)} folders "
                f"({some(folders)}): name the right one as data.init_args."
                f"{'evaluation' if part == 'evaluation' else 'train'}"
            )
        require_shards(files)
    return [Listing(part, "parquet", files) for part, files in parts.items()]


def _parquet_files(folder: Path, depth: int) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, _MANY)]
        if any(name.endswith(".parquet") for name in names):
            names += [entry.name for entry in entries]
    files = [folder / name for name in names if name.endswith(".parquet")]
    if depth:
        for name in _PARQUET_FOLDERS:
            if (folder / name).is_dir():
                files += _parquet_files(folder / name, depth - 1)
    return files
