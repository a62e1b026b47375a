"""AudioMAE's recipe, frozen encoders, and every strategy on both families."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from made import built_audiomae, classification
from toys import FACTS, Run, StandIn, clips, data, fit, quiet_trainer

from peas.callbacks import PEAS, PatchDropout, RandomMasking, SpecAugment
from peas.errors import CheckpointError, ConfigError, NoReconstruction
from peas.models.audiomae_layers import DecoderShape
from peas.recipes import AudioMAERecipe, SSASTRecipe
from peas.tasks import Classification

RECIPE: dict[str, Any] = {
    "encoder": "audiomae",
    "stride": None,
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr": 0.1,
    "base_batch_size": 256,
    "layer_decay": 0.75,
    "weight_decay": 5e-4,
    "betas": (0.9, 0.999),
    "warmup_epochs": 1,
    "drop_path": 0.1,
    "noise_roll": False,
    "roll_gain": "paper",
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small AudioMAE with a decoder, of clips twice as long as the sounds."""
    torch.manual_seed(5)
    model = built_audiomae("toy", frames=128, decoder=DecoderShape("local", 32, 2, 2))
    path = tmp_path_factory.mktemp("weights") / "mae.pth"
    torch.save(model.state_dict(), path)
    return path


def small(**settings: Any) -> Classification:
    return classification(**{"pretrained": None, "size": "toy", "stride": (16, 16), **settings})


def weights(task: Classification) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


# --- recipe --------------------------------------------------------------------------------


def test_strides_of_the_families() -> None:
    for settings, stride in (
        ({"stride": None}, (10, 10)),
        ({"stride": None, "encoder": "audiomae"}, (16, 16)),
        ({"stride": (12, 12), "encoder": "audiomae"}, (12, 12)),
    ):
        task = small(**FACTS, **settings)
        task.build(initialise=False)
        assert task.model.stride == stride
        assert task.model.spec()["init_args"]["stride"] == list(stride)


def test_rate_of_every_step(
    sounds: Path, tmp_path: Path, printed: pytest.LogCaptureFixture
) -> None:
    run = fit(sounds, tmp_path, epochs=3, **RECIPE)
    rate = 0.1 * 8 / 256
    assert (
        f"base lr 0.1, global batch 8 = 8 clips x 1 processes x 1 accumulated, resulting lr {rate}"
        in printed.text
    )
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        # Without the rows of an epoch's end.
        rows = [row for row in csv.DictReader(file) if row["lr"] and not row["train/loss"]]
    rates = [float(row["lr"]) for row in rows]
    steps = len(rates) // 3
    assert steps == run.trainer.num_training_batches > 2
    for step, got in enumerate(rates):
        at = step / steps
        share = 0.5 * (1 + math.cos(math.pi * (at - 1) / 2))
        wanted = rate * at if at < 1 else 1e-6 + (rate - 1e-6) * share
        assert got == pytest.approx(wanted, rel=1e-5)
    groups = run.trainer.optimizers[0].param_groups
    # Two blocks: four layers, each with and without decay.
    assert len(groups) == 8
    assert {group["name"] for group in groups} >= {"layer_0_decay", "layer_3_no_decay"}
    assert groups[-1]["base_lr"] == pytest.approx(rate * 0.75**3)
    assert run.trainer.optimizers[0].defaults["betas"] == (0.9, 0.999)


def test_processes_and_accumulation_count_for_the_rate() -> None:
    trainer = StandIn(world_size=4, accumulate_grad_batches=3, num_training_batches=10)
    task = small(**FACTS, **RECIPE)
    trainer.datamodule = data(Path("sounds"), batch_size=8)
    task._trainer = trainer  # type: ignore[assignment]
    assert task.global_batch == 96
    assert task.rate == pytest.approx(0.1 * 96 / 256)
    # Four optimiser steps an epoch: the last one has a single batch.
    assert task.length.steps_per_epoch == 4


