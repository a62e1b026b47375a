"""MTEB evaluates the encoder on a task made of a local table."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch

import peas
from peas.audio.resampling import resample

pytestmark = [pytest.mark.needs_suites, pytest.mark.slow]
mteb = pytest.importorskip("mteb", reason="needs the suites: make test-suites")


def table(sounds: Path, folder: Path) -> None:
    """Parquet files of arrays, rates and classes; fold 1 is the test set."""
    with (sounds / "meta" / "esc50.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    folder.mkdir()
    for split, test in (("train", False), ("test", True)):
        part = [row for row in rows if (row["fold"] == "1") == test]
        clips = [soundfile.read(sounds / "audio" / row["filename"]) for row in part]
        columns = {
            "audio": [{"array": samples, "sampling_rate": rate} for samples, rate in clips],
            "label": [int(row["target"]) for row in part],
        }
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")


def make_task(folder: Path, kind: str, base: type) -> object:
    from mteb.abstasks.task_metadata import TaskMetadata

    unknown = (
        "reference date domains task_subtypes license annotations_creators dialect "
        "sample_creation bibtex_citation"
    )

    class OwnTask(base):  # type: ignore[misc]
        metadata = TaskMetadata(
            name=f"Own{kind}",
            description="Sounds of a local table.",
            dataset={"path": str(folder), "revision": "1"},
            type=kind,
            category="a2a",
            modalities=["audio"],
            eval_splits=["test"],
            eval_langs=["zxx-Zxxx"],
            main_score="v_measure" if "Clustering" in kind else "accuracy",
            **dict.fromkeys(unknown.split()),
        )
        input_column_name = "audio"
        label_column_name = "label"
        # Of clustering, whose default for large sets would leave no clip.
        max_fraction_of_documents_to_embed = None
        samples_per_label = 8

    return OwnTask()


def test_evaluate(checkpoint: Path, sounds: Path, tmp_path: Path) -> None:
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.clustering import AbsTaskClustering

    from peas.suites.mteb import PeasEncoder

    table(sounds, tmp_path / "table")
    encoder = PeasEncoder(str(checkpoint), device="cpu")
    tasks = [
        make_task(tmp_path / "table", "AudioClassification", AbsTaskClassification),
        make_task(tmp_path / "table", "AudioClustering", AbsTaskClustering),
    ]
    cache = mteb.ResultCache(cache_path=tmp_path / "cache")
    result = mteb.evaluate(encoder, tasks, cache=cache)
    accuracy, v_measure = (task.get_score() for task in result.task_results)
    assert accuracy > 0.25, "better than chance, though the weights are random"
    assert 0 < v_measure <= 1
    assert result.model_name == "peas/small"
    assert result.model_revision == encoder.mteb_model_meta.revision
    again = encoder.mteb_model_meta.model_copy(update={"name": str(checkpoint)}).load_model()
    assert isinstance(again, PeasEncoder)


def test_clips_of_any_length_rate_and_channels(checkpoint: Path) -> None:
    from peas.suites.mteb import PeasEncoder

    source = np.random.default_rng(0)
    long = source.normal(size=20_000).astype(np.float32) / 10
    stereo = source.normal(size=(2, 9_000)).astype(np.float32) / 10
    batch = [
        {"array": long, "sampling_rate": 16_000},
        {"array": stereo.tolist(), "sampling_rate": 8_000},
    ]
    encoder = PeasEncoder(str(checkpoint), device="cpu", layer=2, pool="mean+std")
    found = encoder.encode([{"audio": batch}], batch_size=2)
    model = peas.load(checkpoint, "cpu")
    clips = [torch.from_numpy(long), resample(torch.from_numpy(stereo.mean(0)), 8_000, 16_000)]
    expected = model.embed(clips, layers=2, pool="mean+std").numpy()
    assert found.shape == (2, encoder.mteb_model_meta.embed_dim)
    assert np.allclose(found, expected, atol=1e-6)
