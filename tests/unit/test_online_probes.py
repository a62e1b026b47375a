"""Online probes of one pass: metrics by hand, ranks by their definitions, what a run notices."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from made import masked_task
from test_knn import fit, labelled, ssast

from peas.callbacks import KNN, OnlineProbes
from peas.callbacks.online_probes import NAMES
from peas.callbacks.progress import EpochLine
from peas.data.synthetic import write_sounds
from peas.errors import ConfigError
from peas.evaluation.rank import LIDAR_DELTA, lidar, rankme


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "sounds"
    return write_sounds(folder, classes=3, clips_per_class=10, seconds=1.28, seed=4)


# --- ranks ---------------------------------------------------------------------------------


def test_rankme_of_known_spectra() -> None:
    assert rankme(torch.eye(8)) == pytest.approx(8, abs=1e-3)
    assert rankme(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.125, 0.125))
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert rankme(torch.diag(values) @ rotation) == pytest.approx(math.exp(entropy), abs=1e-3)


def test_lidar_by_its_definition() -> None:
    classes = torch.arange(40) % 5
    embeddings = (torch.randn(5, 6)[classes] + 0.3 * torch.randn(40, 6)).double()
    means = torch.stack([embeddings[classes == c].mean(dim=0) for c in range(5)])
    between, within = torch.zeros(6, 6).double(), LIDAR_DELTA * torch.eye(6).double()
    for c in range(5):
        away = means[c] - means.mean(dim=0)
        between += torch.outer(away, away) / 5
        for row in embeddings[classes == c] - means[c]:
            within += torch.outer(row, row) / 8 / 5
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    p = torch.linalg.eigvalsh(root @ between @ root).clamp(min=0)
    p = p / p.sum() + 1e-7
    wanted = float((-(p * p.log()).sum()).exp())
    assert lidar(embeddings, classes) == pytest.approx(wanted, rel=1e-4)
    assert 1 <= wanted < 5


def test_collapsed_embeddings_have_rank_one() -> None:
    same = torch.zeros(30, 4)
    assert lidar(same, torch.arange(30) % 3) == rankme(same) == 1


# --- in a run ------------------------------------------------------------------------------


def test_a_run_does_not_notice_and_embeds_once(
    sounds: Path, longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2}

    def made() -> Any:
        return masked_task(size="toy", lr=1e-2, drop_path=0.2, **shape)

    plain, watched = made(), made()
    fit(plain, sounds, tmp_path / "plain")
    passes = []
    embed = OnlineProbes._embed
    monkeypatch.setattr(OnlineProbes, "_embed", lambda *args: passes.append(1) or embed(*args))
    probes = OnlineProbes(labelled(longer), k=3, every_n_epochs=1, split="folds")
    trainer = fit(watched, sounds, tmp_path / "watched", probes)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert len(passes) == 2
    logged = {name: float(trainer.callback_metrics[name]) for name in NAMES.values()}
    assert 0 <= logged["knn/accuracy"] <= 1
    assert 0 <= logged["linear/accuracy"] <= 1
    assert 1 <= logged["rank/rankme"] <= 30
    assert 1 <= logged["rank/lidar"] <= 2.01
    assert probes._clips is not None
    features, classes, _ = probes._embed(trainer, watched, probes._clips)
    assert logged["rank/rankme"] == pytest.approx(rankme(features), rel=1e-5)
    assert logged["rank/lidar"] == pytest.approx(lidar(features, classes), rel=1e-5)


def test_knn_is_the_same_alone(
    sounds: Path, longer: Path, tmp_path: Path, printed: pytest.LogCaptureFixture
) -> None:
    values = []
    for number, callback in enumerate(
        (KNN(labelled(longer), k=3), OnlineProbes(labelled(longer), k=3))
    ):
        folder = tmp_path / str(number)
        trainer = fit(ssast(), sounds, folder, callback, EpochLine(), epochs=1)
        values.append(float(trainer.callback_metrics["knn/accuracy"]))
        assert ("rank/lidar" in trainer.callback_metrics) is bool(number)
    assert values[0] == values[1]
    (line,) = [r.message for r in printed.records if "rankme" in r.message]
    for part in ("knn", "linear", "lidar"):
        assert part in line


def test_non_finite_embeddings_end_no_run(longer: Path) -> None:
    probes = OnlineProbes(labelled(longer), k=1)
    features = torch.full((4, 3), torch.nan)
    classes, part = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    for metric in NAMES:
        assert math.isnan(probes._measure(metric, features, classes, part, [1]))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"metrics": ["nearest"]}, "metrics"),
        ({"metrics": []}, "metrics"),
        ({"k": 0}, "k"),
        ({"split": "train"}, "split"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], key: str, longer: Path) -> None:
    with pytest.raises(ConfigError, match=rf"OnlineProbes\.init_args\.{key}"):
        OnlineProbes(labelled(longer), **settings)
