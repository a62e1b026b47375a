import io
import json
import logging
import os
import shutil
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from packing_toys import packed

from peas.data.audioset.layout import parquet_part
from peas.data.audioset.module import AudioSet
from peas.data.audioset.youtube_files import YouTubeFiles, walk_sounds, youtube_ids
from peas.data.labels import ClassTable
from peas.errors import ConfigError, DataError

RATE = 16_000
SPEECH, GUSH, DOG, BARK = "/m/09x0r", "/t/dd00088", "/m/0bt9lr", "/m/05tny_"
NAMES = {SPEECH: "Speech", GUSH: "Gush", DOG: "Dog", BARK: "Bark"}
HEAD = (
    "# Segments csv created Sun Mar  5 10:54:25 2017\n"
    "# num_ytids=3, num_segs=3, num_unique_labels=4, num_positive_labels=5\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
# Ids that begin with a dash, with a Y, and that hold what looks like a start.
BALANCED = {
    "--PJHxphWEs": (30.0, [SPEECH, GUSH]),
    "YabcdefghiJ": (0.0, [DOG]),
    "abcdefg_300": (21.5, [DOG, BARK]),
}
UNBALANCED = {"Zbcdefghi_7": (160.0, [SPEECH]), "_aaaaaaaaa_": (1.0, [SPEECH, DOG])}
EVALUATION = {"eeeeeeeeee1": (30.0, [BARK]), "eeeeeeeeee2": (30.0, [SPEECH, BARK])}
PARTS = {"balanced_train": BALANCED, "unbalanced_train": UNBALANCED, "eval": EVALUATION}
EVERY = {**BALANCED, **UNBALANCED, **EVALUATION}


def _number(mid):
    return ClassTable.shipped().numbers(pa.array([mid]))[0]


def _wave(name):
    """A short sound that belongs to one name only."""
    draws = np.random.default_rng(list(name.encode()))
    return (draws.integers(-9_000, 9_000, 800) / 32_768).astype(np.float32)


def _bytes(name, format="FLAC"):
    buffer = io.BytesIO()
    soundfile.write(buffer, _wave(name), RATE, format=format, subtype="PCM_16")
    return buffer.getvalue()


def _sound(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_bytes(name, "WAV" if path.suffix == ".wav" else "FLAC"))


def _csv(clips):
    return "".join(
        f'{name}, {start:.3f}, {start + 10:.3f}, "{",".join(mids)}"\n'
        for name, (start, mids) in clips.items()
    )


def _lists(root, folder="", parts=PARTS):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for part, clips in parts.items():
        (root / folder / f"{part}_segments.csv").write_text(HEAD + _csv(clips))


@pytest.fixture
def root(tmp_path):
    """The official lists and a sound for each clip, named by its id."""
    _lists(tmp_path)
    for name in EVERY:
        _sound(tmp_path / "audio" / f"{name}.flac", name)
    return tmp_path


def _set(root, **settings):
    return AudioSet(str(root), **{"num_workers": 0, "cache_dir": "", "batch_size": 1, **settings})


def _rows(table):
    """Clips of a table with their classes, once their sound was found to be theirs."""
    for row, name in enumerate(table.ids):
        np.testing.assert_array_equal(table.sounds.load(row).numpy(), _wave(name), err_msg=name)
    return {name: sorted(table.targets[row].tolist()) for row, name in enumerate(table.ids)}


def _expected(clips):
    return {name: sorted(_number(mid) for mid in mids) for name, (_, mids) in clips.items()}


def _reject(module, match, stage="fit"):
    with pytest.raises(DataError, match=match):
        module.setup(stage)


def _check_parts(root, **settings):
    """Every form of the miniature must come out the same."""
    module = _set(root, subset="as20k", **settings)
    module.setup("fit")
    assert _rows(module.clips("train")) == _expected(BALANCED)
    assert _rows(module.clips("validation")) == _expected(EVALUATION)
    assert _rows(module.clips("test")) == _expected(EVALUATION)
    module = _set(root, subset="as2m", **settings)
    assert _rows(module.clips("train")) == _expected({**BALANCED, **UNBALANCED})
    return module


# --- facts and arguments ---------------------------------------------------------------------


def test_facts(root):
    info = _set(root).info
    assert (len(info.labels), info.labels[0], info.labels[526]) == (
        527,
        "Speech",
        "Field recording",
    )
    assert (info.mean, info.std, info.frames) == (-4.2677393, 4.5689974, 1024)
    assert info.multi_label
    module = AudioSet(str(root))
    assert (module.batch_size, module.eval_batch_size, module.mixup) == (12, 24, 0.5)
    assert (module.sampling, module.subset) == ("uniform", "as2m")
    with pytest.raises(ConfigError, match=r"subset.*as500k"):
        _set(root, subset="as500k")
    _reject(_set(root / "none"), r"none.*data\.init_args\.root")


# --- the official lists and sound files ------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "csv", "meta", "metadata"])
def test_the_lists_are_found(root, folder):
    for part in PARTS:
        (root / f"{part}_segments.csv").unlink()
    _lists(root, folder)
    _check_parts(root)


@pytest.mark.parametrize(
    "form",
    [
        "Y{name}.wav",
        "{name}.flac",
        "{name}.FLAC",
        "{name}_{start:.0f}_{end:.0f}.flac",
        "{name}_{ms:.0f}_{ms_end:.0f}.flac",
        "{name}_{start:.3f}_{end:.3f}.flac",
        "Y{name}_{start:.3f}_{end:.3f}.wav",
        "{name}_{start:.0f}.wav",
        "{name}_{ms:.0f}.wav",
        "{name}_{ms:09.0f}.wav",
    ],
)
@pytest.mark.parametrize("folder", ["", "audio/{part}_segments", "a/b/{first}"])
def test_every_naming_is_found(tmp_path, form, folder):
    _lists(tmp_path)
    for part, clips in PARTS.items():
        for name, (start, _) in clips.items():
            end = start + 10
            file = form.format(name=name, start=start, end=end, ms=1e3 * start, ms_end=1e3 * end)
            _sound(tmp_path / folder.format(part=part, first=name[0]) / file, name)
    _check_parts(tmp_path)


def test_ids_are_read_by_their_length():
    stems = {
        "YabcdefghiJ": ("YabcdefghiJ", None),
        "YYabcdefghiJ": ("YabcdefghiJ", None),
        "YabcdefghiJ_5": ("YabcdefghiJ", "5"),
        "abcdefg_300": ("abcdefg_300", None),
        "abcdefg_300_21.5_31.5": ("abcdefg_300", "21.5"),
        "Yabcdefghi_": ("Yabcdefghi_", None),
        "Yabcdefghi__": ("abcdefghi__", None),
        "Yabcdefghi__5": ("Yabcdefghi_", "5"),
        "Yabcdefghi___5": ("abcdefghi__", "5"),
        "Y-bcdefghi_1_5_15": ("-bcdefghi_1", "5"),
        "__________1": ("__________1", None),
        "___________1": (None, None),
        "____________1": ("___________", "1"),
        "12345678901": ("12345678901", None),
        "12_34_56_78_30_40": ("12_34_56_78", "30"),
        "abcdefghijk_1_2_3": (None, None),
        "abcdefghijk_x": (None, None),
        "abcdefghij": (None, None),
        "abc.efghijk": (None, None),
    }
    ids, starts = youtube_ids(pa.array(list(stems)))
    assert list(zip(ids.to_pylist(), starts.to_pylist(), strict=True)) == list(stems.values())


def _find(files, ids, starts):
    found = YouTubeFiles(pa.array(files, pa.large_string())).find(
        pa.array(ids), np.array(starts, dtype=float)
    )
    return found, [files[file] if file >= 0 else None for file in found.files]


def test_a_file_of_another_start_is_not_the_clip(root, caplog):
    shutil.move(root / "audio" / "eeeeeeeeee1.flac", root / "audio" / "eeeeeeeeee1_70_80.flac")
    module = _set(root)
    with caplog.at_level(logging.WARNING):
        module.setup("test")
    assert list(module.clips("test").ids) == ["eeeeeeeeee2"]
    assert "1 sound files have the id of a clip" in caplog.text
    assert "eeeeeeeeee1_70_80.flac" in caplog.text
    assert list(module.inventory().absent) == ["eeeeeeeeee1"]


@pytest.mark.parametrize(
    ("name", "start", "fits"),
    [
        ("30", 30.0, True),
        ("30000", 30.0, True),
        ("21", 21.5, True),
        ("22", 21.5, True),
        ("21500", 21.5, True),
        ("0", 0.0, True),
        ("30", 0.0, False),
        ("30", 70.0, False),
        ("300", 30.0, False),
    ],
)
def test_starts_in_names(name, start, fits):
    found, _ = _find([f"abcdefghijk_{name}.wav"], ["abcdefghijk"], [start])
    assert (found.files[0] >= 0) == fits
    assert found.elsewhere == (not fits)


def test_of_several_files_the_choice_is_fixed(root, caplog):
    files = [
        "eval/Ybbbbbbbbbbb.m4a",
        "a/bbbbbbbbbbb.webm",
        "z/bbbbbbbbbbb.flac",
        "b/bbbbbbbbbbb_30.flac",
    ]
    for order in (files, files[::-1]):
        found, chosen = _find(
            [*order, "b/ccccccccccc.wav"], ["bbbbbbbbbbb", "ccccccccccc"], [30, 5]
        )
        assert chosen == ["b/bbbbbbbbbbb_30.flac", "b/ccccccccccc.wav"]
        assert (found.duplicates, found.example) == (1, ("b/bbbbbbbbbbb_30.flac", files[2]))
    _sound(root / "other" / "Yeeeeeeeeee1.wav", "another sound")
    with caplog.at_level(logging.WARNING):
        assert _rows(_set(root).clips("test")) == _expected(EVALUATION)
    assert "audio/eeeeeeeeee1.flac over other/Yeeeeeeeeee1.wav" in caplog.text


def test_ids_of_another_kind_are_found_by_their_whole_name(tmp_path):
    clips = {"mix_1": (0.0, [DOG]), "mix_1_2": (0.0, [BARK]), "aaaaaaaaaaa_1": (7.0, [DOG])}
    _lists(tmp_path, parts={"balanced_train": clips, "eval": {"Yes": (0.0, [DOG])}})
    for name in (*clips, "Yes"):
        _sound(tmp_path / f"{name}.wav", name)
    module = _set(tmp_path, subset="as20k")
    assert _rows(module.clips("train")) == _expected(clips)
    assert list(module.clips("test").ids) == ["Yes"]
    # Eleven characters and a start would be a YouTube id; so are these ids not.
    assert list(module.inventory().recordings) == ["", "", "", ""]


def test_the_walk_passes_over_what_is_no_sound(tmp_path):
    for path in (
        "a.wav",
        "x/y/b.m4a",
        "x/y/h.3gp",
        "x/y/i.MOV",
        "\u3000ü/g.wav",
        "x/c.txt",
        ".hidden/d.wav",
        "x/.e.wav",
        "x/f.wav.part",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")).touch()
    os.makedirs(os.fsencode(tmp_path) + b"/\xfe")
    (tmp_path / "x" / "back").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "x" / "y")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    found = sorted(walk_sounds(tmp_path).to_pylist())
    assert [os.path.basename(path) for path in found] == [
        "a.wav",
        "b.m4a",
        "h.3gp",
        "i.MOV",
        "g.wav",
    ]


def test_a_linked_folder_of_sounds_is_walked(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    shutil.move(root / "audio", elsewhere / "audio")
    (root / "audio").symlink_to(elsewhere / "audio")
    _check_parts(root)


def test_m4a_goes_through_ffmpeg(tmp_path, monkeypatch):
    _lists(tmp_path)
    for name, (start, _) in EVERY.items():
        sound = tmp_path / "audio" / f"{name}_{start:.0f}_{start + 10:.0f}.m4a"
        sound.parent.mkdir(exist_ok=True)
        sound.write_bytes(b"\0\0\0\x1cftypM4A " + _bytes(name, "WAV"))
    script = tmp_path / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsource = sys.argv[sys.argv.index('-i') + 1][5:]\n"
        "open(sys.argv[-1], 'wb').write(open(source, 'rb').read()[12:])\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    _check_parts(tmp_path)


# --- clips without sound ---------------------------------------------------------------------


def test_clips_without_sound_are_counted_named_and_left_out(root, caplog):
    for name in ("--PJHxphWEs", "_aaaaaaaaa_", "eeeeeeeeee2"):
        (root / "audio" / f"{name}.flac").unlink()
    module = _set(root)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert "1 of the 3 clips of" in caplog.text
    assert "balanced_train_segments.csv have no sound in" in caplog.text
    assert "--PJHxphWEs" in caplog.text
    assert list(module.clips("train").ids) == ["YabcdefghiJ", "abcdefg_300", "Zbcdefghi_7"]
    assert _rows(module.clips("train")).items() <= _expected(EVERY).items()
    inventory = module.inventory()
    assert list(inventory.absent) == ["--PJHxphWEs", "_aaaaaaaaa_", "eeeeeeeeee2"]
    assert list(inventory.table.ids) == ["YabcdefghiJ", "abcdefg_300", "Zbcdefghi_7", "eeeeeeeeee1"]


def test_a_part_without_any_sound_is_an_error(root):
    for name in UNBALANCED:
        (root / "audio" / f"{name}.flac").unlink()
    _reject(_set(root), r"2 of the 2 clips of .*unbalanced_train_segments\.csv .*no clip is left")
    _set(root, subset="as20k").setup("fit")


def test_no_sound_at_all_names_the_layouts(root):
    shutil.rmtree(root / "audio")
    module = _set(root)
    _reject(module, r"3 of the 3 clips .*no clip is left.*Y<id>\.wav.*peas data pack")
    # A report can still be written.
    inventory = module.inventory()
    assert len(inventory.table) == 0
    assert list(inventory.absent) == list(EVERY)


def test_a_missing_part(root):
    (root / "unbalanced_train_segments.csv").unlink()
    _reject(_set(root), r"only .*balanced_train_segments\.csv.*as2m lacks the unbalanced training")
    (root / "balanced_train_segments.csv").unlink()
    module = _set(root, subset="as20k")
    _reject(module, r"as20k lacks the balanced training part")
    # Testing needs the evaluation clips alone.
    module.setup("test")
    _lists(root)
    (root / "eval_segments.csv").unlink()
    module = _set(root)
    assert len(module.clips("train")) == 5
    _reject(module, r"the evaluation part is missing.*data\.init_args\.evaluation")


def test_inventory(root):
    inventory = _set(root).inventory()
    assert inventory.parts == ["balanced", "unbalanced", "evaluation"]
    assert inventory.part.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert inventory.recordings[0] == "youtube:--PJHxphWEs"
    assert list(inventory.recordings) == [f"youtube:{name}" for name in EVERY]
    assert len(inventory.absent) == 0
    assert inventory.notes == []
    assert _set(root, subset="as20k").inventory().parts == ["balanced", "evaluation"]
    (root / "eval_segments.csv").unlink()
    (note,) = _set(root).inventory().notes
    assert "evaluation" in note


# --- classes and orders ----------------------------------------------------------------------


def test_weights_follow_the_clips_that_have_sound(root):
    (root / "audio" / "_aaaaaaaaa_.flac").unlink()
    module = _set(root, sampling="balanced", epoch_clips=200)
    table = module.clips("train")
    sampler = module.epoch_sampler(table)
    # Without the clip that is gone: speech 2, gush 1, dog 2, bark 1.
    one, two = 1000 / 1.01, 1000 / 2.01
    expected = {
        "--PJHxphWEs": two + one,
        "YabcdefghiJ": two,
        "abcdefg_300": two + one,
        "Zbcdefghi_7": two,
    }
    assert dict(zip(table.ids, sampler.weights, strict=True)) == pytest.approx(expected)
    assert sampler.count == 200


def test_other_classes(root):
    table = root / "class_labels_indices.csv"
    table.write_text(
        f'index,mid,display_name\n0,{BARK},"Bark, loud"\n1,{DOG},Dog\n2,{SPEECH},Speech\n'
        f"3,{GUSH},Gush\n"
    )
    module = _set(root, subset="as20k", class_labels="class_labels_indices.csv")
    assert module.labels == ["Bark, loud", "Dog", "Speech", "Gush"]
    table = module.clips("train")
    assert [sorted(table.targets[row].tolist()) for row in range(3)] == [[2, 3], [1], [0, 1]]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("number,mid,name\n0,/m/1,a\n", r"has no column index, display_name: .*index,mid"),
        ("0,/m/1,a\n1,/m/2,b\n", "has no column index, mid, display_name"),
        ("index,mid,display_name\n", "own.csv column index.*none"),
        ("index,mid,display_name\n1,/m/1,a\n2,/m/2,b\n", r"column index.*1, 2"),
        ("index,mid,display_name\n0,/m/1,a\nx,/m/2,b\n", r"the numbers are 0, x"),
        ("index,mid,display_name\n0,/m/1,a\n1,/m/1,b\n", r"lists /m/1 more than once"),
        (None, r"cannot be read as a table of classes.*data\.init_args\.class_labels"),
    ],
)
def test_a_class_table_of_another_shape(root, text, match):
    if text is not None:
        (root / "own.csv").write_text(text)
    _reject(_set(root, class_labels="own.csv"), match)


