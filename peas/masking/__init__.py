"""Which patches are masked in pretraining."""

from peas.masking.patches import PatchMasking, RandomPatches, StructuredPatches

__all__ = ["PatchMasking", "RandomPatches", "StructuredPatches"]
