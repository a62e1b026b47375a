"""PEAS's equations, window scores, selection, schedule and diagnostics against plain loops."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from peas.errors import ConfigError
from peas.masking.blocks import blocks_to_mask, random_blocks, window_sums
from peas.masking.peas.schedule import adaptive_count, adaptive_level, final_phase
from peas.masking.peas.scores import (
    complementary,
    complementary_groups,
    error_maps,
    patches_to_bins,
    standardise,
)
from peas.masking.peas.selector import (
    NUMBERS,
    Select,
    Selection,
    adaptive_blocks,
    marginals,
    place_blocks,
    random_plan,
    spearman,
    touching,
    window_scores,
)

BIAS = 0.3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def select_windows(
    marginal: Tensor,
    n: int,
    width: int,
    tie: Tensor,
    *,
    select: Select = "nms",
    ok: Tensor | None = None,
) -> Tensor:
    """Starts of the n best windows, with the draws `[B, n]` that choose among equal ones."""
    u = torch.stack([torch.zeros_like(tie), torch.zeros_like(tie), tie], -1)
    settings = Selection(width, select=select)
    return adaptive_blocks(marginal, torch.tensor([n]), u, settings, ok=ok).window_start


def toy(x: Tensor) -> Tensor:
    """A reconstruction with a known error."""
    return 0.5 * x + BIAS


class SmallAutoencoder(nn.Module):
    """Patch embedding, one attention layer and a pixel head, with fixed random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Linear(256, 32)
        self.position = nn.Parameter(0.1 * torch.randn(1, 256, 32))
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, 256)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, mels = x.shape
        patches = x.view(batch, frames // 16, 16, mels // 16, 16).permute(0, 3, 1, 2, 4)
        tokens = self.embed(patches.reshape(batch, -1, 256))
        output = self.head(self.layer(tokens + self.position[:, : tokens.shape[1]]))
        patches = output.view(batch, mels // 16, frames // 16, 16, 16).permute(0, 2, 3, 1, 4)
        return patches.reshape(batch, frames, mels)


# --- equations 1 and 2 ---------------------------------------------------------------------


def test_equations_1_and_2() -> None:
    x = draws(3, 8, 4)
    maps = error_maps(toy, x)
    e_rec = (0.5 * x + BIAS - x) ** 2
    e_pred = (0.5 * e_rec + BIAS - e_rec) ** 2
    assert maps.e_rec is not None
    assert maps.e_pred is not None
    torch.testing.assert_close(maps.e_rec, e_rec)
    torch.testing.assert_close(maps.e_pred, e_pred)
    torch.testing.assert_close(maps.score, e_pred)
    torch.testing.assert_close(error_maps(toy, x, score="predicted").score, 0.5 * e_rec + BIAS)
    torch.testing.assert_close(error_maps(toy, x, score="easy").score, -e_pred)


@pytest.mark.parametrize(
    ("score", "passes"), [("energy", 0), ("rec", 1), ("pred", 2), ("predicted", 2)]
)
def test_only_the_passes_that_a_score_needs_run(score: str, passes: int) -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x)
        return toy(x)

    maps = error_maps(counted, draws(2, 8, 4), score=score)  # type: ignore[arg-type]
    assert len(calls) == passes
    assert (maps.e_rec is None) == (passes < 1)
    assert (maps.e_pred is None) == (passes < 2)


def test_unknown_score_is_refused() -> None:
    with pytest.raises(ConfigError, match="score"):
        error_maps(toy, draws(1, 4, 4), score="best")  # type: ignore[arg-type]


def test_standardised_target_is_the_target_of_equation_2() -> None:
    x = draws(3, 8, 4)
    e_rec = (0.5 * x + BIAS - x) ** 2
    target = (e_rec - e_rec.mean((1, 2), keepdim=True)) / (
        2 * e_rec.std((1, 2), correction=0, keepdim=True)
    )
    maps = error_maps(toy, x, error_norm="standardise")
    torch.testing.assert_close(maps.score, (0.5 * target + BIAS - target) ** 2)
    normal = standardise(e_rec)
    torch.testing.assert_close(normal.mean((1, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.std((1, 2), correction=0), torch.full((3,), 0.5))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
def test_standardising_a_constant_map_gives_zeros_and_finite_gradients(constant: float) -> None:
    error = torch.full((2, 512, 128), constant, requires_grad=True)
    normal = standardise(error)
    assert normal.abs().max() < 0.1
    normal.square().sum().backward()
    assert error.grad is not None
    assert error.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1e4])
def test_standardising_leaves_rounding_noise_small(scale: float) -> None:
    """A map that differs from a constant by its last bit is no map of errors."""
    noise = torch.rand(2, 64, 32, generator=torch.Generator().manual_seed(0))
    normal = standardise(scale * (1 + 1e-7 * noise.round()))
    assert 0 < normal.abs().max() < 0.1
    # A map that does differ is none of the floor's business.
    normal = standardise(scale * (1 + 1e-3 * noise))
    torch.testing.assert_close(normal.std((1, 2), correction=0), torch.full((2,), 0.5))


def test_maps_carry_gradients_unless_told_not_to() -> None:
    model = SmallAutoencoder()
    maps = error_maps(model, draws(2, 32, 32))
    assert maps.e_pred is not None
    maps.e_pred.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    with torch.no_grad():
        assert not error_maps(model, draws(2, 32, 32)).score.requires_grad


def test_bf16_passes_pick_windows_near_those_of_fp32() -> None:
    model = SmallAutoencoder().eval()
    # Clips with one loud stretch each, as sounds have.
    x = torch.randn(24, 256, 64, generator=torch.Generator().manual_seed(5)) * 0.3
    for clip in range(24):
        x[clip, 5 * clip : 5 * clip + 60] *= 3
    with torch.no_grad():
        exact = error_maps(model, x).score
        with torch.autocast("cpu", torch.bfloat16):
            half = error_maps(model, x).score
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)
    for axis, width in ((0, 48), (1, 12)):
        starts = [
            select_windows(marginals(score)[axis], 1, width, draws(24, 1))
            for score in (exact, half)
        ]
        far = (starts[0] - starts[1]).abs() > 3
        assert far.float().mean() <= 0.1
        assert starts[0].unique().numel() > 12


