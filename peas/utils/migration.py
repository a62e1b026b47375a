"""Configs, checkpoints and command lines of earlier releases, translated to this one.

Two steps: the flat keys of release 0.1 move into parts (encoder, recipe, masking, …), then keys,
values and class paths that were renamed since get their names of today. A config file and a
checkpoint's hyperparameters have the same keys below `model.init_args`, so one set of rules serves
both, and command-line options follow it. Nothing is written in an old form again.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from peas.errors import ConfigError

# --- renamed since: old -> new ----------------------------------------------------------------

CLASS_PATHS = {
    "peas.callbacks.PatchDropping": "peas.callbacks.PatchDropout",
    "peas.callbacks.patch_dropping.PatchDropping": "peas.callbacks.PatchDropout",
    "peas.callbacks.Pictures": "peas.callbacks.MaskPlots",
    "peas.callbacks.pictures.Pictures": "peas.callbacks.MaskPlots",
    "peas.callbacks.Reconstructions": "peas.callbacks.ReconstructionPlots",
    "peas.callbacks.reconstructions.Reconstructions": "peas.callbacks.ReconstructionPlots",
    # As the parser takes them.
    "PatchDropping": "peas.callbacks.PatchDropout",
    "Pictures": "peas.callbacks.MaskPlots",
    "Reconstructions": "peas.callbacks.ReconstructionPlots",
}
PACKAGES = {"peas.models.clap.": "peas.teachers."}
"""Prefixes of class paths."""
CALLBACKS = {"Pictures": "MaskPlots", "Reconstructions": "ReconstructionPlots"}
"""Keys of a checkpoint's `callbacks`."""
KEYS = {
    "model.recipe.lr_rule": "base_batch_size",
    "model.recipe.head_lr_factor": "head_lr_mult",
    **{f"model.{masking}.count": "num_masked" for masking in ("masking", "eval_masking")},
    **{f"model.{masking}.law": "sampler" for masking in ("masking", "eval_masking")},
}
"""Settings of parts of `peas`, without `init_args`."""
VALUES: dict[str, dict[Any, Any]] = {
    "model.recipe.base_batch_size": {"absolute": None, "batch256": 256},
    "paper.preset": {"likely": "reference_code", "literal": "paper_literal"},
    "paper.requires.paper.preset": {"likely": "reference_code", "literal": "paper_literal"},
}
METRIC = re.compile(r"^((?:\w+/)?)trivial_")
"""Of a `monitor`."""

# --- flat keys of 0.1 ---------------------------------------------------------------------------

CLASSIFICATION = ("peas.tasks.Classification", "peas.tasks.classification.Classification")
MAE = ("peas.tasks.MaskedAudioModeling", "peas.tasks.mae.MaskedAudioModeling")
SSAST = ("peas.tasks.SSASTPretraining", "peas.tasks.ssast.SSASTPretraining")
NEW = "peas.tasks.Pretraining"
FRONT_END = "peas.audio.KaldiLogMel"

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
"""Tables that flat keys moved to."""
PART_OF = {key: part for part, keys in _MOVED.items() for key in keys}
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

_INCOMPLETE = (
    "`model.init_args.optimizer` and `schedule` of 0.1 are one part now, with defaults of its own: "
    "give `model.init_args.recipe`, such as peas.recipes.AudioMAERecipe, with its init_args"
)
"""If an option or an overlay chose one, the defaults would silently differ from those of 0.1."""

_OBJECTIVE_OF = {
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
    *_OBJECTIVE_OF,
    *(key for _, keys in (*_OBJECTIVE_OF.values(), *_MASKING.values()) for key in keys),
}
_SSAST_KEYS = ("masked", "eval_masked", "sampler", "sides", "objective", "mse_weight", "nce_axis")


