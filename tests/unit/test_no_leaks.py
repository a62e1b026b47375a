"""What is pretrained on here shares no recording with what it is evaluated on: real id lists."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from peas.data.checks.clips import Checks
from peas.data.checks.findings import of_two_sets
from peas.data.columns import Strings
from peas.data.esc50 import ESC50
from peas.data.folder.module import AudioFolder


def shared_recordings(pretraining, evaluation):
    """Recordings, by name, that both inventories hold; sounds are not opened."""
    inventories = (pretraining, evaluation)
    checks = tuple(Checks.empty(len(one.table)) for one in inventories)
    found = of_two_sets(("pretraining", "evaluation"), inventories, checks)
    return sorted({name for finding in found for name in finding.shared})


@pytest.fixture(scope="module")
def pretraining(shared):
    root = shared / "data" / "urbansound8k_part"
    return AudioFolder(str(root), csv="clips.csv", mean=0.0, std=1.0, cache_dir="").inventory()


@pytest.fixture(scope="module")
def evaluation(shared):
    return ESC50(str(shared / "data" / "esc10"), esc10=True, cache_dir="").inventory()


def test_pretraining_and_evaluation_share_no_recording(pretraining, evaluation):
    assert (len(pretraining.table), len(evaluation.table)) == (2955, 400)
    for inventory in (pretraining, evaluation):
        names = list(inventory.recordings)
        # Every clip tells its recording; one that told none could not be found to be shared.
        assert all(name.startswith("freesound:") and name[10:].isdigit() for name in names)
    assert shared_recordings(pretraining, evaluation) == []


def test_a_shared_recording_is_found(pretraining, evaluation):
    names = list(pretraining.recordings)
    planted = evaluation.recordings[123]
    names[-1] = planted
    leaky = replace(pretraining, recordings=Strings(names))
    assert shared_recordings(leaky, evaluation) == [planted]


def test_names_of_files_agree_with_the_recordings(pretraining, evaluation, shared):
    """The column, the file name and ESC's own column are three tellings of one fact."""
    for name, recording in zip(pretraining.table.ids, pretraining.recordings, strict=True):
        assert name.rpartition("/")[2].split("-")[0] == recording.removeprefix("freesound:")
    with (shared / "data" / "esc10" / "meta" / "esc50.csv").open(newline="") as lines:
        column = {row["filename"]: row["src_file"] for row in csv.DictReader(lines)}
    for name, recording in zip(evaluation.table.ids, evaluation.recordings, strict=True):
        assert column[name] == recording.removeprefix("freesound:")


def test_recordings_of_a_fold_of_esc10_are_in_no_other(evaluation):
    folds = {}
    for recording, part in zip(evaluation.recordings, evaluation.part, strict=True):
        folds.setdefault(recording, set()).add(int(part))
    assert {len(found) for found in folds.values()} == {1}


def test_the_held_out_fold_shares_no_recording_with_the_others(pretraining):
    held = np.array(pretraining.parts)[pretraining.part] == "fold 10"
    names = np.array(list(pretraining.recordings))
    assert held.sum() == 824
    assert not set(names[held]) & set(names[~held])


def test_the_teachers_maps_are_of_no_evaluated_clip(pretraining, evaluation, shared):
    folder = shared / "data" / "teacher_features"
    with np.load(folder / "urbansound8k_part.npz") as maps:
        ids = [str(name) for name in maps["ids"]]
        assert len(maps["features"]) == len(ids)
    assert sorted(ids) == sorted(pretraining.table.ids)
    recordings = {f"freesound:{name.rpartition('/')[2].split('-')[0]}" for name in ids}
    assert not recordings & set(evaluation.recordings)
    assert not set(ids) & set(evaluation.table.ids)
    # ESC-10 has one vector a clip, for the row of the teacher alone: nothing to distil from.
    with np.load(folder / "esc10.npz") as alone:
        assert "features" not in alone
        assert alone["embedding"].ndim == 2
