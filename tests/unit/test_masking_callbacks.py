"""Conventional and random masking: when, where, under which rules, and what is refused."""

from pathlib import Path

import pytest
import torch
from toys import StandIn, clips, heard, make_task, masked, part

from peas.callbacks.peas import PEAS
from peas.callbacks.spec_augment import BlockMasking, RandomMasking, SpecAugment
from peas.errors import ConfigError, NoReconstruction
from peas.tasks.augmentation import roll_time


def start(strategy: BlockMasking, trainer: StandIn, **settings: object) -> None:
    task = make_task(trainer, **settings)
    trainer.callbacks = [strategy]
    strategy.on_fit_start(trainer, task)  # type: ignore[arg-type]


def no_passes(*_: object, **__: object) -> None:
    pytest.fail("an auxiliary pass was made")


# --- one random block ----------------------------------------------------------------------


def test_conventional_masks_are_torchaudios_intervals() -> None:
    task = make_task(noise_roll=False)
    strategy = SpecAugment(max_time=40, max_freq=30)
    batch = masked(strategy, task, heard(task, clips()))
    for axis, max_width, size in (("time", 40, 128), ("freq", 30, 128)):
        u = task.random_numbers(batch, f"mask_{axis}", (1, 3))[:, 0].double()
        width, start = u[:, 0] * max_width, 0
        start = (u[:, 1] * (size - width)).floor()
        line = batch["mask"].all(2) if axis == "time" else batch["mask"].all(1)
        for b in range(8):
            wanted = torch.zeros(size, dtype=torch.bool)
            wanted[int(start[b]) : int(start[b]) + int(width[b])] = True
            assert torch.equal(line[b], wanted)


def test_conventional_order_is_the_official_loaders() -> None:
    """Mask raw cells with 0, normalise, add noise, roll: done by hand, clip by clip."""
    task = make_task(noise_roll=True)
    strategy = SpecAugment(max_time=60, max_freq=40, stage="before_noise")
    loaded = clips()
    batch = masked(strategy, task, heard(task, loaded))
    assert batch["roll"].unique().numel() > 2
    seen = batch["masked_log_mel"]

    plain = task.front_end(loaded["waveform"], loaded["length"])
    mean, std = (task.front_end.setting(key) for key in ("mean", "std"))
    raw = plain.log_mel * (2 * std) + mean
    time, freq = batch["mask_plan"]
    u_noise = task.random_numbers(loaded, "noise", (128, 128))
    u_clip = task.random_numbers(loaded, "noise_roll", (2,))
    for b in range(8):
        one = raw[b].clone()
        for plan, cells in ((time, one), (freq, one.T)):
            first, width = int(plan.blocks.start[b, 0]), int(plan.blocks.width[b, 0])
            cells[first : first + width] = 0.0
        one = (one - mean) / (2 * std)
        one = one + u_noise[b] * u_clip[b, 0] / 10
        one = one.roll(int(u_clip[b, 1] * 20) - 10, 0)
        torch.testing.assert_close(seen[b], one, atol=1e-5, rtol=0)
    assert batch["mask"].any(2).any(1).sum() >= 7


@pytest.mark.parametrize("strategy", [SpecAugment, RandomMasking])
def test_stage_says_whether_noise_lies_over_the_fill(strategy: type[BlockMasking]) -> None:
    task = make_task(noise_roll=True)
    batch = heard(task, clips())
    before, after = (
        masked(strategy(max_time=60, max_freq=40, stage=stage), task, batch)  # type: ignore[call-arg, arg-type]
        for stage in ("before_noise", "after_noise")
    )
    for b in range(8):
        rolled = after["mask"][b].roll(int(batch["roll"][b]), 0)
        assert torch.equal(before["mask"][b], rolled)
    noise = batch["log_mel"] - roll_time(batch["clean"].log_mel, batch["roll"])
    fill = task.front_end.fill_value("raw_zero")
    for found, over in ((before, noise), (after, torch.zeros_like(noise))):
        seen, mask = found["masked_log_mel"], found["mask"]
        torch.testing.assert_close(seen[mask], (fill + over)[mask], atol=1e-6, rtol=0)
        assert torch.equal(seen[~mask], batch["log_mel"][~mask])


