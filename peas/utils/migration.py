"""Settings of release 0.1, told in the words of this one.

A config file and a checkpoint's hyperparameters hold the same keys below `model.init_args`, so one
rule serves both, and the words of a command line follow it. What 0.1 wrote is read; nothing is
written in its form again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peas.errors import ConfigError

CLASSIFICATION = ("peas.tasks.Classification", "peas.tasks.classification.Classification")
MAE = ("peas.tasks.MaskedAudioModeling", "peas.tasks.mae.MaskedAudioModeling")
SSAST = ("peas.tasks.SSASTPretraining", "peas.tasks.ssast.SSASTPretraining")
NEW = "peas.tasks.Pretraining"
FRONT_END = "peas.audio.KaldiLogMel"

RENAMED = {"peas.models.clap.": "peas.teachers."}
"""Beginnings of class paths of 0.1."""

_DECODER = ("width", "depth", "heads", "window", "first_shift")
_MOVED: dict[str, tuple[str, ...]] = {
    "encoder.init_args": (
        *("size", "patch", "stride", "positions", "pooling", "drop_path", "decoder"),
        *(f"decoder_{key}" for key in _DECODER),
    ),
    "front_end.init_args": ("frames", "mean", "std", "channels"),
    "recipe.init_args": (
        *("lr", "lr_rule", "head_lr_factor", "layer_decay", "weight_decay", "betas"),
        *("warmup_steps", "decay_start", "decay_factor", "decay_every"),
        *("warmup_epochs", "min_lr", "on_nonfinite"),
        *("plateau_every", "plateau_factor", "plateau_patience"),
    ),
    "augmentation": ("noise_roll", "fill"),
}
"""Where flat keys went."""
PLACES = {key: place for place, keys in _MOVED.items() for key in keys}
_COSINE = ("lr", "lr_rule", "layer_decay", "weight_decay", "betas", "warmup_epochs", "min_lr")
_COSINE_ONLY = ("layer_decay", "warmup_epochs", "min_lr")
_STAIRS_ONLY = ("head_lr_factor", "warmup_steps", "decay_start", "decay_factor", "decay_every")
_OLD_DEFAULTS: dict[str, Any] = {
    "lr": 1e-4,
    "lr_rule": "absolute",
    "layer_decay": 1.0,
    "weight_decay": 5e-7,
    "betas": [0.95, 0.999],
    "warmup_epochs": 4.0,
    "min_lr": 1e-6,
}
"""Of `Classification` in 0.1, where AudioMAERecipe has others."""

_HALF = (
    "`model.init_args.optimizer` and `schedule` of 0.1 are one part now, with defaults of its own: "
    "give `model.init_args.recipe`, such as peas.recipes.AudioMAERecipe, with its init_args"
)
"""Where a word or an overlay chose one, other defaults than those of 0.1 would follow unseen."""

_OF = {
    "reconstruction": ("Reconstruction", {"norm_pix": "norm_pix"}),
    "distillation": (
        "FeatureDistillation",
        {
            "teacher": "teacher",
            "targets": "targets",
            "target_grid": "grid",
            "target_norm": "norm",
            "feature_loss": "loss",
            "visible_path": "visible_path",
            "feature_padding": "padding",
        },
    ),
    "classification": (
        "LabelClassification",
        {
            "label_loss": "loss",
            "temperature": "temperature",
            "label_hidden": "hidden",
            "label_norm": "norm",
            "visible_fraction": "visible_fraction",
        },
    ),
    "contrastive": ("PatchContrast", {"nce_axis": "axis"}),
}
"""Weight of an objective in 0.1: its class now, and where its keys went."""
_MASKING = {
    "random": ("RandomPatches", {"mask_ratio": "ratio"}),
    "structured": (
        "StructuredPatches",
        {"time_ratio": "time_ratio", "freq_ratio": "freq_ratio"},
    ),
}
_FLAT_OBJECTIVES = {
    *_OF,
    *(key for _, keys in (*_OF.values(), *_MASKING.values()) for key in keys),
}
_SSAST_KEYS = ("masked", "eval_masked", "sampler", "sides", "objective", "mse_weight", "nce_axis")


def _part(path: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": settings}


def _move(settings: dict[str, Any], *, whole: bool) -> None:
    """Moves flat keys to the tables of their parts."""
    for key in [key for key in settings if key in PLACES]:
        if isinstance(settings[key], dict):
            continue
        room = settings
        for name in PLACES[key].split("."):
            # Null is a part of its defaults, and a text its class path.
            below = room.get(name) or {}
            below = {"class_path": below} if isinstance(below, str) else below
            if not isinstance(below, Mapping):
                raise ConfigError(
                    f"`model.init_args.{PLACES[key]}` is no table, and {key!r} of 0.1 belongs into "
                    "it: give that part's class_path and init_args"
                )
            room[name] = dict(below)
            room = room[name]
        room[key] = settings.pop(key)
    if whole and "front_end" in settings:
        settings["front_end"] = {"class_path": FRONT_END, **settings["front_end"]}


def classification(settings: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Settings of `Classification`, whose parts were flat keys in 0.1.

    Args:
        settings: `model.init_args`, or a checkpoint's hyperparameters.
        whole: Whether keys that are not there had their default, as in a config that names its
            class; else they are left alone.

    Raises:
        ConfigError: They ask for an optimiser with the other one's schedule, or choose one
            without being whole; or a part is no table.
    """
    flat = dict(settings)
    kind = flat.pop("encoder", None)
    optimizer, schedule = flat.pop("optimizer", None), flat.pop("schedule", None)
    if not whole and (optimizer or schedule):
        raise ConfigError(_HALF)
    cosine = optimizer == "adamw"
    if (optimizer or schedule) and cosine != (schedule == "cosine"):
        raise ConfigError(
            f"`model.init_args` has `optimizer: {optimizer or 'adam'}` and `schedule: "
            f"{schedule or 'staircase'}` of 0.1, which no recipe of peas.recipes has together: "
            "set `model.init_args.recipe` to one, or to a recipe of your own"
        )
    if isinstance(kind, dict):
        flat["encoder"] = kind
    elif isinstance(kind, str) and "." in kind:
        flat["encoder"] = {"class_path": kind}
    elif whole or kind:
        name = "AudioMAE" if kind == "audiomae" else "SSAST"
        flat["encoder"] = {"class_path": f"peas.models.{name}", "init_args": {}}
        if name == "SSAST":
            flat.pop("positions", None)
    known = isinstance(flat.get("recipe"), dict) and "class_path" in flat["recipe"]
    if whole and not known:
        for key in _STAIRS_ONLY if cosine else _COSINE_ONLY:
            flat.pop(key, None)
        name = "AudioMAERecipe" if cosine else "SSASTRecipe"
        settled = dict(_OLD_DEFAULTS) if cosine else {}
        given = flat.get("recipe")
        given = given.get("init_args") if isinstance(given, dict) else None
        flat["recipe"] = {
            "class_path": f"peas.recipes.{name}",
            "init_args": {**settled, **(given or {})},
        }
    if "roll_gain" in flat:
        flat.setdefault("augmentation", {})["roll_gain"] = flat.pop("roll_gain")
    _move(flat, whole=whole)
    return flat


