"""The pretraining task of SSAST: settings, figures that compare, resumption, hand-over."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from made import built_ssast, classification, ssast_task
from toys import FACTS, StandIn, clips, data, heard, quiet_trainer

from peas.callbacks import PEAS, SpecAugment
from peas.data.esc50 import ESC50
from peas.data.librispeech import LibriSpeech
from peas.data.mixture import Mixture
from peas.errors import CheckpointError, ConfigError, NoReconstruction
from peas.models.weights import SSAST, load_pretrained
from peas.objectives.base import Losses
from peas.recipes import SSASTPretrainingRecipe
from peas.recipes.ssast import Plateau
from peas.tasks import Pretraining

FEW: dict[str, Any] = {"size": "toy", "masked": 20, "eval_masked": None, "warmup_steps": 0}
KEYS = {"loss", "nce", "nce_accuracy", "mse", "valid_mse", "baseline_mse"}


def small(**settings: Any) -> Pretraining:
    return ssast_task(**{**FEW, "lr": 1e-3, **settings})


def built(**settings: Any) -> Pretraining:
    torch.manual_seed(3)
    task = small(**{**FACTS, **settings})
    task.build(initialise=False)
    task._trainer = StandIn()  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return task


def plateau(task: Pretraining) -> Plateau:
    assert isinstance(task.recipe, SSASTPretrainingRecipe)
    return task.recipe.plateau


def fit(
    sounds: Path, folder: Path, *callbacks: Any, start: Path | None = None, **settings: Any
) -> tuple[Pretraining, Trainer]:
    trainer_keys = ("max_epochs", "val_check_interval", "limit_train_batches")
    given = {key: settings.pop(key) for key in trainer_keys if key in settings}
    torch.manual_seed(0)
    task = small(**settings)
    trainer = quiet_trainer(
        folder,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        num_sanity_val_steps=0,
        **{"max_epochs": 1, **given},
    )
    trainer.fit(task, datamodule=data(sounds), ckpt_path=start, weights_only=True)
    return task, trainer


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masked": 0}, r"model\.init_args\.masking`: .*num_masked` is 0\b.*1 to 62"),
        ({"masked": 64}, r"model\.init_args\.masking`: .*num_masked` is 64\b.*1 to 62.*8 x 8"),
        ({"eval_masked": 400}, r"eval_masking`: .*num_masked` is 400\b.*null = as `masking`"),
        ({"sampler": "some"}, r"init_args\.sampler` is 'some'"),
        ({"sides": (0,)}, r"init_args\.sides"),
        ({"frames": 100}, r"`frames` is 100, which is no multiple of the patch's 16 frames"),
        ({"size": "huge"}, "unknown model size 'huge'"),
        ({"patch": (16, 0)}, "no multiple of the patch's 0 frames"),
    ],
)
def test_impossible_shapes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nce_axis": "row"}, r"PatchContrast\.init_args\.axis` is 'row': .* code, paper"),
        ({"lr": 0.0}, r"recipe\.init_args\.lr` is 0\.0: it must be positive"),
        ({"mse_weight": -1.0}, r"objectives\.mse\.init_args\.weight` is -1\.0"),
        ({"plateau_every": 0}, r"recipe\.init_args\.plateau_every` is 0: .*null"),
        ({"plateau_factor": 0.0}, r"recipe\.init_args\.plateau_factor` is 0\.0"),
    ],
)
def test_impossible_settings_name_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_an_unknown_number_of_passes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"passes` is 'both': choose one of shared, separate"):
        Pretraining(passes="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["eval_patch_masking", "patch_masking"])
def test_unbiased_masks_may_hide_all_but_one(key: str) -> None:
    for settings in ({"sampler": "unbiased"}, {"patch": (128, 2)}):
        task = built(masked=63, **settings)
        assert getattr(task, key).visible(task.model.grid) == 1
    assert task.model.grid == (1, 64)


def test_the_best_checkpoint_is_chosen_by_what_is_trained() -> None:
    assert small().monitor(False) == ("val/nce_accuracy", "max")
    assert small(objective="discriminative").monitor(False) == ("val/nce_accuracy", "max")
    assert small(objective="generative").monitor(True) == ("val/mse", "min")


def test_masks_of_fine_tuning_are_refused(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`masking` .*`model\.init_args\.masking`"):
        fit(sounds, tmp_path, SpecAugment(20, 24))


# --- the rate ------------------------------------------------------------------------------


def test_the_rate_climbs_stairs_and_falls_on_plateaus() -> None:
    task = built(warmup_steps=1000, plateau_every=4000)
    rate, wanted = 1.0, []
    for step in range(1200):
        # The official loop sets the rate at every 50th step up to the 1000th.
        if step <= 1000 and step % 50 == 0:
            rate = step / 1000
        wanted.append(rate)
    assert [task.lr_factor(step, 0) for step in range(1200)] == pytest.approx(wanted, abs=1e-12)
    task.recipe.load_state_dict(plateau(task)._replace(factor=0.25)._asdict())
    assert task.lr_factor(5000, 9) == 0.25


def test_a_plateau_halves_the_rate(sounds: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"plateau_every": 2, "plateau_patience": 0, "val_check_interval": 2}
    # At a rate of nearly zero nothing gets better: the first of six evaluations stays the best.
    task, trainer = fit(sounds, tmp_path, max_epochs=3, lr=1e-12, **settings)
    assert plateau(task).factor == 0.5**5
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-12 * 0.5**4
    task, _ = fit(sounds, tmp_path, max_epochs=3, lr=1e-12, **settings | {"plateau_every": None})
    assert plateau(task).factor == 1.0


# --- the pretext task ----------------------------------------------------------------------


def masked_at(losses: Losses) -> torch.Tensor:
    return losses.views["mse"].masked_at


def test_two_passes_have_masks_of_their_own() -> None:
    task = built()
    batch, seen = heard(task, clips(4)), []
    forward = task.model.forward_features

    def spy(log_mel: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return forward(log_mel, hidden)

    task.model.forward_features = spy  # type: ignore[method-assign, assignment]
    task.losses(batch, "train")
    assert len(seen) == 2
    assert not torch.equal(*seen)
    task.hparams["passes"] = "shared"
    task.losses(batch, "train")
    assert len(seen) == 3
    assert torch.equal(seen[2], seen[1])
    assert all((hidden.sum(1) == 20).all() for hidden in seen)


def test_the_loss_is_info_nce_and_ten_times_the_error() -> None:
    task = built()
    batch = heard(task, clips(4))
    joint = task.losses(batch, "train")
    nce, mse = (joint.terms[key].loss for key in ("nce", "mse"))
    torch.testing.assert_close(joint.total, nce + 10 * mse)
    for objective, key, wanted in (("discriminative", "nce", nce), ("generative", "mse", mse)):
        alone = built(objective=objective).losses(batch, "train")
        assert alone.terms.keys() == {key}
        torch.testing.assert_close(alone.total, wanted)
        torch.testing.assert_close(alone.terms[key].loss, wanted)


def test_hidden_patches_are_not_seen() -> None:
    task = built(passes=1)
    batch = heard(task, clips(2))
    losses = task.losses(batch, "train")
    rows = losses.terms["mse"].rows
    assert rows is not None
    hidden = torch.zeros(2, 64).scatter(1, masked_at(losses), 1.0).view(2, 8, 8)
    cells = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2).transpose(1, 2).bool()
    before = task.model.reconstruct(batch["log_mel"], hidden.flatten(1).bool())
    other = torch.where(cells, torch.randn_like(batch["log_mel"]), batch["log_mel"])
    after = task.model.reconstruct(other, hidden.flatten(1).bool())
    torch.testing.assert_close(before, after)
    wanted = (before - batch["log_mel"])[cells].square().mean()
    torch.testing.assert_close(rows.errors.mean(), wanted, rtol=1e-4, atol=1e-5)


def test_masks_of_evaluation_belong_to_the_clip() -> None:
    task = built()
    whole = heard(task, clips(4))
    ids = masked_at(task.losses(whole, "val"))
    task.trainer.current_epoch = 7
    alone = heard(task, clips(4))
    for key in ("log_mel", "row"):
        alone[key] = alone[key][2:]  # type: ignore[literal-required]
    alone["id"] = alone["id"][2:]
    assert torch.equal(masked_at(task.losses(alone, "val")), ids[2:])
    train = [masked_at(task.losses(whole, "train")) for _ in range(2)]
    assert torch.equal(*train)
    task.trainer.current_epoch = 8
    assert not torch.equal(masked_at(task.losses(whole, "train")), train[0])


@pytest.mark.parametrize("sampler", ["official", "batched", "unbiased"])
@pytest.mark.parametrize("patch", [(16, 16), (128, 2)])
def test_every_sampler_serves_both_shapes(sampler: str, patch: tuple[int, int]) -> None:
    task = built(sampler=sampler, patch=patch, sides=(2, 3))
    loss = task.training_step(heard(task, clips(3)), 0)
    loss.backward()
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)


# --- runs ----------------------------------------------------------------------------------


def test_it_learns_and_says_how_well(sounds: Path, tmp_path: Path) -> None:
    begun, trainer = fit(sounds, tmp_path, lr=1e-12)
    first = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert {f"val/{key}" for key in KEYS} <= first.keys()
    assert {f"train/{key}" for key in ("loss", "nce", "nce_accuracy", "mse")} <= first.keys()
    assert first["val/nce"] == pytest.approx(np.log(20), abs=0.3)
    # The same clips with the same masks give the same figures.
    again = trainer.validate(begun, datamodule=data(sounds, eval_batch_size=3), verbose=False)[0]
    for key in KEYS:
        assert again[f"val/{key}"] == pytest.approx(first[f"val/{key}"], rel=1e-4, abs=1e-6)
    learnt, trainer = fit(sounds, tmp_path, max_epochs=12, passes=1)
    last = trainer.callback_metrics
    assert float(last["val/nce"]) < first["val/nce"] - 0.1
    assert float(last["val/valid_mse"]) < first["val/valid_mse"]
    assert float(last["val/baseline_mse"]) == pytest.approx(first["val/baseline_mse"], rel=1e-3)
    tested = trainer.test(learnt, datamodule=data(sounds), verbose=False)[0]
    assert tested["test/nce_accuracy"] == pytest.approx(float(last["val/nce_accuracy"]))
    with pytest.raises(ConfigError, match="nothing to predict"):
        trainer.predict(learnt, datamodule=data(sounds))


@pytest.mark.parametrize("place", ["epoch", "inside"])
def test_a_resumed_run_equals_the_unbroken_one(place: str, sounds: Path, tmp_path: Path) -> None:
    inside = place == "inside"
    settings: dict[str, Any] = {
        "max_epochs": 3,
        "plateau_every": 2,
        "plateau_patience": 0,
        "val_check_interval": 2,
        "lr": 0.02,
    }

    def keeper(folder: Path) -> ModelCheckpoint:
        return ModelCheckpoint(
            folder,
            "{step}",
            save_top_k=-1,
            monitor="val/mse",
            save_on_train_epoch_end=not inside,
        )

    whole, first = fit(sounds, tmp_path / "whole", keeper(tmp_path / "whole"), **settings)
    start = tmp_path / "whole" / f"step={2 if inside else 4}.ckpt"
    torch.manual_seed(99)
    again, second = fit(
        sounds, tmp_path / "again", keeper(tmp_path / "again"), start=start, **settings
    )
    # The schedule has something to remember, or this would test nothing.
    assert 0 < plateau(whole).factor < 1
    assert plateau(again) == plateau(whole)
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    for key, value in first.callback_metrics.items():
        assert float(second.callback_metrics[key]) == float(value), key


def test_clips_need_no_classes(tmp_path: Path) -> None:
    for subset in ("train-clean-100", "dev-clean"):
        folder = tmp_path / subset / "1" / "2"
        folder.mkdir(parents=True)
        for clip in range(4):
            noise = np.random.default_rng(clip).uniform(-0.5, 0.5, 10_240)
            soundfile.write(folder / f"1-2-{clip:04}.wav", noise, 16_000)
    keys: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "cache_dir": ""}
    speech = {"subsets": ("train-clean-100",), "test": (), "frames": 64, **keys}
    for module in (
        LibriSpeech(str(tmp_path), **speech),
        Mixture([LibriSpeech(str(tmp_path), **speech)], num_workers=0, batch_size=2),
    ):
        task = small()
        trainer = quiet_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
        trainer.fit(task, datamodule=module)
        assert task.hparams["labels"] == []
        assert float(trainer.callback_metrics["val/mse"]) > 0


def test_data_of_other_classes_is_scored_too(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, trainer = fit(sounds, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    wanted = trainer.validate(task, datamodule=data(sounds), verbose=False)[0]
    monkeypatch.setattr(ESC50, "labels", ["p", "q", "r", "s"])
    found = quiet_trainer(tmp_path).validate(
        small(),
        datamodule=data(sounds),
        ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
        verbose=False,
    )[0]
    assert found == pytest.approx(wanted)


# --- hand-over -----------------------------------------------------------------------------


def test_what_was_pretrained_is_fine_tuned_with_peas(sounds: Path, tmp_path: Path) -> None:
    task, trainer = fit(sounds, tmp_path)
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    tuned = classification(pretrained=str(file), size="toy", stride=(10, 10), lr=1e-3)
    tuner = quiet_trainer(tmp_path, max_epochs=1, callbacks=[PEAS(1, 1, 20, 24, ramp="off")])
    tuner.fit(tuned, datamodule=data(sounds))
    assert float(tuner.callback_metrics["peas/e_rec"]) > 0
    # Before a step of fine-tuning, it draws what the pretraining model draws.
    fresh = built_ssast("toy", num_classes=4, frames=64, stride=(10, 10))
    load_pretrained(fresh, file)
    x = torch.randn(2, 64, 128)
    with torch.no_grad():
        torch.testing.assert_close(fresh.reconstruct(x), task.model.reconstruct(x))


def test_a_head_that_was_not_trained_draws_nothing(sounds: Path, tmp_path: Path) -> None:
    task, trainer = fit(sounds, tmp_path, objective="discriminative")
    assert "val/mse" not in trainer.callback_metrics
    assert not any(p.requires_grad for p in task.model.generative_head.parameters())
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    tuned = built_ssast("toy", num_classes=4, frames=64, stride=(10, 10))
    load_pretrained(tuned, file)
    torch.testing.assert_close(tuned.encoder.norm.weight, task.model.encoder.norm.weight)
    for model in (task.model, tuned):
        with pytest.raises(NoReconstruction, match="no trained pixel head"):
            model.reconstruct(torch.randn(1, 64, 128))
    # It is trained as soon as an objective asks for it.
    _, trainer = fit(sounds, tmp_path, objective="generative", pretrained=str(file))
    assert "val/nce" not in trainer.callback_metrics
    assert float(trainer.callback_metrics["val/mse"]) > 0


def test_pretraining_goes_on_from_an_official_file(sounds: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = built_ssast("toy", frames=1024)
    state = SSAST.to_official(source.state_dict())
    torch.save(state, tmp_path / "official.pth")
    task, _ = fit(sounds, tmp_path, lr=1e-12, pretrained=str(tmp_path / "official.pth"))
    ours = task.model.encoder.blocks[0].attn.qkv.weight
    torch.testing.assert_close(ours, source.encoder.blocks[0].attn.qkv.weight)
    # Positions are cut from the middle of 64 columns to the 4 of 64 frames.
    table = source.encoder.pos_embed[:, 2:].view(1, 8, 64, 32)[:, :, 30:34].reshape(1, 32, 32)
    torch.testing.assert_close(task.model.encoder.pos_embed[:, 2:], table)


def test_checkpoints_of_other_tasks_are_refused(sounds: Path, tmp_path: Path) -> None:
    _, trainer = fit(sounds, tmp_path)
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    classifier = classification(pretrained=None, size="toy", stride=(16, 16))
    with pytest.raises(CheckpointError, match=r"no settings of Classification.*pretrained"):
        classifier.on_load_checkpoint(content)
    with pytest.raises(CheckpointError, match=r"objectives\.nce` .*pretrained"):
        fit(sounds, tmp_path, start=file, objective="generative")
    for settings in (classifier.hparams, {**FACTS, "size": "toy"}):
        with pytest.raises(CheckpointError, match="no settings of Pretraining"):
            small().on_load_checkpoint({"hyper_parameters": dict(settings)})
