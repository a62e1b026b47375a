"""The twelve classes of keyword spotting: composition, silence, balancing, order and restarts."""

import hashlib
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from peas.data.columns import Strings, Targets
from peas.data.labels import read_labels
from peas.data.loader import TrainLoader
from peas.data.speech_commands.keywords import (
    CLASSES,
    KEYWORDS,
    SILENCE,
    UNKNOWN,
    HalfOfUnknown,
    NoiseCrops,
    like_test_archive,
    speaker_of,
    split_of_speaker,
)
from peas.data.speech_commands.module import SpeechCommands
from peas.errors import AudioError, ConfigError, DataError
from peas.training.randomness import generator

V2_WORDS = sorted(read_labels("speech_commands_v2"))
V1_WORDS = [w for w in V2_WORDS if w not in {"backward", "follow", "forward", "learn", "visual"}]
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
ARCHIVE = "speech_commands_test_set_v0.01"


def speakers() -> dict[str, list[str]]:
    """Made-up speakers of each split, by the law itself, written down a second time."""
    source = random.Random(0)
    pools: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for _ in range(3_000):
        name = f"{source.getrandbits(32):08x}"
        share = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 2**27 / (2**27 - 1)
        pools["validation" if share < 0.1 else "test" if share < 0.2 else "train"].append(name)
    return pools


POOLS = speakers()


def clip_names(split: str, count: int) -> list[str]:
    """Names as in the official archives; few speakers have spoken a word twice."""
    pool = POOLS[split]
    return [f"{pool[n % len(pool)]}_nohash_{n // len(pool)}.wav" for n in range(count)]


def write(path: Path, seconds: float, seed: int = 0, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, noise, rate)


def tree(root: Path, words: list[str], lists: bool = True) -> Path:
    """Four training clips, one of validation and one test clip of every word, and noise."""
    listed: dict[str, list[str]] = {split: [] for split in LISTS}
    for place, word in enumerate(words):
        for split, count in (("train", 4), ("validation", 1), ("test", 1)):
            for name in clip_names(split, count):
                write(root / word / name, 0.1, seed=place)
                if split in listed:
                    listed[split].append(f"{word}/{name}")
    for split, names in listed.items():
        if lists:
            (root / LISTS[split]).write_text("\n".join(names))
    for place, name in enumerate(("running_tap", "white_noise")):
        write(root / "_background_noise_" / f"{name}.wav", 3.0 + place, seed=100 + place)
    (root / "_background_noise_" / "README.md").write_text("not a sound")
    return root


def archive(folder: Path) -> Path:
    """A test archive with its own ways of naming; three clips of each class."""
    for label in CLASSES:
        for place, name in enumerate(clip_names("test", 3)):
            name = {SILENCE: f"{place}.wav", UNKNOWN: f"bed_{name}.wav"}.get(label, name)
            write(folder / label / name, 0.1, seed=place)
    (folder / "README.md").write_text("about")
    return folder


