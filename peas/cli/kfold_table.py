"""Results of folds and seeds: read from run folders, averaged, written as a table.

Three figures are told apart, since ESC-50's test fold is its validation fold:

- *last*: the last epoch, folds averaged;
- *best averaged*: the epoch at which the mean over the folds is best, the official SSAST rule;
- *optimistic*: every fold at its own best epoch, which no user could have chosen.
"""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peas.callbacks.run_files import config_hash
from peas.cli.paper_row import differences
from peas.errors import PeasError


@dataclass(frozen=True)
class Result:
    """One fold and seed."""

    fold: int | None
    seed: int
    metric: str
    """`accuracy` or `mAP`."""
    curve: dict[int, float]
    """Validation metric of every epoch that was validated, counted from 1, in their order."""
    clips: int
    """Validation clips that were scored."""
    test: float | None = None
    """Test metric of the best validation epoch, where a set has no folds."""
    masked: float | None = None
    """Mean share of hidden cells over the epochs."""
    adaptive: float | None = None
    """Share of adaptive blocks over the whole run."""

    def __str__(self) -> str:
        """Short text for progress."""
        values = list(self.curve.values())
        text = f"{self.metric} {values[-1]:.2%} last, {max(values):.2%} best"
        return text if self.test is None else f"{text}, {self.test:.2%} test"


def read_result(folder: Path, fold: int | None, seed: int) -> Result:
    """Reads a finished run's logs.

    A resumed run has one log per start; a later start's value of an epoch replaces an earlier one.

    Raises:
        PeasError: The logs hold no validation metric.
    """
    rows = log_rows(folder)
    metric = "accuracy" if any(row.get("val/accuracy") for row in rows) else "mAP"
    by_epoch = {int(row["epoch"]): row for row in rows if row.get(f"val/{metric}")}
    if not by_epoch:
        raise PeasError(f"{folder}: its logs hold no validation {metric}; delete it and run again")
    epochs = sorted(by_epoch)
    masks = {int(row["epoch"]): row for row in rows if row.get("mask/fraction")}
    tests = [float(row[f"test/{metric}"]) for row in rows if row.get(f"test/{metric}")]
    return Result(
        fold,
        seed,
        metric,
        {epoch + 1: float(by_epoch[epoch][f"val/{metric}"]) for epoch in epochs},
        int(float(by_epoch[epochs[-1]]["val/clips"])),
        test=tests[-1] if tests else None,
        masked=statistics.mean(float(r["mask/fraction"]) for r in masks.values())
        if masks
        else None,
        adaptive=float(masks[max(masks)]["mask/adaptive_share"]) if masks else None,
    )


def log_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's logs, in the order in which they were written, of all its starts."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:]))
    rows: list[dict[str, str]] = []
    for log in logs:
        with log.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


@dataclass(frozen=True)
class Row:
    """A line of the table; figures are one value per seed."""

    last: list[float]
    best: list[float]
    optimistic: list[float]
    best_epochs: list[int]
    """Epoch of `best`, from 1, per seed."""


