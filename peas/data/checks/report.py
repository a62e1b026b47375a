"""The report of a check: what a set holds and what is wrong, as JSON and as text.

`report.json` has the keys

- `peas`, `command`, `set`, `root`: the version, and what was asked;
- `status`: `errors`, `warnings` or `fine`;
- `clips`: listed clips with a file for their sound; `absent`: listed clips without one;
- `hours`: of the clips that can be read;
- `lengths`: `min`, `median`, `mean` and `max` in seconds;
- `rates`, `channels`: number of clips of each sampling rate in Hz, of each number of channels;
- `parts`: for each split or fold its `clips`, `unreadable` clips, `hours`, and the number of clips
  of each of its `classes`;
- `labels`: all classes in order; `notes` of the set; `against`: other sets that were compared;
- `findings`, worst first: each with `kind`, `severity`, `title`, `advice`, `count`, `unit`
  (`clips`, `classes` or `faults` of the tables), a few `messages`, and for everything that it
  concerns, in the same order, `names` (ids of clips or names of classes), `places` (parts, or
  data sets), and `shared` (the recording, speaker or first clip that ties some of them together);
  `places` and `shared` are empty if there is nothing to report.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peas import __version__
from peas.data.checks.clips import UNREADABLE, Checks
from peas.data.checks.findings import KINDS, Finding, class_counts
from peas.data.clips import Inventory
from peas.errors import printable
from peas.utils.files import write_text
from peas.utils.text import some

WIDTH = 100
_EXAMPLES = 3
_PARTS = 40
"""Parts that are printed; a set may have a fold for each speaker."""

_SHARED = {
    "listed_twice": "clip",
    "shared_recording": "recording",
    "shared_audio": "sound",
    "doubled_audio": "sound",
    "shared_speaker": "speaker",
    "against_recording": "recording",
    "against_audio": "sound",
    "against_speaker": "speaker",
}
"""What clips of a kind of finding have in common."""


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
        severities = {finding.severity for finding in self.findings}
        return "errors" if "error" in severities else "warnings" if severities else "fine"

    @property
    def ordered(self) -> list[Finding]:
        """The findings, worst first."""
        kinds = list(KINDS)
        return sorted(self.findings, key=lambda finding: kinds.index(finding.kind))

    def summary(self) -> dict[str, Any]:
        """Everything in `report.json` but the findings."""
        read = self.checks.columns["rate"] > 0
        seconds = self.checks.columns["seconds"][read].astype(np.float64)
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
            "rates": _tally(self.checks.columns["rate"][read]),
            "channels": _tally(self.checks.columns["channels"][read]),
            "parts": dict(self._parts()),
            "labels": self.labels,
            "notes": self.inventory.notes,
            "against": list(self.against),
        }

    def _parts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        counts = class_counts(self.inventory, len(self.labels))
        columns = self.checks.columns
        for number, name in enumerate(self.inventory.parts):
            rows = columns[self.inventory.part == number]
            seconds = float(rows["seconds"].sum(dtype=float))
            present = np.flatnonzero(counts[number])
            yield (
                name,
                {
                    "clips": len(rows),
                    "unreadable": int(((rows["issues"] & UNREADABLE) > 0).sum()),
                    "hours": round(seconds / 3600, 4),
                    "classes": {self.labels[row]: int(counts[number, row]) for row in present},
                },
            )


def lengths(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """`min`, `median`, `mean` and `max` of `[N]` lengths; empty for none."""
    if not len(seconds):
        return {}
    values = (seconds.min(), np.median(seconds), seconds.mean(), seconds.max())
    names = ("min", "median", "mean", "max")
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def write_json(report: Report, file: Path) -> None:
    """Write `report.json` atomically; see the head of this module for its keys."""
    content = {**report.summary(), "findings": [_as_json(each) for each in report.ordered]}
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        **KINDS[finding.kind]._asdict(),
        "count": finding.count,
        "unit": finding.unit,
        "messages": list(finding.messages),
        "names": finding.names.array.to_pylist(),
        "places": finding.parts.array.to_pylist(),
        "shared": finding.shared.array.to_pylist(),
    }


def _tally(values: np.ndarray[Any, Any]) -> dict[str, int]:
    distinct, counts = np.unique(values, return_counts=True)
    return dict(zip(map(str, distinct.tolist()), counts.tolist(), strict=True))


def table(report: Report) -> str:
    """The report as text, with examples and advice."""
    summary = report.summary()
    lines = [report.command, "", *_summary(summary), "", *_parts(summary["parts"]), ""]
    for note in summary["notes"]:
        lines += [*_wrapped(f"note: {note}"), ""]
    for finding in report.ordered:
        lines += [*_finding(finding), ""]
    return "\n".join([*lines, _verdict(report)]) + "\n"


def _summary(summary: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{summary['set']} {summary['root']}: {_number(summary['clips'], 'clip')}, "
        f"{summary['hours']:.2f} h, {_number(len(summary['parts']), 'part')}, "
        f"{_number(len(summary['labels']), 'label')}"
    )
    if summary["lengths"]:
        spread = ", ".join(f"{name} {value:.2f}" for name, value in summary["lengths"].items())
        yield f"seconds: {spread}"
        yield f"rates in Hz: {_tallied(summary['rates'])}"
        yield f"channels: {_tallied(summary['channels'])}"
    for other in summary["against"]:
        yield f"compared with {other}"


def _tallied(tally: dict[str, int]) -> str:
    common = sorted(tally.items(), key=lambda item: -item[1])
    return some((f"{value} ({count:,} clips)" for value, count in common), 5)


def _parts(parts: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = [("part", "clips", "unreadable", "hours", "classes", "clips of a class")]
    for name, part in list(parts.items())[:_PARTS]:
        counts = list(part["classes"].values())
        cells = (f"{part['clips']:,}", f"{part['unreadable']:,}", f"{part['hours']:.2f}")
        rows.append((name, *cells, str(len(counts)), spread(counts)))
    yield from columns(rows)
    if len(parts) > _PARTS:
        yield f"and {len(parts) - _PARTS} parts more"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column to the left, numbers to the right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *right]).rstrip()


def spread(counts: Sequence[int]) -> str:
    """Smallest, largest and median number of clips of a class; empty for none."""
    if not counts:
        return ""
    return f"{min(counts):,} to {max(counts):,}, median {np.median(counts):g}"


def _finding(finding: Finding) -> Iterator[str]:
    kind = KINDS[finding.kind]
    unit = {"clips": "clip", "classes": "class", "faults": "fault"}[finding.unit]
    groups = ""
    if len(finding.shared):
        count = len(finding.shared.array.unique())
        groups = f" ({_number(count, _SHARED[finding.kind])})"
    yield from _wrapped(f"{kind.severity}: {_number(finding.count, unit)} {kind.title}{groups}")
    for line in _examples(finding):
        yield from _wrapped(line, "    ")
    yield from _wrapped(f"-> {kind.advice}", "    ")


def _examples(finding: Finding) -> Sequence[str]:
    """Messages if there are some, groups if clips share something, else names."""
    if finding.messages:
        messages = list(finding.messages[: 20 if finding.unit == "faults" else _EXAMPLES])
        more = finding.count - len(messages)
        return [*messages, f"and {more:,} more"] if more > 0 else messages
    if len(finding.shared):
        return list(_groups(finding))
    names = [_with_part(finding, row) for row in range(min(len(finding.names), _EXAMPLES))]
    more = len(finding.names) - len(names)
    return [", ".join(names) + (f" and {more:,} more" if more else "")]


def _groups(finding: Finding) -> Iterator[str]:
    """The first few groups; members of a group are adjacent."""
    shared = finding.shared.array
    row = 0
    for _ in range(_EXAMPLES):
        if row == len(shared):
            return
        name = finding.shared[row]
        end = row
        examples: dict[str, str] = {}
        # One clip of each part is enough; a speaker has thousands.
        while end < len(shared) and finding.shared[end] == name:
            examples.setdefault(finding.parts[end], finding.names[end])
            end += 1
        members = [f"{clip} ({part})" for part, clip in examples.items()]
        if len(examples) == 1:
            members = [_with_part(finding, member) for member in range(row, min(row + 2, end))]
        more = end - row - len(members)
        yield f"{name}: {', '.join(members)}" + (f" and {more:,} more" if more else "")
        row = end
    if row < len(shared):
        yield "and others"


def _with_part(finding: Finding, row: int) -> str:
    part = finding.parts[row] if len(finding.parts) else ""
    return f"{finding.names[row]} ({part})" if part else finding.names[row]


def _verdict(report: Report) -> str:
    severities = [finding.severity for finding in report.findings]
    errors, warnings = severities.count("error"), severities.count("warning")
    if not severities:
        return "nothing is wrong"
    text = f"{_number(errors, 'kind')} of errors" if errors else "no errors"
    return f"{text}, {_number(warnings, 'kind') if warnings else 'no kind'} of warnings"


def _number(count: int, unit: str) -> str:
    if count == 1:
        return f"1 {unit}"
    return f"{count:,} {unit}{'es' if unit.endswith('s') else 's'}"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
