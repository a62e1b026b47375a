"""Callbacks that stand beside another in a run."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

C = TypeVar("C", bound=Callback)


def siblings(trainer: Trainer, kind: type[C]) -> list[C]:
    """The callbacks of a kind, in their order.

    Args:
        trainer: Of the run.
        kind: Class.
    """
    # Lightning sets the attribute where a type checker does not see it.
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]
