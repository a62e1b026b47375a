import csv

import numpy as np
import pytest
import soundfile

from peas.data import synthetic
from peas.data.esc50 import ESC50
from peas.data.synthetic import SOUNDS, SyntheticSounds, make_sounds, write_sounds
from peas.errors import ConfigError, DataError

SMALL = {"classes": 3, "clips_per_class": 5, "seconds": 0.1}


def test_layout_is_that_of_esc50(tmp_path):
    root = write_sounds(tmp_path / "sounds", **SMALL, rate=8000)
    with (root / "meta" / "esc50.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == [
        *("filename", "fold", "target", "category", "esc10", "src_file", "take"),
    ]
    assert len(rows) == 15
    for row in rows:
        assert row["filename"] == "{fold}-{src_file}-{take}-{target}.wav".format(**row)
        info = soundfile.info(root / "audio" / row["filename"])
        assert (info.samplerate, info.frames, info.channels) == (8000, 800, 1)
    module = ESC50(root)
    assert module.info.labels == list(SOUNDS)[:3]
    assert len(module.clips("test")) == 3


def test_same_seed_same_samples(tmp_path):
    first, again, other = (
        write_sounds(tmp_path / name, **SMALL, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for path in sorted((first / "audio").iterdir()):
        assert path.read_bytes() == (again / "audio" / path.name).read_bytes()
        assert path.read_bytes() != (other / "audio" / path.name).read_bytes()


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_sane_and_differ(name):
    sounds = make_sounds(name, 6, 8000, 16_000, seed=0)
    assert sounds.shape == (6, 8000)
    assert np.isfinite(sounds).all()
    assert np.abs(sounds).max(axis=1).min() > 0.05
    assert np.abs(sounds).max() <= 0.9
    assert np.abs(np.corrcoef(sounds) - np.eye(6)).max() < 0.9


def test_data_are_made_once(tmp_path, monkeypatch):
    module = SyntheticSounds(str(tmp_path / "deep" / "sounds"), **SMALL, batch_size=4)
    module.prepare_data()
    monkeypatch.setattr(synthetic, "write_sounds", lambda *_, **__: pytest.fail("made again"))
    module.prepare_data()
    module.setup("fit")
    assert module.info.labels == list(SOUNDS)[:3]
    assert len(module.clips("train")) == 12
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sounds"]


def test_other_settings_are_not_taken_for_the_same(tmp_path):
    root = str(tmp_path / "sounds")
    SyntheticSounds(root, **SMALL).prepare_data()
    with pytest.raises(DataError, match=r"data\.init_args\.seed is 9"):
        SyntheticSounds(root, **SMALL, seed=9).prepare_data()


def test_nothing_is_left_behind_after_a_failure(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic.soundfile, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sounds(tmp_path / "sounds", **SMALL)
    assert not list(tmp_path.iterdir())


def test_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_sounds(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("setting", "value"), [("classes", 0), ("classes", 9), ("folds", 6), ("clips_per_class", 2)]
)
def test_impossible_settings(tmp_path, setting, value):
    with pytest.raises(ConfigError, match=setting):
        write_sounds(tmp_path / "sounds", **{**SMALL, setting: value})
