"""Probes on embeddings: scikit-learn and brute force, folds, seeds, intervals, bad input."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from peas.errors import ConfigError, DataError
from peas.evaluation import logistic
from peas.evaluation.knn import votes, xares_votes
from peas.evaluation.metrics import class_scores
from peas.evaluation.probes import PROBES, ProbeSet, choose, evaluate, partitions
from peas.evaluation.probes.heads import AttentionPooling, ConvexGate
from peas.evaluation.probes.scores import weighted_map

CLASSES = 3
QUICK = ("knn", "linear", "weighted", "attentive", "prototypes")


def probe_set(clips: int = 60, noise: float = 1.0, **settings: Any) -> ProbeSet:
    """Two layers of which the second is noise; tokens around the first."""
    source = torch.Generator().manual_seed(3)
    classes = torch.arange(clips) % CLASSES
    centres = 2 * torch.eye(CLASSES, 8)
    good = centres[classes] + noise * torch.randn(clips, 8, generator=source)
    embeddings = torch.stack([good, torch.randn(clips, 8, generator=source)])
    lengths = [3 + row % 4 for row in range(clips)]
    frames = [
        embeddings[:, row, None] + 0.1 * torch.randn(2, length, 8, generator=source)
        for row, length in enumerate(lengths)
    ]
    made: dict[str, Any] = {
        "name": "toy",
        "ids": [f"clip{row}" for row in range(clips)],
        "embeddings": embeddings,
        "layers": [2, 4],
        "targets": torch.nn.functional.one_hot(classes).bool(),
        "multi_label": False,
        "split": [str(1 + row // CLASSES % 5) for row in range(clips)],
        "clusters": [f"recording{row // 2}" for row in range(clips)],
        "tokens": lambda row, layers: frames[row][layers],
    }
    return ProbeSet(**{**made, **settings})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peas.evaluation.probes.heads.EPOCHS", 10)
    monkeypatch.setattr("peas.evaluation.probes.heads.BATCH", 8)
    for name in ("linear", "weighted"):
        monkeypatch.setattr(PROBES[name], "grid", (0.01, 0.1))


# --- against scikit-learn and brute force --------------------------------------------------


@pytest.mark.parametrize(("clips", "width"), [(90, 12), (40, 70)])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_logistic_regression_is_that_of_scikit_learn(clips: int, width: int, c: float) -> None:
    from sklearn.linear_model import LogisticRegression

    source = np.random.default_rng(0)
    classes = source.integers(0, 4, clips)
    features = source.standard_normal((clips, width)) @ source.standard_normal((width, width))
    features += classes[:, None]
    (scaled,) = logistic.standardise(torch.from_numpy(features))
    found = logistic.fit(scaled, torch.eye(4)[classes], c)
    wanted = LogisticRegression(C=c, tol=1e-9, max_iter=50_000).fit(scaled.numpy(), classes)
    scale = np.abs(wanted.coef_).max()
    assert np.abs(found.weight.T.numpy() - wanted.coef_).max() < 1e-3 * scale
    probabilities = found(scaled).softmax(dim=1).numpy()
    assert probabilities == pytest.approx(wanted.predict_proba(scaled.numpy()), abs=2e-4)


def test_one_regression_a_class_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    source = np.random.default_rng(1)
    features = source.standard_normal((80, 6))
    targets = features @ source.standard_normal((6, 3)) + source.standard_normal((80, 3)) > 0
    tensors = torch.from_numpy(features), torch.from_numpy(targets)
    found = logistic.fit(*tensors, 0.1, multi_label=True)
    for column in range(3):
        model = LogisticRegression(C=0.1, tol=1e-9).fit(features, targets[:, column])
        assert found.weight[:, column].numpy() == pytest.approx(model.coef_[0], abs=1e-5)
        assert float(found.bias[column]) == pytest.approx(model.intercept_[0], abs=1e-5)


def test_standardised_by_the_training_clips_alone() -> None:
    train, test = torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.tensor([[3.0, 3.0]])
    scaled, tested = logistic.standardise(train, test)
    assert scaled.tolist() == [[0.0, -1.0], [0.0, 1.0]]
    assert tested.tolist() == [[2.0, 0.0]]


def test_votes_of_xares_are_its_own_loop() -> None:
    source = np.random.default_rng(2)
    train, test = source.standard_normal((30, 5)) + 1, source.standard_normal((7, 5)) + 1
    classes = source.integers(0, 3, 30)
    targets = torch.eye(3)[classes]
    found = xares_votes(torch.from_numpy(train), targets, torch.from_numpy(test), 4)
    for row, clip in enumerate(test):
        similarity = (train / np.linalg.norm(train, axis=0)) @ (clip / np.linalg.norm(clip))
        nearest = np.argsort(-similarity)[:4]
        weights = np.exp(similarity[nearest] / 0.07)
        wanted = [weights[classes[nearest] == label].sum() / weights.sum() for label in range(3)]
        assert found[row].tolist() == pytest.approx(wanted)


def test_votes_add_up_where_clips_are_near() -> None:
    train = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, -0.1]])
    found = votes(train, torch.eye(2)[[0, 0, 1, 1]], train, 2)
    assert found.argmax(dim=1).tolist() == [0, 0, 1, 1]


def test_attention_that_has_learnt_nothing_is_the_mean() -> None:
    tokens = torch.randn(2, 1, 5, 16)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    head = AttentionPooling(torch.zeros(16), torch.ones(16), 3)
    means = torch.stack([tokens[0, 0].mean(dim=0), tokens[1, 0, :2].mean(dim=0)])
    assert torch.allclose(head(tokens, valid), head.classifier(means), atol=1e-6)
    with torch.no_grad():
        head.query.normal_()
    tokens[1, :, 2:] = 1e4
    other = head(tokens, valid)
    assert torch.allclose(other[1], head(tokens[1:, :, :2], valid[1:, :2])[0], atol=1e-6)


def test_prototypes_by_hand() -> None:
    tokens = torch.randn(2, 3, 5, 4)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    head = ConvexGate(3, 4, 2).eval()
    with torch.no_grad():
        head.gate.normal_()
    scores = head(tokens, valid)
    for clip, length in enumerate((5, 3)):
        described = []
        gate = head.gate.exp() / head.gate.exp().sum()
        unit = [p / p.norm() for p in head.prototypes]
        products = [
            [
                sum(gate[k] * tokens[clip, k, t] @ p / tokens[clip, k, t].norm() for k in range(3))
                for t in range(length)
            ]
            for p in unit
        ]
        for pool in (min, lambda row: sum(row) / len(row), max):
            described += [pool(row) for row in products]
        wanted = head.classifier(torch.stack(described))
        assert torch.allclose(scores[clip], wanted, atol=1e-5)


def test_weighted_map_is_that_of_repeated_clips() -> None:
    source = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40, 3), generator=source).double()
    positives = torch.rand(40, 3, generator=source) < 0.3
    weights = np.random.default_rng(0).integers(0, 3, (5, 40))
    found = weighted_map(scores, positives, weights)
    for counts, value in zip(weights, found, strict=True):
        rows = torch.repeat_interleave(torch.arange(40), torch.from_numpy(counts))
        precision = class_scores(scores[rows], positives[rows]).average_precision
        assert value == pytest.approx(float(precision.nanmean()))


# --- parts ----------------------------------------------------------------------------------


def test_each_fold_is_scored_by_the_others() -> None:
    data = probe_set()
    folds = partitions(data)
    assert [part.name for part in folds] == ["1", "2", "3", "4", "5"]
    assert torch.cat([part.test for part in folds]).sort().values.tolist() == list(range(60))
    for number, part in enumerate(folds):
        assert not set(part.train.tolist()) & set(part.test.tolist())
        assert len(part.choices) == 4
        # The first choice leaves out the next fold.
        assert part.choices[0][1].tolist() == folds[(number + 1) % 5].test.tolist()
        for train, out in part.choices:
            assert set(train.tolist()) | set(out.tolist()) == set(part.train.tolist())
            assert not set(train.tolist()) & set(out.tolist())


def split_of(*names: str) -> list[str]:
    return [names[row // CLASSES % len(names)] for row in range(60)]


def test_choices_for_test_are_made_on_validation() -> None:
    (part,) = partitions(probe_set(split=split_of("train", "train", "validation", "test")))
    assert part.name == "test"
    assert len(part.choices) == 1
    assert part.choices[0][0].tolist() == part.train.tolist()
    assert not set(part.choices[0][1].tolist()) & {*part.train.tolist(), *part.test.tolist()}


def test_without_validation_recordings_stay_together() -> None:
    data = probe_set(split=split_of("train", "test"))
    (part,) = partitions(data)
    assert len(part.choices) == 5
    for train, out in part.choices:
        recordings = [{data.clusters[row] for row in rows.tolist()} for rows in (train, out)]
        assert not recordings[0] & recordings[1]


def test_clips_without_a_class_are_left_out() -> None:
    targets = probe_set().targets.clone()
    targets[7] = False
    targets[8, :2] = True
    folds = partitions(probe_set(targets=targets))
    rows = {row for part in folds for row in [*part.train.tolist(), *part.test.tolist()]}
    assert rows == set(range(60)) - {7, 8}


# --- scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_every_probe_learns_and_repeats(name: str, quick: None) -> None:
    data = probe_set(noise=0.3)
    layer = None if name in ("weighted", "prototypes") else 2
    first, second = (evaluate(PROBES[name](layer), [data], seeds=[0, 1]) for _ in range(2))
    assert first.value > 0.9
    assert first.by_run == second.by_run
    assert first.low is not None
    assert first.high is not None
    assert first.low <= first.value <= first.high
    assert (first.clips, first.classes, len(first.partitions)) == (60, 3, 5)
    assert first.layers == ([2] if layer else [2, 4])
    seeded = name in ("attentive", "prototypes")
    assert [len(runs) for runs in first.by_run] == [2 if seeded else 1]
    assert (first.std is None) is not seeded


def test_random_numbers_of_the_caller_are_left_alone(quick: None) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    for name in QUICK:
        evaluate(PROBES[name](), [probe_set()])
    assert torch.equal(torch.rand(3), wanted)


def test_the_last_layer_unless_another_is_given(quick: None) -> None:
    data = probe_set(noise=0.3)
    scores = {layer: evaluate(PROBES["linear"](layer), [data]) for layer in (None, 2, 4, -1, -2)}
    assert scores[None].layers == scores[-1].layers == [4]
    assert scores[-2].value == scores[2].value > 0.9
    assert scores[None].value < 0.6


def test_the_weights_find_the_layer_that_knows(quick: None) -> None:
    data = probe_set(noise=0.3)
    assert evaluate(PROBES["weighted"](), [data]).value > 0.9


def test_a_setting_is_chosen_without_the_test_clips() -> None:
    data = probe_set()
    spoilt = data.embeddings.clone()
    rows = partitions(data)[4].test
    spoilt[:, rows] = 100 * torch.randn(2, len(rows), 8)
    probe = PROBES["linear"](2)
    other = probe_set(embeddings=spoilt)
    values = [choose(probe, one, partitions(one)[4]) for one in (data, other)]
    assert values[0] == values[1]
    assert evaluate(probe, [data]).by_partition[4] != evaluate(probe, [other]).by_partition[4]


def test_several_stores_are_averaged() -> None:
    sets = [probe_set(noise=noise) for noise in (0.3, 3.0)]
    both = evaluate(PROBES["knn"](2), sets)
    alone = [evaluate(PROBES["knn"](2), [one]).value for one in sets]
    assert both.value == pytest.approx(np.mean(alone))
    assert both.std == pytest.approx(np.std(alone, ddof=1))


def test_the_interval_is_over_recordings() -> None:
    """Two clips of a recording that are right or wrong together count as one."""
    data = probe_set(clips=120, noise=1.5)
    doubled = torch.arange(0, 120, 2).repeat_interleave(2)
    settings: dict[str, Any] = {
        "embeddings": data.embeddings[:, doubled],
        "targets": data.targets[doubled],
        "split": [data.split[row] for row in doubled],
        "clusters": [data.clusters[row] for row in doubled],
    }
    widths = []
    for clusters in (settings["clusters"], data.ids):
        part = probe_set(clips=120, **{**settings, "clusters": clusters})
        result = evaluate(PROBES["linear"](2), [part])
        assert result.low is not None
        assert result.high is not None
        widths.append(result.high - result.low)
    assert widths[0] == pytest.approx(2**0.5 * widths[1], rel=0.2)


def test_clips_of_several_classes_have_a_map(quick: None) -> None:
    source = torch.Generator().manual_seed(1)
    targets = torch.rand(60, 3, generator=source) < 0.4
    embeddings = torch.stack([targets.float() @ torch.eye(3, 8), torch.zeros(60, 8)])
    embeddings = embeddings + 0.2 * torch.randn(2, 60, 8, generator=source)
    data = probe_set(targets=targets, embeddings=embeddings, multi_label=True)
    for name in ("linear", "weighted"):
        result = evaluate(PROBES[name](2), [data])
        assert result.metric == "mAP"
        assert result.value > 0.9
        assert result.low is not None
        assert result.high is not None
        assert result.low <= result.value <= result.high


def several_classes(without: Sequence[int], split: list[str]) -> ProbeSet:
    """Clips of several classes; those of some rows have none."""
    source = torch.Generator().manual_seed(1)
    targets = torch.rand(60, 3, generator=source) < 0.4
    targets[list(without)] = False
    return probe_set(targets=targets, multi_label=True, split=split)


FOLDS = [str(1 + row % 5) for row in range(60)]


@pytest.mark.parametrize("name", ["linear", "weighted", "attentive"])
def test_a_fold_without_classes_is_left_out(name: str, quick: None) -> None:
    # The second fold is the first choice of the first.
    result = evaluate(PROBES[name](), [several_classes(range(1, 60, 5), FOLDS)])
    assert result.by_partition[1] is None
    known = [score for score in result.by_partition if score is not None]
    assert len(known) == 4
    assert result.value == pytest.approx(np.mean(known))
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.value <= result.high
    json.dumps(asdict(result), allow_nan=False)


def test_resamples_without_a_class_in_a_fold_leave_it_out(quick: None) -> None:
    data = several_classes(range(10, 60, 5), FOLDS)
    assert 0 < int(data.targets[::5].any(dim=1).sum()) <= 2
    result = evaluate(PROBES["linear"](2), [data])
    assert result.low is not None
    assert result.high is not None
    assert 0 < result.low <= result.high <= 1


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_without_classes_is_named(part: str, quick: None) -> None:
    split = split_of("train", "train", "validation", "test")
    data = several_classes([row for row, name in enumerate(split) if name == part], split)
    with pytest.raises(DataError, match=rf"toy: no clip of {part} "):
        evaluate(PROBES["linear"](), [data])


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("linear", {"split": ["train"] * 60}, ["toy", "train and test", "--split"]),
        ("linear", {"split": [""] * 60}, ["toy", "--split"]),
        ("knn", {"multi_label": True}, ["toy", "kNN"]),
        ("attentive", {"tokens": None}, ["toy", "--frames"]),
        ("prototypes", {"tokens": None}, ["toy", "--frames"]),
    ],
)
def test_what_a_probe_lacks(name: str, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        evaluate(PROBES[name](), [probe_set(**settings)])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["weighted", "prototypes"])
def test_one_layer_cannot_be_combined(name: str) -> None:
    data = probe_set(embeddings=probe_set().embeddings[:1], layers=[4])
    with pytest.raises(ConfigError, match="--layers"):
        evaluate(PROBES[name](), [data])


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no layer 3: it has 2, 4"):
        evaluate(PROBES["linear"](3), [probe_set()])


def one_class() -> dict[str, Tensor]:
    return {"targets": torch.tensor([[True, False, False]]).expand(60, 3)}


def non_finite() -> dict[str, Tensor]:
    embeddings = probe_set().embeddings.clone()
    embeddings[1, 5, 2] = torch.nan
    return {"embeddings": embeddings}


@pytest.mark.parametrize(("make", "word"), [(one_class, "classes"), (non_finite, "clip5")])
def test_sets_that_cannot_be_probed(make: Callable[[], dict[str, Tensor]], word: str) -> None:
    with pytest.raises(DataError, match=word):
        probe_set(**make())


def test_stores_of_one_name_hold_the_same_clips() -> None:
    with pytest.raises(DataError, match="different clips"):
        evaluate(PROBES["knn"](), [probe_set(), probe_set(clips=30)])
