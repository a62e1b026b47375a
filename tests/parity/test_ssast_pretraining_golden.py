"""SSAST's pretraining against numbers that the official code gave."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import built_ssast, ssast_task
from test_ssast_golden import SHAPES, TOLERANCE, rule, sound

from peas.masking.clusters import official_clusters, official_frames
from peas.models.weights import SSAST, load_pretrained
from peas.objectives import patch_errors

GRADIENTS = sorted(
    ["mask_embed", "v.pos_embed", "v.patch_embed.proj.weight", "v.patch_embed.proj.bias"]
    + ["v.blocks.0.attn.qkv.weight"]
    + [f"{head}.{layer}.weight" for head in ("cpredlayer", "gpredlayer") for layer in (0, 2)]
)
AXES = ("code", "paper")
FACTS = {"labels": [], "mean": 0.0, "std": 0.5, "multi_label": False}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "ssast_pretraining.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def reference(shared):
    with np.load(shared / "golden" / "ssast_tiny_seed0.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Official files whose weights come from the rule."""
    folder = tmp_path_factory.mktemp("official")
    for kind, patch in SHAPES.items():
        layout = SSAST.to_official(built_ssast("tiny", patch=patch).state_dict())
        state = {key: rule(key, value.shape) for key, value in layout.items()}
        state["module.p_input_fdim"] = torch.tensor(128)
        state["module.p_input_tdim"] = torch.tensor(1024)
        torch.save(state, folder / f"{kind}.pth")
    return folder


def task_of(kind="patch", file=None, **settings):
    """The task of the official settings, away from a trainer."""
    task = ssast_task(size="tiny", patch=SHAPES[kind], frames=1024, **FACTS, **settings)
    task.build(initialise=False)
    task._trainer = SimpleNamespace(
        training=False,
        world_size=1,
        num_training_batches=3,
        accumulate_grad_batches=1,
        max_epochs=1,
        max_steps=-1,
    )
    if file is not None:
        load_pretrained(task.model, file)
    return task


def losses_of(task, x, masks):
    """Total, accuracy, InfoNCE and MSE of given masks; one is shared, two are one pass's each."""
    given = iter(masks)
    task.masked_patches = lambda *_: next(given)
    task.hparams["passes"] = "shared" if len(masks) == 1 else "separate"
    batch = {"log_mel": x, "valid": torch.ones(x.shape[:2], dtype=torch.bool)}
    found = task.losses(batch, "train")
    assert next(given, None) is None
    nce, mse = found.terms["nce"], found.terms["mse"]
    return found.total, nce.metrics["nce_accuracy"], nce.loss, mse.loss


def sample(x, count):
    flat = x.detach().reshape(-1)
    return flat[:: max(1, len(flat) // count)][:count].numpy()


def mask(rng, kind, clips=2):
    """One pass's mask, drawn as the official loop over the clips draws it."""
    hidden = torch.zeros(clips, 512, dtype=torch.bool)
    for row in hidden:
        ids = (
            official_clusters(rng, (8, 64), 400)
            if kind == "patch"
            else official_frames(rng, 512, 400)
        )
        row[ids] = True
    return hidden


def named(model, tensors):
    """Tensors by the official names, without the unused heads and the stored numbers."""
    found = SSAST.to_official(model.state_dict() | tensors)
    short = {name.removeprefix("module."): value for name, value in found.items()}
    return {k: short[k] for k in sorted(short) if not k.startswith(("p_input", "v.head"))}


@pytest.mark.parametrize("count", [400, 250, 100])
def test_same_seed_same_ids(golden, count):
    for seed in range(3):
        rng = random.Random(seed)
        assert official_clusters(rng, (8, 64), count) == golden[f"ids_patch_{count}"][seed].tolist()
        rng = random.Random(seed)
        assert official_frames(rng, 512, count) == golden[f"ids_frame_{count}"][seed].tolist()


@pytest.mark.parametrize("kind", ["patch", "frame"])
@torch.no_grad()
def test_losses_of_the_reference_masks(reference, official, kind):
    """Accuracy, InfoNCE and MSE of masks that the official code drew."""
    task = task_of(kind, official / f"{kind}.pth")
    ids = reference[f"pretrain_{kind}_mask_ids"].long()
    hidden = torch.zeros(2, 512, dtype=torch.bool).scatter(1, ids, True)
    total, *found = losses_of(task, sound("pretrain", 2, 1024, 128), [hidden])
    values = torch.stack(found)
    wanted = reference[f"pretrain_{kind}_acc_nce_mse"].to(values.dtype)
    torch.testing.assert_close(values, wanted, **TOLERANCE)
    assert float(total) == pytest.approx(float(found[1] + 10 * found[2]))


@torch.no_grad()
def test_the_axis_is_the_codes():
    """Of random weights the code's axis gives ln 400 = 5.99, the paper's far more."""
    torch.manual_seed(0)
    task, x = task_of(), 0.5 * torch.randn(2, 1024, 128)
    hidden = mask(random.Random(0), "patch")
    nce = {}
    for axis in AXES:
        task.parts["nce"].axis = axis
        nce[axis] = losses_of(task, x, [hidden])[2]
    assert float(nce["code"]) == pytest.approx(6.0, abs=0.15)
    assert 7.0 < float(nce["paper"]) < 15.0


def blind(name, value):
    """Where a gradient is rounding noise, of which Adam makes whole steps.

    Softmax does not see what is added to all keys, nor to all predictions.
    """
    noise = torch.zeros_like(value, dtype=torch.bool)
    if name.endswith("qkv.bias"):
        noise.view(3, -1)[1] = True
    elif name.startswith("cpredlayer") and name.endswith("bias"):
        noise[:] = True
    return noise


@pytest.mark.parametrize("kind", ["patch", "frame"])
def test_three_steps_are_the_official_ones(golden, official, kind):
    """Losses, gradients and weights of the joint objective in two passes, and Adam's steps."""
    task = task_of(kind, official / f"{kind}.pth")
    optimizer = task.configure_optimizers()
    x = sound("pretrain", 2, 1024, 128)
    for step in range(3):
        rng = random.Random(step)
        found = losses_of(task, x, [mask(rng, kind) for _ in range(2)])
        optimizer.zero_grad()
        found[0].backward()
        values = [float(value.detach()) for value in found]
        np.testing.assert_allclose(values, golden[f"losses_{kind}"][step], rtol=2e-6)
        if step == 0:
            grads = {k: p.grad for k, p in task.model.named_parameters()}
            by_name = named(task.model, grads)
            norms = [float(value.double().norm()) for value in by_name.values()]
            np.testing.assert_allclose(norms, golden[f"gradient_norms_{kind}"], 1e-5, 1e-6)
            some = np.concatenate([sample(by_name[name], 64) for name in GRADIENTS])
            wanted = golden[f"gradients_{kind}"]
            np.testing.assert_allclose(some, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        optimizer.step()
    end = named(task.model, {})
    weights = np.concatenate([sample(value, 16) for value in end.values()])
    noise = np.concatenate([sample(blind(name, value), 16) for name, value in end.items()])
    wanted = golden[f"weights_{kind}"]
    assert noise.mean() < 0.05
    np.testing.assert_allclose(weights[~noise], wanted[~noise], rtol=0, atol=1e-6)
    np.testing.assert_allclose(weights, wanted, rtol=0, atol=3 * 2e-4)


def test_mse_is_the_mean_over_all():
    guess, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    wanted = torch.nn.functional.mse_loss(guess, target)
    torch.testing.assert_close(patch_errors(guess, target).mean(), wanted)
