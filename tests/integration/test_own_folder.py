"""An own folder from the first look at it to labels, on real sound of eight sample rates."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from drive import SSAST, call, metrics, part

RATES = (8_000, 11_025, 11_127, 16_000, 22_050, 22_257, 44_100, 48_000)
CLASSES = ("chainsaw", "crying_baby", "dog")
FORMATS = ("wav", "flac", "ogg")
SECONDS = 0.7


def loudest(wave: np.ndarray, length: int) -> np.ndarray:
    """The stretch around the largest sample."""
    first = int(np.clip(np.abs(wave).argmax() - length // 2, 0, len(wave) - length))
    return wave[first : first + length]


def at_rate(wave: np.ndarray, rate: int) -> np.ndarray:
    """Band-limited to another rate, by cutting or padding its spectrum."""
    length = round(SECONDS * rate)
    spectrum = np.fft.rfft(wave)[: length // 2 + 1]
    return np.clip(np.fft.irfft(spectrum, length) * length / len(wave), -1, 1)


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of each of three classes of ESC-10, each of another rate and container."""
    root = tmp_path_factory.mktemp("walk") / "sounds"
    with (shared / "data/esc10/meta/esc50.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, label in enumerate(CLASSES):
        names = sorted(row["filename"] for row in rows if row["category"] == label)
        (root / label).mkdir(parents=True)
        for place, rate in enumerate(RATES):
            audio = shared / "data/esc10/audio"
            path = next(audio.glob(f"{Path(names[place]).stem}.*"))
            wave, source = soundfile.read(path)
            clip = at_rate(loudest(wave, round(SECONDS * source)), rate)
            ending = "wav" if rate == 11_127 else FORMATS[(number + place) % len(FORMATS)]
            soundfile.write(root / label / f"{rate}.{ending}", clip, rate)
    return root


def config(path: Path, root: Path, model: dict[str, Any]) -> Path:
    """A small config of two epochs."""
    text = {
        "seed_everything": 0,
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        },
        "model": model,
        "data": {
            "class_path": "peas.data.AudioFolder",
            "init_args": {
                "root": str(root),
                "holdout": 0.25,
                "frames": 64,
                "batch_size": 6,
                "num_workers": 0,
            },
        },
    }
    if model["class_path"].endswith("Classification"):
        peas = {"n_time": 1, "n_freq": 1, "max_time": 16, "max_freq": 48}
        text["masking"] = {"class_path": "peas.callbacks.PEAS", "init_args": peas}
    path.write_text(yaml.safe_dump(text))
    return path


def test_own_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEAS_CACHE", str(tmp_path / "cache"))
    checked = call("data", "verify", "folder", folder, "--workers", 0)
    assert checked.code == 0, checked.out + checked.err

    pretrain = config(tmp_path / "pretrain.yaml", folder, SSAST)
    done = call("fit", "--config", pretrain, "--trainer.default_root_dir", tmp_path / "pretrain")
    assert done.code == 0, done.err

    weights = tmp_path / "pretrain/checkpoints/last.ckpt"
    settings = {
        "pretrained": str(weights),
        "encoder": part("models.SSAST", size="mini", stride=[16, 16]),
        "recipe": part("recipes.SSASTRecipe", lr=1e-3, warmup_steps=0),
    }
    finetune = config(
        tmp_path / "peas.yaml",
        folder,
        {"class_path": "peas.tasks.Classification", "init_args": settings},
    )
    run = tmp_path / "run"
    argv = ["fit", "--config", finetune, "--trainer.default_root_dir", run, "--ckpt_path", "last"]
    done = call(*argv)
    assert done.code == 0, done.err
    done = call(*argv, "--trainer.max_epochs", 3, "--model.init_args.recipe.init_args.lr", 5e-4)
    assert done.code == 0, done.err
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert {group["base_lr"] for group in last["optimizer_states"][0]["param_groups"]} == {5e-4}
    rows = [row for log in sorted(run.glob("logs/*/metrics.csv")) for row in metrics(log)]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())

    clips = sorted(folder.rglob("*.*"))
    tagged = call(
        "tag", *clips, "--checkpoint", run / "checkpoints/last.ckpt", "--top", 1, "--json"
    )
    assert tagged.code == 0, tagged.err
    assert len(tagged.out.splitlines()) == len(clips) == len(RATES) * len(CLASSES)
    assert "NaN" not in tagged.out
