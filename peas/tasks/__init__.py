"""What is trained: one LightningModule a file. Names are resolved when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peas.tasks.classification import Classification
    from peas.tasks.mae import MaskedAudioModeling
    from peas.tasks.ssast import SSASTPretraining

__all__ = ["Classification", "MaskedAudioModeling", "SSASTPretraining"]

_ROOMS = {
    "Classification": "peas.tasks.classification",
    "MaskedAudioModeling": "peas.tasks.mae",
    "SSASTPretraining": "peas.tasks.ssast",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'peas.tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)
