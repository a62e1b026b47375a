"""Odd but good sound: other rates and channels, silence, and clips shorter than one frame."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from drive import CLIPS, FOLD, Write, call


def odd(root: Path) -> dict[str, Path]:
    """Rewrites clips of every kind in the training folds and in the tested fold."""
    made: dict[str, Path] = {}
    for fold in (1, 2):
        clips = sorted((root / "audio").glob(f"{fold}-*"))
        wave, rate = soundfile.read(clips[0])
        for clip, (kind, sound, new_rate, subtype) in zip(
            clips,
            (
                ("8 kHz", wave[::2], rate // 2, "PCM_16"),
                ("stereo", np.stack([wave, -0.5 * wave], axis=1), rate, "PCM_16"),
                ("24-bit", wave, rate, "PCM_24"),
                ("silent", np.zeros_like(wave), rate, "PCM_16"),
                ("short", wave[2_000:2_300], rate, "PCM_16"),
            ),
            strict=False,
        ):
            soundfile.write(clip, sound, new_rate, subtype=subtype)
            made[f"{kind} {fold}"] = clip
    return made


def test_odd_clips_train_and_test(
    write: Write, tmp_path: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = odd(damaged)
    cache = tmp_path / "cache"
    changes = {
        "data.init_args.root": str(damaged),
        "data.init_args.cache_dir": str(cache),
        "data.init_args.mixup": 0.0,
        "trainer.max_epochs": 2,
    }
    argv = ["--config", write(changes=changes), "--trainer.default_root_dir", tmp_path / "run"]
    caplog.set_level("INFO")
    done = call("fit", *argv)
    assert done.code == 0, done.err
    told = [record.getMessage() for record in caplog.records if "bad clips" in record.getMessage()]
    # Twenty-four training clips are four whole batches: each of the odd ones was read.
    assert told == ["bad clips: 2 silent, 2 shorter than one frame, 0 unreadable"]
    # Only what had to be changed is kept: 8 kHz and stereo, in either part.
    assert len(list(cache.rglob("*.npy"))) == 4
    with (tmp_path / "run/logs/version_0/metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert all(np.isfinite(float(value)) for value in row.values() if value)

    caplog.clear()
    done = call("test", *argv, "--ckpt_path", tmp_path / "run/checkpoints/last.ckpt")
    assert done.code == 0, done.err
    told = [record.getMessage() for record in caplog.records if "bad clips" in record.getMessage()]
    assert told == ["bad clips: 1 silent, 1 shorter than one frame, 0 unreadable"]
    logits = np.load(tmp_path / "run" / "logits" / "test.npz")
    assert len(logits["ids"]) == FOLD == CLIPS // 5
    assert {path.name for kind, path in made.items() if kind.endswith("1")} <= set(logits["ids"])
    assert np.isfinite(logits["logits"]).all()

    tagged = call(
        *("tag", *made.values(), "--checkpoint", tmp_path / "run/checkpoints/last.ckpt", "--json")
    )
    assert tagged.code == 0, tagged.err
    assert len(tagged.out.splitlines()) == len(made)
    assert "NaN" not in tagged.out
