"""A share of the labels: which clips, how many of each class, and what stays untouched."""

import logging
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from peas.data.columns import Targets
from peas.data.label_fraction import chosen_rows
from peas.data.librispeech import LibriSpeech
from peas.data.mixture import Mixture
from peas.data.module import ClipDataModule
from peas.errors import ConfigError


class Clips(ClipDataModule):
    """Sixty clips that train and twelve that validate and test, in three classes."""

    labels = property(lambda self: ["a", "b", "c"])

    def __init__(self, root, **settings):
        settings = {"batch_size": 2, "num_workers": 0, "cache_dir": "", **settings}
        super().__init__(root, mean=-6.0, std=5.0, frames=64, **settings)

    def clips(self, split):
        names = [f"{split}{number:02}" for number in range(60 if split == "train" else 12)]
        targets = Targets.one_each(np.arange(len(names)) % 3)
        return self.files(["clip.wav"] * len(names), names, targets)


@pytest.fixture
def root(tmp_path):
    soundfile.write(tmp_path / "clip.wav", np.full(800, 0.1), 16_000)
    return tmp_path


def _several(clips, classes=5, seed=0):
    """Clips with none, one or several classes; the last class is rare."""
    rng = np.random.default_rng(seed)
    odds = np.array([*np.linspace(0.5, 0.1, classes - 1), 0.01])
    return Targets.several([np.flatnonzero(rng.random(classes) < odds) for _ in range(clips)])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_each_class_gives_its_share_and_at_least_one(fraction):
    sizes = [1, 7, 40, 200]
    targets = Targets.one_each(np.random.default_rng(1).permutation(np.repeat(range(4), sizes)))
    rows = chosen_rows(targets, 4, fraction, seed=3)
    assert len(set(rows.tolist())) == len(rows)
    expected = [max(1, int(fraction * size + 0.5)) for size in sizes]
    assert targets.take(rows).counts(4).tolist() == expected


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_several_classes_a_clip_are_drawn_at_random_and_none_is_lost(fraction):
    targets = _several(2000)
    assert (targets.sizes == 0).any()
    for seed in range(5):
        rows = chosen_rows(targets, 5, fraction, seed)
        counts = targets.take(rows).counts(5)
        assert (counts > 0).all()
        assert fraction * 2000 <= len(rows) <= fraction * 2000 + 5
        assert (np.diff(rows) > 0).all()
    share = counts[:4] / targets.counts(5)[:4]
    assert share == pytest.approx(fraction, rel=0.5)


def test_a_class_that_only_one_clip_has_is_never_lost():
    targets = Targets.several([[0]] * 500 + [[0, 1]] + [[]] * 499)
    for seed in range(20):
        assert 500 in chosen_rows(targets, 2, 0.01, seed)


@pytest.mark.parametrize("targets", [Targets.one_each(np.arange(400) % 7), _several(400)])
def test_follows_from_the_seed_and_grows_with_the_fraction(targets):
    parts = [set(chosen_rows(targets, 7, f, 1).tolist()) for f in (0.02, 0.1, 0.3, 1.0)]
    assert all(less < more for less, more in pairwise(parts))
    assert parts[-1] == set(range(400))
    assert set(chosen_rows(targets, 7, 0.1, 1).tolist()) == parts[1]
    assert set(chosen_rows(targets, 7, 0.1, 2).tolist()) != parts[1]


def test_clips_without_any_class():
    assert len(chosen_rows(Targets.none(50), 0, 0.1, 0)) == 5


def test_module_trains_on_the_share_and_evaluates_on_all(root, caplog, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    module = Clips(str(root), label_fraction=0.2)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        epochs = [
            sorted(name for batch in module.train_dataloader() for name in batch["id"])
            for _ in range(2)
        ]
    assert epochs[0] == epochs[1]
    assert len(set(epochs[0])) == 12
    assert sorted(int(name[5:]) % 3 for name in epochs[0]) == [0] * 4 + [1] * 4 + [2] * 4
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert sum(len(batch["id"]) for batch in loader) == 12
    told = [record.message for record in caplog.records if "label_fraction" in record.message]
    assert told == [
        "label_fraction 0.2: 12 of 60 training clips, 4 to 4 of each of 3 classes; seed 4"
    ]
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    other = Clips(str(root), label_fraction=0.2).train_dataloader()
    assert sorted(name for batch in other for name in batch["id"]) != epochs[0]


def test_balanced_epochs_draw_from_the_share(root):
    module = Clips(str(root), label_fraction=0.1, sampling="balanced", epoch_clips=40)
    names = {name for batch in module.train_dataloader() for name in batch["id"]}
    assert len(names) <= 6


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_impossible_fractions_name_their_key(root, fraction):
    with pytest.raises(ConfigError, match=r"data\.init_args\.label_fraction"):
        Clips(str(root), label_fraction=fraction)


def test_mixture_refuses_it(root):
    for settings, inner in (({"label_fraction": 0.5}, 1.0), ({}, 0.5)):
        with pytest.raises(ConfigError, match=r"label_fraction .* `weights`"):
            Mixture([LibriSpeech(str(root), label_fraction=inner)], **settings)
