import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from peas.audio import decode as audio
from peas.data.cache import ResampledCache, default_folder, file_state
from peas.errors import AudioError


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "sound.wav"
    _write(path, 0)
    return path


def _write(path, seed, rate=8000, channels=2):
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (rate // 5, channels))
    soundfile.write(path, samples, rate)


def _cache(tmp_path, **settings):
    return ResampledCache(tmp_path / "cache", **{"rate": 16_000, "channels": "mean", **settings})


def _entries(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npy"))


def test_second_load_does_not_resample_and_has_the_same_bits(tmp_path, sound, monkeypatch):
    plain = audio.load(sound, 16_000, "mean")
    first = _cache(tmp_path).load(sound)
    monkeypatch.setattr(audio, "load", lambda *_, **__: pytest.fail("resampled again"))
    second = _cache(tmp_path).load(sound)
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_edited_file_gets_a_new_entry(tmp_path, sound):
    before = _cache(tmp_path).load(sound)
    _write(sound, 1)
    os.utime(sound, ns=(1, 1))
    after = _cache(tmp_path).load(sound)
    assert torch.equal(after, audio.load(sound, 16_000, "mean"))
    assert not torch.equal(after, before)
    assert len(_entries(tmp_path)) == 2


def test_settings_have_entries_of_their_own(tmp_path, sound):
    mean = _cache(tmp_path).load(sound)
    first = _cache(tmp_path, channels="first").load(sound)
    low = _cache(tmp_path, rate=4000).load(sound)
    assert not torch.equal(mean, first)
    assert low.shape[0] < mean.shape[0]
    assert len(_entries(tmp_path)) == 3


def test_mono_at_the_rate_is_not_kept(tmp_path):
    path = tmp_path / "ready.wav"
    _write(path, 0, rate=16_000, channels=1)
    _cache(tmp_path).load(path)
    assert not _entries(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_entry_is_rebuilt(tmp_path, sound, damage):
    whole = _cache(tmp_path).load(sound)
    (entry,) = _entries(tmp_path)
    bits = entry.read_bytes()
    entry.write_bytes(bits[:-100] if damage is None else damage)
    assert torch.equal(_cache(tmp_path).load(sound), whole)
    assert entry.read_bytes() == bits


def test_unwritable_folder_warns_once_and_goes_on(tmp_path, sound, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        cache = _cache(tmp_path)
        for _ in range(2):
            assert torch.equal(cache.load(sound), audio.load(sound, 16_000, "mean"))
    assert len([record for record in caplog.records if "cache" in record.message]) == 1


def test_missing_file_is_an_audio_error(tmp_path):
    with pytest.raises(AudioError, match=r"absent\.wav"):
        _cache(tmp_path).load(tmp_path / "absent.wav")


def test_default_folder(monkeypatch):
    monkeypatch.setenv("PEAS_CACHE", "/somewhere")
    assert str(default_folder()) == "/somewhere"
    monkeypatch.delenv("PEAS_CACHE")
    assert default_folder().parts[-3:] == (".cache", "peas", "audio")


def test_files_that_exchange_their_names_are_not_mixed_up(tmp_path):
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for seed, path in enumerate(paths):
        _write(path, seed)
        os.utime(path, ns=(1, 1))
    before = [_cache(tmp_path).load(path) for path in paths]
    paths[0].rename(tmp_path / "c.wav")
    paths[1].rename(paths[0])
    (tmp_path / "c.wav").rename(paths[1])
    after = [_cache(tmp_path).load(path) for path in paths]
    assert torch.equal(after[0], before[1])
    assert torch.equal(after[1], before[0])


def test_a_copy_over_a_file_that_keeps_its_size_and_time_is_another_one(tmp_path, sound):
    os.utime(sound, ns=(1, 1))
    before, inode = _cache(tmp_path).load(sound), os.stat(sound).st_ino
    other = tmp_path / "other.wav"
    _write(other, 1)
    sound.write_bytes(other.read_bytes())
    os.utime(sound, ns=(1, 1))
    assert os.stat(sound).st_ino == inode
    after = _cache(tmp_path).load(sound)
    assert torch.equal(after, audio.load(sound, 16_000, "mean"))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("field", ["st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_each_part_of_a_files_state_counts_by_itself(monkeypatch, field):
    same = {"st_ino": 1, "st_size": 2, "st_mtime_ns": 3, "st_ctime_ns": 4}
    states = []
    for found in (same, {**same, field: 9}):
        monkeypatch.setattr(os, "stat", lambda _, found=found: SimpleNamespace(**found))
        states.append(file_state("a.wav"))
    monkeypatch.undo()
    assert states[0] != states[1]
