"""Reading checkpoints: safe loading, and key maps between the official layouts and ours."""

from peas.models.checkpoints.reading import ImportReport, read_state

__all__ = ["ImportReport", "read_state"]
