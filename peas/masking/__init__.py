"""Which patches are masked in pretraining, and which bins in fine-tuning."""

from peas.masking.clusters import ClusteredPatches
from peas.masking.patches import PatchMasking, RandomPatches, StructuredPatches

__all__ = ["ClusteredPatches", "PatchMasking", "RandomPatches", "StructuredPatches"]
