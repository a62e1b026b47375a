import json
import os
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pytest
import soundfile
import torch
import yaml

from peas.audio.frontend import LogMel
from peas.callbacks.run_files import label_map
from peas.cli import fit
from peas.data.columns import Strings, Targets
from peas.data.fingerprint import Fingerprint
from peas.data.folder.csv_file import read_class_order
from peas.data.folder.module import AudioFolder
from peas.data.folder.splits import assign_parts
from peas.data.module import SPLITS
from peas.errors import AudioError, ConfigError, DataError

KNOWN = {"mean": -6.0, "std": 5.0, "cache_dir": "", "num_workers": 0}


def _sound(path, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(-0.5, 0.5, round(seconds * 16_000))
    soundfile.write(path, np.sin(300 * ramp), 16_000)


def _tree(root, *names, **settings):
    """A set of a folder a class."""
    for name in names:
        _sound(root / name)
    return AudioFolder(str(root), **{**KNOWN, **settings})


def _table(root, text, *sounds, **settings):
    """A set of a CSV, given as text or bytes."""
    for name in sounds:
        _sound(root / name)
    root.mkdir(parents=True, exist_ok=True)
    (root / "clips.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return AudioFolder(str(root), **{"csv": "clips.csv", **KNOWN, **settings})


def _lines(head, *rows):
    return "\n".join([head, *rows]) + "\n"


def _ids(module, split):
    return list(module.clips(split).ids)


def _sizes(module):
    return [len(module.clips(split)) for split in ("train", "validation", "test")]


def _reject(module, match, error=DataError, stage="fit"):
    with pytest.raises(error, match=match):
        module.setup(stage)


# --- a folder for each class -----------------------------------------------------------------


def test_a_folder_for_each_class(tmp_path):
    module = _tree(tmp_path, "dog/1.wav", "dog/deep/er/2.FLAC", "cat/3.ogg", "_not/4.wav")
    (tmp_path / "dog" / "notes.txt").write_text("x")
    (tmp_path / "dog" / "._1.wav").write_text("x")
    assert module.labels == ["cat", "dog"]
    assert _ids(module, "train") == ["cat/3.ogg", "dog/1.wav", "dog/deep/er/2.FLAC"]
    table = module.clips("train")
    assert table.targets.classes.tolist() == [0, 1, 1]
    assert table.sounds.load(0).shape == (1600,)
    assert not module.multi_label


def test_folders_of_splits(tmp_path):
    module = _tree(tmp_path, "train/a/1.wav", "train/b/2.wav", "Valid/a/3.wav", "eval/b/4.wav")
    assert [_ids(module, split) for split in ("train", "validation", "test")] == [
        ["train/a/1.wav", "train/b/2.wav"],
        ["Valid/a/3.wav"],
        ["eval/b/4.wav"],
    ]
    assert module.labels == ["a", "b"]
    inventory = module.inventory()
    assert [inventory.parts[part] for part in inventory.part] == [
        *("validation", "test"),
        *("train", "train"),
    ]


def test_a_class_may_be_called_train(tmp_path):
    assert _tree(tmp_path, "train/1.wav", "bus/2.wav").labels == ["bus", "train"]


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    assert _tree(tmp_path, "10/1.wav", "9/2.wav", "0/3.wav").labels == ["0", "9", "10"]


def test_linked_class_folder(tmp_path):
    _sound(tmp_path / "elsewhere" / "1.wav")
    (tmp_path / "set" / "b").mkdir(parents=True)
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    module = _tree(tmp_path / "set", "b/2.wav")
    assert _ids(module, "train") == ["a/1.wav", "b/2.wav"]


def test_link_to_itself_beside_the_classes(tmp_path):
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(DataError, match=f"{tmp_path}/round: a link"):
        _ids(_tree(tmp_path, "a/1.wav", "b/2.wav"), "train")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["train/a/1.wav", "test/a/2.wav", "more/3.wav"], r"others beside them \(more\)"),
        (["train/a/1.wav", "val/a/2.wav", "dev/a/2.wav"], r"several folders of one split"),
        (["1.wav", "2.wav"], r"no folder of a class \(2 sound files lie in it\).*init_args\.csv"),
        (["a/1.wav", "b/notes.m4a"], r"class folder \S+/b has no sound file \(\.wav"),
        (["train/a/1.wav", "test/2.wav"], r"/test has no folder of a class"),
    ],
)
def test_trees_that_are_refused(tmp_path, names, match):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    _reject(AudioFolder(str(tmp_path), **KNOWN), match)


def test_name_of_a_file_that_is_not_utf8(tmp_path):
    module = _tree(tmp_path, "a/1.wav")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.wav")).touch()
    _reject(module, r"1 names of files are not UTF-8, such as 'caf")


def test_links_below_a_class_folder(tmp_path):
    _sound(tmp_path / "elsewhere" / "2.wav")
    module = _tree(tmp_path / "set", "a/1.wav", "b/3.WAV")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    assert _ids(module, "train") == ["a/1.wav", "a/more/2.wav", "b/3.WAV"]
    (tmp_path / "set" / "a" / "round").symlink_to(tmp_path / "set")
    _reject(AudioFolder(str(tmp_path / "set"), **KNOWN), r"link \S+a/round\S* leads back")


