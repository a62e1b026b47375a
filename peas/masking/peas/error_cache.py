"""Marginal errors per clip, kept between epochs so that not every clip is scored each time."""

from typing import Any

import torch
from torch import Tensor

from peas.masking.peas.selector import Marginals
from peas.training.distributed import gather
from peas.training.randomness import stable_hash


class ErrorCache:
    """Two float16 marginals per clip: mean error of every frame and of every mel bin, up to scale.

    About 1.3 kB a clip for 5 s, where a map would take 130 kB. Entries are on the CPU, in the
    clip's own time (a roll is undone before they are stored).
    """

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._time = torch.empty(0, 0, dtype=torch.float16)
        self._freq = torch.empty(0, 0, dtype=torch.float16)
        self._new: set[str] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def missing(self, ids: list[str]) -> Tensor:
        """`[B]` bool, clips without an entry."""
        return torch.tensor([clip not in self._rows for clip in ids])

    def store(self, ids: list[str], errors: Marginals) -> None:
        """Stores the marginals `[B, T]` and `[B, F]` of clips."""
        if not ids:
            return
        for clip in ids:
            self._rows.setdefault(clip, len(self._rows))
        self._time = _fit(self._time, len(self._rows), errors.time.shape[1])
        self._freq = _fit(self._freq, len(self._rows), errors.freq.shape[1])
        rows = torch.tensor([self._rows[clip] for clip in ids])
        self._time[rows] = _half(errors.time)
        self._freq[rows] = _half(errors.freq)
        self._new.update(ids)

    def read(self, ids: list[str]) -> Marginals:
        """Marginals `[B, T]` and `[B, F]` float32 of clips with an entry, each line up to scale."""
        rows = torch.tensor([self._rows[clip] for clip in ids])
        return Marginals(self._time[rows].float(), self._freq[rows].float())

    def gather(self) -> None:
        """Adds what the other processes stored since the last call."""
        new_ids = sorted(self._new)
        rows = torch.tensor([self._rows[clip] for clip in new_ids], dtype=torch.long)
        own = Marginals(self._time[rows], self._freq[rows]) if new_ids else None
        for ids, errors in gather((new_ids, own)):
            if errors is not None:
                self.store(ids, errors)
        self._new.clear()

    def state_dict(self) -> dict[str, Any]:
        """All entries; the same on every process after `gather`."""
        count = len(self._rows)
        return {
            "ids": list(self._rows),
            "time": self._time[:count].clone(),
            "freq": self._freq[:count].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved entries."""
        self._rows = {clip: row for row, clip in enumerate(state["ids"])}
        self._time, self._freq = state["time"], state["freq"]
        self._new.clear()


def due(ids: list[str], epoch: int, every: int) -> Tensor:
    """`[B]` bool, clips to score in this epoch: an equal share of all clips in each epoch."""
    return torch.tensor([(stable_hash(clip) + epoch) % every == 0 for clip in ids])


def _half(values: Tensor) -> Tensor:
    """Float16 on the CPU, each line divided by its largest value.

    Squared errors of squared errors exceed float16's range at either end, and windows are
    ranked within a line only, where a common factor does not matter.
    """
    values = values.detach().float().cpu()
    return (values / values.abs().amax(1, keepdim=True).clamp(min=1e-30)).half()


def _fit(table: Tensor, rows: int, width: int) -> Tensor:
    """The table with room for `rows`, doubled when it is full."""
    if len(table) >= rows and table.shape[1] == width:
        return table
    grown = torch.zeros(max(rows, 2 * len(table)), width, dtype=torch.float16)
    if table.shape[1] == width:
        grown[: len(table)] = table
    return grown
