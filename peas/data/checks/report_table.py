"""The table of a report, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from peas.data.checks.findings import KINDS, Finding
from peas.data.checks.report import Report
from peas.errors import printable
from peas.utils.text import some

WIDTH = 100
_EXAMPLES = 3
_PARTS = 40
"""Parts that get a line; a set may have a fold a speaker."""

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


def table(report: Report) -> str:
    """What a set holds and what is wrong with it, with examples and advice."""
    facts = report.facts()
    lines = [report.command, "", *_summary(facts), "", *_parts(facts["parts"]), ""]
    for note in facts["notes"]:
        lines += [*_wrapped(f"note: {note}"), ""]
    for finding in report.ordered:
        lines += [*_finding(finding), ""]
    return "\n".join([*lines, _verdict(report)]) + "\n"


def _summary(facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{facts['set']} {facts['root']}: {_number(facts['clips'], 'clip')}, "
        f"{facts['hours']:.2f} h, {_number(len(facts['parts']), 'part')}, "
        f"{_number(len(facts['labels']), 'label')}"
    )
    if facts["lengths"]:
        spread = ", ".join(f"{name} {value:.2f}" for name, value in facts["lengths"].items())
        yield f"seconds: {spread}"
        yield f"rates in Hz: {_tallied(facts['rates'])}"
        yield f"channels: {_tallied(facts['channels'])}"
    for other in facts["against"]:
        yield f"compared with {other}"


def _tallied(tally: dict[str, int]) -> str:
    common = sorted(tally.items(), key=lambda item: -item[1])
    return some((f"{value} ({count:,} clips)" for value, count in common), 5)


def _parts(parts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each part."""
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
    tied = ""
    if len(finding.shared):
        groups = len(finding.shared.array.unique())
        tied = f" ({_number(groups, _SHARED[finding.kind])})"
    yield from _wrapped(f"{kind.severity}: {_number(finding.count, unit)} {kind.title}{tied}")
    for line in _examples(finding):
        yield from _wrapped(line, "    ")
    yield from _wrapped(f"-> {kind.advice}", "    ")


def _examples(finding: Finding) -> Sequence[str]:
    """What to quote: messages where there are some, groups where clips share something."""
    if finding.messages:
        messages = list(finding.messages[: 20 if finding.unit == "faults" else _EXAMPLES])
        more = finding.count - len(messages)
        return [*messages, f"and {more:,} more"] if more > 0 else messages
    if len(finding.shared):
        return list(_groups(finding))
    named = [_placed(finding, row) for row in range(min(len(finding.names), _EXAMPLES))]
    more = len(finding.names) - len(named)
    return [", ".join(named) + (f" and {more:,} more" if more else "")]


def _groups(finding: Finding) -> Iterator[str]:
    """The first few groups; members of a group stand together."""
    shared = finding.shared.array
    row = 0
    for _ in range(_EXAMPLES):
        if row == len(shared):
            return
        name = finding.shared[row]
        end = row
        places: dict[str, str] = {}
        # One clip for each place shows what is shared; a speaker has thousands.
        while end < len(shared) and finding.shared[end] == name:
            places.setdefault(finding.places[end], finding.names[end])
            end += 1
        members = [f"{clip} ({place})" for place, clip in places.items()]
        if len(places) == 1:
            members = [_placed(finding, member) for member in range(row, min(row + 2, end))]
        more = end - row - len(members)
        yield f"{name}: {', '.join(members)}" + (f" and {more:,} more" if more else "")
        row = end
    if row < len(shared):
        yield "and others"


def _placed(finding: Finding, row: int) -> str:
    place = finding.places[row] if len(finding.places) else ""
    return f"{finding.names[row]} ({place})" if place else finding.names[row]


def _verdict(report: Report) -> str:
    severities = [finding.severity for finding in report.findings]
    errors, warnings = severities.count("error"), severities.count("warning")
    if not severities:
        return "nothing is wrong"
    found = f"{_number(errors, 'kind')} of errors" if errors else "no errors"
    return f"{found}, {_number(warnings, 'kind') if warnings else 'no kind'} of warnings"


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