def test_what_is_left_out_is_counted_and_said(tmp_path, caplog):
    names = ("a/1.wav", "_background_noise_/n.wav", "_background_noise_/m.wav", "loose.flac")
    module = _tree(tmp_path, *names, "a/.hidden.wav", ".trash/2.wav")
    (tmp_path / "a" / "notes.txt").touch()
    assert _ids(module, "train") == ["a/1.wav"]
    (note,) = module.inventory().notes
    for part in (
        "2 sound files in folders whose names begin with an underscore (such as '_background_noise",
        "1 sound files beside the folders of the classes ('loose.flac')",
        "2 hidden files and folders",
        "(.txt: 1)",
    ):
        assert part in note
    (record,) = [record for record in caplog.records if "left out" in record.message]
    assert record.levelname == "WARNING"
    assert note in record.message


def test_class_folder_that_is_not_utf8(tmp_path):
    module = _tree(tmp_path, "a/1.wav")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    _reject(module, r"1 names are not UTF-8, such as 'caf")


def test_missing_root(tmp_path):
    _reject(AudioFolder(str(tmp_path / "no"), **KNOWN), r"no folder \S+/no: .*init_args\.root")


def test_formats_that_are_not_decoded_are_told(tmp_path, caplog):
    module = _tree(tmp_path, "a/1.wav")
    (tmp_path / "a" / "2.m4a").touch()
    assert _ids(module, "train") == ["a/1.wav"]
    assert "left out 1 files" in caplog.text


# --- a CSV: text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"path,label\na/1.wav,hum\na/2.wav,buzz\n",
        b"\xef\xbb\xbfpath,label\r\na/1.wav,hum\r\na/2.wav,buzz\r\n",
        b"path;label\na/1.wav;hum\na/2.wav;buzz",
        b"label\tpath\tnote\nhum\ta/1.wav\tx\nbuzz\ta/2.wav\ty\n",
        b' path , label \n\n"a/1.wav", hum\n\n./a//2.wav ,"buzz"\n\n',
        b'label,note,path\nhum,"two\nlines",a/1.wav\nbuzz,caf,a/2.wav\n',
    ],
)
def test_csv_dialects(tmp_path, text):
    module = _table(tmp_path, text, "a/1.wav", "a/2.wav")
    assert _ids(module, "train") == ["a/1.wav", "a/2.wav"]
    assert module.labels == ["buzz", "hum"]
    assert module.clips("train").targets.classes.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", r"clips\.csv: the first line is empty"),
        (b"path,label\n", r"clips\.csv lists no clips: 0 rows"),
        (b"path,label\na/1.wav,caf\xe9\n", r"clips\.csv line 2: not UTF-8 text.*iconv"),
        (b"path,label\na/1.wav,b\na/2.wav\n", r"cannot be read as a table.* 2 fields"),
        (b"path,label,path\na,b,c\n", r"several columns path"),
        (b"filename,category\na,b\n", r"no column path .*are filename, category.*rename filename"),
        (b"x,y\na,b\n", r"no column path \(its columns are x, y\)"),
        (b"file,label\na,b\n", r"no column path \(its columns are file\).*rename file"),
        (b"path,lable\na,b\n", r"a column lable, which is not known: is it label\?"),
        (b"path,Label\na,b\n", r"a column Label, which is not known: is it label\?"),
        (b"path,category\na,b\n", r"a column category, .*is it label\?"),
        (b"path,label,strat\na,b,1\n", r"a column strat, .*is it start\?"),
        (b"path,label,labels\na,b,c\n", r"columns label and labels: keep one"),
        (b"path,label\na,b\n\n ,c\n", r"line 4: column path is empty"),
        (b"path,label\na,b\nc,\nd,\n", r"line 3: column label is empty \(and 1 more rows\)"),
        (b"path,label,fold\na,b,\n", r"line 2: column fold is empty"),
        (b"path,label,split\na,b,train\nc,b,tset\n", r"line 3: column split is 'tset': give one"),
        (b"path,label,start\na,b,-1\n", r"line 2: column start is '-1': give seconds, 0 or"),
        (b"path,label,start\na,b,one\n", r"line 2: column start is 'one': give a number"),
        (b"path,label,end\na,b,nan\n", r"line 2: column end is 'nan': give a number"),
        (b"path,label,start,end\na,b,2,2\n", r"line 2: column end is '2', which is not after"),
        (b"path,label\na,b\n./a,b\n", r"lists a twice \(lines 2 and 3\): keep one row"),
        (
            b"path,label,start,end,split\na,b,1,2,train\na,b,1.0,2.0,test\n",
            r"lists a#1-2 twice .*it is in train and test, and a clip belongs to one split",
        ),
    ],
)
def test_csvs_that_are_refused(tmp_path, text, match):
    _reject(_table(tmp_path, text), match)


