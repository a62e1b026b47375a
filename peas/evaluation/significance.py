"""Paired comparison of conditions over the same clips and seeds, with clusters of clips.

Clips of one recording, or of one speaker, tend to be right or wrong together: the independent unit
is the cluster (recording, speaker) and not the clip. Clusters are resampled, their signs are
flipped, and their spread gives the minimum detectable effect.

Shapes: S seeds, N clips, G clusters. NumPy alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peas.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Test = Literal["sign-flip", "t"]

ANGLES = 50_001
"""Points of the grid on which Student's distribution is integrated."""
LARGE = 1e4
"""Degrees of freedom above which Student's distribution no longer changes here."""


def cluster_sums(values: NDArray[Any], clusters: Sequence[Any] | NDArray[Any]) -> Counts:
    """Sums of integers over the clips of each cluster.

    Args:
        values: `[..., N]` integers.
        clusters: `[N]` names or numbers of the clusters.

    Returns:
        `[..., G]`, the clusters in the order of their names.
    """
    _, code = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(code.max(initial=-1)) + 1, *values.shape[:-1]), np.int64)
    np.add.at(sums, code, np.moveaxis(values, -1, 0).astype(np.int64))
    return np.moveaxis(sums, 0, -1)


@lru_cache(maxsize=64)
def _student(freedom: float) -> tuple[Floats, Floats]:
    """Values of Student's t in ascending order, and their cumulative probabilities."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, ANGLES)
    # With t = sqrt(freedom) tan(angle) the density is a power of the cosine: no gamma function.
    density = np.cos(angle) ** (freedom - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    # At either end t is infinite.
    return np.sqrt(freedom) * np.tan(angle[1:-1]), cumulative[1:-1] / cumulative[-1]


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t.

    Args:
        probability: In (0, 1).
        freedom: Degrees of freedom, 1 or more.
    """
    values, cumulative = _student(min(freedom, LARGE))
    return float(np.interp(probability, cumulative, values))


def student_tails(value: float, freedom: float) -> float:
    """Two-sided p-value of a value of Student's t."""
    values, cumulative = _student(min(freedom, LARGE))
    return float(2 * np.interp(-abs(value), values, cumulative))


def sign_flip(sums: Counts) -> float:
    """Exact two-sided p-value of the sign-flip test over clusters.

    If two conditions do not differ, each cluster's sum of differences might as well have the other
    sign. The p-value is the share of all 2^G assignments of signs whose total is at least as far
    from 0 as the observed one. The sums are integers, so the distribution of the total is built
    cluster by cluster, without enumeration.

    Args:
        sums: `[G]` sums of the differences of each cluster.

    Returns:
        At least `smallest_p(G)`.
    """
    # The sign of a cluster without a difference does not matter.
    steps = np.abs(sums[sums != 0])
    reach = int(steps.sum())
    probability = np.zeros(2 * reach + 1)
    probability[reach] = 1.0
    for step in steps:
        # Nothing is rolled over the ends: they are as far as all steps together.
        probability = (np.roll(probability, step) + np.roll(probability, -step)) / 2
    extreme = np.abs(np.arange(-reach, reach + 1)) >= abs(int(sums.sum()))
    return min(1.0, float(probability[extreme].sum()))


