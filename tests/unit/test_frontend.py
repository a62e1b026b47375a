"""The front end against torchaudio's Kaldi filter bank and the official loader's order of work."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from peas.audio.decode import load
from peas.audio.filter_bank import SILENCE, kaldi_fbank
from peas.audio.frontend import LogMel, Spectrogram

ESC50 = {"mean": -6.6268077, "std": 5.358466, "frames": 512}
SPEECH_COMMANDS = {"mean": -6.845978, "std": 5.5654526, "frames": 128}
AUDIOSET = {"mean": -4.2677393, "std": 4.5689974, "frames": 1024}


def oracle(waveform: Tensor, rate: int = 16_000, n_mels: int = 128) -> Tensor:
    """The official loader's call, on one clip [S]."""
    energies: Tensor = kaldi.fbank(
        waveform[None],
        htk_compat=True,
        sample_frequency=rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=n_mels,
        dither=0.0,
        frame_shift=10,
    )
    return energies


def official_item(
    waveform: Tensor, frames: int, mean: float, std: float, *, sums: torch.dtype = torch.float64
) -> Tensor:
    """Mean removal, filter bank, padding or cut, normalisation: the official loader's order.

    The official mean is summed in float32, whose last bits depend on the order of summation;
    `sums=torch.float32` is that mean to the letter, the default is the same mean rounded once.
    """
    features = oracle(waveform - waveform.mean(dtype=sums).float())
    missing = frames - features.shape[0]
    if missing > 0:
        features = torch.nn.ZeroPad2d((0, 0, 0, missing))(features)
    else:
        features = features[:frames]
    return (features - mean) / (std * 2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tone(frequency: float, samples: int = 80_000, rate: int = 16_000) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(samples) / rate)


def front_end(frames: int = 512, **options: float) -> LogMel:
    return LogMel(**{**AUDIOSET, "frames": frames, **options})  # type: ignore[arg-type]


@contextmanager
def matrix_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("samples", [400, 13_000, 16_000, 80_000, 163_840])
def test_fbank_of_noise_equals_torchaudio(samples: int) -> None:
    waveform = noise(3, samples)
    expected = torch.stack([oracle(clip) for clip in waveform])
    torch.testing.assert_close(kaldi_fbank(waveform), expected, rtol=0, atol=1e-5)


