"""A run that goes on trains with the rates, decay and betas that it is given now."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from made import classification, masked_task, ssast_task
from toys import data, quiet_trainer

from peas.callbacks import progress
from peas.errors import CheckpointError
from peas.objectives import PatchContrast, Reconstruction
from peas.recipes.ssast import Plateau
from peas.tasks.base import BaseTask

TASKS: dict[str, tuple[Callable[..., BaseTask], dict[str, Any]]] = {
    "adam": (classification, {"pretrained": None, "stride": (16, 16), "decay_start": None}),
    "adamw": (
        classification,
        {
            **{"pretrained": None, "encoder": "audiomae", "optimizer": "adamw", "min_lr": 0.0},
            **{"layer_decay": 0.5, "schedule": "cosine", "warmup_epochs": 0},
        },
    ),
    "ssast": (ssast_task, {"masked": 10, "eval_masked": None, "warmup_steps": 0}),
    "mae": (
        masked_task,
        {"decoder_width": 32, "decoder_heads": 2, "decoder_depth": 1, "warmup_epochs": 0},
    ),
}


def run(
    kind: str, sounds: Path, folder: Path, start: Path | None, epochs: int, **settings: Any
) -> tuple[BaseTask, Any]:
    """Trains to an epoch's end, and leaves `run.ckpt`."""
    torch.manual_seed(0)
    make, given = TASKS[kind]
    task = make(**{"size": "toy", "lr": 1e-3, **given, **settings})
    trainer = quiet_trainer(
        folder,
        max_epochs=epochs,
        limit_train_batches=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, datamodule=data(sounds), ckpt_path=start, weights_only=True)
    trainer.save_checkpoint(folder / "run.ckpt")
    return task, trainer


@pytest.fixture(scope="module")
def starts(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of one step of each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in TASKS}
    for kind, folder in folders.items():
        run(kind, sounds, folder, None, 1)
    return {kind: folder / "run.ckpt" for kind, folder in folders.items()}


def groups(trainer: Any, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(group[key] for key in keys) for group in trainer.optimizers[0].param_groups]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("adam", {"lr": 5e-3}),
        ("adam", {"head_lr_mult": 10.0}),
        ("adam", {"weight_decay": 0.3}),
        ("adam", {"betas": (0.5, 0.6)}),
        ("adamw", {"layer_decay": 0.9}),
        ("adamw", {"lr": 5e-3, "base_batch_size": 256, "weight_decay": 0.2}),
        ("ssast", {"lr": 5e-3, "weight_decay": 0.3, "betas": (0.5, 0.6)}),
        ("mae", {"lr": 5e-3, "weight_decay": 0.3, "betas": (0.5, 0.6)}),
    ],
)
def test_the_optimiser_has_what_a_new_run_would_have(
    sounds: Path, starts: dict[str, Path], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    keys = ("name", "base_lr", "weight_decay", "betas", "eps")
    _, same = run(kind, sounds, tmp_path / "same", starts[kind], 2)
    task, other = run(kind, sounds, tmp_path / "other", starts[kind], 2, **settings)
    fresh = task.configure_optimizers()
    assert isinstance(fresh, torch.optim.Optimizer)
    wanted = [tuple(group[key] for key in keys) for group in fresh.param_groups]
    assert groups(other, *keys) == wanted
    assert wanted != groups(same, *keys)
    # The moments are the run's own, and so is the step they were counted to.
    assert all(int(state["step"]) == 2 for state in other.optimizers[0].state.values())
    # And it is trained with them.
    ours, theirs = task.state_dict(), same.lightning_module.state_dict()
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours if key.startswith("model."))


def test_a_checkpoint_without_the_optimisers_state_is_not_resumed(
    sounds: Path, starts: dict[str, Path], tmp_path: Path
) -> None:
    content = torch.load(starts["adam"], weights_only=True)
    content["optimizer_states"] = []
    torch.save(content, tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match=r"empty\.ckpt.*optimizer_states"):
        run("adam", sounds, tmp_path, tmp_path / "empty.ckpt", 2)