def test_a_class_named_twice_counts_once_and_none_is_allowed(root):
    (root / "eval_segments.csv").write_text(
        f'eeeeeeeeee1, 30.000, 40.000, "{DOG},{BARK},{DOG}"\neeeeeeeeee2, 30.000, 40.000, ""\n'
    )
    table = _set(root).clips("test")
    assert table.targets.sizes.tolist() == [2, 0]
    assert table.targets.counts(527)[_number(DOG)] == 1


def test_batches_are_multi_hot_and_mixed(root):
    module = _set(root, batch_size=2, mixup=1.0, subset="as2m")
    module.setup("fit")
    batch = next(iter(module.val_dataloader()))
    assert batch["target"].shape == (2, 527)
    hot = [[_number(mid) for mid in mids] for _, mids in EVALUATION.values()]
    assert batch["target"][0].nonzero().flatten().tolist() == hot[0]
    assert batch["target"][1, hot[1]].tolist() == [1.0, 1.0]
    mixed = next(iter(module.train_dataloader()))
    assert mixed["mixed"].all()
    assert mixed["target"].dtype == torch.float32
    assert ((mixed["target"] >= 0) & (mixed["target"] <= 1)).all()


# --- damaged lists ---------------------------------------------------------------------------


def _evaluation(root, text):
    data = text if isinstance(text, bytes) else text.encode()
    (root / "eval_segments.csv").write_bytes(data)
    return _set(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
        lambda text: text.removeprefix(HEAD),
        lambda text: text.replace(HEAD, "YTID,start_seconds,end_seconds,positive_labels\n"),
        lambda text: text.replace(", ", ","),
        lambda text: text.replace('"', ""),
    ],
)
def test_lists_that_were_edited_read_the_same(root, change):
    module = _evaluation(root, change(HEAD + _csv(EVALUATION)))
    assert _rows(module.clips("test")) == _expected(EVALUATION)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (HEAD, r"eval_segments\.csv lists no clips"),
        ("", "lists no clips"),
        (HEAD + "eeeeeeeeee1, 30.000\n", r"eval_segments\.csv line 4 is 'eeeeeeeeee1, 30\.000'"),
        (HEAD + f'eeeeeeeeee1, soon, 40.000, "{DOG}"\n', "line 4 is 'eeeeeeeeee1, soon"),
        (HEAD + _csv(EVALUATION) + f'eeeeeeeeee3, 0.000, x, "{DOG}"\n', "line 6 is 'eeeeeeeeee3"),
        (HEAD + f', 30.000, 40.000, "{DOG}"\n', "line 4 is ', 30"),
        (HEAD + 'eeeeeeeeee1, 30.000, 40.000, "/m/09x0r,/m/none"\n', "line 4: '/m/none' is none"),
        (b"\xff\xfe\x00e\x00", "UTF-8"),
        (
            HEAD + _csv({"eeeeeeeeee1": (0.0, [SPEECH, "/m/xyz"])}),
            r"eval_segments\.csv line 4: '/m/xyz' .*527.*data\.init_args\.class_labels",
        ),
        (HEAD + _csv(EVALUATION) * 2, "eeeeeeeeee1 .*line 4 and .*line 6.* 1 more"),
    ],
)
def test_damaged_lists(root, text, match):
    _reject(_evaluation(root, text), match, "test")


