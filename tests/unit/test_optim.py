"""Learning rates against torch's scheduler and the official warm-up rule, step by step."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from toys import StandIn, make_task

from peas.optim import head_groups, staircase_warmup, step_decay


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
    task = make_task(trainer, lr=1e-3, head_lr_factor=10.0, warmup_steps=1000, decay_start=6)
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
