"""Each finding about one clip, from a file that is faithfully broken, and what clips share."""

import io

import numpy as np
import pytest
import soundfile

from peas.data.checks import clips as checks_module
from peas.data.checks.clips import Checks, Issue, check_clip, check_clips, is_clipped, sound_hash
from peas.data.checks.findings import (
    across,
    class_counts,
    coded,
    coded_hashes,
    of_classes,
    of_clips,
    of_parts,
    of_two_sets,
    several,
)
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import Strings, Targets
from peas.data.sounds import Sounds, Source
from peas.errors import AudioError, DataError

RATE = 16_000


def noise(samples=RATE, channels=1, seed=0):
    draws = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels))
    return draws.astype(np.float32)


def encoded(samples, rate=RATE, format="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def check(data):
    return check_clip(Source(data, "the clip"))


def test_a_good_clip_is_not_odd():
    found = check(encoded(noise()))
    assert found.issues == 0
    assert (found.seconds, found.rate, found.channels, found.message) == (1.0, RATE, 1, "")
    assert found.digest != bytes(16)


@pytest.mark.parametrize("share", [0.98, 0.5, 0.05])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_cut_short(subtype, share):
    data = encoded(noise(4 * RATE), format="OGG", subtype=subtype)
    found = check(data[: int(share * len(data))])
    assert found.issues == Issue.TRUNCATED
    assert found.message.startswith("the clip: ")
    # Between two pages.
    assert check(data[: data.rindex(b"OggS")]).issues == Issue.TRUNCATED


def test_flac_that_is_damaged():
    data = encoded(noise(), format="FLAC")
    # Total samples of STREAMINFO: 36 bits, all set.
    huge = data[:21] + bytes([data[21] | 0x0F]) + b"\xff" * 4 + data[26:]
    for damaged in (data[: len(data) // 2], data[:-100], huge):
        found = check(damaged)
        assert found.issues in (Issue.TRUNCATED, Issue.UNDECODABLE)
        assert "the clip: c" in found.message or damaged is huge


def test_samples_that_are_no_sound():
    for values in ((np.nan,), (3e38, -3e38)):
        samples = noise()
        samples[100 : 100 + len(values), 0] = values
        found = check(encoded(samples, subtype="FLOAT"))
        assert found.issues == Issue.NAN
        assert f"{len(values)} of 16000" in found.message


def test_wav_header_that_promises_more():
    data = bytearray(encoded(noise()))
    data[40:44] = (10 * RATE).to_bytes(4, "little")
    found = check(bytes(data))
    assert found.issues == Issue.TRUNCATED
    assert "160000" in found.message


@pytest.mark.parametrize("data", [b"", b"nothing to hear here" * 50, encoded(noise(0))])
def test_undecodable(data):
    found = check(data)
    assert found.issues == Issue.UNDECODABLE
    assert found.message.startswith("the clip: ")
    assert (found.seconds, found.rate, found.digest) == (0.0, 0, bytes(16))
    named = check_clip(Source(data, "cut short, NaN or infinite"))
    assert named.issues == Issue.UNDECODABLE


def test_missing(tmp_path):
    found = check_clip(Source(tmp_path / "a.wav", "a.wav"))
    assert found.issues == Issue.MISSING
    assert found.message.startswith("a.wav: ")
    assert check_clip(Source(tmp_path, "here")).issues == Issue.UNDECODABLE


def test_a_clip_that_leaves_its_file():
    found = check_clip(Source(encoded(noise()), "late", 2.0, 3.0))
    assert found.issues == Issue.UNDECODABLE
    assert " 2 s" in found.message
    found = check_clip(Source(encoded(noise()), "long", 0.5, 4.5))
    assert found.issues == Issue.UNDECODABLE
    assert " 4.5 s" in found.message
    assert check_clip(Source(encoded(noise()), "rounded", 0.5, 1.04)).issues == 0


def test_a_stretch_of_a_file():
    samples = noise(3 * RATE)
    part = check_clip(Source(encoded(samples), "part", 1.0, 2.0))
    assert part.seconds == 1.0
    assert part.digest == check(encoded(samples[RATE : 2 * RATE])).digest


def test_short():
    assert check(encoded(noise(399))).issues == Issue.SHORT
    assert check(encoded(noise(400))).issues == 0


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silent_also_with_an_offset_and_dither(level):
    dither = np.random.default_rng(0).integers(-1, 2, (RATE, 1)) / 32_768
    for samples in (np.full((RATE, 1), level), level + dither):
        found = check(encoded(samples))
        assert found.issues == Issue.SILENT
        # No two silent clips are copies of each other.
        assert found.digest == bytes(16)
    assert check(encoded(level + 4 * dither)).issues == 0


def test_clipped():
    assert check(encoded((8 * noise()).clip(-1, 1))).issues == Issue.CLIPPED
    assert check(encoded((4 * noise()).clip(-1, 1), subtype="PCM_U8")).issues == Issue.CLIPPED
    # Decoding a lossy copy leaves values around and beyond full scale.
    tone = 1.5 * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE)
    lossy = encoded(tone.clip(-1, 1).astype(np.float32)[:, None], format="OGG", subtype="VORBIS")
    assert check(lossy).issues == Issue.CLIPPED


def test_a_tone_at_full_scale_is_not_clipped():
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    rounded = np.rint(32_767 * tone) / 32_768
    assert (np.abs(rounded) >= 32_767 / 32_768).mean() > 0.001
    assert check(encoded(rounded[:, None])).issues == 0


@pytest.mark.parametrize(("runs", "clipped"), [(3, False), (4, True)])
def test_clipped_from_a_thousandth_in_runs_of_three(runs, clipped):
    samples = np.zeros(12_000, np.float32)
    for run in range(runs):
        samples[100 * run : 100 * run + 3] = -1.0
    # Pairs do not count.
    samples[6_000:9_000:100] = samples[6_001:9_001:100] = 1.0
    assert is_clipped(samples) == clipped


def test_other_rate_and_channels():
    found = check(encoded(noise(8_000, 2), 8_000))
    assert found.issues == Issue.RATE | Issue.CHANNELS
    assert (found.seconds, found.rate, found.channels) == (1.0, 8_000, 2)


def test_rates():
    assert check(encoded(noise(), 44_101)).issues == Issue.RATE
    found = check(encoded(noise(), 1))
    assert found.issues == Issue.UNDECODABLE
    assert " 1 Hz" in found.message


def test_a_clip_beyond_the_bound():
    data = encoded(noise())
    assert check_clip(Source(data, "the clip"), max_samples=RATE).issues == 0
    found = check_clip(Source(data, "the clip"), max_samples=RATE - 1)
    assert found.issues == Issue.UNDECODABLE
    assert "max_samples" in found.message


def test_channels_are_mixed_as_in_training():
    opposed = np.concatenate([noise(), -noise()], axis=1)
    data = encoded(opposed)
    assert check(data).issues == Issue.CHANNELS | Issue.SILENT
    assert check_clip(Source(data, "first"), "first").issues == Issue.CHANNELS


def test_the_hash_is_of_the_sound_and_not_of_the_file():
    rounded = np.rint(32_768 * noise()) / 32_768
    copies = [
        encoded(rounded, format=kind, subtype=subtype)
        for kind, subtype in (
            ("WAV", "PCM_16"),
            ("WAV", "PCM_24"),
            ("WAV", "FLOAT"),
            ("FLAC", "PCM_16"),
            ("AIFF", "PCM_16"),
        )
    ]
    assert len({check(data).digest for data in copies}) == 1
    other = rounded.copy()
    other[-1] += 1 / 32_768
    assert sound_hash(other[:, 0]) != sound_hash(rounded[:, 0])


class Reader:
    channels = "mean"
    max_samples = 10_000_000


class Listed(Sounds):
    """Sound that is given; None cannot be had."""

    def __init__(self, data):
        super().__init__(Reader())
        self.data = data

    def __len__(self):
        return len(self.data)

    def source(self, row, draw=None):
        if self.data[row] is None:
            raise AudioError(f"shard 3 is cut short before row {row}")
        return Source(self.data[row], f"clip {row}")


def table(data):
    return ClipTable(
        Strings([f"c{row}" for row in range(len(data))]), Targets.none(len(data)), Listed(data)
    )


def test_columns_of_checks_are_put_together():
    clips = table([encoded(noise()), b"", None, encoded(noise(), 8_000), encoded(noise(300))])
    whole = Checks.empty(5)
    for rows in (range(2), range(2, 5)):
        whole.put(rows.start, check_clips(clips, rows))
    assert whole.rows(Issue.UNDECODABLE).tolist() == [1, 2]
    assert whole.rows(Issue.RATE).tolist() == [3]
    assert whole.rows(Issue.SHORT).tolist() == [4]
    assert whole.columns["rate"].tolist() == [RATE, 0, 0, 8_000, RATE]
    assert sorted(whole.messages) == [1, 2]
    assert "shard 3" in whole.messages[2]
    assert whole.columns["digest"].any(axis=1).tolist() == [True, False, False, True, True]


def test_messages_are_kept_of_a_few_clips_only():
    found = check_clips(table([b""] * 20), range(20))
    assert sorted(found.messages) == [0, 1, 2]


def test_an_error_of_the_disk_is_a_finding(monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checks_module.audio, "load", fail)
    found = check(encoded(noise()))
    assert found.issues == Issue.UNDECODABLE
    assert "Input/output error" in found.message


def test_matching_agrees_with_a_plain_count():
    draws = np.random.default_rng(0)
    for _ in range(20):
        words = [str(number) if number else "" for number in draws.integers(0, 12, 25)]
        place = draws.integers(0, 3, 25)
        codes = coded(Strings(words))
        assert [code < 0 for code in codes] == [word == "" for word in words]
        want = [word != "" and words.count(word) > 1 for word in words]
        assert several(codes).tolist() == want
        want = [
            word != ""
            and len({p for other, p in zip(words, place, strict=True) if other == word}) > 1
            for word in words
        ]
        assert across(codes, place).tolist() == want


def test_hashes_are_coded_by_all_their_bytes():
    digest = np.zeros((6, 16), np.uint8)
    digest[1, 0] = digest[2, 15] = digest[4, 0] = digest[5, 8] = 1
    codes = coded_hashes(digest)
    assert codes[0] == codes[3] == -1
    assert codes[1] == codes[4]
    assert len({codes[1], codes[2], codes[5]}) == 3
    assert several(codes).tolist() == [False, True, False, False, True, False]


def inventory(part, data=None, targets=None, ids=None, **columns):
    data = data or [b""] * len(part)
    clips = table(data)
    targets = Targets.none(len(part)) if targets is None else targets
    clips = ClipTable(clips.ids if ids is None else Strings(ids), targets, clips.sounds)
    named = {name: Strings(column) for name, column in columns.items()}
    return Inventory(clips, ["one", "two"], np.array(part), **named)


def by_kind(findings):
    return {finding.kind: finding for finding in findings}


def test_what_parts_share():
    one, other, third = (encoded(noise(seed=seed)) for seed in range(3))
    stock = inventory(
        [0, 0, 1, 1, 1],
        [one, other, one, third, third],
        recordings=["r:1", "", "", "r:2", "r:2"],
        speakers=["s:1", "s:2", "s:1", "", "s:1"],
    )
    found = by_kind(of_parts(stock, check_clips(stock.table, range(5))))
    assert set(found) == {"shared_audio", "doubled_audio", "shared_speaker"}
    assert found["shared_audio"].names == ["c0", "c2"]
    assert found["shared_audio"].parts == ["one", "two"]
    assert found["shared_audio"].severity == "error"
    assert found["doubled_audio"].names == ["c3", "c4"]
    assert found["doubled_audio"].severity == "warning"
    assert found["shared_speaker"].names == ["c0", "c2", "c4"]
    assert found["shared_speaker"].shared == ["s:1"] * 3


def test_a_recording_in_two_parts_and_a_clip_twice():
    stock = inventory([0, 1, 0], ids=["a", "b", "a"], recordings=["r:1", "r:1", "r:3"])
    found = by_kind(of_parts(stock, Checks.empty(3)))
    assert found["shared_recording"].names == ["a", "b"]
    assert found["listed_twice"].names == ["a", "a"]


def test_what_two_sets_share_is_the_same_both_ways():
    one, other, third = (encoded(noise(seed=seed)) for seed in range(3))
    left = inventory([0, 1], [one, other], recordings=["r:1", "r:2"], speakers=["s:1", "s:2"])
    right = inventory(
        [0, 0, 1],
        [third, one, third],
        ids=["x", "y", "z"],
        recordings=["r:2", "", "r:3"],
        speakers=["s:2", "s:2", "s:9"],
    )
    checks = [check_clips(stock.table, range(len(stock.table))) for stock in (left, right)]
    there = by_kind(of_two_sets(("L", "R"), (left, right), tuple(checks)))
    back = by_kind(of_two_sets(("R", "L"), (right, left), tuple(checks[::-1])))
    assert {kind: found.severity for kind, found in there.items()} == {
        "against_recording": "error",
        "against_speaker": "warning",
        "against_audio": "error",
    }
    for kind, pairs in (
        ("against_recording", {("c1", "L"), ("x", "R")}),
        ("against_speaker", {("c1", "L"), ("x", "R"), ("y", "R")}),
        ("against_audio", {("c0", "L"), ("y", "R")}),
    ):
        for found in (there[kind], back[kind]):
            assert set(zip(found.names, found.parts, strict=True)) == pairs


def test_recordings_are_not_compared_where_one_set_does_not_know_them():
    left, right = inventory([0], recordings=["r:1"]), inventory([0])
    found = of_two_sets(("L", "R"), (left, right), (Checks.empty(1), Checks.empty(1)))
    assert list(found) == []


def test_missing_counts_what_is_absent_as_well():
    stock = inventory([0, 1])
    stock = Inventory(stock.table, stock.parts, stock.part, absent=["gone"])
    checks = Checks.empty(2)
    checks.columns["issues"][1] = Issue.MISSING
    found = by_kind(of_clips(stock, checks))["missing"]
    assert (found.names, found.parts) == (["c1", "gone"], ["two", ""])


def test_classes_without_clips():
    targets = Targets.several([[0, 1], [0], [], [1]])
    stock = inventory([0, 0, 1, 1], targets=targets)
    assert class_counts(stock, 3).tolist() == [[2, 1, 0], [0, 1, 0]]
    found = by_kind(of_classes(stock, ["a", "b", "c"]))
    assert (found["empty_class"].names, found["empty_class"].parts) == (
        ["c", "a"],
        ["every part", "two"],
    )
    assert "single_clip_class" not in found
    single = by_kind(of_classes(inventory([0], targets=Targets.one_each([1])), ["a", "b"]))
    assert single["single_clip_class"].names == ["b"]
    assert single["one_class"].names == ["b"]
    assert "one_class" not in found
    assert list(of_classes(inventory([0, 1]), ["a"])) == []


def test_a_class_without_a_label():
    with pytest.raises(DataError, match="c1 has class 7, and there are 2 labels"):
        class_counts(inventory([0, 0], targets=Targets.one_each([1, 7])), 2)
