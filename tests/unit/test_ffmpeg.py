"""Containers that need ffmpeg, with a script in its place that takes the sound from the file."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from peas.audio import ffmpeg
from peas.audio.decode import load, probe
from peas.errors import AudioError

RATE = 22_050
HEADS = {
    "MPEG-4": b"\0\0\0\x1cftypM4A ",
    "Matroska": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81",
    "ASF": b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa",
    "AAC": b"\xff\xf1P\x80\x02\x1f\xfc\xde\x02\0La",
}
# What stands for ffmpeg: a source is a true head, and behind it a WAV file.
SCRIPT = f"""#!{sys.executable}
import sys
arguments = sys.argv[1:]
with open({{log!r}}, "a") as log:
    log.write(" ".join(arguments) + chr(10))
source = arguments[arguments.index("-i") + 1]
assert source.startswith("file:/"), source
data = open(source[5:], "rb").read()
said, status = {{said!r}}, {{status}}
sys.stderr.write(said)
if not status:
    open(arguments[-1], "wb").write(data[12:])
sys.exit(status)
"""


@pytest.fixture
def waveform():
    angle = 2 * np.pi * 440 * np.arange(2 * RATE) / RATE
    return np.stack([0.5 * np.sin(angle), np.zeros_like(angle)], axis=1).astype(np.float32)


@pytest.fixture
def sound(waveform):
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a script named ffmpeg on the path, and nothing else; gives the log of its arguments."""

    def put(said="", status=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        log = tmp_path / "calls.txt"
        script = folder / "ffmpeg"
        script.write_text(SCRIPT.format(log=str(log), said=said, status=status))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return log

    return put


@pytest.mark.parametrize("kind", HEADS)
def test_a_container_is_known_by_its_first_bytes(kind):
    assert ffmpeg.container(HEADS[kind]).startswith(kind)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", None)],
)
def test_formats_of_libsndfile_are_left_to_it(waveform, format, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, RATE, format=format, subtype=subtype)
    assert ffmpeg.container(buffer.getvalue()[:12]) is None
    assert ffmpeg.container(b"") is None
    assert ffmpeg.container(b"\xff") is None


@pytest.mark.parametrize("kind", HEADS)
def test_a_file_and_its_bytes_are_decoded(program, tmp_path, sound, waveform, kind):
    program()
    # A colon would name a protocol, and a dash an option.
    path = tmp_path / "-a:b.m4a"
    path.write_bytes(HEADS[kind] + sound)
    assert torch.equal(load(path, RATE), torch.from_numpy(waveform.mean(axis=1)))
    assert torch.equal(load(path.read_bytes(), RATE, name="clip 7"), load(path, RATE))
    assert torch.equal(load(path, RATE, "first"), torch.from_numpy(waveform[:, 0]))


def test_a_relative_path(program, tmp_path, sound, monkeypatch):
    program()
    (tmp_path / "a.m4a").write_bytes(HEADS["MPEG-4"] + sound)
    monkeypatch.chdir(tmp_path)
    assert load("a.m4a", RATE).shape == (2 * RATE,)


def test_start_and_stop(program, tmp_path, sound, waveform):
    log = program()
    path = tmp_path / "a.webm"
    path.write_bytes(HEADS["Matroska"] + sound)
    got = load(path, RATE, "first", start=0.5, stop=1.0)
    assert torch.equal(got, torch.from_numpy(waveform[RATE // 2 : RATE, 0]))
    # No more is decoded than up to the stop, and the bit that rounding may cost.
    assert "-t 2.000000" in log.read_text().splitlines()[-1]
    load(path, RATE, start=0.5)
    assert "-t" not in log.read_text().splitlines()[-1].split()
    with pytest.raises(AudioError, match=r"a\.webm: the clip begins at 3 s, but .* has 2 s"):
        load(path, RATE, start=3.0)


def test_probe(program, tmp_path, sound):
    program()
    path = tmp_path / "a.m4a"
    path.write_bytes(HEADS["MPEG-4"] + sound)
    info = probe(path)
    assert (info.rate, info.channels, info.frames) == (RATE, 2, 2 * RATE)
    assert info.format.startswith("MPEG-4")
    assert info.subtype == ""


def test_without_ffmpeg_the_message_says_what_to_do(tmp_path, sound, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "a.m4a"
    path.write_bytes(HEADS["MPEG-4"] + sound)
    for function in (load, probe):
        with pytest.raises(AudioError, match=r"a\.m4a: .*MPEG-4.*`ffmpeg` on the path.*install"):
            function(path)
    with pytest.raises(AudioError, match=r"row 3: .*ffmpeg -i clip\.m4a"):
        load(path.read_bytes(), name="row 3")


def test_what_ffmpeg_refuses_is_an_error(program, tmp_path, sound):
    program("[in#0 @ 0x1] Invalid data found when processing input\nmore", status=183)
    path = tmp_path / "a.m4a"
    path.write_bytes(HEADS["MPEG-4"] + sound)
    with pytest.raises(AudioError, match=r"a\.m4a: cannot be decoded, .*: Invalid data .*input;"):
        load(path)


@pytest.mark.parametrize(
    "said",
    [
        "[in#0/matroska,webm @ 0x55d9] File ended prematurely",
        "[mov,mp4 @ 0x1] moov atom not found\nError opening input",
    ],
)
def test_a_source_cut_short_is_an_error_whatever_the_status(program, tmp_path, sound, said):
    program(said)
    path = tmp_path / "a.webm"
    path.write_bytes(HEADS["Matroska"] + sound)
    with pytest.raises(AudioError, match=r"a\.webm: cut short, ffmpeg says: (File|moov)"):
        load(path)


def test_an_ffmpeg_that_does_not_end(program, tmp_path, sound, monkeypatch):
    log = program()
    script = log.parent / "bin" / "ffmpeg"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    monkeypatch.setattr(ffmpeg, "_SECONDS", 0.5)
    path = tmp_path / "a.m4a"
    path.write_bytes(HEADS["MPEG-4"] + sound)
    with pytest.raises(AudioError, match=r"a\.m4a: .*timed out"):
        load(path)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg on the path")
@pytest.mark.parametrize("name", ["clip.m4a", "clip.webm", "clip.aac", "clip.mka"])
def test_a_real_ffmpeg(tmp_path, sound, name):
    (tmp_path / "in.wav").write_bytes(sound)
    path = tmp_path / name
    subprocess.run(
        [shutil.which("ffmpeg"), "-v", "error", "-i", tmp_path / "in.wav", path],
        check=True,
        env=os.environ,
    )
    assert abs(len(load(path)) - 32_000) < 2_000
    data = path.read_bytes()
    with pytest.raises(AudioError, match=r"clip 7: cut short, ffmpeg says"):
        load(data[: len(data) // 2], name="clip 7")
