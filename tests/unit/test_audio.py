"""Every odd file loads, and every bad one is an error that names it."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from peas.audio import resampling
from peas.audio.decode import RESAMPLER, SOUND_ENDINGS, AudioInfo, is_sound, load, probe
from peas.errors import AudioError

RATE = 16_000


def noise(samples: int = RATE, channels: int = 1) -> NDArray[np.float32]:
    draws = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels))
    return draws.astype(np.float32)


def encoded(
    samples: NDArray[np.float32], rate: int = RATE, format: str = "WAV", subtype: str | None = None
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype)
    return buffer.getvalue()


def chunks_before_data(wav: bytes, name: bytes, body: bytes) -> bytes:
    extra = name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)
    return wav[:36] + extra + wav[36:]


@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 2**-15), ("PCM_24", 2**-23)])
def test_load_gives_the_written_samples(tmp_path: Path, subtype: str, step: float) -> None:
    path = tmp_path / "a.wav"
    samples = noise()
    path.write_bytes(encoded(samples, subtype=subtype))
    waveform = load(path)
    assert waveform.dtype == torch.float32
    assert waveform.shape == (RATE,)
    np.testing.assert_allclose(waveform.numpy(), samples[:, 0], rtol=0, atol=step)
    assert torch.equal(waveform, load(path.read_bytes()))
    assert torch.equal(waveform, load(str(path)))


def test_float_samples_above_full_scale_are_kept() -> None:
    samples = 4 * noise()
    assert torch.equal(load(encoded(samples, subtype="FLOAT")), torch.from_numpy(samples[:, 0]))


def test_channels_are_averaged_or_the_first_is_kept() -> None:
    stereo = noise(channels=2)
    data = encoded(stereo, subtype="FLOAT")
    np.testing.assert_allclose(load(data).numpy(), stereo.mean(axis=1), atol=1e-7)
    np.testing.assert_array_equal(load(data, channels="first").numpy(), stereo[:, 0])
    with pytest.raises(ValueError, match="channels"):
        load(data, channels="left")  # type: ignore[arg-type]


@pytest.mark.parametrize("native", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone(native: int) -> None:
    def tone(rate: int) -> NDArray[np.float32]:
        angle = 2 * np.pi * 1000 * np.arange(rate) / rate
        wave: NDArray[np.float32] = (0.5 * np.sin(angle)).astype(np.float32)
        return wave[:, None]

    waveform = load(encoded(tone(native), native, subtype="FLOAT"))
    assert waveform.shape == (RATE,)
    inner = slice(200, -200)
    np.testing.assert_allclose(waveform.numpy()[inner], tone(RATE)[inner, 0], atol=2e-4)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    angle = 2 * np.pi * 10_000 * np.arange(44_100) / 44_100
    data = encoded(np.sin(angle).astype(np.float32)[:, None], 44_100, subtype="FLOAT")
    assert load(data)[200:-200].abs().max() < 1e-3


def test_resampler_is_named() -> None:
    assert "kaiser" in RESAMPLER
    assert "64" in RESAMPLER


@pytest.mark.parametrize("native", [1_000, 11_127, 16_393, 22_254, 22_257, 44_099, 768_000])
def test_any_rate_is_resampled(native: int) -> None:
    seconds = 0.5
    angle = 2 * np.pi * 300 * np.arange(int(seconds * native)) / native
    waveform = load(encoded(0.5 * np.sin(angle).astype(np.float32)[:, None], native, "WAV"))
    assert abs(len(waveform) - seconds * RATE) <= RATE / native + 1
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(len(waveform)) / RATE)
    inner = slice(1_200, -1_200)
    np.testing.assert_allclose(waveform.numpy()[inner], expected[inner], atol=1e-3)


@pytest.mark.parametrize("native", [8_000, 44_100, 96_000])
def test_interpolated_filters_equal_the_table(native: int) -> None:
    # A rate of small ratio through the way of the others.
    waveform = torch.from_numpy(noise(native)[:, 0])
    table = resampling.resample(waveform, native, RATE)
    interpolated = resampling._Interpolated(native, RATE)(waveform)
    torch.testing.assert_close(interpolated, table, rtol=0, atol=1e-5)


@pytest.mark.parametrize("native", [*range(1_000, 50_000, 1_117), 15_999, 44_099, 767_999])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_ratios_are_right_to_a_millionth_and_their_filters_small(native: int, rate: int) -> None:
    ratio = resampling._small_ratio(Fraction(native, rate))
    if ratio is None:
        filters = resampling._Interpolated(native, rate).filters
        assert filters.nelement() < 1_000_000
    else:
        assert abs(ratio * rate / native - 1) <= 1e-6
        down, up = ratio.numerator, ratio.denominator
        assert up * (128 * max(1, down / up) + down) <= 4_000_000


def test_common_rates_keep_their_own_ratio() -> None:
    for native in (8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000):
        exact = Fraction(native, RATE)
        assert resampling._small_ratio(exact) == exact


@pytest.mark.parametrize("native", [1, 999, 768_001, 2_000_000_000])
def test_rates_that_no_sound_has_are_refused(native: int) -> None:
    with pytest.raises(AudioError, match=rf"odd.* {native} Hz.*768000 Hz"):
        load(encoded(noise(), native), name="odd")


@pytest.mark.parametrize("samples", [1, 100, 399])
def test_clips_shorter_than_a_frame_load(samples: int) -> None:
    assert load(encoded(noise(samples))).shape == (samples,)
    assert load(encoded(noise(samples), 8_000)).shape == (2 * samples,)


def test_silence_loads() -> None:
    assert load(encoded(np.zeros((RATE, 1), np.float32))).abs().max() == 0


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
    ],
)
def test_every_format_loads_whole_and_is_refused_when_cut(format: str, subtype: str) -> None:
    data = encoded(noise(2 * RATE), format=format, subtype=subtype)
    assert load(data).shape == (2 * RATE,)
    with pytest.raises(AudioError, match=r"clip-7.*(cut short|cannot be decoded)"):
        load(data[: len(data) // 2], name="clip-7")


@pytest.mark.parametrize("lost", [1, 200, 3_000])
def test_ogg_without_its_end_is_refused(lost: int) -> None:
    data = encoded(noise(2 * RATE), format="OGG", subtype="VORBIS")
    with pytest.raises(AudioError, match="cut short"):
        load(data[:-lost])


def test_ogg_cut_between_two_pages_is_refused() -> None:
    # libsndfile decodes this without a word.
    data = encoded(noise(4 * RATE), format="OGG", subtype="VORBIS")
    cut = data[: data.rfind(b"OggS")]
    assert len(soundfile.read(io.BytesIO(cut))[0]) > 0
    with pytest.raises(AudioError, match="end-of-stream"):
        load(cut)


def test_ogg_with_bytes_after_its_end_loads() -> None:
    data = encoded(noise(), format="OGG", subtype="VORBIS")
    assert load(data + b"TAG appended by a program").shape == (RATE,)


@pytest.mark.parametrize("lost", [1, 2, 1_000])
def test_wav_with_less_data_than_promised_is_refused(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(encoded(noise())[:-lost])
    with pytest.raises(
        AudioError, match=rf"cut\.wav: cut short, .*promises 32000 .* {32000 - lost}"
    ):
        load(path)


def test_wav_with_other_chunks_before_its_data() -> None:
    wav = chunks_before_data(encoded(noise()), b"LIST", b"odd")
    assert load(wav).shape == (RATE,)
    with pytest.raises(AudioError, match="cut short"):
        load(wav[:-2])
    with pytest.raises(AudioError, match=r"cut short|cannot be decoded"):
        load(wav[:40])


def test_wav_written_to_a_pipe_loads() -> None:
    wav = bytearray(encoded(noise()))
    wav[40:44] = b"\xff" * 4
    assert load(bytes(wav)).shape == (RATE,)


def test_flac_cut_near_its_end_is_refused() -> None:
    data = encoded(noise(2 * RATE), format="FLAC")
    with pytest.raises(AudioError, match=r"<bytes>: .*(cut short|cannot be decoded)"):
        load(data[: int(0.97 * len(data))])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    samples = noise(channels=2)
    samples[7, 1] = value
    path = tmp_path / "bad.wav"
    path.write_bytes(encoded(samples, subtype="FLOAT"))
    for channels in ("mean", "first"):
        with pytest.raises(AudioError, match=r"bad\.wav: 1 of 32000 samples are NaN or infinite"):
            load(path, channels=channels)


def test_opposite_infinities_do_not_cancel() -> None:
    samples = noise()
    samples[3], samples[4] = np.inf, -np.inf
    with pytest.raises(AudioError, match="2 of"):
        load(encoded(samples, subtype="FLOAT"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (encoded(np.zeros((0, 1), np.float32)), "no samples"),
        (encoded(np.zeros((0, 1), np.float32), format="OGG", subtype="VORBIS"), "no samples"),
        (b"these are words, no sound" * 20, "ffmpeg -i"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(500), "ffmpeg -i"),
        (b"\x1aE\xdf\xa3" + bytes(500), "ffmpeg -i"),
        (b"RI", "ffmpeg -i"),
        (b"OggS", "ffmpeg -i"),
    ],
)
def test_unusable_content_is_an_error_with_advice(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "clip.m4a"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    with pytest.raises(AudioError, match=f"row 12: .*{message}"):
        load(content, name="row 12")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for function in (load, probe):
        with pytest.raises(AudioError, match=r"none\.wav: cannot be opened"):
            function(tmp_path / "none.wav")
        with pytest.raises(AudioError, match="cannot be opened"):
            function(tmp_path)


def test_probe_reads_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(noise(500, 2), 8_000, "FLAC", "PCM_24"))
    expected = AudioInfo(8_000, 2, 500, "FLAC", "PCM_24")
    assert probe(path) == expected
    assert probe(path.read_bytes()) == expected
    with pytest.raises(AudioError, match="row 3"):
        probe(b"nothing", name="row 3")


@pytest.mark.parametrize(
    ("pattern", "seconds"),
    [
        ("esc10/audio/*.ogg", 5.01),
        ("speech_commands_3words/*/*.wav", 1.0),
        ("fsdd/recordings/*.wav", 3.0),
        ("urbansound8k_part/audio/**/*.ogg", 4.1),
    ],
)
def test_real_recordings_load(shared: Path, pattern: str, seconds: float) -> None:
    paths = sorted((shared / "data").glob(pattern))
    assert len(paths) >= 400
    for path in paths[:: len(paths) // 6]:
        waveform = load(path)
        info = probe(path)
        assert len(waveform) == -(-info.frames * RATE // info.rate)
        assert 0 < len(waveform) <= seconds * RATE
        assert waveform.isfinite().all()


@pytest.mark.parametrize(
    "ending",
    ["wav", "wave", "rf64", "w64", "au", "snd", "caf", "aifc", "sph", "voc", "mp3", "opus"],
)
def test_endings_of_sound_in_either_case(ending: str) -> None:
    assert f".{ending}" in SOUND_ENDINGS
    assert is_sound(f"a/b.{ending}")
    assert is_sound(Path(f"B.C.{ending.upper()}"))


@pytest.mark.parametrize("name", ["a.txt", "wav", "a.wav.txt", "a.m4a", "a.mat", "labels.csv"])
def test_endings_of_other_files(name: str) -> None:
    assert not is_sound(name)
