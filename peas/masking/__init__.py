"""Which patches are masked in pretraining."""

from peas.masking.patches import (
    ClusteredPatches,
    PatchMasking,
    RandomPatches,
    StructuredPatches,
)

__all__ = ["ClusteredPatches", "PatchMasking", "RandomPatches", "StructuredPatches"]
