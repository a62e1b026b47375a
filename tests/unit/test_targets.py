"""A cache of targets: what is written, what is read, and what is refused."""

import json
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from target_toys import IDS, SHAPE, Maps, content, maps_of, write

from peas.data.columns import Strings
from peas.data.shards import LeftOut
from peas.errors import ConfigError, DataError
from peas.teachers.cache import TargetCache
from peas.teachers.target_writer import Block, sorted_ids
from peas.utils.files import Locked, lock

MAPS = maps_of(len(IDS))


@pytest.fixture
def cache(tmp_path):
    write(tmp_path / "cache", Maps(MAPS))
    return tmp_path / "cache"


def _bits(tensor):
    return tensor.contiguous().view(torch.int16)


# ---- reading


def test_take_gives_the_very_bits_in_any_order(cache):
    opened = TargetCache(cache)
    assert (len(opened), opened.shape) == (23, SHAPE)
    assert (opened.teacher, opened.fingerprint) == ("Toy", "toy:1")
    assert (opened.extent.first_centre, opened.extent.step) == (0.1, 0.2)
    assert opened.extent.freq_edges == (0.0, 1000.0, 8000.0)
    for seed in range(5):
        rows = np.random.default_rng(seed).integers(23, size=17)
        maps = opened.take([IDS[row] for row in rows])
        assert maps.dtype == torch.float16
        assert maps.shape == (17, 3, 2, 5)
        expected = torch.from_numpy(MAPS[rows]).permute(0, 3, 1, 2)
        assert torch.equal(_bits(maps), _bits(expected))
    assert opened.take([]).shape == (0, 3, 2, 5)


def test_what_was_taken_is_the_callers_own(cache):
    opened = TargetCache(cache)
    opened.take(["clip003"]).zero_()
    assert torch.equal(opened.take(["clip003"])[0].permute(1, 2, 0), torch.from_numpy(MAPS[3]))


def test_ids_of_any_length_and_alphabet(tmp_path):
    names = ["", "a", "a/b.wav", "a/b.wav#0.5-1", "Ω", "ähnlich/ö.ogg", "z" * 300, "日本"]
    ids = list(Strings(names).take(sorted_ids(Strings(names))))
    maps = maps_of(len(ids))
    write(tmp_path / "cache", Maps(maps), ids)
    opened = TargetCache(tmp_path / "cache")
    taken = opened.take(reversed(ids)).permute(0, 2, 3, 1)
    assert torch.equal(taken, torch.from_numpy(maps[::-1].copy()))
    for other in ("b", "a/b.wa", "a/b.wav ", "z" * 301, "z" * 5000, "日"):
        with pytest.raises(DataError, match="no target of 1 of 1 clips"):
            opened.take([other])


def test_missing_clips_are_counted_and_some_are_named(cache):
    opened = TargetCache(cache)
    with pytest.raises(DataError) as caught:
        opened.take(["clip001", "x1", "x2", "clip002", "x3", "x4"])
    assert "no target of 4 of 6 clips: x1, x2, x3 and 1 more" in str(caught.value)
    opened.require(Strings(IDS))
    with pytest.raises(DataError, match="no target of 2 of 25 clips: clip, zzz"):
        opened.require([*IDS, "clip", "zzz"])


def test_a_cache_is_pickled_as_its_folder(cache):
    opened = TargetCache(cache)
    opened.take(IDS)
    stored = pickle.dumps(opened)
    assert len(stored) < 1000
    assert torch.equal(pickle.loads(stored).take(IDS), opened.take(IDS))


def test_doubled_ids_are_refused():
    with pytest.raises(DataError, match=r"1 ids name more than one clip .*: b"):
        sorted_ids(Strings(["b", "a", "b"]))


# ---- damage


def _missing(file):
    file.unlink()


def _shorter(file):
    os.truncate(file, file.stat().st_size - 2)


def _longer(file):
    file.write_bytes(file.read_bytes() + b"xx")


