"""What is trained: one LightningModule a file. Names are resolved when first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peas.tasks.classification import Classification
    from peas.tasks.ssast import SSASTPretraining

__all__ = ["Classification", "SSASTPretraining"]


def __getattr__(name: str) -> Any:
    if name == "Classification":
        from peas.tasks.classification import Classification

        return Classification
    if name == "SSASTPretraining":
        from peas.tasks.ssast import SSASTPretraining

        return SSASTPretraining
    raise AttributeError(f"module 'peas.tasks' has no attribute {name!r}")
