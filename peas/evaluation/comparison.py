"""Whether arms of an experiment differ: paired over the same clips and seeds, by clusters of clips.

Shapes: S seeds, N clips. The statistics are those of `clustered`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peas.errors import ConfigError, DataError
from peas.evaluation.significance import (
    Spread,
    bootstrap_interval,
    cluster_sums,
    detectable_gap,
    holm,
    sign_flip,
    smallest_p,
    spread,
    student_tails,
)

Test = Literal["sign-flip", "t"]


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline; shares of clips, 0.01 = one point of accuracy.

    Attributes:
        arm: Name of the arm.
        gap: Smallest detectable gap; infinite where no p-value of the test could be small enough.
        difference: Accuracy of the arm less that of the baseline, mean over the seeds.
        by_seed: `[S]` the same for each seed.
        low: Lower end of the difference's bootstrap interval.
        high: Upper end.
        p: Two-sided p-value.
        holm: The same, adjusted for all comparisons (`holm`).
        spread: Standard error of the difference.
        shown: Whether a difference is shown: `holm` below alpha, and no smaller than the gap.
    """

    arm: str
    gap: float
    difference: float
    by_seed: list[float]
    low: float
    high: float
    p: float
    holm: float
    spread: Spread
    shown: bool

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference shown`."""
        if not self.shown:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


def compare(
    correct: Mapping[str, NDArray[np.bool_]],
    clusters: Sequence[Any] | NDArray[Any],
    baseline: str,
    *,
    test: Test = "sign-flip",
    alpha: float = 0.05,
    power: float = 0.8,
    draws: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """Compares every other arm with the baseline, clip by clip and seed by seed.

    Intervals and p-values are of the clusters, the seeds as they are; the detectable gap counts the
    spread over seeds too, and a difference below it is none that was shown.

    Args:
        correct: For each arm `[S, N]`, whether each clip was classified right; rows and columns of
            all arms are the same seeds and clips.
        clusters: `[N]` what each clip belongs to: its source recording, or its speaker.
        baseline: The arm that the others are compared with.
        test: `sign-flip` (exact; with 6 clusters and two comparisons no adjusted p-value lies
            below 0.0625), or `t`: Student's t of the clusters' differences, which few clusters of
            unlike spread keep to its level too (Ibragimov and Mueller, 2010). Choose before the
            results are known.
        alpha: Level of the tests.
        power: Of the smallest detectable gap.
        draws: Resamples of the bootstrap.
        seed: Of the resamples, the same ones for all arms.

    Raises:
        ConfigError: The baseline or the test is unknown, or there is nothing to compare.
        DataError: Arms are of different shapes or hold other than true and false, or there is
            one cluster only.
    """
    _check(correct, clusters, baseline, test)
    sizes = cluster_sums(np.ones(len(clusters)), clusters)
    arms = [arm for arm in correct if arm != baseline]
    p, rows = [], []
    for arm in arms:
        differences = correct[arm].astype(np.int64) - correct[baseline]
        sums = cluster_sums(differences, clusters).sum(axis=0)
        found = spread(differences, clusters)
        mean = float(differences.mean())
        p.append(sign_flip(sums) if test == "sign-flip" else _t_test(mean, found))
        ends = bootstrap_interval(sums, sizes * len(differences), draws=draws, seed=seed)
        rows.append((differences.mean(axis=1), mean, ends, found))
    out_of_reach = test == "sign-flip" and smallest_p(len(sizes)) * len(arms) >= alpha
    results = []
    for arm, (by_seed, mean, (low, high), found), one, adjusted in zip(
        arms, rows, p, holm(p), strict=True
    ):
        gap = math.inf
        if not out_of_reach:
            gap = detectable_gap(found, comparisons=len(arms), alpha=alpha, power=power)
        shown = adjusted < alpha and abs(mean) >= gap
        seeds = [float(value) for value in by_seed]
        results.append(Comparison(arm, gap, mean, seeds, low, high, one, adjusted, found, shown))
    return results


def _t_test(mean: float, found: Spread) -> float:
    if mean == 0:
        return 1.0
    if found.given_seeds == 0:
        return 0.0
    return student_tails(mean / found.given_seeds, found.groups - 1)


def _check(
    correct: Mapping[str, NDArray[np.bool_]],
    clusters: Sequence[Any] | NDArray[Any],
    baseline: str,
    test: str,
) -> None:
    if test not in ("sign-flip", "t"):
        raise ConfigError(f"test is {test!r}: give sign-flip or t")
    if baseline not in correct or len(correct) < 2:
        raise ConfigError(
            f"baseline is {baseline!r}, and the arms are {', '.join(correct)}: give the baseline "
            "and one other arm or more"
        )
    for arm, right in correct.items():
        if right.dtype != np.bool_ or right.ndim != 2:
            raise DataError(f"{arm}: give an array [seeds, clips] of true and false")
        if right.shape != correct[baseline].shape or right.shape[1] != len(clusters):
            raise DataError(
                f"{arm} has {right.shape[0]} seeds and {right.shape[1]} clips, {baseline} has "
                f"{correct[baseline].shape[0]} and {correct[baseline].shape[1]}, and "
                f"{len(clusters)} clips have a cluster: give the same seeds and clips to all"
            )
    if not correct[baseline].size:
        raise DataError("there is no clip, or no seed, to compare")
    if len(np.unique(np.asarray(clusters))) < 2:
        raise DataError("all clips are of one cluster: a comparison needs two or more")
