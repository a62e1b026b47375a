"""Results of kfold and sweep: read from the logs of runs, summarised, written as tables.

A k-fold table has three metrics, since ESC-50's test fold is its validation fold:

- *last epoch*: the last epoch, averaged over the folds;
- *best averaged epoch*: the epoch with the best mean over the folds, the official SSAST rule;
- *best epoch of each fold*: optimistic, since no user could have chosen these epochs.
"""

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peas.errors import PeasError


def log_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's logs, of all its starts, in the order in which they were written."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:]))
    rows: list[dict[str, str]] = []
    for log in logs:
        with log.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def markdown(rows: Sequence[dict[str, str]], note: str = "") -> str:
    """A Markdown table.

    Args:
        rows: Of equal keys.
        note: Below the table.
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{note}" if note else text


def write_table(path: Path, rows: Sequence[dict[str, str]], note: str = "") -> str:
    """Writes a table as Markdown and CSV.

    Args:
        path: Of both files, without extension.
        rows: Of equal keys.
        note: Below the Markdown.

    Returns:
        The Markdown.
    """
    text = markdown(rows, note)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text


# Folds and seeds


@dataclass(frozen=True)
class FoldResult:
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
    """Mean share of masked bins over the epochs."""
    adaptive: float | None = None
    """Share of adaptive blocks over the whole run."""

    def __str__(self) -> str:
        """Text for progress."""
        values = list(self.curve.values())
        text = f"{self.metric} {values[-1]:.2%} last, {max(values):.2%} best"
        return text if self.test is None else f"{text}, {self.test:.2%} test"


def read_folds(folder: Path, fold: int | None, seed: int) -> FoldResult:
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
    return FoldResult(
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


@dataclass(frozen=True)
class Row:
    """Metrics of a table, one value per seed."""

    last: list[float]
    best: list[float]
    optimistic: list[float]
    best_epochs: list[int]
    """Epoch of `best`, from 1, per seed."""


def summarise(results: Sequence[FoldResult]) -> Row:
    """Averages folds within each seed; the seeds give the spread.

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


def write_folds(out: Path, name: str, config: dict[str, Any], results: list[FoldResult]) -> str:
    """Writes `results.md`, `results.csv` and `runs.csv` into a folder.

    Args:
        out: Folder of the jobs.
        name: Of the config.
        config: Full config of one job.
        results: Of all jobs.

    Returns:
        The Markdown.
    """
    results = sorted(results, key=lambda r: (r.seed, r.fold or 0))
    markdown = write_table(
        out / "results", [_fold_row(name, config, results)], _left_out(config, results)
    )
    with (out / "runs.csv").open("w", newline="") as file:
        runs = csv.writer(file)
        runs.writerow(["fold", "seed", "epoch", results[0].metric])
        for result in results:
            for epoch, value in result.curve.items():
                runs.writerow([result.fold, result.seed, epoch, f"{value:.6f}"])
    return markdown


def _reading(config: dict[str, Any]) -> str:
    """The paper's preset, and whether a pixel probe reconstructed instead of a pretrained head."""
    preset = (config.get("paper") or {}).get("preset") or "-"
    model = (config.get("model") or {}).get("init_args") or {}
    return f"{preset}, pixel probe" if model.get("reconstruction") == "probe" else preset


def _clips(results: list[FoldResult]) -> int:
    """Validation clips of a seed, all folds together."""
    return sum(result.clips for result in results if result.seed == results[0].seed)


def _left_out(config: dict[str, Any], results: list[FoldResult]) -> str:
    """Why the paper's number is left out; empty where it is printed, or there is none."""
    paper = config.get("paper") or {}
    if paper.get("accuracy") is None:
        return ""
    reasons = differences(config, _clips(results))
    row = f"{_row(paper)}, {paper['accuracy']:.2f}%"
    return f"The paper's row ({row}) is left out: {'; '.join(reasons)}." if reasons else ""


def _row(paper: dict[str, Any]) -> str:
    return " ".join(filter(None, (paper.get("table"), paper.get("row")))) or "-"


