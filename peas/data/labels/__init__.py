"""Label tables of the public data sets, shipped with the package (origins in its README)."""

import csv
from importlib import resources


def read_labels(name: str) -> list[str]:
    """Display names of a data set's classes, in the order of their indices.

    Args:
        name: Start of the table's file name: `audioset`, `esc50` or `speech_commands_v2`.
    """
    table = resources.files(__name__).joinpath(f"{name}_class_labels_indices.csv")
    with table.open(encoding="utf-8") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: int(row["index"]))
    return [row["display_name"] for row in rows]