# --- complementary patch masks --------------------------------------------------------------


@pytest.mark.parametrize(("patches", "passes"), [(256, 4), (64, 3), (7, 2)])
def test_each_patch_is_hidden_once_in_groups_of_equal_size(patches: int, passes: int) -> None:
    groups = complementary_groups(draws(5, patches), passes)
    size = torch.stack([(groups == k).sum(1) for k in range(passes)])
    assert size.sum(0).tolist() == [patches] * 5
    assert size.max() - size.min() <= 1
    assert not torch.equal(groups[0], groups[1])


def test_patches_to_cells_against_a_loop() -> None:
    patch, grid, frames, mels = (2, 3), (2, 3), 8, 4
    values = torch.arange(6)[None]
    cells = patches_to_bins(values, patch, grid, frames, mels)
    for t, f in itertools.product(range(frames), range(mels)):
        assert cells[0, t, f] == values[0, (f // 2) * 3 + t // 3]


def test_complementary_takes_each_cell_from_the_pass_that_hid_it() -> None:
    patch, grid = (4, 4), (2, 4)
    u, x = draws(2, 8), draws(2, 15, 8)
    seen = []

    def reconstruct(log_mel: Tensor, hidden: Tensor) -> Tensor:
        # 1 where hidden, NaN where visible: a visible cell in the result would show.
        seen.append(hidden)
        cells = patches_to_bins(hidden, patch, grid, 15, 8)
        return torch.where(cells, torch.full_like(log_mel, float(len(seen))), torch.nan)

    stitched = complementary(reconstruct, u, 4, patch=patch, grid=grid)
    error = error_maps(stitched, x, score="rec").score
    number = patches_to_bins(complementary_groups(u, 4) + 1, patch, grid, 15, 8)
    torch.testing.assert_close(error, (number - x) ** 2)
    assert torch.stack(seen).sum(0).eq(1).all()


def test_complementary_refuses_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="complementary"):
        complementary_groups(draws(1, 4), 5)
    with pytest.raises(ConfigError, match="complementary"):
        complementary_groups(draws(1, 4), 1)
    with pytest.raises(ConfigError, match="tile 8 mel bins x 9 frames"):
        patches_to_bins(draws(1, 4), (4, 4), (2, 2), 9, 8)
    # Overlapping patches: a cell would be taken from a pass that showed it.
    with pytest.raises(ConfigError, match="aux_grid: nonoverlap"):
        patches_to_bins(draws(1, 9), (4, 4), (3, 3), 8, 8)


# --- window scores --------------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "w_time", "w_freq"), [(512, 96, 24), (128, 48, 48)])
def test_window_scores_against_two_dimensional_means(frames: int, w_time: int, w_freq: int) -> None:
    score = draws(2, frames, 128) ** 4 * 50
    time, freq = marginals(score)
    for got, wanted in (
        (window_scores(time, w_time), score.unfold(1, w_time, 1).mean((2, 3))),
        (window_scores(freq, w_freq), score.unfold(2, w_freq, 1).mean((1, 3))),
    ):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at", [0, 1, 137, 415, 416])
def test_planted_hard_block_is_found_exactly(at: int) -> None:
    score = draws(3, 512, 128)
    bin_at = at // 4
    score[:, at : at + 96] += 2
    score[:, :, bin_at : bin_at + 24] += 2
    time, freq = marginals(score)
    time_start = select_windows(time, 1, 96, draws(3, 1))
    freq_start = select_windows(freq, 1, 24, draws(3, 1))
    assert time_start.flatten().tolist() == [at] * 3
    assert freq_start.flatten().tolist() == [bin_at] * 3


def test_cells_that_do_not_count_enter_no_mean() -> None:
    score = draws(2, 50, 20)
    ok = torch.ones(2, 50, dtype=torch.bool)
    ok[0, 30:] = False
    freq_ok = (torch.arange(20) < 18)[None]
    spoiled = score.clone()
    spoiled[0, 30:] = torch.nan
    spoiled[:, :, 18:] = torch.inf
    time, freq = marginals(spoiled, ok, freq_ok)
    torch.testing.assert_close(time[0, :30], score[0, :30, :18].mean(1))
    torch.testing.assert_close(freq[0, :18], score[0, :30, :18].mean(0))
    torch.testing.assert_close(freq[1, :18], score[1, :, :18].mean(0))
    assert time[0, 30:].eq(0).all()

    scores = window_scores(time, 10, ok)
    assert scores[0, :21].isfinite().all()
    assert scores[0, 21:].eq(-torch.inf).all()
    assert scores[1].isfinite().all()
    # More window than sound: only windows that hold all of it compete, by the sound's mean.
    scores = window_scores(time, 35, ok)
    torch.testing.assert_close(scores[0, 0], time[0, :30].mean())
    assert scores[0, 1:].eq(-torch.inf).all()
    torch.testing.assert_close(window_scores(torch.where(ok, time, torch.nan), 35, ok), scores)


def test_second_window_looks_for_the_remaining_sound() -> None:
    marginal = torch.zeros(200, 100)
    ok = torch.zeros(200, 100, dtype=torch.bool)
    ok[:, 70:90] = True
    marginal[:, 70:80] = 1.0
    plan = adaptive_blocks(
        marginal, torch.tensor([2]), draws(200, 2, NUMBERS), Selection(10), ok=ok
    )
    assert (plan.window_start == torch.tensor([70, 80])).all()


def test_clips_without_a_preference_use_the_whole_axis() -> None:
    # A silent clip scores the same everywhere; one without a cell that counts has no score.
    constant = torch.full((400, 128), 0.382)
    nothing = torch.zeros(400, 128, dtype=torch.bool)
    for ok in (None, nothing):
        scores = window_scores(constant, 24, ok)
        assert (scores == scores[:, :1]).all()
        starts = select_windows(constant, 1, 24, draws(400, 1), ok=ok).flatten()
        assert starts.unique().numel() > 90
        assert starts.min() < 5
        assert starts.max() > 99
    unknown = torch.full((1, 128), torch.nan)
    assert select_windows(unknown, 1, 24, torch.tensor([[0.5]])).item() == 52


@pytest.mark.parametrize("width", [0, 61])
def test_windows_outside_the_axis_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match="window width"):
        window_scores(draws(1, 60), width)