def test_a_cosine_needs_its_end_and_a_rate_above_the_least() -> None:
    task = small(**{**FACTS, **RECIPE, "base_batch_size": None, "lr": 1e-6})
    task.build(initialise=False)
    task._trainer = StandIn(max_epochs=-1)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs` is not set"):
        task.configure_optimizers()
    task._trainer = StandIn(max_epochs=5)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"min_lr` is 1e-06 .* 1e-06, so the rate would rise"):
        task.configure_optimizers()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**RECIPE, "layer_decay": 1.5}, r"recipe\.init_args\.layer_decay` is 1\.5: give a number"),
        ({**RECIPE, "layer_decay": 0.0}, r"recipe\.init_args\.layer_decay` is 0\.0: give a number"),
        ({**RECIPE, "warmup_epochs": -1.0}, r"warmup_epochs` is -1\.0: give 0 or more"),
        ({**RECIPE, "min_lr": float("nan")}, r"min_lr` is nan: give 0 or more"),
        ({"optimizer": "adamw"}, r"optimizer: adamw.*schedule: staircase.*init_args\.recipe`"),
        ({"label_smoothing": 1.0}, r"label_smoothing` is 1\.0"),
        ({"label_smoothing": 0.1, "loss": "bce"}, r"label_smoothing` is 0\.1.*bce"),
        ({"freeze": "encoder", "aux_loss_weight": 0.1}, r"freeze`: encoder.*aux_loss_weight"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**settings)


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        (SSASTRecipe, "layer_decay"),
        (SSASTRecipe, "warmup_epochs"),
        (AudioMAERecipe, "head_lr_mult"),
        (AudioMAERecipe, "warmup_steps"),
    ],
)
def test_a_recipe_takes_no_setting_of_another(recipe: Any, key: str) -> None:
    with pytest.raises(TypeError, match=key):
        recipe(**{key: 1})


def test_resumed_run_equals_the_unbroken_one(
    sounds: Path, tmp_path: Path, pretrained: Path
) -> None:
    def train(folder: Path, start: Path | None) -> Classification:
        torch.manual_seed(0)
        task = small(**RECIPE, pretrained=str(pretrained))
        keeper = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = quiet_trainer(
            folder,
            max_epochs=3,
            enable_checkpointing=True,
            callbacks=[keeper, PatchDropout(), SpecAugment(20, 24)],
        )
        trainer.fit(task, datamodule=data(sounds), ckpt_path=start, weights_only=True)
        return task

    unbroken = train(tmp_path / "whole", None)
    torch.manual_seed(99)
    resumed = train(tmp_path / "again", tmp_path / "whole" / "epoch=0.ckpt")
    assert resumed.model.decoder is not None
    wanted = unbroken.state_dict()
    assert wanted.keys() == resumed.state_dict().keys()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, wanted[name]), name


# --- families ------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["ssast", "audiomae"])
@pytest.mark.parametrize("strategy", ["spec_augment", "random", "peas", "dropping", "both"])
def test_every_strategy_works_on_both_families(
    encoder: str, strategy: str, sounds: Path, tmp_path: Path, pretrained: Path
) -> None:
    callbacks = {
        "spec_augment": [SpecAugment(20, 24)],
        "random": [RandomMasking(2, 2, 20, 24)],
        "peas": [PEAS(2, 2, 20, 24, ramp="off", aux_input_mask="complementary")],
        "dropping": [PatchDropout()],
        "both": [PatchDropout(), PEAS(1, 1, 20, 24, ramp="off", aux_grid="finetune")],
    }[strategy]
    file = str(pretrained) if encoder == "audiomae" else None
    run = fit(sounds, tmp_path, *callbacks, encoder=encoder, pretrained=file, drop_path=0.1)
    metrics = run.trainer.callback_metrics
    assert 0.5 < float(metrics["train/loss"]) < 4
    if strategy != "dropping":
        assert 0 < float(metrics["mask/fraction"]) < 1
    if "peas" in strategy or strategy == "both":
        assert float(metrics["peas/e_rec"]) > 0
        assert float(metrics["mask/adaptive_share"]) == 1