def test_missing_csv(tmp_path):
    _reject(AudioFolder(str(tmp_path), csv="no.csv", **KNOWN), r"no\.csv.*from data\.init_args")


# --- a CSV: sounds ---------------------------------------------------------------------------


def test_missing_files_are_named_and_an_inventory_still_lists_them(tmp_path):
    rows = [f"a/{n}.wav,x" for n in range(7)]
    module = _table(tmp_path, _lines("path,label", *rows, "no/1.wav,x"), "a/0.wav", "a/4.wav")
    _reject(module, r"6 of the 8 files .* a/1\.wav, a/2\.wav, a/3\.wav and 3 more; paths start")
    assert len(module.inventory().table) == 8


def test_paths_that_leave_the_folder_or_are_absolute(tmp_path):
    _sound(tmp_path / "other" / "1.wav")
    root = tmp_path / "set"
    rows = ("../other/1.wav,x", f"{root}/in/2.wav,x", f"{tmp_path}/other/./3.wav,x")
    module = _table(root, _lines("path,label", *rows), "in/2.wav", "../other/3.wav")
    # A path below the root is the same clip on a machine where the root is another one.
    assert _ids(module, "train") == ["../other/1.wav", "in/2.wav", f"{tmp_path}/other/3.wav"]
    assert all(len(module.clips("train").sounds.load(row)) == 1600 for row in range(3))


def test_stretches(tmp_path):
    _sound(tmp_path / "a.wav", seconds=1.0)
    text = _lines("path,label,start,end", "a.wav,x,0.25,0.5", "a.wav,x,0.5,", "a.wav,x,,0.125")
    module = _table(tmp_path, text)
    table = module.clips("train")
    assert list(table.ids) == ["a.wav#0.25-0.5", "a.wav#0.5-", "a.wav#0-0.125"]
    assert [len(table.sounds.load(row)) for row in range(3)] == [4000, 8000, 2000]
    whole = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    np.testing.assert_array_equal(table.sounds.load(0).numpy(), whole[4000:8000])
    # Stretches of one file must not be shared across splits.
    assert set(module.inventory().recordings) == {f"{tmp_path.name}:a.wav"}


def test_a_stretch_beyond_the_file_is_found_at_reading(tmp_path):
    module = _table(tmp_path, "path,label,start\na.wav,x,3\n", "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav: the clip begins at 3 s"):
        module.clips("train").sounds.load(0)


def test_an_end_beyond_the_file_is_an_error(tmp_path):
    text = _lines("path,label,start,end", "a.wav,x,0,0.14", "a.wav,x,0.05,4.05", "a.wav,y,,0.2")
    table = _table(tmp_path, text, "a.wav").clips("train")
    # A table may round.
    assert len(table.sounds.load(0)) == 1600
    for row, end in ((1, "4.05"), (2, "0.2")):
        with pytest.raises(AudioError, match=rf"a\.wav: the clip ends at {end} s.* has 0\.1 s"):
            table.sounds.load(row)


# --- one spelling ----------------------------------------------------------------------------

COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def test_one_class_in_two_spellings_of_unicode(tmp_path):
    text = _lines(
        "path,label,speaker,split",
        f"1.wav,{COMPOSED},{COMPOSED},train",
        f"2.wav,{APART},{APART},train",
        "3.wav,tea,x,test",
    )
    module = _table(tmp_path, text, "1.wav", "2.wav", "3.wav")
    assert module.labels == [COMPOSED, "tea"]
    speakers = module.inventory().speakers
    assert speakers[0] == speakers[1] == f"{tmp_path.name}:{COMPOSED}"
    (tmp_path / "order.txt").write_text(f"tea\n{APART}\n")
    ordered = _table(tmp_path, text, labels_file="order.txt")
    assert ordered.labels == ["tea", COMPOSED]