def _flipped(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [_missing, _shorter, _longer])
@pytest.mark.parametrize("name", ["shard-00002.npy", "shard-00004.npy", "ids.npy", "rows.npy"])
def test_a_damaged_file_is_refused_and_made_again(cache, name, harm):
    before = content(cache)
    harm(cache / name)
    with pytest.raises(DataError, match=rf"{name}.*`peas data targets` again"):
        TargetCache(cache)
    source = Maps(MAPS)
    write(cache, source)
    assert content(cache) == before
    number = {"shard-00002.npy": 10, "shard-00004.npy": 20}.get(name)
    assert source.given == ([] if number is None else [*range(number, min(number + 5, 23))])


@pytest.mark.parametrize("name", ["shard-00001.npy", "ids.npy", "rows.npy"])
def test_a_changed_bit_is_found_by_its_checksum(cache, name):
    before = content(cache)
    _flipped(cache / name)
    opened = TargetCache(cache)
    with pytest.raises(DataError, match=rf"{name}.* checksum"):
        opened.verify()
    write(cache, Maps(MAPS))
    assert content(cache) == before
    TargetCache(cache).verify()


def test_a_shard_cut_while_it_is_mapped_is_an_error_and_no_crash(cache):
    opened = TargetCache(cache)
    opened.take(IDS)
    os.truncate(cache / "shard-00000.npy", 100)
    with pytest.raises(DataError, match=r"shard-00000\.npy: has 100 of"):
        opened.take(["clip001"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said.update(format="other"), "peas data targets"),
        (lambda said: said.update(version=9), "version 9"),
        (lambda said: said["recipe"].pop("step"), "damaged"),
        (lambda said: said["recipe"].update(step=0), "damaged"),
        (lambda said: said["recipe"].update(shape=[3, 5, 3]), "damaged"),
        (lambda said: said["shards"].pop(), "damaged"),
    ],
)
def test_a_manifest_that_says_something_else(cache, change, told):
    said = json.loads((cache / "manifest.json").read_text())
    change(said)
    (cache / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match=told):
        TargetCache(cache)


def test_no_cache_at_all(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*manifest\.json"):
        TargetCache(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TargetCache(tmp_path)


# ---- writing


def test_a_run_that_was_stopped_goes_on(tmp_path, cache):
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        write(out, Maps(MAPS, stop=12))
    with pytest.raises(DataError, match=r"2 of 5 shards"):
        TargetCache(out)
    assert not list(out.glob("*.partial"))
    source = Maps(MAPS)
    write(out, source)
    assert source.given == list(range(10, 23))
    assert content(out) == content(cache)


class _Slow(Maps):
    """Hangs in the middle of the third shard, when the parent kills the process."""

    def blocks(self, shards):
        for block in super().blocks(shards):
            yield block
            if self.given[-1] == 12:
                time.sleep(60)


def test_a_killed_process_leaves_what_the_next_one_needs(tmp_path, cache):
    out = tmp_path / "killed"
    child = multiprocessing.get_context("fork").Process(
        target=write, args=(out, _Slow(MAPS)), daemon=True
    )
    child.start()
    deadline = time.monotonic() + 30
    while not list(out.glob("shard-00002.npy.*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert len(list(out.glob("shard-00002.npy.*.partial"))) == 1
    assert not (out / "shard-00002.npy").exists()
    source = Maps(MAPS)
    write(out, source)
    assert source.given == list(range(10, 23))
    assert content(out) == content(cache)


def test_a_whole_cache_stays_as_it_is(cache):
    times = {path.name: path.stat().st_mtime_ns for path in cache.glob("*[a-z].*")}
    source = Maps(MAPS)
    write(cache, source)
    assert source.given == []
    assert {path.name: path.stat().st_mtime_ns for path in cache.glob("*[a-z].*")} == times


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"fingerprint": "toy:2"}, "fingerprint .*toy:1 .*toy:2"),
        ({"teacher": "Other"}, "teacher"),
        ({"step": 0.3}, "step"),
        ({"shape": [2, 5, 4]}, "shape"),
        ({"shard_clips": 7}, "--shard_clips .*5 .*7"),
        ({"ids": IDS[1:]}, "clips"),
        ({"ids": [*IDS[1:], "zzz"]}, "ids"),
    ],
)
def test_a_folder_of_another_recipe_is_refused(cache, changed, told):
    before = content(cache)
    with pytest.raises(DataError, match=told):
        write(cache, Maps(MAPS), **changed)
    assert content(cache) == before


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"other files \(thesis\.tex\)"):
        write(tmp_path, Maps(MAPS))


