"""Steps of a run: losses that are no numbers, averages of weights, compiled blocks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from drive import BASE, HALF, Write, call, changed, metrics, objectives, part
from torch import Tensor

OVERLAYS = Path(__file__).parents[2] / "configs" / "overlays"
POISON = json.dumps({"class_path": "cli_recorder.Poison", "init_args": {"at": [1, 1]}})
STOP = {"class_path": "cli_recorder.Signaller", "init_args": {"name": "SIGTERM", "at": [1, 1]}}
SKIP = "--model.init_args.recipe.init_args.on_nonfinite=skip"
TWO_EPOCHS = ("--trainer.max_epochs=2",)
SUPMAM: dict[str, Any] = {
    "class_path": "peas.tasks.Pretraining",
    "init_args": {
        "encoder": part(
            "models.AudioMAE", size="mini", decoder_width=32, decoder_depth=1, decoder_heads=2
        ),
        "masking": HALF,
        "objectives": objectives(reconstruction={}, classification={"weight": 0.1, "hidden": 32}),
        "recipe": part("recipes.AudioMAEPretrainingRecipe", lr=1.0e-3, warmup_epochs=0),
    },
}


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def _finite(state: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


def _supmam(sounds: Path, tmp_path: Path) -> Path:
    config = changed(
        BASE,
        {
            "model": SUPMAM,
            "masking": None,
            "data.init_args.root": str(sounds),
            "data.init_args.mixup": 0.0,
        },
    )
    path = tmp_path / "supmam.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("system", ["finetuning", "supmam"])
def test_a_loss_that_is_no_number_stops_before_the_weights(
    write: Write, sounds: Path, tmp_path: Path, system: str
) -> None:
    config = write() if system == "finetuning" else _supmam(sounds, tmp_path)
    run = tmp_path / "run"
    where = ("--trainer.default_root_dir", run, "--checkpoints.every_n_train_steps=1")
    message = call("fit", "--config", config, *where, f"--trainer.callbacks+={POISON}").message
    # Four steps an epoch.
    assert "step 6, epoch 2" in message
    assert "on_nonfinite: skip" in message
    last = _state(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 5
    assert _finite(last["state_dict"])
    # What stopped it is gone: the run goes on.
    done = call("fit", "--config", config, *where, "--ckpt_path=last")
    assert done.code == 0, done.err
    assert _state(run / "checkpoints" / "last.ckpt")["global_step"] == 12


@pytest.mark.parametrize("system", ["finetuning", "supmam"])
def test_a_loss_that_is_no_number_is_left_out_and_counted(
    write: Write, sounds: Path, tmp_path: Path, system: str
) -> None:
    config = write() if system == "finetuning" else _supmam(sounds, tmp_path)
    run = tmp_path / "run"
    where = (
        "--trainer.default_root_dir",
        run,
        SKIP,
    )
    argv = (*where, "--checkpoints.every_n_train_steps=1")
    done = call("fit", "--config", config, *argv, f"--trainer.callbacks+={POISON}")
    assert done.code == 0, done.err
    last = _state(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 12
    # The norm's running statistics too.
    assert _finite(last["state_dict"])
    if system == "supmam":
        assert any("running_mean" in key for key in last["state_dict"])
    assert last["skipped_steps"] == 1
    rows = metrics(run / "logs/version_0/metrics.csv")
    counts = [float(row["train/skipped_steps"]) for row in rows if "train/skipped_steps" in row]
    assert counts == [0, 1, 1]
    losses = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    assert len(losses) == 3
    assert all(loss == loss for loss in losses)
    # One that goes on knows of it.
    argv = (*where, "--ckpt_path=last", "--trainer.max_epochs=4")
    assert call("fit", "--config", config, *argv).code == 0
    (row,) = [
        row for row in metrics(run / "logs/version_1/metrics.csv") if "train/skipped_steps" in row
    ]
    assert float(row["train/skipped_steps"]) == 1


def test_a_skipped_step_leaves_weights_and_moments(write: Write, tmp_path: Path) -> None:
    argv = (
        SKIP,
        "--checkpoints.every_n_train_steps=1",
    )
    ends = {}
    for steps in (5, 6):
        run = tmp_path / str(steps)
        where = ("--trainer.default_root_dir", run, f"--trainer.max_steps={steps}")
        done = call("fit", "--config", write(), *argv, *where, f"--trainer.callbacks+={POISON}")
        assert done.code == 0, done.err
        ends[steps] = _state(run / "checkpoints" / "last.ckpt")
    moments = [ends[steps]["optimizer_states"][0]["state"][0] for steps in (5, 6)]
    for key in moments[0]:
        assert torch.equal(moments[0][key], moments[1][key]), key
    for key, value in ends[5]["state_dict"].items():
        if key.startswith("model."):
            assert torch.equal(value, ends[6]["state_dict"][key]), key


def test_an_average_of_the_weights_is_kept_validated_and_gone_on_with(
    write: Write, sounds: Path, tmp_path: Path
) -> None:
    ema = {"class_path": "peas.callbacks.WeightAverage", "init_args": {}}
    ema["init_args"] = {"decay": 0.5}
    for system, config in (("peas", write()), ("supmam", _supmam(sounds, tmp_path))):
        argv = ("--config", config, f"--trainer.callbacks+={json.dumps(ema)}", *TWO_EPOCHS)
        whole, broken = tmp_path / f"{system}_whole", tmp_path / f"{system}_broken"
        done = call("fit", *argv, "--trainer.default_root_dir", whole)
        assert done.code == 0, done.err
        last = _state(whole / "checkpoints/last.ckpt")
        average, live = last["state_dict"], last["current_model_state"]
        key = "model.encoder.blocks.0.attn.qkv.weight"
        assert not torch.equal(average[key], live[key])
        if system == "peas":
            # The epoch's own validation and a later one score the same weights.
            logs = metrics(whole / "logs/version_0/metrics.csv")
            (*_, logged) = [float(row["val/loss"]) for row in logs if "val/loss" in row]
            where = ("--trainer.default_root_dir", tmp_path / "again")
            again = call("validate", *argv, *where, "--ckpt_path", whole / "checkpoints/last.ckpt")
            assert again.code == 0, again.err
            (row,) = metrics(tmp_path / "again/logs/version_0/metrics.csv")
            assert float(row["val/loss"]) == logged
        stop = f"--trainer.callbacks+={json.dumps(STOP)}"
        assert call("fit", *argv, stop, "--trainer.default_root_dir", broken).code == 143
        assert _state(broken / "checkpoints/last.ckpt")["global_step"] == 6
        done = call("fit", *argv, "--trainer.default_root_dir", broken, "--ckpt_path=last")
        assert done.code == 0, done.err
        again = _state(broken / "checkpoints/last.ckpt")
        for kept in ("state_dict", "current_model_state"):
            for name, value in last[kept].items():
                assert torch.equal(value, again[kept][name]), (system, kept, name)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_and_keep_their_names(write: Write, tmp_path: Path) -> None:
    plain, fast = tmp_path / "plain", tmp_path / "fast"
    size = (
        "--model.init_args.encoder.init_args.size=mini",
        "--trainer.max_steps=3",
        "--model.init_args.encoder.init_args.drop_path=0",
    )
    for run, more in ((plain, ()), (fast, ("--config", OVERLAYS / "compile.yaml"))):
        argv = ("--config", write(), *more, *size, "--trainer.default_root_dir", run)
        done = call("fit", *argv, "--trainer.log_every_n_steps=1")
        assert done.code == 0, done.err
    left, right = (_state(run / "checkpoints/last.ckpt")["state_dict"] for run in (plain, fast))
    assert list(left) == list(right)
    losses = [
        [float(row["loss"]) for row in metrics(run / "logs/version_0/metrics.csv") if "loss" in row]
        for run in (plain, fast)
    ]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
