"""Means of an epoch that is not over: every process has sums, and one goes on with all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from toys import StandIn, make_task

from peas.tasks import base
from peas.training import epoch_means as running_means
from peas.training.epoch_means import STATES, forget_sums, save_sums


def _saved(**parts: float) -> dict[str, Any]:
    """A checkpoint of a task that has seen two batches of eight clips."""
    task = make_task()
    for loss in (1.0, 4.0):
        task.train_loss.update(torch.tensor(loss), 8)
    checkpoint: dict[str, Any] = {"state_dict": task.state_dict(), "hyper_parameters": task.hparams}
    save_sums(task, checkpoint)
    return checkpoint


SUM, COUNT = "train_loss.mean_value", "train_loss.weight"


def test_the_other_processes_forget_what_the_first_one_goes_on_with() -> None:
    checkpoint = _saved()
    checkpoint["current_model_state"] = dict(checkpoint["state_dict"])
    assert float(checkpoint["state_dict"][COUNT]) == 16
    forget_sums(make_task(), checkpoint)
    for state in STATES:
        assert float(checkpoint[state][SUM]) == float(checkpoint[state][COUNT]) == 0


@pytest.mark.parametrize(("first", "clips"), [(True, 16), (False, 0)])
def test_a_process_goes_on_with_all_sums_or_none(
    monkeypatch: pytest.MonkeyPatch, first: bool, clips: int
) -> None:
    checkpoint = _saved()
    monkeypatch.setattr(base, "is_first", lambda: first)
    task = make_task(
        StandIn(
            validating=False,
            testing=False,
            ckpt_path="last.ckpt",
            state=StandIn(fn=TrainerFn.FITTING),
        )
    )
    task.on_load_checkpoint(checkpoint)
    task.load_state_dict(checkpoint["state_dict"])
    assert float(task.train_loss.weight) == clips


def test_sums_of_all_processes_are_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def twice(own: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [own, {key: 2 * value for key, value in own.items()}]

    monkeypatch.setattr(running_means, "gather", twice)
    assert float(_saved()["state_dict"][COUNT]) == 3 * 16