def summarise(results: Sequence[Result]) -> Row:
    """Averages folds within each seed; seeds stay apart, for the spread.

    Raises:
        PeasError: The folds of a seed have no validated epoch in common.
    """
    last, best, optimistic, epochs = [], [], [], []
    for seed in sorted({result.seed for result in results}):
        curves = [result.curve for result in results if result.seed == seed]
        common = sorted(set(curves[0]).intersection(*curves))
        if not common:
            raise PeasError(
                f"the folds of seed {seed} were validated at different epochs: give them one "
                "`trainer.check_val_every_n_epoch`, and run those that differ again"
            )
        means = {epoch: statistics.mean(curve[epoch] for curve in curves) for epoch in common}
        # Strictly better only: the first of equal epochs, as the official script has it.
        chosen = max(common, key=lambda epoch: (means[epoch], -epoch))
        last.append(means[common[-1]])
        best.append(means[chosen])
        epochs.append(chosen)
        optimistic.append(statistics.mean(max(curve.values()) for curve in curves))
    return Row(last, best, optimistic, epochs)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds, in per cent."""
    mean = f"{statistics.mean(values):.2%}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2%}"


def write_tables(out: Path, name: str, config: dict[str, Any], results: list[Result]) -> str:
    """Writes `results.md`, `results.csv` and `runs.csv` into a folder.

    Args:
        out: Folder of the jobs.
        name: Name of the config.
        config: Whole config of one job.
        results: Of all jobs.

    Returns:
        The Markdown.
    """
    results = sorted(results, key=lambda r: (r.seed, r.fold or 0))
    cells = _cells(name, config, results)
    markdown = "\n".join(
        [
            "| " + " | ".join(cells) + " |",
            "|" + "---|" * len(cells),
            "| " + " | ".join(cells.values()) + " |",
        ]
    )
    if reason := _left_out(config, results):
        markdown += f"\n\n{reason}"
    (out / "results.md").write_text(markdown + "\n")
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, cells)
        writer.writeheader()
        writer.writerow(cells)
    with (out / "runs.csv").open("w", newline="") as file:
        runs = csv.writer(file)
        runs.writerow(["fold", "seed", "epoch", results[0].metric])
        for result in results:
            for epoch, value in result.curve.items():
                runs.writerow([result.fold, result.seed, epoch, f"{value:.6f}"])
    return markdown


def _reading(config: dict[str, Any]) -> str:
    """How silent choices were read, and what drew spectrograms if no pretrained head did."""
    read = (config.get("paper") or {}).get("preset") or "-"
    model = (config.get("model") or {}).get("init_args") or {}
    return f"{read}, pixel probe" if model.get("reconstruction") == "probe" else read


def _clips(results: list[Result]) -> int:
    """Validation clips of a seed, all folds together."""
    return sum(result.clips for result in results if result.seed == results[0].seed)


def _left_out(config: dict[str, Any], results: list[Result]) -> str:
    """Why the paper's figure is left out; empty where it stands, or there is none."""
    paper = config.get("paper") or {}
    if paper.get("accuracy") is None:
        return ""
    found = differences(config, _clips(results))
    row = f"{_row(paper)}, {paper['accuracy']:.2f}%"
    return f"The paper's row ({row}) is left out: {'; '.join(found)}." if found else ""


def _row(paper: dict[str, Any]) -> str:
    return " ".join(filter(None, (paper.get("table"), paper.get("row")))) or "-"


def _cells(name: str, config: dict[str, Any], results: list[Result]) -> dict[str, str]:
    row = summarise(results)
    paper = {} if _left_out(config, results) else config.get("paper") or {}
    seeds = sorted({result.seed for result in results})
    folds = sorted({result.fold for result in results if result.fold is not None})
    cells = {
        "config": name,
        "paper row": _row(paper),
        "reading": _reading(config),
        "metric": results[0].metric,
        "clips": str(_clips(results)),
        "seeds": ", ".join(map(str, seeds)),
        "last epoch": spread(row.last),
    }
    tests = [result.test for result in results if result.test is not None]
    if folds:
        epochs = ", ".join(map(str, row.best_epochs))
        cells["folds"] = ", ".join(map(str, folds))
        cells["best averaged epoch"] = f"{spread(row.best)} (epoch {epochs})"
        cells["best epoch of each fold (optimistic)"] = spread(row.optimistic)
    elif tests:
        cells["test at best validation epoch"] = spread(tests)
    accuracy = paper.get("accuracy")
    cells["paper"] = f"{accuracy:.2f}%" if accuracy is not None else "-"
    for key, values in (
        ("masked", [r.masked for r in results if r.masked is not None]),
        ("adaptive", [r.adaptive for r in results if r.adaptive is not None]),
    ):
        cells[key] = f"{statistics.mean(values):.1%}" if values else "-"
    cells["config hash"] = config_hash(config)
    return cells
