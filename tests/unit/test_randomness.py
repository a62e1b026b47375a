"""Draws that depend on seed and place alone."""

import pytest
import torch

from peas.training.randomness import generator, run_seed, stable_hash, uniform_rows


def test_hash_is_the_same_in_every_process() -> None:
    # Python's own hash of a string differs from one process to the next.
    # A change here changes every mask of every run.
    assert stable_hash(7, "noise", 2) == 9_093_397_005_910_099_922
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert 0 <= stable_hash("x") < 2**63


@pytest.mark.parametrize("place", [(1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)])
def test_every_part_of_the_place_changes_the_draws(place: tuple[int, str, int, int]) -> None:
    here, again = (torch.rand(4, generator=generator(0, "a", 0, 0)) for _ in range(2))
    assert torch.equal(here, again)
    assert not torch.equal(here, torch.rand(4, generator=generator(*place)))


def test_ranks_draw_the_rows_of_the_whole() -> None:
    def rows(which: torch.Tensor) -> torch.Tensor:
        return uniform_rows(which, 6, (3, 2), generator(5, "mask", 1, 2))

    whole = rows(torch.arange(6))
    assert whole.shape == (6, 3, 2)
    assert whole.min() >= 0
    assert whole.max() < 1
    assert torch.equal(rows(torch.arange(6)[1::2]), whole[1::2])
    assert torch.equal(rows(torch.tensor([4, 0])), whole[[4, 0]])


def test_run_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert run_seed() == 17


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    uniform_rows(torch.arange(3), 3, (5,), generator(0, "a", 0, 0))
    assert torch.equal(torch.get_rng_state(), before)
