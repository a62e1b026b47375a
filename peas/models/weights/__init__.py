"""Weights: safe reading of checkpoints, and key maps between official layouts and ours."""

from collections.abc import Mapping
from typing import Any

from peas.models.weights.audiomae import AudioMAEFamily
from peas.models.weights.importer import Family, family_name, load_pretrained
from peas.models.weights.reading import ImportReport, read_state
from peas.models.weights.ssast import SSASTFamily

__all__ = ["AUDIOMAE", "SSAST", "ImportReport", "family_of", "load_pretrained", "read_state"]

SSAST, AUDIOMAE = SSASTFamily(), AudioMAEFamily()


def family_of(state: Mapping[str, Any]) -> Family:
    """Family of a checkpoint's weights; SSAST, which then refuses it, if it is of neither."""
    return AUDIOMAE if family_name(state) == "AudioMAE" else SSAST