def test_one_writer_at_a_time(tmp_path):
    out = tmp_path / "cache"
    out.mkdir()
    with lock(out / ".lock", out), pytest.raises(Locked, match=str(out)):
        write(out, Maps(MAPS))


def test_too_small_a_disk_is_told_before_any_work(tmp_path, monkeypatch):
    free = type("usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    source = Maps(MAPS)
    with pytest.raises(DataError, match="GB"):
        write(tmp_path / "cache", source)
    assert source.given == []


class _Partly(Maps):
    """Clips 3 and 11 cannot be read."""

    def blocks(self, shards):
        for block in super().blocks(shards):
            first = self.given[-1] - len(block.maps) + 1
            lost = [row for row in (3, 11) if first <= row < first + len(block.maps)]
            maps = block.maps.copy()
            maps[[row - first for row in lost]] = 0
            yield Block(maps, [LeftOut(IDS[row], "a.wav: cut short") for row in lost])


def test_clips_that_were_left_out_are_refused_by_name(tmp_path):
    out = tmp_path / "cache"
    extra = [LeftOut("other", "no map in maps.npz")]
    manifest = write(out, _Partly(MAPS), allow_missing=True, left_out=extra)
    assert [clip.id for clip in manifest.left_out] == ["other", "clip003", "clip011"]
    opened = TargetCache(out)
    assert len(opened) == 21
    kept = [row for row in range(23) if row not in (3, 11)]
    taken = opened.take([IDS[row] for row in kept]).permute(0, 2, 3, 1)
    assert torch.equal(taken, torch.from_numpy(MAPS[kept]))
    with pytest.raises(DataError, match=r"clip003, clip011 \(clip003: a\.wav: cut short\)"):
        opened.require(IDS)
    with pytest.raises(ConfigError, match=r"--allow_missing.* 2 clips"):
        write(out, _Partly(MAPS))


def test_no_clip_at_all_could_be_read(tmp_path):
    class Nothing:
        def blocks(self, shards):
            for shard in shards:
                lost = [LeftOut(IDS[place], "broken") for place in shard]
                yield Block(np.zeros((len(shard), *SHAPE), np.float16), lost)

    with pytest.raises(DataError, match="23 clips"):
        write(tmp_path / "cache", Nothing(), allow_missing=True)


def test_two_hundred_thousand_clips_are_found_without_an_object_each(tmp_path):
    ids = [f"audio/{number:06}.wav" for number in range(200_000)]
    maps = np.arange(200_000, dtype=np.int32).view(np.float16).reshape(-1, 1, 1, 2)

    class All:
        def blocks(self, shards):
            for shard in shards:
                yield Block(maps[shard.start : shard.stop], [])

    out = tmp_path / "cache"
    write(out, All(), ids, shape=[1, 1, 2], freq_edges=[0.0, 8000.0], shard_clips=4096)
    opened = TargetCache(out)
    rows = np.random.default_rng(0).integers(200_000, size=512)
    begun = time.perf_counter()
    taken = opened.take([ids[row] for row in rows])
    print(f"take of 512 clips of 200,000: {1e3 * (time.perf_counter() - begun):.1f} ms")
    bits = taken.permute(0, 2, 3, 1).contiguous().view(torch.int32).flatten()
    assert bits.tolist() == rows.tolist()
