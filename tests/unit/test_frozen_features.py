"""`examples/frozen_features.py` on a small set in ESC-10's layout."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from made import built_audiomae, built_ssast

from peas.audio.frontend import KaldiLogMel
from peas.errors import CheckpointError, DataError
from peas.models.audiomae_layers import DecoderShape
from peas.objectives import Reconstruction

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC = importlib.util.spec_from_file_location("frozen_features", EXAMPLES / "frozen_features.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

PRETRAINED = {"objectives": {"mse": Reconstruction(norm_pix=False).spec()}}
SOUND = KaldiLogMel(frames=64, mean=-6.0, std=5.0)


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture(scope="module")
def esc(tmp_path_factory):
    """Two classes, low and high tones in noise, five folds of two clips a class."""
    root = tmp_path_factory.mktemp("esc")
    (root / "audio").mkdir()
    (root / "meta").mkdir()
    source = np.random.default_rng(0)
    rows = []
    for fold in range(1, 6):
        for target, (name, pitch) in enumerate((("low", 300), ("high", 3000))):
            for take in range(2):
                clip = f"{fold}-{100 * fold + 10 * target + take}-A-{target}.wav"
                tone = np.sin(2 * np.pi * pitch * source.uniform(0.8, 1.2) * np.arange(8000) / 16e3)
                sound = 0.3 * tone + source.uniform(-0.05, 0.05, 8000)
                soundfile.write(root / "audio" / clip, sound, 16_000)
                rows.append([clip, fold, target, name, "True"])
    with (root / "meta" / "esc50.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerows([["filename", "fold", "target", "category", "esc10"], *rows])
    return root


def pretrained(run, model, **more):
    """A pretraining run's folder, with the data set that it names."""
    (run / "checkpoints").mkdir(parents=True)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    file = run / "checkpoints" / "last.ckpt"
    settings = {"encoder": model.spec(), "front_end": SOUND.spec(), **more}
    torch.save({"state_dict": state, "hyper_parameters": settings}, file)
    return file


def listed(run, recordings):
    """The run's config names a CSV with these Freesound ids."""
    with (run / "clips.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "label", "freesound_id"])
        writer.writerows([f"{number}.wav", "a", number] for number in recordings)
    data = {
        "class_path": "peas.data.AudioFolder",
        "init_args": {"root": str(run), "csv": "clips.csv", "mean": 0.0, "std": 1.0},
    }
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))


def ssast(seed):
    torch.manual_seed(seed)
    model = built_ssast("mini", frames=64, patch=(16, 16))
    model.reconstructs.fill_(True)
    return model


def audiomae():
    torch.manual_seed(0)
    return built_audiomae("mini", frames=64, decoder=DecoderShape("local", 64, 2, 4, 4, 0))


def test_the_table(esc, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script.PROBES["linear"], "grid", (0.01, 1.0))
    files = [pretrained(tmp_path / f"ssast{seed}", ssast(seed), **PRETRAINED) for seed in (0, 1)]
    listed(tmp_path / "ssast0", [7, 8])
    other = pretrained(tmp_path / "mae", audiomae(), **PRETRAINED)
    ids = sorted(path.name for path in (esc / "audio").iterdir())[::-1]
    embedding = np.eye(2)[[int(name[-5]) for name in ids]]
    np.savez(tmp_path / "teacher.npz", ids=ids, embedding=embedding.astype(np.float16))
    script.main(
        [
            str(esc),
            *(f"ssast={file}" for file in files),
            f"audiomae={other}",
            *("--random-seeds", "2", "--teacher", str(tmp_path / "teacher.npz")),
            *("--out", str(tmp_path / "out")),
        ]
    )
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "frozen.json").read_text())
    assert {name: len(seeds) for name, seeds in found["rows"].items()} == {
        "random ssast": 2,
        "random audiomae": 2,
        "band statistics": 1,
        "ssast": 2,
        "audiomae": 1,
        "teacher alone": 1,
    }
    assert "| teacher alone | 1 | 100.0 | 100.0 | 100.0, 100.0, 100.0, 100.0, 100.0 |" in text
    # Low and high tones are told apart by bands alone.
    assert "| band statistics | 1 | 100.0 | 100.0 |" in text
    for seeds in found["rows"].values():
        for seed in seeds:
            assert [len(seed[key]) for key in ("knn", "probe", "c")] == [5, 5, 5]
    assert found["rows"]["ssast"][0]["width"] == 128
    told = found["pretrained_on"]
    assert told[str(files[0])].endswith("2 clips, no shared recording")
    assert told[str(files[1])].startswith("not known (no config.yaml of the run of ")
    assert (tmp_path / "out" / "frozen.md").read_text() in text


def test_weights_of_the_checkpoint_are_the_ones_that_embed(esc, tmp_path):
    inventory = script.ESC50(str(esc), esc10=True, cache_dir="").inventory()
    one, two = (pretrained(tmp_path / str(seed), ssast(seed), **PRETRAINED) for seed in (0, 1))
    features = [script.embed(script.open_checkpoint(path), inventory) for path in (one, two)]
    assert features[0].shape == (20, 128)
    assert not np.allclose(*features)
    again = script.embed(script.open_checkpoint(one), inventory)
    assert np.array_equal(features[0], again)
    fresh = script.embed(script.open_checkpoint(one, fresh=5), inventory)
    assert not np.allclose(features[0], fresh)
    assert np.array_equal(fresh, script.embed(script.open_checkpoint(two, fresh=5), inventory))


def test_a_pretraining_set_with_a_recording_of_the_test_is_refused(esc, tmp_path):
    run = tmp_path / "leaky"
    file = pretrained(run, ssast(0), **PRETRAINED)
    # 301 is a clip of fold 3.
    listed(run, [7, 301])
    with pytest.raises(DataError, match=r"1 recordings .* freesound:301"):
        script.main([str(esc), f"ssast={file}"])


def test_a_fine_tuned_checkpoint_is_refused(esc, tmp_path):
    file = pretrained(tmp_path, ssast(0), loss="ce")
    with pytest.raises(CheckpointError, match="not a checkpoint of a pretraining run"):
        script.main([str(esc), f"ssast={file}"])


def test_a_teacher_without_some_clips_is_refused(esc, tmp_path):
    np.savez(tmp_path / "teacher.npz", ids=["1-100-A-0.wav"], embedding=np.ones((1, 2)))
    with pytest.raises(DataError, match=r"lacks 19 clips: 1-101-A-0.wav"):
        script.main([str(esc), "--teacher", str(tmp_path / "teacher.npz")])


def test_wrong_arguments(esc):
    with pytest.raises(SystemExit, match="give checkpoints as NAME=CKPT"):
        script.main([str(esc), "last.ckpt"])