@pytest.fixture(scope="module")
def ks1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tree(tmp_path_factory.mktemp("ks1") / "speech_commands_v0.01", V1_WORDS)
    archive(root.parent / ARCHIVE)
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three keywords and four other words: short epochs."""
    words = ["yes", "no", "up", "bed", "cat", "dog", "zero"]
    return tree(tmp_path_factory.mktemp("few") / "set", words)


def module(root: Path, **settings) -> SpeechCommands:
    settings = {"task": "v1-12", "num_workers": 0, "cache_dir": "", "mixup": 0.0, **settings}
    return SpeechCommands(str(root), **settings)


def per_class(table) -> dict[str, int]:
    counts = table.targets.counts(len(CLASSES))
    return dict(zip(CLASSES, counts.tolist(), strict=True))


# --- the split ----------------------------------------------------------------------------------


def test_the_hash_of_the_speaker_makes_the_official_lists(shared):
    root = shared / "data" / "speech_commands_3words"
    listed = {
        name: split for split, file in LISTS.items() for name in (root / file).read_text().split()
    }
    clips = [f"{path.parent.name}/{path.name}" for path in root.glob("*/*.wav")]
    assert len(clips) == 742
    assert len(listed) > 100
    assert all(split_of_speaker(name) == listed.get(name, "train") for name in clips)
    assert all(speaker_of(name) == name.partition("/")[2][:8] for name in clips)


def test_speakers_of_odd_names():
    assert speaker_of("_unknown_/bed_3ff840aa_nohash_0.wav.wav") == "3ff840aa"
    assert speaker_of("_silence_/1035.wav") == ""


# --- composition --------------------------------------------------------------------------------

# Clips of V1, class by class: SUPERB's own counts (s3prl, test/test_speech_commands.py).
SUPERB = {
    "train": [1860, 1853, 1843, 1842, 1839, 1852, 1864, 1839, 1885, 1861, 32_550, 6],
    "validation": [261, 270, 260, 264, 247, 256, 257, 256, 246, 260, 4_221, 6],
    "test": [256, 252, 272, 253, 267, 259, 246, 262, 249, 251, 257, 257],
}
UNKNOWN_TEST_CLIPS = 6_835 - 2_567
"""Of the test list; the archive holds 257 of them."""


def official(words: list[str], counts: dict[str, dict[str, int]]) -> dict[str, list[str]]:
    """Names in every word's folder."""
    return {
        word: [name for split in POOLS for name in clip_names(split, counts[split][word])]
        for word in words
    }


