"""Keyword spotting and mixtures, from generated files through the command line."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from drive import CLIPS, FOLD, Write, call, contents

from peas.data.speech_commands.keywords import CLASSES, KEYWORDS, split_of_speaker

LISTS = {"train": "", "validation": "validation_list.txt", "test": "testing_list.txt"}
ARCHIVE = "speech_commands_test_set_v0.01"


def write_noise(path: Path, seconds: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * 16_000))
    soundfile.write(path, noise, 16_000)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech Commands V1 with four speakers: ten keywords, two other words, two noises."""
    root = tmp_path_factory.mktemp("data") / "speech_commands_v0.01"
    source = random.Random(0)
    speakers = [f"{source.getrandbits(32):08x}" for _ in range(60)]
    kinds = {kind: [one for one in speakers if split_of_speaker(one) == kind] for kind in LISTS}
    for number, word in enumerate([*KEYWORDS, "bed", "zero"]):
        for kind, count in (("train", 2), ("validation", 1), ("test", 1)):
            for speaker in kinds[kind][:count]:
                write_noise(root / word / f"{speaker}_nohash_0.wav", 0.5, number)
    for kind, file in LISTS.items():
        names = sorted(
            f"{path.parent.name}/{path.name}"
            for path in root.glob("*/*.wav")
            if split_of_speaker(path.name) == kind
        )
        if file:
            (root / file).write_text("\n".join(names))
    for seed, name in enumerate(("pink_noise", "running_tap")):
        write_noise(root / "_background_noise_" / f"{name}.wav", 2.5, seed)
    for number, label in enumerate(CLASSES):
        write_noise(root.parent / ARCHIVE / label / f"{number}.wav", 1.0, number)
    return root


def keyword_config(write: Write, root: Path, **settings: object) -> Path:
    arguments = {"root": str(root), "task": "v1-12", "batch_size": 6, "frames": 64}
    arguments |= {"num_workers": 0, "cache_dir": "", **settings}
    return write(
        changes={
            "trainer.max_epochs": 1,
            "model.init_args.loss": "bce",
            "data": {"class_path": "peas.data.SpeechCommands", "init_args": arguments},
        }
    )


def test_keyword_spotting_trains_and_is_tested(write: Write, words: Path, tmp_path: Path) -> None:
    config, folder = keyword_config(write, words), tmp_path / "run"
    done = call("fit", "--config", config, "--trainer.default_root_dir", folder)
    assert done.code == 0, done.err
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["hyper_parameters"]["labels"] == list(CLASSES)
    assert state["hyper_parameters"]["front_end"]["init_args"]["mean"] == -6.702
    # 24 words and 2 silences, drawn anew: four batches of six.
    assert state["global_step"] == 4
    logits = np.load(folder / "logits" / "val_last.npz")
    assert logits["logits"].shape == (12 + 2, 12)
    assert sorted(logits["ids"])[0].startswith("_background_noise_/pink_noise.wav#validation")
    checkpoint = folder / "checkpoints" / "best.ckpt"
    tested = call(
        *("test", "--config", config, "--ckpt_path", checkpoint),
        *("--trainer.default_root_dir", tmp_path / "test"),
    )
    assert tested.code == 0, tested.err
    assert "not the published protocol's" not in tested.err
    (found,) = (tmp_path / "test" / "logits").glob("test*.npz")
    assert set(np.load(found)["ids"]) == {f"{c}/{n}.wav" for n, c in enumerate(CLASSES)}
    nowhere = tmp_path / "nowhere"
    message = call(
        *("test", "--config", config, "--ckpt_path", checkpoint),
        *("--trainer.default_root_dir", folder, "--data.init_args.test_root", nowhere),
    ).message
    assert str(nowhere) in message
    assert f"{ARCHIVE}.tar.gz" in message


def test_audiomaes_balancing_of_keyword_spotting(write: Write, words: Path, tmp_path: Path) -> None:
    config = keyword_config(write, words, sampling="repeated", silence=4)
    done = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    assert done.code == 0, done.err
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    # 4 unknown words, so every class keeps what it has: 20 keywords, 4 unknown, 4 silent.
    assert state["global_step"] == 28 // 6


def test_a_mixture_trains(write: Write, sounds: Path, words: Path, tmp_path: Path) -> None:
    esc = {"root": str(sounds), "cache_dir": "", "mean": -5.0, "std": 4.0, "frames": 64}
    spoken = {"root": str(words), "task": "v1-12", "cache_dir": ""}
    config = write(
        changes={
            "trainer.max_epochs": 1,
            "model.init_args.loss": "bce",
            "data": {
                "class_path": "peas.data.Mixture",
                "init_args": {
                    "batch_size": 6,
                    "num_workers": 0,
                    "mixup": 0.5,
                    "weights": [1, 0.5],
                    "sets": [
                        {"class_path": "peas.data.ESC50", "init_args": esc},
                        {"class_path": "peas.data.SpeechCommands", "init_args": spoken},
                    ],
                },
            },
        }
    )
    done = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "run")
    assert done.code == 0, done.err
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    info = state["hyper_parameters"]
    assert len(info["labels"]) == 3 + 12
    assert info["labels"][-12:] == list(CLASSES)
    front_end = info["front_end"]["init_args"]
    assert (front_end["mean"], front_end["frames"]) == (-5.0, 64)
    assert state["global_step"] == (CLIPS - FOLD + 13) // 6
    kept = contents(tmp_path / "run")["config.yaml"].decode()
    assert "peas.data.SpeechCommands" in kept
    logits = np.load(tmp_path / "run" / "logits" / "val_last.npz")
    assert logits["logits"].shape == (FOLD, 15)
    assert all(name.startswith("esc50/") for name in logits["ids"])


def test_fault_of_a_set_in_a_mixture_is_one_message(write: Write, tmp_path: Path) -> None:
    sets = [{"class_path": "peas.data.LibriSpeech", "init_args": {"root": str(tmp_path / "x")}}]
    config = write(
        changes={"data": {"class_path": "peas.data.Mixture", "init_args": {"sets": sets}}}
    )
    message = call("fit", "--config", config, "--trainer.default_root_dir", tmp_path / "r").message
    assert "has no folder train-clean-100" in message