def test_without_noise_both_stages_are_one() -> None:
    task = make_task(noise_roll=False)
    batch = heard(task, clips())
    before, after = (
        masked(SpecAugment(60, 40, stage=stage), task, batch)  # type: ignore[arg-type]
        for stage in ("before_noise", "after_noise")
    )
    assert torch.equal(before["mask"], after["mask"])
    assert torch.equal(before["masked_log_mel"], after["masked_log_mel"])


# --- several random blocks -----------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["allow", "forbid"])
@pytest.mark.parametrize("stage", ["before_noise", "after_noise"])
def test_random_masking_is_peas_without_adaptive_blocks(
    overlap: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(noise_roll=True)
    monkeypatch.setattr(task.model, "reconstruct", no_passes)
    shared = {"n_time": 2, "n_freq": 3, "max_time": 40, "max_freq": 30}
    random = RandomMasking(**shared, overlap=overlap, stage=stage)  # type: ignore[arg-type]
    adaptive = PEAS(**shared, overlap=overlap, stage=stage)  # type: ignore[arg-type]
    # Equation 3 has its first whole block in epoch 10.
    for epoch in (0, 3, 9):
        task.trainer.current_epoch = epoch
        batch = heard(task, clips(step=epoch))
        ours, theirs = masked(adaptive, task, batch), masked(random, task, batch)
        assert torch.equal(ours["mask"], theirs["mask"])
        assert ours["mask"].any()
    task.trainer.current_epoch = 10
    with pytest.raises(pytest.fail.Exception, match="auxiliary pass"):
        masked(adaptive, task, heard(task, clips()))


@pytest.mark.parametrize("strategy", [RandomMasking, PEAS])
def test_last_fifth_has_the_fixed_width(strategy: type[RandomMasking]) -> None:
    task = make_task(noise_roll=False)
    batch = heard(task, clips())
    for share, first in ((0.2, 20), (0.0, 25), (0.4, 15)):
        masker = strategy(2, 2, max_time=41, max_freq=30, final_phase=share)
        for epoch in (14, 15, 19, 20, 24):
            task.trainer.current_epoch = epoch
            time, freq = masked(masker, task, batch)["mask_plan"]
            fixed = [bool((time.blocks.width == 20).all()), bool((freq.blocks.width == 15).all())]
            assert fixed == [epoch >= first] * 2


def test_conventional_masks_keep_their_law_to_the_end() -> None:
    task = make_task(noise_roll=False)
    batch = heard(task, clips())
    early = masked(SpecAugment(41, 30), task, batch)
    task.trainer.current_epoch = 24
    late = masked(SpecAugment(41, 30), task, batch)
    assert late["mask_plan"][0].blocks.width.unique().numel() > 4
    assert not torch.equal(early["mask"], late["mask"])


@pytest.mark.parametrize(
    "strategy",
    [
        SpecAugment(40, 30),
        RandomMasking(2, 2, 40, 30),
        PEAS(2, 2, 40, 30, ramp="off"),
        PEAS(2, 2, 40, 30, rounding="stochastic", stage="before_noise"),
        PEAS(1, 1, 40, 30, aux_input_mask="complementary"),
    ],
)
def test_masks_depend_on_seed_epoch_step_and_row_alone(strategy: BlockMasking) -> None:
    task = make_task(noise_roll=True)
    task.trainer.current_epoch = 7
    loaded = clips(8, step=3)
    whole = masked(strategy, task, heard(task, loaded))
    for rank in (0, 1):
        rows = list(range(8))[rank::2]
        mine = masked(strategy, task, heard(task, part(loaded, rows)))
        assert torch.equal(mine["log_mel"], whole["log_mel"][rows])
        assert torch.equal(mine["mask"], whole["mask"][rows])
    again = masked(strategy, task, heard(task, loaded))
    assert torch.equal(again["mask"], whole["mask"])
    for change in ({"current_epoch": 8}, {}):
        task.trainer.current_epoch = change.get("current_epoch", 7)
        other = loaded.copy()
        other["step"] = 3 if change else 4
        assert not torch.equal(masked(strategy, task, heard(task, other))["mask"], whole["mask"])


def test_seed_changes_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(noise_roll=False)
    masks = []
    for seed in ("0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        masks.append(masked(RandomMasking(), task, heard(task, clips()))["mask"])
    assert not torch.equal(*masks)


# --- log and state -------------------------------------------------------------------------


def test_log_of_an_epoch_survives_a_restart(tmp_path: Path) -> None:
    task = make_task()
    logged: dict[str, float] = {}
    task.log = lambda key, value, **_: logged.update({key: float(value)})  # type: ignore[method-assign, assignment]
    strategy = PEAS(2, 1, 40, 30, rounding="ceil")
    hidden = []
    for step in range(3):
        if step == 2:
            torch.save(strategy.state_dict(), tmp_path / "state")
            strategy = PEAS(2, 1, 40, 30, rounding="ceil")
            strategy.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        batch = masked(strategy, task, heard(task, clips(step=step)))
        hidden.append(batch["mask"].float().mean())
    strategy.selector_log.write = lambda *_: None  # type: ignore[method-assign]
    strategy.on_train_epoch_end(task.trainer, task)
    assert logged["mask/fraction"] == pytest.approx(float(torch.stack(hidden).mean()), abs=1e-6)
    # Of three blocks a clip the single one along frequency is adaptive from the start.
    assert logged["mask/adaptive_share"] == pytest.approx(1 / 3)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [SpecAugment, RandomMasking, PEAS])
def test_masks_wider_than_the_axis_name_the_key(strategy: type[BlockMasking]) -> None:
    name = strategy.__name__
    for key in ("max_time", "max_freq"):
        with pytest.raises(ConfigError, match=rf"{name}\.init_args\.{key}: .*129 .*128"):
            start(strategy(**{key: 129}), StandIn())  # type: ignore[arg-type]
        start(strategy(**{"max_time": 128, "max_freq": 128}), StandIn())  # type: ignore[arg-type]


def test_two_strategies_are_refused() -> None:
    trainer = StandIn(callbacks=[RandomMasking(), SpecAugment()])
    with pytest.raises(ConfigError, match="RandomMasking, SpecAugment"):
        trainer.callbacks[0].on_fit_start(trainer, make_task(trainer))


@pytest.mark.parametrize("epochs", [None, -1])
@pytest.mark.parametrize("strategy", [RandomMasking, PEAS])
def test_an_endless_run_is_refused(strategy: type[BlockMasking], epochs: int | None) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs"):
        start(strategy(), StandIn(max_epochs=epochs))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_time", -1),
        ("n_freq", -2),
        ("final_phase", -0.1),
        ("final_phase", 1.1),
        ("refresh_every", 0),
        ("ema_decay", 1.5),
    ],
)
def test_impossible_settings_name_the_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"`PEAS\.init_args\.{key}` is {value}"):
        PEAS(**{key: value})  # type: ignore[arg-type]


def test_complementary_masks_need_patches_that_tile() -> None:
    start(PEAS(aux_input_mask="complementary"), StandIn(), stride=(10, 10))
    start(PEAS(aux_input_mask="complementary", aux_grid="finetune"), StandIn(), stride=(16, 16))
    with pytest.raises(ConfigError, match="aux_grid: nonoverlap"):
        start(PEAS(aux_input_mask="complementary", aux_grid="finetune"), StandIn(), stride=(10, 10))
    with pytest.raises(ConfigError, match=r"complementary\(1\)"):
        start(PEAS(aux_input_mask="complementary", aux_passes=1), StandIn())


def test_peas_needs_a_head_that_reconstructs() -> None:
    task = make_task()
    task.model.reconstructs.fill_(False)  # as after an official fine-tuned file
    for score, refused in (("pred", True), ("rec", True), ("energy", False)):
        strategy = PEAS(score=score)  # type: ignore[arg-type]
        task.trainer.callbacks = [strategy]
        if refused:
            with pytest.raises(NoReconstruction, match="RandomMasking"):
                strategy.on_fit_start(task.trainer, task)
        else:
            strategy.on_fit_start(task.trainer, task)
            masked(strategy, task, heard(task, clips()))
