"""Settings of release 0.1 are read as those of this one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peas.errors import ConfigError
from peas.utils import migration

CONFIGS = Path(__file__).parents[2] / "configs"
OLD_DEFAULTS = {
    "lr": 1e-4,
    "base_batch_size": None,
    "layer_decay": 1.0,
    "weight_decay": 5e-7,
    "betas": [0.95, 0.999],
    "warmup_epochs": 4.0,
    "min_lr": 1e-6,
}
"""Of adamw in 0.1."""


def config(task: str | None, **settings: Any) -> dict[str, Any]:
    model: dict[str, Any] = {"init_args": settings}
    if task is not None:
        model["class_path"] = f"peas.tasks.{task}"
    return {"seed_everything": 0, "model": model, "data": {"class_path": "peas.data.ESC50"}}


def moved(task: str | None, **settings: Any) -> dict[str, Any]:
    """`model.init_args` of this release."""
    given = config(task, **settings)
    before = copy.deepcopy(given)
    found: dict[str, Any] = migration.config(given)
    # What was given stays as it is, and so does all that is not the model's.
    assert given == before
    assert {**found, "model": None} == {**given, "model": None}
    assert found["model"].get("class_path") == {
        "Classification": "peas.tasks.Classification",
        None: None,
    }.get(task, "peas.tasks.Pretraining")
    settings = found["model"]["init_args"]
    return settings


def part(path: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"peas.{path}", "init_args": settings}


def test_fine_tuning_with_adam() -> None:
    found = moved(
        *("Classification",),
        **{"size": "tiny", "patch": [16, 16], "stride": [10, 10], "pooling": "mean"},
        **{"lr": 1e-4, "betas": [0.9, 0.99], "warmup_steps": 5, "decay_start": None},
        **{"noise_roll": False, "roll_gain": "paper", "fill": "zero", "frames": 512, "mean": -4.0},
        **{"loss": "bce", "pretrained": None, "freeze": "encoder", "on_nonfinite": "skip"},
    )
    assert found == {
        "encoder": part(
            "models.SSAST", size="tiny", patch=[16, 16], stride=[10, 10], pooling="mean"
        ),
        "recipe": part(
            "recipes.SSASTRecipe",
            **{"lr": 1e-4, "betas": [0.9, 0.99], "warmup_steps": 5},
            **{"decay_start": None, "on_nonfinite": "skip"},
        ),
        "augmentation": {"noise_roll": False, "roll_gain": "paper", "fill": "zero"},
        "front_end": part("audio.KaldiLogMel", frames=512, mean=-4.0),
        **{"loss": "bce", "pretrained": None, "freeze": "encoder"},
    }


def test_fine_tuning_with_adamw_keeps_the_defaults_that_it_had() -> None:
    old = {"encoder": "audiomae", "optimizer": "adamw", "schedule": "cosine"}
    found = moved("Classification", **old, lr=1e-3, layer_decay=0.75, positions="geometric")
    recipe = {**OLD_DEFAULTS, "lr": 1e-3, "layer_decay": 0.75}
    assert found == {
        "encoder": part("models.AudioMAE", positions="geometric"),
        "recipe": part("recipes.AudioMAERecipe", **recipe),
    }


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("adamw", "staircase"), ("adam", "cosine"), ("adamw", None), (None, "cosine")],
)
def test_an_optimiser_with_the_others_schedule_is_refused(
    optimizer: str | None, schedule: str | None
) -> None:
    given = {"optimizer": optimizer, "schedule": schedule}
    given = {key: value for key, value in given.items() if value}
    with pytest.raises(ConfigError) as caught:
        moved("Classification", lr=1e-3, **given)
    for word in ("model.init_args.recipe", *filter(None, (optimizer, schedule))):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ({}, {"reconstruction": part("objectives.Reconstruction", weight=1.0, norm_pix=True)}),
        (
            {"reconstruction": 0.0, "distillation": 1.0, "target_norm": "l2"},
            {"distillation": part("objectives.FeatureDistillation", weight=1.0, norm="l2")},
        ),
        (
            {"reconstruction": 2.0, "classification": 0.01, "label_hidden": 32},
            {
                "reconstruction": part("objectives.Reconstruction", weight=2.0, norm_pix=True),
                "classification": part("objectives.LabelClassification", weight=0.01, hidden=32),
            },
        ),
        (
            {"contrastive": 1.0, "nce_axis": "code"},
            {
                "reconstruction": part("objectives.Reconstruction", weight=1.0, norm_pix=True),
                "contrastive": part("objectives.PatchContrast", weight=1.0, axis="code"),
            },
        ),
    ],
)
def test_pretraining_of_audiomae(weights: dict[str, Any], kept: dict[str, Any]) -> None:
    old = {"size": "mini", "decoder_width": 32, "lr": 1e-3, "warmup_epochs": 1, "mean": -4.0}
    found = moved(
        "MaskedAudioModeling", **old, mask_ratio=0.5, norm_pix=True, roll_gain="none", **weights
    )
    assert found == {
        "encoder": part("models.AudioMAE", size="mini", decoder_width=32),
        "front_end": part("audio.KaldiLogMel", mean=-4.0),
        "masking": part("masking.RandomPatches", ratio=0.5),
        "objectives": kept,
        "recipe": part("recipes.AudioMAEPretrainingRecipe", lr=1e-3, warmup_epochs=1),
        "roll_gain": "none",
    }


def test_objectives_and_masking_by_class_path_stay() -> None:
    given = {
        "objectives": {"a": part("objectives.Reconstruction", weight=2.0)},
        "masking": part("masking.StructuredPatches", time_ratio=0.5, freq_ratio=0.5),
    }
    found = moved("MaskedAudioModeling", size="mini", **copy.deepcopy(given))
    assert {key: found[key] for key in given} == given


NCE = part("objectives.PatchContrast", weight=1.0, axis="code")
JOINT = part("objectives.Reconstruction", weight=10.0, norm_pix=False)
ALONE = part("objectives.Reconstruction", weight=1.0, norm_pix=False)


@pytest.mark.parametrize(
    ("old", "objectives", "passes", "monitor"),
    [
        ({}, {"nce": NCE, "mse": JOINT}, "separate", {}),
        ({"passes": 1}, {"nce": NCE, "mse": JOINT}, "shared", {}),
        ({"passes": 2, "objective": "discriminative"}, {"nce": NCE}, "separate", {}),
        ({"objective": "generative"}, {"mse": ALONE}, "separate", {"monitor": "mse"}),
        (
            {"nce_axis": "paper", "mse_weight": 3.0},
            {
                "nce": part("objectives.PatchContrast", weight=1.0, axis="paper"),
                "mse": part("objectives.Reconstruction", weight=3.0, norm_pix=False),
            },
            *("separate", {}),
        ),
    ],
)
def test_pretraining_of_ssast(
    old: dict[str, Any], objectives: dict[str, Any], passes: str, monitor: dict[str, str]
) -> None:
    masks = {"masked": 100, "sampler": "unbiased", "sides": [3]}
    found = moved("SSASTPretraining", size="tiny", lr=5e-4, plateau_every=800, **masks, **old)
    assert found == {
        "encoder": part("models.SSAST", size="tiny"),
        "masking": part("masking.ClusteredPatches", num_masked=100, sampler="unbiased", sides=[3]),
        "eval_masking": part(
            "masking.ClusteredPatches", num_masked=400, sampler="unbiased", sides=[3]
        ),
        "objectives": objectives,
        "passes": passes,
        "recipe": part("recipes.SSASTPretrainingRecipe", **monitor, lr=5e-4, plateau_every=800),
        "grad_norm_every": 0,
    }


def test_ssasts_evaluation_with_the_masks_of_training() -> None:
    assert "eval_masking" not in moved("SSASTPretraining", masked=8, eval_masked=None)


def test_an_overlay_names_no_class() -> None:
    found = moved(None, size="tiny", stride=[16, 16], lr=1e-3, noise_roll=False, frames=64)
    assert found == {
        "encoder": {"init_args": {"size": "tiny", "stride": [16, 16]}},
        "recipe": {"init_args": {"lr": 1e-3}},
        "augmentation": {"noise_roll": False},
        "front_end": {"init_args": {"frames": 64}},
    }
    assert moved(None, compile=True) == {"compile": True}


@pytest.mark.parametrize("key", ["optimizer", "schedule"])
def test_an_optimiser_by_itself_would_get_other_defaults(key: str) -> None:
    value = {"optimizer": "adamw", "schedule": "cosine"}[key]
    with pytest.raises(ConfigError, match=r"model\.init_args\.recipe"):
        moved(None, **{key: value})
    for words in ([f"--model.init_args.{key}={value}"], [f"--model.{key}", value]):
        with pytest.raises(ConfigError, match=r"model\.init_args\.recipe"):
            migration.words(words)


@pytest.mark.parametrize("task", ["Classification", "MaskedAudioModeling", None])
def test_flat_keys_beside_a_part_that_is_null_or_a_class_path(task: str | None) -> None:
    found = moved(task, front_end=None, frames=64, lr=1e-3)
    assert found["front_end"]["init_args"] == {"frames": 64}
    found = moved(task, front_end="my.Mel", frames=64, lr=1e-3)
    assert found["front_end"] == part("", frames=64) | {"class_path": "my.Mel"}
    with pytest.raises(ConfigError, match="front_end"):
        moved(task, front_end=[1], frames=64, lr=1e-3)
    if task == "Classification":
        assert moved(task, recipe=None, lr=1e-3)["recipe"]["init_args"] == {"lr": 1e-3}


@pytest.mark.parametrize(
    "path",
    sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name != "sweeps"),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_config_of_this_release_stays_as_it_is(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert migration.config(copy.deepcopy(content)) == content


@pytest.mark.parametrize("content", [None, 3, "x", [], {}, {"model": "peas.tasks.Pretraining"}])
def test_what_is_no_config_is_given_back(content: Any) -> None:
    assert migration.config(content) == content


WORDS = {
    "lr": ("recipe.init_args.lr", "1e-3", "1e-3"),
    "size": ("encoder.init_args.size", "mini", "mini"),
    "noise_roll": ("augmentation.noise_roll", "false", "false"),
    "frames": ("front_end.init_args.frames", "64", "64"),
    "masked": ("masking.init_args.num_masked", "8", "8"),
    "sampler": ("masking.init_args.sampler", "official", "official"),
    "mask_ratio": ("masking.init_args.ratio", "0.4", "0.4"),
    "mse_weight": ("objectives.mse.init_args.weight", "5", "5"),
    "eval_masked": ("eval_masking.init_args.num_masked", "8", "8"),
    "encoder": ("encoder", "audiomae", "peas.models.AudioMAE"),
}


@pytest.mark.parametrize("key", WORDS)
def test_words_of_a_command_line(key: str) -> None:
    new, value, told = WORDS[key]
    old, now = f"--model.init_args.{key}", f"--model.init_args.{new}"
    around = ["fit", "--config", "a.yaml"]
    assert migration.words([*around, f"{old}={value}"]) == [*around, f"{now}={told}"]
    # The value is the next word, and the one behind it is its own.
    behind = ["--trainer.max_epochs", value]
    assert migration.words([*around, old, value, *behind]) == [*around, now, told, *behind]
    assert migration.words([f"--model.{key}={value}", "x"]) == [f"{now}={told}", "x"]
    # Today's pass through.
    for words in ([*around, f"{now}={told}"], [*around, now, told]):
        assert migration.words(words) == words


def test_a_checkpoint_of_fine_tuning() -> None:
    settings = {
        **{"_class_path": "peas.tasks.Classification", "encoder": "audiomae", "size": "mini"},
        **{"optimizer": "adamw", "schedule": "cosine", "lr": 1e-3, "noise_roll": True},
        **{"frames": 64, "mean": -4.0, "std": 3.0, "labels": ["a"], "multi_label": False},
    }
    state = {"hyper_parameters": settings, "state_dict": {"model.x": torch.ones(2)}}
    migration.checkpoint(state)
    assert state["hyper_parameters"] == {
        "_class_path": "peas.tasks.Classification",
        "encoder": part("models.AudioMAE", size="mini"),
        "recipe": part("recipes.AudioMAERecipe", **{**OLD_DEFAULTS, "lr": 1e-3}),
        "augmentation": {"noise_roll": True},
        # A key that came later.
        "front_end": part("audio.KaldiLogMel", frames=64, mean=-4.0, std=3.0, channels=None),
        **{"labels": ["a"], "multi_label": False, "reconstruction": "head"},
    }
    assert list(state["state_dict"]) == ["model.x"]


def test_a_checkpoint_of_pretraining() -> None:
    settings = {"_class_path": "peas.tasks.MaskedAudioModeling", "size": "mini", "frames": 64}
    names = {
        "heads.feature.weight": "objectives.distillation.head.weight",
        "heads.label.weight": "objectives.classification.branch.weight",
        "heads.contrastive.weight": "objectives.contrastive.head.weight",
        "train_means.accuracy.sum": "meters.training_means.nce_accuracy.sum",
        "train_means.mse.sum": "meters.training_means.mse.sum",
        "model.head.weight": "model.head.weight",
    }
    state: dict[str, Any] = {
        "hyper_parameters": settings,
        "state_dict": {old: torch.ones(1) for old in names},
        "settings": config("SSASTPretraining", size="tiny"),
        "plateau": {"best": 0.5},
    }
    migration.checkpoint(state)
    assert state["hyper_parameters"]["_class_path"] == "peas.tasks.Pretraining"
    assert state["hyper_parameters"]["encoder"] == part("models.AudioMAE", size="mini")
    assert list(state["state_dict"]) == list(names.values())
    assert state["settings"]["model"]["class_path"] == "peas.tasks.Pretraining"
    assert (state["recipe"], "plateau" in state) == ({"best": 0.5}, False)


@pytest.mark.parametrize(
    ("settings", "encoder"),
    [
        ({"masked": 8, "eval_masked": 8, "size": "mini"}, "SSAST"),
        ({"decoder_depth": 2, "size": "mini"}, "AudioMAE"),
        ({"size": "mini", "lr": 1e-3, "encoder": "ssast"}, "SSAST"),
    ],
)
def test_a_checkpoint_of_a_task_that_no_command_line_made(
    settings: dict[str, Any], encoder: str
) -> None:
    state: dict[str, Any] = {"hyper_parameters": settings}
    migration.checkpoint(state)
    assert state["hyper_parameters"]["encoder"]["class_path"] == f"peas.models.{encoder}"
    again = copy.deepcopy(state)
    migration.checkpoint(again)
    assert again == state


@pytest.mark.parametrize("settings", [None, [1], {}, {"_class_path": 3}])
def test_a_checkpoint_of_something_else_stays(settings: Any) -> None:
    state = {"hyper_parameters": settings, "x": 1}
    migration.checkpoint(state)
    assert state == {"hyper_parameters": settings, "x": 1}


def test_keys_and_values_that_were_renamed_since() -> None:
    recipe = {"init_args": {"lr_rule": "batch256", "head_lr_factor": 10}}
    masking = part("masking.ClusteredPatches", count=8, law="official")
    content = {
        "paper": {"preset": "literal", "requires": {"paper.preset": "likely"}},
        "trainer": {"callbacks": [part("callbacks.Best", monitor="val/trivial_mse")]},
        "model": {"init_args": {"recipe": recipe, "masking": masking, "eval_masking": masking}},
    }
    new_masking = part("masking.ClusteredPatches", num_masked=8, sampler="official")
    assert migration.config(content) == {
        "paper": {"preset": "paper_literal", "requires": {"paper.preset": "reference_code"}},
        "trainer": {"callbacks": [part("callbacks.Best", monitor="val/baseline_mse")]},
        "model": {
            "init_args": {
                "recipe": {"init_args": {"base_batch_size": 256, "head_lr_mult": 10}},
                "masking": new_masking,
                "eval_masking": new_masking,
            }
        },
    }


def test_a_foreign_part_keeps_its_keys() -> None:
    masking = {"class_path": "my.Masking", "init_args": {"count": 3, "law": "x"}}
    content = {"model": {"init_args": {"masking": masking}}}
    assert migration.config(copy.deepcopy(content)) == content
    option = "--model.init_args.masking.init_args.count"
    chosen = ["--model.init_args.masking", "my.Masking"]
    assert migration.words([*chosen, option, "3"]) == [*chosen, option, "3"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--model.init_args.lr_rule=absolute", "--{}base_batch_size=null"),
        ("--model.recipe.lr_rule=batch256", "--model.recipe.base_batch_size=256"),
        ("--model.init_args.recipe.init_args.lr_rule=batch256", "--{}base_batch_size=256"),
        ("--model.init_args.recipe.init_args.head_lr_factor=2", "--{}head_lr_mult=2"),
        ("--model.init_args.recipe.init_args.monitor=trivial_mse", "--{}monitor=baseline_mse"),
        ("--paper.preset=likely", "--paper.preset=reference_code"),
    ],
)
def test_options_that_were_renamed_since(old: str, new: str) -> None:
    new = new.format("model.init_args.recipe.init_args.")
    assert migration.words([old, "x"]) == [new, "x"]
    assert migration.words([*old.split("="), "x"]) == [*new.split("="), "x"]


def test_a_checkpoint_of_today_whose_names_changed() -> None:
    settings = {
        "_class_path": "peas.tasks.Classification",
        "recipe": part("recipes.SSASTRecipe", lr_rule="absolute", head_lr_factor=10.0),
    }
    state: dict[str, Any] = {
        "hyper_parameters": settings,
        "callbacks": {"ModelCheckpoint{'monitor': 'val/trivial_mse', 'mode': 'min'}": 1},
    }
    migration.checkpoint(state)
    recipe = part("recipes.SSASTRecipe", base_batch_size=None, head_lr_mult=10.0)
    assert state["hyper_parameters"] == {**settings, "recipe": recipe}
    assert list(state["callbacks"]) == [
        "ModelCheckpoint{'monitor': 'val/baseline_mse', 'mode': 'min'}"
    ]


@pytest.mark.parametrize("old", ["Pictures", "peas.callbacks.pictures.Pictures"])
def test_a_callback_by_any_of_its_old_names(old: str) -> None:
    new = "peas.callbacks.MaskPlots"
    trainer = {"callbacks": [{"class_path": old, "init_args": {"clips": 1}}]}
    read = migration.config({"trainer": trainer})
    assert read["trainer"]["callbacks"][0]["class_path"] == new
    if "." in old:
        assert migration.config({"trainer": {"callbacks": [old]}}) == {
            "trainer": {"callbacks": [new]}
        }
        assert migration.words(["--trainer.callbacks+", old]) == ["--trainer.callbacks+", new]
        assert migration.words([f"--trainer.callbacks+={old}"]) == [f"--trainer.callbacks+={new}"]
