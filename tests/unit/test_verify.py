"""`peas data verify` on sets that are broken as real ones are: what it says, and how it exits."""

import csv
import io
import json
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile

from peas.__main__ import main
from peas.cli.data import verify
from peas.cli.data.sets import Bar, DataSet
from peas.cli.verbs import dispatch
from peas.data.checks.clips import Checks, Issue
from peas.data.checks.findings import of_clips
from peas.data.checks.report import Report, table, write_json
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.module import ClipDataModule
from peas.errors import ConfigError, DataError

RATE = 16_000


def plain(text):
    """Text without its line ends: where it wraps depends on the length of the paths in it."""
    return " ".join(text.split())


KINDS = ((0, "dog"), (10, "rain"))


def noise(seed, samples=RATE // 4):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples)


def encoded(samples, rate=RATE, format="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


class Set:
    """A small set in ESC-50's layout: 2 classes of 2 clips in 3 folds, all different."""

    def __init__(self, root, seed=0, first=100):
        self.root = root
        self.rows = []
        (root / "audio").mkdir(parents=True)
        for fold in (1, 2, 3):
            for target, name in KINDS:
                for take in "AB":
                    clip = f"{fold}-{first + len(self.rows)}-{take}-{target}.wav"
                    self.rows.append([clip, fold, target, name])
                    self.put(len(self.rows) - 1, encoded(noise(1000 * seed + len(self.rows))))
        self.write()

    def write(self):
        (self.root / "meta").mkdir(exist_ok=True)
        with (self.root / "meta" / "esc50.csv").open("w", newline="") as lines:
            csv.writer(lines).writerows([["filename", "fold", "target", "category"], *self.rows])

    def name(self, row):
        return self.rows[row][0]

    def path(self, row):
        return self.root / "audio" / self.name(row)

    def put(self, row, data):
        self.path(row).write_bytes(data)

    def rename(self, row, name):
        self.path(row).rename(self.root / "audio" / name)
        self.rows[row][0] = name
        self.write()


@pytest.fixture
def set_(tmp_path):
    return Set(tmp_path / "set")


def check(root, *options, workers=0):
    """Exit status and report."""
    out = root.parent / "out"
    arguments = ["--workers", str(workers), "--out", str(out), *options]
    status = main(["data", "verify", "esc50", str(root), *arguments])
    report = json.loads((out / "report.json").read_text())
    report["by_kind"] = {finding["kind"]: finding for finding in report["findings"]}
    return status, report


def test_a_set_without_fault(set_, capsys):
    status, report = check(set_.root)
    # 48 of ESC-50's 50 classes are not there.
    assert (status, report["status"], list(report["by_kind"])) == (0, "warnings", ["empty_class"])
    assert check(set_.root, "--strict")[0] == 1
    assert (report["set"], report["root"]) == ("esc50", str(set_.root))
    assert report["command"].startswith(f"peas data verify esc50 {set_.root} --workers 0")
    assert (report["clips"], report["absent"], report["hours"]) == (12, 0, round(3 / 3600, 4))
    assert report["rates"] == {"16000": 12}
    assert report["channels"] == {"1": 12}
    assert report["lengths"] == {"min": 0.25, "median": 0.25, "mean": 0.25, "max": 0.25}
    assert report["parts"]["fold 2"] == {
        "clips": 4,
        "unreadable": 0,
        "hours": round(1 / 3600, 4),
        "classes": {"dog": 2, "rain": 2},
    }
    assert len(report["labels"]) == 50
    text = (set_.root.parent / "out" / "report.txt").read_text()
    shown = capsys.readouterr().out
    assert text in shown
    assert "fold 3      4           0   0.00        2  2 to 2, median 2" in text
    assert "no errors, 1 kind of warnings" in text


def cut_ogg(data):
    sound = encoded(noise(9, 4 * RATE), format="OGG", subtype="VORBIS")
    return sound[: int(0.7 * len(sound))]


def cut_flac(data):
    sound = encoded(noise(9), format="FLAC")
    return sound[: len(sound) // 2]


def promising(data):
    return data[:40] + (10**6).to_bytes(4, "little") + data[44:]


def with_nan(data):
    samples = noise(9)
    samples[7] = np.nan
    return encoded(samples, subtype="FLOAT")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (cut_ogg, "truncated"),
        (cut_flac, "undecodable"),
        (promising, "truncated"),
        (with_nan, "nan"),
        (lambda data: b"", "undecodable"),
        (lambda data: b"<html>404</html>", "undecodable"),
    ],
)
def test_a_clip_without_usable_sound_is_an_error(set_, capsys, spoil, kind):
    set_.put(5, spoil(set_.path(5).read_bytes()))
    status, report = check(set_.root)
    assert (status, report["status"]) == (1, "errors")
    found = report["by_kind"][kind]
    assert (found["severity"], found["count"], found["unit"]) == ("error", 1, "clips")
    assert (found["names"], found["places"]) == ([set_.name(5)], ["fold 2"])
    assert set_.name(5) in found["messages"][0]
    assert report["parts"]["fold 2"]["unreadable"] == 1
    shown, errors = capsys.readouterr()
    assert set_.name(5) in plain(shown)
    assert found["advice"].split(";")[0] in plain(shown)
    # The report has said it: no second message.
    assert errors == ""


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(noise(9, 399)), "short"),
        (encoded(np.zeros(4_000)), "silent"),
        (encoded((4 * noise(9)).clip(-1, 1)), "clipped"),
        (encoded(noise(9, 2_000), 8_000), "rate"),
        (encoded(np.stack([noise(9), noise(8)], axis=1)), "channels"),
    ],
)
def test_an_odd_clip_is_a_warning(set_, data, kind):
    set_.put(5, data)
    status, report = check(set_.root)
    assert (status, report["status"]) == (0, "warnings")
    assert set(report["by_kind"]) == {kind, "empty_class"}
    found = report["by_kind"][kind]
    assert (found["severity"], found["names"]) == ("warning", [set_.name(5)])
    assert check(set_.root, "--strict")[0] == 1


