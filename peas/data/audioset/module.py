"""AudioSet: ten-second clips of YouTube videos with any of 527 classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peas.data.audioset.classes import ClassTable
from peas.data.audioset.hub import PREFIX, hub_folder
from peas.data.audioset.listed import ListedClips, Place, read_list, require_once, require_sound
from peas.data.audioset.sources import (
    PARTS,
    Listing,
    Subset,
    evaluation_lists,
    locate,
    look,
    named,
    parquet_part,
    training_lists,
)
from peas.data.audioset.youtube_files import YOUTUBE_ID, YouTubeFiles, walk_sounds
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings
from peas.data.module import ClipDataModule, Split
from peas.data.packed.manifest import FORMAT, JOURNAL, MANIFEST
from peas.errors import ConfigError, DataError

if TYPE_CHECKING:
    from peas.data.packed.folder import PackedFolder

log = logging.getLogger(__name__)


class AudioSet(ClipDataModule):
    """AudioSet (J. F. Gemmeke et al., 2017): clips of 10 s, each with some of 527 classes.

    What `ROOT` holds is found by looking:

    - a folder that `peas data pack` made;
    - Parquet files of a copy on a hub, or that copy itself with `hf://owner/name` as `ROOT`.
      `datasets` first writes them into Arrow files, which takes their size again, in
      `$HF_DATASETS_CACHE` or `~/.cache/huggingface/datasets`;
    - JSON lists of AST, SSAST and AudioMAE (`balanced_train_data.json`, `whole_train_data.json`,
      `eval_data.json`), whose paths are absolute, or from `ROOT` or the list's own folder;
    - the official `*_segments.csv` lists (in `ROOT`, `csv/`, `meta/` or `metadata/`), and sound
      files in any folder of `ROOT`, named `Y<id>.wav`, `<id>.flac`, `<id>_<start>.wav` or
      `<id>_<start>_<end>.m4a`, with any extension; starts are in seconds or thousandths.

    A clip's id is its YouTube id. A clip that is listed and has no sound is counted, named in the
    log and left out, as videos vanish: state how many clips a result is of. A sound file is one
    whole clip, whatever start the lists give.

    Statistics, length, mixup and batch size are the official SSAST recipe's.

    Args:
        root: Folder of the data set, or `hf://owner/name`, or `hf://owner/name@revision`.
        subset: What trains: `as20k`, the balanced part; `as2m`, the balanced and the unbalanced
            one. The evaluation part validates and tests.
        train: Files that list the training clips (CSV, JSON, Parquet or a folder of the last), in
            place of `subset`; from `root`, else from the working folder.
        evaluation: Files that list the evaluation clips, likewise; null = found by looking.
        class_labels: CSV of other classes (index, mid, display_name); null = AudioSet's 527.
        batch_size: Training clips of a batch, for each process.
        mixup: Probability that a training clip is mixed with another one.
        mean: Mean of the log-mel.
        std: Standard deviation of the log-mel.
        frames: Frames of the model's input, 10 ms each.
        **common: Further arguments of `ClipDataModule`.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self,
        root: str,
        *,
        subset: Subset = "as2m",
        train: list[str] | str | None = None,
        evaluation: list[str] | str | None = None,
        class_labels: str | None = None,
        batch_size: int = 12,
        mixup: float = 0.5,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        frames: int = 1024,
        **common: Any,
    ) -> None:
        super().__init__(
            root, batch_size=batch_size, mixup=mixup, mean=mean, std=std, frames=frames, **common
        )
        if subset not in ("as2m", "as20k"):
            raise ConfigError(f"data.init_args.subset is {subset!r}: give as2m or as20k")
        self.hub = root if root.startswith(PREFIX) else None
        self.subset: Subset = subset
        self.train = [train] if isinstance(train, str) else train
        self.evaluation = [evaluation] if isinstance(evaluation, str) else evaluation
        self.class_labels = class_labels

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the targets."""
        return list(self._classes.names)

    @property
    def multi_label(self) -> bool:
        """True: a clip has any number of classes."""
        return True

    def setup(self, stage: str) -> None:
        """Read the lists and find the sounds."""
        super().setup(stage)
        # The names of all files of the folder: nothing needs them any more.
        self.__dict__.pop("_files", None)

    def clips(self, split: Split) -> ClipTable:
        """Clips of a split that have sound.

        Raises:
            DataError: The data set is missing or contradicts itself, or no clip has sound.
        """
        if self._packed is not None:
            return self._packed_table(self._packed, split)
        return self._training_table if split == "train" else self._evaluation_table

    def inventory(self) -> Inventory:
        """Every clip that has sound, by part; the others are `absent`. Recordings are videos.

        Raises:
            DataError: There is no list of clips, or one cannot be read or contradicts itself.
        """
        if self._packed is not None:
            return self._packed.inventory()
        lists, notes = [*self._training_lists], []
        if self._has_evaluation:
            lists += self._evaluation_lists
        else:
            notes.append("No list of the evaluation clips was found.")
        require_once(lists)
        table = ClipTable.concatenate([one.table for one in lists])
        names = list(dict.fromkeys(one.part for one in lists))
        return Inventory(
            table,
            names,
            np.repeat([names.index(one.part) for one in lists], [len(one.table) for one in lists]),
            _videos(table.ids),
            absent=Strings(pa.chunked_array([one.absent.array for one in lists])),
            notes=[*notes, *(note for one in lists for note in one.notes)],
        )

    @cached_property
    def _training_table(self) -> ClipTable:
        lists = self._training_lists
        # Also where only training reads: a clip that trains must not be tested later.
        require_once([*lists, *(self._evaluation_lists if self._has_evaluation else [])])
        return self._table(lists)

    @cached_property
    def _evaluation_table(self) -> ClipTable:
        require_once(self._evaluation_lists)
        return self._table(self._evaluation_lists)

    def _table(self, lists: Sequence[ListedClips]) -> ClipTable:
        require_sound(lists, self._folder)
        tables = [one.table for one in lists]
        return tables[0] if len(tables) == 1 else ClipTable.concatenate(tables)

    @cached_property
    def _training_lists(self) -> list[ListedClips]:
        if self.train:
            found = named(self._folder, self.train, "train", "train")
        else:
            found = training_lists(self._found, self.subset, self._folder)
        return self._read(found)

    @cached_property
    def _evaluation_lists(self) -> list[ListedClips]:
        if self.evaluation:
            found = named(self._folder, self.evaluation, "evaluation", "evaluation")
        else:
            found = evaluation_lists(self._found, self._folder)
        return self._read(found)

    @property
    def _has_evaluation(self) -> bool:
        return bool(self.evaluation) or any(one.part == "evaluation" for one in self._found)

    def _read(self, found: list[Listing]) -> list[ListedClips]:
        place = Place(self._folder, self._classes, self.decoder, lambda: self._files)
        lists = [read_list(listing, place) for listing in found]
        for one in lists:
            for note in (one.missing(self._folder), *one.notes):
                if note:
                    log.warning("%s", note)
        return lists

    @cached_property
    def _found(self) -> list[Listing]:
        return look(self._folder)

    @cached_property
    def _files(self) -> YouTubeFiles:
        return YouTubeFiles(walk_sounds(self._folder))

    @cached_property
    def _folder(self) -> Path:
        """The data set's folder; a hub copy's is in the hub's cache."""
        if self.hub is None:
            return self.root
        unwanted = {"unbalanced", "whole"} if self.subset == "as20k" else set()
        wanted = set(PARTS) - unwanted
        return hub_folder(self.hub, lambda file: parquet_part(Path(file)) in wanted)

    @cached_property
    def _classes(self) -> ClassTable:
        if self._packed is not None:
            labels = self._packed.manifest.settings.labels
            return ClassTable(str(self.root), labels, labels)
        return self._class_table

    @cached_property
    def _class_table(self) -> ClassTable:
        """The classes that the arguments say."""
        if self.class_labels is None:
            return ClassTable.shipped()
        return ClassTable.read(locate(self._folder, self.class_labels))

    @cached_property
    def _packed(self) -> PackedFolder | None:
        """The folder, if it is one that `peas data pack` made, or began to make."""
        from peas.data.packed.folder import PackedFolder

        manifest = self.root / MANIFEST
        try:
            said = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        except ValueError:
            said = {}
        ours = isinstance(said, dict) and said.get("format") == FORMAT
        if not ours and not (self.root / JOURNAL).is_file():
            return None
        return PackedFolder(self.root, self.decoder)

    def _packed_table(self, packed: PackedFolder, split: Split) -> ClipTable:
        if self.train or self.evaluation:
            raise ConfigError(
                f"{self.root} is a packed set: its parts {', '.join(packed.parts)} were chosen "
                "when it was packed; set data.init_args.train and evaluation to null"
            )
        labels = packed.manifest.settings.labels
        if self.class_labels is not None and self._class_table.names != labels:
            raise DataError(
                f"{self.root} was packed with {len(labels)} classes, which are not the "
                f"{len(self._class_table)} of {self._class_table.source}: give the table that it "
                "was packed with, or null, as data.init_args.class_labels"
            )
        if split != "train":
            return packed.table(packed.parts_of(split))
        wanted = ["balanced"] if self.subset == "as20k" else ["balanced", "unbalanced"]
        if set(wanted) <= set(packed.parts):
            return packed.table(wanted)
        for other in ("train", *(["whole"] if self.subset == "as2m" else [])):
            if other in packed.parts:
                return packed.table([other])
        raise DataError(
            f"{self.root} was packed with the parts {', '.join(packed.parts)}: "
            f"data.init_args.subset {self.subset} needs {' and '.join(wanted)}"
        )


def _videos(ids: Strings) -> Strings:
    """Names of the videos that clips were cut from; empty where an id is not YouTube's."""
    array = ids.array.cast(pa.large_string())
    before, between, nothing = (pa.scalar(text, pa.large_string()) for text in ("youtube", ":", ""))
    names = pc.binary_join_element_wise(before, array, between)
    known = pc.match_substring_regex(array, pattern=f"^{YOUTUBE_ID}$")
    return Strings(pc.if_else(known, names, nothing))
