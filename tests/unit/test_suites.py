"""Interfaces of the evaluation suites, without the suites."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_examples import _run
from torch import Tensor

from peas.audio import KaldiLogMel
from peas.errors import ConfigError
from peas.inference import AudioModel
from peas.models import SSAST, AudioMAE
from peas.suites import hear, s3prl, xares
from peas.suites.checkpoint import digest

ENCODERS = {
    "ssast": lambda: SSAST("mini", stride=(10, 10)),
    "frame_patches": lambda: SSAST("mini", patch=(128, 2)),
    "audiomae": lambda: AudioMAE("mini"),
}


@pytest.fixture(params=list(ENCODERS))
def model(request: pytest.FixtureRequest) -> AudioModel:
    torch.manual_seed(0)
    return AudioModel(ENCODERS[request.param](), KaldiLogMel(64, -6.8, 5.5))


@pytest.fixture
def path(model: AudioModel, tmp_path: Path) -> str:
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def sound(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_hear(model: AudioModel, path: str, seconds: float) -> None:
    """What hearvalidator checks."""
    loaded = hear.load_model(path)
    audio = sound(2, int(seconds * loaded.sample_rate))
    scenes = hear.get_scene_embeddings(audio, loaded)
    assert scenes.shape == (2, loaded.scene_embedding_size)
    assert scenes.dtype == torch.float32
    assert torch.equal(scenes, model.embed(audio))
    embedded, times = hear.get_timestamp_embeddings(audio, loaded)
    assert embedded.dtype == torch.float32
    assert embedded.shape == (*times.shape, loaded.timestamp_embedding_size)
    steps = times.diff()
    assert torch.allclose(steps, torch.full_like(steps, model.hop_ms), atol=1e-2)
    assert 0 <= times.min() <= times.max() <= 1000 * seconds
    assert times.max() > 1000 * seconds - 2 * model.encoder.patch[1] * 10 - 25


def test_hear_takes_layers_and_pools(path: str) -> None:
    loaded = hear.load_model(path, layer=1, pool="mean+std", bands="mean")
    audio = sound(3, 16_000)
    assert hear.get_scene_embeddings(audio, loaded).shape == (3, loaded.scene_embedding_size)
    embedded, _ = hear.get_timestamp_embeddings(audio, loaded)
    assert embedded.shape[2] == loaded.timestamp_embedding_size


def test_without_a_path_the_environment_names_the_checkpoint(path: str) -> None:
    for make in (hear.load_model, xares.PeasEncoder, xares.encoder, s3prl.UpstreamExpert):
        os.environ.pop("PEAS_CHECKPOINT", None)
        with pytest.raises(ConfigError, match="PEAS_CHECKPOINT"):
            make()
        os.environ["PEAS_CHECKPOINT"] = path
        assert make().model.dim == 128


def test_xares(model: AudioModel, path: str) -> None:
    """What `check_audio_encoder` checks, and what finds the class."""
    names = [name for name in dir(xares) if name.endswith("Encoder")]
    assert names == ["PeasEncoder"]
    encoder = xares.encoder(path)
    assert type(encoder).__name__.endswith("Encoder")
    embedded = encoder(sound(2, 50_000))
    assert embedded.shape[::2] == (2, encoder.output_dim)
    assert embedded.shape[1] == pytest.approx(3125 / encoder.hop_size_in_ms, abs=1.5)
    assert encoder.sampling_rate == model.sample_rate


def test_xares_keeps_scores_of_other_weights_and_options_apart(
    model: AudioModel, path: str, tmp_path: Path
) -> None:
    name = type(xares.encoder(path)).__name__
    assert name == type(xares.encoder(path)).__name__
    assert name != type(xares.encoder(path, layer=1)).__name__
    assert name != type(xares.encoder(path, bands="mean")).__name__
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1e-3)
    model.save_pretrained(tmp_path / "other")
    assert name != type(xares.encoder(str(tmp_path / "other"))).__name__


def test_the_digest_does_not_depend_on_where_a_model_came_from(model: AudioModel) -> None:
    before = digest(model)
    model.origin["file"] = "other.ckpt"
    assert digest(model) == before
    model.front_end.mean += 1
    assert digest(model) != before
    assert len(digest(model.to(torch.bfloat16))) == 10


@pytest.mark.parametrize("lengths", [[16_000, 32_000], [2_561, 2_561], [800, 100], [400]])
def test_s3prl(model: AudioModel, path: str, lengths: list[int]) -> None:
    """Layers of one width, and as many embeddings as s3prl expects, to the difference of one."""
    expert = s3prl.peas_local(path, refresh=True).train()
    assert not expert.training
    assert not expert.model.training
    rate = expert.get_downsample_rates("hidden_states")
    assert rate == model.hop_ms * 16
    clips = [sound(length) for length in lengths]
    states = expert(clips)["hidden_states"]
    assert len(states) == model.layers + 1
    begun = [-(-length // rate) for length in lengths]
    expected, times = model.frames(clips, layers=range(model.layers + 1))
    for state, layer in zip(states, expected, strict=True):
        assert state.shape == (len(lengths), max(begun), layer.shape[2])
        for row, time in enumerate(times):
            own = min(int(time.isfinite().sum()), begun[row])
            assert torch.equal(state[row, :own], layer[row, :own])
            assert (state[row, own : begun[row]] == layer[row, own - 1]).all()
            assert not state[row, begun[row] :].any()


def test_s3prl_reads_options(path: str, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({"bands": "mean", "layers": [1, -1]}))
    expert = s3prl.UpstreamExpert(path, str(tmp_path / "options.yaml"))
    states = expert([sound(16_000)])["hidden_states"]
    assert [state.shape[2] for state in states] == [expert.model.dim] * 2


def test_a_set_is_written_for_xares(
    model: AudioModel, path: str, sounds: Path, tmp_path: Path
) -> None:
    printed = _run("xares_set", sounds, tmp_path, "--checkpoint", path, "--bands", "mean")
    assert f"cd {tmp_path} && python -m xares.run" in printed
    stored = np.load(tmp_path / "own_set.npz")
    name = type(xares.encoder(path, bands="mean")).__name__
    folder = tmp_path / "env" / "own_set" / "embeddings" / name
    files = [sounds / "audio" / f"{clip}.wav" for clip in stored["ids"]]
    assert np.allclose(stored["embeddings"], model.embed(files).numpy(), atol=1e-5)
    seen = []
    for fold in set(stored["folds"].tolist()):
        with tarfile.open(folder / f"wds-encoded-fold-{fold}-000000.tar") as tar:
            files = {entry.name: tar.extractfile(entry).read() for entry in tar}
        for row in np.flatnonzero(stored["folds"] == fold):
            clip = stored["ids"][row]
            frames = np.load(io.BytesIO(files.pop(f"{clip}.npy")))
            assert np.allclose(frames.mean(axis=0), stored["embeddings"][row], atol=1e-6)
            assert json.loads(files.pop(f"{clip}.json")) == {"label": stored["classes"][row]}
            seen.append(clip)
        assert not files
    assert sorted(seen) == sorted(stored["ids"])
