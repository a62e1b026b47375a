"""What is trained: one LightningModule a file. Names are resolved when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peas.tasks.augmentation import Augmentation
    from peas.tasks.classification import Classification
    from peas.tasks.pretraining import Pretraining

__all__ = ["Augmentation", "Classification", "Pretraining"]

_ROOMS = {
    "Augmentation": "peas.tasks.augmentation",
    "Classification": "peas.tasks.classification",
    "Pretraining": "peas.tasks.pretraining",
}


def __getattr__(name: str) -> Any:
    if name in ("MaskedAudioModeling", "SSASTPretraining"):
        raise AttributeError(f"peas.tasks.{name} is peas.tasks.Pretraining now")
    if name not in _ROOMS:
        raise AttributeError(f"module 'peas.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)
