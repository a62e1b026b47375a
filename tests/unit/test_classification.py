"""The classification task: facts, refusals, self-describing checkpoints, optimiser groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from made import classification
from toys import FACTS, LABELS, Run, StandIn, clips, data, fit, heard, make_task, quiet_trainer

from peas.data.esc50 import ESC50
from peas.errors import CheckpointError, ConfigError, NoReconstruction
from peas.models import Encoder
from peas.tasks import Classification


def small(**settings: Any) -> Classification:
    return classification(**{"pretrained": None, "size": "toy", "stride": (16, 16), **settings})


# --- facts ---------------------------------------------------------------------------------


def test_facts_come_from_the_data(peas_run: Run) -> None:
    h, info = peas_run.task.hparams, peas_run.module.info
    assert h["labels"] == info.labels == LABELS
    assert h["multi_label"] is False
    heard = h["front_end"]["init_args"]
    assert (heard["mean"], heard["std"], heard["frames"]) == (-5.2411, 4.1377, 64)
    assert float(peas_run.task.front_end.mean) == pytest.approx(-5.2411)
    assert peas_run.task.model.head.out_features == 4


def test_given_facts_stay(sounds: Path) -> None:
    task = small(mean=-1.0, frames=48)
    task._trainer = StandIn(datamodule=data(sounds), ckpt_path=None)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="random weights"):
        task.setup("fit")
    heard = task.hparams["front_end"]["init_args"]
    assert (heard["mean"], heard["frames"], heard["std"]) == (-1.0, 48, 4.1377)
    assert task.model.encoder.frames == 48


def test_without_data_the_missing_key_is_named() -> None:
    task = small()
    task._trainer = StandIn(ckpt_path=None)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"model\.init_args\.labels` is null"):
        task.setup("fit")


def test_resuming_reads_no_pretrained_file(sounds: Path) -> None:
    task = small(pretrained="/nowhere/at/all.pth")
    task._trainer = StandIn(datamodule=data(sounds), ckpt_path=None)  # type: ignore[assignment]
    task.resumes = True
    task.setup("fit")
    assert task.built
    other = small(pretrained="/nowhere/at/all.pth")
    other._trainer = StandIn(datamodule=data(sounds), ckpt_path=None)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"/nowhere/at/all\.pth"):
        other.setup("fit")


# --- refusals ------------------------------------------------------------------------------


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"model\.init_args\.labels` is empty"):
        small(labels=[])
    with pytest.raises(ConfigError, match=r"model\.init_args\.recipe\.init_args\.lr` is 0"):
        small(lr=0)
    with pytest.raises(ConfigError, match=r"model\.init_args\.loss: ce.*bce"):
        small(**{**FACTS, "multi_label": True}).build(initialise=False)
    small(**{**FACTS, "multi_label": True}, loss="bce").build(initialise=False)


def test_data_without_classes_is_refused(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ESC50, "labels", [])
    task = small()
    task._trainer = StandIn(datamodule=data(sounds), ckpt_path=None)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="0 classes"):
        task.setup("fit")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_weights_are_refused_with_advice(precision: str, sounds: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, precision=precision, max_epochs=1)
    with pytest.raises(ConfigError, match=rf"{precision}.*bf16-mixed"):
        trainer.fit(small(), datamodule=data(sounds))


def test_auxiliary_loss_needs_a_reconstruction(monkeypatch: pytest.MonkeyPatch) -> None:
    def fine_tuned_file(model: Encoder, path: object) -> None:
        model.reconstructs.fill_(False)

    monkeypatch.setattr("peas.tasks.classification._fill", fine_tuned_file)
    small(**FACTS).build(initialise=True)
    with pytest.raises(NoReconstruction, match="no trained pixel head"):
        small(**FACTS, aux_loss_weight=0.1).build(initialise=True)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluation_without_a_checkpoint_says_what_to_add(
    verb: str, sounds: Path, tmp_path: Path
) -> None:
    trainer = quiet_trainer(tmp_path)
    with pytest.raises(ConfigError, match=r"--ckpt_path RUN/checkpoints/best\.ckpt"):
        getattr(trainer, verb)(small(), datamodule=data(sounds))


# --- checkpoints ---------------------------------------------------------------------------


def test_checkpoint_describes_itself(peas_run: Run) -> None:
    content = torch.load(peas_run.checkpoint, weights_only=True)
    settings = content["hyper_parameters"]
    heard = settings["front_end"]["init_args"]
    told = {key: heard[key] if key in heard else settings[key] for key in FACTS}
    assert told == {**FACTS, "frames": 64}
    state = content["state_dict"]
    assert float(state["front_end.mean"]) == pytest.approx(-5.2411)
    assert float(state["front_end.std"]) == pytest.approx(4.1377)
    assert "model.generative_head.2.weight" in state
    assert "model.pretrain_pos_embed" in state
    # The moving average of PEAS is in the callback's state.
    assert not any(name.startswith("auxiliary") for name in state)
    copy = next(c for name, c in content["callbacks"].items() if name.startswith("PEAS"))
    assert set(copy["auxiliary"]["weights"]) == {
        name.removeprefix("model.") for name in state if name.startswith("model.")
    }


def test_checkpoint_alone_turns_sound_into_the_same_scores(peas_run: Run) -> None:
    task = Classification.load_from_checkpoint(
        peas_run.checkpoint, weights_only=True, map_location="cpu"
    )
    sound = clips(3, seconds=0.64)
    for model in (task, peas_run.task):
        model.eval()
    spectrogram = task.front_end(sound["waveform"], sound["length"])
    theirs = peas_run.task.front_end(sound["waveform"], sound["length"])
    with torch.no_grad():
        assert torch.equal(task(spectrogram.log_mel), peas_run.task(theirs.log_mel))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "tiny"),
        ("stride", (10, 10)),
        ("patch", (128, 2)),
        ("pooling", "cls"),
        ("frames", 128),
        ("mean", -4.0),
        ("labels", ["a", "b", "c", "d"]),
    ],
)
def test_checkpoint_of_another_shape_is_refused(peas_run: Run, key: str, value: Any) -> None:
    content = torch.load(peas_run.checkpoint, weights_only=True)
    with pytest.raises(CheckpointError, match=rf"init_args\.{key}` is .*pretrained"):
        small(**{key: value}).on_load_checkpoint(content)


def test_checkpoint_of_other_origin_is_refused() -> None:
    with pytest.raises(CheckpointError, match="pretrained"):
        small().on_load_checkpoint({"state_dict": {}})
    with pytest.raises(CheckpointError, match="Classification"):
        small().on_load_checkpoint({"hyper_parameters": {"lr": 1.0}})


def test_a_run_goes_on_with_changed_settings_and_says_so(
    peas_run: Run, sounds: Path, tmp_path: Path
) -> None:
    task = small(lr=5e-4)
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match=r"recipe\.init_args\.lr: 0\.001 → 0\.0005$"):
        trainer.fit(task, datamodule=data(sounds), ckpt_path=peas_run.checkpoint, weights_only=True)
    assert all(
        torch.equal(value, task.state_dict()[name])
        for name, value in peas_run.task.state_dict().items()
        if name.startswith("model.")
    )


# --- training ------------------------------------------------------------------------------


def test_training_is_the_same_again_and_learns(sounds: Path, tmp_path: Path) -> None:
    runs = [
        fit(sounds, tmp_path / name, epochs=epochs, drop_path=0.1, decay_start=None)
        for name, epochs in (("a", 1), ("b", 1), ("c", 6))
    ]
    first, again, longer = (run.trainer.callback_metrics for run in runs)
    assert first["train/loss"] == again["train/loss"]
    assert longer["train/loss"] < first["train/loss"] - 0.1
    assert 0.9 < float(first["train/loss"]) < 3


def test_head_rate_scales_the_head_group(sounds: Path, tmp_path: Path) -> None:
    run = fit(sounds, tmp_path, lr=1e-4, head_lr_mult=10.0, decay_start=0)
    rates = {g["name"]: g["lr"] for g in run.trainer.optimizers[0].param_groups}
    assert rates == pytest.approx({"encoder": 0.85e-4, "head": 0.85e-3})


def test_noise_and_roll_belong_to_training() -> None:
    for noise in (True, False):
        task = make_task(noise_roll=noise)
        assert ("roll" in heard(task, clips())) == noise
    task = make_task(noise_roll=True)
    task.trainer.training = False
    batch = heard(task, clips())
    assert "roll" not in batch
    assert torch.equal(batch["log_mel"], task.front_end(batch["waveform"], batch["length"])[0])


def test_soft_targets_of_mixed_clips_reach_the_loss() -> None:
    task = make_task()
    batch = heard(task, clips(2))
    batch["target"] = torch.tensor([[0.0, 0.3, 0.7, 0.0], [1.0, 0.0, 0.0, 0.0]])
    loss = task.training_step(batch, 0)
    with torch.no_grad():
        log_p = task.model(batch["log_mel"]).log_softmax(1)
    wanted = -(0.3 * log_p[0, 1] + 0.7 * log_p[0, 2] + log_p[1, 0]) / 2
    torch.testing.assert_close(loss, wanted)


def test_best_epoch_is_the_one_of_highest_accuracy_or_map() -> None:
    assert Classification.monitor(False) == ("val/accuracy", "max")
    assert Classification.monitor(True) == ("val/mAP", "max")


def test_label_smoothing_is_of_the_training_loss_alone() -> None:
    losses = {}
    for smoothing in (0.0, 0.1):
        task = make_task(label_smoothing=smoothing, noise_roll=False)
        batch = heard(task, clips())
        with torch.no_grad():
            logits = task(batch["log_mel"])
            got = task.training_step(batch, 0)
        wanted = F.cross_entropy(logits, batch["target"], label_smoothing=smoothing)
        torch.testing.assert_close(got, wanted)
        with torch.no_grad():
            task.validation_step(batch, 0)
        losses[smoothing] = task.evaluation_loss.compute()
    assert losses[0.0] == losses[0.1]