def smallest_p(clusters: int) -> float:
    """Smallest possible p-value of `sign_flip`: the two assignments in which all signs agree."""
    return 2.0 ** (1 - clusters)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (S. Holm, 1979), in the order of `p`.

    They control the family-wise error rate under any dependence.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def bootstrap_interval(
    sums: Counts,
    sizes: Counts,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval of a mean, clusters resampled with replacement.

    Percentiles of the resampled mean, sum over clusters by number of clips. Plain percentiles are
    too narrow for few clusters (6 clusters: near 83 % instead of 95 %); as T. Hesterberg advises
    (2015, "expanded percentile") they are therefore taken at the levels of
    -sqrt(G / (G - 1)) t[G - 1], which are the plain ones for many clusters.

    Args:
        sums: `[G]` sums of each cluster.
        sizes: `[G]` how many values each sum has.
        confidence: Of the interval.
        resamples: Number of resamples.
        seed: Of the resamples.
    """
    weights, level = bootstrap_weights(
        len(sums), confidence=confidence, resamples=resamples, seed=seed
    )
    means = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(means, [level, 1 - level])
    return float(low), float(high)


def bootstrap_weights(
    groups: int, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Counts, float]:
    """Resamples of clusters, and the level of the expanded percentiles of `bootstrap_interval`.

    Args:
        groups: Number of clusters G, 2 or more.
        confidence: Of the interval.
        resamples: Number of resamples R.
        seed: Of the resamples.

    Returns:
        `[R, G]` how often each has each cluster, and the lower percentile as a share.
    """
    edge = student_quantile((1 - confidence) / 2, groups - 1) * math.sqrt(groups / (groups - 1))
    level = math.erfc(-edge / math.sqrt(2)) / 2
    source = np.random.default_rng(seed)
    weights = source.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return weights, level


class Spread(NamedTuple):
    """Standard error of a mean over clusters and seeds.

    Attributes:
        error: Standard error, with clusters and seeds both random.
        freedom: Its degrees of freedom (Satterthwaite).
        given_seeds: Standard error with clusters random and seeds fixed.
        groups: Number of clusters G.
    """

    error: float
    freedom: float
    given_seeds: float
    groups: int


def spread(differences: NDArray[Any], clusters: Sequence[Any] | NDArray[Any]) -> Spread:
    """Standard error of the mean of differences, from clusters and seeds as crossed effects.

    Two-way analysis of variance of the cells (cluster, seed): a cell's sum less the mean times its
    clips, times G / N. With the mean squares of clusters, seeds and residuals

        error² = (MS_clusters + max(0, MS_seeds - MS_residual)) / (G S)

    With one seed the error is that of the clusters.

    Args:
        differences: `[S, N]` integers.
        clusters: `[N]` names or numbers of the clusters.

    Raises:
        DataError: There is one cluster only.
    """
    sums = cluster_sums(differences, clusters)
    sizes = cluster_sums(np.ones(differences.shape[-1]), clusters)
    seeds, groups = sums.shape
    if groups < 2:
        raise DataError(f"all clips are of {groups} cluster: a spread needs two or more clusters")
    total = sizes.sum()
    cells = (sums - sums.sum() / (seeds * total) * sizes) * groups / total
    of_group, of_seed = cells.mean(axis=0), cells.mean(axis=1)
    square = seeds * float((of_group**2).sum()) / (groups - 1)
    alone = square / (groups * seeds)
    if seeds == 1:
        return Spread(math.sqrt(alone), groups - 1, math.sqrt(alone), groups)
    rest = cells - of_group - of_seed[:, None]
    rest_square = float((rest**2).sum()) / ((groups - 1) * (seeds - 1))
    seed_square = groups * float((of_seed**2).sum()) / (seeds - 1)
    freedom = float(groups - 1)
    if seed_square > rest_square:
        terms = square**2 / (groups - 1) + seed_square**2 / (seeds - 1)
        terms += rest_square**2 / ((groups - 1) * (seeds - 1))
        square += seed_square - rest_square
        freedom = min(freedom, max(1.0, square**2 / terms))
    return Spread(math.sqrt(square / (groups * seeds)), freedom, math.sqrt(alone), groups)


def detectable_effect(
    spread: Spread, *, comparisons: int = 1, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Minimum detectable effect: smallest true difference that a two-sided test finds at `power`.

    effect = (t[1 - alpha / (2 K)] + t[power]) error, quantiles of Student's t with the error's
    degrees of freedom; K comparisons are tested at the level alpha / K of Holm's first step. For
    many clusters that is 2.80 errors with K = 1, and 3.08 with K = 2.
    """
    levels = (1 - alpha / (2 * comparisons), power)
    return spread.error * sum(student_quantile(level, spread.freedom) for level in levels)


@dataclass(frozen=True)
class Comparison:
    """A condition against the baseline; shares of clips, 0.01 = one point of accuracy.

    Attributes:
        condition: Its name.
        detectable: Minimum detectable effect; infinite if no p-value of the test is small enough.
        difference: Accuracy of the condition less that of the baseline, mean over the seeds.
        by_seed: `[S]` the same for each seed.
        low: Lower end of the difference's bootstrap interval.
        high: Upper end.
        p: Two-sided p-value.
        holm: The same, adjusted for all comparisons (`holm`).
        spread: Standard error of the difference.
        significant: Whether `holm` is below alpha and the difference not below `detectable`.
    """

    condition: str
    detectable: float
    difference: float
    by_seed: list[float]
    low: float
    high: float
    p: float
    holm: float
    spread: Spread
    significant: bool

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no significant difference`."""
        if not self.significant:
            return "no significant difference"
        return "better" if self.difference > 0 else "worse"


def compare(
    correct: Mapping[str, NDArray[np.bool_]],
    clusters: Sequence[Any] | NDArray[Any],
    baseline: str,
    *,
    test: Test = "sign-flip",
    alpha: float = 0.05,
    power: float = 0.8,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every other condition with the baseline, clip by clip and seed by seed.

    Intervals and p-values treat clusters as random and seeds as fixed; the minimum detectable
    effect also counts the spread over seeds, and a smaller difference is not significant.

    Args:
        correct: For each condition `[S, N]`, whether each clip was classified correctly; rows and
            columns of all conditions are the same seeds and clips.
        clusters: `[N]` cluster of each clip: its source recording, or its speaker.
        baseline: The condition that the others are compared with.
        test: `sign-flip` (exact; with 6 clusters and two comparisons no adjusted p-value is below
            0.0625), or `t`: Student's t of the clusters' differences, which keeps its level with
            few clusters of unequal variance too (Ibragimov and Mueller, 2010). Choose it before
            the results are known.
        alpha: Level of the tests.
        power: Of the minimum detectable effect.
        resamples: Of the bootstrap.
        seed: Of the resamples, the same ones for all conditions.

    Raises:
        ConfigError: The baseline or the test is unknown, or there is nothing to compare.
        DataError: Conditions have different shapes or hold other than true and false, or there is
            one cluster only.
    """
    _check(correct, clusters, baseline, test)
    sizes = cluster_sums(np.ones(len(clusters)), clusters)
    conditions = [name for name in correct if name != baseline]
    p, rows = [], []
    for name in conditions:
        differences = correct[name].astype(np.int64) - correct[baseline]
        sums = cluster_sums(differences, clusters).sum(axis=0)
        error = spread(differences, clusters)
        mean = float(differences.mean())
        p.append(sign_flip(sums) if test == "sign-flip" else _t_test(mean, error))
        weights = sizes * len(differences)
        interval = bootstrap_interval(sums, weights, resamples=resamples, seed=seed)
        rows.append((differences.mean(axis=1), mean, interval, error))
    out_of_reach = test == "sign-flip" and smallest_p(len(sizes)) * len(conditions) >= alpha
    results = []
    for name, (by_seed, mean, (low, high), error), raw, adjusted in zip(
        conditions, rows, p, holm(p), strict=True
    ):
        detectable = math.inf
        if not out_of_reach:
            detectable = detectable_effect(
                error, comparisons=len(conditions), alpha=alpha, power=power
            )
        significant = adjusted < alpha and abs(mean) >= detectable
        seeds = [float(value) for value in by_seed]
        results.append(
            Comparison(name, detectable, mean, seeds, low, high, raw, adjusted, error, significant)
        )
    return results


def _t_test(mean: float, error: Spread) -> float:
    if mean == 0:
        return 1.0
    if error.given_seeds == 0:
        return 0.0
    return student_tails(mean / error.given_seeds, error.groups - 1)


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
            f"baseline is {baseline!r}, and the conditions are {', '.join(correct)}: give the "
            "baseline and at least one other condition"
        )
    for name, hits in correct.items():
        if hits.dtype != np.bool_ or hits.ndim != 2:
            raise DataError(f"{name}: give an array [seeds, clips] of true and false")
        if hits.shape != correct[baseline].shape or hits.shape[1] != len(clusters):
            raise DataError(
                f"{name} has {hits.shape[0]} seeds and {hits.shape[1]} clips, {baseline} has "
                f"{correct[baseline].shape[0]} and {correct[baseline].shape[1]}, and "
                f"{len(clusters)} clips have a cluster: give the same seeds and clips to all"
            )
    if not correct[baseline].size:
        raise DataError("there is no clip, or no seed, to compare")
    if len(np.unique(np.asarray(clusters))) < 2:
        raise DataError("all clips are of one cluster: a comparison needs two or more")