def pretraining(settings: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Settings of `MaskedAudioModeling`, whose parts were flat keys in 0.1.

    Args:
        settings: As in `classification`.
        whole: As in `classification`.
    """
    flat = dict(settings)
    if any(key in _FLAT_OBJECTIVES for key in flat) or isinstance(flat.get("masking"), str):
        flat = _objectives(flat, whole=whole)
    if whole:
        flat.setdefault("encoder", {"class_path": "peas.models.AudioMAE", "init_args": {}})
        known = flat.get("recipe", {})
        flat["recipe"] = {"class_path": "peas.recipes.AudioMAEPretrainingRecipe", **known}
        flat["recipe"].setdefault("init_args", {})
    _move(flat, whole=whole)
    return flat


def _objectives(settings: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    moved = {key: value for key, value in settings.items() if key not in _FLAT_OBJECTIVES}
    objectives: dict[str, Any] = {}
    for name, (cls, keys) in _OF.items():
        weight = settings.get(name, float(whole and name == "reconstruction"))
        if weight != 0:
            given = {new: settings[old] for old, new in keys.items() if old in settings}
            objectives[name] = _part(f"peas.objectives.{cls}", weight=weight, **given)
    if objectives:
        moved["objectives"] = objectives
    kind = settings.get("masking", "random")
    if isinstance(kind, str):
        cls, keys = _MASKING[kind]
        given = {new: settings[old] for old, new in keys.items() if old in settings}
        moved["masking"] = _part(f"peas.masking.{cls}", **given)
    facts = {
        new: moved.pop(old)
        for old, new in (("feature_width", "width"), ("teacher_fingerprint", "fingerprint"))
        if old in moved
    }
    if facts and "distillation" in objectives:
        moved["objective_fingerprints"] = {"distillation": facts}
    return moved


def ssast(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `SSASTPretraining`, of which there was one kind of objectives and masks.

    Args:
        settings: As in `classification`.
    """
    flat = {key: value for key, value in settings.items() if key not in _SSAST_KEYS}
    given = {key: settings[key] for key in _SSAST_KEYS if key in settings}
    objective = given.get("objective", "joint")
    clusters: dict[str, Any] = {"law": given.get("sampler", "batched")}
    if "sides" in given:
        clusters["sides"] = given["sides"]
    masked, evaluated = given.get("masked", 400), given.get("eval_masked", 400)
    flat["masking"] = _part("peas.masking.ClusteredPatches", count=masked, **clusters)
    if evaluated is not None:
        flat["eval_masking"] = _part("peas.masking.ClusteredPatches", count=evaluated, **clusters)
    objectives = {}
    if objective != "generative":
        axis = given.get("nce_axis", "code")
        objectives["nce"] = _part("peas.objectives.PatchContrast", weight=1.0, axis=axis)
    if objective != "discriminative":
        weight = given.get("mse_weight", 10.0) if objective == "joint" else 1.0
        objectives["mse"] = _part("peas.objectives.Reconstruction", weight=weight, norm_pix=False)
    flat["objectives"] = objectives
    # By its own name's random numbers, which one pass shares under the other's.
    alone = objective == "discriminative"
    flat["passes"] = "separate" if alone or flat.pop("passes", 2) == 2 else "shared"
    flat.setdefault("grad_norm_every", 0)
    flat["encoder"] = {"class_path": "peas.models.SSAST", "init_args": {}}
    monitor = {"monitor": "mse"} if objective == "generative" else {}
    flat["recipe"] = _part("peas.recipes.SSASTPretrainingRecipe", **monitor)
    _move(flat, whole=True)
    return flat


def is_old(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a task are those of 0.1: some part is a flat key."""
    flat = (*PLACES, "optimizer", "schedule", *_FLAT_OBJECTIVES, *_SSAST_KEYS)
    # These are keys of this release too.
    now = ("reconstruction", "encoder", "masking")
    found = any(key in settings and key not in now for key in flat)
    return found or any(isinstance(settings.get(key), str) for key in ("encoder", "masking"))


def task(path: str | None, settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Class path and settings of a task, as this release has them.

    Args:
        path: Its class path; None where a file leaves the class to another one.
        settings: `model.init_args`, or a checkpoint's hyperparameters.
    """
    if path in SSAST:
        return NEW, ssast(settings)
    if path in MAE:
        return NEW, pretraining(settings)
    if not is_old(settings):
        return path, dict(settings)
    if path in CLASSIFICATION:
        return path, classification(settings)
    if path is None:
        return path, classification(settings, whole=False)
    return path, dict(settings)


def _renamed(value: Any) -> Any:
    """A config whose class paths are those of today."""
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    told = {key: _renamed(item) for key, item in value.items()}
    path = told.get("class_path")
    for old, new in RENAMED.items():
        if isinstance(path, str) and path.startswith(old):
            told["class_path"] = new + path.rpartition(".")[2]
    return told


def config(content: Any) -> Any:
    """A config file's content; other values are given back as they are."""
    content = _renamed(content)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return content
    model = content["model"]
    settings = model.get("init_args", {})
    if not isinstance(settings, dict) or not isinstance(model.get("class_path", ""), str):
        return content
    path, moved = task(model.get("class_path"), settings)
    told: dict[str, Any] = {} if path is None else {"class_path": path}
    if moved:
        told["init_args"] = moved
    return {**content, "model": {**model, **told}}


def checkpoint(content: dict[str, Any]) -> None:
    """A checkpoint's content, changed in place; one of this release stays as it is."""
    settings = content.get("hyper_parameters")
    if not isinstance(settings, dict):
        return
    path = settings.get("_class_path") or _guess(settings)
    if not isinstance(path, str):
        return
    new, moved = task(path, settings)
    if path in CLASSIFICATION and "augmentation" in moved:
        moved["front_end"]["init_args"].setdefault("channels", None)
        moved.setdefault("reconstruction", "head")
    if path in MAE or path in SSAST:
        content["state_dict"] = weights(content.get("state_dict", {}))
    if "_class_path" in settings:
        moved["_class_path"] = new
    content["hyper_parameters"] = moved
    if "plateau" in content:
        content["recipe"] = content.pop("plateau")
    if isinstance(content.get("settings"), dict):
        content["settings"] = config(content["settings"])


def _guess(settings: Mapping[str, Any]) -> str | None:
    """Class of a task that was not made by the command line."""
    if not is_old(settings):
        return None
    if "eval_masked" in settings:
        return SSAST[0]
    return MAE[0] if "decoder_depth" in settings else CLASSIFICATION[0]


_NAMES = (
    (re.compile(r"^heads\.feature\."), "objectives.distillation.head."),
    (re.compile(r"^heads\.label\."), "objectives.classification.branch."),
    (re.compile(r"^heads\.contrastive\."), "objectives.contrastive.head."),
    (re.compile(r"^train_means\.accuracy\."), "meters.training_means.nce_accuracy."),
    (re.compile(r"^train_means\."), "meters.training_means."),
)


def weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a pretraining, under the names that they have now."""
    found = {}
    for key, value in state.items():
        name = key
        for pattern, new in _NAMES:
            name = pattern.sub(new, name)
        found[name] = value
    return found


KEY, SHORT = "--model.init_args.", "--model."
_WORDS = {
    **{key: f"{place}.{key}" for key, place in PLACES.items()},
    "masked": "masking.init_args.count",
    "eval_masked": "eval_masking.init_args.count",
    "sampler": "masking.init_args.law",
    "sides": "masking.init_args.sides",
    "mask_ratio": "masking.init_args.ratio",
    "time_ratio": "masking.init_args.time_ratio",
    "freq_ratio": "masking.init_args.freq_ratio",
    "mse_weight": "objectives.mse.init_args.weight",
}
_CLASSES = {
    "encoder": {"ssast": "peas.models.SSAST", "audiomae": "peas.models.AudioMAE"},
}


def words(argv: Sequence[str]) -> list[str]:
    """Words of a command line, whose keys of 0.1 become those of today.

    Raises:
        ConfigError: They choose an optimiser or a schedule by itself.
    """
    told: list[str] = []
    following: dict[str, str] | None = None
    for word in argv:
        if following is not None:
            told.append(following.get(word, word))
            following = None
            continue
        # The parser takes `--model.lr` for `--model.init_args.lr`.
        start = KEY if word.startswith(KEY) else SHORT
        name, sign, value = word.removeprefix(start).partition("=")
        if word.startswith(start) and name in ("optimizer", "schedule"):
            raise ConfigError(_HALF)
        if not word.startswith(start) or name not in (*_WORDS, *_CLASSES):
            told.append(word)
            continue
        key = _WORDS.get(name, name)
        classes = _CLASSES.get(name, {})
        told.append(KEY + key + sign + classes.get(value, value))
        following = None if sign else classes
    return told