def _part(path: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": settings}


def _move(settings: dict[str, Any], *, complete: bool) -> None:
    """Move flat keys into the tables of their parts."""
    for key in [key for key in settings if key in PART_OF]:
        if isinstance(settings[key], dict):
            continue
        table = settings
        for name in PART_OF[key].split("."):
            # Null is a part with its defaults, and a text its class path.
            below = table.get(name) or {}
            below = {"class_path": below} if isinstance(below, str) else below
            if not isinstance(below, Mapping):
                raise ConfigError(
                    f"`model.init_args.{PART_OF[key]}` is no table, and {key!r} of 0.1 belongs "
                    "into it: give that part's class_path and init_args"
                )
            table[name] = dict(below)
            table = table[name]
        table[key] = settings.pop(key)
    if complete and "front_end" in settings:
        settings["front_end"] = {"class_path": FRONT_END, **settings["front_end"]}


def classification(settings: Mapping[str, Any], *, complete: bool = True) -> dict[str, Any]:
    """Settings of `Classification`, whose parts were flat keys in 0.1.

    Args:
        settings: `model.init_args`, or a checkpoint's hyperparameters.
        complete: Whether absent keys had their defaults, as in a config that names its class. If
            not, as in an overlay, they are left alone.

    Raises:
        ConfigError: They combine an optimiser with the other one's schedule, or choose one without
            being complete; or a part is no table.
    """
    flat = dict(settings)
    kind = flat.pop("encoder", None)
    optimizer, schedule = flat.pop("optimizer", None), flat.pop("schedule", None)
    if not complete and (optimizer or schedule):
        raise ConfigError(_INCOMPLETE)
    cosine = optimizer == "adamw"
    if (optimizer or schedule) and cosine != (schedule == "cosine"):
        raise ConfigError(
            f"`model.init_args` has `optimizer: {optimizer or 'adam'}` and `schedule: "
            f"{schedule or 'staircase'}` of 0.1, which no recipe of peas.recipes combines: "
            "set `model.init_args.recipe` to one, or to a recipe of your own"
        )
    if isinstance(kind, dict):
        flat["encoder"] = kind
    elif isinstance(kind, str) and "." in kind:
        flat["encoder"] = {"class_path": kind}
    elif complete or kind:
        name = "AudioMAE" if kind == "audiomae" else "SSAST"
        flat["encoder"] = {"class_path": f"peas.models.{name}", "init_args": {}}
        if name == "SSAST":
            flat.pop("positions", None)
    recipe = flat.get("recipe") if isinstance(flat.get("recipe"), dict) else {}
    if complete and "class_path" not in (recipe or {}):
        for key in _STAIRS_ONLY if cosine else _COSINE_ONLY:
            flat.pop(key, None)
        defaults = _OLD_DEFAULTS if cosine else {}
        flat["recipe"] = {
            "class_path": "peas.recipes." + ("AudioMAERecipe" if cosine else "SSASTRecipe"),
            "init_args": {**defaults, **((recipe or {}).get("init_args") or {})},
        }
    if "roll_gain" in flat:
        flat.setdefault("augmentation", {})["roll_gain"] = flat.pop("roll_gain")
    _move(flat, complete=complete)
    return flat


def pretraining(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `MaskedAudioModeling`, whose parts were flat keys in 0.1.

    Args:
        settings: As in `classification`.
    """
    flat = dict(settings)
    if any(key in _FLAT_OBJECTIVES for key in flat) or isinstance(flat.get("masking"), str):
        flat = _objectives(flat)
    flat.setdefault("encoder", {"class_path": "peas.models.AudioMAE", "init_args": {}})
    recipe = flat.get("recipe", {})
    flat["recipe"] = {"class_path": "peas.recipes.AudioMAEPretrainingRecipe", **recipe}
    flat["recipe"].setdefault("init_args", {})
    _move(flat, complete=True)
    return flat


def _objectives(settings: dict[str, Any]) -> dict[str, Any]:
    moved = {key: value for key, value in settings.items() if key not in _FLAT_OBJECTIVES}
    objectives: dict[str, Any] = {}
    for name, (cls, keys) in _OBJECTIVE_OF.items():
        weight = settings.get(name, float(name == "reconstruction"))
        if weight != 0:
            init_args = {new: settings[old] for old, new in keys.items() if old in settings}
            objectives[name] = _part(f"peas.objectives.{cls}", weight=weight, **init_args)
    if objectives:
        moved["objectives"] = objectives
    kind = settings.get("masking", "random")
    if isinstance(kind, str):
        cls, keys = _MASKING[kind]
        init_args = {new: settings[old] for old, new in keys.items() if old in settings}
        moved["masking"] = _part(f"peas.masking.{cls}", **init_args)
    fingerprint = {
        new: moved.pop(old)
        for old, new in (("feature_width", "width"), ("teacher_fingerprint", "fingerprint"))
        if old in moved
    }
    if fingerprint and "distillation" in objectives:
        moved["objective_fingerprints"] = {"distillation": fingerprint}
    return moved


def ssast(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `SSASTPretraining`, which had one kind of objectives and masks.

    Args:
        settings: As in `classification`.
    """
    flat = {key: value for key, value in settings.items() if key not in _SSAST_KEYS}
    old = {key: settings[key] for key in _SSAST_KEYS if key in settings}
    objective = old.get("objective", "joint")
    clusters: dict[str, Any] = {"sampler": old.get("sampler", "batched")}
    if "sides" in old:
        clusters["sides"] = old["sides"]
    for name, key in (("masking", "masked"), ("eval_masking", "eval_masked")):
        count = old.get(key, 400)
        if count is not None:
            flat[name] = _part("peas.masking.ClusteredPatches", num_masked=count, **clusters)
    objectives = {}
    if objective != "generative":
        axis = old.get("nce_axis", "code")
        objectives["nce"] = _part("peas.objectives.PatchContrast", weight=1.0, axis=axis)
    if objective != "discriminative":
        weight = old.get("mse_weight", 10.0) if objective == "joint" else 1.0
        objectives["mse"] = _part("peas.objectives.Reconstruction", weight=weight, norm_pix=False)
    flat["objectives"] = objectives
    # With one pass both objectives would share the random numbers of the other's name.
    alone = objective == "discriminative"
    flat["passes"] = "separate" if alone or flat.pop("passes", 2) == 2 else "shared"
    flat.setdefault("grad_norm_every", 0)
    flat["encoder"] = {"class_path": "peas.models.SSAST", "init_args": {}}
    monitor = {"monitor": "mse"} if objective == "generative" else {}
    flat["recipe"] = _part("peas.recipes.SSASTPretrainingRecipe", **monitor)
    _move(flat, complete=True)
    return flat


def is_flat(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a task are those of 0.1: some part is a flat key."""
    flat = (*PART_OF, "optimizer", "schedule", *_FLAT_OBJECTIVES, *_SSAST_KEYS)
    # These are keys of this release too.
    both = ("reconstruction", "encoder", "masking")
    return any(key in settings and key not in both for key in flat) or any(
        isinstance(settings.get(key), str) for key in ("encoder", "masking")
    )


def task(path: str | None, settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Class path and settings of a task in this release.

    Args:
        path: Its class path; None where another file names the class.
        settings: `model.init_args`, or a checkpoint's hyperparameters.
    """
    if path in SSAST:
        path, settings = NEW, ssast(settings)
    elif path in MAE:
        path, settings = NEW, pretraining(settings)
    elif is_flat(settings) and (path is None or path in CLASSIFICATION):
        settings = classification(settings, complete=path is not None)
    translated: dict[str, Any] = _renamed(dict(settings), "model")
    return path, translated


def _renamed(value: Any, path: str) -> Any:
    """A part of a config with the keys, values and class paths of this release.

    Args:
        value: The part.
        path: Dotted key of it, without `init_args`.
    """
    if isinstance(value, list):
        return [_renamed(item, path) for item in value]
    if not isinstance(value, dict):
        return _value(path, value)
    class_path = value.get("class_path")
    foreign = isinstance(class_path, str) and not class_path.startswith("peas.")
    renamed: dict[str, Any] = {}
    for key, item in value.items():
        if key == "class_path" and isinstance(item, str):
            renamed[key] = _class_path(item)
        elif key == "init_args":
            # A part of the user's own may have any keys.
            renamed[key] = item if foreign else _renamed(item, path)
        else:
            new: Any = KEYS.get(f"{path}.{key}", key)
            renamed[new] = _renamed(item, f"{path}.{new}".lstrip("."))
    return renamed


def _class_path(path: str) -> str:
    for old, new in PACKAGES.items():
        if path.startswith(old):
            return new + path.rpartition(".")[2]
    return CLASS_PATHS.get(path, path)


def _value(path: str, value: Any) -> Any:
    """A setting's value in this release."""
    if not isinstance(value, str):
        return value
    if value.startswith("peas."):
        return _class_path(value)
    if path.rpartition(".")[2] == "monitor":
        return METRIC.sub(r"\1baseline_", value)
    return VALUES.get(path, {}).get(value, value)


def config(content: Any) -> Any:
    """A config file's content in this release; what is no config is returned as it is."""
    if not isinstance(content, dict):
        return content
    model = content.get("model")
    rest = _renamed({key: value for key, value in content.items() if key != "model"}, "")
    if not isinstance(model, dict):
        return {**content, **rest}
    settings = model.get("init_args", {})
    if not isinstance(settings, dict) or not isinstance(model.get("class_path", ""), str):
        return {**content, **rest}
    path, moved = task(model.get("class_path"), settings)
    task_of: dict[str, Any] = {} if path is None else {"class_path": path}
    if moved:
        task_of["init_args"] = moved
    return {**content, **rest, "model": {**model, **task_of}}


def checkpoint(content: dict[str, Any]) -> None:
    """A checkpoint's content, changed in place; one of this release stays as it is."""
    settings = content.get("hyper_parameters")
    if not isinstance(settings, dict):
        return
    path = settings.get("_class_path") or _guess(settings)
    if path is not None and not isinstance(path, str):
        return
    flat = is_flat(settings)
    new, moved = task(path, settings) if path else (None, _renamed(dict(settings), "model"))
    if path in CLASSIFICATION and flat and "augmentation" in moved:
        moved["front_end"]["init_args"].setdefault("channels", None)
        moved.setdefault("reconstruction", "head")
    if path in MAE or path in SSAST:
        content["state_dict"] = weights(content.get("state_dict", {}))
    if "_class_path" in settings:
        moved["_class_path"] = new
    content["hyper_parameters"] = moved
    if "plateau" in content:
        content["recipe"] = content.pop("plateau")
    if isinstance(content.get("callbacks"), dict):
        content["callbacks"] = {_callback(k): v for k, v in content["callbacks"].items()}
    if isinstance(content.get("settings"), dict):
        content["settings"] = config(content["settings"])


def _callback(key: Any) -> Any:
    """Key of a callback's state, which names its class and, of a checkpoint, its metric."""
    if not isinstance(key, str):
        return key
    name, brace, rest = key.partition("{")
    return CALLBACKS.get(name, name) + brace + rest.replace("/trivial_", "/baseline_")


def _guess(settings: Mapping[str, Any]) -> str | None:
    """Class of a task that was not made by the command line."""
    if not is_flat(settings):
        return None
    if "eval_masked" in settings:
        return SSAST[0]
    return MAE[0] if "decoder_depth" in settings else CLASSIFICATION[0]


_WEIGHTS = (
    (re.compile(r"^heads\.feature\."), "objectives.distillation.head."),
    (re.compile(r"^heads\.label\."), "objectives.classification.branch."),
    (re.compile(r"^heads\.contrastive\."), "objectives.contrastive.head."),
    (re.compile(r"^train_means\.accuracy\."), "meters.training_means.nce_accuracy."),
    (re.compile(r"^train_means\."), "meters.training_means."),
)


def weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a pretraining run of 0.1 under their names of today."""
    renamed = {}
    for key, value in state.items():
        for pattern, new in _WEIGHTS:
            key = pattern.sub(new, key)
        renamed[key] = value
    return renamed


# --- command lines --------------------------------------------------------------------------------

KEY, SHORT = "--model.init_args.", "--model."
_OPTIONS = {
    **{key: f"{part}.{key}" for key, part in PART_OF.items()},
    "masked": "masking.init_args.num_masked",
    "eval_masked": "eval_masking.init_args.num_masked",
    "sampler": "masking.init_args.sampler",
    "sides": "masking.init_args.sides",
    "mask_ratio": "masking.init_args.ratio",
    "time_ratio": "masking.init_args.time_ratio",
    "freq_ratio": "masking.init_args.freq_ratio",
    "mse_weight": "objectives.mse.init_args.weight",
}
_ENCODERS = {"ssast": "peas.models.SSAST", "audiomae": "peas.models.AudioMAE"}


def words(argv: Sequence[str]) -> list[str]:
    """A command line with the options and values of this release.

    Raises:
        ConfigError: It chooses an optimiser or a schedule by itself.
    """
    translated: list[str] = []
    path = ""
    for word in argv:
        if path:
            translated.append(_option_value(path, word))
            path = ""
            continue
        if word.startswith("peas."):
            translated.append(_class_path(word))
            continue
        option, sign, value = word.partition("=")
        option, path = _option(option, argv)
        if sign:
            value, path = _option_value(path, value) if path else value, ""
            value = _class_path(value) if value.startswith("peas.") else value
        translated.append(option + sign + value)
    return translated


def _option(option: str, argv: Sequence[str]) -> tuple[str, str]:
    """An option of this release, and its dotted key if its value may need translation."""
    # The parser takes `--model.lr` for `--model.init_args.lr`.
    start = KEY if option.startswith(KEY) else SHORT
    name = option.removeprefix(start)
    if option.startswith(start):
        if name in ("optimizer", "schedule"):
            raise ConfigError(_INCOMPLETE)
        option = KEY + _OPTIONS[name] if name in _OPTIONS else option
        option = KEY + name if name == "encoder" else option
    path = option.removeprefix("--").replace(".init_args", "")
    if path in KEYS and not _foreign(path, argv):
        option = option.removesuffix(path.rpartition(".")[2]) + KEYS[path]
        path = path.rpartition(".")[0] + "." + KEYS[path]
    values = path in VALUES or path == "model.encoder" or path.endswith(".monitor")
    return option, path if values else ""


def _option_value(path: str, value: str) -> str:
    if path == "model.encoder":
        return _ENCODERS.get(value, value)
    new = _value(path, value)
    return "null" if new is None else str(new)


def _foreign(path: str, argv: Sequence[str]) -> bool:
    """Whether the command line sets the part at a path to a class that is not of `peas`."""
    part = re.escape(path.rpartition(".")[0].removeprefix("model."))
    text = "\n".join(argv)
    chosen = re.search(rf"--model\.(?:init_args\.)?{part}(?:\.class_path)?[=\n](\S+)", text)
    return chosen is not None and not chosen[1].startswith("peas.")
