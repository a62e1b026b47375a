"""The scripts in `examples/` do what their first lines say."""

import contextlib
import csv
import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peas.data.audioset.module import AudioSet
from peas.data.folder.module import AudioFolder
from peas.errors import PeasError

EXAMPLES = Path(__file__).parents[2] / "examples"


def _script(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(name, *arguments):
    """What a script prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        _script(name).main([str(argument) for argument in arguments])
    return text.getvalue()


def _refused(name, *arguments):
    """What a script ends with."""
    with pytest.raises((SystemExit, PeasError)) as caught:
        _run(name, *arguments)
    return str(caught.value)


def _tone(file, seconds, seed):
    source = np.random.default_rng(seed)
    pitch = source.uniform(200, 4000)
    time = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * time), 16_000)


def _rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_every_script_says_how_it_is_run(name):
    said = _script(name).__doc__
    assert f"\n    python examples/{name}.py " in said.partition("Commands:\n")[2]


def test_a_script_runs_by_itself_and_ends_with_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "fsdd.py", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "has no file such as 7_jackson_32.wav" in done.stderr
    assert "Traceback" not in done.stderr


# --- spoken digits ---------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    """Two digits of three speakers, seven times each."""
    (tmp_path / "recordings").mkdir()
    for digit in (3, 8):
        for speaker in ("theo", "ann", "bob"):
            for index in range(7):
                file = tmp_path / "recordings" / f"{digit}_{speaker}_{index}.wav"
                _tone(file, 0.1, seed=digit)
    return tmp_path


def test_fsdd_csv(digits):
    (digits / "recordings" / "readme.wav").touch()
    said = _run("fsdd", digits)
    assert "42 clips, 30 in the official test set" in said
    assert "left out 1 files" in said
    rows = _rows(digits / "fsdd.csv")
    assert rows[0] == {
        "path": "recordings/3_ann_0.wav",
        "label": "3",
        "speaker": "ann",
        "fold": "1",
        "split": "test",
    }
    settings = {"csv": "fsdd.csv", "mean": 0.0, "std": 1.0, "cache_dir": ""}
    alone = AudioFolder(str(digits), fold=3, **settings)
    assert {name.split("_")[1] for name in alone.clips("test").ids} == {"theo"}
    assert {name.split("_")[1] for name in alone.clips("train").ids} == {"ann", "bob"}
    official = AudioFolder(str(digits), **settings)
    assert [len(official.clips(split)) for split in ("train", "test")] == [12, 30]
    assert set(official.inventory().speakers) == {
        f"{digits.name}:{speaker}" for speaker in ("ann", "bob", "theo")
    }


def test_fsdd_real(shared, tmp_path):
    out = tmp_path / "fsdd.csv"
    assert "3000 clips, 300 in the official test set" in _run(
        "fsdd", shared / "data" / "fsdd", "--out", out
    )
    module = AudioFolder(
        str(shared / "data" / "fsdd"), csv=str(out), fold=6, mean=0.0, std=1.0, cache_dir=""
    )
    module.setup("fit")
    assert module.labels == list("0123456789")
    assert [len(module.clips(split)) for split in ("train", "test")] == [2500, 500]
    # 8 kHz becomes 16 kHz.
    native = soundfile.info(shared / "data" / "fsdd" / module.clips("test").ids[0])
    assert len(module.clips("test").sounds.load(0)) == 2 * native.frames


# --- linear baseline -------------------------------------------------------------------------


def test_linear_baseline(digits):
    _run("fsdd", digits)
    said = _run("linear_baseline", "folder", digits, "--csv", "fsdd.csv", "--folds", "1-3")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    # A digit is a tone here, the same for all speakers.
    assert rows[2:] == [
        *([f"fold {fold}", "28", "14", "100.0%"] for fold in (1, 2, 3)),
        ["mean accuracy", "", "", "100.0%"],
    ]
    assert "| split | 12 | 30 | 100.0% |" in _run(
        "linear_baseline", "folder", digits, "--csv", "fsdd.csv"
    )


def test_linear_baseline_of_nothing(tmp_path):
    assert "there is no folder" in _refused("linear_baseline", "folder", tmp_path / "no")


# --- mixtures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def esc(tmp_path_factory):
    """Three folds of two classes of ESC-10 and one other: four recordings a fold, one cut twice."""
    root = tmp_path_factory.mktemp("esc")
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    kinds = ((0, "dog", True), (10, "rain", True), (49, "hand_saw", False))
    rows = []
    for fold in (1, 2, 3):
        for target, category, esc10 in kinds:
            for take, recording in (("A", fold), ("A", 10 + fold + target), ("B", fold)):
                name = f"{fold}-{recording}-{take}-{target}.wav"
                rows.append([name, fold, target, category, esc10])
                _tone(root / "audio" / name, 0.5, seed=len(rows))
    with (root / "meta" / "esc50.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["filename", "fold", "target", "category", "esc10"], *rows])
    return root


@pytest.fixture(scope="module")
def mixtures(esc, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixtures")
    _run("esc10_mixtures", esc, out, "--per-fold", 4, "--test-fold", 2)
    return out


def test_mixtures_cross_neither_folds_nor_recordings_nor_classes(mixtures):
    rows = _rows(mixtures / "mixtures.csv")
    assert len(rows) == 12
    pairs = set()
    for row in rows:
        (fold, recording, _, end), (other_fold, other, _, other_end) = (
            row[clip].split("-") for clip in ("first", "second")
        )
        assert fold == other_fold == row["fold"]
        assert recording != other
        assert {end, other_end} == {"0.wav", "10.wav"}
        assert -5 <= float(row["gain_db"]) <= 5
        pairs.add(frozenset((row["first"], row["second"])))
    assert len(pairs) == 12
    assert len({row["gain_db"] for row in rows}) > 6


def test_mixtures_are_what_the_audioset_module_reads(mixtures):
    module = AudioSet(
        str(mixtures), subset="as20k", class_labels="class_labels_indices.csv", cache_dir=""
    )
    module.setup("fit")
    assert module.labels == ["dog", "rain"]
    train, test = module.clips("train"), module.clips("test")
    assert (len(train), len(test)) == (8, 4)
    assert all(name.startswith("mix2") and len(name) == 11 for name in test.ids)
    assert train.targets.sizes.tolist() == [2] * 8
    waveform = train.sounds.load(0)
    assert waveform.shape == (8000,)
    assert float(waveform.abs().max()) == pytest.approx(0.9, abs=1e-3)


def test_both_clips_are_heard_at_the_difference_that_is_told(esc, mixtures):
    """The mixture is a sum of its clips with the weights that the table gives."""
    for row in _rows(mixtures / "mixtures.csv"):
        total = soundfile.read(mixtures / "audio" / f"{row['id']}.flac")[0]
        clips = [soundfile.read(esc / "audio" / row[clip])[0] for clip in ("first", "second")]
        weights = np.linalg.lstsq(np.stack(clips, axis=1), total, rcond=None)[0]
        loud = [
            weight * np.sqrt(np.mean(clip[clip != 0] ** 2))
            for weight, clip in zip(weights, clips, strict=True)
        ]
        assert 20 * np.log10(loud[0] / loud[1]) == pytest.approx(float(row["gain_db"]), abs=0.05)


def test_mixtures_follow_from_the_seed(esc, mixtures, tmp_path):
    arguments = ("--per-fold", 4, "--test-fold", 2)
    _run("esc10_mixtures", esc, tmp_path / "again", *arguments)
    _run("esc10_mixtures", esc, tmp_path / "other", *arguments, "--seed", 1, "--format", "wav")
    names = ["mixtures.csv", "eval_segments.csv", "audio/mix20000000.flac"]
    for name in names:
        assert (mixtures / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert _rows(mixtures / "mixtures.csv") != _rows(tmp_path / "other" / "mixtures.csv")
    assert (tmp_path / "other" / "audio" / "mix20000000.wav").is_file()


def test_more_mixtures_than_pairs(esc, tmp_path):
    said = _refused("esc10_mixtures", esc, tmp_path, "--per-fold", 99, "--test-fold", 1)
    # Three clips of either class, of which two and two are of one recording.
    assert "fold 1 allows 5 mixtures: give --per-fold 5 or less" in said


def test_mixtures_of_an_unknown_fold(esc, tmp_path):
    said = _refused("esc10_mixtures", esc, tmp_path, "--test-fold", 5)
    assert "--test-fold is 5: there is fold 1, fold 2, fold 3" in said


def _metrics(run, name, rows):
    folder = run / "logs" / name
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "val/valid_mse", "val/baseline_mse"])
        writer.writerows(rows)


def test_loss_curves_go_on_over_the_starts_of_a_run(tmp_path):
    _metrics(tmp_path / "run", "version_0", [[0, 9, 0.5, 1.0], [0, 9, "", ""]])
    _metrics(tmp_path / "run", "version_1", [[1, 19, 0.2, 0.8]])
    script = _script("loss_curves")
    assert script.read_run(tmp_path / "run") == {
        "masked patches reconstructed": [(1, 0.5), (2, 0.25)]
    }
    _run("loss_curves", f"A={tmp_path / 'run'}", "--out", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_loss_curves_need_a_run_of_pretraining(tmp_path):
    said = _refused("loss_curves", f"A={tmp_path}", "--out", tmp_path / "curves.png")
    assert "figures of pretraining" in said
