"""Score of a probe over partitions, seeds and sets, with an interval over clips."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peas.errors import DataError
from peas.evaluation.probes.base import Probe, choose, hits, metric
from peas.evaluation.probes.data import ProbeSet, Split, partitions
from peas.evaluation.significance import bootstrap_interval, bootstrap_weights, cluster_sums

RESAMPLES = 300
"""Of an interval of mAP, which is computed anew for each; accuracies have 10,000."""


@dataclass(frozen=True)
class Result:
    """Score of a probe.

    Attributes:
        metric: `accuracy` or `mAP`.
        value: Mean over sets, seeds and clips; of mAP, over sets, seeds and the partitions
            that have one.
        std: Standard deviation over sets if there are several, else over seeds; None = neither.
        low: Lower end of the 95 % bootstrap interval over recordings; None with one alone, or where
            no resample has an mAP.
        high: Upper end.
        clips: Scored clips.
        classes: Classes with scored clips.
        partitions: Names of the parts that were scored, folds or a split.
        by_partition: Mean score of each; None of one without a clip of any class.
        by_run: Score of each set and seed.
        chosen: Chosen setting of each set and partition; empty without one.
        layers: Numbers of the layers.
        seconds: Time it took.
    """

    metric: str
    value: float
    std: float | None
    low: float | None
    high: float | None
    clips: int
    classes: int
    partitions: list[str]
    by_partition: list[float | None]
    by_run: list[list[float]]
    chosen: list[list[float]]
    layers: list[int]
    seconds: float


def evaluate(
    probe: Probe,
    sets: Sequence[ProbeSet],
    *,
    seeds: Sequence[int] = (0,),
    split: Split | None = None,
) -> Result:
    """Trains and scores a probe.

    Args:
        probe: The probe.
        sets: Embeddings of the same clips, such as by encoders of several pretraining seeds.
        seeds: Of the probe's random numbers; a probe without any is trained once.
        split: As for `partitions`.

    Raises:
        ConfigError: The probe needs what a set lacks.
        DataError: The sets hold different clips, or no clip that is scored has a class.
    """
    start = time.perf_counter()
    first = sets[0]
    for data in sets:
        probe.check(data)
        if list(data.ids) != list(first.ids) or not torch.equal(data.targets, first.targets):
            raise DataError(f"{data.name}: stores of one name hold different clips or classes")
    parts = partitions(first, split)
    defined = np.array([bool(first.targets[part.test].any()) for part in parts])
    if not defined.any():
        names = ", ".join(part.name for part in parts)
        raise DataError(f"{first.name}: no clip of {names} has a class, so there is no score")
    runs: list[list[Tensor]] = []
    chosen: list[list[float]] = []
    for data in sets:
        values = [choose(probe, data, part) for part in parts]
        chosen.append([value for value in values if value is not None])
        for seed in seeds if probe.seeded else seeds[:1]:
            runs.append(
                [
                    probe.scores(data, part.train, part.test, value, seed)
                    for part, value in zip(parts, values, strict=True)
                ]
            )
    targets = [first.targets[part.test] for part in parts]
    table = np.array(
        [
            [
                float(metric(scores, true, first.multi_label))
                for scores, true in zip(run, targets, strict=True)
            ]
            for run in runs
        ]
    )
    rows = torch.cat([part.test for part in parts])
    clusters = [first.clusters[row] for row in rows.tolist()]
    if first.multi_label:
        by_run = table[:, defined].mean(axis=1)
        interval = _map_interval(runs, targets, clusters)
    else:
        by_run = np.average(table, axis=1, weights=[len(part.test) for part in parts])
        interval = _accuracy_interval(runs, targets, clusters)
    by_run = by_run.reshape(len(sets), -1)
    spread = by_run.mean(axis=1) if len(sets) > 1 else by_run[0]
    return Result(
        metric="mAP" if first.multi_label else "accuracy",
        value=float(by_run.mean()),
        std=statistics.stdev(spread.tolist()) if len(spread) > 1 else None,
        low=interval and interval[0],
        high=interval and interval[1],
        clips=len(rows),
        classes=int(first.targets[rows].any(dim=0).sum()),
        partitions=[part.name for part in parts],
        by_partition=[
            float(score) if there else None
            for score, there in zip(table.mean(axis=0), defined, strict=True)
        ],
        by_run=by_run.tolist(),
        chosen=[values for values in chosen if values],
        layers=[first.layers[index] for index in probe.layers(first)],
        seconds=time.perf_counter() - start,
    )


Interval = tuple[float, float] | None


def _accuracy_interval(
    runs: list[list[Tensor]], targets: list[Tensor], clusters: list[str]
) -> Interval:
    correct = [
        torch.cat([hits(scores, true) for scores, true in zip(run, targets, strict=True)])
        for run in runs
    ]
    sums = cluster_sums(torch.stack(correct).numpy(), clusters)
    if sums.shape[1] < 2:
        return None
    sizes = cluster_sums(np.ones(len(clusters)), clusters) * len(runs)
    return bootstrap_interval(sums.sum(axis=0), sizes)


def _map_interval(runs: list[list[Tensor]], targets: list[Tensor], clusters: list[str]) -> Interval:
    _, codes = np.unique(clusters, return_inverse=True)
    groups = int(codes.max()) + 1
    if groups < 2:
        return None
    weights, level = bootstrap_weights(groups, resamples=RESAMPLES)
    ends = np.cumsum([len(true) for true in targets])[:-1]
    of_parts = np.split(weights[:, codes], ends, axis=1)
    scored = np.array(
        [
            weighted_map(scores, true, weight)
            for run in runs
            for scores, true, weight in zip(run, targets, of_parts, strict=True)
        ]
    )
    # A resample may have no clip of any class in a part, or in all of them.
    scored = scored[:, ~np.isnan(scored).all(axis=0)]
    if not scored.size:
        return None
    low, high = np.quantile(np.nanmean(scored, axis=0), [level, 1 - level])
    return float(low), float(high)


def weighted_map(
    scores: Tensor, positives: Tensor, weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """MAP as if each clip were there as often as its weight says.

    Args:
        scores: `[K, C]`.
        positives: `[K, C]` bool.
        weights: `[R, K]` of R resamples.

    Returns:
        `[R]`; classes without a positive clip are left out.
    """
    ordered, order = torch.sort(scores, dim=0, descending=True)
    hit = torch.gather(positives.double(), 0, order)
    # Clips of equal score share a threshold: each uses the counts at the end of its group.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    row = torch.arange(len(hit)).unsqueeze(1).expand_as(hit)
    end = torch.where(last, row, len(hit)).flip(0).cummin(dim=0).values.flip(0)
    means = []
    for counts in torch.from_numpy(weights).double():
        weight = counts[order]
        found = torch.gather((hit * weight).cumsum(dim=0), 0, end)
        retrieved = torch.gather(weight.cumsum(dim=0), 0, end).clamp(min=1)
        precision = (hit * weight * found / retrieved).sum(dim=0) / (hit * weight).sum(dim=0)
        means.append(float(precision.nanmean()))
    return np.array(means)