def spread(total: int, words: list[str]) -> dict[str, int]:
    return {word: total // len(words) + (n < total % len(words)) for n, word in enumerate(words)}


def as_on_disk(monkeypatch, root: Path, folders: dict[str, list[str]]) -> None:
    """The names are all that composition reads: 64,727 files would only cost time."""
    for word in folders:
        (root / word).mkdir(parents=True)
    monkeypatch.setattr(
        "peas.data.speech_commands.word_folders.wav_names",
        lambda folder: sorted(folders.get(folder.name, [])),
    )


@pytest.mark.parametrize("lists", [True, False], ids=["lists", "speakers"])
def test_counts_of_superb(monkeypatch, tmp_path, lists):
    others = [word for word in V1_WORDS if word not in KEYWORDS]
    counts = {split: dict(zip(KEYWORDS, SUPERB[split], strict=False)) for split in POOLS}
    unknown = {split: SUPERB[split][10] for split in POOLS} | {"test": UNKNOWN_TEST_CLIPS}
    for split in POOLS:
        counts[split] |= spread(unknown[split], others)
    folders = official(V1_WORDS, counts)
    noise = [f"{name}.wav" for name in "abcdef"]
    # The size that the archive of V1 states.
    assert sum(map(len, folders.values())) + len(noise) == 64_727
    root = tmp_path / "data"
    as_on_disk(monkeypatch, root, folders | {"_background_noise_": noise})
    if lists:
        for split, file in LISTS.items():
            names = [
                f"{word}/{n}" for word in folders for n in clip_names(split, counts[split][word])
            ]
            (root / file).write_text("\n".join(names))
    data = module(root)
    # Without an archive the test has its numbers, of the list's clips and of the noise.
    for split, classes in SUPERB.items():
        assert list(per_class(data.clips(split)).values()) == classes
    sizes = [len(data.clips(split)) for split in SUPERB]
    assert sizes == [51_094, 6_804, 3_081]
    assert data.epoch_sampler(data.clips("train")).count == 51_094


def test_counts_of_version_2(monkeypatch, tmp_path):
    totals = {"train": 84_843, "validation": 9_981, "test": 11_005}
    others = [word for word in V2_WORDS if word not in KEYWORDS]
    keywords = {"train": 30_769, "validation": 3_703, "test": 4_074}
    counts = {
        split: spread(keywords[split], list(KEYWORDS))
        | spread(totals[split] - keywords[split], others)
        for split in POOLS
    }
    folders = official(V2_WORDS, counts)
    noise = [f"{name}.wav" for name in "abcdef"]
    root = tmp_path / "data"
    as_on_disk(monkeypatch, root, folders | {"_background_noise_": noise})
    for split, file in LISTS.items():
        names = [f"{word}/{n}" for word in folders for n in clip_names(split, counts[split][word])]
        (root / file).write_text("\n".join(names))
    words, twelve = SpeechCommands(str(root)), module(root, task="v2-12")
    assert [len(words.clips(split)) for split in totals] == list(totals.values())
    # The archive of V2: 4,074 keywords, 408 of each other class.
    assert [len(twelve.clips(split)) for split in totals] == [84_849, 9_987, 4_890]


def test_classes_and_splits_of_the_miniature(ks1):
    data = module(ks1)
    data.setup("fit")
    assert data.labels == [
        *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
        *("_unknown_", "_silence_"),
    ]
    ten = dict.fromkeys(KEYWORDS, 1)
    assert per_class(data.clips("validation")) == ten | {UNKNOWN: 20, SILENCE: 2}
    assert per_class(data.clips("train")) == {k: 4 for k in KEYWORDS} | {UNKNOWN: 80, SILENCE: 2}
    assert per_class(data.clips("test")) == dict.fromkeys(CLASSES, 3)
    table = data.clips("train")
    assert all(
        CLASSES[int(table.targets[row][0])] == (word if word in KEYWORDS else UNKNOWN)
        for row, name in enumerate(table.ids)
        if (word := name.partition("/")[0]) in V1_WORDS
    )
    assert (data.info.mean, data.info.std, data.info.frames) == (-6.702, 5.448, 128)
    assert not data.info.multi_label


def test_more_training_silence(ks1):
    table = module(ks1, silence=5).clips("train")
    assert per_class(table)[SILENCE] == 5
    assert len(set(table.ids)) == len(table)
    assert per_class(module(ks1, silence=5).clips("validation"))[SILENCE] == 2


def test_lists_are_not_needed(ks1, tmp_path):
    bare = tree(tmp_path / "bare", V1_WORDS, lists=False)
    for split in ("train", "validation"):
        assert module(bare).clips(split).ids == module(ks1).clips(split).ids


# --- the test archive ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["beside", "inside", "given"])
def test_where_the_archive_is_found(tmp_path, place):
    root = tree(tmp_path / "set", ["yes", "bed"])
    folder = {"beside": tmp_path / ARCHIVE, "inside": root / ARCHIVE, "given": tmp_path / "x"}
    archive(folder[place])
    data = module(root, test_root=str(tmp_path / "x") if place == "given" else None)
    table = data.clips("test")
    assert len(table) == 36
    sample = table.ids.array.to_pylist().index("_silence_/2.wav")
    assert table.sounds.source(sample).data == folder[place] / "_silence_" / "2.wav"
    assert len(table.sounds.load(sample)) == 1600


def test_without_the_archive_the_test_list_has_its_proportions(tmp_path, caplog):
    root = tree(tmp_path / "set", V1_WORDS)
    data = module(root)
    assert per_class(data.clips("test")) == dict.fromkeys(KEYWORDS, 1) | {UNKNOWN: 1, SILENCE: 1}
    assert data.clips("test").ids == module(root).clips("test").ids
    (line,) = [record.message for record in caplog.records if ARCHIVE in record.message][:1]
    assert "not the published protocol's" in line
    assert f"{ARCHIVE}.tar.gz" in line


def test_like_test_archive_keeps_keywords_and_takes_the_same_others():
    names = [f"yes/{n}" for n in range(21)] + [f"bed/{n}" for n in range(50)]
    chosen = like_test_archive(names)
    assert [name for name in chosen if name.startswith("yes")] == names[:21]
    assert len(chosen) == 21 + 3
    assert like_test_archive(names[::-1]) == chosen[::-1]


def test_archive_that_is_not_there(ks1):
    with pytest.raises(DataError, match=r"no folder /nowhere .*test_root.*v0\.01\.tar\.gz"):
        module(ks1, test_root="/nowhere").clips("test")


def test_archive_that_is_not_whole(ks1, tmp_path):
    folder = archive(tmp_path / "archive")
    for path in (folder / UNKNOWN).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"archive has no clips of _unknown_"):
        module(ks1, test_root=str(folder)).clips("test")


