import csv

import numpy as np
import pytest
import soundfile
import torch

from peas.data.esc50 import ESC50
from peas.errors import DataError

HEAD = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]


def _row(fold, target, category, esc10=False, take="A"):
    return [f"{fold}-1-{take}-{target}.wav", fold, target, category, esc10, 1, take]


def _write(root, rows, head=HEAD, audio=True):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "audio").mkdir(exist_ok=True)
    with (root / "meta" / "esc50.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([head, *rows])
    for row in rows if audio else []:
        soundfile.write(root / "audio" / row[0], np.full(1600, 0.1), 16_000)
    return root


@pytest.fixture
def rows():
    kinds = ((0, "dog", True), (3, "cow", False), (49, "hand_saw", False), (10, "rain", True))
    return [_row(fold, *kind) for fold in range(1, 6) for kind in kinds]


def _folds(table):
    return {int(name[0]) for name in table.ids}


def test_official_split(tmp_path, rows):
    module = ESC50(_write(tmp_path, rows), fold=2)
    assert _folds(module.clips("train")) == {1, 3, 4, 5}
    assert _folds(module.clips("validation")) == _folds(module.clips("test")) == {2}
    assert module.clips("test").targets.classes.tolist() == [0, 3, 49, 10]
    info = module.info
    assert len(info.labels) == 50
    assert (info.labels[0], info.labels[49]) == ("dog", "hand_saw")
    assert (info.mean, info.std, info.frames) == (-6.6268077, 5.358466, 512)


@pytest.mark.parametrize(("fold", "following"), [(1, 2), (5, 1)])
def test_honest_split(tmp_path, rows, fold, following):
    module = ESC50(_write(tmp_path, rows), fold=fold, split="3/1/1")
    assert _folds(module.clips("test")) == {fold}
    assert _folds(module.clips("validation")) == {following}
    assert _folds(module.clips("train")) == {1, 2, 3, 4, 5} - {fold, following}


def test_esc10_is_renumbered_in_order(tmp_path, rows):
    module = ESC50(_write(tmp_path, rows), esc10=True)
    assert module.info.labels == ["dog", "rain"]
    assert module.clips("test").targets.classes.tolist() == [0, 1]
    assert len(module.clips("train")) == 8


def test_own_categories(tmp_path):
    rows = [_row(fold, *kind) for fold in (1, 2) for kind in ((1, "hum"), (0, "buzz"))]
    module = ESC50(_write(tmp_path, rows))
    assert module.info.labels == ["buzz", "hum"]


def _reject(root, match, **settings):
    module = ESC50(root, **settings)
    with pytest.raises(DataError, match=match):
        module.setup("fit")


def test_missing_root_says_what_to_fetch(tmp_path):
    _reject(
        tmp_path / "nowhere",
        r"nowhere/meta/esc50\.csv.*github\.com/karolpiczak/ESC-50.*nowhere/audio/",
    )


@pytest.mark.parametrize("column", ["filename", "fold", "target", "category"])
def test_missing_column(tmp_path, rows, column):
    place = HEAD.index(column)
    head = [name for name in HEAD if name != column]
    cut = [row[:place] + row[place + 1 :] for row in rows]
    _reject(_write(tmp_path, cut, head, audio=False), rf"esc50\.csv has no column {column}")


def test_esc10_column_is_needed_for_esc10_only(tmp_path, rows):
    root = _write(tmp_path, rows)
    head = [name for name in HEAD if name != "esc10"]
    _write(root, [row[:4] + row[5:] for row in rows], head, audio=False)
    assert len(ESC50(root).clips("test")) == 4
    _reject(root, "no column esc10", esc10=True)


def test_unknown_fold_in_the_settings(tmp_path, rows):
    _reject(_write(tmp_path, rows), r"data\.init_args\.fold is 7", fold=7)


def test_unknown_fold_in_the_table(tmp_path, rows):
    _reject(_write(tmp_path, [*rows, _row(6, 0, "dog")]), r"line 22: fold 6")


def test_fold_that_is_no_number(tmp_path, rows):
    _reject(_write(tmp_path, [*rows, _row("x", 0, "dog")]), r"line 22: .*'x'")


def test_duplicate_file(tmp_path, rows):
    _reject(_write(tmp_path, [*rows, rows[3]]), r"1-1-A-10\.wav more than once")


def test_listed_file_not_there(tmp_path, rows):
    root = _write(tmp_path, rows)
    for row in rows[:5]:
        (root / "audio" / row[0]).unlink()
    _reject(root, r"5 of the 20 files .* 1-1-A-0\.wav, .* and 2 more")


def test_target_against_category(tmp_path, rows):
    rows.append(_row(1, 5, "dog"))
    _reject(_write(tmp_path, rows), r"line 22: target 5 contradicts category 'dog'.*'cat'")


def test_own_target_against_category(tmp_path):
    rows = [_row(1, 0, "hum"), _row(2, 1, "buzz"), _row(3, 0, "buzz")]
    _reject(_write(tmp_path, rows), r"line 4: target 0 contradicts category 'buzz'")


def test_own_numbers_with_a_gap(tmp_path):
    rows = [_row(1, 0, "hum"), _row(2, 2, "buzz")]
    _reject(_write(tmp_path, rows), r"numbered 0 to 1, but the numbers are 0, 2")


def test_no_clips(tmp_path):
    _reject(_write(tmp_path, []), r"esc50\.csv lists no clips: 0 clips, 0 classes")


def test_no_esc10_clips(tmp_path):
    _reject(_write(tmp_path, [_row(1, 3, "cow")]), "no clip of ESC-10", esc10=True)


def test_no_fold_left_for_training(tmp_path):
    rows = [_row(1, 0, "dog"), _row(2, 0, "dog")]
    _reject(_write(tmp_path, rows), "none is left for train", split="3/1/1")


def test_real_recordings(shared, tmp_path):
    module = ESC50(
        shared / "data" / "esc10", esc10=True, num_workers=0, cache_dir=str(tmp_path / "cache")
    )
    module.setup("fit")
    assert len(module.info.labels) == 10
    assert [len(module.clips(split)) for split in ("train", "validation")] == [320, 80]
    assert sorted(set(module.clips("train").targets.classes)) == list(range(10))
    batch = next(iter(module.val_dataloader()))
    assert batch["waveform"].dtype == torch.float32
    assert batch["length"].median() == pytest.approx(80_000, rel=0.01)
