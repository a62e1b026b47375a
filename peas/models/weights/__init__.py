"""Reading checkpoints: safe loading, and key maps between the official layouts and ours."""

from peas.models.weights.families import load_pretrained
from peas.models.weights.reading import ImportReport, read_state

__all__ = ["ImportReport", "load_pretrained", "read_state"]
