"""The CSV log of a run: lines, new columns, and a kill while it is written."""

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from peas.training.trainer import RunLog

LINES: list[dict[str, float]] = [{"loss": 3.0}, {"loss": 2.5, "lr": 0.1}, {"acc": 0.5}, {"lr": 0.2}]


def written(log: CSVLogger) -> list[dict[str, str]]:
    for step, line in enumerate(LINES):
        log.log_metrics(line, step)
        log.save()
    log.finalize("success")
    with Path(log.log_dir, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_is_the_file_that_lightning_writes(tmp_path: Path) -> None:
    ours, theirs = (written(kind(tmp_path / kind.__name__)) for kind in (RunLog, CSVLogger))
    assert ours == theirs
    assert list(ours[0]) == ["acc", "loss", "lr", "step"]
    assert len(ours) == len(LINES)


def test_new_columns_cannot_cost_the_lines_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog(tmp_path)
    log.log_metrics(LINES[0], 0)
    log.save()
    path = Path(log.log_dir, "metrics.csv")
    before = path.read_bytes()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", killed)
        log.log_metrics(LINES[1], 1)
        with pytest.raises(KeyboardInterrupt):
            log.save()
    assert path.read_bytes() == before