# --- silence ------------------------------------------------------------------------------------


def silent(table) -> list[int]:
    return np.flatnonzero(table.targets.classes == CLASSES.index(SILENCE)).tolist()


def test_training_silence_is_another_second_each_time(ks1):
    table = module(ks1).clips("train")
    row = silent(table)[0]
    starts = [table.sounds.source(row, draw).start for draw in (0.0, 0.5, 0.999999)]
    assert starts[0] == 0.0
    assert starts[1] == pytest.approx(1.0, abs=1e-3)
    assert starts[2] == pytest.approx(2.0, abs=1e-3)
    noise, _ = soundfile.read(table.sounds.source(row).data, dtype="float32")
    heard = table.sounds.load(row, 0.5)
    begin = round(starts[1] * 16_000)
    assert np.array_equal(heard.numpy(), noise[begin : begin + 16_000])
    assert all(len(table.sounds.load(row, draw)) == 16_000 for draw in (0.0, 0.3, 0.999999))


def test_validation_silence_is_always_the_same(ks1, monkeypatch):
    first = module(ks1).clips("validation")
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    again = module(ks1).clips("validation")
    rows = silent(first)
    assert [first.sounds.source(row) for row in rows] == [again.sounds.source(row) for row in rows]
    assert len({first.sounds.source(row).data for row in rows}) == 2
    batch = list(module(ks1).val_dataloader())[-1]
    assert torch.equal(batch["waveform"][-1], first.sounds.load(rows[-1]))


def test_noise_shorter_than_a_second_and_of_another_rate(tmp_path):
    write(tmp_path / "short.wav", 0.5)
    write(tmp_path / "fast.wav", 2.0, rate=44_100)
    crops = NoiseCrops(
        16_000, "mean", [tmp_path / "short.wav", tmp_path / "fast.wav"], Strings(["a", "b"])
    )
    assert len(crops.load(0, 0.9)) == 8_000
    assert crops.source(1, 0.5).start == pytest.approx(0.5, abs=1e-4)
    assert abs(len(crops.load(1, 0.5)) - 16_000) <= 1


def test_clips_of_one_recording_lie_at_different_places(tmp_path):
    write(tmp_path / "long.wav", 4.0)
    crops = NoiseCrops(16_000, "mean", [tmp_path / "long.wav"], Strings(["a", "b", "c"]))
    assert len({crops.source(row).start for row in range(3)}) == 3
    assert crops.decoder.folder is None


def test_seconds_of_noise_are_not_kept_on_disk(tmp_path):
    root = tree(tmp_path / "set", ["yes", "bed"])
    write(root / "_background_noise_" / "fast.wav", 2.0, rate=44_100)
    data = module(root, cache_dir=str(tmp_path / "cache"))
    table = data.clips("train")
    for row in silent(table):
        table.sounds.load(row, 0.3)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_broken_noise_names_its_file(ks1, tmp_path):
    root = tree(tmp_path / "set", ["yes", "bed"])
    (root / "_background_noise_" / "white_noise.wav").write_bytes(b"no sound")
    table = module(root).clips("train")
    with pytest.raises(AudioError, match=r"white_noise\.wav"):
        table.sounds.load(silent(table)[1], 0.1)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_without_noise_there_is_no_silence(tmp_path, split):
    root = tree(tmp_path / "set", ["yes", "bed"])
    for path in (root / "_background_noise_").glob("*.wav"):
        path.unlink()
    with pytest.raises(DataError, match=r"_background_noise_.*_silence_.*v0\.01\.tar\.gz"):
        module(root).clips(split)


# --- order --------------------------------------------------------------------------------------


def read(loader: TrainLoader, epoch: int = 0) -> list:
    loader.sampler.set_epoch(epoch)
    return [(batch["id"], batch["waveform"], batch["target"]) for batch in loader]


def equal(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        for a, b in zip(left, right, strict=True)
    )


