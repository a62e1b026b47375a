"""Our BEATs against numbers of the official code for the same weights and inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from test_ssast_golden import rule, sound

from peas.audio import BEATsLogMel
from peas.models import BEATs, vit
from peas.models.weights import BEATS, load_pretrained, read_state

TOLERANCE = {"rtol": 0, "atol": 2e-5}
CLASSES = 11
TABLE = "encoder.layers.0.self_attn.relative_attention_bias.weight"
# So that attention, bias and gates matter.
FACTORS = {"q_proj.weight": 3, "k_proj.weight": 3, "relative_attention_bias.weight": 4}
STEPS = {400: 13, 96: 7}
"""Every so many tokens are stored, by frames."""
CFG = {
    "input_patch_size": 16,
    "embed_dim": 32,
    "encoder_layers": 3,
    "encoder_embed_dim": 64,
    "encoder_ffn_embed_dim": 256,
    "encoder_attention_heads": 4,
    "encoder_layerdrop": 0.05,
    "deep_norm": True,
    "relative_position_embedding": True,
    "max_distance": 800,
    "gru_rel_pos": True,
    "finetuned_model": True,
    "predictor_class": CLASSES,
}

vit.SIZES.setdefault("parity", vit.Size(64, 3, 4))


def build(frames=400, classes=CLASSES, **settings):
    return BEATs("parity", patch_width=32, **settings).build(frames, 128, classes).eval()


def weights():
    """The official state by the rule."""
    shapes = BEATS.to_official(build().state_dict(), "fine-tuned")
    state = {}
    for key, value in shapes.items():
        name = TABLE if key.endswith("relative_attention_bias.weight") else key
        factor = next((f for end, f in FACTORS.items() if key.endswith(end)), 1)
        state[key] = factor * rule(name, value.shape)
    return state


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "beats.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As the official code saves a fine-tuned model."""
    path = tmp_path_factory.mktemp("official") / "beats.pt"
    torch.save({"cfg": CFG, "model": weights()}, path)
    return path


@pytest.fixture
def model(file):
    model = build()
    report = load_pretrained(model, file)
    assert len(report.used) == 72
    assert not report.missing
    assert not report.ignored
    return model


def layers(model, log_mel):
    """Input of the first block and output of every one, `[1 + L, B, N, D]`."""
    found = []
    first = model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    hooks = [
        block.register_forward_hook(lambda *call: found.append(call[2]))
        for block in model.encoder.blocks
    ]
    tokens = model.tokens(log_mel)
    for hook in (first, *hooks):
        hook.remove()
    assert torch.equal(tokens, found[-1])
    return torch.stack(found)


@pytest.mark.parametrize("frames", STEPS)
@torch.no_grad()
def test_all_layers_and_logits_are_the_official_ones(golden, model, frames):
    x = sound("beats", 2, frames, 128)
    found = layers(model, x)[:, :, :: STEPS[frames]]
    torch.testing.assert_close(found, golden[f"layers_{frames}"], **TOLERANCE)
    torch.testing.assert_close(model(x), golden[f"logits_{frames}"], **TOLERANCE)


def wave():
    samples = 0.2 * sound("beats_wave", 2, 25_840)
    samples[1, 12_000:14_000] = 0
    return samples


@torch.no_grad()
def test_sound_to_probabilities(golden, model):
    log_mel = BEATsLogMel(160)(wave()).log_mel
    torch.testing.assert_close(log_mel[:, ::8, ::4], golden["fbank"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(log_mel).sigmoid(), golden["wave_probs"], **TOLERANCE)


def test_log_mels_are_kaldis_with_its_defaults():
    front_end = BEATsLogMel(160)
    log_mel = front_end.mean + 2 * front_end.std * front_end(wave()).log_mel
    for clip, found in zip(wave(), log_mel, strict=True):
        kaldi = torchaudio.compliance.kaldi.fbank(
            clip[None] * 2**15,
            num_mel_bins=128,
            sample_frequency=16_000,
            frame_length=25,
            frame_shift=10,
        )
        torch.testing.assert_close(found, kaldi, rtol=0, atol=1e-4)


def test_padding_is_silence():
    front_end = BEATsLogMel(64)
    found = front_end(wave()[:, :6000], torch.tensor([6000, 3000]))
    padded = torch.cat((wave()[:, :6000], torch.zeros(2, 20_000)), dim=1)
    padded[1, 3000:] = 0
    whole = front_end(padded)
    assert torch.equal(found.frames, torch.tensor([36, 17]))
    for row, frames in enumerate(found.frames.tolist()):
        assert torch.equal(found.log_mel[row, :frames], whole.log_mel[row, :frames])
    assert torch.equal(found.log_mel[:, 40:], whole.log_mel[:, 40:])


@torch.no_grad()
def test_what_a_dropped_patch_holds_does_not_matter(model):
    x = sound("beats", 2, 96, 128)
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[0, 8:16], masked[1, 40:] = True, True
    found = model.tokens(x, masked)
    assert found.shape == (2, 40, 64)
    # Token t * 8 + f: a column of patches is 16 frames.
    x[0, 16:32], x[1, 80:96] = 1.0, -2.0
    torch.testing.assert_close(model.tokens(x, masked), found, rtol=0, atol=1e-5)
    nothing = torch.zeros(2, 48, dtype=torch.bool)
    torch.testing.assert_close(model.tokens(x, nothing), model.tokens(x), rtol=0, atol=1e-5)


def test_gradients_decay_from_block_to_block(file):
    x, gradients = sound("beats", 1, 96, 128), []
    for decay in (1.0, 0.5):
        model = build(gradient_decay=decay)
        load_pretrained(model, file)
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, decayed = gradients
    for name, gradient in plain.items():
        layer = build().layer_of(name)
        # The table is used by all blocks.
        if name != "encoder.distances.bias":
            factor = 0.5 ** max(3 - layer, 0)
            torch.testing.assert_close(decayed[name], factor * gradient)


def test_official_files_come_back_whole(file, model):
    theirs, state = read_state(file), model.state_dict()
    ours = BEATS.to_official(state, "fine-tuned")
    assert set(ours) == set(theirs["model"])
    assert all(torch.equal(ours[key], value) for key, value in theirs["model"].items())
    said = BEATS.beside(state, model.spec()["init_args"])["cfg"]
    assert said.items() >= {k: v for k, v in CFG.items() if k != "encoder_layerdrop"}.items()
