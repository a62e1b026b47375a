"""Dropped patches: how many, which ones, in which order, and only in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from made import classification
from toys import FACTS, StandIn, clips, fit, heard, part

from peas.callbacks.patch_dropout import PatchDropout
from peas.callbacks.spec_augment import SpecAugment
from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.tasks import Classification

FAMILIES = ("ssast", "audiomae")


def make(encoder: str, frames: int = 128, **settings: Any) -> Classification:
    torch.manual_seed(0)
    task = classification(
        **{
            **FACTS,
            "pretrained": None,
            "size": "toy",
            "encoder": encoder,
            "stride": (16, 16),
            "frames": frames,
            "noise_roll": False,
            **settings,
        }
    )
    task.build(initialise=False)
    with torch.no_grad():
        # AudioMAE's begins near zero.
        torch.nn.init.normal_(task.model.head.weight)
    task._trainer = StandIn()  # type: ignore[assignment]
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return task


def dropped(callback: PatchDropout, task: Classification, batch: Batch) -> Batch:
    batch = batch.copy()
    callback.on_train_batch_start(task.trainer, task, batch, 0)
    return batch


@pytest.mark.parametrize(
    ("frames", "shares", "kept"),
    [
        # Of 64 x 8, 32 x 8 and 8 x 8 patches.
        (1024, (0.2, 0.2), (51, 6)),
        (1024, (0.3, 0.3), (44, 5)),
        (512, (0.2, 0.2), (25, 6)),
        (128, (0.2, 0.2), (6, 6)),
        (160, (0.9, 0.0), (1, 8)),
    ],
)
def test_numbers_that_stay_are_audiomaes(
    frames: int, shares: tuple[float, float], kept: tuple[int, int]
) -> None:
    task = make("audiomae", frames)
    callback = PatchDropout(*shares)
    assert callback.kept(task.model) == kept
    batch = heard(task, clips(2))
    hidden = dropped(callback, task, batch)["dropped_patches"]
    assert hidden.shape == (2, frames // 16 * 8)
    assert (~hidden).sum(1).tolist() == [kept[0] * kept[1]] * 2
    if frames == 1024 and shares == (0.2, 0.2):
        assert (~hidden).sum(1).tolist() == [306, 306]


@pytest.mark.parametrize("encoder", FAMILIES)
def test_no_gradient_reaches_a_dropped_patch_and_every_other_gets_one(encoder: str) -> None:
    task = make(encoder, frames=192)
    batch = heard(task, clips(3, seconds=1.92))
    batch["log_mel"].requires_grad_()
    batch = dropped(PatchDropout(0.4, 0.3), task, batch)
    task.training_step(batch, 0).backward()
    gradient = batch["log_mel"].grad
    assert gradient is not None
    # Mean absolute gradient of each patch, (clip, time, band).
    reached = gradient.view(3, 12, 16, 8, 16).abs().mean((2, 4)) > 0
    hidden = batch["dropped_patches"]
    by_place = hidden.view(3, 12, 8) if encoder == "audiomae" else hidden.view(3, 8, 12).mT
    assert torch.equal(reached, ~by_place)
    # Whole times and whole bands.
    times, bands = by_place.all(2), by_place.all(1)
    assert torch.equal(by_place, times[:, :, None] | bands[:, None, :])
    assert (times.sum(1).tolist(), bands.sum(1).tolist()) == ([5] * 3, [3] * 3)
    assert not torch.equal(by_place[0], by_place[1])


def test_both_families_drop_the_same_places_and_every_process_its_own_rows() -> None:
    tasks = [make(encoder) for encoder in FAMILIES]
    hidden = [
        dropped(PatchDropout(), task, heard(task, clips()))["dropped_patches"] for task in tasks
    ]
    assert torch.equal(hidden[0].view(8, 8, 8).mT.flatten(1), hidden[1])
    task = tasks[1]
    for rank in (0, 1):
        rows = list(range(rank, 8, 2))
        some = dropped(PatchDropout(), task, part(heard(task, clips()), rows))
        assert torch.equal(some["dropped_patches"], hidden[1][rows])


@pytest.mark.parametrize("encoder", FAMILIES)
def test_evaluation_sees_every_patch(
    encoder: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    original = Classification.forward

    def watched(task: Classification, log_mel: Any, hidden: Any = None) -> Any:
        seen.append((task.trainer.training, hidden is not None))
        return original(task, log_mel, hidden)

    monkeypatch.setattr(Classification, "forward", watched)
    fit(sounds, tmp_path, PatchDropout(), SpecAugment(20, 24), encoder=encoder)
    assert set(seen) == {(True, True), (False, False)}


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "share"), [("time", 1.0), ("freq", -0.1), ("time", float("nan"))])
def test_a_share_out_of_range_is_refused(key: str, share: float) -> None:
    with pytest.raises(ConfigError, match=rf"PatchDropout\.init_args\.{key}` is .*below 1"):
        PatchDropout(**{key: share})


def test_shares_that_keep_nothing_are_refused() -> None:
    task = make("audiomae")
    callback = PatchDropout(freq=0.9)
    task.trainer.callbacks = [callback]
    with pytest.raises(ConfigError, match=r"freq` is 0\.9, which keeps none of 8 bands.*0\.875"):
        callback.on_fit_start(task.trainer, task)
    callback = PatchDropout(time=0.88)
    with pytest.raises(ConfigError, match=r"time` is 0\.88, which keeps none of 8 times"):
        callback.on_fit_start(task.trainer, task)


def test_two_of_them_are_refused() -> None:
    task = make("audiomae")
    task.trainer.callbacks = [PatchDropout(), PatchDropout()]
    with pytest.raises(ConfigError, match="several `PatchDropout`"):
        task.trainer.callbacks[0].on_fit_start(task.trainer, task)
