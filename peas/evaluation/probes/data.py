"""Embeddings with classes and parts, and which clips are trained on and scored.

N clips, L layers, D features, C classes, T tokens of a clip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from peas.errors import ConfigError, DataError
from peas.utils.text import some

SPLITS = ("train", "validation", "test")
GROUPS = 5
"""Groups of training clips that are left out in turn where no other clips serve for choices."""
Split = Literal["folds", "test", "validation"]


@dataclass(frozen=True)
class ProbeSet:
    """Embeddings of labelled clips.

    Attributes:
        name: Of the row in the table.
        ids: Name of each clip.
        embeddings: `[L, N, D]`.
        layers: Numbers of the layers.
        targets: `[N, C]` bool.
        multi_label: Whether a clip may have several classes.
        split: Split of each clip, or the name of its fold.
        clusters: Recording or speaker of each clip: what is resampled for intervals.
        tokens: A clip's tokens `[K, T, D]` by its row and K indices in `layers`; None = the set has
            none.

    Raises:
        DataError: It cannot be probed; the message names the set.
    """

    name: str
    ids: Sequence[str]
    embeddings: Tensor
    layers: Sequence[int]
    targets: Tensor
    multi_label: bool
    split: Sequence[str]
    clusters: Sequence[str]
    tokens: Callable[[int, Sequence[int]], Tensor] | None = None

    def __post_init__(self) -> None:
        bad = ~self.embeddings.isfinite().all(dim=2).all(dim=0)
        if bad.any():
            names = [self.ids[row] for row in bad.nonzero()[:, 0].tolist()]
            raise DataError(
                f"{self.name}: embeddings of {len(names)} clips are non-finite: {some(names)}; "
                "take an earlier checkpoint, or embed without these clips"
            )
        present = int(self.targets.any(dim=0).sum())
        if present < 2:
            raise DataError(
                f"{self.name}: number of classes with clips is {present}: a probe needs two or more"
            )

    def layer(self, number: int | None) -> int:
        """Index of a layer in `layers`.

        Args:
            number: As in `layers`; negative ones count from the end; None = the last.

        Raises:
            ConfigError: The set has no such layer.
        """
        count = len(self.layers)
        if number is None:
            return count - 1
        if number in self.layers:
            return list(self.layers).index(number)
        if -count <= number < 0:
            return count + number
        raise ConfigError(
            f"{self.name} has no layer {number}: it has {', '.join(map(str, self.layers))}"
        )

    def labelled(self) -> Tensor:
        """Rows of clips that can be used: all of them if several classes are possible."""
        if self.multi_label:
            return torch.arange(len(self.ids))
        return self.targets.sum(dim=1).eq(1).nonzero()[:, 0]


class Partition(NamedTuple):
    """Clips that are trained on and scored; rows of a `ProbeSet`.

    Attributes:
        name: The split or fold that is scored.
        train: Rows.
        test: Rows.
        choices: Rows to train on and to score for each choice; all without the test clips.
    """

    name: str
    train: Tensor
    test: Tensor
    choices: list[tuple[Tensor, Tensor]]


def partitions(data: ProbeSet, split: Split | None = None) -> list[Partition]:
    """Which clips are trained on and scored.

    Folds are scored one by one, each by a probe of all others, and choices are made by leaving out
    one of these others in turn. Of splits, `test` (or `validation`) is scored by a probe of
    `train`; choices for `test` are made on `validation`. Where there is none, and with two folds,
    five groups of training clips are left out in turn; no two groups share a recording.

    Args:
        data: The set.
        split: `folds`, `test` or `validation`; None = folds if the set has them, else test.

    Raises:
        ConfigError: The set has no such parts.
    """
    rows = data.labelled()
    parts = np.array(data.split, dtype=str)[rows.numpy()]
    names = sorted(set(parts.tolist()) - {""})
    folds = bool(names) and not set(names) & set(SPLITS)
    split = split or ("folds" if folds else "test")

    def rows_of(*wanted: str) -> Tensor:
        return rows[torch.from_numpy(np.isin(parts, wanted))]

    if split == "folds":
        if not folds or len(names) < 2:
            raise ConfigError(_no_parts(data, names, "two or more folds"))
        found = []
        for number, name in enumerate(names):
            # Beginning with the next one: a probe that uses one choice takes each fold once.
            others = names[number + 1 :] + names[:number]
            train = rows_of(*others)
            choices = [(rows_of(*(o for o in others if o != out)), rows_of(out)) for out in others]
            if len(others) < 2:
                choices = _groups(data, train)
            found.append(Partition(name, train, rows_of(name), choices))
        return found
    if not {"train", split} <= set(names):
        raise ConfigError(_no_parts(data, names, f"train and {split}"))
    train = rows_of("train")
    if split == "test" and "validation" in names:
        choices = [(train, rows_of("validation"))]
    else:
        choices = _groups(data, train)
    return [Partition(split, train, rows_of(split), choices)]


def _no_parts(data: ProbeSet, names: Sequence[str], needed: str) -> str:
    return (
        f"{data.name} has the parts {', '.join(names) or 'none'}, and {needed} are needed: choose "
        "`--split` folds, test or validation, or embed a set that has them"
    )


def _groups(data: ProbeSet, train: Tensor) -> list[tuple[Tensor, Tensor]]:
    _, codes = np.unique([data.clusters[row] for row in train.tolist()], return_inverse=True)
    # Names are often in the order of the classes.
    order = np.random.default_rng(0).permutation(int(codes.max()) + 1)
    group = torch.from_numpy(order[codes] % GROUPS)
    numbers = range(int(group.max()) + 1)
    if len(numbers) < 2:
        raise DataError(
            f"{data.name}: the training clips are of one recording or speaker: give more"
        )
    return [(train[group != out], train[group == out]) for out in numbers]
