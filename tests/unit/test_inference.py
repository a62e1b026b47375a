"""`peas.load` and `AudioModel`: any length, layers, pools, frames, scores."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from torch import Tensor
from toys import Run

import peas
from peas.audio import KaldiLogMel
from peas.audio.resampling import resample
from peas.errors import AudioError, CheckpointError, ConfigError
from peas.inference import AudioModel
from peas.inference.windows import Layout
from peas.models import SSAST, AudioMAE

FRAMES = 64
ONE_WINDOW = (FRAMES - 1) * 160 + 400
ENCODERS = {
    "ssast": lambda: SSAST("mini"),
    "overlapping": lambda: SSAST("mini", stride=(10, 10)),
    "frame_patches": lambda: SSAST("mini", patch=(128, 2)),
    "audiomae": lambda: AudioMAE("mini"),
}


def sound(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(params=list(ENCODERS))
def model(request: pytest.FixtureRequest) -> AudioModel:
    torch.manual_seed(0)
    return AudioModel(ENCODERS[request.param](), KaldiLogMel(FRAMES, -6.8, 5.5), ["a", "b", "c"])


@pytest.fixture
def plain() -> AudioModel:
    torch.manual_seed(0)
    return AudioModel(AudioMAE("mini"), KaldiLogMel(FRAMES, -6.8, 5.5), ["a", "b", "c"])


def test_a_clip_as_long_as_the_input_gives_what_training_gives(model: AudioModel) -> None:
    waveform = torch.stack([sound(ONE_WINDOW), sound(ONE_WINDOW, 1)])
    log_mel = model.front_end(waveform).log_mel
    with torch.no_grad():
        expected = model.encoder.embedding(log_mel)
        logits = model.encoder(log_mel)
    assert torch.allclose(model.embed(waveform), expected, atol=1e-6)
    assert torch.allclose(model.scores(waveform), logits.softmax(1), atol=1e-6)
    assert model.embed(waveform).shape == (2, model.dim)


def test_a_long_clip_is_the_mean_over_the_columns_of_its_windows(model: AudioModel) -> None:
    """Recomputed column by column from windows cut by hand."""
    waveform = sound(40_000)
    front_end = KaldiLogMel(1000, -6.8, 5.5)
    spectrogram = front_end(waveform[None])
    log_mel, frames = spectrogram.log_mel[0], int(spectrogram.frames)
    patch, stride = model.encoder.patch[1], model.encoder.stride[1]
    rows, columns = model.encoder.grid
    kept: list[Tensor] = []
    start = 0
    while True:
        window = log_mel[start * stride : start * stride + FRAMES][None]
        with torch.no_grad():
            tokens = model.encoder.tokens(window)[0, model.encoder.special :]
        grid = tokens.reshape(columns, rows, -1)
        if not model.encoder.time_major:
            grid = tokens.reshape(rows, columns, -1).transpose(0, 1)
        inside = [c for c in range(columns) if (start + c) * stride + (patch - 1) / 2 <= frames - 1]
        kept += [grid[c] for c in inside]
        if len(inside) < columns or (start + columns) * stride + (patch - 1) / 2 > frames - 1:
            break
        start += columns
    expected = torch.stack(kept)
    embeddings, times = model.frames(waveform)
    assert embeddings.shape == (1, len(kept), rows * model.dim)
    assert torch.allclose(embeddings[0], expected.flatten(1), atol=1e-5)
    assert torch.allclose(model.embed(waveform)[0], expected.mean(dim=(0, 1)), atol=1e-5)
    flat = expected.flatten(0, 1)
    both = torch.cat((flat.mean(0), flat.std(0, correction=0)))
    assert torch.allclose(model.embed(waveform, pool="mean+std")[0], both, atol=1e-5)
    steps = times[0].diff()
    assert torch.allclose(steps, torch.full_like(steps, model.hop_ms))
    assert float(times[0, 0]) == pytest.approx(((patch - 1) * 10 + 25) / 2)


def test_clips_of_unequal_length_do_not_change_one_another(model: AudioModel) -> None:
    clips = [sound(9_000), sound(400, 1), sound(30_000, 2), sound(100, 3)]
    together = model.embed(clips, layers=[0, 2, -1])
    apart = torch.cat([model.embed(clip, layers=[0, 2, -1]) for clip in clips], dim=1)
    assert together.shape == (3, 4, model.dim)
    assert torch.allclose(together, apart, atol=1e-5)
    embeddings, times = model.frames(clips, bands="mean")
    assert embeddings.shape == (*times.shape, model.dim)
    lengths = times.isfinite().sum(1).tolist()
    assert lengths == [model.frames(c).times.shape[1] for c in clips]
    assert not embeddings[times.isnan()].any()
    assert torch.equal(model.embed(clips), model.embed(clips)), "deterministic"


def test_the_last_layer_is_the_output_and_layers_are_those_of_the_blocks(
    model: AudioModel,
) -> None:
    waveform = sound(ONE_WINDOW)
    assert torch.equal(model.embed(waveform, layers=model.layers), model.embed(waveform))
    assert torch.equal(model.embed(waveform, layers=-1), model.embed(waveform))
    log_mel = model.front_end(waveform[None]).log_mel
    with torch.no_grad():
        tokens = model.encoder.intermediates(log_mel, range(model.layers))
        blocks = model.encoder.encoder.blocks
        for number, block in enumerate(blocks[:-1]):
            assert torch.allclose(block(tokens[number]), tokens[number + 1], atol=1e-6)


def test_overlapping_windows_hold_each_column_once(plain: AudioModel) -> None:
    waveform = sound(60_000)
    once, twice = plain.frames(waveform), plain.frames(waveform, overlap=0.5)
    assert torch.equal(once.times, twice.times)
    assert not torch.allclose(once.embeddings, twice.embeddings)
    first = plain.frames(waveform[:ONE_WINDOW])
    half = first.times.shape[1] // 2
    # The clip's mean differs, by less than the noise's.
    assert torch.allclose(twice.embeddings[:, :half], first.embeddings[:, :half], atol=0.05)


@pytest.mark.parametrize("frames", range(1, 200, 7))
def test_windows_hold_all_columns(frames: int) -> None:
    layout = Layout(frames=64, columns=4, patch=16, stride=16, hop=3)
    last_start = (layout.windows(frames) - 1) * layout.hop
    assert last_start + layout.columns >= layout.kept(frames) > last_start


def test_sound_may_be_a_path_bytes_an_array_or_any_rate(plain: AudioModel, tmp_path: Path) -> None:
    samples = (sound(8_000) * 2**14).to(torch.int16).numpy()
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    expected = plain.embed(samples)
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="wav")
    for audio in (tmp_path / "a.wav", str(tmp_path / "a.wav"), file.getvalue(), [samples]):
        assert torch.allclose(plain.embed(audio), expected, atol=1e-6)
    stereo = np.stack([samples, samples], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16_000)
    assert torch.allclose(plain.embed(tmp_path / "stereo.wav"), expected, atol=1e-6)


def test_arrays_are_resampled(plain: AudioModel) -> None:
    waveform = sound(8_000)
    twice = resample(waveform, 16_000, 32_000)
    expected = plain.embed(resample(twice, 32_000, 16_000))
    assert torch.equal(plain.embed(twice, rate=32_000), expected)
    assert not torch.allclose(plain.embed(twice), expected, atol=0.02)


@pytest.mark.parametrize(
    ("audio", "named"),
    [
        (np.zeros(0), "no samples"),
        (torch.tensor([0.0, torch.nan]), "clip 0"),
        (torch.zeros(1000, 2), "1000, 2"),
        (torch.zeros(2, 2, 100), "2, 2, 100"),
        ([], "no clips"),
        ([3], "int"),
        ("no_such.wav", "no_such.wav"),
        (b"RIFF", "clip 0"),
        (torch.zeros(100, dtype=torch.int64), "int64"),
    ],
)
def test_sound_that_cannot_be_used(plain: AudioModel, audio: object, named: str) -> None:
    with pytest.raises(AudioError, match=named):
        plain.embed(audio)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layers": 5}, "layer 5"),
        ({"layers": [-6]}, "layer -6"),
        ({"layers": []}, "layers"),
        ({"pool": "max"}, "pool"),
        ({"overlap": 1.0}, "overlap"),
        ({"batch_size": 0}, "batch_size"),
        ({"layers": 1.5}, "layers"),
        ({"rate": 16_000.5}, "rate"),
    ],
)
def test_options_that_are_impossible(
    plain: AudioModel, options: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        plain.embed(sound(100), **options)  # type: ignore[arg-type]


def test_bfloat16_changes_little(plain: AudioModel) -> None:
    waveform = sound(30_000)
    expected = plain.embed(waveform)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        mixed = plain.embed(waveform)
    statistics = plain.front_end.mean.clone()
    half = plain.to(torch.bfloat16)
    assert torch.equal(half.front_end.mean, statistics), "the front end stays in float32"
    for found in (mixed, half.embed(waveform)):
        assert found.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


def test_saved_and_loaded_by_the_hub_s_mixin_and_by_peas(model: AudioModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    waveform = sound(30_000)
    for loaded in (AudioModel.from_pretrained(tmp_path), peas.load(tmp_path)):
        assert loaded.labels == model.labels
        assert torch.equal(loaded.scores(waveform), model.scores(waveform))
        assert torch.equal(loaded.embed(waveform), model.embed(waveform))
    shorter = peas.load(tmp_path, input_frames=32)
    assert shorter.encoder.grid[1] < model.encoder.grid[1]
    assert shorter.embed(waveform).isfinite().all()


def test_the_hub_s_mixin_takes_no_other_weights(plain: AudioModel, tmp_path: Path) -> None:
    plain.save_pretrained(tmp_path)
    state = {k: v for k, v in plain.state_dict().items() if ".blocks.1." not in k}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        AudioModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("count", [np.int64(2), 2])
def test_numbers_may_be_numpys(plain: AudioModel, count: int) -> None:
    embedded = plain.embed(sound(100).numpy()[::-1].astype(">f4"), layers=count, rate=16_000.0)
    assert embedded.shape == (1, plain.dim)
    assert len(plain.embed(sound(100) for _ in range(count))) == 2


def test_a_run_is_loaded_by_its_folder_or_file(peas_run: Run) -> None:
    task, file = peas_run.task, peas_run.checkpoint
    model = peas.load(file, "cpu")
    waveform = sound(model.front_end.samples())
    with torch.no_grad():
        expected = task.cpu().eval()(task.front_end(waveform[None]).log_mel).softmax(1)
    assert torch.allclose(model.scores(waveform), expected, atol=1e-6)
    assert model.labels == task.hparams["labels"]
    best = model.predict(waveform, top=2)[0]
    assert best[0].label == model.labels[int(expected.argmax())]
    assert best[0].score >= best[1].score


def test_what_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.ckpt"):
        peas.load(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        peas.load(tmp_path / "x.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        peas.load(tmp_path)


def test_the_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf://nobody/nothing"):
        peas.load("hf://nobody/nothing")
    with pytest.raises(CheckpointError, match="owner/name"):
        peas.load("hf://a/b/c")
