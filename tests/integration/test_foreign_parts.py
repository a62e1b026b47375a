"""Every part comes from an installed package of a user's own, through the whole command line."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drive import Outcome, call

PACKAGE = Path(__file__).parents[2] / "examples" / "foreign_parts"
STRATEGY = "foreign_parts.masking_strategy.RoundHoles"
TEACHER = {"class_path": "foreign_parts.teacher.BandEnergies"}
SHORT = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2)
DECODER = {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package, installed offline into a folder of its own, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("foreign")
    # Setuptools builds inside the source.
    source = shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target"]
    subprocess.run(
        [*pip, folder / "site", "--no-build-isolation", source], check=True, capture_output=True
    )
    sys.path.insert(0, str(folder / "site"))
    yield folder
    sys.path.remove(str(folder / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "foreign_parts"]:
        del sys.modules[name]


def fit(folder: Path, config: str, run: str, *argv: object, code: int = 0) -> dict[str, Any]:
    """Trains by one of the package's files; the checkpoint that is left."""
    words = ["--config", folder / "source" / config, "--data.init_args.root", folder / "notes"]
    words += ["--data.init_args.cache_dir", "", "--trainer.accelerator", "cpu"]
    words += ["--trainer.default_root_dir", folder / run, *argv]
    done = call("fit", *(json.dumps(word) if isinstance(word, dict) else word for word in words))
    assert done.code == code, done.err
    state: dict[str, Any] = torch.load(folder / run / "checkpoints" / "last.ckpt")
    return state


def logged(folder: Path, run: str) -> set[str]:
    """Columns of a run's log."""
    with (folder / run / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        return set(next(csv.reader(file)))


def goes_on(folder: Path, config: str, run: str, whole: dict[str, Any], *argv: object) -> None:
    """Stopped inside the first epoch and gone on with, a run equals the unbroken one."""
    stop = {"class_path": "cli_recorder.Signaller", "init_args": {"name": "SIGTERM", "at": [0, 1]}}
    callbacks = ("--trainer.callbacks", stop)
    broken = fit(folder, config, run, *argv, *callbacks, code=143)
    assert broken["global_step"] == 2 < whole["global_step"]
    again = fit(folder, config, run, *argv, "--ckpt_path", "last")
    assert again["global_step"] == whole["global_step"]
    assert list(again["state_dict"]) == list(whole["state_dict"])
    for name, weight in whole["state_dict"].items():
        assert torch.equal(again["state_dict"][name], weight), name


@pytest.fixture(scope="module")
def pretrained(installed: Path) -> dict[str, Any]:
    return fit(installed, "pretrain.yaml", "pretrained")


def finetuning(folder: Path) -> tuple[object, ...]:
    return ("--model.init_args.pretrained", folder / "pretrained" / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def finetuned(installed: Path, pretrained: dict[str, Any]) -> dict[str, Any]:
    return fit(installed, "finetune_peas.yaml", "finetuned", *finetuning(installed))


def test_each_part_is_one_short_file() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.glob("*.py")}
    assert len(lengths) == 9
    assert max(lengths.values()) <= 60


def test_pretraining_of_foreign_parts(installed: Path, pretrained: dict[str, Any]) -> None:
    settings = pretrained["hyper_parameters"]
    parts = [settings[key] for key in ("encoder", "front_end", "masking", "recipe")]
    assert {part["class_path"] for part in (*parts, settings["objectives"]["clip"])} == {
        "foreign_parts.encoder.TimmViT",
        "foreign_parts.front_end.TorchaudioLogMel",
        "foreign_parts.patch_masking.LoudPatches",
        "foreign_parts.recipe.LinearSGD",
        "foreign_parts.objective.ClipFromPatches",
    }
    known = {"train/clip", "train/cosine", "val/cosine", "val/clip_mse", "val/constant_clip_mse"}
    assert known <= logged(installed, "pretrained")
    groups = pretrained["optimizer_states"][0]["param_groups"]
    assert [group["name"] for group in groups] == [f"layer_{n}" for n in range(3, -1, -1)]
    weights = pretrained["state_dict"]
    average = weights["objectives.clip.average.vit.cls_token"]
    assert not torch.equal(average, weights["model.vit.cls_token"])


def test_a_stopped_pretraining_goes_on(installed: Path, pretrained: dict[str, Any]) -> None:
    goes_on(installed, "pretrain.yaml", "pretrained_again", pretrained)


def test_a_foreign_teacher_with_audiomae(installed: Path) -> None:
    distillation = {
        "class_path": "peas.objectives.FeatureDistillation",
        "init_args": {"teacher": TEACHER},
    }
    encoder = {"class_path": "peas.models.AudioMAE", "init_args": {"size": "mini", **DECODER}}
    state = fit(
        installed,
        "pretrain.yaml",
        "taught",
        *("--model.init_args.objectives", {"clip": None, "distillation": distillation}),
        *("--model.init_args.encoder", encoder),
        *SHORT,
    )
    settings = state["hyper_parameters"]
    assert list(settings["objectives"]) == ["distillation"]
    assert settings["objective_fingerprints"]["distillation"]["width"] == 8
    assert "teacher" not in settings["objectives"]["distillation"]["init_args"]
    assert {"val/feature_mse", "val/baseline_feature_mse"} <= logged(installed, "taught")


def test_fine_tuning_with_peas(installed: Path, finetuned: dict[str, Any]) -> None:
    assert "model.pixel_probe.weight" in finetuned["state_dict"]
    assert {"peas/e_pred", "mask/fraction"} <= logged(installed, "finetuned")
    goes_on(installed, "finetune_peas.yaml", "finetuned_again", finetuned, *finetuning(installed))


def test_a_foreign_masking_strategy(installed: Path, finetuned: dict[str, Any]) -> None:
    words = ("--masking", STRATEGY, "--masking.init_args.holes", 2, *SHORT)
    other = fit(installed, "finetune_peas.yaml", "holes", *finetuning(installed), *words)
    assert "mask/fraction" in logged(installed, "holes")
    assert other["state_dict"].keys() == finetuned["state_dict"].keys()


def tagged(folder: Path, *argv: object) -> Outcome:
    clip, file = (
        folder / "notes" / "test-0-0.wav",
        folder / "finetuned" / "checkpoints" / "best.ckpt",
    )
    return call("tag", clip, "--checkpoint", file, *argv)


def test_tag_needs_the_flag(installed: Path, finetuned: dict[str, Any]) -> None:
    message = tagged(installed).message
    assert "foreign_parts.encoder.TimmViT" in message
    assert "--allow_module foreign_parts" in message
    done = tagged(installed, "--allow_module", "foreign_parts")
    assert done.code == 0, done.err
    assert {"low", "middle", "high"} <= set(done.out.split())


def test_a_foreign_encoder_has_no_official_layout(
    installed: Path, finetuned: dict[str, Any], tmp_path: Path
) -> None:
    best = installed / "finetuned" / "checkpoints" / "best.ckpt"
    done = call("export", "--checkpoint", best, "--out", tmp_path / "x.pth")
    assert "foreign_parts.encoder.TimmViT" in done.message
    assert not (tmp_path / "x.pth").exists()
