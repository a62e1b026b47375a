"""What happens around the training step. Names are resolved when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peas.callbacks.patch_dropping import PatchDropping
    from peas.callbacks.peas import PEAS
    from peas.callbacks.pictures import Pictures
    from peas.callbacks.spec_augment import RandomMasking, SpecAugment

__all__ = ["PEAS", "PatchDropping", "Pictures", "RandomMasking", "SpecAugment"]

_ROOMS = {
    "PEAS": "peas.callbacks.peas",
    "PatchDropping": "peas.callbacks.patch_dropping",
    "Pictures": "peas.callbacks.pictures",
    "RandomMasking": "peas.callbacks.spec_augment",
    "SpecAugment": "peas.callbacks.spec_augment",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'peas.callbacks' has no attribute {name!r}")
