"""Marginals kept between epochs: who is scored when, and what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import clips, heard, make_task, masked
from two_processes import lines, share_scores

from peas.callbacks.peas import PEAS
from peas.data.batch import Batch
from peas.masking.peas.error_cache import ErrorCache, due
from peas.masking.peas.selector import Marginals
from peas.tasks import Classification
from peas.tasks.augmentation import roll_time

SHARED: dict[str, Any] = {"n_time": 2, "n_freq": 1, "max_time": 32, "max_freq": 24, "ramp": "off"}


def kept(line: Tensor) -> Tensor:
    """What a table of half precision keeps of a line: all but its scale."""
    return (line / line.abs().amax(-1, keepdim=True)).half()


# --- turns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, 4, 5])
def test_turns_are_even_and_each_clip_has_one_in_every_round(every: int) -> None:
    ids = [f"{fold}-{100_000 + n}-A-{n % 50}.wav" for fold in range(1, 5) for n in range(400)]
    turns = torch.stack([due(ids, epoch, every) for epoch in range(2 * every)])
    assert (turns[:every].sum(0) == 1).all()
    assert torch.equal(turns[:every], turns[every:])
    share = turns.double().mean(1)
    # Four standard deviations of a share of 1600 clips.
    assert (share - 1 / every).abs().max() < 4 * (1 / every * (1 - 1 / every) / 1600) ** 0.5
    assert due(ids, 3, 1).all()


# --- the table -----------------------------------------------------------------------------


def test_entries_are_half_precision_and_grow_with_the_clips() -> None:
    cache = ErrorCache()
    ids = [f"clip{n}" for n in range(50)]
    all_lines = lines(50)
    for start in range(0, 50, 7):
        some = slice(start, start + 7)
        assert cache.missing(ids[some]).all()
        cache.store(ids[some], Marginals(all_lines.time[some], all_lines.freq[some]))
        assert not cache.missing(ids[some]).any()
    assert len(cache) == 50
    read = cache.read([ids[3], ids[49]])
    assert torch.equal(read.time, kept(all_lines.time[[3, 49]]).float())
    assert torch.equal(read.freq, kept(all_lines.freq[[3, 49]]).float())
    state = cache.state_dict()
    assert {state["time"].dtype, state["freq"].dtype} == {torch.float16}
    assert (state["time"].shape, state["freq"].shape) == ((50, 20), (50, 8))
    cache.store(["clip3"], lines(1, seed=9))
    assert torch.equal(cache.read(["clip3"]).time, kept(lines(1, seed=9).time).float())
    assert len(cache) == 50


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_rank_survives_half_precision_at_every_scale(scale: float) -> None:
    cache = ErrorCache()
    line = torch.arange(1.0, 101.0)[None] * scale
    cache.store(["a", "easy"], Marginals(torch.cat([line, -line]), torch.zeros(2, 4)))
    read = cache.read(["a", "easy"])
    assert (read.time[0].diff() > 0).all()
    assert (read.time[1].diff() < 0).all()
    torch.testing.assert_close(read.time[0], torch.arange(1.0, 101.0) / 100, rtol=1e-3, atol=0)
    assert (read.freq == 0).all()


def test_state_goes_through_a_safe_load(tmp_path: Path) -> None:
    cache, later = ErrorCache(), ErrorCache()
    cache.store(["a", "b", "c"], lines(3))
    torch.save(cache.state_dict(), tmp_path / "state")
    later.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(later.read(["c", "a"]).time, cache.read(["c", "a"]).time)
    later.store(["d", "a"], lines(2, seed=1))
    assert len(later) == 4
    assert torch.equal(later.read(["b"]).freq, cache.read(["b"]).freq)
    assert len(cache) == 3
    empty = ErrorCache()
    empty.load_state_dict(ErrorCache().state_dict())
    empty.store(["a"], lines(1))
    assert torch.equal(empty.read(["a"]).time, kept(lines(1).time).float())


def test_processes_share_what_they_scored(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(share_scores, (str(tmp_path),), nprocs=2)
    wanted = {
        f"{epoch}-{rank}-{n}": kept(lines(3, seed=10 * epoch + rank).time[n])
        for epoch in range(2)
        for rank in range(2)
        for n in range(3)
    }
    wanted["0-0-1"] = kept(lines(1, seed=99).time[0])
    wanted["late"] = kept(lines(1, seed=7).time[0])
    for rank in range(2):
        state = torch.load(tmp_path / f"state{rank}", weights_only=True)
        assert set(state["ids"]) == set(wanted)
        for clip, time in zip(state["ids"], state["time"], strict=True):
            assert torch.equal(time, wanted[clip])


# --- in the callback -----------------------------------------------------------------------


class Watch:
    """Notes which clips a strategy scores."""

    def __init__(self, strategy: PEAS, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        original = strategy.scoring.marginals

        def scored(trainer: Any, task: Any, batch: Batch, *rest: Any) -> Marginals:
            self.rows.append(batch["row"].tolist())
            return original(trainer, task, batch, *rest)

        monkeypatch.setattr(strategy.scoring, "marginals", scored)


@pytest.fixture(scope="module")
def task() -> Classification:
    return make_task(noise_roll=True)


def later(batch: Batch, step: int) -> Batch:
    """The same clips in another batch of the run, with other noise and roll."""
    again = batch.copy()
    again["step"] = step
    return again


def test_clips_are_scored_at_first_sight_and_then_in_turn(
    task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = PEAS(**SHARED, refresh_every=3)
    watch = Watch(strategy, monkeypatch)
    loaded = clips()
    for epoch in range(1, 4):
        task.trainer.current_epoch = epoch
        masked(strategy, task, heard(task, loaded))
    task.trainer.current_epoch = 0
    turns = [due(loaded["id"], epoch, 3).nonzero().flatten().tolist() for epoch in (2, 3)]
    assert watch.rows == [list(range(8)), *turns]


def test_mixed_clips_are_always_scored_and_never_kept(
    task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = PEAS(**SHARED, refresh_every=100)
    watch = Watch(strategy, monkeypatch)
    loaded = clips()
    loaded["mixed"][2:5] = True
    masked(strategy, task, heard(task, loaded))
    assert len(strategy.cache) == 5
    assert strategy.cache.missing(loaded["id"]).tolist() == loaded["mixed"].tolist()
    task.trainer.current_epoch = 1
    masked(strategy, task, heard(task, loaded))
    task.trainer.current_epoch = 0
    turn = due(loaded["id"], 1, 100) | loaded["mixed"]
    assert watch.rows == [list(range(8)), turn.nonzero().flatten().tolist()]
    assert len(strategy.cache) == 5
    # Unmixed for the first time, it is scored and kept.
    loaded["mixed"][2] = False
    masked(strategy, task, heard(task, loaded))
    assert len(strategy.cache) == 6
    # Mixed again: its own errors are known, but not those of the mixture.
    loaded["mixed"][2] = True
    watch.rows.clear()
    masked(strategy, task, heard(task, loaded))
    assert 2 in watch.rows[0]


@pytest.mark.parametrize("stage", ["after_noise", "before_noise"])
def test_entries_are_rolled_with_the_clip(task: Classification, stage: str) -> None:
    strategy = PEAS(**SHARED, refresh_every=1000, stage=stage)  # type: ignore[arg-type]
    loaded = clips()
    assert not due(loaded["id"], 0, 1000).any()
    first = heard(task, loaded)
    second = heard(task, later(loaded, 1))
    assert not torch.equal(first["roll"], second["roll"])
    fresh, later_on = (errors_of(strategy, task, batch) for batch in (first, second))
    if stage == "after_noise":
        back = roll_time(kept(fresh.time), -first["roll"]).float()
        assert torch.equal(later_on.time, roll_time(back, second["roll"]))
        assert not torch.equal(later_on.time, kept(fresh.time).float())
    else:
        assert torch.equal(later_on.time, kept(fresh.time).float())
    assert torch.equal(later_on.freq, kept(fresh.freq).float())


def errors_of(strategy: PEAS, task: Classification, batch: Batch) -> Marginals:
    """The marginals by which a batch's windows are ranked."""
    found: list[Marginals] = []
    original = strategy.errors

    def errors(*args: Any) -> Marginals:
        found.append(original(*args))
        return found[0]

    strategy.errors = errors  # type: ignore[method-assign]
    masked(strategy, task, batch)
    strategy.errors = original  # type: ignore[method-assign]
    return found[0]


