"""One pass gives what two passes in float64 give, whatever the order and the number of workers."""

import math
import os
import signal

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.compliance.kaldi import fbank

from peas.data import statistics as normalisation
from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Strings, Targets
from peas.data.esc50 import ESC50
from peas.data.sounds import SoundFiles
from peas.data.statistics import Moments, measure
from peas.errors import AudioError, DataError

RATE = 16_000


def _merged(parts):
    total = Moments()
    for part in parts:
        total += Moments.of(torch.from_numpy(part))
    return total


def _two_pass(values):
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


@pytest.mark.parametrize("offset", [0.0, -6.6, 1e6, 1e9])
@pytest.mark.parametrize("sizes", [[20_000], [1] * 50 + [3, 9_000, 1, 7_000], [5_000] * 3])
def test_moments_of_awkward_data(offset, sizes):
    draws = np.random.default_rng(0)
    # Parts that differ in level and spread, as silent and loud clips do.
    parts = [offset + draws.normal(draws.normal(), draws.uniform(1e-3, 2), size) for size in sizes]
    mean, std = _two_pass(np.concatenate(parts).tolist())
    found = _merged(parts)
    assert found.count == sum(sizes)
    assert found.mean == pytest.approx(mean, rel=1e-14, abs=1e-14)
    # A mean is rounded to the numbers near it, and no spread can be known better than that.
    assert found.std == pytest.approx(std, rel=1e-12, abs=2 * np.spacing(abs(offset)))
    naive = np.concatenate(parts)
    if offset == 1e9:
        # What the merging is for: the difference of two large sums has nothing left to say.
        wrong = (naive**2).mean() - naive.mean() ** 2
        assert not math.isclose(abs(wrong), std**2, rel_tol=1e-2)


def test_moments_in_any_order_and_with_nothing():
    draws = np.random.default_rng(1)
    parts = [1e4 + draws.normal(size=size) for size in (1, 500, 30, 2_000)]
    there, back = _merged(parts), _merged(parts[::-1])
    assert there.mean == pytest.approx(back.mean, rel=1e-15)
    assert there.std == pytest.approx(back.std, rel=1e-12)
    assert there + Moments() == Moments() + there == there
    assert Moments.of(torch.empty(0, 128)) == Moments()
    assert Moments().std == 0.0


def test_float32_cells_are_summed_in_double_precision():
    cells = torch.full((300, 1000), 1e4) + torch.rand(300, 1000)
    mean, std = _two_pass(cells.double().flatten().tolist())
    found = Moments.of(cells)
    assert found.mean == pytest.approx(mean, rel=1e-14)
    assert found.std == pytest.approx(std, rel=1e-12)


def _table(folder, waveforms):
    names = []
    for number, waveform in enumerate(waveforms):
        names.append(f"{number}.wav")
        soundfile.write(folder / names[-1], waveform, RATE, subtype="FLOAT")
    decoder = ResampledCache(None, rate=RATE, channels="mean")
    return ClipTable(
        Strings(names), Targets.none(len(names)), SoundFiles(decoder, folder, Strings(names))
    )


@pytest.fixture
def waveforms():
    draws = np.random.default_rng(0)
    sizes = [200, 399, 400, 559, 560, 16_000, 5_000, 33_333, 50_000, 16_001]
    clips = [0.1 + draws.uniform(0.01, 0.5) * draws.uniform(-1, 1, size) for size in sizes]
    # Digital silence inside a clip counts, as it does for a model's input.
    clips[5][4_000:9_000] = clips[5].mean()
    return clips


def _expected(waveforms, frames, padded):
    """Clip by clip with torchaudio, all cells kept."""
    cells = []
    for waveform in waveforms:
        wave = torch.from_numpy(waveform.astype(np.float32))[None]
        wave = wave - wave.mean()
        if wave.shape[1] < 400:
            wave = torch.nn.functional.pad(wave, (0, 400 - wave.shape[1]))
        log_mel = fbank(
            wave,
            htk_compat=True,
            sample_frequency=RATE,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )[:frames]
        if padded:
            log_mel = torch.nn.functional.pad(log_mel, (0, 0, 0, frames - len(log_mel)))
        cells.append(log_mel.flatten())
    cells = torch.cat(cells).double()
    return len(cells), float(cells.mean()), float(cells.std(correction=0))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("frames", [1, 64, 128, 512])