def test_missing_files(set_, capsys):
    for row in (0, 1, 2, 3, 7):
        set_.path(row).unlink()
    status, report = check(set_.root)
    assert status == 1
    assert report["by_kind"]["missing"]["names"] == [set_.name(row) for row in (0, 1, 2, 3, 7)]
    # The fold is empty only of sound: its clips still count.
    assert report["parts"]["fold 1"]["clips"] == report["parts"]["fold 1"]["unreadable"] == 4
    assert "and 2 more" in plain(capsys.readouterr().out)


def test_one_recording_in_two_folds(set_):
    set_.rename(0, "1-777-A-0.wav")
    set_.rename(6, "2-777-B-10.wav")
    status, report = check(set_.root)
    assert status == 1
    found = report["by_kind"]["shared_recording"]
    assert found["names"] == ["1-777-A-0.wav", "2-777-B-10.wav"]
    assert found["places"] == ["fold 1", "fold 2"]
    assert found["shared"] == ["freesound:777"] * 2
    set_.rename(6, "2-9-B-10.wav")
    set_.rename(1, "1-777-B-0.wav")
    # Both in fold 1.
    assert check(set_.root)[0] == 0


def test_copies(set_, capsys):
    # The same sound in another container, in two folds; and twice in the third.
    samples, _ = soundfile.read(set_.path(0))
    set_.put(6, encoded(samples, format="FLAC"))
    set_.put(9, set_.path(8).read_bytes())
    status, report = check(set_.root)
    assert status == 1
    shared, doubled = (report["by_kind"][kind] for kind in ("shared_audio", "doubled_audio"))
    assert (shared["severity"], shared["names"]) == ("error", [set_.name(0), set_.name(6)])
    assert (doubled["severity"], doubled["names"]) == ("warning", [set_.name(8), set_.name(9)])
    shown = plain(capsys.readouterr().out)
    assert "error: 2 clips with the same sound in several parts (1 sound)" in shown
    assert f"{set_.name(0)} (fold 1), {set_.name(6)} (fold 2)" in shown
    for row in (6, 7):
        set_.put(row, encoded(np.zeros(4_000)))
    status, report = check(set_.root)
    assert (status, set(report["by_kind"])) == (0, {"doubled_audio", "silent", "empty_class"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (lambda rows: rows[3], "more than once"),
        (lambda rows: ["3-9-A-0.wav", 3, 0, "rain"], "contradicts category"),
        (lambda rows: ["3-9-A-0.wav", "x", 0, "dog"], "line 14: "),
    ],
)
def test_contradicting_tables_are_one_error_and_the_files_are_checked(set_, capsys, row, said):
    set_.rows.append(row(set_.rows))
    set_.write()
    set_.put(5, b"broken")
    set_.put(6, set_.path(0).read_bytes())
    status, report = check(set_.root)
    assert status == 1
    tables = report["by_kind"]["tables"]
    assert (tables["unit"], tables["count"], tables["names"]) == ("faults", 1, [])
    assert said in tables["messages"][0]
    assert report["by_kind"]["undecodable"]["names"] == [f"audio/{set_.name(5)}"]
    # Without folds a copy is nothing worse than a copy.
    assert report["by_kind"]["doubled_audio"]["count"] == 2
    assert "without splits and classes" in report["notes"][0]
    assert said in plain(capsys.readouterr().out)


