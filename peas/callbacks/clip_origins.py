"""Where a predicted clip is from: its file, data set and split, and its true class if known."""

from collections.abc import Sequence
from typing import Any

from peas.data.module import ClipDataModule

ORIGIN = ("file", "set", "split", "true_label")
"""Columns that tell where a clip is from."""


class ClipOrigins:
    """Origins of the clips that a data module predicts.

    Args:
        data: The data module; of another kind than `peas`'s nothing is known.
        labels: Classes of the model: others are no true class of it.

    Attributes:
        left_out: Clips of the set that were not predicted.
    """

    def __init__(self, data: Any, labels: Sequence[str]) -> None:
        self._rows: dict[str, int] = {}
        self.left_out = 0
        if not isinstance(data, ClipDataModule):
            return
        self._clips = data.prediction_clips()
        self.left_out = self._clips.left_out
        self._rows = {clip: row for row, clip in enumerate(self._clips.table.ids)}
        self._set = str(data.root)
        known = set(labels)
        self._names = [name if name in known else "" for name in data.labels]

    def of(self, clip: str) -> tuple[str, str, str, str]:
        """The columns of `ORIGIN` of a clip; empty where they are not known.

        Several true classes are joined by semicolons.

        Args:
            clip: Its id.
        """
        row = self._rows.get(clip)
        if row is None:
            return "", "", "", ""
        table, splits, _ = self._clips
        true = ";".join(filter(None, (self._names[number] for number in table.targets[row])))
        return table.sounds.file(row), self._set, splits[row], true
