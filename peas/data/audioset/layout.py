"""Layouts of AudioSet: which lists of clips a folder holds, and of which part."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Literal, get_args

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
# A folder without a Parquet file among so many entries holds sound files.
_MANY = 10_000
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")


@dataclass(frozen=True)
class Listing:
    """Files that list the clips of one part.

    Attributes:
        part: Which part; `train` if the training set is not named.
        form: Format of the files.
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


def find_lists(root: Path) -> list[Listing]:
    """Lists of clips in a folder.

    Parquet files, which hold the sound, take precedence over JSON lists, which name each file, and
    those over segment lists, which any copy may have in addition.

    Raises:
        DataError: There is no such folder, or one part is in several folders.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: correct data.init_args.root")
    return _parquet(root) or _by_name(root, "json", _JSON) or _by_name(root, "segments", _SEGMENTS)


def training_lists(lists: list[Listing], subset: Subset, root: Path) -> list[Listing]:
    """The lists that make up a training set.

    Raises:
        DataError: One of them is missing.
    """
    parts = {listing.part: listing for listing in lists}
    required = ["balanced"] if subset == "as20k" else ["balanced", "unbalanced"]
    if all(part in parts for part in required):
        return [parts[part] for part in required]
    for other in ("whole", "train") if subset == "as2m" else ("train",):
        if other in parts:
            return [parts[other]]
    missing = " and ".join(part for part in required if part not in parts)
    raise _missing(
        root, lists, f"data.init_args.subset {subset} lacks the {missing} training part", "train"
    )


def evaluation_lists(lists: list[Listing], root: Path) -> list[Listing]:
    """The list of the evaluation clips.

    Raises:
        DataError: It is missing.
    """
    evaluation = [listing for listing in lists if listing.part == "evaluation"]
    if not evaluation:
        raise _missing(root, lists, "the evaluation part is missing", "evaluation")
    return evaluation


def _missing(root: Path, lists: list[Listing], what: str, key: str) -> DataError:
    present = f"only {some(map(str, lists), 5)}" if lists else "no list of clips"
    return DataError(
        f"{root} has {present}: {what}. Known layouts: {LAYOUTS}; or name the files as "
        f"data.init_args.{key}"
    )


def locate(root: Path, name: str) -> Path:
    """Path of a file that the user names: from the data set's folder, else the working one."""
    path = Path(name).expanduser()
    return root / path if (root / path).exists() or not path.exists() else path


def named_lists(root: Path, names: list[str], part: str) -> list[Listing]:
    """Lists that the user names: CSV, JSON or Parquet files, or folders of Parquet files.

    Args:
        root: Where relative names start.
        names: The files and folders, as for `locate`.
        part: `train` or `evaluation`, and the name of the argument.

    Raises:
        DataError: One is missing or of no known format.
    """
    lists = []
    shards: list[Path] = []
    for name in names:
        path = locate(root, name)
        if path.is_dir():
            inner = sorted(path.glob("*.parquet"))
            if not inner:
                raise DataError(f"{path} has no *.parquet file: correct data.init_args.{part}")
            require_shards(inner)
            shards += inner
        elif not path.is_file():
            raise DataError(f"there is no {path}: correct data.init_args.{part}")
        elif path.suffix == ".parquet":
            shards.append(path)
        elif path.suffix in (".csv", ".json"):
            form: Form = "json" if path.suffix == ".json" else "segments"
            lists.append(Listing(_own_part(path, part), form, [path]))
        else:
            raise DataError(
                f"{path} is none of *.csv, *.json and *.parquet, nor a folder of the last: correct "
                f"data.init_args.{part}"
            )
    if shards:
        lists.append(Listing(part, "parquet", shards))
    return lists


def _own_part(path: Path, part: str) -> str:
    """The part that an official name stands for."""
    if part == "train":
        for name, files in (*_SEGMENTS.items(), *_JSON.items()):
            if path.name in files:
                return name
    return part


def _by_name(root: Path, form: Form, names: dict[Part, tuple[str, ...]]) -> list[Listing]:
    """Lists with the usual names: the first name, in the first folder, for each part."""
    lists = []
    for part, files in names.items():
        paths = (root / folder / file for file in files for folder in _FOLDERS)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            lists.append(Listing(part, form, [path]))
    return lists


def _parquet(root: Path) -> list[Listing]:
    parts: defaultdict[Part, list[Path]] = defaultdict(list)
    for file in sorted(_parquet_files(root, 3)):
        part = parquet_part(file.relative_to(root))
        if part is not None:
            parts[part].append(file)
    # AudioSet has one part that is not for training, which some copies call validation.
    validation = parts.pop("validation", [])
    if validation and "evaluation" not in parts:
        parts["evaluation"] = validation
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


def require_shards(files: list[Path]) -> None:
    """Check that no shard such as `train-00001-of-00004.parquet` is missing.

    Raises:
        DataError: A shard is missing.
    """
    shards: defaultdict[tuple[Path, str, str], set[int]] = defaultdict(set)
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            shards[file.parent, match[1], match[3]].add(int(match[2]))
    for (folder, name, count), numbers in shards.items():
        missing = [
            f"{name}-{number:0{len(count)}}-of-{count}"
            for number in sorted(set(range(int(count))) - numbers)
        ]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {int(count)} shards of {name} are missing: "
                f"{some(missing)}; fetch them, or name the intended files as "
                "data.init_args.train or evaluation"
            )


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
