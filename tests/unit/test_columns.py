import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from peas.audio import decode as audio
from peas.data.cache import ResampledCache
from peas.data.clips import ClipTable
from peas.data.columns import Strings, Targets
from peas.data.sounds import SoundFiles
from peas.errors import AudioError


def test_strings_take_and_index():
    names = Strings(["a", "bb", "ccc"])
    assert (names[0], names[-1], list(names[1:])) == ("a", "ccc", ["bb", "ccc"])
    assert names.take([2, 0]) == ["ccc", "a"]
    chunked = Strings(pa.chunked_array([["a"], ["b", "c"]]))
    assert (chunked[2], len(chunked)) == ("c", 3)


def test_targets_take_count_and_join():
    targets = Targets.several([[2], [], [0, 2], [1]])
    assert [targets[row].tolist() for row in range(4)] == [[2], [], [0, 2], [1]]
    assert targets.counts(4).tolist() == [1, 1, 2, 0]
    taken = targets.take([2, 1, 2, 0])
    assert [taken[row].tolist() for row in range(4)] == [[0, 2], [], [0, 2], [2]]
    joined = Targets.concatenate([taken, Targets.one_each([3]), Targets.none(2)])
    assert [joined[row].tolist() for row in range(7)] == [[0, 2], [], [0, 2], [2], [3], [], []]
    assert joined.renumbered([5, 6, 7, 8])[2].tolist() == [5, 7]


def _file(folder, name, seconds, rate=16_000):
    samples = np.random.default_rng(len(name)).uniform(-0.5, 0.5, int(seconds * rate))
    soundfile.write(folder / name, samples, rate)


def test_joined_tables_read_their_own_files(tmp_path):
    decoder = ResampledCache(None, rate=16_000, channels="mean")
    for name in ("a.wav", "bb.wav", "ccc.wav"):
        _file(tmp_path, name, 0.1)
    tables = [
        ClipTable(Strings(names), targets, SoundFiles(decoder, tmp_path, Strings(names)))
        for names, targets in (
            (["a.wav", "bb.wav"], Targets.one_each([0, 1])),
            (["ccc.wav"], Targets.several([[0, 1]])),
        )
    ]
    joined = ClipTable.concatenate(tables)
    assert list(joined.ids) == ["a.wav", "bb.wav", "ccc.wav"]
    picked = joined.take([2, 0, 1]).take([0, 2])
    assert list(picked.ids) == ["ccc.wav", "bb.wav"]
    assert [picked.targets[row].tolist() for row in range(2)] == [[0, 1], [1]]
    for row, name in enumerate(picked.ids):
        assert torch.equal(picked.sounds.load(row), audio.load(tmp_path / name))


def test_a_stretch_of_a_file_is_that_stretch(tmp_path):
    _file(tmp_path, "a.wav", 2.0, rate=8_000)
    whole = audio.load(tmp_path / "a.wav", 8_000)
    part = audio.load(tmp_path / "a.wav", 8_000, start=0.5, stop=1.25)
    assert torch.equal(part, whole[4_000:10_000])
    assert torch.equal(audio.load(tmp_path / "a.wav", 8_000, start=1.5, stop=2.04), whole[12_000:])
    decoder = ResampledCache(tmp_path / "kept", rate=16_000, channels="mean")
    first = decoder.load(tmp_path / "a.wav", start=0.5, stop=1.0)
    other = decoder.load(tmp_path / "a.wav", start=1.0, stop=1.5)
    assert not torch.equal(first, other)
    assert torch.equal(decoder.load(tmp_path / "a.wav", start=0.5, stop=1.0), first)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 2


def test_a_stretch_beyond_the_file_is_an_error(tmp_path):

    _file(tmp_path, "a.wav", 1.0)
    with pytest.raises(AudioError, match=r"begins at 1\.5 s, but the file has 1 s"):
        audio.load(tmp_path / "a.wav", start=1.5)