def _fold_row(name: str, config: dict[str, Any], results: list[FoldResult]) -> dict[str, str]:
    from peas.callbacks.run_files import config_hash

    row = summarise(results)
    paper = {} if _left_out(config, results) else config.get("paper") or {}
    seeds = sorted({result.seed for result in results})
    folds = sorted({result.fold for result in results if result.fold is not None})
    columns = {
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
        columns["folds"] = ", ".join(map(str, folds))
        columns["best averaged epoch"] = f"{spread(row.best)} (epoch {epochs})"
        columns["best epoch of each fold (optimistic)"] = spread(row.optimistic)
    elif tests:
        columns["test at best validation epoch"] = spread(tests)
    accuracy = paper.get("accuracy")
    columns["paper"] = f"{accuracy:.2f}%" if accuracy is not None else "-"
    for key, values in (
        ("masked", [r.masked for r in results if r.masked is not None]),
        ("adaptive", [r.adaptive for r in results if r.adaptive is not None]),
    ):
        columns[key] = f"{statistics.mean(values):.1%}" if values else "-"
    columns["config hash"] = config_hash(config)
    return columns


# Points of a sweep


@dataclass(frozen=True)
class PointResult:
    """A finished point.

    Attributes:
        number: Of the point, from 1.
        args: Its values, as in `sweep_file.Args`.
        curve: The sweep's metric at each of its evaluations.
        epochs: Epoch of each, from 1.
    """

    number: int
    args: dict[str, dict[str, Any]]
    curve: list[float]
    epochs: list[int]

    def best(self, maximise: bool) -> tuple[float, int]:
        """Best value and its epoch, the first of equal ones; NaN only where all are NaN."""
        pairs = [p for p in zip(self.curve, self.epochs, strict=True) if not math.isnan(p[0])]
        if not pairs:
            return math.nan, self.epochs[0]
        return max(pairs, key=lambda pair: pair[0] if maximise else -pair[0])


def read_point(
    folder: Path, number: int, args: dict[str, dict[str, Any]], metric: str
) -> PointResult:
    """Reads the logs of a finished point; after a resume the later value of a step counts.

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
    rows = [by_step[step] for step in sorted(by_step)]
    return PointResult(
        number,
        args,
        [float(row[metric]) for row in rows],
        [int(row["epoch"]) + 1 for row in rows],
    )


def write_points(
    out: Path, metric: str, maximise: bool, swept: Sequence[str], results: Sequence[PointResult]
) -> str:
    """Writes `sweep.md` and `sweep.csv`, best point first, non-finite ones last.

    Args:
        out: Folder of the points.
        metric: Of the sweep.
        maximise: Whether more of it is better.
        swept: Names of the values that vary.
        results: Of the finished points.

    Returns:
        The Markdown.
    """

    def order(result: PointResult) -> tuple[bool, float, int]:
        value = result.best(maximise)[0]
        return math.isnan(value), -value if maximise else value, result.number

    def short(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    rows = []
    for result in sorted(results, key=order):
        best, epoch = result.best(maximise)
        rows.append(
            {
                "point": str(result.number),
                **{name: short(result.args[name]["value"]) for name in swept},
                f"{metric} best": f"{best:.4f}",
                "epoch": str(epoch),
                f"{metric} last": f"{result.curve[-1]:.4f}",
            }
        )
    return write_table(out / "sweep", rows)


# The row of a paper

CLIPS = "clips"
"""Key in `paper.requires` of the number of clips scored, all folds together."""

UNLIMITED: dict[str, Any] = {
    "data.init_args.label_fraction": 1.0,
    "trainer.limit_train_batches": None,
    "trainer.limit_val_batches": None,
    "trainer.limit_test_batches": None,
    "trainer.max_steps": -1,
    "trainer.max_time": None,
    "trainer.overfit_batches": 0.0,
    "trainer.fast_dev_run": False,
}
"""Of every row: all clips are trained on, in all epochs, and scored."""


def differences(config: dict[str, Any], clips: int) -> list[str]:
    """Settings in which a run differs from the paper's row that its config names.

    A config is copied, overlaid and overridden, and its `paper` block stays. `paper.requires` holds
    the settings of the row by their full keys, and a run that differs prints no paper's number.

    Args:
        config: Full config of the run.
        clips: Number of clips scored, all folds together.

    Returns:
        A phrase for each setting that differs; empty where the paper's number may be printed.
    """
    required: dict[str, Any] | None = (config.get("paper") or {}).get("requires")
    if not required:
        return ["`paper.requires` does not say which settings the row has"]
    reasons = []
    for key, of_row in required.items():
        value = clips if key == CLIPS else _value(config, key, None)
        if _plain(key, value) != _plain(key, of_row):
            reasons.append(f"{key} is {_plain(key, value)}, the row's {_plain(key, of_row)}")
    for key, usual in UNLIMITED.items():
        value = _value(config, key, usual)
        # Lightning's own defaults reach a saved config as null.
        if key not in required and value is not None and value != usual:
            reasons.append(f"{key} is {value}")
    return reasons


def _value(config: dict[str, Any], key: str, default: Any) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def _plain(key: str, value: Any) -> Any:
    """A value without the module of a class or the folder of a file."""
    if value is None:
        return "null"
    if key.endswith("class_path"):
        return str(value).rpartition(".")[2]
    if key.endswith("pretrained") and not str(value).startswith("timm:"):
        parts = str(value).replace("\\", "/").split("/")
        # The checkpoints of all runs have one name: the run's folder distinguishes them.
        return "/".join(parts[-3:] if parts[-2:-1] == ["checkpoints"] else parts[-1:])
    return list(value) if isinstance(value, tuple) else value
