"""Cross-validation: which folds train, validate and test."""

from collections.abc import Sequence
from typing import TypeVar

from peas.errors import ConfigError

Fold = TypeVar("Fold")

FOLD_SCHEMES = ("official", "3/1/1")


def require_fold_scheme(scheme: str) -> None:
    """Check the argument `split` of a data set with folds.

    Raises:
        ConfigError: There is no such scheme.
    """
    if scheme not in FOLD_SCHEMES:
        raise ConfigError(f"data.init_args.split is {scheme!r}: give official or 3/1/1")


def folds_of(split: str, folds: Sequence[Fold], tested: Fold, scheme: str) -> list[Fold]:
    """Folds that serve as a split.

    `official` validates on the tested fold, as published numbers do; `3/1/1` on the next one (the
    first after the last). The others train.

    Args:
        split: `train`, `validation` or `test`.
        folds: All folds in order.
        tested: The fold that is tested.
        scheme: `official` or `3/1/1`.
    """
    following = folds[(folds.index(tested) + 1) % len(folds)]
    validation = tested if scheme == "official" else following
    if split == "train":
        return [fold for fold in folds if fold not in (validation, tested)]
    return [validation if split == "validation" else tested]
