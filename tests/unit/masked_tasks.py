"""Tasks of masked audio modelling from a flat table of weights and settings."""

import importlib
from typing import Any

from peas import migration
from peas.tasks import MaskedAudioModeling


def made(spec: Any) -> Any:
    """The part that a table with `class_path` describes; other values as they are."""
    if isinstance(spec, dict) and "class_path" in spec:
        module, _, name = spec["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**spec.get("init_args", {}))
    if isinstance(spec, dict):
        return {key: made(value) for key, value in spec.items()}
    return spec


def masked_task(**settings: Any) -> MaskedAudioModeling:
    """A task whose objectives are named by their weights: `reconstruction=1.0`, and so on."""
    told = migration.pretraining(settings)
    for key in ("objectives", "masking"):
        if key in told:
            told[key] = made(told[key])
    return MaskedAudioModeling(**told)
