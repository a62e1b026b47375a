"""Paired comparisons: against brute force, against SciPy, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from peas.errors import ConfigError, DataError
from peas.evaluation.significance import (
    bootstrap_interval,
    cluster_sums,
    compare,
    detectable_effect,
    holm,
    sign_flip,
    smallest_p,
    spread,
    student_quantile,
    student_tails,
)


def test_sums_of_clusters():
    values = np.array([[1, -1, 1, 0], [0, 1, 1, 1]])
    sums = cluster_sums(values, ["b", "a", "b", "c"])
    assert sums.tolist() == [[-1, 2, 0], [1, 1, 1]]


@pytest.mark.parametrize("freedom", [1, 2, 5, 17.3, 303, 1e4])
def test_students_distribution(freedom):
    for chance in (0.0025, 0.1, 0.5, 0.8, 0.975):
        ours = student_quantile(chance, freedom)
        assert ours == pytest.approx(stats.t.ppf(chance, freedom), rel=1e-4, abs=1e-9)
    for value in (0.0, -0.7, 2.5, 6.0):
        theirs = 2 * stats.t.sf(abs(value), freedom)
        assert student_tails(value, freedom) == pytest.approx(theirs, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_are_exact(seed):
    sums = np.random.default_rng(seed).integers(-4, 6, size=9)
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    share = np.mean(np.array(totals) >= abs(sums.sum()))
    assert sign_flip(sums) == pytest.approx(share, abs=1e-12)
    theirs = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip(sums) == pytest.approx(theirs, abs=1e-12)


def test_sign_flips_of_many_clusters_are_a_binomial():
    sums = np.array([1] * 190 + [-1] * 150 + [0] * 60)
    assert sign_flip(sums) == pytest.approx(stats.binomtest(190, 340).pvalue, rel=1e-9)


def test_the_smallest_p_value():
    assert sign_flip(np.array([3, 5, 1, 7, 2, 9])) == smallest_p(6) == 2 / 64
    assert sign_flip(np.zeros(4, np.int64)) == 1.0


def test_holm_is_the_closed_test():
    """Brute force: every set of hypotheses is tested by Bonferroni."""
    source = np.random.default_rng(1)
    for count in (1, 2, 5):
        p = source.uniform(0, 0.4, count).tolist()
        sets = [
            [*chosen]
            for size in range(1, count + 1)
            for chosen in itertools.combinations(range(count), size)
        ]
        for number, adjusted in enumerate(holm(p)):
            whole = max(
                min(1.0, len(some) * min(p[i] for i in some)) for some in sets if number in some
            )
            assert adjusted == pytest.approx(whole, abs=1e-12)


def test_the_spread_of_one_seed_is_a_t_test_of_the_clusters():
    source = np.random.default_rng(2)
    differences = source.integers(-1, 2, size=(1, 60))
    clusters = np.repeat(np.arange(12), 5)
    means = differences.reshape(12, 5).mean(axis=1)
    found = spread(differences, clusters)
    assert found.error == pytest.approx(stats.sem(means), rel=1e-12)
    assert found.given_seeds == found.error
    assert found.freedom == 11
    arms = {"base": np.zeros((1, 60), bool), "arm": differences[0:1] != 0}
    means = arms["arm"].reshape(12, 5).mean(axis=1)
    (row,) = compare(arms, clusters, "base", test="t")
    assert row.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-3)


def test_the_spread_of_clusters_and_seeds_is_the_spread_of_the_mean():
    """Mean over 1,500 repetitions of error² against the variance that the means really had."""
    source = np.random.default_rng(3)
    clusters = np.repeat(np.arange(30), source.integers(1, 4, 30))
    means, errors, given = [], [], []
    for _ in range(1500):
        effect = source.normal(0, 0.5, 30)[clusters] + source.normal(0, 0.2, (3, 1))
        noisy = np.clip(np.rint(effect + source.normal(0, 0.6, (3, len(clusters)))), -1, 1)
        found = spread(noisy, clusters)
        means.append(noisy.mean())
        errors.append(found.error**2)
        given.append(found.given_seeds**2)
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.12)
    # Without the seeds' part it would be far too small.
    assert np.mean(given) < 0.7 * np.var(means)


def test_seeds_that_agree_add_nothing():
    source = np.random.default_rng(4)
    row = source.integers(-1, 2, size=(1, 40))
    clusters = np.arange(40) // 2
    one, three = spread(row, clusters), spread(np.repeat(row, 3, axis=0), clusters)
    assert three == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("comparisons", [1, 2])
@pytest.mark.parametrize(("freedom", "off"), [(5, 0.04), (30, 0.005), (303, 0.002)])
def test_the_detectable_gap_has_its_power(freedom, off, comparisons):
    found = spread(np.random.default_rng(0).integers(-1, 2, (1, 50)), np.arange(50))
    found = found._replace(freedom=freedom)
    detectable = detectable_effect(found, comparisons=comparisons)
    edge = stats.t.ppf(1 - 0.025 / comparisons, freedom)
    power = stats.nct.sf(edge, freedom, detectable / found.error)
    assert power == pytest.approx(0.8, abs=off)


def test_the_gap_of_many_clusters_is_2_80_errors():
    found = spread(np.random.default_rng(0).integers(-1, 2, (1, 50)), np.arange(50))
    assert detectable_effect(found._replace(freedom=1e6)) / found.error == pytest.approx(
        2.80, abs=5e-3
    )


def _coverage(clusters, repetitions=400):
    source = np.random.default_rng(clusters)
    hits = 0
    for _ in range(repetitions):
        sizes = source.integers(3, 6, clusters) * 10
        sums = np.array(
            [
                source.binomial(n, rate)
                for n, rate in zip(sizes, source.beta(4, 4, clusters), strict=True)
            ]
        )
        low, high = bootstrap_interval(sums, sizes, resamples=800, seed=0)
        hits += low <= 0.5 <= high
    return hits / repetitions


@pytest.mark.parametrize("clusters", [6, 40])
def test_intervals_cover_the_truth(clusters):
    # Three standard errors of 400 repetitions around 95 %.
    assert _coverage(clusters) == pytest.approx(0.95, abs=0.033)


def test_arms_that_do_not_differ_are_rarely_called_different():
    """Equal arms, each with its own luck of seeds: the p-value alone would be wrong too often."""
    source = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 2)
    significant = small_p = 0
    for _ in range(200):
        hard = source.normal(0, 1, 40)[clusters]
        correct = {
            condition: hard + source.normal(0, 0.2, (3, 1)) + source.normal(0, 1, (3, 80)) > 0
            for condition in ("base", "one", "two")
        }
        rows = compare(correct, clusters, "base", resamples=50)
        significant += any(row.significant for row in rows)
        small_p += any(row.holm < 0.05 for row in rows)
    assert significant / 200 <= 0.05
    assert small_p / 200 > 0.15


def test_a_true_difference_is_shown():
    source = np.random.default_rng(6)
    hard = source.normal(0, 1, 300)
    correct = {
        condition: hard + gain + source.normal(0, 1, (3, 300)) > 0
        for condition, gain in (("base", 0.0), ("better", 0.9), ("worse", -0.9), ("same", 0.0))
    }
    rows = {row.condition: row for row in compare(correct, np.arange(300) // 2, "base")}
    assert [rows[condition].verdict for condition in ("better", "worse", "same")] == [
        "better",
        "worse",
        "no significant difference",
    ]
    row = rows["better"]
    assert row.difference == pytest.approx(correct["better"].mean() - correct["base"].mean())
    assert np.mean(row.by_seed) == pytest.approx(row.difference)
    assert row.low < row.difference < row.high
    assert row.low > 0
    assert row.holm == pytest.approx(row.p * 3) or row.holm == rows["worse"].holm
    assert 0 < row.detectable < row.difference


def test_six_speakers_and_two_comparisons_cannot_show_anything_by_sign_flips():
    right = np.ones((1, 60), bool)
    correct = {"base": ~right, "one": right, "two": right.copy()}
    speakers = np.arange(60) % 6
    rows = compare(correct, speakers, "base")
    assert [row.holm for row in rows] == [4 / 64, 4 / 64]
    assert [row.detectable for row in rows] == [math.inf] * 2
    assert not any(row.significant for row in rows)
    # One comparison alone can.
    (row,) = compare({"base": ~right, "one": right}, speakers, "base")
    assert (row.p, row.verdict) == (2 / 64, "better")
    assert all(row.verdict == "better" for row in compare(correct, speakers, "base", test="t"))


def test_equal_arms():
    right = np.arange(20).reshape(1, 20) % 3 == 0
    for test in ("sign-flip", "t"):
        (row,) = compare({"a": right, "b": right.copy()}, np.arange(20), "a", test=test)
        assert (row.difference, row.low, row.high, row.p, row.detectable) == (0, 0, 0, 1, 0)
        assert row.verdict == "no significant difference"


def test_what_cannot_be_compared():
    right = np.ones((2, 4), bool)
    with pytest.raises(ConfigError, match=r"'x'.* a, b"):
        compare({"a": right, "b": right}, range(4), "x")
    with pytest.raises(ConfigError, match="baseline is 'a'"):
        compare({"a": right}, range(4), "a")
    with pytest.raises(ConfigError, match="give sign-flip or t"):
        compare({"a": right, "b": right}, range(4), "a", test="z")
    with pytest.raises(DataError, match="b has 1 seeds and 4 clips, a has 2 and 4"):
        compare({"a": right, "b": right[:1]}, range(4), "a")
    with pytest.raises(DataError, match="and 3 clips have a cluster"):
        compare({"a": right, "b": right}, range(3), "a")
    with pytest.raises(DataError, match="of true and false"):
        compare({"a": right, "b": right.astype(float)}, range(4), "a")
    with pytest.raises(DataError, match="one cluster"):
        compare({"a": right, "b": right}, [1, 1, 1, 1], "a")
    with pytest.raises(DataError, match="no clip"):
        compare({"a": right[:, :0], "b": right[:, :0]}, [], "a")
    with pytest.raises(DataError, match="two or more clusters"):
        spread(np.ones((1, 3)), [1, 1, 1])