def test_no_set_at_all(tmp_path, capsys):
    status = main(["data", "verify", "esc50", str(tmp_path / "nowhere"), "--workers", "0"])
    assert status == 1
    shown, errors = capsys.readouterr()
    assert errors.startswith("peas data: error: there is no ")
    assert "github.com/karolpiczak/ESC-50" in errors
    assert shown == ""


def test_the_splits_that_can_be_had_are_checked(tmp_path):
    for clip in range(6):
        (tmp_path / "set" / "bed").mkdir(parents=True, exist_ok=True)
        samples = noise(clip if clip < 5 else 0)
        soundfile.write(tmp_path / "set" / "bed" / f"{clip:08x}_nohash_0.wav", samples, RATE)

    class Half(ClipDataModule):
        labels = ("bed",)

        def clips(self, split):
            if split == "validation":
                raise DataError("validation_list.txt is not there")
            names = [
                f"bed/{clip:08x}_nohash_0.wav" for clip in range(6) if clip % 2 == (split == "test")
            ]
            return self.files(names, names, Targets.one_each([0] * len(names)))

    module = Half(str(tmp_path / "set"), batch_size=1, mean=0.0, std=1.0, frames=64, cache_dir="")
    with Bar() as bar:
        report = verify.check(DataSet("half", module, "peas ...", "", {}), [], 0, bar)
    found = {finding.kind: finding for finding in report.findings}
    assert found["tables"].messages == ["validation_list.txt is not there"]
    assert found["shared_audio"].count == 2
    assert report.inventory.parts == ["train", "test"]
    assert "train, test" in report.inventory.notes[0]


@pytest.mark.parametrize("turned", [False, True])
def test_against_another_set(tmp_path, capsys, turned):
    ours, theirs = Set(tmp_path / "ours"), Set(tmp_path / "theirs", seed=1, first=500)
    name = {True: f"esc50={tmp_path / 'ours'}", False: f"esc50={tmp_path / 'theirs'}"}[turned]
    root = (theirs if turned else ours).root
    status, report = check(root, "--against", name)
    assert (status, set(report["by_kind"])) == (0, {"empty_class"})
    assert report["against"] == [name]

    theirs.rename(0, f"1-{ours.name(4).split('-')[1]}-C-0.wav")
    theirs.put(7, ours.path(2).read_bytes())
    theirs.put(8, b"broken")
    status, report = check(root, "--against", name)
    assert status == 1
    found = report["by_kind"]
    assert set(found["against_recording"]["names"]) == {ours.name(4), theirs.name(0)}
    assert set(found["against_audio"]["names"]) == {ours.name(2), theirs.name(7)}
    assert len(set(found["against_audio"]["places"])) == 2
    assert all("esc50=" in place for place in found["against_audio"]["places"])
    kind = "undecodable" if turned else "against_unread"
    assert found[kind]["names"] == [theirs.name(8)]
    assert f"compared with {name}" in plain(capsys.readouterr().out)


def test_both_sets_are_read_with_the_same_channels(tmp_path):
    ours, theirs = Set(tmp_path / "ours"), Set(tmp_path / "theirs", seed=1, first=500)
    ours.put(2, encoded(noise(90)))
    theirs.put(7, encoded(np.stack([noise(90), noise(91)], axis=1)))
    against = ["--against", f"esc50={theirs.root}"]
    assert "against_audio" not in check(ours.root, *against)[1]["by_kind"]
    _, report = check(ours.root, "--channels", "first", *against)
    assert report["by_kind"]["against_audio"]["count"] == 2


def test_against_a_set_with_contradicting_tables(tmp_path):
    ours, theirs = Set(tmp_path / "ours"), Set(tmp_path / "theirs", seed=1, first=500)
    theirs.rows.append(theirs.rows[0])
    theirs.write()
    theirs.put(7, ours.path(2).read_bytes())
    status, report = check(ours.root, "--against", f"esc50={theirs.root}")
    assert status == 1
    (message,) = report["by_kind"]["tables"]["messages"]
    assert message.startswith(f"esc50={theirs.root}: ")
    assert report["by_kind"]["against_audio"]["count"] == 2