@pytest.mark.parametrize(("listed", "stored"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_path_is_found_in_either_spelling(tmp_path, listed, stored):
    text = _lines("path,label", f"{listed}/{listed}.wav,x", "b.wav,y")
    module = _table(tmp_path, text, f"{stored}/{stored}.wav", "b.wav")
    table = module.clips("train")
    assert list(table.ids) == [f"{COMPOSED}/{COMPOSED}.wav", "b.wav"]
    assert [len(table.sounds.load(row)) for row in range(2)] == [1600, 1600]
    assert table.sounds.file(0) == str(tmp_path / f"{stored}/{stored}.wav")


def test_class_folders_in_two_spellings_are_one_class(tmp_path, caplog):
    module = _tree(tmp_path, f"{COMPOSED}/1.wav", f"{APART}/2.wav", "tea/3.wav")
    assert module.labels == [COMPOSED, "tea"]
    table = module.clips("train")
    assert list(table.ids) == [f"{COMPOSED}/2.wav", f"{COMPOSED}/1.wav", "tea/3.wav"]
    assert [len(table.sounds.load(row)) for row in range(3)] == [1600] * 3
    assert "2 spellings of the folder" in caplog.text


def test_two_files_whose_names_look_the_same(tmp_path):
    _reject(_tree(tmp_path, f"a/{COMPOSED}.wav", f"a/{APART}.wav"), "Unicode spelling only")


def test_names_that_differ_by_case_only_are_said(tmp_path, caplog):
    text = _lines("path,label,speaker", "a.wav,Dog,ann", "A.wav,dog,Ann", "c.wav,cat,Ann")
    module = _table(tmp_path, text, "a.wav", "A.wav", "c.wav")
    assert module.labels == ["Dog", "cat", "dog"]
    notes = module.inventory().notes
    assert len(notes) == 3
    for kind, names in (
        ("classes", "'Dog', 'dog'"),
        ("speakers", f"'{tmp_path.name}:Ann', '{tmp_path.name}:ann'"),
        ("files", "'A.wav', 'a.wav'"),
    ):
        assert any(note.startswith(kind) and names in note for note in notes)
    assert all(note in caplog.text for note in notes)


# --- classes ---------------------------------------------------------------------------------


def test_one_class_alone_is_warned_of(tmp_path, caplog):
    module = _tree(tmp_path, "audio/low/1.wav", "audio/mid/2.wav")
    module.clips("train")
    assert "all 2 training clips are of one class, audio" in caplog.text
    caplog.clear()
    _tree(tmp_path / "audio", "low/3.wav").clips("train")
    assert "one class" not in caplog.text


def test_several_labels(tmp_path):
    text = _lines("path,labels", "1.wav,hum; buzz", "2.wav,buzz;;buzz;", '3.wav,"hiss;hum"')
    module = _table(tmp_path, text, "1.wav", "2.wav", "3.wav")
    assert module.labels == ["buzz", "hiss", "hum"]
    assert module.info.multi_label
    targets = module.clips("train").targets
    assert [targets[row].tolist() for row in range(3)] == [[0, 2], [0], [1, 2]]


def test_other_separator_in_a_csv_of_semicolons(tmp_path):
    module = _table(tmp_path, "path;labels\n1.wav;a|b\n", "1.wav", separator="|")
    assert module.labels == ["a", "b"]


def test_one_label_each_in_the_column_of_several(tmp_path):
    text = "path,labels\n1.wav,a\n2.wav,b\n"
    assert not _table(tmp_path, text, "1.wav", "2.wav").info.multi_label
    assert _table(tmp_path, text, multi_label=True).info.multi_label


def test_several_labels_where_one_is_asked_for(tmp_path):
    module = _table(tmp_path, "path,labels\n1.wav,a\n2.wav,a;b\n", multi_label=False)
    _reject(module, r"2\.wav has several classes, as 1 of 2 clips have, .*multi_label is false")


def test_no_label_among_several(tmp_path):
    text = "path,labels\n1.wav,a;b\n2.wav,\n"
    _reject(_table(tmp_path, text), r"2\.wav has no class, as 1 of 2 clips .*multi_label to true")
    module = _table(tmp_path, text, "1.wav", "2.wav", multi_label=True, holdout=None)
    assert module.clips("train").targets.sizes.tolist() == [2, 0]


def test_clips_without_classes(tmp_path):
    module = _table(tmp_path, "path\n1.wav\n2.wav\n", "1.wav", "2.wav")
    assert module.labels == []
    assert module.clips("train").targets.sizes.tolist() == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "hum\nbuzz\n\nhiss\n",
        "index,name,training_clips\n2,hiss,0\n0,hum,7\n1,buzz,7\n",
        'display_name\n"hum"\nbuzz\nhiss\n',
    ],
)
def test_order_of_classes_from_a_file(tmp_path, text, caplog):
    (tmp_path / "labels.csv").write_text(text)
    module = _tree(tmp_path, "buzz/1.wav", "hum/2.wav", labels_file="labels.csv")
    assert module.labels == ["hum", "buzz", "hiss"]
    assert module.clips("train").targets.classes.tolist() == [1, 0]
    assert "1 of 3 classes have no training clip: hiss" in caplog.text


@pytest.mark.parametrize("name", ["two\nlines", "a\rb", 'a "b", c', "a\u2028b", "x"])
def test_the_label_map_of_a_run_is_read_back(tmp_path, name):
    rows = [["1.wav", name], ["2.wav", "other"]]
    text = "path,label\n" + "".join(f'{path},"{label}"\n' for path, label in rows).replace(
        'a "b"', 'a ""b""'
    )
    module = _table(tmp_path, text, "1.wav", "2.wav")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        file.write(label_map(module))
    again = _table(tmp_path, text, labels_file="labels.csv")
    assert again.labels == module.labels
    assert name in again.labels


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("hum\nbuz\n", r"1 classes that \S+labels\.txt does not name: 'buzz' \(is it 'buz'\?\)"),
        ("hum\nbuzz\nhum\n", r"labels\.txt names hum more than once"),
        ("\n\n", r"labels\.txt names no class"),
        ("index,name\n0,hum\n2,buzz\n", r"numbered 0 to 1, each once, but there is 2"),
        ("index,name\n0,hum\n1\n", r"fewer fields"),
    ],
)
def test_orders_that_are_refused(tmp_path, text, match):
    (tmp_path / "labels.txt").write_text(text)
    module = _tree(tmp_path, "buzz/1.wav", "hum/2.wav", labels_file="labels.txt")
    _reject(module, match)


