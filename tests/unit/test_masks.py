"""Block masks against torchaudio, brute force and the law's own numbers."""

import pytest
import torch

from peas.errors import ConfigError
from peas.masking.blocks import (
    Blocks,
    Overlap,
    blocks_to_mask,
    check_width,
    cross,
    fill_masked,
    keep_best,
    masked_fraction,
    pick_uniform,
    random_blocks,
    random_start,
    random_widths,
    window_sums,
)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("axis", "param", "size"), [("time", 96, 512), ("freq", 24, 128)])
def test_first_block_is_torchaudios_interval(axis: str, param: int, size: int) -> None:
    from torchaudio.transforms import FrequencyMasking, TimeMasking

    transform = TimeMasking(param) if axis == "time" else FrequencyMasking(param)
    shape = (1, 1, size) if axis == "time" else (1, size, 1)
    for seed in range(300):
        torch.manual_seed(seed)
        official = transform(torch.ones(shape)).flatten() == 0
        torch.manual_seed(seed)
        u = torch.stack([torch.rand(1), torch.rand(1)], -1)[None]
        ours = blocks_to_mask(random_blocks(u, param, size), size)[0]
        assert torch.equal(ours, official)


def test_widths_are_flat_below_the_parameter() -> None:
    width = random_blocks(draws(4000, 1, 2), 24, 128).width.flatten()
    count = torch.bincount(width, minlength=25)
    assert count[24] == 0
    expected = 4000 / 24
    # 23 degrees of freedom: 49.7 is passed by one fair histogram in a thousand.
    assert ((count[:24] - expected) ** 2 / expected).sum() < 49.7


def test_width_never_reaches_the_parameter_at_the_largest_draw() -> None:
    largest = torch.tensor([[1 - 2**-24]])
    for param in range(1, 513):
        assert random_widths(largest, param).long().item() == param - 1


def test_fixed_width_replaces_the_law_and_stays_inside() -> None:
    blocks = random_blocks(draws(500, 3, 2), 96, 512, fixed_width=48)
    assert (blocks.width == 48).all()
    assert (blocks.start >= 0).all()
    assert (blocks.start + 48 <= 512).all()


@pytest.mark.parametrize(("max_width", "size"), [(48, 128), (96, 512), (24, 128)])
def test_forbid_keeps_blocks_apart_while_there_is_room(max_width: int, size: int) -> None:
    blocks = random_blocks(draws(600, 3, 2), max_width, size)
    assert (blocks.start + blocks.width <= size).all()
    crowded = 0
    for start, width in zip(blocks.start.tolist(), blocks.width.tolist(), strict=True):
        cells: set[int] = set()
        for s, w in zip(start, width, strict=True):
            least = min(len(cells & set(range(k, k + w))) for k in range(size - w + 1))
            assert len(cells & set(range(s, s + w))) == least
            crowded += least > 0
            cells |= set(range(s, s + w))
    assert (crowded > 0) == (max_width == 48)


def test_allow_draws_each_block_by_itself() -> None:
    u = draws(600, 3, 2)
    blocks = random_blocks(u, 96, 160, overlap="allow")
    alone = [random_blocks(u[:, i : i + 1], 96, 160) for i in range(3)]
    assert torch.equal(blocks.start, torch.cat([block.start for block in alone], 1))
    assert (blocks_to_mask(blocks, 160).sum(1) < blocks.width.sum(1)).any()


@pytest.mark.parametrize(
    ("overlap", "fixed_width", "share"),
    [("forbid", None, 0.794), ("forbid", 24, 0.809), ("allow", None, 0.689), ("allow", 24, 0.699)],
)
def test_share_that_three_and_three_blocks_hide_of_speech_commands(
    overlap: Overlap, fixed_width: int | None, share: float
) -> None:
    """The figures of docs/recipes.md: 128 x 128 cells, mask parameters of 48."""
    time, freq = (
        blocks_to_mask(
            random_blocks(
                draws(4000, 3, 2, seed=seed), 48, 128, fixed_width=fixed_width, overlap=overlap
            ),
            128,
        )
        for seed in (0, 1)
    )
    hidden = float(cross(time, freq).float().mean())
    assert hidden == pytest.approx(share, abs=0.006)


