"""Learning rates against torch's scheduler and the official rules, step by step."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from toys import StandIn, make_task

from peas.errors import ConfigError
from peas.models.encoder import Encoder
from peas.models.vit import SpectrogramTransformer
from peas.recipes import (
    AudioMAEPretrainingRecipe,
    SSASTPretrainingRecipe,
)
from peas.recipes.audiomae import AudioMAERecipe
from peas.recipes.learning_rate import cosine_factor, global_lr, staircase_warmup, step_decay
from peas.recipes.parameter_groups import decay_groups, head_groups, layer_groups
from peas.recipes.ssast import SSASTRecipe
from peas.tasks import Classification, Pretraining


@pytest.mark.parametrize(("start", "epochs"), [(6, 50), (5, 30), (0, 4)])
def test_decay_is_multi_step_lr(start: int, epochs: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.5e-4)
    # The official scheduler steps after an epoch and so calls the first epoch 1.
    scheduler = MultiStepLR(optimizer, list(range(start, 1000)), gamma=0.85)
    for epoch in range(epochs):
        wanted = optimizer.param_groups[0]["lr"]
        assert 2.5e-4 * step_decay(epoch, start, 0.85) == pytest.approx(wanted, rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert step_decay(epochs, None, 0.85) == 1.0


def test_decay_every_few_epochs_is_multi_step_lr() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=5e-5)
    scheduler = MultiStepLR(optimizer, [10, 15, 20, 25], gamma=0.5)
    for epoch in range(27):
        wanted = optimizer.param_groups[0]["lr"]
        assert 5e-5 * step_decay(epoch, 10, 0.5, 5) == pytest.approx(wanted, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_decay_of_the_recipes_at_their_last_epochs() -> None:
    # 0-based epoch 24 of 25 and 49 of 50.
    assert step_decay(5, 6, 0.85) == 1.0
    assert step_decay(24, 6, 0.85) == pytest.approx(0.0456, abs=1e-3)
    assert step_decay(49, 6, 0.85) == pytest.approx(0.0008, abs=1e-4)


def test_warm_up_is_the_official_staircase() -> None:
    rate = None
    for step in range(1200):
        if step <= 1000 and step % 50 == 0:
            rate = step / 1000
        assert staircase_warmup(step, 1000) == rate
    assert [staircase_warmup(step, 1000) for step in (0, 49, 50, 999)] == [0, 0, 0.05, 0.95]
    assert staircase_warmup(0, 0) == 1.0


def test_task_sets_both_groups_from_step_and_epoch_alone() -> None:
    trainer = StandIn(global_step=120, current_epoch=7)
    task = make_task(trainer, lr=1e-3, head_lr_mult=10.0, warmup_steps=1000, decay_start=6)
    optimizer = task.configure_optimizers()
    task.optimizers = lambda **_: optimizer  # type: ignore[method-assign, assignment]
    task.on_train_batch_start({"id": ["a"], "step": 0}, 0)  # type: ignore[arg-type]
    factor = 0.1 * 0.85**2
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([1e-3 * factor, 1e-2 * factor], rel=1e-12)
    settings = optimizer.defaults
    assert (settings["betas"], settings["weight_decay"]) == ((0.95, 0.999), 5e-7)


def test_head_group_holds_the_classifier_and_nothing_else() -> None:
    model = make_task(aux_loss_weight=0.1).model
    body, head = head_groups(model, ("fc_norm", "head"), 1e-4, 10.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(names[id(p)] for p in head["params"]) == [
        "fc_norm.bias",
        "fc_norm.weight",
        "head.bias",
        "head.weight",
    ]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {names[id(p)] for group in (body, head) for p in group["params"]} == trained
    # An auxiliary loss trains G, at the encoder's rate.
    assert any(names[id(p)].startswith("generative_head") for p in body["params"])
    assert (body["base_lr"], head["base_lr"]) == pytest.approx((1e-4, 1e-3))


# --- AudioMAE ------------------------------------------------------------------------------


def test_rate_of_the_global_batch() -> None:
    assert global_lr(1e-3, 256, 32) == pytest.approx(1.25e-4, rel=1e-12)
    assert global_lr(2e-4, 256, 512) == pytest.approx(4e-4, rel=1e-12)
    assert global_lr(1e-4, None, 32) == global_lr(1e-4, None, None) == 1e-4
    with pytest.raises(ConfigError, match="base_batch_size"):
        global_lr(1e-4, 256, None)
    with pytest.raises(ConfigError, match="base_batch_size"):
        SSASTRecipe(base_batch_size=0)


def test_cosine_of_audioset_20k() -> None:
    lr = global_lr(1e-3, 256, 32)
    rates = [lr * cosine_factor(at, 4, 60, 1e-6 / lr) for at in (0, 2, 4, 32, 60)]
    assert rates == pytest.approx([0.0, 6.25e-5, 1.25e-4, 6.3e-5, 1e-6], rel=1e-12)


def test_cosine_is_the_official_rule_in_every_iteration() -> None:
    lr, least, epochs, warmup, steps = 1.25e-4, 1e-6, 6, 2, 7
    for step in range(epochs * steps):
        at = step / steps
        if at < warmup:
            wanted = lr * at / warmup
        else:
            turn = math.pi * (at - warmup) / (epochs - warmup)
            wanted = least + (lr - least) * 0.5 * (1 + math.cos(turn))
        assert lr * cosine_factor(at, warmup, epochs, least / lr) == pytest.approx(wanted)


def test_cosine_without_warm_up_and_past_its_end() -> None:
    assert cosine_factor(0, 0, 10) == 1.0
    assert cosine_factor(11, 2, 10, 0.1) == 0.1
    # A smoke run may be shorter than the warm-up.
    assert cosine_factor(1, 4, 2) == 0.25
    assert cosine_factor(2, 2, 2, 0.5) == 0.5


class Toy(nn.Module):
    """What groups ask of a model: a base encoder's blocks under `encoder.`, and a classifier."""

    layer_of = Encoder.layer_of

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.depth = depth
        self.encoder = SpectrogramTransformer("toy", frames=32, mels=32)
        self.encoder.blocks = nn.ModuleList(
            nn.ModuleDict({"norm1": nn.LayerNorm(4), "attn": nn.Linear(4, 4)}) for _ in range(depth)
        )
        self.decoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(4, 4)])})
        self.fc_norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)