def test_missing_or_foreign_order(tmp_path):
    _reject(_tree(tmp_path, "a/1.wav", labels_file="no.txt"), r"no\.txt.*labels_file")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8"):
        read_class_order(tmp_path / "latin.txt")


def test_classes_of_a_checkpoint_are_taken_where_the_clips_have_no_others(tmp_path):
    text = "path,label,split\n1.wav,b,test\n2.wav,d,test\n"
    module = _table(tmp_path, text, "1.wav", "2.wav", mean=None, std=None)
    assert module.clips("test").targets.classes.tolist() == [0, 1]
    # No statistics are asked for, which only training clips could give.
    assert module.take_labels(["d", "c", "b", "a"])
    assert module.labels == ["d", "c", "b", "a"]
    assert module.clips("test").targets.classes.tolist() == [2, 0]
    assert not _table(tmp_path, text).take_labels(["a", "b"])
    assert not _table(tmp_path, "path,split\n1.wav,test\n").take_labels(["a", "b"])


# --- which clips are predicted ---------------------------------------------------------------


def _predicted(module):
    module.setup("predict")
    table, splits, _ = module.prediction_clips()
    known = [
        ";".join(module.labels[number] for number in table.targets[row])
        for row in range(len(table))
    ]
    return dict(zip(table.ids, zip(splits, known, strict=True), strict=True))


def test_a_folder_without_classes_is_predicted_whole(tmp_path):
    module = _tree(tmp_path, "1.wav", "a/2.wav", "a/deep/3.wav", holdout=None)
    assert _predicted(module) == {
        "1.wav": ("", ""),
        "a/2.wav": ("", "a"),
        "a/deep/3.wav": ("", "a"),
    }
    batch = next(iter(module.predict_dataloader()))
    assert batch["id"] == ["1.wav", "a/2.wav", "a/deep/3.wav"]
    flat = _tree(tmp_path / "flat", "1.wav", "2.wav", holdout=0.25, labels_file="gone.txt")
    assert _predicted(flat) == {"1.wav": ("", ""), "2.wav": ("", "")}
    # What cannot be trained on still cannot.
    with pytest.raises(DataError, match="no folder of a class"):
        flat.setup("fit")


def test_a_csv_without_classes_and_test_clips_that_are_known(tmp_path):
    module = _table(tmp_path, "path\n1.wav\n2.wav\n", "1.wav", "2.wav")
    assert _predicted(module) == {"1.wav": ("", ""), "2.wav": ("", "")}
    text = "path,label,split\n1.wav,a,train\n2.wav,b,test\n"
    assert _predicted(_table(tmp_path, text)) == {"2.wav": ("test", "b")}


def test_holdout_says_nothing_of_a_folder_that_is_predicted(tmp_path):
    names = [f"{label}/{number}.wav" for label in "ab" for number in range(5)]
    module = _tree(tmp_path, *names, holdout=0.2)
    assert _predicted(module) == {name: ("", name[0]) for name in sorted(names)}
    assert module.prediction_clips().left_out == 0


def test_a_folder_that_was_trained_on_is_predicted_with_its_splits(tmp_path):
    names = [f"{label}/{number}.wav" for label in "ab" for number in range(5)]
    trained = _tree(tmp_path, *names, holdout=0.2)
    drawn = {clip: split for split in SPLITS for clip in trained.clips(split).ids}
    module = _tree(tmp_path, "loose.wav", holdout=0.2)
    module.trained_on = Fingerprint.of(trained.clips("train"))
    found = {clip: split for clip, (split, _) in _predicted(module).items()}
    assert found == {**drawn, "loose.wav": ""}
    assert set(drawn.values()) == set(SPLITS)
    # The same names, with other sound.
    other = replace(module.trained_on, sounds=module.trained_on.sounds + 1)
    module.trained_on = other
    assert set(module.prediction_clips().splits) == {""}


def test_clips_that_are_not_predicted_are_counted(tmp_path):
    text = "path,label,split\n1.wav,a,train\n2.wav,b,test\n3.wav,b,dev\n"
    module = _table(tmp_path, text, "1.wav", "2.wav", "3.wav")
    module.setup("predict")
    assert module.prediction_clips().left_out == 2


# --- which clips train -----------------------------------------------------------------------

FOLDS = _lines(
    "path,label,split,fold", "1.wav,a,train,2", "2.wav,a,dev,10", "3.wav,a,test,9", "4.wav,a,test,9"
)
FOUR = ("1.wav", "2.wav", "3.wav", "4.wav")


