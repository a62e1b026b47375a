"""Packed folders, open: every split, and every damage."""

import gc
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from packing_toys import bag, copy_of, packed, said

import peas.data
from peas.cli.data.verify import take_inventory
from peas.data.cache import ResampledCache
from peas.data.columns import Strings, Targets
from peas.data.packed.folder import PackedFolder, index_fault
from peas.data.packed.manifest import INDEX, read_manifest
from peas.data.packed.module import PackedSet
from peas.errors import AudioError, ConfigError, DataError

READER = ResampledCache(None, rate=16_000, channels="mean")
SPLITS = ["train", "test", "train", "validation"] * 4


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    return tmp_path_factory.mktemp("loose") / "bag"


@pytest.fixture(scope="module")
def splits(loose, tmp_path_factory):
    """Packed clips whose splits alternate."""
    out = tmp_path_factory.mktemp("splits") / "packed"
    packed(bag(loose, SPLITS), out)
    return out


@pytest.fixture(scope="module")
def folds(loose, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds") / "packed"
    packed(bag(loose, ["fold 1", "fold 2", "fold 10"] * 4), out)
    return out


def _numbers(table):
    return [int(name[:3]) for name in table.ids]


# ---- parts and splits


def test_splits_in_the_order_of_the_set(loose, splits):
    module, source = PackedSet(str(splits)), bag(loose, SPLITS)
    assert PackedSet is peas.data.PackedSet
    for split in ("train", "validation", "test"):
        table, expected = module.clips(split), source.clips(split)
        assert table.ids == expected.ids
        for row in range(len(table)):
            assert table.targets[row].tolist() == expected.targets[row].tolist()
            assert torch.equal(table.sounds.load(row), expected.sounds.load(row))
    assert module.info == source.info
    taken = module.clips("train").take([5, 0, 5])
    assert _numbers(taken) == [10, 0, 10]
    assert torch.equal(taken.sounds.load(1), source.clips("train").sounds.load(0))


def test_parts_and_splits_for_other_rooms(splits):
    assert _numbers(PackedFolder(splits, READER).table(["test"])) == [1, 5, 9, 13]
    assert _numbers(PackedSet(str(splits)).clips("validation")) == [3, 7, 11, 15]
    assert read_manifest(splits).clips == 16
    with pytest.raises(DataError, match="has no part dev; its parts are train, test, validation"):
        PackedFolder(splits, READER).table(["dev"])


def test_named_parts(splits):
    module = PackedSet(str(splits), train=["validation", "test"], test=["train"])
    assert _numbers(module.clips("train")) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert _numbers(module.clips("test")) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert _numbers(module.clips("validation")) == [3, 7, 11, 15]
    with pytest.raises(DataError, match="has no part dev"):
        PackedSet(str(splits), validation=["dev"]).clips("validation")


def test_a_split_that_is_not_there(loose, tmp_path):
    packed(bag(loose, ["train", "evaluation"] * 2), tmp_path / "evaluation")
    module = PackedSet(str(tmp_path / "evaluation"))
    assert _numbers(module.clips("validation")) == _numbers(module.clips("test")) == [1, 3]
    packed(bag(loose, ["train", "test"] * 2), tmp_path / "test")
    assert _numbers(PackedSet(str(tmp_path / "test")).clips("validation")) == [1, 3]
    packed(bag(loose, ["validation"] * 2), tmp_path / "validation")
    module = PackedSet(str(tmp_path / "validation"))
    for split in ("train", "test"):
        with pytest.raises(DataError, match=rf"no part {split}.*data\.init_args\.{split}"):
            module.clips(split)


@pytest.mark.parametrize(
    ("fold", "split", "train", "validation"),
    [
        (1, "official", {2, 10}, {1}),
        (10, "official", {1, 2}, {10}),
        ("2", "3/1/1", {1}, {10}),
        (10, "3/1/1", {2}, {1}),
    ],
)
def test_folds(folds, fold, split, train, validation):
    module = PackedSet(str(folds), fold=fold, split=split)
    names = np.array([1, 2, 10])

    def found(which):
        return {int(names[number % 3]) for number in _numbers(module.clips(which))}

    assert (found("train"), found("validation"), found("test")) == (train, validation, {int(fold)})
    assert _numbers(module.clips("train")) == sorted(_numbers(module.clips("train")))


def test_folds_that_do_not_fit(folds, splits, loose, tmp_path):
    with pytest.raises(ConfigError, match=r"fold is null, .* \(1, 2, 10\): "):
        PackedSet(str(folds)).clips("train")
    with pytest.raises(ConfigError, match=r"fold is 3, but .* the folds 1, 2, 10"):
        PackedSet(str(folds), fold=3).clips("train")
    with pytest.raises(ConfigError, match=r"fold is 1, but .* the parts train, test, validation"):
        PackedSet(str(splits), fold=1).clips("train")
    with pytest.raises(ConfigError, match="both say which parts are for train"):
        PackedSet(str(folds), fold=1, train=["fold 2"])
    with pytest.raises(ConfigError, match="split is '4/1'"):
        PackedSet(str(folds), fold=1, split="4/1")
    packed(bag(loose, ["fold 1", "fold 2"]), tmp_path / "two")
    with pytest.raises(ConfigError, match="none is left for train"):
        PackedSet(str(tmp_path / "two"), fold=1, split="3/1/1").clips("train")
    assert len(PackedSet(str(folds)).inventory().table) == 12


# ---- facts


def test_several_classes(loose, tmp_path):
    classes = [[0, 2], [], [1], [0, 1, 2]]
    packed(bag(loose, ["train", "test"] * 2, classes, multi_label=True), tmp_path / "packed")
    module = PackedSet(str(tmp_path / "packed"), batch_size=2, num_workers=0)
    assert module.info.multi_label
    assert [module.clips("test").targets[row].tolist() for row in range(2)] == [[], [0, 1, 2]]
    assert [part.classes for part in read_manifest(tmp_path / "packed").parts] == [
        [1, 1, 1],
        [1, 1, 1],
    ]
    batch = next(iter(module.test_dataloader()))
    assert batch["target"].tolist() == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(ConfigError, match=r"multi_label is false, and 1 clips of .* have several"):
        PackedSet(str(tmp_path / "packed"), multi_label=False).clips("train")


def test_no_classes_at_all(loose, tmp_path):
    packed(bag(loose, ["train"] * 3, [[]] * 3, labels=[]), tmp_path / "packed")
    module = PackedSet(str(tmp_path / "packed"), batch_size=3, num_workers=0)
    assert module.info.labels == []
    assert next(iter(module.train_dataloader()))["target"].shape == (3, 0)


def test_labels_in_another_order_and_more_of_them(splits):
    module = PackedSet(str(splits), labels=["c", "x", "a", "b"], multi_label=True)
    assert module.info.labels == ["c", "x", "a", "b"]
    assert module.clips("train").targets.classes.tolist()[:3] == [2, 0, 3]
    assert module.inventory().table.targets.classes.tolist()[:3] == [2, 3, 0]
    with pytest.raises(ConfigError, match=r"labels lacks 1 classes of .*: b; name all"):
        PackedSet(str(splits), labels=["c", "a"]).clips("train")


def test_own_statistics(splits):
    info = PackedSet(str(splits), mean=1.0, std=2.0, frames=99).info
    assert (info.mean, info.std, info.frames) == (1.0, 2.0, 99)
    with pytest.raises(ConfigError, match="give both, or neither"):
        PackedSet(str(splits), mean=1.0)
    with pytest.raises(ConfigError, match="frames is 0"):
        PackedSet(str(splits), frames=0)


def test_inventory(splits):
    inventory = PackedSet(str(splits)).inventory()
    assert _numbers(inventory.table) == list(range(16))
    assert [inventory.parts[number] for number in inventory.part] == SPLITS
    assert inventory.recordings is not None
    assert list(inventory.recordings)[:3] == ["freesound:0", "freesound:0", "freesound:1"]
    assert (inventory.speakers, inventory.notes) == (None, ["A bag."])


# ---- reading


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_read_what_the_loose_files_hold(loose, splits, workers):
    for loader in ("train_dataloader", "test_dataloader"):
        sides = [
            list(getattr(module, loader)())
            for module in (
                PackedSet(str(splits), batch_size=4, num_workers=workers, mixup=0.5),
                bag(loose, SPLITS, num_workers=0, mixup=0.5),
            )
        ]
        assert len(sides[0]) == len(sides[1]) > 0
        for ours, theirs in zip(*sides, strict=True):
            assert ours["id"] == theirs["id"]
            assert torch.equal(ours["waveform"], theirs["waveform"])
            assert torch.equal(ours["target"], theirs["target"])


def test_a_process_that_is_not_forked_opens_the_shards_itself(splits):
    sounds = PackedFolder(splits, READER).table(["train"]).sounds
    first = sounds.load(3)
    assert torch.equal(pickle.loads(pickle.dumps(sounds)).load(3), first)


def test_opening_copies_no_column(loose, tmp_path):
    packed(bag(loose, ["train"] * 3 + ["test"] * 3), tmp_path / "packed")
    # What earlier tests have left in circles may be let go of at any time.
    gc.collect()
    before = pa.total_allocated_bytes()
    table = PackedFolder(tmp_path / "packed", READER).table(["train"])
    assert pa.total_allocated_bytes() == before
    assert not table.targets.offsets.flags.owndata
    assert not table.targets.classes.flags.owndata
    assert len(table.targets.classes) == 3
    later = PackedFolder(tmp_path / "packed", READER).table(["test"]).targets
    assert later.counts(3).tolist() == [1, 1, 1]
    assert later[0].tolist() == [0]


# ---- damage


def test_a_folder_that_is_not_packed(tmp_path, splits):
    with pytest.raises(DataError, match=r"no .*manifest\.json: give the folder that"):
        PackedSet(str(tmp_path))
    (tmp_path / "packing.json").write_text("{}")
    with pytest.raises(DataError, match="not finished; run the same `peas data pack` again"):
        PackedSet(str(tmp_path))
    for text, message in (
        ("{", "damaged, not JSON"),
        ("[]", "not a manifest"),
        ('{"format": "other"}', "not a manifest"),
        (json.dumps({**said(splits), "version": 2, "peas": "9.1"}), r"peas 9\.1.* update peas"),
        (json.dumps({**said(splits), "clips": 3, "more": 1}), "damaged .*more"),
        (json.dumps({"format": "peas-packed", "version": 1}), "damaged"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=rf"manifest\.json: .*{message}"):
            read_manifest(tmp_path)


@pytest.fixture
def damaged(splits, tmp_path):
    return copy_of(splits, tmp_path / "damaged")


def test_an_index_that_is_missing_cut_or_damaged(damaged):
    file = damaged / "index.arrow"
    whole = file.read_bytes()
    for data, message in (
        (whole[:-9], rf"has {len(whole) - 9} of {len(whole)} bytes; copy the folder again"),
        (bytes(len(whole)), "damaged"),
        (None, "cannot be opened"),
    ):
        file.unlink() if data is None else file.write_bytes(data)
        for use in (
            lambda: PackedFolder(damaged, READER).table(["train"]),
            PackedSet(str(damaged)).inventory,
        ):
            with pytest.raises(DataError, match=rf"index\.arrow: .*{message}"):
                use()
    changed = bytearray(whole)
    changed[changed.index(b"007.wav")] += 1
    file.write_bytes(changed)
    with pytest.raises(DataError, match=r"index\.arrow: damaged, its checksum"):
        PackedSet(str(damaged)).inventory()


def index_with(damaged, change):
    """Writes the index with other numbers in its buffers, under the same size."""
    file = damaged / "index.arrow"
    data = file.read_bytes()
    batch = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)
    column, buffer, dtype, place, value = change
    buffers = batch.column(column).buffers()
    numbers = np.frombuffer(buffers[buffer], dtype).copy()
    start = buffers[buffer].address - pa.py_buffer(data).address
    numbers[place] = value
    file.write_bytes(data[:start] + numbers.tobytes() + data[start + numbers.nbytes :])


@pytest.mark.parametrize(
    ("column", "buffer", "dtype", "place", "value", "said"),
    [
        ("id", 1, np.int64, 3, 2**40, ""),
        ("id", 1, np.int64, 3, -5, ""),
        ("id", 1, np.int64, 16, 2**40, ""),
        ("labels", 1, np.int64, 2, 2**40, ""),
        ("labels", 3, np.int32, 2, 2**30, "classes"),
        ("labels", 3, np.int32, 2, -1, "classes"),
        # Classes that exist, but not those of these clips.
        ("labels", 3, np.int32, slice(0, 6), 0, "classes"),
        ("part", 1, np.int32, 0, 7, "parts"),
        ("part", 1, np.int32, slice(0, 2), 0, "parts"),
        ("place", 1, np.int64, 0, 2**40, "place"),
        ("place", 1, np.int64, slice(0, 2), 1, "place"),
    ],
)
def test_numbers_of_an_index_that_lead_astray(damaged, column, buffer, dtype, place, value, said):
    index_with(damaged, (column, buffer, dtype, place, value))
    with pytest.raises(DataError, match=rf"index\.arrow: damaged.*{said}"):
        PackedFolder(damaged, READER).table(["train"])


@pytest.mark.parametrize("column", ["id", "labels", "sum", "part", "place", "a class"])
def test_a_row_of_an_index_without_a_value(splits, column):
    manifest = read_manifest(splits)
    with pa.memory_map(str(splits / INDEX)) as mapped:
        batch = pa.ipc.open_file(mapped).get_batch(0)
        names, columns = batch.schema.names, dict(zip(batch.schema.names, batch, strict=True))
        assert index_fault(batch, manifest) == ""
        if column == "a class":
            rows = [[None], *columns["labels"].to_pylist()[1:]]
            columns["labels"] = pa.array(rows, columns["labels"].type)
        else:
            rows = [None, *columns[column].to_pylist()[1:]]
            columns[column] = pa.array(rows, columns[column].type)
        without = pa.RecordBatch.from_arrays([columns[name] for name in names], names)
        word = "classes" if column == "a class" else f"column {column} "
        assert word in index_fault(without, manifest)


def test_verify_speaks_of_the_damage_and_not_of_folds(folds, tmp_path):
    copy = copy_of(folds, tmp_path / "damaged")
    index_with(copy, ("labels", 3, np.int32, 0, 2**30))
    with pytest.raises(DataError, match=r"index\.arrow: damaged"):
        take_inventory(PackedSet(str(copy)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", "x"),
        ("std", 0),
        ("std", 1e999),
        ("clips", 15),
        ("recipe.labels", 3),
        ("recipe.frames", -1),
        ("shards.0.rows", "4"),
        ("shards.0.file", "../shard.arrow"),
        ("parts.0.classes", [1]),
    ],
)
def test_a_manifest_of_other_types(damaged, key, value):
    text = json.loads((damaged / "manifest.json").read_text())
    *path, last = key.split(".")
    room = text
    for step in path:
        room = room[int(step) if isinstance(room, list) else step]
    room[last] = value
    (damaged / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        PackedSet(str(damaged))


def test_a_shard_that_is_missing_or_cut_is_found_at_once(damaged):
    file = damaged / read_manifest(damaged).shards[1].file
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00001-train\.arrow: has \d+ of \d+ bytes"):
        PackedSet(str(damaged)).setup("fit")
    file.unlink()
    with pytest.raises(DataError, match=r"shard-00001-train\.arrow: cannot be opened"):
        PackedFolder(damaged, READER).table(["train"])
    # The other parts do not need it.
    assert len(PackedFolder(damaged, READER).table(["test"]).sounds.load(0)) > 0
    # A check of the whole set goes on, and names each clip.
    inventory = PackedSet(str(damaged)).inventory()
    with pytest.raises(
        AudioError, match=r"clip 0\d\d\.wav in .*00001-train\.arrow: .*No such file"
    ):
        inventory.table.sounds.source(_numbers(inventory.table)[6])


def test_a_shard_that_is_cut_while_it_is_read(damaged):
    table = PackedFolder(damaged, READER).table(["train"])
    assert len(table.sounds.load(0)) > 0
    file = damaged / read_manifest(damaged).shards[0].file
    with file.open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(AudioError, match=r"clip 000\.wav in .*shard-00000-train\.arrow: has"):
        table.sounds.load(0)


def test_a_shard_that_is_no_arrow_file(damaged):
    file = damaged / read_manifest(damaged).shards[0].file
    file.write_bytes(bytes(file.stat().st_size))
    table = PackedFolder(damaged, READER).table(["train"])
    with pytest.raises(AudioError, match=r"clip 000\.wav in .*00000-train.*: the shard is damaged"):
        table.sounds.load(0)


def test_a_shard_with_wild_offsets(damaged):
    shard = read_manifest(damaged).shards[0]
    file = damaged / shard.file
    data = file.read_bytes()
    batch = pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch()
    offsets = batch.column("audio").field("bytes").buffers()[1].to_pybytes()[: 4 * shard.rows + 4]
    wild = np.frombuffer(offsets, np.int32).copy()
    wild[1] = 2**30
    assert data.count(offsets) == 1
    file.write_bytes(data.replace(offsets, wild.tobytes()))
    with pytest.raises(AudioError, match="the shard is damaged"):
        PackedFolder(damaged, READER).table(["train"]).sounds.load(0)


def test_damaged_sound(damaged):
    file = damaged / read_manifest(damaged).shards[0].file
    data = bytearray(file.read_bytes())
    first = data.index(b"fLaC")
    data[first : first + 4] = b"oops"
    file.write_bytes(data)
    module = PackedSet(str(damaged), num_workers=0, batch_size=4)
    name = r"clip 000\.wav in .*shard-00000-train\.arrow"
    with pytest.raises(AudioError, match=f"{name}: cannot be decoded"):
        module.clips("train").sounds.load(0)
    with pytest.raises(AudioError, match=f"{name}: damaged, its checksum is not the one packed"):
        module.inventory().table.sounds.source(0)
    with pytest.raises(AudioError, match=name):
        list(module.train_dataloader())
    module = PackedSet(str(damaged), num_workers=2, batch_size=4, on_error="skip")
    batches = list(module.train_dataloader())
    assert sum(len(batch["id"]) for batch in batches) == 7
    assert module.bad_clips.unreadable == {"000.wav"}


def test_columns_of_a_folder(splits):
    folder = PackedFolder(splits, READER)
    assert folder.parts == ["train", "test", "validation"]
    table = folder.table(["test", "train"])
    assert isinstance(table.ids, Strings)
    assert isinstance(table.targets, Targets)
    assert len(table) == 12
