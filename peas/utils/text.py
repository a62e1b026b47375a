"""Long lists in short messages."""

from collections.abc import Iterable


def some(values: Iterable[object], limit: int = 3) -> str:
    """The first few values, and the number of the others.

    Args:
        values: What to list.
        limit: How many to name.
    """
    listed = [str(value) for value in values]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
