"""`peas embed`: what is embedded, restarts, and what is refused."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from packing_toys import bag, content

import peas
from peas.audio import KaldiLogMel
from peas.cli.verbs import dispatch
from peas.errors import AudioError, CheckpointError, ConfigError, DataError, UsageError
from peas.inference import AudioModel, EmbeddingStore
from peas.inference.store import INDEX, MANIFEST, shard_name
from peas.inference.store_writer import Options, Source, write_embeddings, write_npz
from peas.models import AudioMAE

PARTS = ["fold 1", "fold 1", "fold 2", "fold 2", "test"]


@pytest.fixture
def model() -> AudioModel:
    torch.manual_seed(0)
    return AudioModel(AudioMAE("mini"), KaldiLogMel(32, -6.8, 5.5))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    module = bag(tmp_path / "bag", PARTS, seconds=0.6)
    return Source.of_set("bag", module.inventory(), module.labels, multi_label=module.multi_label)


def options(**changes: Any) -> Options:
    return Options(**{"layers": [4], "shard_clips": 2, **changes})


def test_a_set_is_embedded_as_the_model_embeds_its_files(
    model: AudioModel, source: Source, tmp_path: Path
) -> None:
    done: list[tuple[int, int]] = []
    store = write_embeddings(
        tmp_path / "e",
        model,
        source,
        options(layers=[0, 4], bands="concat", overlap=0.5),
        checkpoint="x.ckpt",
        progress=lambda *numbers: done.append(numbers),
    )
    files = [tmp_path / "bag" / name for name in store.ids]
    assert store.ids == [f"{number:03}.wav" for number in range(5)]
    assert store.split == ["1", "1", "2", "2", "test"]
    assert store.recording == [f"freesound:{number // 2}" for number in range(5)]
    assert (store.labels, store.classes.tolist()) == (["a", "b", "c"], [0, 1, 2, 0, 1])
    expected = model.embed(files, layers=[0, 4], overlap=0.5).numpy()
    np.testing.assert_allclose(store.embeddings(), expected, atol=1e-6)
    for row, file in enumerate(files):
        frames = model.frames(file, layers=[0, 4], overlap=0.5)
        found = store.frames(row)
        np.testing.assert_allclose(found.embeddings, frames.embeddings[:, 0].numpy(), atol=1e-6)
        np.testing.assert_array_equal(found.times, frames.times[0].numpy())
    assert done[-1] == (5, 5)
    assert store.settings["checkpoint"] == str(Path("x.ckpt").absolute())
    assert {"model", "set", "fingerprint", "peas", "overlap"} <= store.settings.keys()


def test_workers_and_restarts_change_no_byte(
    model: AudioModel, source: Source, tmp_path: Path
) -> None:
    write_embeddings(tmp_path / "whole", model, source, options())
    write_embeddings(tmp_path / "workers", model, source, options(workers=2))

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done > 2:
            raise Killed

    with pytest.raises(Killed):
        write_embeddings(tmp_path / "resumed", model, source, options(), progress=kill)
    first = tmp_path / "resumed" / shard_name(0)
    state = first.stat()
    with pytest.raises(DataError, match="not finished"):
        EmbeddingStore(tmp_path / "resumed")
    write_embeddings(tmp_path / "resumed", model, source, options())
    assert first.stat().st_mtime_ns == state.st_mtime_ns
    whole = content(tmp_path / "whole")
    assert content(tmp_path / "workers") == content(tmp_path / "resumed") == whole
    # A shard that is gone or cut is written again, and a complete folder stays.
    (tmp_path / "resumed" / shard_name(1)).unlink()
    first.write_bytes(b"cut")
    write_embeddings(tmp_path / "resumed", model, source, options())
    assert content(tmp_path / "resumed") == whole
    state = first.stat()
    write_embeddings(tmp_path / "resumed", model, source, options())
    assert first.stat().st_mtime_ns == state.st_mtime_ns


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layers": [3]}, "--layers"),
        ({"pool": "mean+std"}, "--pool"),
        ({"bands": "mean"}, "--frames"),
        ({"overlap": 0.25}, "--overlap"),
        ({"precision": "bf16"}, "--precision"),
        ({"shard_clips": 3}, "--shard_clips"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_other_settings_are_refused_by_name_and_nothing_is_lost(
    model: AudioModel, source: Source, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    write_embeddings(tmp_path / "e", model, source, options())
    before = content(tmp_path / "e")
    with pytest.raises(DataError, match=named):
        write_embeddings(tmp_path / "e", model, source, options(**changes))
    assert content(tmp_path / "e") == before


def test_other_weights_and_other_clips_are_refused(
    model: AudioModel, source: Source, tmp_path: Path
) -> None:
    write_embeddings(tmp_path / "e", model, source, options())
    with pytest.raises(DataError, match="clips"):
        write_embeddings(tmp_path / "e", model, source.take([0, 1]), options())
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    with pytest.raises(DataError, match="--checkpoint"):
        write_embeddings(tmp_path / "e", model, source, options())


@pytest.mark.parametrize("name", [shard_name(0), INDEX])
def test_a_damaged_file_of_equal_size_is_written_again(
    model: AudioModel, source: Source, tmp_path: Path, name: str
) -> None:
    write_embeddings(tmp_path / "e", model, source, options())
    before, file = content(tmp_path / "e"), tmp_path / "e" / name
    damaged = bytearray(before[name])
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    write_embeddings(tmp_path / "e", model, source, options())
    assert content(tmp_path / "e") == before


@pytest.mark.parametrize("finished", [True, False])
def test_other_sound_of_equal_size_is_refused(
    model: AudioModel, source: Source, tmp_path: Path, finished: bool
) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done > 2 and not finished:
            raise Killed

    with nullcontext() if finished else pytest.raises(Killed):
        write_embeddings(tmp_path / "e", model, source, options(), progress=kill)
    before = content(tmp_path / "e")
    file = tmp_path / "bag" / "000.wav"
    size, modified = file.stat().st_size, file.stat().st_mtime_ns
    samples, rate = soundfile.read(file, dtype="int16")
    soundfile.write(file, samples[::-1], rate, subtype="PCM_16")
    os.utime(file, ns=(modified + 1000, modified + 1000))
    assert file.stat().st_size == size
    with pytest.raises(DataError, match="fingerprint"):
        write_embeddings(tmp_path / "e", model, source, options())
    assert content(tmp_path / "e") == before


@pytest.mark.parametrize("column", ["split", "recording", "speaker"])
def test_other_columns_are_refused(
    model: AudioModel, source: Source, tmp_path: Path, column: str
) -> None:
    write_embeddings(tmp_path / "e", model, source, options())
    columns = replace(source.columns, **{column: list("vwxyz")})
    with pytest.raises(DataError, match="fingerprint"):
        write_embeddings(tmp_path / "e", model, replace(source, columns=columns), options())


def test_a_folder_that_holds_something_else(
    model: AudioModel, source: Source, tmp_path: Path
) -> None:
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        write_embeddings(tmp_path / "e", model, source, options())
    (tmp_path / "e" / MANIFEST).write_text(json.dumps({"format": "peas-packed", "version": 1}))
    with pytest.raises(DataError, match=MANIFEST):
        write_embeddings(tmp_path / "e", model, source, options())
    assert (tmp_path / "e" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("bad", ["empty", "nan"])
def test_clips_that_cannot_be_read(
    model: AudioModel, source: Source, tmp_path: Path, bad: str
) -> None:
    for name in ("002.wav", "003.wav", "004.wav"):
        samples = np.zeros(0) if bad == "empty" else np.full(9000, np.nan)
        soundfile.write(tmp_path / "bag" / name, samples, 16_000, subtype="FLOAT")
    out = tmp_path / "e"
    with pytest.raises(AudioError, match=r"002\.wav.*--on_error skip"):
        write_embeddings(out, model, source, options())
    # A whole shard is left out, and half of another.
    store = write_embeddings(out, model, source, options(skip=True))
    assert store.ids == ["000.wav", "001.wav"]
    assert [clip.id for clip in store.left_out] == ["002.wav", "003.wav", "004.wav"]
    assert store.split == ["1", "1"]
    assert store.embeddings().shape == (2, model.dim)
    with pytest.raises(ConfigError, match="--on_error skip"):
        write_embeddings(out, model, source, options())


def test_a_model_that_gives_nan(model: AudioModel, source: Source, tmp_path: Path) -> None:
    with torch.no_grad():
        next(model.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"000\.wav"):
        write_embeddings(tmp_path / "e", model, source, options())


def test_ids_that_come_twice(model: AudioModel, source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"000\.wav"):
        write_embeddings(tmp_path / "e", model, source.take([0, 0]), options())


def test_bf16_is_near(model: AudioModel, source: Source, tmp_path: Path) -> None:
    exact = write_embeddings(tmp_path / "a", model, source, options()).embeddings()
    near = write_embeddings(tmp_path / "b", model, source, options(precision="bf16")).embeddings()
    assert 0 < np.abs(near - exact).max() < 0.1
    assert next(model.encoder.parameters()).dtype == torch.float32


def test_an_npz_of_clips_without_a_speaker(
    model: AudioModel, source: Source, tmp_path: Path
) -> None:
    speakers = ["ann", None, "", "bob", None]
    known = replace(source, columns=replace(source.columns, speaker=speakers))
    write_npz(write_embeddings(tmp_path / "e", model, known, options()), tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as npz:
        assert npz["speaker"].tolist() == ["ann", "", "", "bob", ""]
        assert npz["recording"].tolist() == source.columns.recording
        assert "allow_pickle" not in npz


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def exported(model: AudioModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def embed(*argv: object) -> int:
    return dispatch(["embed", *map(str, argv), "--workers", "0"])


def test_files_and_folders_are_embedded_by_their_paths(
    exported: Path, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sounds, out = tmp_path / "bag", tmp_path / "e"
    alone = Path(shutil.copy(sounds / "001.wav", tmp_path / "alone.wav"))
    argv = (alone, sounds, "--checkpoint", exported, "--out", out, "--layers", "all")
    assert embed(*argv, "--npz", tmp_path / "e.npz") == 0
    assert "embeddings of 6 clips" in capsys.readouterr().out
    store = EmbeddingStore(out)
    assert store.ids == [str(alone), *(str(sounds / f"{number:03}.wav") for number in range(5))]
    assert (store.layers, store.labels, store.split) == ([0, 1, 2, 3, 4], [], [""] * 6)
    expected = peas.load(exported).embed(store.ids, layers=store.layers)
    np.testing.assert_allclose(store.embeddings(), expected.numpy(), atol=1e-6)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as npz:
        assert npz["ids"].tolist() == store.ids
        np.testing.assert_array_equal(npz["embeddings"], store.embeddings())


def test_a_set_is_named_as_in_the_data_commands(exported: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for name in ("a", "b"):
        bag(root, [])
        bag(root / name, ["x"] * 3, seconds=0.4)
    csv = "path,label,fold\n" + "".join(
        f"{name}/{number:03}.wav,{name},{number + 1}\n" for name in "ab" for number in range(3)
    )
    (root / "clips.csv").write_text(csv)
    argv = ("--frames", "folder", root, "--csv", "clips.csv", "--fold", 1)
    assert embed(*argv, "--checkpoint", exported, "--out", tmp_path / "e") == 0
    store = EmbeddingStore(tmp_path / "e")
    assert store.labels == ["a", "b"]
    assert store.classes.tolist() == [0, 0, 0, 1, 1, 1]
    assert store.split == ["1", "2", "3"] * 2
    assert store.has_frames


@pytest.mark.parametrize(
    ("argv", "error", "named"),
    [
        (["--layers", "5"], ConfigError, "layer 5"),
        (["--layers", "4,-1"], ConfigError, "layers"),
        (["--layers", "first"], UsageError, "--layers"),
        (["--overlap", "1"], ConfigError, "overlap"),
        (["--batch_size", "0"], UsageError, "--batch_size"),
        (["--npz", "no/such/e.npz"], ConfigError, "no/such"),
        (["--pool", "max"], UsageError, "pool"),
        (["--allow_module", "./x.py"], UsageError, "--allow_module"),
        (["--device", "foo"], UsageError, "--device"),
    ],
)
def test_impossible_options(
    exported: Path,
    source: Source,
    tmp_path: Path,
    argv: list[str],
    error: type[Exception],
    named: str,
) -> None:
    where = ("--checkpoint", exported, "--out", tmp_path / "e")
    with pytest.raises(error, match=named):
        embed(tmp_path / "bag", *where, *argv)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_npz_that_is_there_is_refused_before_embedding(
    exported: Path, source: Source, tmp_path: Path, kind: str
) -> None:
    npz, out = tmp_path / "e.npz", tmp_path / "e"
    npz.write_text("mine") if kind == "file" else npz.mkdir()
    with pytest.raises(ConfigError, match="--npz"):
        embed(tmp_path / "bag", "--checkpoint", exported, "--out", out, "--npz", npz)
    assert not out.exists()
    assert npz.is_dir() or npz.read_text() == "mine"


def test_impossible_inputs(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    out = ("--out", tmp_path / "e")
    with pytest.raises(DataError, match="none"):
        embed(tmp_path / "none", "--checkpoint", exported, *out)
    with pytest.raises(AudioError, match=r"gone\.wav"):
        embed(tmp_path / "gone.wav", "--checkpoint", exported, *out)
    assert not (tmp_path / "e").exists()
    with pytest.raises(UsageError, match="ROOT"):
        embed("esc50", "--checkpoint", exported, *out)
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        embed(tmp_path / "gone.wav", "--checkpoint", tmp_path / "x.ckpt", *out)
