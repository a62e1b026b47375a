"""`peas embed` killed and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from peas.audio import KaldiLogMel
from peas.data.packed.manifest import MANIFEST
from peas.inference import AudioModel, EmbeddingStore
from peas.models import AudioMAE

CLIPS = 60


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on(tmp_path: Path, workers: int) -> None:
    torch.manual_seed(0)
    AudioModel(AudioMAE("mini"), KaldiLogMel(64, -6.8, 5.5)).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for number in range(CLIPS):
        samples = rng.normal(0, 0.1, 8_000 + 1_000 * (number % 7))
        soundfile.write(tmp_path / "clips" / f"{number:03}.wav", samples, 16_000)

    def start(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "peas", "embed", "clips", "--checkpoint", "model"),
                *("--out", out, "--shard_clips", "3", "--workers", str(workers), "--frames"),
                *("--device", "cpu"),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
        )

    assert start("whole").wait() == 0
    process = start("killed")
    killed = tmp_path / "killed"
    while len(list(killed.glob("shard-*.arrow"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shards = {path: path.stat().st_mtime_ns for path in killed.glob("shard-*.arrow")}
    assert 2 <= len(shards) < CLIPS // 3
    assert start("killed").wait() == 0
    # The last one may not have been recorded yet.
    written = [path for path, when in shards.items() if path.stat().st_mtime_ns != when]
    assert len(written) <= 1
    for path in (tmp_path / "whole").iterdir():
        if path.name != ".lock":
            assert (killed / path.name).read_bytes() == path.read_bytes()
    assert not list(killed.glob("*.partial"))
    assert len(EmbeddingStore(killed)) == CLIPS
    assert (killed / MANIFEST).is_file()