def test_a_clip_in_training_and_evaluation(root):
    shared = {"--PJHxphWEs": (30.0, [SPEECH])}
    module = _evaluation(root, HEAD + _csv({**EVALUATION, **shared}))
    _reject(
        module,
        r"--PJHxphWEs is listed twice: .*/balanced_train_segments\.csv line 4 and "
        r".*eval_segments\.csv line 6",
    )
    with pytest.raises(DataError, match="listed twice"):
        module.inventory()


def test_a_clip_in_both_training_lists(root):
    (root / "unbalanced_train_segments.csv").write_text(HEAD + _csv({**UNBALANCED, **BALANCED}))
    _reject(_set(root), "--PJHxphWEs is listed twice")
    _set(root, subset="as20k").setup("fit")


# --- named lists -----------------------------------------------------------------------------


def test_named_lists(root, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("lists")
    own = {"--PJHxphWEs": BALANCED["--PJHxphWEs"], **UNBALANCED}
    (elsewhere / "mine.csv").write_text(_csv(own))
    module = _set(root, train=str(elsewhere / "mine.csv"))
    assert _rows(module.clips("train")) == _expected(own)
    assert _rows(module.clips("test")) == _expected(EVALUATION)
    assert module.inventory().parts == ["train", "evaluation"]
    module = _set(root, train=["balanced_train_segments.csv"], evaluation="eval_segments.csv")
    assert _rows(module.clips("train")) == _expected(BALANCED)
    assert module.inventory().parts == ["balanced", "evaluation"]
    monkeypatch.chdir(elsewhere)
    assert len(_set(root, train="mine.csv").clips("train")) == 3
    _reject(_set(root, train="none.csv"), r"there is no .*none\.csv: .*init_args\.train")
    _reject(_set(root, evaluation="audio"), r"audio has no \*\.parquet.*init_args\.evaluation")
    _reject(
        _set(root, train="audio/YabcdefghiJ.flac"), r"none of \*\.csv, \*\.json and \*\.parquet"
    )


# --- JSON lists ------------------------------------------------------------------------------


def _json(clips, path):
    data = [
        {"wav": path.format(name=name), "labels": ",".join(mids), "more": 1}
        for name, (_, mids) in clips.items()
    ]
    return json.dumps({"data": data, "about": "x"}, indent=1)


def _json_root(root, path, folder=""):
    for part in PARTS:
        (root / f"{part}_segments.csv").unlink()
    (root / folder).mkdir(exist_ok=True)
    for part, clips in PARTS.items():
        (root / folder / f"{part}_data.json").write_text(_json(clips, path))
    return root


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("{root}/audio/{name}.flac", "datafiles"),
        ("audio/{name}.flac", ""),
        ("audio/{name}.flac", "json"),
        ("../audio/{name}.flac", "json"),
        ("./audio/{name}.flac", ""),
    ],
)
def test_json_lists(root, path, folder):
    _check_parts(_json_root(root, path.replace("{root}", str(root)), folder))


