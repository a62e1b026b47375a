"""Our EAT against numbers of the official code for the same weights and inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_beats import layers
from test_ssast_golden import rule, sound

from peas.models import EAT, vit
from peas.models.weights import EAT as FILES
from peas.models.weights import load_pretrained, read_state
from peas.models.weights.eat import POSITIONS

TOLERANCE = {"rtol": 0, "atol": 2e-5}
CLASSES = 11
FACTORS = {"qkv.weight": 2}
# The official names differ from the hub's.
NORM = "context_encoder.norm."

vit.SIZES.setdefault("parity", vit.Size(64, 3, 4))


def build(frames=208, classes=CLASSES, **settings):
    return EAT("parity", **settings).build(frames, 128, classes).eval()


def fairseq(key):
    """Name in a fine-tuned fairseq file of a name of the hub."""
    key = key.removeprefix("model.")
    if key.startswith(("fc_norm.", "head.")):
        return key
    if key.startswith("blocks."):
        return f"model.{key}"
    return f"model.modality_encoders.IMAGE.{key.replace('pre_norm.', NORM)}"


def weights():
    """The state of a fine-tuned fairseq file by the rule."""
    state = {}
    for key, value in FILES.to_official(build().state_dict(), "fine-tuned").items():
        name = fairseq(key)
        factor = next((f for end, f in FACTORS.items() if key.endswith(end)), 1)
        state[name] = value if key.endswith(POSITIONS) else factor * rule(name, value.shape)
    return state


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "eat.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """As fairseq saves a fine-tuned model, its settings as plain tables."""
    path = tmp_path_factory.mktemp("official") / "eat.pt"
    image = {"prenet_depth": 0, "in_chans": 1, "num_extra_tokens": 1, "use_alibi_encoder": False}
    start = {"num_heads": 4, "layer_norm_first": False, "modalities": {"image": image}}
    cfg = {"model": {"pretrained_model_args": {"model": start}}}
    torch.save({"cfg": cfg, "model": weights(), "args": None, "task_state": {}}, path)
    return path


@pytest.fixture
def model(file):
    model = build()
    report = load_pretrained(model, file)
    assert len(report.used) == 45
    assert not report.missing
    assert set(report.ignored) == {POSITIONS}
    return model


@pytest.mark.parametrize("frames", [208, 96])
@torch.no_grad()
def test_all_layers_and_logits_are_the_official_ones(golden, model, frames):
    x = sound("eat", 2, frames, 128)
    found = layers(model, x)[:, :, ::9]
    torch.testing.assert_close(found, golden[f"layers_{frames}"], **TOLERANCE)
    torch.testing.assert_close(model(x), golden[f"logits_{frames}"], **TOLERANCE)
    model.pooling = "mean"
    torch.testing.assert_close(model(x), golden[f"mean_logits_{frames}"], **TOLERANCE)


def test_positions_are_the_official_ones(golden):
    table = FILES.complete({}, build().state_dict(), "pretrained")[f"model.{POSITIONS}"]
    assert table.shape == (1, 6144, 64)
    rows = table[0, [0, 1, 7, 8, 9, 511, 512, 6143]]
    # The official angles are products in float32; at two minutes that is 2e-5.
    torch.testing.assert_close(rows, golden["positions"], rtol=0, atol=3e-5)
    own = build(1024).encoder.positions
    assert torch.equal(own, table[:, :512])


def test_a_pretrained_file_of_fairseq(file, model, tmp_path):
    """It has no classifier, a decoder, the teacher's weights, and no `model.` before its keys."""
    state = {
        key.removeprefix("model."): value
        for key, value in read_state(file)["model"].items()
        if not key.startswith(("fc_norm.", "head."))
    }
    decoder = "modality_encoders.IMAGE.decoder.blocks.0.0.weight"
    extra = {"_ema": {"blocks.0.norm1.weight": torch.ones(64)}, decoder: torch.ones(3)}
    torch.save({"model": state | extra}, tmp_path / "pretrained.pt")
    fresh = build(96)
    report = load_pretrained(fresh, tmp_path / "pretrained.pt")
    assert set(report.missing) == {f"{m}.{p}" for m in ("fc_norm", "head") for p in BOTH}
    assert set(report.ignored) == {POSITIONS, decoder.removeprefix("modality_encoders.IMAGE.")}
    assert report.notes
    x = sound("eat", 2, 208, 128)
    with torch.no_grad():
        assert torch.equal(fresh.tokens(x), model.tokens(x))


BOTH = ("weight", "bias")


@torch.no_grad()
def test_dropped_patches_do_not_reach_the_blocks(model):
    x = sound("eat", 2, 96, 128)
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[:, 8:16] = True
    found = model.tokens(x, masked)
    assert found.shape == (2, 41, 64)
    x[:, 16:32] = 1.0
    assert torch.equal(model.tokens(x, masked), found)
