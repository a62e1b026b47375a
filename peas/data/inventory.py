"""What a data set says that it holds: for checks before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from peas.data.clips import ClipTable
from peas.data.columns import Rows, Strings


@dataclass(frozen=True)
class Inventory:
    """Every clip of a data set once, and what may tie clips of different parts. N clips.

    A part is a split or a fold: clips of one may train a model that is tested on another.

    Attributes:
        table: The clips, whether or not their sound is there.
        parts: Names of the parts.
        part: `[N]` number of each clip's part.
        recordings: Name of the recording that each clip was cut from, such as `freesound:1234`
            or `youtube:abc`, the same in every data set that holds it; None = not known. An
            empty name = not known for that clip.
        speakers: Name of each clip's speaker, such as `librispeech:84`, likewise.
        absent: Names of clips that the set lists and of which no sound was found; they are not
            in the table.
        notes: Whatever else the set has to say about itself, one sentence each.
    """

    table: ClipTable
    parts: list[str]
    part: Rows
    recordings: Strings | None = None
    speakers: Strings | None = None
    absent: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_splits(cls, splits: Mapping[str, ClipTable]) -> Inventory:
        """Inventory of splits that share no clip by construction."""
        sizes = [len(table) for table in splits.values()]
        return cls(
            ClipTable.concatenate(list(splits.values())),
            list(splits),
            np.repeat(np.arange(len(sizes)), sizes),
        )
