"""HEAR's validator and the embedding half of its evaluation kit."""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch

import peas

pytestmark = [pytest.mark.needs_suites]
pytest.importorskip("hearvalidator", reason="needs the suites: make test-suites")


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages import TensorFlow to ask whether a model is a `tf.Module`."""
    tensorflow = ModuleType("tensorflow")
    tensorflow.Module = type("Module", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)


def test_the_validator_passes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hearvalidator.validate import main

    sys.argv = ["hear-validator", "peas.suites.hear", "-m", str(checkpoint), "-d", "cpu"]
    with pytest.warns(UserWarning, match="50ms"):
        main()
    assert "Looks good!" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["scene", "event"])
def test_the_kit_embeds_a_task(
    checkpoint: Path, sounds: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from heareval.embeddings.task_embeddings import Embedding, task_embeddings

    task, out = tmp_path / "task", tmp_path / "embeddings"
    files = sorted((sounds / "audio").iterdir())[:6]
    (task / "16000" / "train").mkdir(parents=True)
    labels = {}
    for file in files:
        samples, rate = soundfile.read(file)
        soundfile.write(task / "16000" / "train" / f"{file.stem}.wav", samples, rate)
        events = [{"start": 100, "end": 300, "label": "sound"}]
        labels[f"{file.stem}.wav"] = ["sound"] if kind == "scene" else events
    (task / "train.json").write_text(json.dumps(labels))
    metadata = {"embedding_type": kind, "prediction_type": "multiclass", "splits": ["train"]}
    (task / "task_metadata.json").write_text(json.dumps({**metadata, "sample_duration": 0.7}))
    with (task / "labelvocabulary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["idx", "label"], [0, "sound"]])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    task_embeddings(Embedding("peas.suites.hear", str(checkpoint)), task, out)
    count, width = json.loads((out / "train.embedding-dimensions.json").read_text())
    stored = np.fromfile(out / "train.embeddings.npy", np.float32).reshape(count, width)
    model = peas.load(checkpoint, "cpu")
    if kind == "scene":
        one = np.load(out / "train" / f"{files[0].stem}.wav.embedding.npy")
        assert torch.allclose(torch.from_numpy(one), model.embed(files[0])[0], atol=1e-5)
        assert (count, width) == (6, model.dim)
    else:
        times = json.loads((out / "train.filename-timestamps.json").read_text())
        expected = model.frames(files).times.flatten()
        assert sorted(time for _, time in times) == sorted(expected.tolist())
        assert len(times) == count
    assert np.isfinite(stored).all()
