"""Encoders, maskings, objectives, passes and recipes go together as anybody may put them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from target_toys import ToyTeacher
from toys import data, quiet_trainer

from peas.audio import BEATsLogMel
from peas.errors import ConfigError
from peas.masking import ClusteredPatches, PatchMasking, RandomPatches, StructuredPatches
from peas.models import EAT, SSAST, AudioMAE, BEATs, Encoder
from peas.objectives import (
    FeatureDistillation,
    LabelClassification,
    Objective,
    PatchContrast,
    Reconstruction,
)
from peas.recipes import (
    AudioMAEPretrainingRecipe,
    AudioMAERecipe,
    Recipe,
    SSASTPretrainingRecipe,
    SSASTRecipe,
)
from peas.tasks import Classification, Pretraining

ENCODERS: dict[str, Any] = {"SSAST": SSAST, "BEATs": BEATs, "EAT": EAT}


def encoder(name: str) -> Encoder:
    if name in ENCODERS:
        return ENCODERS[name]("toy")
    return AudioMAE("toy", decoder_width=32, decoder_depth=1, decoder_heads=2)  # type: ignore[arg-type]


def objectives(name: str) -> dict[str, Objective | None]:
    return {
        "reconstruction": Reconstruction(norm_pix=name == "AudioMAE"),
        "contrast": PatchContrast(),
        "distillation": FeatureDistillation(teacher=ToyTeacher()),
        "classification": LabelClassification(norm="none"),
    }


MASKINGS: dict[str, PatchMasking] = {
    "random": RandomPatches(0.5),
    "structured": StructuredPatches(0.5, 0.5),
    "clusters": ClusteredPatches(15),
}


@pytest.mark.parametrize("passes", ["shared", "separate"])
@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("name", ["SSAST", "AudioMAE"])
def test_every_objective_trains_on_every_encoder(
    name: str, masking: str, passes: Any, sounds: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    recipe: Recipe = SSASTPretrainingRecipe(warmup_steps=0, plateau_every=1)
    if name == "AudioMAE":
        recipe = AudioMAEPretrainingRecipe(warmup_epochs=0)
    task = Pretraining(
        encoder=encoder(name),
        masking=MASKINGS[masking],
        objectives=objectives(name),
        passes=passes,
        recipe=recipe,
        grad_norm_every=1,
    )
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    trainer.fit(task, datamodule=data(sounds))
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    named = {f"{stage}/{key}" for stage in ("train", "val") for key in objectives(name)}
    assert found.keys() >= named | {f"grad/{key}" for key in objectives(name)}
    assert all(value == value for value in found.values()), found
    # An objective that nothing of the encoder learns from would be a slip of the wiring.
    assert all(found[f"grad/{key}"] > 0 for key in objectives(name))


@pytest.mark.parametrize("masking", MASKINGS)
@pytest.mark.parametrize("name", ["BEATs", "EAT"])
def test_labels_train_an_encoder_without_a_pixel_head(
    name: str, masking: str, sounds: Path, tmp_path: Path
) -> None:
    task = Pretraining(
        encoder=encoder(name),
        masking=MASKINGS[masking],
        objectives={"classification": LabelClassification(norm="none")},
        recipe=AudioMAEPretrainingRecipe(warmup_epochs=0),
    )
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    trainer.fit(task, datamodule=data(sounds))
    assert float(trainer.callback_metrics["val/classification"]) > 0
    moments = trainer.optimizers[0].state
    parameters = dict(task.model.named_parameters())
    idle = {key for key, p in parameters.items() if not moments[p]["exp_avg"].any()}
    assert not idle
    refused = Pretraining(
        encoder=encoder(name), objectives={"reconstruction": Reconstruction(norm_pix=False)}
    )
    with pytest.raises(ConfigError, match=rf"model\.init_args\.encoder`: {name}"):
        quiet_trainer(tmp_path, max_epochs=1).fit(refused, datamodule=data(sounds))


@pytest.mark.parametrize("name", ["BEATs", "EAT"])
def test_a_resumed_run_of_an_encoder_equals_a_whole_one(
    name: str, sounds: Path, tmp_path: Path
) -> None:
    def go(start: Path | None = None) -> Classification:
        torch.manual_seed(0)
        task = Classification(
            pretrained=None,
            encoder=encoder(name),
            front_end=BEATsLogMel() if name == "BEATs" else None,
            recipe=AudioMAERecipe(warmup_epochs=0),
        )
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[keep], enable_checkpointing=True)
        trainer.fit(task, datamodule=data(sounds), ckpt_path=start, weights_only=True)
        return task

    whole = go().state_dict()
    for key, value in go(tmp_path / "epoch=0.ckpt").state_dict().items():
        assert torch.equal(whole[key], value), key


@pytest.mark.parametrize("recipe", [SSASTRecipe(), AudioMAERecipe(warmup_epochs=0)])
@pytest.mark.parametrize("name", ["SSAST", "AudioMAE", "BEATs", "EAT"])
def test_either_recipe_fine_tunes_either_encoder(
    name: str, recipe: Recipe, sounds: Path, tmp_path: Path
) -> None:
    task = Classification(pretrained=None, encoder=encoder(name), recipe=recipe)
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    trainer.fit(task, datamodule=data(sounds))
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in task.model.parameters() if p.requires_grad}


def test_features_reach_the_patches_they_lie_at(sounds: Path, tmp_path: Path) -> None:
    """Targets follow the order of the tokens: those of SSAST are AudioMAE's in another order."""
    found = {}
    for name in ("SSAST", "AudioMAE"):
        task = Pretraining(
            encoder=encoder(name),
            objectives={"features": FeatureDistillation(teacher=ToyTeacher())},
            recipe=AudioMAEPretrainingRecipe(warmup_epochs=0),
            masking=RandomPatches(0.5),
        )
        trainer = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=1)
        trainer.fit(task, datamodule=data(sounds))
        batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
        trainer.training = True
        batch = task.on_after_batch_transfer(batch, 0)
        rows = task.losses(batch, "val").terms["features"].rows
        assert rows is not None
        found[name] = rows.targets
    rows_, columns = 8, found["SSAST"].shape[1] // 8
    by_time = found["SSAST"].view(-1, rows_, columns, 3).transpose(1, 2).flatten(1, 2)
    assert torch.equal(by_time, found["AudioMAE"])


def test_ssast_predicts_log_mels_as_they_are() -> None:
    with pytest.raises(ConfigError, match=r"objectives\.mse\.init_args\.norm_pix"):
        Pretraining(encoder=encoder("SSAST"), objectives={"mse": Reconstruction(norm_pix=True)})


def test_an_objective_is_not_left_out_under_a_misspelt_name() -> None:
    given = {"reconstruction": Reconstruction(), "reconstuction": None}
    with pytest.raises(ConfigError, match=r"objectives\.reconstuction.*`reconstruction`"):
        Pretraining(objectives=given)
    given = {"mse": Reconstruction(), "nce": None, "distillation": None}
    assert list(Pretraining(objectives=given).parts) == ["mse"]