def test_every_class_is_drawn_as_often(ks1):
    data = module(ks1)
    table = data.clips("train")
    order = data.epoch_sampler(table)
    assert order.count == len(table) == 122
    assert order.repeats
    drawn = torch.cat([order.sample(generator(0, "order", epoch, 0)) for epoch in range(60)])
    counts = table.targets.take(drawn.numpy()).counts(12)
    assert counts.sum() == 60 * 122
    # 610 of each expected, with a standard deviation of 23.6.
    assert np.all(np.abs(counts - 610) < 5 * 23.6)


def test_half_of_unknown():
    #                         4 of class 0, none of class 1, 1 of class 2, 9 unknown, 2 silent
    targets = Targets.one_each([10, 0, 10, 10, 2, 10, 0, 10, 11, 10, 0, 10, 10, 0, 10, 11])
    order = HalfOfUnknown(targets)
    assert (order.count, order.repeats) == (4 + 4 + 9 + 4, True)
    first, second = (order.sample(generator(0, "order", epoch, 0)) for epoch in range(2))
    for drawn in (first, second):
        counts = targets.take(drawn.numpy()).counts(12)
        assert counts[[0, 1, 2, 10, 11]].tolist() == [4, 0, 4, 9, 4]
        assert set(Counter(drawn.tolist()).values()) == {1, 2, 4}
    assert not torch.equal(first, second)
    assert torch.equal(first, order.sample(generator(0, "order", 0, 0)))


def test_half_of_unknown_keeps_what_is_more():
    targets = Targets.one_each([10] * 5 + [0] * 5 + [3])
    order = HalfOfUnknown(targets)
    drawn = order.sample(generator(0, "order", 0, 0)).numpy()
    assert targets.take(drawn).counts(12)[[0, 3, 10]].tolist() == [5, 2, 5]
    assert sorted(Counter(drawn.tolist()).values()) == [1] * 10 + [2]


def test_repeated_sampling_of_the_set(ks1):
    data = module(ks1, sampling="repeated")
    assert data.epoch_sampler(data.clips("train")).count == 80 + 11 * 40
    counts = Counter(int(c) for batch in data.train_dataloader() for c in batch["target"])
    assert counts[CLASSES.index(UNKNOWN)] == pytest.approx(80, abs=8)