def test_json_paths_from_a_relative_root(root, monkeypatch):
    _json_root(root, "audio/{name}.flac", "json")
    monkeypatch.chdir(root.parent)
    _check_parts(root.name)


def test_json_whole_list(root):
    _json_root(root, "audio/{name}.flac")
    for part in ("balanced", "unbalanced"):
        (root / f"{part}_train_data.json").unlink()
    (root / "whole_train_data.json").write_text(
        _json({**BALANCED, **UNBALANCED}, "audio/{name}.flac")
    )
    assert len(_set(root).clips("train")) == 5
    # The whole list must not pass for the small set.
    _reject(_set(root, subset="as20k"), "as20k lacks the balanced training part")


def test_json_names_without_a_youtube_id_are_their_paths(root):
    for name in ("1-100032-A-0", "x"):
        _sound(root / "own" / f"{name}.wav", name)
    (root / "own.json").write_text(
        _json({"1-100032-A-0": (0, [DOG]), "x": (0, [BARK])}, "own/{name}.wav")
    )
    module = _set(root, train="own.json")
    assert list(module.clips("train").ids) == ["own/1-100032-A-0.wav", "own/x.wav"]
    assert list(module.inventory().recordings)[:2] == ["", ""]


def test_json_clips_without_a_file(root, caplog):
    _json_root(root, "audio/{name}.flac")
    (root / "audio" / "eeeeeeeeee1.flac").unlink()
    module = _set(root)
    with caplog.at_level(logging.WARNING):
        assert _rows(module.clips("test")).keys() == {"eeeeeeeeee2"}
    assert "1 of the 2 clips of" in caplog.text
    _json_root_again = root / "eval_data.json"
    _json_root_again.write_text(_json(EVALUATION, "/gone/{name}.flac"))
    _reject(_set(root), r"no clip is left.*The first file of .* is /gone/eeeeeeeeee1\.flac", "test")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"data.json"),
        ('{"data": [{"wav": "a"', "data.json"),
        ('[{"wav": "a", "labels": "b"}]', "data.json"),
        ('{"data": [{"wav": "a", "labels": ["b"]}]}', "data.json"),
        ('{"data": []}', "lists no clips"),
        ('{"clips": []}', "lists no clips"),
        ('{"data": [{"wav": "a", "labels": ""}, {"wav": "a"}]}', r"json entry 2 has no 'labels'"),
        ('{"data": [{"labels": "b"}]}', "entry 1 has no 'wav'"),
        ('{"data": [{"wav": "a", "labels": "/m/none"}]}', "entry 1: '/m/none' is none of"),
        (
            '{"data": [{"wav": "a/eeeeeeeeee1.wav", "labels": ""}, '
            '{"wav": "b/Yeeeeeeeeee1.wav", "labels": ""}]}',
            r"eeeeeeeeee1 is listed twice: .*entry 1 and .*entry 2",
        ),
    ],
)
def test_damaged_json(root, text, match):
    _json_root(root, "audio/{name}.flac")
    (root / "eval_data.json").write_text(text)
    _reject(_set(root), match, "test")