def test_a_column_of_splits(tmp_path):
    module = _table(tmp_path, FOLDS, *FOUR)
    assert _sizes(module) == [1, 1, 2]
    assert module.inventory().parts == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("fold", "split", "train", "validation"),
    [
        (9, "official", ["1.wav", "2.wav"], ["3.wav", "4.wav"]),
        # After 9 comes 10, as numbers; after the last the first.
        ("9", "3/1/1", ["1.wav"], ["2.wav"]),
        (10, "3/1/1", ["3.wav", "4.wav"], ["1.wav"]),
    ],
)
def test_folds(tmp_path, fold, split, train, validation):
    module = _table(tmp_path, FOLDS, *FOUR, fold=fold, split=split)
    assert _ids(module, "train") == train
    assert _ids(module, "validation") == validation
    assert len(module.clips("test")) == (2 if int(fold) == 9 else 1)
    assert module.inventory().parts == ["fold 2", "fold 9", "fold 10"]
    assert module.inventory().part.tolist() == [0, 2, 1, 1]


def test_test_clips_validate_where_splits_have_no_validation(tmp_path, caplog):
    text = FOLDS.replace("dev", "train")
    module = _table(tmp_path, text, *FOUR)
    assert _ids(module, "validation") == _ids(module, "test") == ["3.wav", "4.wav"]
    assert "test clips validate" in caplog.text


def test_holdout_of_the_training_clips(tmp_path):
    rows = [f"{n}.wav,{'ab'[n % 2]},{'test' if n >= 20 else 'train'}" for n in range(24)]
    names = [f"{n}.wav" for n in range(24)]
    module = _table(tmp_path, _lines("path,label,split", *rows), *names, holdout=0.2)
    assert _sizes(module) == [16, 4, 4]
    assert module.clips("validation").targets.counts(2).tolist() == [2, 2]
    assert all(int(name.split(".")[0]) >= 20 for name in module.clips("test").ids)


def test_holdout_of_a_tree(tmp_path):
    names = [f"{label}/{n}.wav" for label in ("many", "few") for n in range(5)]
    names += [f"many/{n}.wav" for n in range(5, 15)]
    module = _tree(tmp_path, *names, holdout=0.2)
    assert _sizes(module) == [12, 4, 4]
    for split in ("validation", "test"):
        assert module.clips(split).targets.counts(2).tolist() == [1, 3]
    assert module.inventory().parts == ["train", "validation", "test"]
    everything = [name for split in ("train", "validation", "test") for name in _ids(module, split)]
    assert sorted(everything) == sorted(names)
    # The same everywhere: no seed, no order of files, no place of the folder.
    assert _ids(module, "test") == ["few/3.wav", "many/4.wav", "many/7.wav", "many/9.wav"]


@pytest.mark.parametrize(
    ("settings", "match", "error"),
    [
        ({"fold": 3}, r"init_args\.fold is 3, but \S+clips\.csv has the folds 2, 9, 10", DataError),
        ({"holdout": 0.1}, r"holdout is 0\.1, but \S+clips\.csv says which clips v", ConfigError),
    ],
)
def test_divisions_that_do_not_fit_the_set(tmp_path, settings, match, error):
    _reject(_table(tmp_path, FOLDS, *FOUR, **settings), match, error)


def test_fold_must_be_said_and_be_there(tmp_path):
    text = "path,label,fold\n1.wav,a,1\n2.wav,a,2\n"
    _reject(_table(tmp_path, text), r"fold is null, .* has the folds 1, 2: ", ConfigError)
    assert _table(tmp_path, text).inventory().parts == ["fold 1", "fold 2"]
    two = _table(tmp_path, text, "1.wav", "2.wav", fold=1, split="3/1/1")
    _reject(two, r"only the folds 1, 2: none is left for train with .*split 3/1/1")
    _reject(_table(tmp_path, "path,label\n1.wav,a\n", fold=1), r"but \S+ has no column fold")


def test_no_validation_names_the_three_ways(tmp_path):
    module = _tree(tmp_path, "a/1.wav", "b/2.wav")
    _reject(
        module,
        r"does not say which clips are for validation\. There are three ways: folders train.*"
        r"column split.*column fold.*init_args\.fold.*init_args\.holdout",
    )
    _reject(module, r"which clips are for test\. There are three ways", stage="test")


def test_splits_without_training_or_test(tmp_path):
    module = _tree(tmp_path, "test/a/1.wav")
    _reject(module, r"has no clip of the split train")
    module.setup("test")
    module = _tree(tmp_path / "other", "train/a/1.wav", "val/a/2.wav")
    module.setup("fit")
    _reject(module, r"has no clip of the split test", stage="test")


def test_holdout_too_small(tmp_path):
    _reject(_tree(tmp_path, "a/1.wav", "a/2.wav", holdout=0.1), r"holdout 0\.1 leaves no clip")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"split": "4/1"}, r"init_args\.split is '4/1'"),
        ({"split": "3/1/1"}, r"split is 3/1/1, which needs data\.init_args\.fold"),
        ({"holdout": 0.5}, r"holdout is 0\.5: give a share between 0 and 0\.5"),
        ({"holdout": 0}, r"holdout is 0: .*null"),
        ({"fold": 1}, r"data\.init_args\.fold null.*--folds"),
        ({"holdout": 0.1, "fold": 1, "csv": "c.csv"}, r"fold and data\.init_args\.holdout both"),
        ({"fold": 1}, r"init_args\.fold needs data\.init_args\.csv"),
        ({"separator": ""}, r"separator is empty"),
        ({"mean": None}, r"one of data\.init_args\.mean and data\.init_args\.std is null"),
        ({"frames": 0}, r"frames is 0"),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, match):
    with pytest.raises(ConfigError, match=match):
        AudioFolder(str(tmp_path), **{**KNOWN, **settings})