def test_audiomae_without_a_decoder_cannot_serve_peas(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(NoReconstruction, match="no trained pixel head"):
        fit(sounds, tmp_path, PEAS(1, 1, 20, 24), encoder="audiomae")
    fit(sounds, tmp_path, PEAS(1, 1, 20, 24, score="energy", ramp="off"), encoder="audiomae")


def test_errors_of_an_earlier_epoch_do_not_fit_a_clip_that_is_rolled(
    sounds: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"refresh_every` is 2.*roll_gain: paper"):
        fit(sounds, tmp_path, PEAS(1, 1, 20, 24, refresh_every=2), roll_gain="paper")


def test_pretrained_decoder_is_kept_frozen_and_travels_with_the_checkpoint(
    sounds: Path, tmp_path: Path, pretrained: Path
) -> None:
    run = fit(sounds, tmp_path, **RECIPE, pretrained=str(pretrained))
    before = torch.load(pretrained, weights_only=True)
    after = run.task.model.state_dict()
    decoder = [name for name in before if name.startswith("decoder.") and "pos" not in name]
    assert len(decoder) > 10
    assert all(torch.equal(after[name], before[name]) for name in decoder)
    assert not torch.equal(
        after["encoder.blocks.0.attn.qkv.weight"], before["encoder.blocks.0.attn.qkv.weight"]
    )
    task = Classification.load_from_checkpoint(
        run.checkpoint, weights_only=True, map_location="cpu"
    )
    x = torch.randn(2, 64, 128)
    for model in (task, run.task):
        model.eval()
    with torch.no_grad():
        assert torch.equal(task.model.reconstruct(x), run.task.model.reconstruct(x))
        assert torch.equal(task(x), run.task(x))
    # A new run starts from it too, decoder included.
    again = small(**FACTS | {"frames": 64}, encoder="audiomae", pretrained=str(run.checkpoint))
    again.build(initialise=True)
    again.eval()
    assert torch.equal(again.model.reconstruct(x), run.task.model.reconstruct(x))


def test_auxiliary_loss_trains_the_decoder_through_a_resumption(
    sounds: Path, tmp_path: Path, pretrained: Path
) -> None:
    settings: dict[str, Any] = {**RECIPE, "pretrained": str(pretrained), "aux_loss_weight": 0.5}
    run = fit(sounds, tmp_path, **settings)
    before = torch.load(pretrained, weights_only=True)["decoder.pred.weight"]
    once = run.task.model.decoder.pred.weight.clone()
    assert not torch.equal(once, before)
    task = small(**settings)
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(task, datamodule=data(sounds), ckpt_path=run.checkpoint, weights_only=True)
    assert not torch.equal(task.model.decoder.pred.weight, once)


@pytest.fixture(scope="module")
def ssast_run(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(sounds, tmp_path_factory.mktemp("ssast_run"))


@pytest.mark.parametrize(("ours", "theirs"), [("SSAST", "AudioMAE"), ("AudioMAE", "SSAST")])
def test_checkpoint_of_the_other_family_is_refused(ours: str, theirs: str, ssast_run: Run) -> None:
    content = torch.load(ssast_run.checkpoint, weights_only=True)
    content["hyper_parameters"]["encoder"]["class_path"] = f"peas.models.{theirs}"
    said = rf"init_args\.encoder\.class_path` is 'peas\.models\.{ours}'.*'peas\.models\.{theirs}'"
    with pytest.raises(CheckpointError, match=said):
        small(encoder=ours.lower()).on_load_checkpoint(content)


def test_checkpoint_of_before_there_were_families_is_ssasts(ssast_run: Run) -> None:
    content = torch.load(ssast_run.checkpoint, weights_only=True)
    settings = content["hyper_parameters"]
    flat = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    for name in ("encoder", "front_end", "recipe"):
        flat |= settings[name]["init_args"]
    flat |= settings["augmentation"]
    for key in ("freeze", "roll_gain", "base_batch_size", "channels", "reconstruction"):
        del flat[key]
    content["hyper_parameters"] = dict(flat)
    task = small()
    task.on_load_checkpoint(content)
    task.load_state_dict(content["state_dict"])
    content["hyper_parameters"] = flat
    with pytest.raises(CheckpointError, match="encoder"):
        small(encoder="audiomae").on_load_checkpoint(content)


# --- frozen --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["ssast", "audiomae"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_frozen_encoder_stays_bit_for_bit(
    encoder: str, optimizer: str, sounds: Path, tmp_path: Path, pretrained: Path
) -> None:
    file = str(pretrained) if encoder == "audiomae" else None
    settings: dict[str, Any] = {"encoder": encoder, "optimizer": optimizer, "pretrained": file}
    if optimizer == "adamw":
        settings["schedule"] = "cosine"
    run = fit(sounds, tmp_path, freeze="encoder", drop_path=0.5, lr=0.01, **settings)
    torch.manual_seed(0)
    fresh = small(**FACTS | {"frames": 64}, freeze="encoder", drop_path=0.5, **settings)
    fresh.build(initialise=True)
    before, after = weights(fresh), weights(run.task)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    trained = {name for name, p in run.task.model.named_parameters() if p.requires_grad}
    assert trained == moved
    assert not run.task.model.encoder.training
    run.task.train()
    assert run.task.training
    assert not run.task.model.encoder.training
    held = sum(len(group["params"]) for group in run.trainer.optimizers[0].param_groups)
    assert held == 4


def test_features_of_a_frozen_encoder_have_no_gradient_and_no_chance() -> None:
    task = small(**FACTS, freeze="encoder", drop_path=0.9, encoder="audiomae")
    task.build(initialise=False)
    task.train()
    task._trainer = StandIn()  # type: ignore[assignment]
    x = task.front_end(clips(2)["waveform"]).log_mel
    torch.nn.init.normal_(task.model.head.weight)
    assert torch.equal(task(x), task(x))
    task(x).sum().backward()
    with_gradient = {name for name, p in task.model.named_parameters() if p.grad is not None}
    assert with_gradient == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
