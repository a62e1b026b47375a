"""What each rank of a job sees, whether the ranks agree, and a table of it."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

CLOCK = 5.0
"""Seconds by which clocks may differ: more, and ages of files and logs of two hosts mislead."""


@dataclass(frozen=True)
class Report:
    """What one rank sees.

    Attributes:
        rank: Number among all ranks.
        local_rank: Number among those of its host, which is that of its GPU.
        host: Name of its machine.
        device: What it would train on.
        gpu: Identity of its GPU, unique in the world; empty without one.
        address: Where it finds the first rank.
        versions: Of `peas`, Python and the packages that decide a result.
        data: Folder of the data set; empty when none was asked for.
        clips: Number of clips of each split; None = the set has no such split.
        digest: Of names and classes of all of them, in their order.
        run: Folder of the run.
        run_seen: Whether it sees the file there that the first rank wrote.
        clock: Seconds by which its clock is ahead of the first rank's.
        problem: What kept it from looking; empty when nothing did.
    """

    rank: int
    local_rank: int
    host: str
    device: str
    gpu: str
    address: str
    versions: dict[str, str]
    data: str = ""
    clips: dict[str, int | None] = field(default_factory=dict)
    digest: str = ""
    run: str = ""
    run_seen: bool = True
    clock: float = 0.0
    problem: str = ""


def ranks(numbers: Sequence[int]) -> str:
    """`rank 3`, or `ranks 0-3, 8` for several."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank{'s' if len(numbers) > 1 else ''} {text}"


def _who(reports: Sequence[Report]) -> str:
    hosts = ", ".join(sorted({report.host for report in reports}))
    return f"{ranks([report.rank for report in reports])} ({hosts})"


def _groups(reports: Sequence[Report], held: Iterable[T]) -> list[tuple[T, list[Report]]]:
    """Reports by what each of them holds, in the order in which it first comes."""
    found: dict[T, list[Report]] = {}
    for report, value in zip(reports, held, strict=True):
        found.setdefault(value, []).append(report)
    return list(found.items())


def _told(groups: Sequence[tuple[object, list[Report]]]) -> str:
    return ", ".join(f"{value} on {_who(of)}" for value, of in groups)


def disagreements(reports: Sequence[Report]) -> list[str]:
    """What is wrong, and what to do about it; nothing when the ranks agree.

    Args:
        reports: Of all ranks, the first one's first.
    """
    found = [f"{_who([report])}: {report.problem}" for report in reports if report.problem]
    for name in dict.fromkeys(name for report in reports for name in report.versions):
        groups = _groups(reports, [report.versions.get(name, "missing") for report in reports])
        if len(groups) > 1:
            found.append(
                f"{name} is {_told(groups)}: install the set of constraints.txt everywhere, or use "
                "one image"
            )
    found += _of_data([report for report in reports if not report.problem])
    found += _of_devices(reports)
    for host, of in _groups(reports, [report.host for report in reports]):
        ahead = max((report.clock for report in of), key=abs)
        if abs(ahead) > CLOCK:
            found.append(
                f"the clock of {host} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'late'} "
                f"by that of {reports[0].host}: let one time service (NTP, chrony) set both"
            )
    blind = [report for report in reports if not report.run_seen]
    if blind:
        found.append(
            f"{_who(blind)}: {blind[0].run} is not the folder that rank 0 ({reports[0].host}) "
            "writes: give `--trainer.default_root_dir` a folder on a file system that all hosts "
            "share, by its whole path"
        )
    return found


def _of_data(reports: Sequence[Report]) -> list[str]:
    cure = "copy the data set again where it is wrong; `peas data verify` names what is missing"
    found = []
    for split in dict.fromkeys(split for report in reports for split in report.clips):
        counts = _groups(reports, [report.clips.get(split) for report in reports])
        if len(counts) > 1:
            found.append(f"clips of {split}: {_told(counts)}: {cure}")
    digests = _groups(reports, [report.digest for report in reports])
    if not found and len(digests) > 1:
        who = " and ".join(_who(of) for _, of in digests)
        found.append(f"{who} have as many clips, but other names or classes: {cure}")
    return found


def _of_devices(reports: Sequence[Report]) -> list[str]:
    found = [
        f"{_who(of)} have one and the same GPU, {of[0].device}: start one task a GPU "
        "(--ntasks-per-node as large as --gpus-per-node), each of which sees all of its host"
        for gpu, of in _groups(reports, [report.gpu for report in reports])
        if gpu and len(of) > 1
    ]
    without = [report for report in reports if not report.gpu]
    if without and len(without) < len(reports):
        found.append(
            f"{_who(without)} would train on the CPU, the others on GPUs: look at `nvidia-smi` and "
            "at the GPUs that the job asked for there"
        )
    return found


def table(reports: Sequence[Report]) -> str:
    """A line a rank, under a line of names.

    Args:
        reports: Of all ranks.
    """
    rows = [("rank", "host", "local", "device", "clock", "run", "peas", "torch", "clips", "ids")]
    for report in reports:
        counts = [str(count) for count in report.clips.values() if count is not None]
        rows.append(
            (
                str(report.rank),
                report.host,
                str(report.local_rank),
                report.device,
                f"{report.clock:+.2f} s",
                "shared" if report.run_seen else "another",
                report.versions.get("peas", "?"),
                report.versions.get("torch", "?"),
                "+".join(counts) or "-",
                report.digest or "-",
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for name, held in (
        ("first rank at", [report.address for report in reports]),
        ("run folder", [report.run for report in reports]),
        ("data", [report.data for report in reports]),
    ):
        for value, of in _groups(reports, held):
            if value:
                lines.append(f"{name:<15}{value}   {ranks([report.rank for report in of])}")
    return "\n".join(lines)
