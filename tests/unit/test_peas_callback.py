"""PEAS around the training step: gradients, every setting, padding and the auxiliary model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import StandIn, clips, heard, make_task, masked

from peas.callbacks.peas import PEAS
from peas.callbacks.spec_augment import RandomMasking, SpecAugment
from peas.data.batch import Batch
from peas.masking.peas.scores import error_maps
from peas.masking.peas.selector import marginals, window_scores
from peas.tasks import Classification
from peas.tasks.augmentation import noise_and_roll, roll_time

SHARED: dict[str, Any] = {"n_time": 2, "n_freq": 2, "max_time": 32, "max_freq": 24, "ramp": "off"}


@pytest.fixture(scope="module")
def task() -> Classification:
    return make_task(noise_roll=True)


@pytest.fixture(scope="module")
def batch(task: Classification) -> Batch:
    return heard(task, clips())


def mask_of(task: Classification, batch: Batch, epoch: int = 0, **settings: Any) -> Tensor:
    task.trainer.current_epoch = epoch
    mask: Tensor = masked(PEAS(**{**SHARED, **settings}), task, batch)["mask"]
    task.trainer.current_epoch = 0
    return mask


# --- gradients -----------------------------------------------------------------------------


def gradients(task: Classification, batch: Batch) -> dict[str, Tensor | None]:
    task.zero_grad(set_to_none=True)
    task.training_step(batch, 0).backward()
    return {name: p.grad for name, p in task.model.named_parameters()}


@pytest.mark.parametrize(
    "strategy",
    [
        PEAS(**SHARED),
        PEAS(**{**SHARED, "stage": "before_noise"}),
        PEAS(**SHARED, aux_encoder="ema"),
        PEAS(**SHARED, aux_input_mask="complementary"),
    ],
)
def test_gradients_are_those_of_the_same_mask_made_by_hand(strategy: PEAS) -> None:
    task = make_task(noise_roll=True, fill="zero")
    task.trainer.callbacks = [strategy]
    strategy.on_fit_start(task.trainer, task)
    plain = heard(task, clips())
    # Were a score or a mask to carry gradient, the input would get it.
    clean = plain["clean"].log_mel.requires_grad_()
    with_peas = masked(strategy, task, plain)
    assert not with_peas["mask"].requires_grad
    got = gradients(task, with_peas)
    through_peas, clean.grad = clean.grad, None

    u_noise, u_clip = (
        task.random_numbers(plain, "noise", (128, 128)),
        task.random_numbers(plain, "noise_roll", (2,)),
    )
    x, roll = noise_and_roll(clean, u_noise, u_clip)
    noise, _ = noise_and_roll(torch.zeros_like(clean), u_noise, u_clip)
    over = noise if strategy.stage == "before_noise" else torch.zeros_like(noise)
    by_hand = plain.copy()
    by_hand["log_mel"] = torch.where(with_peas["mask"], over, x)
    wanted = gradients(task, by_hand)
    assert with_peas["mask"].any()
    assert torch.equal(through_peas, clean.grad)
    assert (through_peas[roll_time(with_peas["mask"], -roll)] == 0).all()
    for name, gradient in wanted.items():
        if name.startswith(("generative_head", "contrastive_head", "mask_embed")):
            assert got[name] is None
        else:
            assert gradient is not None
            assert got[name] is not None
            assert torch.equal(got[name], gradient)
    assert got["encoder.patch_embed.proj.weight"].abs().sum() > 0


def test_auxiliary_loss_trains_the_head() -> None:
    task, plain = make_task(aux_loss_weight=0.3), make_task()
    batch = heard(task, clips())
    got, wanted = gradients(task, batch), gradients(plain, batch)
    for name in ("generative_head.0.weight", "generative_head.2.bias"):
        assert got[name].abs().sum() > 0
        assert wanted[name] is None
    maps = error_maps(plain.model.reconstruct, batch["log_mel"])
    auxiliary = maps.e_rec.mean() + maps.e_pred.mean()
    loss = task.training_step(batch, 0) - plain.training_step(batch, 0)
    torch.testing.assert_close(loss, 0.3 * auxiliary)


def test_passes_leave_mode_weights_and_gradients_alone(task: Classification, batch: Batch) -> None:
    task.model.train()
    modes: list[tuple[bool, bool]] = []
    original = task.model.reconstruct

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        modes.append((task.model.training, torch.is_grad_enabled()))
        return original(*args, **kwargs)

    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.model.reconstruct = watched  # type: ignore[method-assign]
    try:
        mask_of(task, batch)
    finally:
        task.model.reconstruct = original  # type: ignore[method-assign]
    # Two passes, without stochastic depth and without gradient.
    assert modes == [(False, False)] * 2
    assert task.model.training
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


# --- the masks are where the errors are ----------------------------------------------------


def test_blocks_lie_in_the_windows_of_highest_error(task: Classification, batch: Batch) -> None:
    strategy = PEAS(**{**SHARED, "n_time": 1, "n_freq": 1})
    time, freq = masked(strategy, task, batch)["mask_plan"]
    with torch.no_grad():
        task.model.eval()
        e_pred = error_maps(task.model.reconstruct, batch["log_mel"]).e_pred
        task.model.train()
    lines = marginals(e_pred)
    for plan, line, width in ((time, lines.time, 32), (freq, lines.freq, 24)):
        assert torch.equal(plan.window_start[:, 0], window_scores(line, width).argmax(1))
        assert (plan.blocks.start >= plan.window_start).all()
        assert (plan.blocks.start + plan.blocks.width <= plan.window_start + width).all()
        assert plan.window_start.unique().numel() > 2


def test_masks_before_the_noise_are_chosen_on_the_clean_clip() -> None:
    noisy, clean = make_task(noise_roll=True), make_task(noise_roll=False)
    settings: dict[str, Any] = {**SHARED, "stage": "before_noise", "exclude_padding": True}
    loaded = clips()
    loaded["length"][:4] = 400 + 89 * 160
    got = masked(PEAS(**settings), noisy, heard(noisy, loaded))["mask_plan"]
    wanted = masked(PEAS(**settings), clean, heard(clean, loaded))["mask_plan"]
    after = masked(PEAS(**{**settings, "stage": "after_noise"}), noisy, heard(noisy, loaded))
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours.window_start, theirs.window_start)
        assert torch.equal(ours.blocks.start, theirs.blocks.start)
    assert not torch.equal(after["mask_plan"][0].window_start, wanted[0].window_start)


# --- every setting -------------------------------------------------------------------------

DIFFERENT: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"score": "rec"}, {"score": "pred"}, 0),
    ({"score": "predicted"}, {"score": "pred"}, 0),
    ({"score": "energy"}, {"score": "pred"}, 0),
    ({"score": "shuffled"}, {"score": "pred"}, 0),
    ({"score": "easy"}, {"score": "pred"}, 0),
    ({"aux_grid": "finetune"}, {"aux_grid": "nonoverlap"}, 0),
    ({"aux_input_mask": "complementary"}, {"aux_input_mask": "none"}, 0),
    (
        {"aux_input_mask": "complementary", "aux_passes": 2},
        {"aux_input_mask": "complementary", "aux_passes": 4},
        0,
    ),
    ({"error_norm": "standardise"}, {"error_norm": "none"}, 0),
    ({"block_width": "expected"}, {"block_width": "max"}, 0),
    ({"block_width": "sampled"}, {"block_width": "max"}, 0),
    ({"placement": "start"}, {"placement": "uniform"}, 0),
    ({"placement": "centre"}, {"placement": "start"}, 0),
    ({"placement": "best"}, {"placement": "centre"}, 0),
    ({"select": "topk"}, {"select": "nms"}, 0),
    ({"rounding": "round", "ramp": "absolute"}, {"rounding": "floor", "ramp": "absolute"}, 6),
    ({"rounding": "ceil", "ramp": "absolute"}, {"rounding": "floor", "ramp": "absolute"}, 1),
    ({"rounding": "stochastic", "ramp": "absolute"}, {"rounding": "ceil", "ramp": "absolute"}, 5),
    ({"rounding": "stochastic", "ramp": "absolute"}, {"rounding": "floor", "ramp": "absolute"}, 5),
    ({"ramp": "absolute"}, {"ramp": "off"}, 0),
    (
        {"n_time": 1, "n_freq": 1, "progressive_single": True, "ramp": "absolute"},
        {"n_time": 1, "n_freq": 1, "progressive_single": False, "ramp": "absolute"},
        0,
    ),
    ({"final_phase": 0.0}, {"final_phase": 0.2}, 24),
    (
        {"overlap": "allow", "max_time": 60, "n_time": 4},
        {"overlap": "forbid", "max_time": 60, "n_time": 4},
        0,
    ),
    ({"stage": "before_noise"}, {"stage": "after_noise"}, 0),
    ({"n_time": 0}, {}, 0),
    ({"n_freq": 0}, {}, 0),
    ({"max_time": 16}, {}, 0),
]


@pytest.mark.parametrize(("one", "other", "epoch"), DIFFERENT)
def test_every_setting_changes_the_masks(
    task: Classification, batch: Batch, one: dict[str, Any], other: dict[str, Any], epoch: int
) -> None:
    first, second = (mask_of(task, batch, epoch, **settings) for settings in (one, other))
    assert first.shape == second.shape == (8, 128, 128)
    assert not torch.equal(first, second)


def test_relative_ramp_stretches_with_the_run(task: Classification, batch: Batch) -> None:
    task.trainer.max_epochs = 50
    try:
        relative, absolute = (
            mask_of(task, batch, 12, ramp=ramp) for ramp in ("relative", "absolute")
        )
        # Epoch 12 of 50 stands for epoch 6 of 25: no whole block yet.
        task.trainer.current_epoch = 12
        random = masked(RandomMasking(2, 2, 32, 24), task, batch)["mask"]
        assert torch.equal(relative, random)
        assert not torch.equal(absolute, random)
    finally:
        task.trainer.max_epochs, task.trainer.current_epoch = 25, 0


def test_stochastic_rounding_is_drawn_clip_by_clip(task: Classification, batch: Batch) -> None:
    task.trainer.current_epoch = 5
    strategy = PEAS(**{**SHARED, "ramp": "absolute", "rounding": "stochastic"})
    time, freq = masked(strategy, task, batch)["mask_plan"]
    u = task.random_numbers(batch, "adaptive_count", (2,))
    task.trainer.current_epoch = 0
    # Equation 3 gives 0.5 blocks in epoch 5.
    assert torch.equal(time.adaptive.sum(1), (u[:, 0] < 0.5).long())
    assert torch.equal(freq.adaptive.sum(1), (u[:, 1] < 0.5).long())
    assert 0 < time.adaptive.sum() < 8


def test_shuffled_takes_the_next_rows_errors(task: Classification, batch: Batch) -> None:
    own, other = (
        masked(PEAS(**{**SHARED, "n_time": 1}, score=score), task, batch)["mask_plan"][0]  # type: ignore[arg-type]
        for score in ("pred", "shuffled")
    )
    assert torch.equal(other.window_start, own.window_start.roll(1, 0))
    assert torch.equal(other.blocks.width, own.blocks.width)


@pytest.mark.parametrize(
    ("score", "passes"),
    [("pred", 2), ("rec", 1), ("predicted", 2), ("energy", 0), ("shuffled", 2), ("easy", 2)],
)
def test_scores_make_only_the_passes_they_need(
    task: Classification, batch: Batch, score: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids: list[Any] = []
    original = task.model.reconstruct

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        grids.append(kwargs["grid"])
        return original(*args, **kwargs)

    monkeypatch.setattr(task.model, "reconstruct", counted)
    mask_of(task, batch, score=score, aux_grid="finetune")
    assert grids == ["finetune"] * passes
    grids.clear()
    mask_of(task, batch, score=score, aux_input_mask="complementary", aux_passes=3)
    assert len(grids) == 3 * passes


@pytest.mark.parametrize("setting", ["same", "bf16"])
def test_precision_of_the_passes(
    task: Classification, batch: Batch, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    original = task.model.reconstruct

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        drawn = original(*args, **kwargs)
        seen.append(drawn.dtype)
        return drawn

    monkeypatch.setattr(task.model, "reconstruct", watched)
    strategy = PEAS(**SHARED, aux_precision=setting)  # type: ignore[arg-type]
    scored: list[Tensor] = []
    errors = strategy.errors
    monkeypatch.setattr(strategy, "errors", lambda *a: scored.extend(errors(*a)) or errors(*a))
    plan = masked(strategy, task, batch)["mask_plan"][0]
    assert set(seen) == {torch.float32 if setting == "same" else torch.bfloat16}
    assert {line.dtype for line in scored} == {torch.float32}
    exact = masked(PEAS(**SHARED), task, batch)["mask_plan"][0]
    near = (plan.window_start[:, 0] - exact.window_start[:, 0]).abs() <= 4
    assert near.float().mean() >= 0.75


def test_standardised_errors_feed_the_second_pass(
    task: Classification, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[Tensor] = []
    original = task.model.reconstruct

    def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inputs.append(x)
        return original(x, *args, **kwargs)

    monkeypatch.setattr(task.model, "reconstruct", watched)
    mask_of(task, batch, error_norm="standardise")
    torch.testing.assert_close(inputs[1].mean((1, 2)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs[1].std((1, 2)), torch.full((8,), 0.5), atol=1e-3, rtol=0)


# --- padding and digital silence -----------------------------------------------------------


def with_padding(task: Classification, noise: bool) -> Batch:
    """Clips with 70 frames of sound: half of them end there, half fall digitally silent."""
    loaded = clips()
    end = 400 + 69 * 160
    loaded["waveform"][:, end:] = 0
    loaded["length"][:4] = end
    augmentation = task.augmentation
    task.augmentation = replace(augmentation, noise_roll=noise)
    try:
        return heard(task, loaded)
    finally:
        task.augmentation = augmentation


def lost_in_padding(x: Tensor, hidden: Tensor | None = None, *, grid: str = "") -> Tensor:
    """A reconstruction that errs most on constant frames, which may have noise up to 0.1."""
    flat = x.amax(2, keepdim=True) - x.amin(2, keepdim=True) < 0.1001
    return x + torch.where(flat, 9.0, torch.rand(x.shape[1])[None, :, None])


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("n_time", [1, 2])
@pytest.mark.parametrize("stage", ["after_noise", "before_noise"])
def test_padding_is_left_out_when_told(
    task: Classification, noise: bool, n_time: int, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task.model, "reconstruct", lost_in_padding)
    batch = with_padding(task, noise)
    assert batch["valid"].sum(1).tolist() == pytest.approx([70] * 8, abs=3)
    valid = batch["valid"]
    # Wherever the first window lies, and with the sound cut in two by the roll, a second fits.
    width = 32 // n_time
    settings = {**SHARED, "n_time": n_time, "max_time": width, "stage": stage, "score": "rec"}
    for exclude in (True, False):
        strategy = PEAS(**settings, exclude_padding=exclude)
        result = masked(strategy, task, batch)
        plan = result["mask_plan"][0]
        sound = valid
        if stage == "before_noise" and noise:
            sound = torch.stack(
                [row.roll(-int(r)) for row, r in zip(valid, batch["roll"], strict=True)]
            )
        inside = torch.stack(
            [
                torch.stack([sound[b, s : s + width].all() for s in plan.window_start[b].tolist()])
                for b in range(8)
            ]
        )
        assert inside.all() if exclude else not inside.any()
        share = strategy.means.state_dict()["peas/windows_on_padding"]
        assert share[0] == (~inside).sum()
        assert share[1] == 8 * n_time


def test_clip_without_enough_sound_keeps_as_much_as_possible(task: Classification) -> None:
    augmentation = task.augmentation
    task.augmentation = replace(augmentation, noise_roll=False)
    try:
        loaded = clips()
        loaded["length"][:] = 400 + 9 * 160
        batch = heard(task, loaded)
    finally:
        task.augmentation = augmentation
    assert (batch["valid"].sum(1) == 10).all()
    strategy = PEAS(**{**SHARED, "n_time": 1}, exclude_padding=True)
    plan = masked(strategy, task, batch)["mask_plan"][0]
    assert (plan.window_start == 0).all()


# --- the auxiliary model -------------------------------------------------------------------


def fitting(task: Classification, kind: str, **settings: Any) -> PEAS:
    strategy = PEAS(**SHARED, aux_encoder=kind, **settings)  # type: ignore[arg-type]
    task.trainer.callbacks = [strategy]
    strategy.on_fit_start(task.trainer, task)
    return strategy


def train_a_little(task: Classification, strategy: PEAS, steps: int = 2) -> None:
    for _ in range(steps):
        with torch.no_grad():
            for p in task.model.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        task.trainer.global_step += 1
        strategy.on_train_batch_end(task.trainer, task, None, None, 0)


def weights(strategy: PEAS) -> dict[str, Tensor]:
    state: dict[str, Tensor] = strategy.state_dict()["auxiliary"]["weights"]
    return state


def test_whose_errors_are_asked(batch: Batch) -> None:
    masks = {}
    for kind in ("live", "frozen", "ema"):
        task = make_task(noise_roll=True)
        strategy = fitting(task, kind, ema_decay=0.5)
        before = masked(strategy, task, batch)["mask"]
        train_a_little(task, strategy)
        masks[kind] = masked(strategy, task, batch)["mask"]
        assert torch.equal(before, masks[kind]) == (kind == "frozen")
    assert not torch.equal(masks["live"], masks["ema"])
    assert not torch.equal(masks["frozen"], masks["ema"])


def test_moving_average_follows_once_a_step() -> None:
    task = make_task()
    strategy = fitting(task, "ema", ema_decay=0.75)
    name = "encoder.blocks.0.attn.qkv.weight"
    wanted = task.model.state_dict()[name].clone()
    for _ in range(3):
        train_a_little(task, strategy, steps=1)
        wanted = 0.75 * wanted + 0.25 * task.model.state_dict()[name]
        # A second micro-batch of an accumulated step.
        strategy.on_train_batch_end(task.trainer, task, None, None, 1)
    torch.testing.assert_close(weights(strategy)[name], wanted)


@pytest.mark.parametrize("kind", ["frozen", "ema"])
def test_copy_travels_in_the_callbacks_state_only(kind: str, batch: Batch, tmp_path: Path) -> None:
    task = make_task(noise_roll=True)
    names = set(task.state_dict())
    strategy = fitting(task, kind, ema_decay=0.9)
    train_a_little(task, strategy)
    assert set(task.state_dict()) == names
    ours = {id(p) for p in task.parameters()}
    assert not any(id(p) in ours for p in strategy.scoring.auxiliary._copy.parameters())
    torch.save(strategy.state_dict(), tmp_path / "state")

    later = PEAS(**SHARED, aux_encoder=kind, ema_decay=0.9)  # type: ignore[arg-type]
    later.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    task.trainer.callbacks = [later]
    later.on_fit_start(task.trainer, task)
    for name, value in weights(strategy).items():
        assert torch.equal(weights(later)[name], value)
    assert torch.equal(masked(strategy, task, batch)["mask"], masked(later, task, batch)["mask"])
    train_a_little(task, later, 1)
    task.trainer.global_step -= 1
    train_a_little(task, later, 0)
    moved = any(not torch.equal(weights(later)[n], v) for n, v in weights(strategy).items())
    assert moved == (kind == "ema")


def test_live_model_is_not_copied() -> None:
    task = make_task()
    assert fitting(task, "live").state_dict()["auxiliary"]["weights"] is None


# --- diagnostics ---------------------------------------------------------------------------


def test_selector_log_counts_starts_and_goes_on_after_a_restart(
    task: Classification, batch: Batch, tmp_path: Path
) -> None:
    task.trainer.default_root_dir = str(tmp_path)
    strategy = PEAS(**SHARED)
    starts = []
    for step in range(2):
        plan = masked(strategy, task, heard(task, clips(step=step)))["mask_plan"][0]
        starts += plan.window_start.flatten().tolist()
        torch.save(strategy.state_dict(), tmp_path / "state")
        strategy = PEAS(**SHARED)
        strategy.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    strategy.selector_log.write(task.trainer)
    rows = [line.split(",") for line in (tmp_path / "mask_starts.csv").read_text().split()]
    assert rows[0] == ["epoch", "axis", "start", "count"]
    counted = {int(start): int(count) for _, axis, start, count in rows[1:] if axis == "time"}
    assert counted == {start: starts.count(start) for start in starts}
    strategy.selector_log.write(task.trainer)
    assert len((tmp_path / "mask_starts.csv").read_text().split()) == len(rows)
    # A run that was killed before it saved trains the epoch again; a line may be cut.
    with (tmp_path / "mask_starts.csv").open("a") as file:
        file.write("1,ti")
    masked(strategy, task, heard(task, clips(step=0)))
    strategy.selector_log.write(task.trainer)
    again = [line.split(",") for line in (tmp_path / "mask_starts.csv").read_text().split()]
    assert {row[0] for row in again[1:]} == {"0"}
    assert sum(int(row[3]) for row in again[1:] if row[1] == "time") == sum(counted.values()) // 2


def test_a_mean_of_nothing_is_not_logged() -> None:
    task = make_task()
    logged: dict[str, float] = {}
    task.log = lambda key, value, **_: logged.update({key: float(value)})  # type: ignore[method-assign, assignment]
    strategy = PEAS()
    strategy.means.add("peas/windows_on_padding", torch.empty(0))
    strategy.means.add("peas/e_rec", torch.tensor([1.0, 2.0]))
    strategy.means.add("peas/e_rec", torch.tensor([6.0]))
    strategy.means.log(task)
    assert logged == {"peas/e_rec": 3.0}


def another_process(monkeypatch: pytest.MonkeyPatch, its: Any) -> None:
    """Pretends that a second process exists and sends `its` state."""

    def gather(parts: list[Any], own: Any) -> None:
        parts[:] = [own, its]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)


def test_means_count_every_process_also_one_that_scored_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: dict[str, float] = {}
    task = make_task()
    task.log = lambda key, value, **_: logged.update({key: float(value)})  # type: ignore[method-assign, assignment]
    strategy = PEAS()
    strategy.means.add("mask/fraction", torch.tensor([0.5]))
    another_process(monkeypatch, {"mask/fraction": [0.2, 2.0], "peas/e_rec": [8.0, 4.0]})
    strategy.means.log(task)
    assert logged == pytest.approx({"mask/fraction": 0.7 / 3, "peas/e_rec": 2.0})


def test_window_starts_of_every_process_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer: Any = StandIn(tmp_path)
    strategy = PEAS()
    another_process(monkeypatch, {"time": torch.tensor([0, 3, 0])})
    strategy.selector_log.write(trainer)
    rows = (tmp_path / "mask_starts.csv").read_text().split()
    assert rows == ["epoch,axis,start,count", "0,time,1,3"]


def test_agreement_of_scores_is_logged_once_a_validation(
    task: Classification, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, float] = {}
    monkeypatch.setattr(task, "log", lambda key, value, **_: logged.update({key: float(value)}))
    strategy = PEAS(**SHARED)
    rng = torch.get_rng_state()
    trainer: Any = StandIn()
    for index in (0, 1):
        strategy.on_validation_batch_start(trainer, task, batch, index)
    assert torch.equal(torch.get_rng_state(), rng)
    pairs = ("rec_pred", "rec_complementary", "pred_complementary", "pred_energy")
    assert set(logged) == {f"peas/agree_{p}_{axis}" for p in pairs for axis in ("time", "freq")}
    assert all(-1 <= value <= 1 for value in logged.values())
    logged.clear()
    PEAS(**SHARED, score="energy").on_validation_batch_start(trainer, task, batch, 0)
    assert not logged


def test_filling_rule_is_the_tasks(batch: Batch) -> None:
    for kind in ("raw_zero", "zero"):
        task = make_task(noise_roll=True, fill=kind)
        seen: list[Tensor] = []
        task.model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        for strategy in (PEAS(**SHARED), SpecAugment(40, 30, stage="after_noise")):
            with_mask = masked(strategy, task, batch)
            task.training_step(with_mask, 0)
            wanted = 5.2411 / (2 * 4.1377) if kind == "raw_zero" else 0.0
            hidden = seen[-1][with_mask["mask"]]
            torch.testing.assert_close(hidden, torch.full_like(hidden, wanted))
