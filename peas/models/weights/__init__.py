"""Weights: safe reading of checkpoints, and key maps between official layouts and ours."""

from collections.abc import Mapping
from typing import Any

from peas.models.weights.audiomae import AudioMAEFamily
from peas.models.weights.beats import BEATsFamily
from peas.models.weights.eat import EATFamily
from peas.models.weights.importer import Family, family_name, load_pretrained
from peas.models.weights.reading import ImportReport, read_state
from peas.models.weights.ssast import SSASTFamily

__all__ = [
    "AUDIOMAE",
    "BEATS",
    "EAT",
    "SSAST",
    "ImportReport",
    "family_of",
    "load_pretrained",
    "read_state",
]

SSAST, AUDIOMAE, BEATS, EAT = SSASTFamily(), AudioMAEFamily(), BEATsFamily(), EATFamily()


def family_of(state: Mapping[str, Any]) -> Family:
    """Family of a checkpoint's weights; SSAST, which then refuses it, if it is of none."""
    families: dict[str | None, Family] = {f.name: f for f in (SSAST, AUDIOMAE, BEATS, EAT)}
    return families.get(family_name(state), SSAST)
