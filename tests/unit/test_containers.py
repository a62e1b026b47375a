"""Every container is decoded whole or refused; headers cannot make the decoder ask for memory."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from peas.audio import decode as audio
from peas.audio.containers import UNCHECKED
from peas.audio.decode import load, probe
from peas.errors import AudioError

RATE = 16_000


def tone(samples=RATE, hertz=440.0, channels=1):
    wave = 0.4 * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def encoded(samples, format, subtype=None, rate=RATE, **settings):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype, **settings)
    return buffer.getvalue()


UNWRITABLE = {("MP3", "MPEG_LAYER_I"), ("MP3", "MPEG_LAYER_II"), ("WAV", "MPEG_LAYER_III")}
FORMATS = [
    (format, subtype)
    for format in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(format)
    # The first has no header, the second writes a file of its own into the current folder.
    if format not in ("RAW", "SD2") and (format, subtype) not in UNWRITABLE
]


@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_every_format_of_libsndfile_is_whole_or_an_error(format, subtype):
    rate = {"WVE": 8_000}.get(format, RATE)
    if subtype == "DWVW_12":
        pytest.skip("cannot be written")
    data = encoded(tone(), format, subtype, rate)
    if format in UNCHECKED or subtype.startswith("DWVW"):
        with pytest.raises(AudioError):
            load(data, rate)
        return
    # It knows few rates.
    rate = probe(data).rate
    whole = len(load(data, rate))
    assert whole >= 0.99 * RATE
    for lost in (1, 2, 500, len(data) // 3, len(data) // 2):
        try:
            assert len(load(data[:-lost], rate)) == whole
        except AudioError as error:
            assert str(error).startswith("<bytes>: c")  # noqa: PT017, both are right


def test_a_telephone_codec_in_the_middle_of_a_file():
    data = encoded(tone(), "WAV", "GSM610")
    whole = load(data)
    np.testing.assert_array_equal(load(data, start=0.25, stop=0.5), whole[4_000:8_000])


def test_a_chain_of_ogg_streams_is_read_to_its_end():
    for subtype in ("VORBIS", "OPUS"):
        first, second = (encoded(tone(hertz=hertz), "OGG", subtype) for hertz in (300, 900))
        for between in (b"", b"TAG and more"):
            data = first + between + second
            whole = load(data)
            assert len(whole) == 2 * RATE == probe(data).frames * RATE // probe(data).rate
            np.testing.assert_array_equal(whole[RATE:], load(second))
            np.testing.assert_array_equal(load(data, start=0.5, stop=1.5), whole[8_000:24_000])
        with pytest.raises(AudioError, match="cut short"):
            load(data[:-1])
    with pytest.raises(AudioError, match="joined from 2 streams"):
        load(first + encoded(tone(channels=2), "OGG", "OPUS"))


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF", "W64", "CAF"])
def test_joined_files_of_other_formats_are_refused(format):
    data = encoded(tone(), format)
    with pytest.raises(AudioError, match=r"one:.*the first alone"):
        load(data + data, name="one")


def mp3(samples, **settings):
    return encoded(samples, "MP3", **settings)


def without_header(data):
    """MP3 without the frame that states the number of frames."""
    return data[data.index(data[:2], 4) :]


def noise_then_silence():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE)
    return np.r_[noise, np.zeros(2 * RATE)].astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_mp3_of_varying_rate_without_a_header(turned):
    samples = noise_then_silence()
    samples = samples[::-1] if turned else samples
    data = mp3(samples, bitrate_mode="VARIABLE", compression_level=0.1)
    got = load(without_header(data))
    assert 4 * RATE <= len(got) <= 4 * RATE + 4 * 1152
    loud = got[: 2 * RATE].std(), got[2 * RATE + 3_000 :].std()
    assert (loud[1] > 10 * loud[0]) == turned


def test_joined_mp3_is_read_to_its_end():
    first, second = mp3(tone(hertz=300)), mp3(tone(2 * RATE, hertz=900))
    tags = b"TAG".ljust(128, b" ") + b"ID3\4\0\0\0\0\1\0" + bytes(128)
    for data in (first + second, first + tags + second):
        whole = load(data)
        assert len(whole) == 3 * RATE == probe(data).frames
        np.testing.assert_array_equal(whole[:RATE], load(first))
        np.testing.assert_array_equal(whole[RATE:], load(second))
    # The number in the first header is that of the first file alone.
    assert len(load(first + without_header(second))) >= 3 * RATE
    with pytest.raises(AudioError, match=r"16000 and 32000 Hz"):
        load(first + mp3(tone(), rate=32_000))


@pytest.mark.parametrize("lost", [1, 100, 1_000])
def test_cut_mp3_is_refused_with_and_without_a_header(lost):
    data = mp3(tone(2 * RATE))
    for whole in (data, without_header(data)):
        assert len(load(whole)) >= 2 * RATE
        with pytest.raises(AudioError, match=r"cut short, .* MPEG frame"):
            load(whole[:-lost])


def mp3_in_wav(stream, samples):
    """As telephone and sample libraries store it; `samples` goes into the fact chunk."""
    form = struct.pack("<HHIIHHHIHHH", 0x55, 1, RATE, 4_000, 1, 0, 12, 1, 2, 144, 1)
    form += struct.pack("<H", 1393)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form
    body += b"fact" + struct.pack("<II", 4, samples)
    body += b"data" + struct.pack("<I", len(stream)) + stream
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_mp3_in_wav():
    stream = without_header(mp3(noise_then_silence(), bitrate_mode="VARIABLE"))
    # What the frames decode to counts: a decoder's estimate is off by any number.
    for cut in (0, 1):
        data = mp3_in_wav(stream[: len(stream) - cut], 4 * RATE)
        assert 4 * RATE <= len(load(data)) <= 4 * RATE + 4 * 1152
    with pytest.raises(AudioError, match=r"cut short, .* 96000 samples"):
        load(mp3_in_wav(stream, 6 * RATE))
    with pytest.raises(AudioError, match="cut short"):
        load(mp3_in_wav(stream, 4 * RATE)[:-1])


def test_cut_rf64_and_sphere_files():
    for format, subtype in (("RF64", "PCM_16"), ("NIST", "PCM_16"), ("NIST", "ULAW")):
        data = encoded(tone(), format, subtype)
        with pytest.raises(AudioError, match=r"cut short, its header promises \d+ bytes"):
            load(data[: len(data) * 6 // 10])


def test_two_blocks_of_a_voc_file_are_refused():
    data = encoded(tone(), "VOC", "PCM_16")
    assert len(load(data)) == RATE
    with pytest.raises(AudioError, match="2 blocks of sound"):
        load(data[:-1] + data[26:])


def flac_bomb():
    data = bytearray(encoded(tone(), "FLAC"))
    (fields,) = struct.unpack(">Q", data[18:26])
    data[18:26] = struct.pack(">Q", fields | (2**36 - 1))
    return bytes(data)


def ogg_sum(page):
    total = 0
    for byte in page:
        total ^= byte << 24
        for _ in range(8):
            total = (total << 1 ^ (0x04C11DB7 if total & 0x80000000 else 0)) & 0xFFFFFFFF
    return total


def opus_bomb():
    data = encoded(tone(), "OGG", "OPUS")
    last = data.rindex(b"OggS")
    page = bytearray(data[last:])
    page[6:14] = struct.pack("<q", 2**39)
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", ogg_sum(page))
    return data[:last] + bytes(page)


@pytest.mark.parametrize("bomb", [flac_bomb, opus_bomb])
def test_headers_that_promise_too_much_are_refused_before_memory_is_asked_for(bomb, monkeypatch):
    data = bomb()
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(AudioError, match=r"bad: .*(malformed|max_samples)"):
        load(data, name="bad")


def test_the_bound_counts_all_channels_and_what_is_made_of_them():
    data = encoded(tone(channels=2), "WAV")
    assert len(load(data, max_samples=2 * RATE)) == RATE
    with pytest.raises(AudioError, match="max_samples"):
        load(data, max_samples=2 * RATE - 1)
    # Only what is wanted counts.
    assert len(load(data, stop=0.5, max_samples=RATE)) == RATE // 2
    slow = encoded(tone(1_000), "WAV", rate=1_000)
    with pytest.raises(AudioError, match="max_samples"):
        load(slow, max_samples=RATE - 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_and_devices_are_refused(tmp_path):
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    for function in (load, probe, audio.read_bytes):
        with pytest.raises(AudioError, match=r"pipe\.wav: cannot be opened.*no regular file"):
            function(pipe)
    with pytest.raises(AudioError, match="no regular file"):
        load("/dev/zero")


@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), RuntimeError("odd"), TypeError("odd"), MemoryError(), OSError(5, "odd")],
)
def test_whatever_the_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    path = tmp_path / "one.wav"
    path.write_bytes(encoded(tone(), "WAV"))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioError, match=r"one\.wav: (cannot be|needs more memory)"):
        load(path)


@pytest.mark.parametrize("values", [(3e38, -3e38), (3e38, 3e38), (-3e12,), (np.inf, -np.inf)])
def test_samples_beyond_any_scale_are_refused(values):
    samples = tone()
    samples[100 : 100 + len(values), 0] = values
    with pytest.raises(AudioError, match=rf"{len(values)} of 16000 samples"):
        load(encoded(samples, "WAV", "FLOAT"))


def test_whole_numbers_as_floating_point_are_kept():
    samples = np.full((RATE, 1), 2.0**31, np.float32)
    assert (load(encoded(samples, "WAV", "FLOAT")) == 2.0**31).all()


@pytest.mark.parametrize("size", [0, 4, 13, 40, 200])
def test_damaged_heads_are_errors_that_name_the_clip(size):
    draws = np.random.default_rng(size)
    for format in ("WAV", "RF64", "W64", "CAF", "AU", "NIST", "VOC", "AVR", "SVX", "OGG", "MP3"):
        data = bytearray(encoded(tone(2_000), format))
        for _ in range(8):
            data[size % len(data) : size + 8] = draws.bytes(8)
            try:
                load(bytes(data), name="the clip", max_samples=10**6)
            except AudioError as error:
                assert str(error).startswith("the clip: ")  # noqa: PT017, both are right


def test_a_file_of_many_small_streams_is_refused_soon():
    page = b"OggS\0\x06".ljust(27, b"\0")
    with pytest.raises(AudioError, match="more than 1000 streams"):
        load((page + b"x" * 30) * 2_000)
    frame = bytes.fromhex("fffb10c4")
    xing = (frame + b"\0" * 17 + b"Xing\0\0\0\1\0\0\0\1").ljust(104, b"\0")
    with pytest.raises(AudioError, match="more than 1000 streams"):
        load((xing + frame.ljust(104, b"\0")) * 1_500)


@pytest.mark.parametrize(("format", "words"), [("OGG", "hole: .*Ogg"), ("FLAC", "max_samples")])
def test_a_hole_behind_the_sound_is_not_searched(tmp_path, format, words):
    path = tmp_path / "hole"
    path.write_bytes(encoded(tone(), format))
    os.truncate(path, 2**40)
    with pytest.raises(AudioError, match=words):
        load(path)


def test_tags_behind_an_ogg_stream_are_passed_over():
    data = encoded(tone(), "OGG")
    # The next stream's first bytes lie across two blocks of the search.
    for size in (0, 10, 65_530, 65_533, 200_000):
        assert len(load(data + b"x" * size)) == RATE
        assert len(load(data + b"x" * size + data)) == 2 * RATE
