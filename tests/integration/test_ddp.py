"""Several processes train as one: every system, without a parameter that DDP waits for in vain."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from drive import BASE, HALF, SSAST, changed, objectives, part
from forks import Forks, world_of

from peas.data.synthetic import write_sounds

CLIPS = 35
"""Clips; the seven of the held-out fold are shared unevenly by two and by three."""
STEPS = 10
EPOCHS = 3
GLOBAL_BATCH = 6

MAE: dict[str, Any] = {
    "class_path": "peas.tasks.Pretraining",
    "init_args": {
        "encoder": part(
            "models.AudioMAE", size="mini", decoder_width=32, decoder_depth=2, decoder_heads=2
        ),
        "masking": HALF,
        "objectives": objectives(reconstruction={}),
        "grad_norm_every": 3,
        "recipe": part(
            "recipes.AudioMAEPretrainingRecipe", lr=1.0e-3, base_batch_size=None, warmup_epochs=1
        ),
    },
}
# BatchNorm is each process's own.
BRANCH = {"weight": 0.1, "hidden": 32, "norm": "none"}
SYSTEMS: dict[str, Mapping[str, Any]] = {
    "ssast": changed(
        SSAST,
        {"init_args.masking.init_args.num_masked": 8, "init_args.recipe.init_args.lr": 1.0e-3},
    ),
    "audiomae": MAE,
    "mam_teacher": changed(
        MAE,
        {
            "init_args.objectives": objectives(
                distillation={"teacher": {"class_path": "ddp_systems.Ear"}}
            )
        },
    ),
    "supmam": changed(
        MAE, {"init_args.objectives": objectives(reconstruction={}, classification=BRANCH)}
    ),
    "supmam_cache": changed(
        MAE,
        {"init_args.objectives": objectives(distillation={}, classification=BRANCH)},
    ),
    "beats": {
        "class_path": "peas.tasks.Classification",
        "init_args": {
            "pretrained": None,
            "encoder": part("models.BEATs", size="mini", patch_width=32),
            "front_end": part("audio.BEATsLogMel"),
            "recipe": part("recipes.AudioMAERecipe", lr=5.0e-4, base_batch_size=None),
        },
    },
    "eat": {
        "class_path": "peas.tasks.Classification",
        "init_args": {
            "pretrained": None,
            "encoder": part("models.EAT", size="mini"),
            "recipe": part("recipes.AudioMAERecipe", lr=5.0e-4, base_batch_size=None),
        },
    },
    "peas": {
        "class_path": "peas.tasks.Classification",
        "init_args": {
            "pretrained": None,
            "encoder": part("models.SSAST", size="mini", stride=[16, 16]),
            "recipe": part("recipes.SSASTRecipe", lr=5.0e-4),
            "augmentation": {"noise_roll": True},
        },
    },
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five folds of seven clips."""
    folder = tmp_path_factory.mktemp("ddp") / "sounds"
    return write_sounds(folder, classes=7, clips_per_class=CLIPS // 7, seconds=0.64)


def _maps(clips: Path, out: Path) -> Path:
    """A cache of made-up maps of every clip."""
    from peas.__main__ import main

    ids = sorted(path.name for path in (clips / "audio").glob("*.wav"))
    maps = np.random.default_rng(0).standard_normal((len(ids), 2, 4, 6)).astype(np.float16)
    np.savez(out / "maps.npz", ids=np.array(ids), features=maps)
    extent = {"first_centre": 0.08, "step": 0.16, "freq_edges": [0.0, 1000.0, 8000.0]}
    (out / "extent.json").write_text(json.dumps({"teacher": "made up", **extent}))
    argv = ["data", "targets", "esc50", str(clips), "--from", str(out / "maps.npz")]
    assert main([*argv, "--extent", str(out / "extent.json"), "--out", str(out / "cache")]) == 0
    return out / "cache"


def _configs(clips: Path, out: Path, world: int, cache: Path) -> list[Path]:
    paths = []
    for name, model in SYSTEMS.items():
        masks = BASE["masking"] if name == "peas" else None
        losses = {"path": str(out / f"{name}.json")}
        config = changed(
            BASE,
            {
                "model": dict(model),
                "masking": masks,
                "trainer.callbacks": [{"class_path": "ddp_systems.Losses", "init_args": losses}],
                "trainer.max_epochs": EPOCHS,
                "trainer.max_steps": STEPS,
                "trainer.devices": world,
                "trainer.strategy": "ddp" if world > 1 else "auto",
                "trainer.use_distributed_sampler": False,
                "trainer.log_every_n_steps": 1,
                "data.init_args.root": str(clips),
                "data.init_args.batch_size": GLOBAL_BATCH // world,
                "data.init_args.mixup": 0.3 if name == "peas" else 0.0,
            },
        )
        if name == "supmam_cache":
            config = changed(
                config, {"model.init_args.objectives.distillation.init_args.targets": str(cache)}
            )
        path = out / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        paths.append(path)
    return paths


def _scores(folder: Path) -> dict[str, float]:
    log = max(folder.glob("logs/version_*/metrics.csv"))
    with log.open() as file:
        row = list(csv.DictReader(file))[-1]
    return {key: float(row[key]) for key in ("val/accuracy", "val/mAP", "val/clips")}


@pytest.fixture(scope="module")
def runs(clips: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Every system on one, two and three processes; then the scores of one checkpoint."""
    base = tmp_path_factory.mktemp("worlds")
    cache = _maps(clips, base)
    found = {}
    for world in (1, 2, 3):
        found[world] = out = base / str(world)
        out.mkdir()
        for config in _configs(clips, out, world, cache):
            forks.fit(config, config.with_suffix(""), world)
        scored = out / "scored.yaml"
        scored.write_text((out / "peas.yaml").read_text())
        weights = base / "1/peas/checkpoints/last.ckpt"
        forks.fit(scored, out / "scored", world, "validate", "--ckpt_path", str(weights))
    return found


def _losses(out: Path, name: str, rank: int = 0) -> list[float]:
    told: list[float] = json.loads((out / f"{name}.{rank}.json").read_text())["losses"]
    return told


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_one_global_batch_gives_one_loss(runs: dict[int, Path], name: str) -> None:
    alone = _losses(runs[1], name)
    assert len(alone) == STEPS
    # It learns something, so equality is not that of nothing happening.
    assert alone[0] != pytest.approx(alone[-1], rel=1e-3)
    for world in (2, 3):
        for rank in range(world):
            assert _losses(runs[world], name, rank) == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_each_process_asks_the_teacher_for_its_own_clips(runs: dict[int, Path]) -> None:
    def heard(world: int, rank: int) -> int:
        told = json.loads((runs[world] / f"mam_teacher.{rank}.json").read_text())
        return int(told["heard"])

    # Ten steps and two validations of seven clips.
    assert heard(1, 0) == STEPS * GLOBAL_BATCH + 2 * 7
    for world in (2, 3):
        shares = [heard(world, rank) for rank in range(world)]
        assert sum(shares) == heard(1, 0)
        assert max(shares) - min(shares) <= 2


@pytest.mark.slow
def test_one_checkpoint_has_one_score(runs: dict[int, Path]) -> None:
    alone = _scores(runs[1] / "scored")
    assert alone["val/clips"] == 7
    for world in (2, 3):
        scores = _scores(runs[world] / "scored")
        assert scores["val/clips"] == alone["val/clips"]
        assert scores["val/accuracy"] == alone["val/accuracy"]
        assert scores["val/mAP"] == pytest.approx(alone["val/mAP"], abs=1e-6)


@pytest.mark.slow
def test_processes_that_would_go_on_from_different_files_end(
    runs: dict[int, Path], forks: Forks, tmp_path: Path
) -> None:
    done = runs[2] / "peas"
    common = ["fit", "--config", f"{done}.yaml", "--trainer.default_root_dir", str(tmp_path)]
    files = [done / "checkpoints" / name for name in ("last.ckpt", "last.before.ckpt")]
    calls = world_of([[*common, "--ckpt_path", str(file)] for file in files], tmp_path / "log")
    assert forks.run(*calls) == [1, 1]
    for call in calls:
        told = call.log.read_text()
        assert "Traceback" not in told
        assert all(str(file) in told for file in files)
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supmam", "peas"])
def test_two_processes_that_were_stopped_go_on_as_one_run(
    runs: dict[int, Path], forks: Forks, tmp_path: Path, name: str
) -> None:
    given = yaml.safe_load((runs[2] / f"{name}.yaml").read_text())
    given["trainer"]["callbacks"][0]["init_args"]["path"] = str(tmp_path / "losses.json")
    stop = {"name": "SIGTERM", "at": [1, 1]}
    stopped = changed(given, {})
    stopped["trainer"]["callbacks"].insert(
        1, {"class_path": "cli_recorder.Signaller", "init_args": stop}
    )
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(stopped))
    words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(run)]
    calls = world_of([words] * 2, tmp_path / "log")
    assert forks.run(*calls) == [143, 143]
    config.write_text(yaml.safe_dump(given))
    forks.fit(config, run, 2, "fit", "--ckpt_path", "last")
    ours, whole = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (run, runs[2] / name)
    )
    assert ours["global_step"] == whole["global_step"] == STEPS
    # The sums of an epoch's means are among them.
    assert ours["state_dict"].keys() == whole["state_dict"].keys()
    for key, value in whole["state_dict"].items():
        assert torch.equal(ours["state_dict"][key], value), key
