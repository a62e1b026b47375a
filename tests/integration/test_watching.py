"""Seeing that pretraining learns, from a config, on one process and on two; and what follows it."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from drive import BASE, CLASSES, CLIPS, call, changed, metrics, objectives, part
from forks import Forks

EPOCHS = 2


def callbacks(labelled: Path, split: str = "folds") -> list[dict[str, Any]]:
    made = {
        "root": str(labelled),
        "classes": CLASSES,
        "clips_per_class": CLIPS // CLASSES,
        "seconds": 0.9,
        "frames": 80,
        "batch_size": 4,
        "num_workers": 1,
        "cache_dir": "",
    }
    data = {"class_path": "peas.data.SyntheticSounds", "init_args": made}
    return [
        {
            "class_path": "peas.callbacks.KNN",
            "init_args": {"data": data, "k": 3, "every_n_epochs": 1, "split": split},
        },
        {"class_path": "peas.callbacks.ReconstructionPlots", "init_args": {"clips": 3}},
    ]


def pretraining(tmp_path: Path, sounds: Path, **changes: Any) -> Path:
    """A config of MAE with a classification branch alone: its weights draw no spectrogram."""
    config = changed(
        BASE,
        {
            "trainer.max_epochs": EPOCHS,
            "masking": None,
            "trainer.callbacks": callbacks(tmp_path / "labelled"),
            "model": {
                "class_path": "peas.tasks.Pretraining",
                "init_args": {
                    "encoder": part(
                        "models.AudioMAE",
                        size="mini",
                        decoder_width=32,
                        decoder_depth=1,
                        decoder_heads=2,
                    ),
                    "recipe": part(
                        "recipes.AudioMAEPretrainingRecipe",
                        lr=1.0e-3,
                        base_batch_size=None,
                        warmup_epochs=0,
                    ),
                },
            },
            "data.init_args.root": str(sounds),
            "data.init_args.mixup": 0.0,
            **changes,
        },
    )
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fine_tuning(tmp_path: Path, sounds: Path, pretrained: Path, **changes: Any) -> Path:
    config = changed(
        BASE,
        {
            "trainer.max_epochs": 1,
            "model.init_args.pretrained": str(pretrained),
            "model.init_args.encoder.class_path": "peas.models.AudioMAE",
            "model.init_args.reconstruction": "probe",
            "data.init_args.root": str(sounds),
            **changes,
        },
    )
    path = tmp_path / "tune.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def accuracies(run: Path) -> list[float]:
    rows = metrics(run / "logs" / "version_0" / "metrics.csv")
    return [float(row["knn/accuracy"]) for row in rows if "knn/accuracy" in row]


def test_a_config_watches_and_hands_over(
    sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # Only the branch is trained: as MAM-CLAP's, the checkpoint has no pixel head.
    objective = {"objectives": objectives(classification={})}
    drawing = pretraining(tmp_path, sounds)
    run = tmp_path / "run"
    done = call("fit", "--config", drawing, "--trainer.default_root_dir", run)
    assert done.code == 0, done.err
    assert len(accuracies(run)) == EPOCHS
    assert len(list((run / "plots").glob("*_reconstruction_*.png"))) == 2 * 3
    assert "knn " in caplog.text
    assert "(baseline " in caplog.text
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["trainer"]["callbacks"][0]["init_args"]["data"]["init_args"]["frames"] == 80

    keys = {f"model.init_args.{key}": value for key, value in objective.items()}
    headless = pretraining(tmp_path, sounds, **keys)
    done = call("fit", "--config", headless, "--trainer.default_root_dir", tmp_path / "bare")
    assert "predict neither patches nor a teacher's features" in done.message
    keys["trainer.callbacks"] = []
    headless = pretraining(tmp_path, sounds, **keys)
    done = call("fit", "--config", headless, "--trainer.default_root_dir", tmp_path / "bare")
    assert done.code == 0, done.err
    last = tmp_path / "bare" / "checkpoints" / "last.ckpt"
    tune = fine_tuning(tmp_path, sounds, last, **{"model.init_args.reconstruction": "head"})
    done = call("fit", "--config", tune, "--trainer.default_root_dir", tmp_path / "none")
    assert "`model.init_args.reconstruction: probe`" in done.message
    tune = fine_tuning(tmp_path, sounds, last)
    done = call("fit", "--config", tune, "--trainer.default_root_dir", tmp_path / "tuned")
    assert done.code == 0, done.err
    assert "errors of a linear pixel probe, fitted" in caplog.text
    assert (tmp_path / "tuned" / "checkpoints" / "pixel_probe.pt").is_file()
    best = tmp_path / "tuned" / "checkpoints" / "best.ckpt"
    done = call("test", "--config", tmp_path / "tuned" / "config.yaml", "--ckpt_path", best)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_two_processes_share_the_work(forks: Forks, sounds: Path, tmp_path: Path) -> None:
    """One process and two find the same accuracy of the same weights, and the same probe."""

    def fit(config: Path, name: str, devices: int) -> Path:
        run = tmp_path / name
        # Half the clips on each of two processes: the same global batches.
        share = f"--data.init_args.batch_size={6 // devices}"
        strategy = "--trainer.strategy=ddp" if devices > 1 else "--trainer.strategy=auto"
        forks.fit(config, run, devices, "fit", f"--trainer.devices={devices}", strategy, share)
        return run

    # A rate too small to matter: the weights stay those of the seed.
    still = {"model.init_args.recipe.init_args.lr": 1e-12, "trainer.max_epochs": 1}
    config = pretraining(tmp_path, sounds, **still)
    one, two = fit(config, "one", 1), fit(config, "two", 2)
    assert accuracies(one) == pytest.approx(accuracies(two))
    names = [sorted(p.name for p in (run / "plots").glob("*.png")) for run in (one, two)]
    assert names[0] == names[1]
    assert len(names[0]) == 3

    keys = {"masking.init_args.refresh_every": 1}
    tune = fine_tuning(tmp_path, sounds, one / "checkpoints" / "last.ckpt", **keys)
    probes = [
        torch.load(fit(tune, name, world) / "checkpoints" / "pixel_probe.pt", weights_only=True)
        for name, world in (("tuned_one", 1), ("tuned_two", 2))
    ]
    assert torch.allclose(probes[0]["weight"], probes[1]["weight"], rtol=1e-3, atol=1e-5)
    assert probes[0]["patches"] == probes[1]["patches"]
