"""Masks of pretraining: AudioMAE's two rules, and SSAST's clusters against loops and a table."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.masking.clusters import (
    SIDES,
    ClusteredPatches,
    clusters,
    clusters_numbers,
    official_clusters,
    unbiased_clusters,
    unbiased_numbers,
)
from peas.masking.patches import (
    RandomPatches,
    StructuredPatches,
    masked_ids,
    random_patches,
    time_freq_mask,
)

GRID = (8, 64)
# Share of masked patches in each row of mel bins, low to high, measured of the official code.
ROWS = {
    400: [0.415, 0.669, 0.813, 0.873, 0.888, 0.887, 0.885, 0.820],
    250: [0.197, 0.365, 0.497, 0.568, 0.595, 0.594, 0.591, 0.499],
}


def uniform(clips: int, count: int, seed: int = 0) -> Tensor:
    return torch.rand(clips, count, generator=torch.Generator().manual_seed(seed))


# --- AudioMAE's rules ----------------------------------------------------------------------


def test_the_smallest_numbers_stay() -> None:
    u = torch.tensor([[0.5, 0.1, 0.9, 0.3], [0.0, 0.2, 0.1, 0.3]])
    assert random_patches(u, 2).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert not random_patches(u, 4).any()
    for visible in (0, 5):
        with pytest.raises(ConfigError, match=rf"{visible} of 4 patches.*1 to 4"):
            random_patches(u, visible)


def test_a_patch_is_visible_if_its_time_and_band_are() -> None:
    u_time, u_freq = uniform(5, 6), uniform(5, 4, seed=1)
    masked = time_freq_mask(u_time, u_freq, 3, 2)
    assert masked.shape == (5, 6, 4)
    assert ((~masked).sum((1, 2)) == 6).all()
    for clip in range(5):
        times = set(u_time[clip].argsort()[:3].tolist())
        bands = set(u_freq[clip].argsort()[:2].tolist())
        for t in range(6):
            for f in range(4):
                assert bool(masked[clip, t, f]) == (t not in times or f not in bands)
    with pytest.raises(ConfigError, match="7 of 6"):
        time_freq_mask(u_time, u_freq, 7, 2)


def test_ids_are_ascending() -> None:
    masked = torch.tensor([[True, False, True], [False, True, True]])
    assert masked_ids(masked).tolist() == [[0, 2], [1, 2]]


# --- SSAST's clusters ----------------------------------------------------------------------


def frequencies(masked: Tensor) -> Tensor:
    return masked.float().mean(0)


def of_the_loop(count: int, clips: int) -> Tensor:
    rng = random.Random(0)
    masked = torch.zeros(clips, 512, dtype=torch.bool)
    for row in masked:
        row[official_clusters(rng, GRID, count)] = True
    return masked


@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize("kind", ["loop", "batch"])
def test_the_distribution_of_the_clusters(count: int, kind: str) -> None:
    if kind == "loop":
        masked = of_the_loop(count, 1500)
    else:
        masked = clusters(uniform(4000, clusters_numbers(GRID)), GRID, count)
    assert (masked.sum(1) == count).all()
    found = frequencies(masked)
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
        masked = clusters(u, grid, count)
        for row, numbers in zip(masked, u, strict=True):
            side = SIDES[int(numbers[0] * 3)]
            starts = numbers[1:].argsort().tolist()
            chosen = added(starts, side, count + 1, lambda start, i, j: wrapped(start, i, j, grid))
            assert row.nonzero().flatten().tolist() == sorted(chosen)[:count]


@pytest.mark.parametrize("grid", [(8, 64), (3, 5), (2, 2), (5, 3)])
def test_unbiased_clusters_end_at_the_borders(grid: tuple[int, int]) -> None:
    patches, margin = grid[0] * grid[1], max(SIDES) - 1
    for count in {1, patches // 2, patches - 1}:
        u = uniform(40, unbiased_numbers(grid), seed=count)
        masked = unbiased_clusters(u, grid, count)
        assert (masked.sum(1) == count).all()
        for row, numbers in zip(masked, u, strict=True):
            side = SIDES[int(numbers[0] * 3)]
            starts = numbers[1:-patches].argsort().tolist()
            chosen = added(starts, side, count, lambda start, i, j: cut(start, i, j, grid, margin))
            kept = sorted(chosen, key=lambda index: float(numbers[index - patches]))[:count]
            assert row.nonzero().flatten().tolist() == sorted(kept)


@pytest.mark.parametrize("count", [400, 250, 100])
def test_unbiased_clusters_are_uniform(count: int) -> None:
    found = frequencies(unbiased_clusters(uniform(4000, unbiased_numbers(GRID)), GRID, count))
    share = count / 512
    rows, corners = found.view(GRID).mean(1), found[[0, 63, 448, 511]]
    torch.testing.assert_close(rows, torch.full((8,), share), rtol=0, atol=0.02)
    torch.testing.assert_close(corners, torch.full((4,), share), rtol=0, atol=0.04)


def test_clusters_are_clusters() -> None:
    def neighbours(masked: Tensor) -> float:
        field = masked.view(-1, *GRID)
        return float((field[:, :, 1:] & field[:, :, :-1]).float().mean())

    scattered = neighbours(random_patches(uniform(500, 512), 412))
    assert scattered == pytest.approx((100 / 512) ** 2, abs=0.005)
    assert neighbours(clusters(uniform(500, 513), GRID, 100)) > 3 * scattered
    assert neighbours(unbiased_clusters(uniform(500, 1329), GRID, 100)) > 2.5 * scattered


# --- the masking of a run ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batched", "official", "unbiased"])
@pytest.mark.parametrize("grid", [(8, 64), (1, 32), (2, 3)])
def test_equally_many_are_masked_in_every_clip(name: Any, grid: tuple[int, int]) -> None:
    most = ClusteredPatches(1, name).max_masked(grid)
    for count in (1, math.prod(grid) // 2, most):
        masking = ClusteredPatches(count, name)
        (needed,) = masking.random_numbers(grid).values()
        u = uniform(6, needed)
        masked = masking.sample(u, grid)
        assert masked.shape == (6, math.prod(grid))
        assert (masked.sum(1) == count).all()
        assert masking.visible(grid) == math.prod(grid) - count
        # The mask of a clip depends on its own random numbers only.
        assert torch.equal(masking.sample(u[2:4], grid), masked[2:4])
    for count in (0, most + 1):
        with pytest.raises(ConfigError, match=rf"num_masked` is {count}.*1 to {most}"):
            ClusteredPatches(count, name).sample(u, grid)


def test_the_official_sampler_is_the_loop() -> None:
    u = uniform(3, 2)
    masked = ClusteredPatches(400, "official").sample(u, GRID)
    for row, (high, low) in zip(masked, (u.double() * 2**24).long().tolist(), strict=True):
        ids = official_clusters(random.Random(high * 2**24 + low), GRID, 400)
        assert row.nonzero().flatten().tolist() == ids


@pytest.mark.parametrize("name", ["batched", "unbiased", "official"])
def test_frame_models_mask_at_random(name: Any) -> None:
    masking = ClusteredPatches(400, name)
    (needed,) = masking.random_numbers((1, 512)).values()
    share = frequencies(masking.sample(uniform(600, needed), (1, 512)))
    assert float((share - 400 / 512).abs().max()) < 0.09


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="sampler"):
        ClusteredPatches(400, "some")  # type: ignore[arg-type]
    for sides in ((), (0, 3)):
        with pytest.raises(ConfigError, match="sides"):
            ClusteredPatches(400, sides=sides)
    for make in (RandomPatches, StructuredPatches):
        for ratio in (0.0, 1.0):
            with pytest.raises(ConfigError, match=make.__name__):
                make(ratio)