# --- origins ---------------------------------------------------------------------------------


def test_origins(tmp_path):
    text = _lines(
        "path,label,freesound_id,video_id,recording,speaker",
        "1.wav,a,12,,r1,ann",
        "2.wav,a,,abc,r2,",
        "3.wav,a,,,r3,bob",
        "4.wav,a,,,,ann",
    )
    inventory = _table(tmp_path / "own", text).inventory()
    assert list(inventory.recordings) == ["freesound:12", "youtube:abc", "own:r3", ""]
    assert list(inventory.speakers) == ["own:ann", "", "own:bob", "own:ann"]
    plain = _table(tmp_path / "own", "path,label\n1.wav,a\n").inventory()
    assert plain.recordings is plain.speakers is None


def _groups(clips=600, classes=3, seed=0):
    source = np.random.default_rng(seed)
    recordings = source.integers(200, size=clips)
    # A recording has one class, as most do, and one speaker; one in four speakers is not known.
    speakers = [f"s{recording % 50}" if recording % 4 else "" for recording in recordings]
    targets = Targets.one_each(recordings % 50 % classes)
    return Strings([f"r{recording}" for recording in recordings]), Strings(speakers), targets


def test_drawn_parts_share_no_recording_and_no_speaker():
    recordings, speakers, targets = _groups()
    parts = assign_parts(recordings, speakers, targets, (0.2, 0.1))
    for names in (recordings, speakers):
        of_name = {name: set(parts[np.array(list(names)) == name]) for name in set(names) - {""}}
        assert all(len(found) == 1 for found in of_name.values())
    for number, share in ((1, 0.2), (2, 0.1)):
        drawn = targets.take(np.flatnonzero(parts == number)).counts(3)
        np.testing.assert_allclose(drawn / targets.counts(3), share, atol=0.05)


def test_drawn_parts_do_not_depend_on_the_order_of_clips():
    recordings, speakers, targets = _groups()
    parts = assign_parts(recordings, speakers, targets, (0.2, 0.1))
    order = np.random.default_rng(1).permutation(len(parts))
    columns = (column.take(order) for column in (recordings, speakers, targets))
    np.testing.assert_array_equal(assign_parts(*columns, (0.2, 0.1)), parts[order])


def test_ties_through_others_hold():
    # a and b share a speaker, b and c a recording: all three are one group.
    recordings, speakers = Strings(["a", "b", "b", "c"]), Strings(["x", "x", "y", "y"])
    targets = Targets.one_each([0, 0, 0, 0])
    assert len(set(assign_parts(recordings, speakers, targets, (0.4, 0.4)))) == 1
    apart = assign_parts(recordings, Strings(["x", "x", "", ""]), targets, (0.25,))
    assert apart.tolist() == [0, 0, 0, 1]


def test_drawn_parts_of_clips_without_or_with_several_classes():
    names = Strings([f"{n}" for n in range(100)])
    assert np.bincount(assign_parts(names, None, Targets.none(100), (0.1, 0.2))).tolist() == [
        *(70, 10, 20)
    ]
    # Every clip has class 0, ten of them class 1 as well: the rarer class is dealt out evenly.
    several = Targets.several([[0, 1] if n % 10 == 0 else [0] for n in range(100)])
    parts = assign_parts(names, None, several, (0.2,))
    assert (parts[::10] == 1).sum() == 2


# --- statistics ------------------------------------------------------------------------------


@pytest.fixture
def noises(tmp_path):
    """Four clips of 0.5 s, the first two for training."""
    source = np.random.default_rng(0)
    for n in range(4):
        soundfile.write(tmp_path / f"{n}.wav", 0.1 * source.standard_normal(8000), 16_000)
    rows = [f"{n}.wav,x,{'train' if n < 2 else 'test'}" for n in range(4)]
    (tmp_path / "clips.csv").write_text(_lines("path,label,split", *rows))
    return tmp_path


def _unmeasured(root, **settings):
    common = {"frames": 20, "num_workers": 0, "cache_dir": str(root / "cache")}
    return AudioFolder(str(root), csv="clips.csv", **{**common, **settings})


def _kept(root):
    return sorted((root / "cache" / "statistics").glob("*"))