def test_free_starts_are_equally_likely_and_indexed_in_order() -> None:
    # Cells 3..5 of 12 are taken: blocks of 3 are free at 0, 6, 7, 8, 9.
    taken = torch.zeros(1000, 12, dtype=torch.bool)
    taken[:, 3:6] = True
    position = (torch.arange(1000) + 0.5) / 1000
    start = random_start(position, torch.full((1000,), 3.0), taken, "forbid")
    assert torch.equal(start.unique(), torch.tensor([0, 6, 7, 8, 9]))
    assert torch.equal(start, start.sort().values)
    assert torch.equal(start.bincount()[[0, 6, 7, 8, 9]], torch.full((5,), 200))


def test_full_axis_takes_the_lowest_start_of_least_overlap() -> None:
    taken = torch.tensor([[1, 1, 1, 0, 1, 1, 0, 1, 1, 1]]).bool()
    start = random_start(draws(1), torch.tensor([4.0]), taken, "forbid")
    assert start.item() == 3


def test_taken_matters_only_to_the_clips_that_have_any() -> None:
    u, width = draws(2), torch.tensor([7.5, 7.5])
    taken = torch.zeros(2, 64, dtype=torch.bool)
    taken[1, :40] = True
    start = random_start(u, width, taken, "forbid")
    law = random_start(u, width, torch.zeros_like(taken), "forbid")
    assert start[0] == law[0] == int(u[0] * 56.5)
    assert start[1] >= 40


def test_no_blocks_and_zero_width_hide_nothing() -> None:
    assert random_blocks(draws(4, 0, 2), 20, 64).start.shape == (4, 0)
    assert not blocks_to_mask(random_blocks(draws(4, 0, 2), 20, 64), 64).any()
    assert not blocks_to_mask(random_blocks(draws(4, 2, 2), 0, 64), 64).any()
    assert not blocks_to_mask(random_blocks(draws(4, 2, 2), 1, 64), 64).any()


def test_blocks_to_mask_and_cross_against_loops() -> None:
    blocks = Blocks(torch.tensor([[2, 7], [0, 3]]), torch.tensor([[3, 1], [0, 4]]))
    time = blocks_to_mask(blocks, 9)
    assert time.int().tolist() == [[0, 0, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0]]
    freq = torch.tensor([[True, False], [False, False]])
    both = cross(time, freq)
    for b in range(2):
        for t in range(9):
            for f in range(2):
                assert both[b, t, f] == (time[b, t] or freq[b, f])
    assert masked_fraction(both).tolist() == pytest.approx([(9 + 4) / 18, 4 / 9])


def test_fill_puts_the_value_into_masked_bins_alone() -> None:
    x = draws(2, 5, 4)
    mask = draws(2, 5, 4, seed=2) < 0.5
    filled = fill_masked(x, mask, torch.tensor(0.618))
    assert torch.equal(filled[~mask], x[~mask])
    assert (filled[mask] == 0.618).all()


def test_filling_stops_gradients_of_hidden_cells_only() -> None:
    x = draws(1, 4, 4).requires_grad_()
    mask = draws(1, 4, 4, seed=2) < 0.5
    fill_masked(x, mask, 0.0).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (~mask).float())


@pytest.mark.parametrize(("width", "reason"), [(129, "does not fit"), (-1, "cannot be")])
def test_impossible_widths_name_the_key(width: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"max_freq: .*{reason}"):
        check_width("max_freq", width, 128)
    with pytest.raises(ConfigError, match="max_freq"):
        random_blocks(draws(1, 1, 2), width, 128, key="max_freq")
    check_width("max_freq", 128, 128)


def test_window_sums_against_brute_force() -> None:
    values, width = draws(3, 40).double(), torch.tensor([1, 7, 40])
    sums = window_sums(values, width)
    for b in range(3):
        for s in range(40):
            assert sums[b, s].item() == pytest.approx(values[b, s : s + width[b]].sum().item())


def test_pick_uniform_reaches_every_allowed_cell_and_no_other() -> None:
    allowed = torch.tensor([0, 1, 0, 1, 1]).bool().expand(999, 5)
    chosen = pick_uniform(allowed, torch.arange(999) / 999)
    assert torch.equal(chosen.bincount(minlength=5), torch.tensor([0, 333, 0, 333, 333]))
    assert pick_uniform(allowed[:1], torch.tensor([1 - 2**-24])).item() == 4


def test_keep_best_without_an_order_keeps_what_is_allowed() -> None:
    allowed = torch.tensor([[True, True, False]])
    assert torch.equal(keep_best(allowed, torch.full((1, 3), torch.nan)), allowed)
    assert keep_best(allowed, torch.tensor([[1, 2, 3]])).tolist() == [[False, True, False]]
