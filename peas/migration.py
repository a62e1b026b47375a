"""Settings of earlier releases, told in the words of this one.

A config file and a checkpoint's hyperparameters hold the same keys below `model.init_args`, so one
rule serves both. What an earlier release wrote is read; nothing is written in its form again.
"""

import re
from collections.abc import Mapping
from typing import Any

MAE = ("peas.tasks.MaskedAudioModeling", "peas.tasks.mae.MaskedAudioModeling")
OBJECTIVES = "peas.objectives."
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
_MOVED = {
    *_OF,
    *(key for _, keys in (*_OF.values(), *_MASKING.values()) for key in keys),
}
_DEFAULTS = {"reconstruction": 1.0}


def is_old(settings: Mapping[str, Any]) -> bool:
    """Whether settings of `MaskedAudioModeling` are those of 0.1."""
    return any(key in _MOVED for key in settings) or isinstance(settings.get("masking"), str)


def pretraining(settings: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Settings of `MaskedAudioModeling`, whose objectives and masks were flat keys in 0.1.

    Args:
        settings: `model.init_args`, or a checkpoint's hyperparameters.
        whole: Whether keys that are not there had their default, as in a config that names its
            class; else they are left alone.
    """
    if not is_old(settings):
        return dict(settings)
    moved = {key: value for key, value in settings.items() if key not in _MOVED}
    objectives: dict[str, Any] = {}
    for name, (cls, keys) in _OF.items():
        weight = settings.get(name, _DEFAULTS.get(name, 0.0) if whole else 0.0)
        if weight != 0:
            given = {new: settings[old] for old, new in keys.items() if old in settings}
            objectives[name] = {
                "class_path": OBJECTIVES + cls,
                "init_args": {"weight": weight, **given},
            }
    if objectives:
        moved["objectives"] = objectives
    kind = settings.get("masking", "random")
    if isinstance(kind, str):
        cls, keys = _MASKING[kind]
        given = {new: settings[old] for old, new in keys.items() if old in settings}
        moved["masking"] = {"class_path": f"peas.masking.{cls}", "init_args": given}
    facts = {
        new: moved.pop(old)
        for old, new in (("feature_width", "width"), ("teacher_fingerprint", "fingerprint"))
        if old in moved
    }
    if facts and "distillation" in objectives:
        moved["objective_fingerprints"] = {"distillation": facts}
    return moved


def config(content: Any) -> Any:
    """A config file's content; other values are given back as they are."""
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return content
    model = content["model"]
    settings = model.get("init_args")
    if model.get("class_path") not in MAE or not isinstance(settings, dict):
        return content
    return {**content, "model": {**model, "init_args": pretraining(settings)}}


_HEADS = (
    (re.compile(r"^heads\.feature\."), "objectives.distillation.head."),
    (re.compile(r"^heads\.label\."), "objectives.classification.branch."),
    (re.compile(r"^heads\.contrastive\."), "objectives.contrastive.head."),
)


def weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a `MaskedAudioModeling`, under the names that they have now."""
    found = {}
    for key, value in state.items():
        name = key
        for pattern, new in _HEADS:
            name = pattern.sub(new, name)
        found[name] = value
    return found