def test_json_with_a_byte_order_mark(root):
    _json_root(root, "audio/{name}.flac")
    text = (root / "eval_data.json").read_text()
    (root / "eval_data.json").write_text("\ufeff" + text)
    assert _rows(_set(root).clips("test")) == _expected(EVALUATION)


# --- Parquet copies --------------------------------------------------------------------------


@pytest.fixture
def arrow_cache(tmp_path_factory, monkeypatch):
    import datasets

    folder = tmp_path_factory.mktemp("arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def _columns(clips, labels="both", missing=()):
    names = list(clips)
    sound = [
        {"bytes": None if name in missing else _bytes(name), "path": f"audio/{name}.flac"}
        for name in names
    ]
    mids = [clips[name][1] for name in names]
    columns = {
        "video_id": pa.array(names),
        "audio": pa.array(sound, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "labels": pa.array(mids, pa.list_(pa.string())),
        "human_labels": pa.array(
            [[NAMES[mid] for mid in one] for one in mids], pa.list_(pa.string())
        ),
    }
    drop = {"both": (), "mids": ("human_labels",), "names": ("labels",)}[labels]
    return {key: column for key, column in columns.items() if key not in drop}


def _parquet(file, columns, feature=None):
    """Write a file with the audio feature that hub copies declare."""
    file.parent.mkdir(parents=True, exist_ok=True)
    strings = {"dtype": "string", "_type": "Value"}
    features = {name: strings for name in columns}
    features["audio"] = {"_type": "Audio"}
    for name, column in columns.items():
        if pa.types.is_list(column.type):
            features[name] = {"feature": strings, "_type": "List"}
    features |= feature or {}
    about = json.dumps({"info": {"features": features}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, file, row_group_size=1)


LAYOUTS = {
    "agkphysics": {
        "balanced_train": "data/bal_train/{}.parquet",
        "unbalanced_train": "data/unbal_train/{}.parquet",
        "eval": "data/eval/{}.parquet",
    },
    "flat": {
        "balanced_train": "bal_train-{}.parquet",
        "unbalanced_train": "unbal_train-{}.parquet",
        "eval": "eval-{}.parquet",
    },
    "configs": {
        "balanced_train": "balanced/train-{:05}-of-00002.parquet",
        "unbalanced_train": "unbalanced/train-{:05}-of-00002.parquet",
        "eval": "balanced/test-{:05}-of-00002.parquet",
    },
}


def _copy(root, layout="agkphysics", labels="both"):
    for part, clips in PARTS.items():
        names = list(clips)
        for shard, chosen in enumerate((names[:1], names[1:])):
            columns = _columns({name: clips[name] for name in chosen}, labels)
            _parquet(root / LAYOUTS[layout][part].format(shard), columns)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parquet_layouts(tmp_path, arrow_cache, layout):
    _check_parts(_copy(tmp_path / "a[1]", layout))
    assert list(arrow_cache.rglob("*.arrow"))


@pytest.mark.parametrize("labels", ["mids", "names"])
def test_parquet_labels_as_ids_or_names(tmp_path, arrow_cache, labels):
    module = _set(_copy(tmp_path, labels=labels), subset="as20k")
    assert _rows(module.clips("train")) == _expected(BALANCED)


@pytest.mark.parametrize("kind", ["mids", "names", "one", "plain", "joined"])
def test_parquet_class_numbers(tmp_path, arrow_cache, kind):
    clips = EVALUATION if kind != "one" else {"eeeeeeeeee1": (30.0, [BARK])}
    columns = _columns(clips, "mids")
    mids = list(NAMES)
    numbers = [[mids.index(mid) for mid in one] for _, one in clips.values()]
    names = list(NAMES.values()) if kind == "names" else mids
    classes = {"names": names, "_type": "ClassLabel"}
    feature = {"labels": {"feature": classes, "_type": "List"}}
    columns["labels"] = pa.array(numbers, pa.list_(pa.int64()))
    if kind == "one":
        columns["labels"], feature = pa.array([one[0] for one in numbers]), {"labels": classes}
    if kind == "plain":
        numbers = [[int(_number(mid)) for mid in one] for _, one in clips.values()]
        columns["labels"] = pa.array(numbers, pa.list_(pa.int64()))
        feature = {"labels": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}}
    if kind == "joined":
        columns["labels"] = pa.array([",".join(one) for _, one in clips.values()])
        feature = None
    _parquet(tmp_path / "test-0.parquet", columns, feature)
    assert _rows(_set(tmp_path).clips("test")) == _expected(clips)


def test_parquet_ids_from_paths(tmp_path, arrow_cache):
    columns = _columns(EVALUATION)
    del columns["video_id"]
    _parquet(tmp_path / "data" / "eval.parquet", columns)
    assert _rows(_set(tmp_path).clips("test")) == _expected(EVALUATION)


def test_parquet_named_files_and_folders(tmp_path, arrow_cache):
    _copy(tmp_path / "copy")
    module = _set(tmp_path, train="copy/data/unbal_train", evaluation=["copy/data/eval/1.parquet"])
    assert _rows(module.clips("train")) == _expected(UNBALANCED)
    assert list(module.clips("test").ids) == ["eeeeeeeeee2"]


def test_parquet_rows_without_sound(tmp_path, arrow_cache, caplog):
    _parquet(tmp_path / "eval.parquet", _columns(EVALUATION, missing=["eeeeeeeeee1"]))
    _parquet(tmp_path / "balanced_train.parquet", _columns(BALANCED))
    module = _set(tmp_path, subset="as20k")
    with caplog.at_level(logging.WARNING):
        assert _rows(module.clips("test")).keys() == {"eeeeeeeeee2"}
    assert "1 of the 2 clips" in caplog.text
    assert list(module.inventory().absent) == ["eeeeeeeeee1"]


def test_parquet_rows_are_read_by_worker_processes(tmp_path, arrow_cache):
    module = _set(_copy(tmp_path), subset="as20k", num_workers=2)
    module.setup("test")
    ids = [name for batch in module.test_dataloader() for name in batch["id"]]
    assert ids == list(EVALUATION)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-2_000],
        lambda data: data[:4] + bytes(396) + data[400:],
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_damaged_parquet(tmp_path, arrow_cache, damage):
    file = _copy(tmp_path) / "data" / "eval" / "1.parquet"
    file.write_bytes(damage(file.read_bytes()))
    _reject(_set(tmp_path), r"eval/1\.parquet: .*Parquet", "test")


@pytest.mark.parametrize("column", ["audio", "labels"])
def test_parquet_without_a_column(tmp_path, column):
    columns = _columns(EVALUATION, "mids")
    del columns[column]
    columns["other"] = columns["video_id"]
    _parquet(tmp_path / "eval.parquet", columns, {"audio": {"dtype": "string", "_type": "Value"}})
    _reject(_set(tmp_path), rf"eval\.parquet has no column {column}, but .*other", "test")


def test_parquet_unknown_class_names_file_and_row(tmp_path, arrow_cache):
    clips = {"eeeeeeeeee3": (0.0, [DOG]), "eeeeeeeeee4": (0.0, ["/m/none"])}
    _parquet(tmp_path / "eval" / "0.parquet", _columns(EVALUATION, "mids"))
    columns = {**_columns({name: (0, [DOG]) for name in clips}, "mids")}
    columns["labels"] = pa.array([mids for _, mids in clips.values()])
    _parquet(tmp_path / "eval" / "1.parquet", columns)
    _reject(_set(tmp_path), r"eval/1\.parquet row 1: '/m/none' is none of the classes", "test")


@pytest.mark.parametrize(("number", "count"), [(527, 526), (-1, 526)])
def test_parquet_class_number_out_of_range(tmp_path, arrow_cache, number, count):
    columns = _columns(EVALUATION, "mids")
    columns["labels"] = pa.array([[0], [number]])
    feature = {"labels": {"feature": {"dtype": "int64", "_type": "Value"}, "_type": "List"}}
    _parquet(tmp_path / "eval.parquet", columns, feature)
    _reject(_set(tmp_path), rf"eval\.parquet row 1: class number {number} .*0 to {count}", "test")


def test_parquet_shard_missing(tmp_path, arrow_cache):
    _copy(tmp_path, "configs")
    (tmp_path / "balanced" / "test-00000-of-00002.parquet").unlink()
    _reject(
        _set(tmp_path), r"1 of 2 shards of test are missing: test-00000-of-00002; fetch", "test"
    )
    _reject(_set(tmp_path, evaluation="balanced"), "1 of 2 shards of test are missing", "test")
    # Named files are not checked.
    module = _set(tmp_path, evaluation="balanced/test-00001-of-00002.parquet")
    assert list(module.clips("test").ids) == ["eeeeeeeeee2"]
    _parquet(tmp_path / "more" / "eval-00001-of-00003-0ab9.parquet", _columns(EVALUATION))
    _reject(_set(tmp_path, evaluation="more"), r"2 of 3 .*eval-00000-of-00003, eval-00002", "test")


def test_parquet_of_one_part_in_two_folders(tmp_path):
    _copy(tmp_path)
    shutil.copytree(tmp_path / "data" / "eval", tmp_path / "test")
    _reject(_set(tmp_path), r"evaluation part in 2 folders .*init_args\.evaluation", "test")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("data/bal_train/00.parquet", "balanced"),
        ("data/unbal_train/869.parquet", "unbalanced"),
        ("data/eval/00.parquet", "evaluation"),
        ("unbalanced/test/0000.parquet", "evaluation"),
        ("data/train-00000-of-00007.parquet", "train"),
        ("20k/train-0.parquet", "balanced"),
        ("2m/train-0.parquet", "whole"),
        ("full/train-0.parquet", "whole"),
        ("data/validation-00000-of-00001.parquet", "validation"),
        ("data/bal_train/00.tar", None),
        ("ontology.parquet", None),
        ("retrain/0.parquet", None),
    ],
)
def test_parts_of_parquet_files(path, part):
    assert parquet_part(PurePosixPath(path)) == part


