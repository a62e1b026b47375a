"""The shard writer opens and completes what earlier versions wrote."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from packing_toys import bag, content, packed, said
from target_toys import IDS, Maps, maps_of, write

from peas.data.packed.module import PackedSet
from peas.errors import DataError
from peas.teachers.cache import TargetCache

EARLIER = Path(__file__).parent / "written_by_0_1"


@pytest.fixture
def earlier(tmp_path):
    """Folders of the writers that release 0.1 had: one for packed sets and one for targets."""
    return shutil.copytree(EARLIER, tmp_path / "earlier")


def test_a_packed_folder_of_an_earlier_version(earlier, tmp_path):
    module = PackedSet(str(earlier / "packed"))
    loose = bag(tmp_path / "bag", ["train"] * 3 + ["test"] * 2, seconds=0.03)
    for split in ("train", "test"):
        old, new = module.clips(split), loose.clips(split)
        assert old.ids == new.ids
        for row in range(len(old)):
            assert torch.equal(old.sounds.load(row), new.sounds.load(row))
    assert len(module.inventory().table) == 5


def test_a_cache_of_an_earlier_version(earlier):
    cache = TargetCache(earlier / "targets")
    cache.verify()
    kept = [row for row in range(7) if row != 3]
    maps = cache.take([IDS[row] for row in kept]).permute(0, 2, 3, 1)
    assert torch.equal(maps, torch.from_numpy(maps_of(7)[kept]))
    assert [clip.id for clip in cache.manifest.left_out] == [IDS[3]]


def test_a_damaged_cache_of_an_earlier_version_is_repaired_to_the_same_bytes(earlier):
    out = earlier / "targets"
    before = content(out)
    (out / "shard-00001.npy").unlink()
    (out / "shard-00001.npy.part").write_bytes(b"half")
    source = Maps(maps_of(7))
    write(out, source, IDS[:7], allow_missing=True)
    assert source.given == [5, 6]
    assert content(out) == before


def test_a_journal_of_an_earlier_version_is_resumed(tmp_path):
    module, out = bag(tmp_path / "bag", ["train"] * 8 + ["test"] * 4), tmp_path / "packed"
    packed(module, out)
    before, manifest = content(out), said(out)
    # It had no `first`; the rest is what one wrote after the first two shards.
    done, row = [], 0
    for shard in manifest["shards"][:2]:
        row += shard["rows"]
        done.append(
            {"shard": shard, "next": row, "left_out": [], "state": "", "content": ""}
            | {"cells": {"count": 0, "mean": 0.0, "squares": 0.0}}
        )
    (out / "packing.json").write_text(json.dumps({"recipe": manifest["recipe"], "done": done}))
    for file in ("manifest.json", "index.arrow", manifest["shards"][2]["file"]):
        (out / file).unlink()
    (out / "packing.json.part").touch()
    times = {one["file"]: os.stat(out / one["file"]).st_mtime_ns for one in manifest["shards"][:2]}
    packed(module, out)
    assert content(out) == before
    assert times == {name: os.stat(out / name).st_mtime_ns for name in times}


def test_shards_in_the_middle_are_written_again(tmp_path):
    maps = maps_of(len(IDS))
    write(tmp_path / "a", Maps(maps))
    before = content(tmp_path / "a")
    for number in (1, 3):
        (tmp_path / "a" / f"shard-0000{number}.npy").unlink()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", Maps(maps, stop=16))
    source = Maps(maps)
    write(tmp_path / "a", source)
    assert source.given == list(np.arange(15, 20))
    assert content(tmp_path / "a") == before


def test_files_of_others_stay(tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("holiday.mkv.part", "thesis.txt"):
        (tmp_path / "out" / name).touch()
    with pytest.raises(DataError, match=r"holiday\.mkv\.part"):
        packed(bag(tmp_path / "bag", ["train"] * 3, seconds=0.03), tmp_path / "out")
    assert (tmp_path / "out" / "holiday.mkv.part").exists()
    assert (tmp_path / "out" / "thesis.txt").exists()