def test_fbank_of_tones_ramp_and_constant_equals_torchaudio() -> None:
    # Most cells of these lie near the floor, where any other rounding of the samples shows.
    clips = [tone(f) for f in (100, 440, 1_000, 3_000, 7_000)]
    clips += [torch.arange(80_000) / 80_000, torch.full((80_000,), 0.7), 1e-6 * tone(500)]
    waveform = torch.stack(clips)
    expected = torch.stack([oracle(clip) for clip in waveform])
    torch.testing.assert_close(kaldi_fbank(waveform), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("rate", "n_mels"), [(8_000, 64), (16_000, 23), (22_050, 80), (44_100, 128)]
)
def test_other_rates_and_filter_counts_equal_torchaudio(rate: int, n_mels: int) -> None:
    waveform = noise(2, rate)
    expected = torch.stack([oracle(clip, rate, n_mels) for clip in waveform])
    torch.testing.assert_close(kaldi_fbank(waveform, rate, n_mels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "count"), [("esc10/audio/*.ogg", 24), ("speech_commands_3words/*/*.wav", 8)]
)
def test_fbank_of_recordings_equals_torchaudio(shared: Path, pattern: str, count: int) -> None:
    paths = sorted((shared / "data").glob(pattern))
    for path in paths[:: len(paths) // count]:
        waveform = load(path)
        difference = (kaldi_fbank(waveform[None])[0] - oracle(waveform)).abs()
        assert difference.max() <= 1e-5, path
        assert difference.mean() <= 1e-6, path


def test_silence_is_the_floor_and_filter_3_always_is() -> None:
    silent = kaldi_fbank(torch.zeros(1, 16_000))
    assert (silent - SILENCE).abs().max() < 1e-5
    assert pytest.approx(-15.9424, abs=1e-4) == SILENCE
    energies = kaldi_fbank(noise(2, 16_000))
    at_floor = (energies - SILENCE).abs().amax(dim=(0, 1)) < 1e-5
    assert at_floor.nonzero().flatten().tolist() == [3]


def test_fbank_shorter_than_a_frame_has_no_frames() -> None:
    assert kaldi_fbank(noise(2, 399)).shape == (2, 0, 128)
    assert kaldi_fbank(noise(0, 16_000)).shape == (0, 0, 128)


@pytest.mark.parametrize(("clips", "samples"), [(1, 80_000), (7, 16_000), (3, 200_000), (40, 500)])
def test_blocks_of_work_do_not_show(clips: int, samples: int) -> None:
    waveform = noise(clips, samples)
    alone = torch.cat([kaldi_fbank(clip[None]) for clip in waveform])
    torch.testing.assert_close(kaldi_fbank(waveform), alone, rtol=0, atol=2e-6)


def test_input_is_left_alone_and_may_be_strided() -> None:
    stereo = noise(3, 16_000, 2)
    kept = stereo.clone()
    strided = stereo[:, :, 1]
    torch.testing.assert_close(
        kaldi_fbank(strided), kaldi_fbank(strided.contiguous()), rtol=0, atol=0
    )
    front_end()(strided)
    assert torch.equal(stereo, kept)


def test_autocast_and_matrix_precision_change_nothing() -> None:
    waveform = noise(2, 16_000)
    expected = kaldi_fbank(waveform)
    model = front_end(98)
    normalised = model(waveform).log_mel
    with matrix_precision("medium"):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(kaldi_fbank(waveform), expected)
            output = model(waveform).log_mel
        assert torch.get_float32_matmul_precision() == "medium"
    assert output.dtype == torch.float32
    assert torch.equal(output, normalised)


def test_no_gradient_is_tracked() -> None:
    waveform = noise(1, 16_000).requires_grad_()
    assert not kaldi_fbank(waveform).requires_grad
    assert not front_end()(waveform).log_mel.requires_grad


def test_no_filter_bank_without_samples_or_filters() -> None:
    with pytest.raises(ValueError, match="no filter bank"):
        LogMel(rate=50)
    with pytest.raises(ValueError, match="no filter bank"):
        LogMel(n_mels=3)
    with pytest.raises(ValueError, match="positive"):
        LogMel(std=0.0)
    with pytest.raises(ValueError, match="positive"):
        LogMel(frames=0)


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(5.0, 498), (1.0, 98), (10.0, 998), (0.025, 1), (0.0349375, 1), (0.035, 2)],
)
def test_number_of_frames(seconds: float, frames: int) -> None:
    samples = round(seconds * 16_000)
    assert kaldi_fbank(noise(1, samples)).shape[1] == frames
    output = front_end(1024)(noise(1, samples))
    assert output.frames.tolist() == [frames]
    assert output.log_mel.shape == (1, 1024, 128)
    assert output.valid.sum() == frames
    assert output.valid[0, :frames].all()