def test_statistics_are_those_of_all_cells(tmp_path, waveforms, frames, padded):
    found = measure(_table(tmp_path, waveforms), frames, padded=padded, workers=0)
    count, mean, std = _expected(waveforms, frames, padded)
    assert found.moments.count == count
    assert found.mean == pytest.approx(mean, abs=1e-5)
    assert found.std == pytest.approx(std, abs=1e-5)
    assert found.seconds == pytest.approx([len(clip) / RATE for clip in waveforms])


def test_nothing_changes_with_workers(tmp_path, waveforms, monkeypatch):
    monkeypatch.setattr(normalisation, "CHUNK", 3)
    table = _table(tmp_path, waveforms)
    alone, one, three = (measure(table, 128, workers=workers) for workers in (0, 1, 3))
    assert alone.moments == one.moments == three.moments
    assert alone.seconds.tolist() == one.seconds.tolist() == three.seconds.tolist()


def test_clips_of_a_batch_do_not_fill_the_memory(tmp_path, waveforms, monkeypatch):
    whole = measure(_table(tmp_path, waveforms), 128, workers=0)
    seen = []
    inner = normalisation._moments

    def recorded(clips, *rest):
        seen.append([len(clip) for clip in clips])
        return inner(clips, *rest)

    monkeypatch.setattr(normalisation, "_moments", recorded)
    monkeypatch.setattr(normalisation, "_BATCH_SAMPLES", 40_000)
    parts = measure(_table(tmp_path, waveforms), 128, workers=0)
    assert [size for sizes in seen for size in sizes] == [len(clip) for clip in waveforms]
    assert all(len(sizes) == 1 or len(sizes) * max(sizes) <= 40_000 for sizes in seen)
    assert parts.mean == pytest.approx(whole.mean, abs=1e-6)
    assert parts.moments.count == whole.moments.count


def test_progress(tmp_path, waveforms, monkeypatch):
    monkeypatch.setattr(normalisation, "CHUNK", 4)
    seen = []
    measure(_table(tmp_path, waveforms), 64, workers=0, progress=lambda *at: seen.append(at))
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_clip(tmp_path, waveforms, monkeypatch, workers):
    monkeypatch.setattr(normalisation, "CHUNK", 4)
    table = _table(tmp_path, waveforms)
    (tmp_path / "6.wav").write_bytes(b"not a sound")
    with pytest.raises(AudioError, match=r"6\.wav: cannot be decoded"):
        measure(table, 64, workers=workers)
    found = measure(table, 64, workers=workers, on_error="skip")
    assert list(found.unreadable) == [6]
    assert "6.wav" in found.unreadable[6]
    assert found.seconds[6] == 0
    others = [clip for number, clip in enumerate(waveforms) if number != 6]
    assert found.mean == pytest.approx(_expected(others, 64, False)[1], abs=1e-5)


def test_nothing_to_measure(tmp_path):
    with pytest.raises(DataError, match="no clip can be read; there are none"):
        measure(_table(tmp_path, []), 64, workers=0)
    table = _table(tmp_path, [np.zeros(500)])
    (tmp_path / "0.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"no clip can be read; .*0\.wav: the file is empty"):
        measure(table, 64, workers=0, on_error="skip")


def test_a_killed_worker_names_its_clips(tmp_path, waveforms, monkeypatch):
    monkeypatch.setattr(normalisation, "CHUNK", 4)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(normalisation, "_measure_rows", die)
    with pytest.raises(DataError, match=r"SIGKILL.*\(clips 0\.wav to 3\.wav\)"):
        measure(_table(tmp_path, waveforms), 64, workers=1)


def test_real_recordings(shared):
    module = ESC50(shared / "data" / "esc10", esc10=True, cache_dir="")
    clips = module.clips("train").take(range(0, 320, 16))
    found = measure(clips, 512, workers=0)
    waveforms = [clips.sounds.load(row).numpy() for row in range(len(clips))]
    count, mean, std = _expected(waveforms, 512, False)
    assert found.moments.count == count
    assert found.mean == pytest.approx(mean, abs=1e-5)
    assert found.std == pytest.approx(std, abs=1e-5)
