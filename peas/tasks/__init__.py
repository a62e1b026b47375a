"""What is trained: one LightningModule a file. Names are resolved when first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peas.tasks.classification import Classification

__all__ = ["Classification"]


def __getattr__(name: str) -> Any:
    if name == "Classification":
        from peas.tasks.classification import Classification

        return Classification
    raise AttributeError(f"module 'peas.tasks' has no attribute {name!r}")
