"""The report of a check: what a set holds and what is wrong, as JSON and as a table.

`report.json` has the keys

- `peas`, `command`, `set`, `root`: the version, and what was asked;
- `status`: `errors`, `warnings` or `fine`;
- `clips`: listed clips with a place for their sound; `absent`: listed clips without one;
- `hours`: of the clips that can be read;
- `lengths`: `min`, `median`, `mean` and `max` in seconds;
- `rates`, `channels`: number of clips of each sampling rate in Hz, of each number of channels;
- `parts`: for each split or fold its `clips`, `unreadable` clips, `hours`, and the number of clips
  of each of its `classes`;
- `labels`: all classes in order; `notes`: what the set says about itself; `against`: other sets
  that were compared;
- `findings`, worst first: each with `kind`, `severity`, `title`, `advice`, `count`, `unit`
  (`clips`, `classes` or `faults` of the tables), a few `messages`, and for everything that it
  concerns, in the same order, `names` (ids of clips or names of classes), `places` (parts, or
  data sets), and `shared` (the recording, speaker or first clip that ties some of them together);
  `places` and `shared` are empty where they would say nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from peas import __version__
from peas.data.checks.clips import UNREADABLE, Checks
from peas.data.checks.comparisons import class_counts
from peas.data.checks.findings import KINDS, Finding
from peas.data.clips import Inventory
from peas.data.columns import Strings

# Names are read from their column in blocks of this size: there may be millions.
_BLOCK = 10_000


@dataclass(frozen=True)
class Report:
    """What a set holds, and what is wrong with it.

    Attributes:
        set: Name of the set.
        root: Its folder.
        command: Command line that asked.
        inventory: Its clips.
        checks: Of these clips.
        labels: Its classes in order.
        findings: What is wrong.
        against: Other sets that were compared.
    """

    set: str
    root: str
    command: str
    inventory: Inventory
    checks: Checks
    labels: list[str]
    findings: list[Finding]
    against: Sequence[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """`errors`, `warnings` or `fine`."""
        found = {finding.severity for finding in self.findings}
        return "errors" if "error" in found else "warnings" if found else "fine"

    @property
    def ordered(self) -> list[Finding]:
        """The findings, worst first."""
        kinds = list(KINDS)
        return sorted(self.findings, key=lambda finding: kinds.index(finding.kind))

    def facts(self) -> dict[str, Any]:
        """Everything in `report.json` but the findings."""
        read = self.checks.rate > 0
        seconds = self.checks.seconds[read].astype(np.float64)
        return {
            "peas": __version__,
            "command": self.command,
            "set": self.set,
            "root": self.root,
            "status": self.status,
            "clips": len(self.checks),
            "absent": len(self.inventory.absent),
            "hours": round(float(seconds.sum()) / 3600, 4),
            "lengths": lengths(seconds),
            "rates": _tally(self.checks.rate[read]),
            "channels": _tally(self.checks.channels[read]),
            "parts": dict(self._parts()),
            "labels": self.labels,
            "notes": self.inventory.notes,
            "against": list(self.against),
        }

    def _parts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        counts = class_counts(self.inventory, len(self.labels))
        unreadable = (self.checks.odd & UNREADABLE) > 0
        for number, name in enumerate(self.inventory.parts):
            rows = self.inventory.part == number
            present = np.flatnonzero(counts[number])
            yield (
                name,
                {
                    "clips": int(rows.sum()),
                    "unreadable": int((rows & unreadable).sum()),
                    "hours": round(float(self.checks.seconds[rows].sum(dtype=float)) / 3600, 4),
                    "classes": {self.labels[row]: int(counts[number, row]) for row in present},
                },
            )


def lengths(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """How lengths are spread: `min`, `median`, `mean` and `max`; empty for none.

    Args:
        seconds: `[N]` lengths of clips.
    """
    if not len(seconds):
        return {}
    return {
        name: round(float(law(seconds)), 4)
        for name, law in (
            ("min", np.min),
            ("median", np.median),
            ("mean", np.mean),
            ("max", np.max),
        )
    }


def write_json(report: Report, file: Path) -> None:
    """Write `report.json`, whole or not at all; see the head of this module for its keys."""
    beside = file.with_name(f"{file.name}.tmp")
    with beside.open("w", encoding="utf-8") as text:
        facts = json.dumps(report.facts(), indent=2, ensure_ascii=False)
        text.write(facts.removesuffix("\n}") + ',\n  "findings": [')
        for number, finding in enumerate(report.ordered):
            text.write(",\n    " if number else "\n    ")
            _write_finding(finding, text)
        text.write("\n  ]\n}\n")
    os.replace(beside, file)


def _write_finding(finding: Finding, text: TextIO) -> None:
    kind = KINDS[finding.kind]
    head = {
        "kind": finding.kind,
        "severity": kind.severity,
        "title": kind.title,
        "advice": kind.advice,
        "count": finding.count,
        "unit": finding.unit,
        "messages": list(finding.messages),
    }
    text.write(json.dumps(head, ensure_ascii=False).removesuffix("}"))
    columns = {"names": finding.names, "places": finding.places, "shared": finding.shared}
    for name, column in columns.items():
        text.write(f', "{name}": [')
        for number, block in enumerate(_blocks(column)):
            text.write(", " if number else "")
            text.write(json.dumps(block, ensure_ascii=False)[1:-1])
        text.write("]")
    text.write("}")


def _blocks(column: Strings) -> Iterator[list[str]]:
    for first in range(0, len(column), _BLOCK):
        yield column.array.slice(first, _BLOCK).to_pylist()


def _tally(values: np.ndarray[Any, Any]) -> dict[str, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(map(str, found.tolist()), counts.tolist(), strict=True))