@pytest.mark.parametrize("text", ["esc51=x", "esc50", "esc50="])
def test_against_nothing_known(set_, text):
    with pytest.raises(ConfigError, match="give SET=ROOT, with one of esc50"):
        dispatch(["data", "verify", "esc50", str(set_.root), "--against", text])


def test_nothing_changes_with_workers(set_, monkeypatch):
    monkeypatch.setattr(verify, "CHUNK", 2)
    set_.put(1, set_.path(11).read_bytes())
    set_.put(5, b"broken")
    set_.path(6).unlink()
    set_.put(7, encoded(noise(9, 2_000), 8_000))
    reports = []
    for workers in (0, 1, 3):
        status, report = check(set_.root, workers=workers)
        assert status == 1
        reports.append({**report, "command": ""})
    assert reports[0] == reports[1] == reports[2]


def test_a_killed_worker_is_an_error_and_no_hang(set_, monkeypatch, capsys):
    from peas.data.checks.clips import check_clips

    def killed(clips, rows):
        if rows.start == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return check_clips(clips, rows)

    monkeypatch.setattr(verify, "CHUNK", 2)
    monkeypatch.setattr("peas.data.checks.clips.check_clips", killed)
    out = set_.root.parent / "out"
    status = main(["data", "verify", "esc50", str(set_.root), "--workers", "2", "--out", str(out)])
    assert status == 1
    errors = capsys.readouterr().err
    assert "SIGKILL" in errors
    assert f"(clips {set_.name(6)} to {set_.name(7)})" in errors
    # Half a report would pass for a whole one.
    assert list(out.iterdir()) == []


def test_ctrl_c(set_, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("peas.data.checks.clips.check_clips", interrupted)
    assert main(["data", "verify", "esc50", str(set_.root), "--workers", "0"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_options(set_, capsys):
    out = str(set_.root.parent / "folder")
    before, after = ["--workers", "0", "--out", out], ["--channels", "first"]
    assert main(["data", "verify", *before, "esc50", str(set_.root), *after]) == 0
    assert main(["data", "verify", "esc50", str(set_.root), "--workers", "many"]) == 1
    assert "`--workers` is many" in capsys.readouterr().err
    assert main(["data", "verify", "esc51", str(set_.root)]) == 1
    assert "did you mean esc50" in capsys.readouterr().err
    assert main(["data", "verify", "esc50", str(set_.root), "--workers", "-2"]) == 1
    assert "--workers is -2" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(set_, capsys):
    out = set_.root.parent / "out"
    out.write_text("a file")
    arguments = ["esc50", str(set_.root), "--workers", "0", "--out", str(out)]
    assert main(["data", "verify", *arguments]) == 1
    assert f"{out}: File exists" in capsys.readouterr().err


def test_names_of_all_findings_are_written(tmp_path):
    clips = 25_001
    names = Strings([f"ä{row}.wav" for row in range(clips)])

    class Nothing:
        def __len__(self):
            return clips

    inventory = Inventory(
        ClipTable(names, Targets.none(clips), Nothing()), ["all"], np.zeros(clips, np.int64)
    )
    checks = Checks.empty(clips)
    checks.columns["issues"] = Issue.RATE
    findings = list(of_clips(inventory, checks))
    report = Report("x", "root", "peas", inventory, checks, [], findings)
    write_json(report, tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read["findings"][0]["names"] == list(names)
    assert read["findings"][0]["places"] == ["all"] * clips
    assert "25,001 clips of another rate" in table(report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("name", "folder", "options"),
    [
        ("esc50", "esc10", ["--esc10", "true"]),
        ("speech_commands", "speech_commands_3words", []),
        pytest.param("folder", "urbansound8k_part", ["--csv", "clips.csv"], marks=pytest.mark.slow),
        ("folder", "fsdd", []),
    ],
)
def test_untouched_recordings_have_no_error(shared, capsys, name, folder, options):
    root = str(shared / "data" / folder)
    assert main(["data", "verify", name, root, "--workers", "2", *options]) == 0
    assert "no errors" in plain(capsys.readouterr().out)


def test_against_a_set_with_arguments_of_its_own(set_, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    first = sorted((set_.root / "audio").iterdir())[0]
    shutil.copy(first, other / first.name)
    (other / "clips.csv").write_text(f"path,label,split\n{first.name},x,train\n")
    status, report = check(set_.root, "--against", f"folder={other},csv=clips.csv")
    assert status == 1
    assert report["by_kind"]["against_audio"]["names"].count(first.name) == 2
    with pytest.raises(ConfigError, match="nonsense"):
        dispatch(
            ["data", "verify", "esc50", str(set_.root), "--against", f"folder={other},nonsense=1"]
        )