def test_fresh_and_kept_clips_of_a_batch_stay_in_their_rows(task: Classification) -> None:
    strategy = PEAS(**SHARED, refresh_every=1000)
    loaded = clips()
    some = loaded.copy()
    for key in ("waveform", "length", "target", "mixed", "row"):
        some[key] = loaded[key][[1, 4, 6]]  # type: ignore[literal-required]
    some["id"] = [loaded["id"][row] for row in (1, 4, 6)]
    masked(strategy, task, heard(task, some))
    mixture = errors_of(strategy, task, heard(task, loaded))
    whole = errors_of(PEAS(**SHARED), task, heard(task, loaded))
    for got, wanted in zip(mixture, whole, strict=True):
        assert torch.equal(got[[1, 4, 6]], kept(wanted[[1, 4, 6]]).float())
        torch.testing.assert_close(got[[0, 2, 3, 5, 7]], wanted[[0, 2, 3, 5, 7]])


def test_scoring_every_epoch_keeps_nothing(task: Classification) -> None:
    strategy = PEAS(**SHARED, refresh_every=1)
    masked(strategy, task, heard(task, clips()))
    assert len(strategy.cache) == 0


def test_masks_go_on_with_the_saved_entries(task: Classification, tmp_path: Path) -> None:
    def run(strategy: PEAS, steps: range) -> list[Tensor]:
        made = []
        for step in steps:
            task.trainer.current_epoch = step // 2
            made.append(masked(strategy, task, heard(task, later(clips(), step % 2)))["mask"])
        task.trainer.current_epoch = 0
        return made

    unbroken = run(PEAS(**SHARED, refresh_every=4), range(6))
    first = PEAS(**SHARED, refresh_every=4)
    run(first, range(3))
    torch.save(first.state_dict(), tmp_path / "state")
    second = PEAS(**SHARED, refresh_every=4)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for got, wanted in zip(run(second, range(3, 6)), unbroken[3:], strict=True):
        assert torch.equal(got, wanted)
    with_other = run(PEAS(**SHARED), range(3, 6))
    assert not all(torch.equal(a, b) for a, b in zip(with_other, unbroken[3:], strict=True))
