"""The store of embeddings: written, read back, and refused where it is damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peas.data.shards import write_json
from peas.errors import ConfigError, DataError
from peas.inference.store import (
    INDEX,
    MANIFEST,
    ClipFrames,
    EmbeddingStore,
    read_manifest,
    shard_name,
    write_store,
)

IDS = ["a.wav", "b.wav", "sub/ä.wav"]


@pytest.fixture
def arrays() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)


def test_what_was_written_is_read(tmp_path: Path, arrays: np.ndarray) -> None:
    write_store(
        tmp_path / "e",
        arrays,
        IDS,
        layers=[3, 12],
        labels=["dog", "rain"],
        classes=[1, -1, 0],
        split=["1", "2", "5"],
        recording=["x", "x", "y"],
        settings={"pool": "mean"},
    )
    store = EmbeddingStore.open(tmp_path / "e")
    assert (store.ids, store.layers, store.labels) == (IDS, [3, 12], ["dog", "rain"])
    assert (store.split, store.recording, store.speaker) == (["1", "2", "5"], ["x", "x", "y"], None)
    assert store.settings == {"pool": "mean"}
    assert not store.multi_label
    assert store.classes.tolist() == [1, -1, 0]
    assert store.targets.tolist() == [[False, True], [False, False], [True, False]]
    np.testing.assert_array_equal(store.embeddings(), arrays)
    np.testing.assert_array_equal(store.embeddings(3), arrays[0])
    np.testing.assert_array_equal(store.embeddings(-1), arrays[1])
    with pytest.raises(ConfigError, match="layer 4"):
        store.embeddings(4)
    with pytest.raises(ConfigError, match="--frames"):
        store.frames(0)


def test_one_layer_and_several_classes(tmp_path: Path, arrays: np.ndarray) -> None:
    targets = [[1, 1], [0, 0], [0, 1]]
    store = write_store(
        tmp_path, arrays[0], IDS, layers=[12], labels=["dog", "rain"], targets=targets
    )
    assert store.embeddings().shape == (3, 4)
    assert store.multi_label
    assert store.targets.astype(int).tolist() == targets
    assert store.classes.tolist() == [-1, -1, 1]
    assert store.split == ["", "", ""]


def test_frames_are_of_each_clip_its_own_length(tmp_path: Path, arrays: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    frames = [
        ClipFrames(
            rng.standard_normal((2, n, 8)).astype(np.float32), np.arange(n, dtype=np.float32)
        )
        for n in (3, 1, 5)
    ]
    store = write_store(tmp_path, arrays, IDS, layers=[0, 1], frames=frames)
    for row, clip in enumerate(frames):
        np.testing.assert_array_equal(store.frames(row).embeddings, clip.embeddings)
        np.testing.assert_array_equal(store.frames(row, 1).embeddings, clip.embeddings[1])
        np.testing.assert_array_equal(store.frames(row).times, clip.times)
    np.testing.assert_array_equal(store.frames(-1).times, frames[2].times)
    with pytest.raises(IndexError):
        store.frames(3)


def test_shapes_that_do_not_fit(tmp_path: Path, arrays: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="clips"):
        write_store(tmp_path, arrays, IDS[:2], layers=[0, 1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ids": ["a", "b", "a"]}, "ids"),
        ({"classes": [0, 1]}, "classes"),
        ({"classes": [0, 2, 1]}, "classes"),
        ({"classes": [0, -2, 1]}, "classes"),
        ({"targets": [[1], [0], [1]]}, "targets"),
        ({"split": ["1"]}, "split"),
        ({"recording": ["x"] * 4}, "recording"),
        ({"speaker": []}, "speaker"),
        ({"frames": []}, "frames"),
    ],
    ids=str,
)
def test_columns_that_do_not_fit(
    tmp_path: Path, arrays: np.ndarray, changes: dict[str, Any], named: str
) -> None:
    columns = {"ids": IDS, "labels": ["dog", "rain"], **changes}
    with pytest.raises(ConfigError, match=named):
        write_store(tmp_path / "e", arrays[0], **columns)
    assert not (tmp_path / "e").exists()


def test_a_folder_that_holds_something_stays(tmp_path: Path, arrays: np.ndarray) -> None:
    write_store(tmp_path / "e", arrays[0], IDS)
    with pytest.raises(DataError, match="e: "):
        write_store(tmp_path / "e", arrays[1], IDS)
    np.testing.assert_array_equal(EmbeddingStore(tmp_path / "e").embeddings(), arrays[0])


def test_a_damaged_store_is_refused(tmp_path: Path, arrays: np.ndarray) -> None:
    with pytest.raises(DataError, match="peas embed"):
        EmbeddingStore(tmp_path)
    write_store(tmp_path, arrays[0], IDS)
    shard, index = tmp_path / shard_name(0), tmp_path / INDEX
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=shard.name):
        EmbeddingStore(tmp_path)
    shard.write_bytes(content)
    index.write_bytes(b"x" * index.stat().st_size)
    with pytest.raises(DataError, match=INDEX):
        EmbeddingStore(tmp_path)
    manifest = read_manifest(tmp_path)
    manifest.index = None
    write_json(tmp_path / MANIFEST, manifest.to_json())
    with pytest.raises(DataError, match="not finished"):
        EmbeddingStore(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": "peas-embeddings", "version": 1}')
    with pytest.raises(DataError, match="damaged"):
        EmbeddingStore(tmp_path)
