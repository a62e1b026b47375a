"""Several processes: who reads what, and that a fault of one ends all with one message."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_recorder import recorded
from drive import Write
from forks import Forks, world_of
from test_bad_input import a_clip

COMMAND = [sys.executable, "-m", "peas", "fit"]


def _fit(forks: Forks, config: Path, folder: Path, world: int = 2) -> tuple[list[int], str]:
    """Exit statuses, and what all processes print."""
    words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder)]
    calls = world_of([words] * world, folder)
    codes = forks.run(*calls)
    return codes, "".join(call.log.read_text() for call in calls)


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
    """As one command that starts the other process itself."""
    clip = a_clip(damaged, fold=2)
    thief = {"class_path": "cli_recorder.Thief", "init_args": {"path": str(clip)}}
    config = _config(write, damaged, **{"masking": None, "trainer.callbacks": [thief]})
    done = subprocess.run(
        [*COMMAND, "--config", config, "--trainer.default_root_dir", tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count(f"error: {clip}: cannot be opened") == 1
    assert done.stderr.count("another process of this run failed") <= 1


@pytest.mark.slow
def test_clips_that_vanish_are_skipped_and_counted_once(
    write: Write, forks: Forks, damaged: Path, tmp_path: Path
) -> None:
    clip = a_clip(damaged, fold=2)
    thief = {"class_path": "cli_recorder.Thief", "init_args": {"path": str(clip)}}
    changes = {"masking": None, "trainer.callbacks": [thief], "data.init_args.on_error": "skip"}
    config = _config(write, damaged, **{"trainer.max_epochs": 3, **changes})
    codes, printed = _fit(forks, config, tmp_path / "run")
    assert codes == [0, 0], printed
    with (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open() as file:
        counts = [row["data/unreadable"] for row in csv.DictReader(file) if row["data/unreadable"]]
    # Both processes meet the clip, in different epochs: it is still one clip.
    assert [float(count) for count in counts][-1] == 1.0
    assert len(counts) == 3
    assert "1 unreadable" in printed


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch_and_count_each_clip_once(
    write: Write, forks: Forks, sounds: Path, tmp_path: Path, world: int
) -> None:
    places = {"class_path": "cli_recorder.Places", "init_args": {"folder": str(tmp_path)}}
    changes = {
        "masking": None,
        "trainer.callbacks": [places],
        "trainer.devices": world,
        "data.init_args.batch_size": 6 // world,
        "data.init_args.sampling": "balanced",
        "data.init_args.epoch_clips": 18,
        "data.init_args.replacement": False,
    }
    codes, printed = _fit(forks, _config(write, sounds, **changes), tmp_path / "run", world)
    assert not any(codes), printed
    shares = [recorded(tmp_path / f"rank{rank}.jsonl") for rank in range(world)]
    epochs = []
    for epoch in range(2):
        for kind, clips in (("train", 18), ("validation", 6)):
            read = [
                [name for line in share if (line["kind"], line["epoch"]) == (kind, epoch)
                 for name in line["ids"]]
                for share in shares
            ]  # fmt: skip
            assert [len(names) for names in read] == [clips // world] * world
            together = [name for names in read for name in names]
            assert len(set(together)) == clips
            if kind == "train":
                epochs.append(together)
    assert epochs[0] != epochs[1]
    logits = np.load(tmp_path / "run" / "logits" / "val_last.npz")
    assert len(set(logits["ids"])) == len(logits["ids"]) == 6