@pytest.mark.parametrize(
    ("facts", "padding", "silence"),
    [
        (ESC50, 0.618, -0.869),
        (SPEECH_COMMANDS, 0.615, -0.817),
        (AUDIOSET, 0.467, -1.278),
    ],
)
def test_padding_and_silence_have_the_official_values(
    facts: dict[str, float], padding: float, silence: float
) -> None:
    model = LogMel(**facts)  # type: ignore[arg-type]
    output = model(torch.zeros(1, 8_000))
    exact = -facts["mean"] / (2 * facts["std"])
    assert exact == pytest.approx(padding, abs=6e-4)
    assert output.frames.item() == 48
    torch.testing.assert_close(
        output.log_mel[:, 48:], torch.full_like(output.log_mel[:, 48:], exact), rtol=0, atol=1e-6
    )
    assert output.log_mel[:, :48].mean().item() == pytest.approx(silence, abs=6e-4)
    assert not output.valid.any()
    assert model.fill_value("raw_zero").item() == pytest.approx(exact, abs=1e-6)
    assert model.fill_value("zero").item() == 0
    with pytest.raises(ValueError, match="kind"):
        model.fill_value("mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "samples"),
    [(ESC50, 80_000), (ESC50, 30_001), (SPEECH_COMMANDS, 16_000), (AUDIOSET, 163_840)],
)
def test_item_equals_the_official_loader(facts: dict[str, float], samples: int) -> None:
    waveform = noise(samples) + 0.05
    expected = official_item(waveform, **facts)  # type: ignore[arg-type]
    output = LogMel(**facts)(waveform[None])  # type: ignore[arg-type]
    torch.testing.assert_close(output.log_mel[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_item_with_the_mean_summed_in_float32_differs_by_its_rounding(offset: float) -> None:
    waveform = noise(80_000) + offset
    expected = official_item(waveform, sums=torch.float32, **ESC50)  # type: ignore[arg-type]
    output = LogMel(**ESC50)(waveform[None])  # type: ignore[arg-type]
    difference = (output.log_mel[0] - expected).abs()
    assert difference.max() <= 1e-4
    assert difference.mean() <= 1e-6


def test_long_clips_keep_their_first_frames() -> None:
    waveform = noise(1, 200_000)
    output = front_end(512)(waveform)
    assert output.frames.tolist() == [512]
    expected = official_item(waveform[0], 512, -4.2677393, 4.5689974)
    torch.testing.assert_close(output.log_mel[0], expected, rtol=0, atol=1e-6)


def test_recordings_equal_the_official_loader(shared: Path) -> None:
    paths = sorted((shared / "data/esc10/audio").glob("*.ogg"))[::50]
    waveforms = [load(path) for path in paths]
    output, _ = batch_of(waveforms, LogMel(**ESC50))  # type: ignore[arg-type]
    for row, waveform in zip(output.log_mel, waveforms, strict=True):
        expected = official_item(waveform, **ESC50)  # type: ignore[arg-type]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)
        literal = official_item(waveform, sums=torch.float32, **ESC50)  # type: ignore[arg-type]
        # The mean's last bit moves cells near the floor only.
        assert (row - literal).abs().max() <= 1e-3
        assert (row - literal).abs().mean() <= 1e-6


def batch_of(
    waveforms: list[Tensor], model: LogMel, junk: float = 0.0
) -> tuple[Spectrogram, Tensor]:
    """Output for clips of different lengths, with `junk` in the padded tails."""
    length = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.full((len(waveforms), int(length.max())), junk)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return model(padded, length), length


@pytest.mark.parametrize("junk", [0.0, 0.9, float("nan")])
def test_a_batch_equals_its_clips_alone(junk: float) -> None:
    lengths = (80_000, 16_000, 399, 12_345, 400, 1)
    clips = [noise(samples, seed=samples) + 0.1 for samples in lengths]
    model = front_end(128)
    together, _ = batch_of(clips, model, junk)
    for index, clip in enumerate(clips):
        alone = model(clip[None])
        torch.testing.assert_close(together.log_mel[index], alone.log_mel[0], rtol=0, atol=1e-6)
        assert together.frames[index] == alone.frames[0]
        assert torch.equal(together.valid[index], alone.valid[0])
    assert together.frames.tolist() == [128, 98, 1, 75, 1, 1]


def test_short_clip_is_one_zero_padded_frame() -> None:
    clip = noise(100)
    output = front_end(4)(clip[None])
    padded = torch.cat([clip - clip.mean(), torch.zeros(300)])
    expected = (oracle(padded)[0] + 4.2677393) / (2 * 4.5689974)
    torch.testing.assert_close(output.log_mel[0, 0], expected, rtol=0, atol=1e-6)
    assert output.frames.tolist() == [1]
    assert output.valid.tolist() == [[True, False, False, False]]


def test_silence_inside_a_clip_is_not_valid() -> None:
    waveform = noise(2, 16_000)
    waveform[0] -= waveform[0].mean()
    waveform[0, 4_000:8_000] = 0.25
    waveform[1] = 0.5
    output = front_end(100)(waveform)
    # Frames that lie wholly in the constant stretch: 160 t >= 4000 and 160 t + 400 <= 8000.
    silent = torch.zeros(100, dtype=torch.bool)
    silent[25:48] = True
    silent[98:] = True
    assert torch.equal(output.valid[0], ~silent)
    assert not output.valid[1].any()
    assert output.frames.tolist() == [98, 98]


def test_statistics_travel_in_the_state_dict_and_constants_do_not() -> None:
    source = LogMel(**ESC50)  # type: ignore[arg-type]
    state = source.state_dict()
    assert set(state) == {"mean", "std"}
    target = LogMel(frames=512)
    target.load_state_dict(state, strict=True)
    waveform = noise(1, 16_000)
    assert torch.equal(target(waveform).log_mel, source(waveform).log_mel)
    assert target.fill_value("raw_zero").item() == pytest.approx(0.618, abs=5e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    waveform = noise(4, 80_000)
    model = front_end()
    expected = model(waveform, torch.tensor([80_000, 16_000, 399, 50_000]))
    length = torch.tensor([80_000, 16_000, 399, 50_000], device="cuda")
    with torch.autocast("cuda", torch.bfloat16), matrix_precision("high"):
        output = model.cuda()(waveform.cuda(), length)
    difference = (output.log_mel.cpu() - expected.log_mel).abs()
    assert difference.max() <= 1e-3
    assert difference.mean() <= 1e-5
    assert torch.equal(output.valid.cpu(), expected.valid)