def test_validation_stands_for_evaluation_only_where_there_is_none(tmp_path, arrow_cache):
    _parquet(tmp_path / "validation.parquet", _columns(EVALUATION))
    assert list(_set(tmp_path).clips("test").ids) == list(EVALUATION)
    _parquet(tmp_path / "test.parquet", _columns(BALANCED))
    assert list(_set(tmp_path).clips("test").ids) == list(BALANCED)


def test_the_most_particular_form_wins(root, arrow_cache):
    own = {"ppppppppppp": (0.0, [DOG])}
    (root / "eval_data.json").write_text(_json({"eeeeeeeeee2": (0, [DOG])}, "audio/{name}.flac"))
    (root / "train.json").write_text(_json(BALANCED, "audio/{name}.flac"))
    assert list(_set(root).clips("test").ids) == ["eeeeeeeeee2"]
    _parquet(root / "eval.parquet", _columns(own))
    assert list(_set(root).clips("test").ids) == ["ppppppppppp"]
    assert list(_set(root, evaluation="eval_segments.csv").clips("test").ids) == list(EVALUATION)


# --- hub copies and packed folders -----------------------------------------------------------


def test_a_hub_copy_in_the_cache(tmp_path, arrow_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _reject(_set("hf://owner/name"), "HF_HUB_OFFLINE.*hf download")
    place = tmp_path / "datasets--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    _copy(place / "snapshots" / ("0" * 40))
    _check_parts("hf://owner/name")


def test_which_files_of_a_hub_copy_are_wanted(tmp_path, monkeypatch):
    from peas.data.audioset import module as audioset

    files = [path.format(0) for path in LAYOUTS["agkphysics"].values()]
    files += ["data/train-0.parquet", "README.md", "data/bal_train00.tar"]
    wanted = {}

    def folder(name, chosen):
        wanted[name] = [file for file in files if chosen(file)]
        return tmp_path

    monkeypatch.setattr(audioset, "hub_folder", folder)
    for subset in ("as20k", "as2m"):
        module = _set(f"hf://owner/{subset}", subset=subset)
        _reject(module, "has no list of clips")
    assert wanted["hf://owner/as2m"] == files[:4]
    assert wanted["hf://owner/as20k"] == [files[0], files[2], files[3]]


@pytest.fixture
def packed_root(root):
    (root / "audio" / "YabcdefghiJ.flac").unlink()
    packed(_set(root), root / "packed", name="audioset")
    return root / "packed"


def test_a_packed_folder(packed_root):
    left = {name: clip for name, clip in BALANCED.items() if name != "YabcdefghiJ"}
    module = _set(packed_root, subset="as20k")
    module.setup("fit")
    assert _rows(module.clips("train")) == _expected(left)
    assert _rows(module.clips("test")) == _expected(EVALUATION)
    module = _set(packed_root, subset="as2m")
    assert _rows(module.clips("train")) == _expected({**left, **UNBALANCED})
    assert module.labels == _set(packed_root.parent).labels
    inventory = module.inventory()
    assert inventory.parts == ["balanced", "unbalanced", "evaluation"]
    assert list(inventory.absent) == ["YabcdefghiJ"]
    assert inventory.recordings[0] == "youtube:--PJHxphWEs"
    with pytest.raises(ConfigError, match=r"data\.init_args\.train and evaluation"):
        _set(packed_root, evaluation="eval_segments.csv").setup("test")
    (packed_root / "own.csv").write_text("index,mid,display_name\n0,/m/0bt9lr,Dog\n")
    _reject(_set(packed_root, class_labels="own.csv"), "527 classes, .* 1 of .*own")


def test_a_packed_folder_of_the_small_set_is_not_the_large_one(root):
    packed(_set(root, subset="as20k"), root / "small", name="audioset")
    assert len(_set(root / "small", subset="as20k").clips("train")) == 3
    _reject(
        _set(root / "small"),
        r"parts balanced, evaluation: .*as2m needs balanced and unbalanced",
    )


def test_a_packed_folder_that_is_unfinished_or_another_manifest(packed_root, root):
    (root / "manifest.json").write_text('{"made by": "another program"}')
    assert len(_set(root).clips("test")) == 2
    (root / "manifest.json").write_text("{")
    assert len(_set(root).clips("test")) == 2
    (packed_root / "manifest.json").rename(packed_root / "packing.json")
    _reject(_set(packed_root), "packing is not finished")
