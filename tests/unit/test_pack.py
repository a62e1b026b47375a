"""Packing: what is written, whatever happens meanwhile."""

import errno
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from packing_toys import bag, content, packed, said, unknown

from peas.audio import decode as audio
from peas.cli.verbs import dispatch
from peas.data.columns import Strings
from peas.data.esc50 import ESC50
from peas.data.packed import writer
from peas.data.packed.arrow_files import ArrowShard
from peas.data.packed.module import PackedSet
from peas.data.sounds import Sounds
from peas.data.statistics import measure
from peas.errors import AudioError, ConfigError, DataError, PeasError
from peas.utils import files
from peas.utils.files import Locked, checksum, lock

PARTS = ["train"] * 8 + ["test"] * 4


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    return tmp_path_factory.mktemp("loose") / "bag"


@pytest.fixture(scope="module")
def whole(loose, tmp_path_factory):
    """The folder that an unbroken run writes."""
    out = tmp_path_factory.mktemp("whole") / "packed"
    packed(bag(loose, PARTS), out)
    return out


def _read(folder):
    """Rows of all shards, as `datasets` reads them."""
    import datasets

    files = sorted(folder.glob("shard-*.arrow"))
    return [row for file in files for row in datasets.Dataset.from_file(str(file))]


def _child(work):
    """Runs a function in a process of its own, and gives its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


# ---- what is written


def test_sound_of_16_bits_is_stored_without_loss(loose, whole):
    rows = _read(whole)
    assert [row["id"] for row in rows] == [f"{number:03}.wav" for number in range(12)]
    for row in rows:
        expected, rate = soundfile.read(loose / row["id"], dtype="int16")
        file = audio.io.BytesIO(row["audio"]["bytes"])
        assert soundfile.info(file).format == "FLAC"
        file.seek(0)
        samples, stored_rate = soundfile.read(file, dtype="int16")
        assert rate == stored_rate == row["rate"] == 16_000
        assert np.array_equal(samples, expected)
        assert row["seconds"] == pytest.approx(len(expected) / rate)
        assert row["audio"]["path"] == row["id"] + ".flac"


def test_other_sound_is_mixed_resampled_and_rounded(tmp_path):
    module = bag(tmp_path / "bag", PARTS[:2], rate=44_100, channels=2)
    packed(module, tmp_path / "packed", audio="wav")
    for row in _read(tmp_path / "packed"):
        waveform = audio.load(tmp_path / "bag" / row["id"], 16_000)
        expected = torch.round(waveform * 32768).clamp(-32768, 32767) / 32768
        assert soundfile.info(audio.io.BytesIO(row["audio"]["bytes"])).format == "WAV"
        assert torch.equal(audio.load(row["audio"]["bytes"]), expected)


def test_the_first_channel_alone(tmp_path):
    module = bag(tmp_path / "bag", PARTS[:2], channels=2)
    packed(module, tmp_path / "packed", channels="first")
    for row in _read(tmp_path / "packed"):
        first = audio.load(tmp_path / "bag" / row["id"], channels="first")
        assert torch.equal(audio.load(row["audio"]["bytes"]), first)


def test_own_rate_and_own_bytes(tmp_path):
    module = bag(tmp_path / "bag", PARTS[:3], rate=22_050)
    packed(module, tmp_path / "own", rate=None)
    for row in _read(tmp_path / "own"):
        assert (row["rate"], audio.probe(row["audio"]["bytes"]).rate) == (22_050, 22_050)
    packed(module, tmp_path / "kept", rate=None, audio="keep")
    for row in _read(tmp_path / "kept"):
        assert row["audio"]["bytes"] == (tmp_path / "bag" / row["id"]).read_bytes()
        assert row["audio"]["path"] == row["id"]


def test_samples_beyond_full_scale_are_cut_and_counted(tmp_path):
    module = bag(tmp_path / "bag", PARTS[:2])
    soundfile.write(tmp_path / "bag" / "001.wav", [0.5, 1.5, -1.5, -1.0] * 500, 16_000, "FLOAT")
    manifest = packed(module, tmp_path / "packed")
    assert [shard.saturated for shard in manifest.shards] == [1]
    samples = audio.load(_read(tmp_path / "packed")[1]["audio"]["bytes"])
    assert samples[:4].tolist() == [0.5, 32767 / 32768, -1.0, -1.0]


def test_manifest(whole):
    manifest = said(whole)
    assert (manifest["format"], manifest["version"]) == ("peas-packed", 1)
    assert manifest["recipe"]["resampler"] == audio.RESAMPLER
    assert (manifest["clips"], manifest["mean"], manifest["std"]) == (12, -6.0, 5.0)
    assert [(part["name"], part["clips"]) for part in manifest["parts"]] == [
        ("train", 8),
        ("test", 4),
    ]
    assert manifest["parts"][0]["classes"] == [3, 3, 2]
    seconds = [row["seconds"] for row in _read(whole)]
    assert manifest["seconds"] == pytest.approx(sum(seconds), abs=1e-3)
    assert (manifest["shortest"], manifest["longest"]) == (min(seconds), max(seconds))
    assert manifest["notes"] == ["A bag."]
    for stored in (manifest["index"], *manifest["shards"]):
        file = whole / stored["file"]
        assert file.stat().st_size == stored["bytes"]
        assert checksum(file) == stored["checksum"]
    assert sum(stored["rows"] for stored in manifest["shards"]) == 12
    assert len(manifest["shards"]) > 3
    assert {stored["part"] for stored in manifest["shards"]} == {"train", "test"}


def test_statistics_are_measured_where_the_set_has_none(tmp_path):
    parts = ["fold 1", "fold 2", "fold 3"] * 3
    module = bag(tmp_path / "bag", parts, mean=unknown())
    packed(module, tmp_path / "packed")
    training = PackedSet(str(tmp_path / "packed"), fold=2)
    expected = measure(training.clips("train"), 64, workers=0)
    assert training.info.mean == pytest.approx(expected.mean, rel=1e-6)
    assert training.info.std == pytest.approx(expected.std, rel=1e-6)
    assert PackedSet(str(tmp_path / "packed"), fold=3).info.mean != training.info.mean
    packed(module, tmp_path / "wide", rate=32_000)
    wide = PackedSet(str(tmp_path / "wide"), fold=2).info
    assert wide.mean == pytest.approx(expected.mean, abs=0.05)


# ---- the same whatever happens


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(loose, whole, tmp_path, workers):
    packed(bag(loose, PARTS), tmp_path / "packed", workers=workers)
    assert content(tmp_path / "packed") == content(whole)


def _killed_at(monkeypatch, module, out, moment, number):
    """Packs in a process that kills itself, and says whether it came so far."""

    def work():
        calls = [0]

        def die_at(place, real):
            def call(*arguments):
                calls[0] += place == moment.removeprefix("after ")
                dying = calls[0] == number and place == moment.removeprefix("after ")
                if dying and not moment.startswith("after"):
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*arguments)
                if dying:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        monkeypatch.setattr(files.os, "replace", die_at("rename", os.replace))
        add = ArrowShard.add
        monkeypatch.setattr(ArrowShard, "add", die_at("clip", add))
        packed(module, out)

    code = _child(work)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("moment", ["rename", "after rename", "clip"])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(loose, whole, tmp_path, monkeypatch, moment):
    module = bag(loose, PARTS)
    killed = 0
    for number in range(1, 30):
        out = tmp_path / str(number)
        if not _killed_at(monkeypatch, module, out, moment, number):
            break
        killed += 1
        assert not (out / "manifest.json").exists() or moment == "after rename"
        packed(module, out)
        assert content(out) == content(whole), f"{moment} {number}"
    # A rename for the first journal, two for each shard, one for index and manifest.
    assert killed == (12 if moment == "clip" else 2 * len(said(whole)["shards"]) + 3)


def test_killed_again_and_again_it_repeats_no_finished_shard(loose, whole, tmp_path, monkeypatch):
    module, out = bag(loose, PARTS), tmp_path / "packed"
    runs, shards_of_all = 0, len(said(whole)["shards"])
    # The third rename of a run is that of its first shard's journal, when one was begun before.
    while _killed_at(monkeypatch, module, out, "after rename", 3):
        journal = out / "packing.json"
        runs += 1
        if journal.exists():
            assert len(json.loads(journal.read_text())["done"]) == min(runs, shards_of_all)
    # The last one is killed between the manifest and the end of the journal.
    assert runs == shards_of_all + 1
    assert content(out) == content(whole)


class _Strange(Sounds):
    """Sounds that do something strange when a row is asked for."""

    def __init__(self, base, what):
        super().__init__(base.decoder)
        self.base = base
        self.what = what

    def __len__(self):
        return len(self.base)

    def source(self, row, crop=None):
        self.what(row)
        return self.base.source(row)


def _strange(module, what):
    inventory = module.inventory()
    table = replace(inventory.table, sounds=_Strange(inventory.table.sounds, what))
    module.inventory = lambda: replace(inventory, table=table)
    return module


def test_killed_with_workers_the_folder_is_free_at_once(loose, whole, tmp_path):
    out = tmp_path / "packed"
    # The workers outlive their parent by seconds.
    slow = _strange(bag(loose, PARTS), lambda row: time.sleep(0.05 if row < 9 else 3))
    process = multiprocessing.get_context("fork").Process(
        target=lambda: packed(slow, out, workers=2)
    )
    process.start()
    deadline = time.monotonic() + 30
    while not list(out.glob("shard-*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (out / "manifest.json").exists()
    packed(bag(loose, PARTS), out)
    assert content(out) == content(whole)


def test_a_worker_that_dies_is_named_with_its_clips(loose, tmp_path):
    dying = _strange(bag(loose, PARTS), lambda row: row == 5 and os.kill(os.getpid(), 9))
    with pytest.raises(PeasError, match=r"SIGKILL.*000\.wav.*005\.wav"):
        packed(dying, tmp_path / "packed", workers=1)


def test_a_full_disk_and_then_room(loose, whole, tmp_path, monkeypatch):
    module, out = bag(loose, PARTS), tmp_path / "packed"
    add = ArrowShard.add

    def full(self, row):
        if row["row"] == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(ArrowShard, "add", full)
        with pytest.raises(DataError, match="disk is full"):
            packed(module, out)
    assert not list(out.glob("*.partial"))
    packed(module, out)
    assert content(out) == content(whole)


def test_what_is_complete_stays(loose, whole, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in whole.glob("*[a-z].*")}
    again = packed(bag(loose, PARTS), whole, workers=2)
    assert again.clips == 12
    assert {path.name: path.stat().st_mtime_ns for path in whole.glob("*[a-z].*")} == before
    # Killed between its last two steps, a run leaves both files.
    (whole / "packing.json").write_text("{}")
    packed(bag(loose, PARTS), whole)
    assert not (whole / "packing.json").exists()


# ---- other work in the same folder


@pytest.fixture
def begun(loose, tmp_path, monkeypatch):
    """A folder whose packing was killed after the first shard."""
    assert _killed_at(monkeypatch, bag(loose, PARTS), tmp_path / "begun", "after rename", 3)
    return tmp_path / "begun"


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 8_000}, "--rate was 16000 and is 8000 now"),
        ({"rate": None}, "--rate was 16000 and is null now"),
        ({"audio": "wav"}, "--format was flac and is wav now"),
        ({"channels": "first"}, "--channels was mean and is first now"),
        ({"shard_bytes": 99}, "--shard_mb .* was 16000 and is 99 now"),
        ({"name": "folder"}, "SET was bag and is folder now"),
    ],
)
def test_other_settings_are_refused(loose, whole, begun, settings, message, complete):
    folder = whole if complete else begun
    before = content(folder)
    with pytest.raises(DataError, match=message):
        packed(bag(loose, PARTS), folder, **settings)
    assert content(folder) == before


def test_another_source_is_refused(loose, begun):
    for change, message in (
        ({"labels": ["a", "b", "d"]}, "labels"),
        ({"classes": [[0]] * 12}, "table"),
        ({"multi_label": True}, "multi_label .*False .*True"),
    ):
        with pytest.raises(DataError, match=message):
            packed(bag(loose, PARTS, **change), begun)
    with pytest.raises(DataError, match="table"):
        packed(bag(loose, ["train"] * 12), begun)
    with pytest.raises(DataError, match=r"clips .*12 .*11"):
        packed(bag(loose, PARTS[:11]), begun)


def test_other_software_is_refused_for_what_is_begun_alone(loose, whole, begun, monkeypatch):
    monkeypatch.setattr(soundfile, "__libsndfile_version__", "9.9")
    with pytest.raises(DataError, match="software"):
        packed(bag(loose, PARTS), begun)
    assert packed(bag(loose, PARTS), whole).clips == 12


def test_files_that_change_after_they_were_packed_are_refused(tmp_path, monkeypatch):
    module, out = bag(tmp_path / "bag", PARTS), tmp_path / "packed"
    assert _killed_at(monkeypatch, module, out, "after rename", 3)
    late = tmp_path / "bag" / "011.wav"
    os.utime(late, (1, 1))
    early = tmp_path / "bag" / "001.wav"
    state = early.stat()
    os.utime(early, (1, 1))
    with pytest.raises(DataError, match=r"clips 000\.wav to 00\d\.wav"):
        packed(module, out)
    os.utime(early, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert packed(module, out).clips == 12


def test_a_finished_shard_that_vanished_is_written_again(loose, whole, begun):
    next(begun.glob("shard-00000*")).unlink()
    packed(bag(loose, PARTS), begun)
    assert content(begun) == content(whole)


def test_a_damaged_journal_is_named(loose, begun):
    (begun / "packing.json").write_text("{")
    with pytest.raises(DataError, match=r"packing\.json: damaged .* delete"):
        packed(bag(loose, PARTS), begun)


def test_a_folder_of_other_files_is_refused(loose, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(DataError, match=r"other files \(mine\.txt\): give a new or an empty one"):
        packed(bag(loose, PARTS), tmp_path)
    with pytest.raises(DataError, match=r"mine\.txt"):
        packed(bag(loose, PARTS), tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_run_at_a_time(loose, tmp_path):
    out = tmp_path / "packed"
    out.mkdir()
    with lock(out / ".lock", out), pytest.raises(Locked, match=str(out)):
        packed(bag(loose, PARTS), out)
    assert packed(bag(loose, PARTS), out).clips == 12


# ---- clips that cannot be read


def test_a_broken_clip_stops_with_its_name_or_is_left_out(tmp_path):
    module, out = bag(tmp_path / "bag", PARTS), tmp_path / "packed"
    (tmp_path / "bag" / "007.wav").write_bytes(b"no sound")
    (tmp_path / "bag" / "009.wav").unlink()
    for _ in range(2):
        with pytest.raises(AudioError, match=r"007\.wav.* \(clip 007\.wav\).*--on.error skip"):
            packed(module, out)
    manifest = packed(module, out, on_error="skip")
    assert [(clip.id, clip.part) for clip in manifest.left_out] == [
        ("007.wav", "train"),
        ("009.wav", "test"),
    ]
    assert "cannot be decoded" in said(out)["left_out"][0]["reason"]
    assert [(part.name, part.clips) for part in manifest.parts] == [("train", 7), ("test", 3)]
    inventory = PackedSet(str(out)).inventory()
    assert len(inventory.table) == 10
    assert "2 clips were left out when packing: 007.wav, 009.wav." in inventory.notes
    straight = tmp_path / "straight"
    packed(module, straight, on_error="skip")
    assert content(straight) == content(out)


def test_a_run_that_left_clips_out_does_not_go_on_without_leave(tmp_path, monkeypatch):
    module, out = bag(tmp_path / "bag", PARTS), tmp_path / "packed"
    (tmp_path / "bag" / "000.wav").write_bytes(b"")

    def work():
        monkeypatch.setattr(writer, "write_index", lambda *_: os.kill(os.getpid(), 9))
        packed(module, out, on_error="skip")

    assert _child(work) == -9
    with pytest.raises(ConfigError, match=r"--on_error skip.*000\.wav"):
        packed(module, out)
    assert packed(module, out, on_error="skip").clips == 11


def test_a_part_of_which_nothing_can_be_read(tmp_path):
    module, out = bag(tmp_path / "bag", PARTS), tmp_path / "packed"
    for number in range(8, 12):
        (tmp_path / "bag" / f"{number:03}.wav").unlink()
    manifest = packed(module, out, on_error="skip")
    assert [part.clips for part in manifest.parts] == [8, 0]
    with pytest.raises(DataError, match="no clip of test was packed"):
        PackedSet(str(out)).clips("test")
    for number in range(8):
        (tmp_path / "bag" / f"{number:03}.wav").unlink()
    with pytest.raises(DataError, match="not one clip could be read"):
        packed(module, tmp_path / "nothing", on_error="skip")


def test_a_set_without_clips(tmp_path):
    with pytest.raises(DataError, match="no clip with sound"):
        packed(bag(tmp_path / "bag", []), tmp_path / "packed")


def test_stretches_can_be_cut_but_not_kept(tmp_path):
    def stretches():
        module = bag(tmp_path / "bag", PARTS[:2])
        inventory = module.inventory()
        inventory.table.sounds.start = np.array([0.05, 0.0])
        inventory.table.sounds.stop = np.array([0.10, np.nan])
        module.inventory = lambda: inventory
        return module

    packed(stretches(), tmp_path / "packed")
    first, second = _read(tmp_path / "packed")
    expected = audio.load(tmp_path / "bag" / "000.wav")[800:1600]
    assert torch.equal(audio.load(first["audio"]["bytes"]), expected)
    assert second["seconds"] > 0.2
    with pytest.raises(AudioError, match="a stretch of its file"):
        packed(stretches(), tmp_path / "kept", rate=None, audio="keep")


def test_a_rate_that_the_format_does_not_know(tmp_path):
    module = bag(tmp_path / "bag", PARTS[:1])
    with pytest.raises(AudioError, match="cannot be written as flac at 700000 Hz"):
        packed(module, tmp_path / "packed", rate=700_000)


# ---- the command


@pytest.fixture
def command_line(sounds, tmp_path):
    return ["esc50", str(sounds), "--out", str(tmp_path / "packed"), "--workers", "0"]


def test_the_command(sounds, command_line, tmp_path, capsys):
    dispatch(["data", "pack", *command_line, "--shard_mb", "0.1"])
    printed = capsys.readouterr().out
    assert "40 clips, 0.01 h" in printed
    assert "fold 5: 8 clips" in printed
    packed_set, loose = PackedSet(str(tmp_path / "packed"), fold=3), ESC50(str(sounds), fold=3)
    assert packed_set.info == loose.info
    for split in ("train", "validation", "test"):
        assert packed_set.clips(split).ids == loose.clips(split).ids
    recordings = packed_set.inventory().recordings
    assert isinstance(recordings, Strings)
    assert recordings == loose.inventory().recordings


def test_the_command_tells_what_is_missing(sounds, command_line, tmp_path, capsys):
    import shutil

    copy = tmp_path / "sounds"
    shutil.copytree(sounds, copy)
    gone = sorted((copy / "audio").iterdir())[3]
    gone.unlink()
    command_line[1] = str(copy)
    with pytest.raises(AudioError, match=gone.name):
        dispatch(["data", "pack", *command_line])
    dispatch(["data", "pack", *command_line, "--on_error", "skip"])
    printed = capsys.readouterr().out
    assert f"1 clips could not be read and were left out: {gone.name} (all in manifest" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rate", "8000", "--keep_original_rate"], "exclude each other"),
        (["--format", "keep"], "give --keep_original_rate with it"),
        (["--rate", "0"], "--rate is 0"),
        (["--shard_mb", "0"], "--shard_mb is 0"),
        (["--workers", "-1"], "--workers is -1"),
        (["--format", "mp3"], "format"),
        (["--fold", "x"], "fold"),
    ],
)
def test_the_command_refuses(command_line, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        dispatch(["data", "pack", *command_line, *options])
    assert not (tmp_path / "packed").exists() or not list((tmp_path / "packed").glob("*.arrow"))


def test_a_packed_set_can_be_packed_again(whole, tmp_path):
    out = tmp_path / "again"
    dispatch(
        [
            "data",
            "pack",
            "packed",
            str(whole),
            "--out",
            str(out),
            "--rate",
            "8000",
            "--workers",
            "0",
        ]
    )
    assert PackedSet(str(out)).clips("train").ids == PackedSet(str(whole)).clips("train").ids
    assert {row["rate"] for row in _read(out)} == {8_000}
    assert said(out)["mean"] == -6.0


def test_files_that_exchange_names_after_they_were_packed_are_refused(tmp_path, monkeypatch):
    module, out = bag(tmp_path / "bag", PARTS), tmp_path / "packed"
    first, second, spare = (tmp_path / "bag" / name for name in ("000.wav", "001.wav", "spare"))
    for seed, path in enumerate((first, second)):
        soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 8_000), 16_000)
        os.utime(path, (1, 1))
    assert _killed_at(monkeypatch, module, out, "after rename", 3)
    first.chmod(0o600)
    for old, new in ((first, spare), (second, first), (spare, second)):
        old.rename(new)
    with pytest.raises(DataError, match=r"clips 000\.wav to 00\d\.wav"):
        packed(module, out)
    for old, new in ((first, spare), (second, first), (spare, second)):
        old.rename(new)
    # Neither permissions nor a way there and back are a change of the sound.
    assert packed(module, out).clips == 12


def test_a_file_with_a_hole_is_left_out_soon(tmp_path):
    module, out = bag(tmp_path / "bag", PARTS), tmp_path / "packed"
    hole = tmp_path / "bag" / "003.wav"
    os.truncate(hole, 2**40)
    data = bytearray(hole.open("rb").read(44))
    data[40:44] = b"\xff\xff\xff\xff"
    with hole.open("r+b") as file:
        file.write(data)
    for number, coding in enumerate(({}, {"rate": None, "audio": "keep"})):
        manifest = packed(module, out / str(number), **coding, on_error="skip")
        assert manifest.clips == 11
        assert [clip.id for clip in manifest.left_out] == ["003.wav"]
