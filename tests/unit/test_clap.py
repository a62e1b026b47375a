import importlib.util
import json
import socket
import subprocess
import sys
import textwrap
import warnings

import jsonargparse
import numpy as np
import pytest
import torch
from torch import nn

from peas.errors import CheckpointError, ConfigError, DataError
from peas.models.weights.clap import ClapWeights, read_clap, to_hub, to_laion
from peas.teachers import LaionClapTeacher, Teacher, TransformersClapTeacher, htsat
from peas.teachers.clap_laion import build_tower
from peas.teachers.clap_transformers import build_tower as hub_tower
from peas.teachers.grid import target_matrix
from peas.teachers.htsat import clap_log_mel, window_count, windows

needs_laion = (
    pytest.mark.needs_numpy1,
    pytest.mark.skipif(
        importlib.util.find_spec("laion_clap") is None, reason="needs laion-clap: make test-clap"
    ),
)
LAION = pytest.param(LaionClapTeacher, marks=needs_laion)


def with_laion(test):
    """Marks a test that runs LAION's own network."""
    for mark in needs_laion:
        test = mark(test)
    return test


CELL = 32 * 1000 / 1023 * 0.01


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """No test here may ask the network, whichever teacher it makes."""

    def refuse(*args, **_):
        raise AssertionError(f"the network was asked: {args}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(network, seed=0):
    """Weights and statistics that no default of either implementation hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point() or name.endswith("attn_mask"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "running_mean" in name:
                value.copy_(-40 + 10 * noise)
            elif "running_var" in name:
                value.copy_(300 + 100 * noise.abs())
            else:
                value.add_(0.02 * noise)
    return network


def laion_state(seed=0, arch="HTSAT-tiny"):
    return {k: v.clone() for k, v in randomise(build_tower(arch), seed).state_dict().items()}


@pytest.fixture(scope="module")
def state():
    """In LAION's names, from LAION's tower where laion-clap is installed."""
    if importlib.util.find_spec("laion_clap"):
        return laion_state()
    tower = randomise(hub_tower("HTSAT-tiny")).state_dict()
    return to_laion({key: value.clone() for key, value in tower.items()})


@pytest.fixture(scope="module")
def laion_file(state, tmp_path_factory):
    """As LAION's training saved it: wrapped, prefixed, with text, constants and NumPy numbers."""
    text = {
        "text_branch.embeddings.position_ids": torch.arange(514)[None],
        "text_projection.0.weight": torch.zeros(4, 4),
        "logit_scale_a": torch.zeros(()),
        "audio_transform.sequential.0.weight": torch.zeros(4, 4),
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
        "audio_branch.logmel_extractor.melW": htsat.mel_bank(),
        "audio_branch.tscam_conv.bias": torch.zeros(527),
        "audio_branch.head.bias": torch.zeros(527),
    }
    inner = {f"module.{key}": value for key, value in (state | text).items()}
    best = np.float64(0.25)
    path = tmp_path_factory.mktemp("laion") / "630k.pt"
    torch.save({"epoch": 7, "best": best, "state_dict": inner, "optimizer": {"lr": best}}, path)
    return path


@pytest.fixture(scope="module")
def laion(laion_file):
    return LaionClapTeacher(str(laion_file))


@pytest.fixture(scope="module")
def hub(laion_file):
    return TransformersClapTeacher(str(laion_file))


def noise(batch, samples=480_000, seed=3):
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def lengths(*values):
    return torch.tensor(values)


def quiet(teacher, *args, **settings):
    """A teacher whose network is made at once, without the word on random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = teacher(*args, **settings)
        assert made.network is made.network
        return made


# Front end


@with_laion
def test_log_mel_is_torchlibrosas():
    from torchlibrosa.stft import LogmelFilterBank, Spectrogram

    tone = 0.5 * torch.sin(torch.arange(480_000) * (2 * torch.pi * 440 / 48_000))
    sound = noise(2)
    sound[1] = tone + 1e-3 * sound[1]
    stft = Spectrogram(n_fft=1024, hop_length=480, win_length=1024, freeze_parameters=True)
    mel = LogmelFilterBank(
        sr=48_000, n_fft=1024, n_mels=64, fmin=50, fmax=14_000, ref=1.0, amin=1e-10, top_db=None
    )
    with torch.no_grad():
        theirs = mel(stft(sound))[:, 0]
    ours = clap_log_mel(sound)
    assert ours.shape == (2, 1001, 64)
    difference = (ours - theirs).abs()
    assert difference[0].max() < 4e-5
    # Far below a loud tone both hold their own rounding of it.
    near = theirs[1] > theirs[1].max() - 50
    assert difference[1][near].max() < 1e-3
    assert difference[1].max() < 0.05
    torch.testing.assert_close(htsat.mel_bank(), mel.melW.detach(), rtol=1e-5, atol=1e-9)


def test_silence_is_the_floor():
    assert (clap_log_mel(torch.zeros(1, 480_000)) == -100).all()


def test_extent_of_the_cells():
    extent = htsat.extent()
    assert extent.first_centre == pytest.approx(0.15152, abs=1e-5)
    assert extent.step == pytest.approx(CELL)
    assert extent.first_centre + 31 * extent.step == pytest.approx(9.8485, abs=1e-4)
    assert [round(edge) for edge in extent.freq_edges] == [77, 2293, 13616]
    matrix = target_matrix(extent, 32, time_patches=64, freq_patches=8)
    place = (matrix.view(64, 8, 2, 32).sum(2) * torch.arange(32)).sum(-1)[31, 0].item()
    assert place == pytest.approx(15.65, abs=0.005)


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.1, 1), (4, 1), (10, 1), (10.24, 1), (10.33, 2), (20, 2), (30.4, 4)]
)
def test_window_count(seconds, count):
    assert window_count(round(seconds * 48_000)) == count


def test_windows_go_on_in_the_map_own_step():
    sound = torch.arange(1.0, 1_000_001.0)[None]
    cut = windows(sound, lengths(1_000_000), "silence")
    starts = (cut[0, :, 0] - 1) / 48_000
    steps = torch.arange(len(starts)) * 32 * htsat.extent().step
    torch.testing.assert_close(starts, steps, rtol=0, atol=1.1e-5)


@pytest.mark.parametrize("fill", ["silence", "repeat"])
def test_what_lies_behind_a_clip_is_not_heard(fill):
    sound = noise(3, 600_000)
    length = lengths(600_000, 200_000, 0)
    dirty = windows(sound, length, fill)
    clean = torch.where(torch.arange(600_000) < length[:, None], sound, 0.0)
    assert torch.equal(dirty, windows(clean, length, fill))
    assert torch.equal(dirty[1, 0, :200_000], sound[1, :200_000])
    assert (dirty[2] == 0).all()
    if fill == "repeat":
        assert torch.equal(dirty[1, 0, 200_000:400_000], sound[1, :200_000])
    assert (dirty[1, 0, 400_000 if fill == "repeat" else 200_000 :] == 0).all()
    own = 600_000 - htsat.SETTINGS["window_step"]
    assert torch.equal(dirty[0, 1, :own], sound[0, -own:])


# The two implementations


@with_laion
def test_transformers_equals_laions_own_forward(state, laion, hub):
    from torchlibrosa.stft import LogmelFilterBank, Spectrogram

    # Their tower as they run it, with the front end and the head that ours leaves out.
    network = build_tower("HTSAT-tiny")
    network.load_state_dict(state)
    tower = network.eval()["audio_branch"]
    tower.spectrogram_extractor = Spectrogram(n_fft=1024, hop_length=480, win_length=1024)
    tower.logmel_extractor = LogmelFilterBank(
        sr=48_000, n_fft=1024, n_mels=64, fmin=50, fmax=14_000, amin=1e-10, top_db=None
    )
    tower.tscam_conv = nn.Conv2d(768, 527, (2, 3), padding=(0, 1))
    sound, length = noise(1), lengths(480_000)
    with torch.no_grad():
        theirs = tower({"waveform": sound})
    ours = {"laion": laion(sound, length), "hub": hub(sound, length)}
    assert ours["hub"].shape == (1, 768, 2, 32)
    assert ours["hub"].dtype == torch.float32
    assert ours["hub"].std() > 0.3
    for maps in ours.values():
        pooled = maps.mean((2, 3))
        torch.testing.assert_close(pooled, theirs["embedding"], rtol=0, atol=1e-5)
        fine = maps.mean(2).repeat_interleave(32, dim=2).transpose(1, 2)
        torch.testing.assert_close(fine, theirs["fine_grained_embedding"], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["hub"], ours["laion"], rtol=0, atol=1e-5)
    assert hub.fingerprint == laion.fingerprint


@with_laion
def test_joint_space_sends_each_cell_through_the_projection(laion_file, state, hub, monkeypatch):
    joint = LaionClapTeacher(str(laion_file), space="joint")
    assert joint.width == 512
    assert joint.fingerprint != hub.fingerprint
    sound, length = noise(1), lengths(480_000)
    cell = hub(sound, length)[0, :, 1, 20]
    hidden = (state["audio_projection.0.weight"] @ cell + state["audio_projection.0.bias"]).relu()
    expected = state["audio_projection.2.weight"] @ hidden + state["audio_projection.2.bias"]
    cells = joint(sound, length)
    assert cells.shape == (1, 512, 2, 32)
    torch.testing.assert_close(cells[0, :, 1, 20], expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(hub, "space", "joint")
    torch.testing.assert_close(hub(sound, length), cells, rtol=0, atol=1e-5)
    assert hub.fingerprint == joint.fingerprint


@with_laion
def test_base_tower_equals_too():
    one = quiet(LaionClapTeacher, None, arch="HTSAT-base")
    other = TransformersClapTeacher(None, arch="HTSAT-base")
    with torch.device("meta"):
        network = other.tower()
    state = to_hub(randomise(one.network).state_dict())
    network.load_state_dict(state, assign=True)
    other.network = network.eval()
    assert one.width == other.width == 1024
    log_mel = clap_log_mel(noise(1))
    with torch.no_grad():
        maps = one.last_map(log_mel), other.last_map(log_mel)
    assert maps[0].shape == (1, 1024, 2, 32)
    torch.testing.assert_close(*maps, rtol=0, atol=1e-5)


def test_key_map_is_its_own_inverse(state):
    kept = {key for key in state if not key.endswith("attn_mask")}
    back = to_laion(to_hub(state))
    assert set(back) == kept
    assert all(torch.equal(back[key], state[key]) for key in kept)
    assert len(to_hub(state)) == 240


def test_a_burst_peaks_in_its_own_cell(hub):
    time = torch.arange(480_000) / 48_000
    bursts = [(0, 800.0, 2.5), (1, 6000.0, 2.5), (0, 800.0, 7.7), (1, 6000.0, 7.7)]
    sound = torch.zeros(5, 480_000)
    for clip, (_, hertz, start) in enumerate(bursts):
        inside = (time >= start) & (time < start + 0.3)
        tone = torch.sin(2 * torch.pi * hertz * time[inside])
        sound[clip, inside] = 0.5 * tone * torch.hann_window(int(inside.sum()))
    maps = hub(sound, torch.full((5,), 480_000))
    for clip, (row, _, start) in enumerate(bursts):
        peak = divmod((maps[clip] - maps[4]).square().sum(0).argmax().item(), 32)
        assert peak == (row, round((start + 0.15 - hub.extent.first_centre) / hub.extent.step))


# Behaviour


def test_batched_equals_one_by_one(hub):
    sound, length = noise(2, 520_000), lengths(520_000, 150_000)
    together = hub(sound, length)
    assert together.shape == (2, 768, 2, 64)
    alone = torch.cat([hub(sound[i : i + 1], length[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    # The first window of a longer clip is the clip's first ten seconds.
    first = hub(sound[:1, :480_000], lengths(480_000))
    torch.testing.assert_close(together[:1, ..., :32], first, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [LAION, TransformersClapTeacher])
def test_stays_frozen_and_in_eval(kind, laion, hub):
    teacher = laion if kind is LaionClapTeacher else hub
    sound, length = noise(1), lengths(480_000)
    before = teacher(sound, length)
    state = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    teacher.network.train()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        after = teacher(sound.requires_grad_(), length)
    assert torch.equal(before, after)
    assert after.dtype == torch.float32
    assert not after.requires_grad
    assert not any(module.training for module in teacher.network.modules())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    now = teacher.network.state_dict()
    assert all(torch.equal(now[key], value) for key, value in state.items())


def test_whoever_holds_a_teacher_does_not_own_it(hub):
    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = hub

    task = Task()
    assert not list(task.parameters())
    assert not task.state_dict()


def test_fingerprint_is_of_weights_and_settings(hub, monkeypatch):
    whole = hub.fingerprint
    state = hub.network.state_dict()
    for name in ("batch_norm.running_var", "layers.2.blocks.5.attention.self.value.bias"):
        value = state[f"audio_model.audio_encoder.{name}"]
        kept = value[3].item()
        value[3] = torch.nextafter(value[3], torch.tensor(torch.inf))
        assert hub.fingerprint != whole, name
        value[3] = kept
    assert hub.fingerprint == whole
    monkeypatch.setattr(hub, "fill", "repeat")
    assert hub.fingerprint != whole


def test_random_weights_are_asked_for_and_told():
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="checkpoint is null: its weights are random"):
        one = TransformersClapTeacher(None, seed=1).to("cpu")
    assert torch.equal(before, torch.get_rng_state())
    assert one.name == "CLAP HTSAT-tiny, random weights"
    same, other = (quiet(TransformersClapTeacher, None, seed=seed) for seed in (1, 2))
    first = [teacher.network.audio_projection.linear1.weight for teacher in (one, same, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert other.to("meta") is other
    assert {weight.device.type for weight in other.network.parameters()} == {"meta"}


@pytest.mark.parametrize("kind", [LAION, TransformersClapTeacher])
def test_a_checkpoint_must_be_given(kind):
    with pytest.raises(ConfigError, match="checkpoint is not given"):
        kind().to("cpu")


def test_sound_that_is_not_finite(hub):
    sound = noise(2)
    sound[1, 1000] = torch.nan
    with pytest.raises(DataError, match="clip 1 of the batch holds NaN"):
        hub(sound, lengths(480_000, 480_000))
    with pytest.raises(ValueError, match=r"takes waveform \[B, S\]"):
        hub(sound[0], lengths(480_000))


@pytest.mark.parametrize("kind", [LAION, TransformersClapTeacher])
def test_is_made_from_plain_settings(kind):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--teacher", type=Teacher | None)
    node = {"class_path": f"peas.teachers.{kind.__name__}", "init_args": {"space": "joint"}}
    for checkpoint, told in ((None, "checkpoint is not given"), ("no.pt", r"no\.pt: no such file")):
        if checkpoint is not None:
            node["init_args"]["checkpoint"] = checkpoint
        teacher = parser.instantiate_classes(parser.parse_object({"teacher": node})).teacher
        assert type(teacher) is kind
        assert teacher.width == 512
        # Told when the network is needed, in the teacher's own words and not in the parser's.
        with pytest.raises((ConfigError, CheckpointError), match=told):
            _ = teacher.fingerprint
    assert teacher.name == "CLAP HTSAT-tiny, no.pt, joint space"


@with_laion
def test_laions_tower_is_built_without_its_package():
    # `datasets` first: it fixes whether the hub may be asked before any setting of ours could.
    script = """
        import datasets, socket, sys, time, warnings

        def refuse(*args, **kwargs):
            raise AssertionError(f"the network was asked: {args}")

        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        warnings.simplefilter("ignore")
        start = time.monotonic()
        from peas.teachers import LaionClapTeacher

        LaionClapTeacher(None).to("cpu")
        assert time.monotonic() - start < 60
        assert "transformers" not in sys.modules and "laion_clap" not in sys.modules
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr


# Files


def save(folder, state, name="clap.pt"):
    path = folder / name
    torch.save(state, path)
    return path


def test_reads_what_laion_saves(laion_file, state):
    weights = read_clap(laion_file)
    assert weights.arch == "HTSAT-tiny"
    assert len(weights.state) == 240
    assert all(torch.equal(weights.state[key], value) for key, value in to_hub(state).items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, state):
    """A model folder as transformers saves the whole model, its text tower kept small."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = ClapModel(ClapConfig(text_config=text, audio_config={"projection_dim": 512}))
    model.load_state_dict(to_hub(state), strict=False)
    path = tmp_path_factory.mktemp("hub") / "clap-htsat-unfused"
    model.save_pretrained(path)
    ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc").save_pretrained(path)
    return path


@with_laion
def test_model_folder_equals_the_file(folder, laion):
    hub, own = TransformersClapTeacher(str(folder)), LaionClapTeacher(str(folder))
    assert hub.fingerprint == own.fingerprint == laion.fingerprint
    assert hub.name == "CLAP HTSAT-tiny, clap-htsat-unfused"


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("config.json", None, r"config\.json: missing"),
        ("config.json", "{", r"config\.json: is no JSON"),
        ("config.json", "[1]", "holds no JSON object"),
        ("config.json", {"audio_config": {"window_size": 7}}, "window_size is 7, but .* have 8"),
        ("preprocessor_config.json", {"frequency_min": 0}, r"frequency_min is 0, but .* 50\.0"),
        ("model.safetensors", None, "holds neither model.safetensors nor pytorch_model.bin"),
        ("model.safetensors", "cut", r"model\.safetensors: cannot be read"),
    ],
)
def test_bad_model_folders(tmp_path, folder, file, change, told):
    for source in folder.iterdir():
        (tmp_path / source.name).symlink_to(source)
    path = tmp_path / file
    path.unlink()
    if change == "cut":
        path.write_bytes((folder / file).read_bytes()[:2_000_000])
    elif change is not None:
        path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(CheckpointError, match=told):
        read_clap(tmp_path)


def test_missing_file_says_where_weights_come_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such .*lukewys/laion_clap"):
        LaionClapTeacher(str(tmp_path / "absent.pt")).to("cpu")


@pytest.mark.parametrize("kept", [0, 500, 4_000_000, -100])
def test_truncated(tmp_path, laion_file, kept):
    path = tmp_path / "cut.pt"
    path.write_bytes(laion_file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.pt: .*cut short, damaged"):
        read_clap(path)


FIRST = "audio_branch.patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"v.pos_embed": torch.zeros(1)}, "is no CLAP .* It holds v.pos_embed"),
        ({"text_branch.pooler.dense.weight": torch.zeros(1)}, "holds text_branch.* expected"),
        ({}, "It holds nothing"),
        ({"state_dict": 3}, "state_dict is no dictionary"),
        (
            {"audio_branch.conv_block1.conv1.weight": torch.zeros(1)},
            "an audio tower other than HTSAT",
        ),
        (
            {FIRST: torch.zeros(96, 1, 4, 4), "audio_branch.patch_embed.mel_conv2d.bias": 0},
            "is a fusion CLAP .*mel_conv2d.*give an unfused one",
        ),
        ({FIRST: torch.zeros(256, 1, 4, 4)}, "starts 256 wide; those known are HTSAT-tiny"),
        ({FIRST: torch.full((96, 1, 4, 4), torch.nan)}, f"{FIRST} holds NaN"),
        (
            {
                FIRST: torch.zeros(96, 1, 4, 4),
                "audio_branch.logmel_extractor.melW": 1.1 * htsat.mel_bank(),
            },
            "takes another log-mel",
        ),
    ],
)
def test_file_of_another_kind(tmp_path, state, told):
    path = save(tmp_path, state)
    with pytest.raises(CheckpointError, match=rf"clap\.pt: .*{told}"):
        read_clap(path)


@with_laion
def test_a_file_that_lacks_a_tensor(tmp_path, state):
    key = "audio_branch.layers.2.blocks.4.attn.qkv.bias"
    path = save(tmp_path, {k: v for k, v in state.items() if k != key})
    told = rf"clap\.pt: as HTSAT-tiny it lacks {key}.* \(3\); the file is incomplete"
    with pytest.raises(CheckpointError, match=told):
        quiet(LaionClapTeacher, str(path))


def test_tensors_left_over_or_of_another_shape(state):
    own = to_hub(state)
    weights = ClapWeights("f.pt", "HTSAT-tiny", dict(own), laion=True)
    assert set(weights.fitted(own)) == set(own)
    block = "audio_model.audio_encoder.layers.2.blocks.6.layernorm_before.bias"
    weights.state[block] = torch.zeros(384)
    told = r"f\.pt: .*unknown tensors audio_branch\.layers\.2\.blocks\.6\.norm1\.bias \(1\)"
    with pytest.raises(CheckpointError, match=told):
        weights.fitted(own)
    del weights.state[block]
    table = "layers.0.blocks.0.attention.self.relative_position_bias_table"
    weights.state[f"audio_model.audio_encoder.{table}"] = torch.zeros(9, 4)
    told = r"blocks\.0\.attn\.relative_position_bias_table has shape \[9, 4\].*needs \[225, 4\]"
    with pytest.raises(CheckpointError, match=told):
        weights.fitted(own)
    # Constants of the architecture may be left out of a file.
    constant = "audio_model.audio_encoder.batch_norm.num_batches_tracked"
    lean = {key: value for key, value in own.items() if key != constant}
    assert constant in ClapWeights("f.pt", "HTSAT-tiny", lean, laion=False).fitted(own)


def test_a_file_of_the_other_size(tmp_path, laion_file):
    with pytest.raises(CheckpointError, match=r"holds HTSAT-tiny, but .* set arch: HTSAT-tiny"):
        LaionClapTeacher(str(laion_file), arch="HTSAT-base").to("cpu")


def test_a_file_that_would_run_code(tmp_path):
    path = save(tmp_path, {"state_dict": {}, "hook": print})
    with pytest.raises(CheckpointError, match=r"refused, .*nothing was executed"):
        read_clap(path)


@pytest.mark.parametrize("setting", ["arch", "space", "fill"])
def test_unknown_settings(setting):
    with pytest.raises(ConfigError, match=f"teacher: {setting} is 'other'"):
        TransformersClapTeacher(None, **{setting: "other"})


@pytest.mark.parametrize("kind", [LAION, TransformersClapTeacher])
def test_a_package_that_is_not_there(kind, monkeypatch):
    for name in ("transformers", "_peas_laion_clap", "_peas_laion_clap.htsat"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{kind.__name__} cannot load .*pip install"):
        kind(None).to("cpu")