def test_a_new_rate_is_lowered_by_the_plateaus_so_far(
    sounds: Path, starts: dict[str, Path], tmp_path: Path
) -> None:
    content = torch.load(starts["ssast"], weights_only=True)
    content["recipe"] = Plateau(factor=0.25)._asdict()
    torch.save(content, tmp_path / "lowered.ckpt")
    _, trainer = run("ssast", sounds, tmp_path, tmp_path / "lowered.ckpt", 2, lr=4e-3)
    assert groups(trainer, "lr") == [(1e-3,)]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("adam", {"optimizer": "adamw", "schedule": "cosine"}, r"init_args\.recipe\.class_path"),
        ("adam", {"freeze": "encoder"}, r"model\.init_args\.freeze"),
        ("adam", {"aux_loss_weight": 0.1}, "optimiser trains other parameters"),
        ("adamw", {"positions": "geometric"}, r"encoder\.init_args\.positions"),
        ("mae", {"decoder_heads": 4}, r"encoder\.init_args\.decoder_heads"),
        (
            "mae",
            {"objectives": {"reconstruction": Reconstruction(norm_pix=False)}},
            r"objectives\.reconstruction\.init_args\.norm_pix",
        ),
        (
            "mae",
            {"objectives": {"reconstruction": Reconstruction(), "contrast": PatchContrast()}},
            r"objectives\.contrast`",
        ),
        (
            "mae",
            {"objectives": {"reconstruction": PatchContrast()}},
            r"objectives\.reconstruction`",
        ),
    ],
)
def test_what_would_read_weights_or_moments_wrongly_is_refused(
    sounds: Path,
    starts: dict[str, Path],
    tmp_path: Path,
    kind: str,
    settings: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        run(kind, sounds, tmp_path, starts[kind], 2, **settings)
    assert "--model.init_args.pretrained" in str(error.value)
    assert "config.yaml" in str(error.value)


def test_settings_that_decide_nothing_of_a_score_are_no_matter_to_a_test(
    sounds: Path, starts: dict[str, Path], tmp_path: Path
) -> None:
    task = classification(
        **{"pretrained": None, "size": "toy", "stride": (16, 16)},
        optimizer="adamw",
        schedule="cosine",
    )
    trainer = quiet_trainer(tmp_path, limit_test_batches=1)
    trainer.test(task, datamodule=data(sounds), ckpt_path=starts["adam"], weights_only=True)
    assert "test/accuracy" in trainer.callback_metrics


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        ("adam", {"warmup_steps": 50}, "warmup_steps"),
        ("ssast", {"warmup_steps": 1}, "warmup_steps"),
        ("mae", {"warmup_epochs": 1}, "warmup_epochs"),
    ],
)
def test_a_warm_up_longer_than_a_third_of_the_run_is_warned_of(
    sounds: Path, tmp_path: Path, kind: str, settings: dict[str, Any], key: str
) -> None:
    with pytest.warns(UserWarning, match=rf"recipe\.init_args\.{key}`.*the run has 1"):
        run(kind, sounds, tmp_path, None, 1, **settings)


def test_the_rate_is_in_the_log_and_the_line_of_every_epoch(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few steps an epoch has: Lightning logs one of fifty."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "rank_zero_info", lines.append)
    make, given = TASKS["adam"]
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=2,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=50,
        callbacks=[progress.EpochLine()],
    )
    trainer.fit(make(**{"size": "toy", **given, "lr": 2e-3}), datamodule=data(sounds))
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    assert [(int(row["epoch"]), float(row["lr"])) for row in rows] == [
        (0, pytest.approx(2e-3)),
        (1, pytest.approx(2e-3)),
    ]
    assert ["lr 0.002" in line.split("  ") for line in lines] == [True, True]
