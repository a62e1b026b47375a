"""Our model against numbers that the official SSAST code gave for the same weights and inputs."""

import json
import zlib

import numpy as np
import pytest
import torch
from made import built_ssast
from torch.nn import functional

from peas.models.patches import patchify
from peas.models.weights import SSAST, load_pretrained

TOLERANCE = {"rtol": 0, "atol": 2e-5}
SHAPES = {"patch": (16, 16), "frame": (128, 2)}


def rule(key, shape, seed=0):
    """Values that the reference run gave a tensor, from its name."""
    key = key.removeprefix("module.")
    draws = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    a = draws.standard_normal(tuple(shape))
    last = key.split(".")[-1]
    if last == "weight" and len(shape) == 1:
        a = 1 + 0.1 * a
    elif last == "tau":
        a = 0.5 + np.abs(a)
    elif len(shape) < 2:
        a = 0.1 * a
    elif last.endswith(("_token", "_embed")):
        a = 0.5 * a
    else:
        a = a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(a, dtype=np.float32))


def sound(name, *shape):
    draws = np.random.RandomState(zlib.crc32(name.encode()) % 2**32)
    return torch.from_numpy((0.5 * draws.standard_normal(shape)).astype(np.float32))


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "ssast_tiny_seed0.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def official(shared, tmp_path_factory):
    """Files as the official pretraining would have saved them."""
    kinds = json.loads((shared / "golden" / "official_state_dict_shapes.json").read_text())
    folder = tmp_path_factory.mktemp("official")
    for name in SHAPES:
        shapes = kinds[f"ssast_tiny_{name}_pretrain"]
        state = {key: rule(key, shape) for key, shape in shapes.items()}
        state["module.p_input_fdim"] = torch.tensor(128)
        state["module.p_input_tdim"] = torch.tensor(1024)
        torch.save(state, folder / f"{name}.pth")
    return folder


def classify(official, kind, frames, stride, classes, pooling):
    model = built_ssast(
        "tiny",
        num_classes=classes,
        frames=frames,
        patch=SHAPES[kind],
        stride=stride,
        pooling=pooling,
    )
    load_pretrained(model, official / f"{kind}.pth")
    for ours, theirs in (("fc_norm", "mlp_head.0"), ("head", "mlp_head.1")):
        for part, value in getattr(model, ours).named_parameters():
            value.data = rule(f"{theirs}.{part}", value.shape)
    return model.eval()


@pytest.mark.parametrize(
    ("case", "kind", "frames", "stride", "classes"),
    [
        ("esc50_stride10", "patch", 512, (10, 10), 50),
        ("sc_stride10", "patch", 128, (10, 10), 35),
        ("esc50_stride16", "patch", 512, (16, 16), 50),
        ("esc50_frame", "frame", 512, (128, 1), 50),
        ("sc_frame", "frame", 128, (128, 1), 35),
    ],
)
@pytest.mark.parametrize(("pooling", "task"), [("mean", "avgtok"), ("cls", "cls")])
@torch.no_grad()
def test_logits(golden, official, case, kind, frames, stride, classes, pooling, task):
    model = classify(official, kind, frames, stride, classes, pooling)
    logits = model(sound(case, 2, frames, 128))
    torch.testing.assert_close(logits, golden[f"logits_{case}_{task}"], **TOLERANCE)


@pytest.mark.parametrize("frames", [512, 128])
@pytest.mark.parametrize("stride", [(10, 10), (16, 16)])
@torch.no_grad()
def test_peas_errors(golden, official, frames, stride):
    """Equations 1 and 2 of PEAS on the non-overlapping grid, whatever the fine-tuning stride."""
    model = built_ssast("tiny", num_classes=50, frames=frames, stride=stride)
    load_pretrained(model, official / "patch.pth")
    x = sound(f"peas{frames}", 2, frames, 128)
    rec = (model.reconstruct(x) - x).square()
    pred = (model.reconstruct(rec) - rec).square()
    for name, error in (("rec", rec), ("pred", pred)):
        for axis, dim in (("time", 2), ("freq", 1)):
            wanted = golden[f"peas_{frames}_{axis}_{name}"]
            torch.testing.assert_close(error.mean(dim), wanted, **TOLERANCE)


@torch.no_grad()
def test_peas_errors_of_a_pretraining_model(golden, official):
    """Without classes the live table serves, and cutting it twice is cutting it once."""
    model = built_ssast("tiny", frames=512)
    load_pretrained(model, official / "patch.pth")
    for frames in (512, 128):
        x = sound(f"peas{frames}", 2, frames, 128)
        rec = (model.reconstruct(x) - x).square()
        torch.testing.assert_close(rec.mean(2), golden[f"peas_{frames}_time_rec"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["patch", "frame"])
@torch.no_grad()
def test_pretraining(golden, official, kind):
    """Hidden patches and both heads: accuracy, InfoNCE and MSE of the official two passes."""
    model = built_ssast("tiny", patch=SHAPES[kind])
    load_pretrained(model, official / f"{kind}.pth")
    x = sound("pretrain", 2, 1024, 128)
    ids = golden[f"pretrain_{kind}_mask_ids"].long()
    hidden = torch.zeros(2, 512, dtype=torch.bool).scatter(1, ids, True)

    def masked(rows):
        return rows.gather(1, ids.unsqueeze(-1).expand(-1, -1, rows.shape[2]))

    target = masked(patchify(x, SHAPES[kind]))
    tokens = masked(model.forward_features(x, hidden)[:, 2:])
    score = target @ model.contrastive_head(tokens).transpose(1, 2)
    diagonal = functional.log_softmax(score, dim=2).diagonal(dim1=1, dim2=2)
    right = score.softmax(2).argmax(1) == torch.arange(ids.shape[1])
    mse = (model.generative_head(tokens) - target).square().mean()
    found = torch.stack((right.float().mean(), -diagonal.mean(), mse))
    torch.testing.assert_close(
        found, golden[f"pretrain_{kind}_acc_nce_mse"].to(found.dtype), **TOLERANCE
    )
    everything = model.reconstruct(x, hidden)
    drawn = masked(patchify(everything, SHAPES[kind]))
    torch.testing.assert_close(drawn, model.generative_head(tokens), **TOLERANCE)


@pytest.mark.parametrize("kind", ["patch", "frame"])
def test_file_written_as_the_official_one(official, kind):
    """Into our model and out again: every used tensor is the file's, unused heads are zeros."""
    wanted = torch.load(official / f"{kind}.pth", weights_only=True)
    model = built_ssast("tiny", num_classes=5, frames=512, patch=SHAPES[kind])
    load_pretrained(model, official / f"{kind}.pth")
    found = SSAST.to_official(model.state_dict())
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        unused = key.startswith(("module.v.head.", "module.v.head_dist."))
        assert torch.equal(found[key], torch.zeros_like(value) if unused else value), key