@pytest.mark.parametrize("sampling", ["balanced", "repeated"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_one_order(ks1, sampling, world):
    whole = module(ks1, sampling=sampling, batch_size=6).train_dataloader()
    expected = [key for key in whole.sampler]
    got = {}
    for rank in range(world):
        data = module(ks1, sampling=sampling, batch_size=6 // world)
        data._rank = lambda rank=rank: (rank, world)
        for key in data.train_dataloader().sampler:
            assert key.position not in got
            got[key.position] = key
    assert [got[position] for position in range(len(expected))] == expected


def test_crops_differ_by_epoch_and_not_by_workers(ks1):
    def heard(workers: int, epoch: int) -> list:
        return read(module(ks1, num_workers=workers).train_dataloader(), epoch)

    first, second = heard(0, 0), heard(0, 1)
    assert equal(heard(2, 0), first)
    assert equal(heard(2, 1), second)

    def crops(batches: list) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for names, waves, _ in batches:
            for name, wave in zip(names, waves, strict=True):
                if "#train" in name:
                    found.setdefault(name, []).append(wave.numpy().tobytes())
        return found

    one, two = crops(first), crops(second)
    assert len(one) == len(two) == 2
    everything = [crop for found in (one, two) for listed in found.values() for crop in listed]
    # Each of the two recordings comes about five times an epoch, never at the same place.
    assert len(everything) > 12
    assert len(set(everything)) == len(everything)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("sampling", ["balanced", "repeated"])
def test_goes_on_inside_an_epoch(few, sampling, workers):
    settings = {"sampling": sampling, "mixup": 0.4, "batch_size": 6}
    whole = read(module(few, **settings).train_dataloader(), epoch=3)
    stopped = module(few, num_workers=workers, **settings).train_dataloader()
    stopped.sampler.set_epoch(3)
    batches = iter(stopped)
    before = [next(batches)["id"] for _ in range(2)]
    state = stopped.state_dict()
    resumed = module(few, num_workers=workers, **settings).train_dataloader()
    resumed.load_state_dict(state)
    assert before == [batch[0] for batch in whole[:2]]
    assert equal(read(resumed, epoch=3), whole[2:])


# --- inventory ----------------------------------------------------------------------------------


def test_inventory(ks1):
    inventory = module(ks1).inventory()
    assert inventory.parts == ["train", "validation", "test"]
    assert np.bincount(inventory.part).tolist() == [120 + 2, 30 + 2, 36]
    assert len(set(inventory.table.ids)) == len(inventory.table)
    assert inventory.recordings is None
    speakers = list(inventory.speakers)
    noise = inventory.table.ids.array.to_pylist().index("_background_noise_/white_noise.wav")
    assert speakers[noise] == ""
    assert inventory.part[noise] == 0
    assert inventory.table.sounds.load(noise).shape == (64_000,)
    silence = inventory.table.targets.classes == CLASSES.index(SILENCE)
    assert inventory.part[silence].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert speakers[0] == f"speech_commands:{inventory.table.ids[0].partition('/')[2][:8]}"
    owners = [{s for s, p in zip(speakers, inventory.part, strict=True) if p == n} for n in (0, 1)]
    assert owners[0] & owners[1] == {""} & owners[1]
    assert any("same 2 recordings of _background_noise_" in note for note in inventory.notes)
    assert not inventory.absent


def test_inventory_of_what_is_missing(tmp_path):
    root = tree(tmp_path / "set", ["yes", "bed"])
    gone = root / "yes" / clip_names("test", 1)[0]
    gone.unlink()
    for path in (root / "_background_noise_").iterdir():
        path.unlink()
    inventory = module(root).inventory()
    assert f"yes/{gone.name}" in list(inventory.table.ids)
    assert inventory.absent == ["_background_noise_/*.wav"]
    assert any("no test archive" in note for note in inventory.notes)


def test_inventory_of_35_words(shared):
    inventory = SpeechCommands(str(shared / "data" / "speech_commands_3words")).inventory()
    assert np.bincount(inventory.part).tolist() == [586, 72, 84]
    sets = [set(inventory.speakers.take(np.flatnonzero(inventory.part == n))) for n in range(3)]
    assert sum(map(len, sets)) == len(set.union(*sets))
    (note,) = inventory.notes
    assert "11005" in note


# --- what does not go together ------------------------------------------------------------------


def test_words_of_another_version(tmp_path):
    root = tree(tmp_path / "set", ["yes", "backward"])
    with pytest.raises(DataError, match=r"backward is not one of the 30 words of .* V1"):
        module(root).clips("train")
    assert module(root, task="v2-12").clips("train")


def test_list_of_another_version(tmp_path):
    root = tree(tmp_path / "set", ["yes", "bed"])
    (root / "testing_list.txt").write_text("visual/0.wav\n")
    with pytest.raises(DataError, match="which is none of the 30 words"):
        module(root).clips("train")


def test_one_list_of_two(tmp_path):
    root = tree(tmp_path / "set", ["yes", "bed"])
    (root / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"there is no .*testing_list\.txt"):
        module(root).clips("train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "v3"}, "data.init_args.task is 'v3': give v2-35, v2-12, v1-12"),
        ({"silence": 0}, "data.init_args.silence is 0: give 1 or more"),
        ({"sampling": "often"}, "data.init_args.sampling is 'often'"),
        ({"sampling": "repeated", "epoch_clips": 9}, "data.init_args.epoch_clips is 9"),
        ({"task": "v2-35", "silence": 3}, "data.init_args.silence is 3, .* v2-35"),
        ({"task": "v2-35", "test_root": "x"}, "data.init_args.test_root is x, .* v2-35"),
        ({"task": "v2-35", "sampling": "repeated"}, "data.init_args.sampling is repeated"),
    ],
)
def test_impossible_settings(ks1, settings, message):
    with pytest.raises(ConfigError, match=message):
        module(ks1, **settings)
