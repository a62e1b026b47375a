"""Faults of one process of two: every process ends, and one message says why."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from drive import Write
from test_bad_input import a_clip


def _fit(config: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "peas", "fit", "--config", str(config)]
    return subprocess.run(
        [*command, "--trainer.default_root_dir", str(folder), *argv],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **paths},
        check=False,
    )


def _config(write: Write, root: Path, **changes: object) -> Path:
    return write(
        changes={
            "data.init_args.root": str(root),
            "data.init_args.mixup": 0.0,
            "data.init_args.batch_size": 3,
            "data.init_args.num_workers": 1,
            "trainer.devices": 2,
            "trainer.strategy": "ddp",
            "trainer.max_epochs": 2,
            **changes,
        }
    )


@pytest.mark.slow
def test_a_clip_that_vanishes_stops_both_processes(
    write: Write, damaged: Path, tmp_path: Path
) -> None:
    clip = a_clip(damaged, fold=2)
    thief = {"class_path": "cli_recorder.Thief", "init_args": {"path": str(clip)}}
    config = _config(write, damaged, **{"trainer.callbacks": [thief]})
    done = _fit(config, tmp_path / "run")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(f"error: {clip}: cannot be opened") == 1
    assert done.stderr.count("another process of this run stopped") <= 1


@pytest.mark.slow
def test_clips_that_vanish_are_skipped_and_counted_once(
    write: Write, damaged: Path, tmp_path: Path
) -> None:
    clip = a_clip(damaged, fold=2)
    thief = {"class_path": "cli_recorder.Thief", "init_args": {"path": str(clip)}}
    changes = {"trainer.callbacks": [thief], "data.init_args.on_error": "skip"}
    done = _fit(_config(write, damaged, **changes), tmp_path / "run", "--trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        counts = [row["data/unreadable"] for row in csv.DictReader(file) if row["data/unreadable"]]
    # Both processes meet the clip, in different epochs: it is still one clip.
    assert [float(count) for count in counts][-1] == 1.0
    assert len(counts) == 3
    assert "1 unreadable" in done.stderr