# --- ranking --------------------------------------------------------------------------------


def naive_nms(scores: Tensor, n: int, width: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(n):
        covered = {c for s in chosen for c in range(s, s + width)}
        overlap = [len(covered & set(range(s, s + width))) for s in range(len(scores))]
        free = [s for s in range(len(scores)) if overlap[s] == min(overlap)]
        chosen.append(max(free, key=lambda s: float(scores[s])))
    return chosen


@pytest.mark.parametrize(("size", "width"), [(512, 96), (128, 24), (128, 48)])
def test_nms_against_a_loop(size: int, width: int) -> None:
    marginal = draws(6, size)
    starts = select_windows(marginal, 3, width, draws(6, 3))
    scores = window_scores(marginal, width)
    assert starts.tolist() == [naive_nms(row, 3, width) for row in scores]
    if size >= 5 * width:
        shared = starts[:, :, None] - starts[:, None, :]
        assert (shared.abs() + size * torch.eye(3) >= width).all()


def test_topk_is_the_plain_ranking() -> None:
    marginal = draws(6, 128)
    starts = select_windows(marginal, 5, 24, draws(6, 5), select="topk")
    assert torch.equal(starts, window_scores(marginal, 24).topk(5).indices)


# --- placement ------------------------------------------------------------------------------

PLACEMENTS = ["uniform", "start", "centre", "best"]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("fixed", [None, 12])
def test_masks_lie_inside_their_window(placement: str, fixed: int | None) -> None:
    u, marginal = draws(300, 3, 3), draws(300, 128, seed=1)
    starts = (draws(300, 3, seed=2) * 105).long()
    blocks = place_blocks(
        starts, 24, u, 24, 128, fixed_width=fixed, placement=placement, marginal=marginal
    )  # type: ignore[arg-type]
    assert (blocks.start >= starts).all()
    assert (blocks.start + blocks.width <= starts + 24).all()
    wanted = (u[..., 0] * 24).long() if fixed is None else torch.full((300, 3), 12)
    assert torch.equal(blocks.width, wanted)


def test_uniform_placement_reaches_both_ends_of_the_window_equally() -> None:
    starts = torch.full((4000, 1), 7)
    blocks = place_blocks(starts, 24, draws(4000, 1, 2), 24, 128, fixed_width=12)
    count = (blocks.start.flatten() - 7).bincount(minlength=13)
    assert len(count) == 13
    # 12 degrees of freedom: 32.9 is passed by one fair histogram in a thousand.
    assert ((count - 4000 / 13) ** 2 / (4000 / 13)).sum() < 32.9


def test_best_placement_against_a_loop() -> None:
    u, marginal = draws(20, 2, 3), -draws(20, 60, seed=1)
    starts = torch.tensor([[0, 36]]).expand(20, 2)
    blocks = place_blocks(starts, 24, u, 24, 60, placement="best", marginal=marginal)
    for b, i in itertools.product(range(20), range(2)):
        first, width = int(starts[b, i]), int(blocks.width[b, i])
        if width:
            means = [
                marginal[b, s : s + width].mean().item()
                for s in range(first, first + 24 - width + 1)
            ]
            got = marginal[b, blocks.start[b, i] :][:width].mean().item()
            assert got == pytest.approx(max(means), abs=1e-6)
    with pytest.raises(ConfigError, match="best"):
        place_blocks(starts, 24, u, 24, 60, placement="best")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_mask_wider_than_its_window_is_centred_on_it(placement: str) -> None:
    u = torch.tensor([[[0.9, 0.7, 0.0]]])  # width 21 of 24
    for window, wanted in ((50, 45), (0, 0), (116, 107)):
        blocks = place_blocks(
            torch.tensor([[window]]), 12, u, 24, 128, placement=placement, marginal=draws(1, 128)
        )  # type: ignore[arg-type]
        assert (blocks.start.item(), blocks.width.item()) == (wanted, 21)


# --- the plan of one axis -------------------------------------------------------------------

SETTINGS = [
    Selection(24, block_width, placement, select, overlap, fixed)  # type: ignore[arg-type]
    for block_width, placement, select, overlap, fixed in itertools.product(
        ["max", "expected", "sampled"],
        ["uniform", "best"],
        ["nms", "topk"],
        ["allow", "forbid"],
        [None, 12],
    )
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_plan_obeys_its_settings(settings: Selection) -> None:
    batch, n, size = 60, 3, 128
    u, marginal = draws(batch, n, NUMBERS), draws(batch, size, seed=1)
    n_adaptive = torch.arange(batch) % (n + 1)
    plan = adaptive_blocks(marginal, n_adaptive, u, settings)
    start, width = plan.blocks

    assert torch.equal(plan.adaptive.sum(1), n_adaptive)
    assert torch.equal((~plan.adaptive).sum(1), n - n_adaptive)
    assert torch.equal(plan.adaptive, plan.adaptive.sort(1, descending=True).values)
    assert (plan.window_start[~plan.adaptive] == -1).all()
    assert (plan.window_width[~plan.adaptive] == 0).all()
    law = (u[..., 0] * 24).long()
    assert torch.equal(width, law if settings.fixed_width is None else torch.full_like(law, 12))
    assert (start >= 0).all()
    assert (start + width <= size).all()
    hidden = blocks_to_mask(plan.blocks, size).sum(1)
    if settings.overlap == "forbid":
        assert torch.equal(hidden, width.sum(1))
    if settings.block_width == "sampled":
        wanted = width.clamp(min=1)
    else:
        wanted = torch.full_like(width, 24 if settings.block_width == "max" else 12)
    assert torch.equal(plan.window_width[plan.adaptive], wanted[plan.adaptive])
    undisturbed = settings.select == "nms" or settings.overlap == "allow"
    if undisturbed and settings.block_width != "expected":
        end = plan.window_start + plan.window_width
        inside = (start >= plan.window_start) & (start + width <= end)
        assert inside[plan.adaptive].all()
    if settings.select == "nms":
        windows = torch.zeros(batch, size, dtype=torch.long)
        for i in range(n):
            cells = torch.arange(size)
            first = plan.window_start[:, i, None]
            windows += (cells >= first) & (cells < first + plan.window_width[:, i, None])
        assert windows.max() == 1


def test_plan_places_its_masks_in_its_windows() -> None:
    marginal, u = draws(9, 512), draws(9, 3, NUMBERS)
    plan = adaptive_blocks(marginal, torch.tensor([3]), u, Selection(96))
    placed = place_blocks(plan.window_start, 96, u, 96, 512)
    assert torch.equal(plan.blocks.start, placed.start)


def test_plan_breaks_ties_by_the_third_draw() -> None:
    constant, u = torch.ones(50, 128), draws(50, 2, NUMBERS)
    plan = adaptive_blocks(constant, torch.tensor([2]), u, Selection(24))
    # The first window has 105 starts to choose from.
    assert torch.equal(plan.window_start[:, 0], (u[:, 0, 2] * 105).long())
    assert torch.equal(plan.window_start, select_windows(constant, 2, 24, u[..., 2]))


def test_masks_in_neighbouring_windows_make_room_inside_them() -> None:
    u, marginal = draws(400, 2, NUMBERS), torch.arange(128.0).expand(400, 128)
    plan = adaptive_blocks(
        marginal, torch.tensor([2]), u, Selection(24, select="topk", fixed_width=6)
    )
    start, width = plan.blocks
    assert (plan.window_start == torch.tensor([104, 103])).all()
    assert (start.diff(dim=1).abs() >= 6).all()
    assert (start >= plan.window_start).all()
    assert (start + width <= plan.window_start + 24).all()


@pytest.mark.parametrize("overlap", ["allow", "forbid"])
@pytest.mark.parametrize("fixed", [None, 24])
def test_no_adaptive_block_is_random_masking(overlap: str, fixed: int | None) -> None:
    u = draws(200, 3, NUMBERS)
    settings = Selection(48, overlap=overlap, fixed_width=fixed)  # type: ignore[arg-type]
    plan = adaptive_blocks(draws(200, 128, seed=1), torch.zeros(200).long(), u, settings)
    random = random_plan(u, settings, 128)
    for got, wanted in zip((*plan.blocks, *plan[1:]), (*random.blocks, *random[1:]), strict=True):
        assert torch.equal(got, wanted)
    blocks = random_blocks(u[..., :2], 48, 128, fixed_width=fixed, overlap=overlap)  # type: ignore[arg-type]
    assert torch.equal(blocks.start, plan.blocks.start)


def test_random_blocks_avoid_the_adaptive_ones_and_leave_them_alone() -> None:
    u, marginal = draws(200, 2, NUMBERS), draws(200, 160, seed=1)
    settings = Selection(48, fixed_width=24)
    one = adaptive_blocks(marginal, torch.tensor([1]), u, settings)
    two = adaptive_blocks(marginal, torch.tensor([2]), u, settings)
    assert torch.equal(one.blocks.start[:, 0], two.blocks.start[:, 0])
    assert (one.blocks.start.diff(dim=1).abs() >= 24).all()


def test_crowded_axis_hides_as_much_as_it_can() -> None:
    # Four masks of 24 on 128 cells fit only when none cuts the room badly; seven never fit.
    plan = adaptive_blocks(
        draws(50, 128), torch.tensor([7]), draws(50, 7, NUMBERS), Selection(48, fixed_width=24)
    )
    mask = blocks_to_mask(plan.blocks, 128)
    assert (mask.sum(1) <= 128).all()
    assert (mask.sum(1) >= 96).all()


@pytest.mark.parametrize("overlap", ["allow", "forbid"])
def test_plan_of_a_clip_does_not_depend_on_its_batch(overlap: str) -> None:
    u, marginal = draws(8, 3, NUMBERS), draws(8, 128, seed=1)
    settings = Selection(48, "sampled", "best", overlap=overlap)  # type: ignore[arg-type]
    n_adaptive = torch.arange(8) % 4
    whole = adaptive_blocks(marginal, n_adaptive, u, settings)
    part = adaptive_blocks(marginal[5:], n_adaptive[5:], u[5:], settings)
    assert torch.equal(whole.blocks.start[5:], part.blocks.start)


def test_plan_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="max_freq"):
        adaptive_blocks(
            draws(1, 128), torch.tensor([1]), draws(1, 1, 3), Selection(129), key="max_freq"
        )
    with pytest.raises(ConfigError, match="placement"):
        Selection(24, placement="middle")  # type: ignore[arg-type]


# --- equation 3 -----------------------------------------------------------------------------

# (e_t, n_t, rounding): epochs from which n_a is 1, 2, 3.
SCHEDULE = {
    (25, 1, "floor"): [10],
    (25, 1, "round"): [6],
    (25, 1, "ceil"): [1],
    (25, 2, "floor"): [10, 20],
    (25, 2, "round"): [6, 15],
    (25, 2, "ceil"): [1, 11],
    (25, 3, "floor"): [10, 20, 20],
    (25, 3, "round"): [6, 15, 20],
    (25, 3, "ceil"): [1, 11, 20],
    (30, 3, "floor"): [10, 20, 24],
    (30, 3, "round"): [6, 15, 24],
    (30, 3, "ceil"): [1, 11, 21],
    # Short runs: 0.1 e stays small, and 0.9 n_t alone may not reach n_t.
    (1, 1, "floor"): [],
    (1, 3, "floor"): [],
    (1, 3, "ceil"): [],
    (2, 3, "floor"): [],
    (2, 3, "ceil"): [1],
    (5, 1, "floor"): [4],
    (5, 2, "floor"): [4, 4],
    (5, 3, "floor"): [4, 4, 4],
    (5, 3, "round"): [4, 4, 4],
}


@pytest.mark.parametrize(("case", "steps"), SCHEDULE.items())
def test_table_of_adaptive_counts(case: tuple[int, int, str], steps: list[int]) -> None:
    epochs, n_total, rounding = case
    for epoch in range(epochs):
        count = adaptive_count(
            n_total, epoch, epochs, rounding=rounding, progressive_single=True, u=draws(4)
        )  # type: ignore[arg-type]
        assert count.tolist() == [sum(epoch >= step for step in steps)] * 4


def test_single_block_is_adaptive_from_the_start_unless_told() -> None:
    assert [adaptive_count(1, e, 25).item() for e in (0, 9, 24)] == [1, 1, 1]
    assert adaptive_count(1, 0, 25, progressive_single=True).item() == 0
    assert adaptive_count(0, 24, 25).item() == 0


def test_ramps() -> None:
    for epoch in range(25):
        assert adaptive_level(3, epoch, 25) == adaptive_level(3, epoch, 25, ramp="relative")
    assert [adaptive_count(3, e, 100, ramp="relative").item() for e in (39, 40, 79, 80)] == [
        0,
        1,
        1,
        3,
    ]
    assert adaptive_count(3, 0, 100, ramp="off").tolist() == [3]
    assert adaptive_count(1, 0, 100, ramp="off", progressive_single=True).tolist() == [1]


def test_stochastic_rounding_has_the_mean_of_equation_3() -> None:
    u = torch.arange(1000) / 1000
    count = adaptive_count(3, 13, 25, rounding="stochastic", u=u)
    assert count.bincount().tolist() == [0, 700, 300]
    assert adaptive_count(3, 20, 25, rounding="stochastic", u=u).unique().tolist() == [3]
    with pytest.raises(ConfigError, match="stochastic"):
        adaptive_count(3, 13, 25, rounding="stochastic")


def test_final_phase_is_exactly_the_last_fifth() -> None:
    first = {25: 20, 30: 24, 1: 1, 2: 2, 5: 4, 10: 8, 50: 40, 7: 6}
    for epochs, start in first.items():
        assert [final_phase(e, epochs) for e in range(epochs)] == [
            e >= start for e in range(epochs)
        ]
    assert not any(final_phase(e, 25, share=0.0) for e in range(25))
    assert [final_phase(e, 10, share=0.3) for e in (6, 7)] == [False, True]


# --- diagnostics ----------------------------------------------------------------------------


def test_spearman_against_scipy() -> None:
    from scipy.stats import spearmanr

    a, b = draws(5, 40), draws(5, 40, seed=1)
    b = (b * 6).round() + a  # correlated, and ties in the next line
    a = (a * 10).round()
    wanted = [spearmanr(x.numpy(), y.numpy()).statistic for x, y in zip(a, b, strict=True)]
    assert spearman(a, b).tolist() == pytest.approx(wanted, abs=1e-6)
    assert spearman(a, torch.ones(5, 40)).tolist() == [0.0] * 5
    torch.testing.assert_close(spearman(b, b**3), torch.ones(5))


def test_touching_against_a_loop() -> None:
    ok = torch.arange(20)[None] < torch.tensor([[15], [20], [0]])
    start = torch.tensor([[0, 10, 15], [0, 10, 18], [-1, 0, 5]])
    width = torch.tensor([[15, 6, 0], [20, 5, 2], [0, 1, 3]])
    wanted = [
        [
            any(not ok[b, s + k] for k in range(w))
            for s, w in zip(start[b].tolist(), width[b].tolist(), strict=True)
        ]
        for b in range(3)
    ]
    assert touching(start, width, ok).tolist() == wanted
    assert wanted == [[False, True, False], [False, False, False], [False, True, True]]


def test_sums_of_large_maps_keep_their_digits() -> None:
    marginal = draws(2, 1024) * 1e-3
    marginal[:, 0] = 1e6
    scores = window_scores(marginal, 96)
    torch.testing.assert_close(scores[:, 1:], marginal[:, 1:].unfold(1, 96, 1).mean(2))
    assert window_sums(marginal.double(), torch.tensor([96, 96])).dtype == torch.float64