def test_layers_of_a_base_model() -> None:
    model = Toy()
    model.decoder.requires_grad_(False)
    groups = layer_groups(model, 1e-3, 5e-4, 0.75)  # type: ignore[arg-type]
    assert len(groups) == 28
    rates = sorted({group["base_lr"] for group in groups})
    assert rates == pytest.approx([1e-3 * 0.75 ** (13 - i) for i in range(14)], rel=1e-12)
    assert rates[0] / 1e-3 == pytest.approx(0.02376, abs=5e-6)
    assert groups[0]["lr"] == 1e-3
    assert {group["weight_decay"] for group in groups} == {0.0, 5e-4}

    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["base_lr"] / 1e-3, group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert set(found) == {name for name in names.values() if not name.startswith("decoder")}
    first, last = pytest.approx(0.75**13), pytest.approx(1.0)
    assert found["encoder.patch_embed.proj.weight"] == (first, 5e-4)
    for name in ("patch_embed.proj.bias", "cls_token", "dist_token", "pos_embed"):
        assert found[f"encoder.{name}"] == (first, 0.0)
    for block in (0, 3, 11):
        scale = pytest.approx(0.75 ** (12 - block))
        assert found[f"encoder.blocks.{block}.attn.weight"] == (scale, 5e-4)
        assert found[f"encoder.blocks.{block}.attn.bias"] == (scale, 0.0)
        assert found[f"encoder.blocks.{block}.norm1.weight"] == (scale, 0.0)
    assert found["head.weight"] == (last, 5e-4)
    for name in ("encoder.norm.weight", "fc_norm.weight", "fc_norm.bias", "head.bias"):
        assert found[name] == (last, 0.0)


def test_layers_of_a_trained_decoder_are_none_of_the_encoders() -> None:
    groups = layer_groups(Toy(), 1.0, 0.1, 0.5)  # type: ignore[arg-type]
    weight = next(group for group in groups if group["name"] == "layer_13_decay")["params"]
    assert {tuple(p.shape) for p in weight} == {(3, 4), (4, 4)}


@pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.01, float("nan")])
def test_layer_decay_out_of_range_is_refused(layer_decay: float) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.init_args\.layer_decay"):
        AudioMAERecipe(layer_decay=layer_decay)


def test_vectors_and_biases_are_not_decayed_in_pretraining() -> None:
    model = Toy()
    model.head.requires_grad_(False)
    decay, plain = decay_groups(model, 2e-4, 1e-4)
    assert (decay["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    assert {group["base_lr"] for group in (decay, plain)} == {2e-4}
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in (decay, plain))
    assert "encoder.cls_token" in decayed
    assert all(name.endswith("bias") or "norm" in name for name in kept)
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert not any(name.startswith("head") for name in decayed | kept)


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        (Pretraining, SSASTRecipe),
        (Pretraining, AudioMAERecipe),
        (Classification, SSASTPretrainingRecipe),
        (Classification, AudioMAEPretrainingRecipe),
    ],
)
def test_a_recipe_for_the_other_task_is_refused(task: type, recipe: type) -> None:
    with pytest.raises(ConfigError, match=rf"recipe.*{recipe.__name__}.*{task.__name__}"):
        task(recipe=recipe())
