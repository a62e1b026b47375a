"""X-ARES's check of encoders, and its scores on embeddings that peas wrote."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import peas

pytestmark = [pytest.mark.needs_suites, pytest.mark.slow]
pytest.importorskip("xares", reason="needs the suites: make test-suites")

ROOT = Path(__file__).parents[2]
NEIGHBOURS, TEMPERATURE = 10, 0.07


def run(folder: Path, *command: str, **variables: str) -> str:
    """What a process prints that has ended well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def knn(embeddings: torch.Tensor, classes: torch.Tensor, folds: torch.Tensor) -> float:
    """Mean accuracy over folds of `xares.trainer.KNN`, which divides each feature by its norm."""
    found = []
    for fold in folds.unique():
        own = folds == fold
        train = functional.normalize(embeddings[~own], dim=0)
        similarity, index = (functional.normalize(embeddings[own]) @ train.T).topk(NEIGHBOURS)
        weights = (similarity / TEMPERATURE).softmax(dim=1)
        votes = functional.one_hot(classes[~own])[index] * weights[:, :, None]
        found.append((votes.sum(dim=1).argmax(dim=1) == classes[own]).double().mean())
    return float(torch.stack(found).mean())


def test_the_encoder_is_found_and_passes_the_check(checkpoint: Path) -> None:
    from xares.audio_encoder_checker import check_audio_encoder
    from xares.utils import attr_from_py_path

    os.environ["PEAS_CHECKPOINT"] = str(checkpoint)
    for name in ("peas/suites/xares.py", "peas.suites.xares"):
        encoder = attr_from_py_path(name, endswith="Encoder")()
        assert check_audio_encoder(encoder)


def scores(root: Path, checkpoint: Path, out: Path, *options: str) -> tuple[float, float]:
    """Accuracy of MLP and kNN that X-ARES prints."""
    script = str(ROOT / "examples" / "xares_set.py")
    run(ROOT, script, str(root), str(out), "--checkpoint", str(checkpoint), *options)
    files = ("peas_encoder.py", "own_set_task.py")
    stage_2 = ("--from-stage", "2", "--max-jobs", "0")
    printed = run(out, "-m", "xares.run", *files, *stage_2)
    row = re.search(r"own_set +([\d.]+) +([\d.]+)", printed)
    assert row, printed
    return float(row[1]), float(row[2])


def test_stage_2_scores_what_peas_embeds(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    """Embeddings averaged over bands have `embed` as their mean over time."""
    mlp, found = scores(sounds, checkpoint, tmp_path, "--bands", "mean")
    stored = np.load(tmp_path / "own_set.npz")
    files = [sounds / "audio" / f"{name}.wav" for name in stored["ids"]]
    embedded = peas.load(checkpoint, "cpu").embed(files)
    assert np.allclose(stored["embeddings"], embedded.numpy(), atol=1e-5)
    classes, folds = (torch.from_numpy(stored[key]) for key in ("classes", "folds"))
    assert found == pytest.approx(knn(embedded, classes, folds), abs=1 / len(files) + 1e-6)
    assert mlp > 0.25


def test_real_recordings(checkpoint: Path, shared: Path, tmp_path: Path) -> None:
    """Every fourth clip of ESC-10."""
    source, root = shared / "data" / "esc10", tmp_path / "esc10"
    head, *rows = (source / "meta" / "esc50.csv").read_text().splitlines()
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "esc50.csv").write_text("\n".join([head, *rows[::4]]))
    (root / "audio").symlink_to(source / "audio")
    _, found = scores(root, checkpoint, tmp_path / "out", "--esc10")
    stored = np.load(tmp_path / "out" / "own_set.npz")
    expected = knn(*(torch.from_numpy(stored[key]) for key in ("embeddings", "classes", "folds")))
    assert len(stored["ids"]) == 100
    assert found == pytest.approx(expected, abs=1 / 100 + 1e-6)