def test_statistics_are_those_of_the_training_clips(noises):
    module = _unmeasured(noises)
    module.prepare_data()
    table = module.clips("train")
    waveforms = torch.stack([table.sounds.load(row) for row in range(2)])
    front_end = LogMel(frames=20, mean=0.0, std=0.5)
    cells = front_end(waveforms, torch.tensor([8000, 8000])).log_mel.double()
    assert module.info.mean == pytest.approx(float(cells.mean()), abs=1e-6)
    assert module.info.std == pytest.approx(float(cells.std(correction=0)), abs=1e-6)
    assert (module.mean, module.std) == (module.info.mean, module.info.std)


def test_statistics_are_measured_once_and_again_when_a_sound_changes(noises):
    first = _unmeasured(noises).info
    (entry,) = _kept(noises)
    entry.write_text(json.dumps({"mean": -1.0, "std": 2.0}))
    assert (_unmeasured(noises).info.mean, _unmeasured(noises).info.std) == (-1.0, 2.0)
    # Test clips do not count, other lengths and training clips do.
    os.utime(noises / "3.wav", (0, 0))
    assert _unmeasured(noises).info.mean == -1.0
    assert _unmeasured(noises, frames=10).info.mean != -1.0
    os.utime(noises / "1.wav", (0, 0))
    assert _unmeasured(noises).info.mean == first.mean
    entry.write_text("{")
    assert _unmeasured(noises).info.mean == first.mean


def test_statistics_without_a_cache(noises):
    assert _unmeasured(noises, cache_dir="").info == _unmeasured(noises).info


def test_statistics_are_not_measured_where_they_are_given(noises):
    (noises / "0.wav").write_bytes(b"no sound")
    module = _unmeasured(noises, mean=-3.0, std=2.0)
    module.prepare_data()
    assert (module.info.mean, module.info.std) == (-3.0, 2.0)
    assert not _kept(noises)


def test_statistics_with_a_broken_clip(noises):
    (noises / "0.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"0\.wav"):
        _unmeasured(noises).prepare_data()
    alone = _unmeasured(noises, on_error="skip").info
    whole = _table(noises, "path,label,split\n1.wav,x,train\n2.wav,x,test\n", mean=None, std=None)
    whole.frames = 20
    assert alone.mean == whole.info.mean


def test_statistics_of_silence(noises):
    for n in range(2):
        soundfile.write(noises / f"{n}.wav", np.zeros(8000), 16_000)
    with pytest.raises(DataError, match="no spread to normalise by"):
        _unmeasured(noises).prepare_data()


def test_a_run_measures_and_writes_its_label_map(noises, tmp_path):
    run = tmp_path / "run"
    settings = {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_checkpointing": False,
        },
        "model": {
            "class_path": "peas.tasks.Classification",
            "init_args": {"size": "tiny", "pretrained": None, "patch": [16, 16]},
        },
        "data": {
            "class_path": "peas.data.AudioFolder",
            "init_args": {
                "root": str(noises),
                "csv": "clips.csv",
                "frames": 20,
                "batch_size": 2,
                "num_workers": 0,
                "cache_dir": str(noises / "cache"),
                "labels_file": "order.txt",
            },
        },
    }
    (noises / "order.txt").write_text("silence\nx\n")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    fit.run(["fit", "--config", str(tmp_path / "run.yaml")])
    assert (run / "labels.csv").read_text() == "index,name,training_clips\n0,silence,0\n1,x,2\n"
    assert len(_kept(noises)) == 1
    # The map of a run gives the same order to another set.
    again = _unmeasured(noises, labels_file=str(run / "labels.csv"))
    assert again.labels == ["silence", "x"]


# --- size ------------------------------------------------------------------------------------


def test_a_million_rows_open_in_seconds(tmp_path):
    rows = 1_000_000
    number = np.arange(rows)
    names = pc.binary_join_element_wise("audio/clip", pa.array(number).cast(pa.string()), "")
    columns = {
        "path": names,
        "label": number % 500,
        "fold": number % 7,
        "freesound_id": number // 3,
    }
    pa.csv.write_csv(pa.table(columns), tmp_path / "clips.csv")
    module = AudioFolder(str(tmp_path), csv="clips.csv", fold=3, **KNOWN)
    since = time.process_time()
    inventory = module.inventory()
    assert time.process_time() - since < 5
    assert (len(inventory.table), len(module.labels), len(inventory.parts)) == (rows, 500, 7)
    assert inventory.recordings[999_999] == "freesound:333333"
    _reject(module, r"1000000 of the 1000000 files .* audio/clip0, ")


# --- real recordings -------------------------------------------------------------------------


def test_urbansound8k_as_it_is(shared, tmp_path):
    root = shared / "data" / "urbansound8k_part"
    module = AudioFolder(str(root), csv="clips.csv", fold=10, **KNOWN)
    module.setup("fit")
    assert module.labels[:2] == ["air_conditioner", "car_horn"]
    assert len(module.labels) == 10
    sizes = _sizes(module)
    assert sizes[0] + sizes[2] == 2955
    inventory = module.inventory()
    assert inventory.parts == ["fold 1", "fold 2", "fold 3", "fold 10"]
    assert inventory.recordings[0] == "freesound:101415"
    batch = next(iter(module.val_dataloader()))
    assert batch["waveform"].shape[0] == 32
