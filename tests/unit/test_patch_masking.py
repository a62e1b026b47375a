"""Masks of pretraining: AudioMAE's two rules, and SSAST's clusters against loops and a table."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.masking.clusters import (
    SIDES,
    PatchSampler,
    clusters,
    clusters_numbers,
    official_clusters,
    official_frames,
    unbiased_clusters,
    unbiased_numbers,
)
from peas.masking.patches import masked_ids, random_patches, time_freq_mask

GRID = (8, 64)
# Share of hidden patches in each row of mel bins, low to high, measured of the official code.
ROWS = {
    400: [0.415, 0.669, 0.813, 0.873, 0.888, 0.887, 0.885, 0.820],
    250: [0.197, 0.365, 0.497, 0.568, 0.595, 0.594, 0.591, 0.499],
}


def uniform(clips: int, count: int, seed: int = 0) -> Tensor:
    return torch.rand(clips, count, generator=torch.Generator().manual_seed(seed))


# --- AudioMAE's rules ----------------------------------------------------------------------


def test_the_smallest_draws_stay() -> None:
    u = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.0, 0.2, 0.1, 0.3]])
    assert random_patches(u, 2).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert not random_patches(u, 4).any()
    for visible in (0, 5):
        with pytest.raises(ConfigError, match=rf"{visible} of 4 patches.*1 to 4"):
            random_patches(u, visible)


def test_a_patch_is_seen_where_its_time_and_its_band_are() -> None:
    u_time, u_freq = uniform(5, 6), uniform(5, 4, seed=1)
    hidden = time_freq_mask(u_time, u_freq, 3, 2)
    assert hidden.shape == (5, 6, 4)
    assert ((~hidden).sum((1, 2)) == 6).all()
    for clip in range(5):
        times = set(u_time[clip].argsort()[:3].tolist())
        bands = set(u_freq[clip].argsort()[:2].tolist())
        for t in range(6):
            for f in range(4):
                assert bool(hidden[clip, t, f]) == (t not in times or f not in bands)
    with pytest.raises(ConfigError, match="7 of 6"):
        time_freq_mask(u_time, u_freq, 7, 2)


def test_ids_are_ascending() -> None:
    hidden = torch.tensor([[True, False, True], [False, True, True]])
    assert masked_ids(hidden).tolist() == [[0, 2], [1, 2]]


# --- SSAST's clusters ----------------------------------------------------------------------


def frequencies(hidden: Tensor) -> Tensor:
    return hidden.float().mean(0)


def of_the_loop(count: int, clips: int) -> Tensor:
    rng = random.Random(0)
    hidden = torch.zeros(clips, 512, dtype=torch.bool)
    for row in hidden:
        row[official_clusters(rng, GRID, count)] = True
    return hidden


@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize("kind", ["loop", "batch"])
def test_the_law_of_the_clusters(count: int, kind: str) -> None:
    if kind == "loop":
        hidden = of_the_loop(count, 1500)
    else:
        hidden = clusters(uniform(4000, clusters_numbers(GRID)), GRID, count)
    assert (hidden.sum(1) == count).all()
    found = frequencies(hidden)
    rows = found.view(GRID).mean(1)
    torch.testing.assert_close(rows, torch.tensor(ROWS[count]), rtol=0, atol=0.02)
    assert found[0] == 0
    assert found[511] == 0


def wrapped(start: int, i: int, j: int, grid: tuple[int, int]) -> int | None:
    index = start + i * grid[1] + j
    return index if 0 < index < grid[0] * grid[1] else None


def cut(start: int, i: int, j: int, grid: tuple[int, int], margin: int) -> int | None:
    width = grid[1] + margin
    f, t = start // width - margin + i, start % width - margin + j
    return f * grid[1] + t if 0 <= f < grid[0] and 0 <= t < grid[1] else None


def added(starts: list[int], side: int, enough: int, place: Callable[..., int | None]) -> set[int]:
    chosen: set[int] = set()
    for start in starts:
        if len(chosen) >= enough:
            break
        for i in range(side):
            for j in range(side):
                index = place(start, i, j)
                if index is not None:
                    chosen.add(index)
    return chosen


@pytest.mark.parametrize("grid", [(8, 64), (3, 5), (2, 2), (5, 3), (4, 4)])
def test_the_batch_is_the_loop_over_the_same_starts(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    for count in {1, patches // 2, patches - 2}:
        u = uniform(40, clusters_numbers(grid), seed=count)
        hidden = clusters(u, grid, count)
        for row, draws in zip(hidden, u, strict=True):
            side = SIDES[int(draws[0] * 3)]
            starts = draws[1:].argsort().tolist()
            chosen = added(starts, side, count + 1, lambda start, i, j: wrapped(start, i, j, grid))
            assert row.nonzero().flatten().tolist() == sorted(chosen)[:count]


@pytest.mark.parametrize("grid", [(8, 64), (3, 5), (2, 2), (5, 3)])
def test_unbiased_clusters_end_at_the_borders(grid: tuple[int, int]) -> None:
    patches, margin = grid[0] * grid[1], max(SIDES) - 1
    for count in {1, patches // 2, patches - 1}:
        u = uniform(40, unbiased_numbers(grid), seed=count)
        hidden = unbiased_clusters(u, grid, count)
        assert (hidden.sum(1) == count).all()
        for row, draws in zip(hidden, u, strict=True):
            side = SIDES[int(draws[0] * 3)]
            starts = draws[1:-patches].argsort().tolist()
            chosen = added(starts, side, count, lambda start, i, j: cut(start, i, j, grid, margin))
            kept = sorted(chosen, key=lambda index: float(draws[index - patches]))[:count]
            assert row.nonzero().flatten().tolist() == sorted(kept)


@pytest.mark.parametrize("count", [400, 250, 100])
def test_unbiased_clusters_favour_no_place(count: int) -> None:
    found = frequencies(unbiased_clusters(uniform(4000, unbiased_numbers(GRID)), GRID, count))
    share = count / 512
    rows, corners = found.view(GRID).mean(1), found[[0, 63, 448, 511]]
    torch.testing.assert_close(rows, torch.full((8,), share), rtol=0, atol=0.02)
    torch.testing.assert_close(corners, torch.full((4,), share), rtol=0, atol=0.04)


def test_clusters_are_clusters() -> None:
    def neighbours(hidden: Tensor) -> float:
        field = hidden.view(-1, *GRID)
        return float((field[:, :, 1:] & field[:, :, :-1]).float().mean())

    scattered = neighbours(random_patches(uniform(500, 512), 412))
    assert scattered == pytest.approx((100 / 512) ** 2, abs=0.005)
    assert neighbours(clusters(uniform(500, 513), GRID, 100)) > 3 * scattered
    assert neighbours(unbiased_clusters(uniform(500, 1329), GRID, 100)) > 2.5 * scattered


def test_counts_that_do_not_fit_are_refused() -> None:
    for count in (0, 511, 512):
        with pytest.raises(ConfigError, match=rf"{count} of 512.*1 to 510"):
            clusters(uniform(1, 513), GRID, count)
        with pytest.raises(ConfigError, match="1 to 510"):
            official_clusters(random.Random(0), GRID, count)
    with pytest.raises(ConfigError, match="1 to 511"):
        official_frames(random.Random(0), 512, 512)
    for sides in ((), (0, 3)):
        with pytest.raises(ConfigError, match="sides of clusters"):
            clusters(uniform(1, 513), GRID, 100, sides)


# --- the sampler of a run ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batched", "official", "unbiased"])
@pytest.mark.parametrize("grid", [(8, 64), (1, 32), (2, 3)])
def test_a_sampler_hides_what_it_is_asked_to(name: str, grid: tuple[int, int]) -> None:
    for count in (1, grid[0] * grid[1] // 2):
        sampler = PatchSampler(grid, count, name)  # type: ignore[arg-type]
        u = uniform(6, sampler.draws)
        hidden = sampler(u)
        assert hidden.shape == (6, grid[0] * grid[1])
        assert (hidden.sum(1) == count).all()
        # A clip's draws decide its mask, whoever shares its batch.
        assert torch.equal(sampler(u[2:4]), hidden[2:4])
    assert PatchSampler(grid, sampler.most, name)(u).sum() == 6 * sampler.most  # type: ignore[arg-type]
    for count in (0, sampler.most + 1):
        with pytest.raises(ConfigError, match=rf"{count} patches.*1 to {sampler.most}"):
            PatchSampler(grid, count, name)  # type: ignore[arg-type]


def test_the_official_sampler_is_the_loop() -> None:
    u = uniform(3, 2)
    hidden = PatchSampler(GRID, 400, "official")(u)
    for row, (high, low) in zip(hidden, (u.double() * 2**24).long().tolist(), strict=True):
        ids = official_clusters(random.Random(high * 2**24 + low), GRID, 400)
        assert row.nonzero().flatten().tolist() == ids


def test_frame_models_hide_at_random() -> None:
    for name in ("batched", "unbiased", "official"):
        sampler = PatchSampler((1, 512), 400, name)  # type: ignore[arg-type]
        assert not sampler.clustered
        found = frequencies(sampler(uniform(600, sampler.draws)))
        assert float((found - 400 / 512).abs().max()) < 0.09


def test_settings_of_a_sampler_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"unknown sampler 'some'.*batched"):
        PatchSampler(GRID, 400, "some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sides of clusters"):
        PatchSampler(GRID, 400, sides=(0,))
