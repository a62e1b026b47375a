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

from peas.data.audioset.layout import (
    PARTS,
    Listing,
    Subset,
    evaluation_lists,
    find_lists,
    locate,
    named_lists,
    parquet_part,
    training_lists,
)
from peas.data.audioset.lists import (
    Context,
    ListedClips,
    json_clips,
    require_once,
    require_sound,
    segment_clips,
)
from peas.data.audioset.parquet import PREFIX, hub_folder, parquet_clips
from peas.data.audioset.youtube_files import YOUTUBE_ID, YouTubeFiles, walk_sounds
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings
from peas.data.labels import ClassTable
from peas.data.module import ClipDataModule, Split
from peas.data.packed.manifest import FORMAT, JOURNAL, MANIFEST
from peas.errors import ConfigError, DataError

if TYPE_CHECKING:
    from peas.data.packed.folder import PackedFolder

log = logging.getLogger(__name__)

_READERS = {"segments": segment_clips, "json": json_clips, "parquet": parquet_clips}


class AudioSet(ClipDataModule):
    """AudioSet (J. F. Gemmeke et al., 2017): clips of 10 s, each with some of 527 classes.

    `ROOT` may be, and is recognised as:

    - a folder that `peas data pack` made;
    - Parquet files of a copy on a hub, or that copy itself with `hf://owner/name` as `ROOT`.
      `datasets` first writes them into Arrow files, which takes their size again, in
      `$HF_DATASETS_CACHE` or `~/.cache/huggingface/datasets`;
    - JSON lists of AST, SSAST and AudioMAE (`balanced_train_data.json`, `whole_train_data.json`,
      `eval_data.json`), whose paths are absolute, or from `ROOT` or the list's own folder;
    - the official `*_segments.csv` lists (in `ROOT`, `csv/`, `meta/` or `metadata/`), and sound
      files in any folder of `ROOT`, named `Y<id>.wav`, `<id>.flac`, `<id>_<start>.wav` or
      `<id>_<start>_<end>.m4a`, with any extension; starts are in seconds or thousandths.

    A clip's id is its YouTube id. Listed clips without sound are logged and left out, as videos
    vanish: report the number of clips with a result. A sound file is one clip, whatever start the
    lists give.

    Statistics, length, mixup and batch size are those of the official SSAST recipe.

    Args:
        root: Folder of the data set, or `hf://owner/name`, or `hf://owner/name@revision`.
        subset: Training set: `as20k`, the balanced part; `as2m`, the balanced and the unbalanced
            one. The evaluation part is for validation and test.
        train: Files that list the training clips (CSV, JSON, Parquet or a folder of Parquet files)
            instead of `subset`; from `root`, else from the working folder.
        evaluation: Files that list the evaluation clips, likewise; null = the usual names.
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
        # The names of all files of the folder are no longer needed.
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
        table = ClipTable.concatenate([clips.table for clips in lists])
        parts = list(dict.fromkeys(clips.part for clips in lists))
        numbers = [parts.index(clips.part) for clips in lists]
        return Inventory(
            table,
            parts,
            np.repeat(numbers, [len(clips.table) for clips in lists]),
            _videos(table.ids),
            absent=Strings(pa.chunked_array([clips.absent.array for clips in lists])),
            notes=[*notes, *(note for clips in lists for note in clips.notes)],
        )

    @cached_property
    def _training_table(self) -> ClipTable:
        lists = self._training_lists
        # Also if only training is wanted: a training clip must not be tested later.
        require_once([*lists, *(self._evaluation_lists if self._has_evaluation else [])])
        return self._table(lists)

    @cached_property
    def _evaluation_table(self) -> ClipTable:
        require_once(self._evaluation_lists)
        return self._table(self._evaluation_lists)

    def _table(self, lists: Sequence[ListedClips]) -> ClipTable:
        require_sound(lists, self._folder)
        tables = [clips.table for clips in lists]
        return tables[0] if len(tables) == 1 else ClipTable.concatenate(tables)

    @cached_property
    def _training_lists(self) -> list[ListedClips]:
        if self.train:
            return self._read(named_lists(self._folder, self.train, "train"))
        return self._read(training_lists(self._lists, self.subset, self._folder))

    @cached_property
    def _evaluation_lists(self) -> list[ListedClips]:
        if self.evaluation:
            return self._read(named_lists(self._folder, self.evaluation, "evaluation"))
        return self._read(evaluation_lists(self._lists, self._folder))

    @property
    def _has_evaluation(self) -> bool:
        return bool(self.evaluation) or any(each.part == "evaluation" for each in self._lists)

    def _read(self, listings: list[Listing]) -> list[ListedClips]:
        context = Context(self._folder, self._classes, self.decoder, lambda: self._files)
        lists = [_READERS[listing.form](listing, context) for listing in listings]
        for clips in lists:
            for note in (clips.missing(self._folder), *clips.notes):
                if note:
                    log.warning("%s", note)
        return lists

    @cached_property
    def _lists(self) -> list[Listing]:
        return find_lists(self._folder)

    @cached_property
    def _files(self) -> YouTubeFiles:
        return YouTubeFiles(walk_sounds(self._folder))

    @cached_property
    def _folder(self) -> Path:
        """The data set's folder; a hub copy's is in the hub's cache."""
        if self.hub is None:
            return self.root
        large = {"unbalanced", "whole"} if self.subset == "as20k" else set()
        parts = set(PARTS) - large
        return hub_folder(self.hub, lambda file: parquet_part(Path(file)) in parts)

    @cached_property
    def _classes(self) -> ClassTable:
        if self._packed is not None:
            labels = self._packed.manifest.settings.labels
            return ClassTable(str(self.root), labels, labels)
        return self._class_table

    @cached_property
    def _class_table(self) -> ClassTable:
        """The classes of the argument `class_labels`."""
        if self.class_labels is None:
            return ClassTable.shipped()
        return ClassTable.read(locate(self._folder, self.class_labels))

    @cached_property
    def _packed(self) -> PackedFolder | None:
        """The folder, if `peas data pack` made it, or began to."""
        from peas.data.packed.folder import PackedFolder

        manifest = self.root / MANIFEST
        try:
            content = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        except ValueError:
            content = {}
        is_packed = isinstance(content, dict) and content.get("format") == FORMAT
        if not is_packed and not (self.root / JOURNAL).is_file():
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
        required = ["balanced"] if self.subset == "as20k" else ["balanced", "unbalanced"]
        if set(required) <= set(packed.parts):
            return packed.table(required)
        for other in ("train", *(["whole"] if self.subset == "as2m" else [])):
            if other in packed.parts:
                return packed.table([other])
        raise DataError(
            f"{self.root} was packed with the parts {', '.join(packed.parts)}: "
            f"data.init_args.subset {self.subset} needs {' and '.join(required)}"
        )


def _videos(ids: Strings) -> Strings:
    """Names of the videos that clips were cut from; empty if an id is not YouTube's."""
    array = ids.array.cast(pa.large_string())
    before, separator, empty = (pa.scalar(text, pa.large_string()) for text in ("youtube", ":", ""))
    names = pc.binary_join_element_wise(before, array, separator)
    is_id = pc.match_substring_regex(array, pattern=f"^{YOUTUBE_ID}$")
    return Strings(pc.if_else(is_id, names, empty))
