"""Encoders, maskings, objectives, passes and recipes go together as anybody may put them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from target_toys import ToyTeacher
from toys import data, quiet_trainer

from peas.errors import ConfigError
from peas.masking import ClusteredPatches, PatchMasking, RandomPatches, StructuredPatches
from peas.models import SSAST, AudioMAE, Encoder
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


def encoder(name: str) -> Encoder:
    if name == "SSAST":
        return SSAST("toy")  # type: ignore[arg-type]
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


@pytest.mark.parametrize("recipe", [SSASTRecipe(), AudioMAERecipe(warmup_epochs=0)])
@pytest.mark.parametrize("name", ["SSAST", "AudioMAE"])
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
