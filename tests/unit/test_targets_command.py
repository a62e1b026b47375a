"""`peas data targets`: ready maps and live teachers, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from target_toys import EXTENT, ToyTeacher, content, maps_of, ready_files, sound_folder

from peas.__main__ import main
from peas.audio import decode as audio
from peas.cli.verbs import dispatch
from peas.data import AudioFolder
from peas.errors import AudioError, CheckpointError, ConfigError, DataError
from peas.teachers.cache import TargetCache
from peas.teachers.ready_maps import read_ready
from peas.teachers.target_writer import teacher_samples

IDS = [f"{'ab'[number % 2]}/{number}.wav" for number in range(6)]
TOY = "target_toys.ToyTeacher"


@pytest.fixture
def sounds(tmp_path):
    return sound_folder(tmp_path / "sounds")


def _run(sounds, out, *options):
    dispatch(
        [
            "data",
            "targets",
            "folder",
            str(sounds),
            "--holdout",
            "0.2",
            "--out",
            str(out),
            *map(str, options),
        ]
    )
    return TargetCache(out)


def _ready(sounds, out, files, *options):
    return _run(sounds, out, "--maps", files[0], "--extent", files[1], *options)


def _teach(sounds, out, *options):
    return _run(
        sounds, out, "--frames", 50, "--workers", 0, "--batch_size", 2, "--teacher", TOY, *options
    )


# ---- ready maps


def test_ready_maps_in_any_order_and_with_others_among_them(sounds, tmp_path, capsys):
    ids = [*reversed(IDS), "elsewhere.wav"]
    maps = maps_of(7).astype(np.float32)
    cache = _ready(sounds, tmp_path / "out", ready_files(tmp_path / "maps", ids, maps))
    taken = cache.take(ids[:6]).permute(0, 2, 3, 1)
    assert torch.equal(taken, torch.from_numpy(maps[:6]).half())
    assert (cache.teacher, len(cache)) == ("Ready", 6)
    assert cache.fingerprint.startswith("maps:")
    shown = capsys.readouterr().out
    assert "maps of 6 clips by Ready" in shown
    assert "2 rows x 5 columns x 3 features" in shown


def test_fingerprint_is_of_maps_ids_and_extent(tmp_path):
    base = read_ready(*ready_files(tmp_path / "1", IDS, maps_of(6))).fingerprint
    same = read_ready(*ready_files(tmp_path / "2", IDS, maps_of(6), teacher="By other name"))
    assert same.fingerprint == base
    others = [
        ready_files(tmp_path / "3", IDS, maps_of(6, seed=1)),
        ready_files(tmp_path / "4", IDS[::-1], maps_of(6)),
        ready_files(tmp_path / "5", IDS, maps_of(6), step=0.3),
    ]
    assert base not in {read_ready(*files).fingerprint for files in others}


def test_changed_maps_do_not_go_into_the_same_folder(sounds, tmp_path):
    _ready(sounds, tmp_path / "out", ready_files(tmp_path / "1", IDS, maps_of(6)))
    with pytest.raises(DataError, match="fingerprint"):
        _ready(sounds, tmp_path / "out", ready_files(tmp_path / "2", IDS, maps_of(6, seed=1)))


def test_clips_without_a_ready_map(sounds, tmp_path, capsys):
    files = ready_files(tmp_path / "maps", IDS[:4], maps_of(4))
    with pytest.raises(DataError, match=r"no map of 2 of 6 clips: a/4\.wav, b/5\.wav"):
        _ready(sounds, tmp_path / "out", files)
    assert not (tmp_path / "out").exists()
    cache = _ready(sounds, tmp_path / "out", files, "--allow_missing")
    assert "2 clips have no map: a/4.wav, b/5.wav" in capsys.readouterr().out
    said = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [clip["id"] for clip in said["left_out"]] == ["a/4.wav", "b/5.wav"]
    with pytest.raises(DataError, match=r"no target of 2 of 6 clips: a/4\.wav, b/5\.wav"):
        cache.require(IDS)


def test_maps_of_another_set(sounds, tmp_path):
    files = ready_files(tmp_path / "maps", ["x/0.wav"], maps_of(1))
    with pytest.raises(DataError, match=r"its ids are like x/0\.wav, .* like a/0\.wav"):
        _ready(sounds, tmp_path / "out", files, "--allow_missing")


@pytest.mark.parametrize(
    ("maps", "said", "told"),
    [
        (maps_of(6, (3, 5, 3)), {}, "maps of 3 rows, and freq_edges .* borders of 2"),
        (maps_of(6), {"columns": 6}, "maps of 5 columns, and .* says 6"),
        (maps_of(6), {"freq_edges": [0, 8000, 1000]}, r"extent\.json: .*rise"),
        (maps_of(6), {"freq_edges": 3}, "a list of Hz"),
        (maps_of(6), {"step": -1}, "step is -1"),
        (maps_of(6), {"step": "soon"}, "first_centre and step are seconds"),
        (maps_of(6), {"teacher": ""}, "give its name"),
        (maps_of(6), {"speed": 1}, "unknown key 'speed'"),
        (maps_of(6), {"sha256": "0" * 64}, "not the file that .* describes"),
        (maps_of(5), {}, "beside 6 ids"),
        (maps_of(6).astype(np.int32), {}, "int32"),
        (np.full((6, 2, 5, 3), 7e4, np.float32), {}, r"maps of 6 clips hold NaN.*65504: a/0\.wav"),
        (np.where(np.arange(6)[:, None, None, None] == 4, np.nan, maps_of(6)), {}, r"a/4\.wav"),
    ],
)
def test_maps_and_extent_that_do_not_fit(sounds, tmp_path, maps, said, told):
    with pytest.raises((ConfigError, DataError), match=told):
        _ready(sounds, tmp_path / "out", ready_files(tmp_path / "maps", IDS, maps, **said))


def test_files_that_are_something_else(sounds, tmp_path):
    maps, extent = ready_files(tmp_path / "maps", IDS, maps_of(6))
    (tmp_path / "text.npz").write_text("no zip")
    np.save(tmp_path / "plain.npy", maps_of(6))
    np.savez(tmp_path / "objects.npz", ids=np.array(IDS, dtype=object), features=maps_of(6))
    np.savez(tmp_path / "nameless.npz", features=maps_of(6))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(maps.read_bytes()[:-50])
    for name in ("text.npz", "plain.npy", "objects.npz", "nameless.npz", "cut.npz", "none.npz"):
        with pytest.raises(DataError, match=name):
            read_ready(tmp_path / name, extent)
    (tmp_path / "lacks.json").write_text(json.dumps({**EXTENT}))
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("lacks.json", "text.json", "list.json", "none.json"):
        with pytest.raises(DataError, match=rf"{name}.*"):
            read_ready(maps, tmp_path / name)


def test_one_of_several_arrays(tmp_path):
    _, extent = ready_files(tmp_path / "maps", IDS, maps_of(6))
    file = tmp_path / "two.npz"
    np.savez(file, ids=np.array(IDS), one=maps_of(6), two=maps_of(6, seed=1), mean=np.zeros(3))
    with pytest.raises(ConfigError, match=r"2 arrays of four dimensions \(one, two\)"):
        read_ready(file, extent)
    with pytest.raises(ConfigError, match="--key mean"):
        read_ready(file, extent, "mean")
    assert np.array_equal(read_ready(file, extent, "two").maps, maps_of(6, seed=1))


def test_the_real_teachers_maps(shared, tmp_path, capsys):
    root = shared / "data/urbansound8k_part"
    source = shared / "data/teacher_features/urbansound8k_part.npz"
    extent = str(Path(__file__).parents[2]) + "/examples/efficientat_extent.json"
    out = tmp_path / "targets"
    call = ["folder", root, "--csv", "clips.csv", "--maps", source, "--extent", extent]
    dispatch(["data", "targets", *map(str, call), "--out", str(out), "--shard_clips", "1000"])
    assert "maps of 2,955 clips by EfficientAT mn04" in capsys.readouterr().out
    cache = TargetCache(out)
    assert cache.shape == (4, 13, 64)
    module = AudioFolder(str(root), csv="clips.csv", fold="10", cache_dir="")
    for split in ("train", "validation"):
        cache.require(module.clips(split).ids)
    with np.load(source) as npz, (root / "clips.csv").open() as lines:
        ids, features = npz["ids"].tolist(), npz["features"]
        listed = [row["path"] for row in csv.DictReader(lines)]
    assert sorted(listed) == sorted(ids)
    rows = np.random.default_rng(0).permutation(len(ids))[:300]
    taken = cache.take([ids[row] for row in rows]).permute(0, 2, 3, 1).contiguous()
    expected = torch.from_numpy(features[rows])
    assert torch.equal(taken.view(torch.int16), expected.view(torch.int16))


# ---- a live teacher


def test_a_teacher_hears_what_the_model_hears(sounds, tmp_path):
    cache = _teach(sounds, tmp_path / "out", "--teacher.gain", 2, "--shard_clips", 4)
    teacher = ToyTeacher(2.0)
    assert (cache.teacher, cache.fingerprint) == ("Toy 2", teacher.fingerprint)
    assert cache.extent == teacher.extent
    samples = teacher_samples(50, 8000)
    assert samples == 4120
    for name in IDS:
        heard = audio.load(sounds / name, 8_000)[:samples]
        padded = torch.zeros(1, samples)
        padded[0, : len(heard)] = heard
        expected = teacher(padded, torch.tensor([len(heard)])).half()
        torch.testing.assert_close(cache.take([name]), expected, atol=1e-3, rtol=1e-3)
    longest = audio.load(sounds / IDS[5], 8_000)
    assert cache.take([IDS[5]])[0, 2, 0, 0] == pytest.approx(2 * len(longest) / 8000, abs=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_depends_neither_on_workers_nor_on_a_break(sounds, tmp_path, workers):
    _teach(sounds, tmp_path / "whole", "--shard_clips", 2)
    options = ("--shard_clips", 2, "--workers", workers)
    whole = content(tmp_path / "whole")
    _teach(sounds, tmp_path / "other", *options)
    assert content(tmp_path / "other") == whole
    (tmp_path / "other/shard-00001.npy").unlink()
    _teach(sounds, tmp_path / "other", *options)
    assert content(tmp_path / "other") == whole


def test_another_teacher_or_input_is_refused(sounds, tmp_path):
    _teach(sounds, tmp_path / "out")
    with pytest.raises(DataError, match=r"teacher .*Toy 1"):
        _teach(sounds, tmp_path / "out", "--teacher.gain", 3)
    with pytest.raises(DataError, match="was begun"):
        _teach(sounds, tmp_path / "out", "--frames", 60)


def test_one_split_alone(sounds, tmp_path):
    cache = _teach(sounds, tmp_path / "out", "--only", "train")
    module = AudioFolder(str(sounds), holdout=0.2, mean=0.0, std=1.0, cache_dir="")
    cache.require(module.clips("train").ids)
    assert 0 < len(cache) == len(module.clips("train")) < 6


def test_clips_that_cannot_be_read(sounds, tmp_path, capsys):
    (sounds / "a/2.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"a/2\.wav.*--allow.missing"):
        _teach(sounds, tmp_path / "out")
    cache = _teach(sounds, tmp_path / "out", "--allow_missing", "--batch_size", 1)
    assert "1 clips have no map: a/2.wav" in capsys.readouterr().out
    assert len(cache) == 5
    with pytest.raises(DataError, match=r"a/2\.wav"):
        cache.take(["a/0.wav", "a/2.wav"])


def test_maps_too_large_for_half_precision_name_their_clips(sounds, tmp_path):
    with pytest.raises(DataError, match=r"maps of a/0\.wav hold NaN, or values beyond"):
        _teach(sounds, tmp_path / "out", "--teacher.bad", 1500)


def test_what_a_teachers_own_arguments_do_wrong(sounds, tmp_path):
    with pytest.raises((ConfigError, CheckpointError), match=r"gain\.pt: gives no gain"):
        _teach(sounds, tmp_path / "out", "--teacher.gain", 0)


def test_a_teacher_that_contradicts_itself(sounds, tmp_path):
    with pytest.raises(ConfigError, match="its width is 4 and its extent has 2 rows"):
        _teach(sounds, tmp_path / "out", "--teacher.width", 4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "either --teacher, or --maps"),
        (["--teacher", TOY, "--maps", "x", "--extent", "y"], "either --teacher, or --maps"),
        (["--maps", "x"], "--maps and --extent go together"),
        (["--teacher", TOY, "--extent", "x"], "--maps and --extent go together"),
        (["--teacher", TOY, "--key", "x"], "--key names the array"),
        (["--teacher", TOY, "--batch_size", "0"], "--batch_size is 0"),
        (["--teacher", TOY, "--shard_clips", "0"], "--shard_clips is 0"),
        (["--teacher", "Nobody"], "Nobody"),
        (["--teacher", TOY, "--teacher.loud", "1"], "loud"),
        (["--teacher", TOY, "--only", "all"], "all"),
    ],
)
def test_options_that_contradict_each_other(sounds, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        _run(sounds, tmp_path / "out", *options)


def test_interrupted_it_says_so_and_ends_with_130(sounds, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ToyTeacher, "features", stop)
    call = ["data", "targets", "folder", str(sounds), "--holdout", "0.2", "--teacher", TOY]
    assert main([*call, "--workers", "0", "--out", str(tmp_path / "out")]) == 130
    assert "stopped" in capsys.readouterr().err
