"""Results of a sweep: read from the points' logs, sorted, written as a table."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peas.cli.kfold_table import log_rows
from peas.cli.sweep_points import Args, Sweep
from peas.errors import PeasError


@dataclass(frozen=True)
class Result:
    """A finished point.

    Attributes:
        number: Of the point, from 1.
        args: Its values.
        curve: The sweep's metric at each of its evaluations.
        epochs: Epoch of each, from 1.
    """

    number: int
    args: Args
    curve: list[float]
    epochs: list[int]

    def best(self, maximise: bool) -> tuple[float, int]:
        """Best value and its epoch, the first of equal ones; NaN only where all are NaN."""
        real = [pair for pair in zip(self.curve, self.epochs, strict=True) if pair[0] == pair[0]]
        if not real:
            return math.nan, self.epochs[0]
        sign = 1 if maximise else -1
        return max(real, key=lambda pair: sign * pair[0])


def read_result(folder: Path, number: int, args: Args, metric: str) -> Result:
    """Reads the logs of a finished point.

    A point that was resumed has one log per start; a later start's value of a step replaces an
    earlier one.

    Raises:
        PeasError: The metric was never logged.
    """
    rows = log_rows(folder)
    by_step = {int(row["step"]): row for row in rows if row.get(metric)}
    if not by_step:
        logged = sorted({key for row in rows for key, value in row.items() if value})
        raise PeasError(
            f"{folder}: `metric.name` is {metric}, which the run did not log; it logged "
            f"{', '.join(logged) or 'nothing'}"
        )
    found = [by_step[step] for step in sorted(by_step)]
    return Result(
        number,
        args,
        [float(row[metric]) for row in found],
        [int(row["epoch"]) + 1 for row in found],
    )


def write_tables(out: Path, sweep: Sweep, results: Sequence[Result]) -> str:
    """Writes `sweep.md` and `sweep.csv`, best point first, points that never had a number last.

    Args:
        out: Folder of the points.
        sweep: The sweep.
        results: Of its finished points.

    Returns:
        The Markdown.
    """

    def place(result: Result) -> tuple[bool, float, int]:
        value = result.best(sweep.maximise)[0]
        return math.isnan(value), -value if sweep.maximise else value, result.number

    rows = [_cells(sweep, result) for result in sorted(results, key=place)]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (out / "sweep.md").write_text(markdown + "\n", encoding="utf-8")
    with (out / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return markdown


def _cells(sweep: Sweep, result: Result) -> dict[str, str]:
    best, epoch = result.best(sweep.maximise)
    values = {name: _short(result.args[name]["value"]) for name in sweep.swept}
    return {
        "point": str(result.number),
        **values,
        f"{sweep.metric} best": f"{best:.4f}",
        "epoch": str(epoch),
        f"{sweep.metric} last": f"{result.curve[-1]:.4f}",
    }


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
