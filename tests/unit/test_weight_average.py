"""The moving average of the weights: what it averages, and what it leaves exact."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from toys import FACTS, StandIn, data, make_task, quiet_trainer

from peas.callbacks import WeightAverage
from peas.errors import CheckpointError, ConfigError
from peas.tasks import Classification

FITTING: Any = StandIn(state=SimpleNamespace(fn=TrainerFn.FITTING), ckpt_path="x.ckpt")


class Steps:
    """A module that trains under the callback, one number a step."""

    def __init__(self, module: nn.Module, callback: WeightAverage, step: int = 0) -> None:
        self.module, self.callback, self.step = module, callback, step
        callback.on_train_start(StandIn(global_step=step), module)  # type: ignore[arg-type]

    def go(self, *, optimizer: bool = True) -> None:
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        self.step += optimizer
        trainer: Any = StandIn(global_step=self.step)
        self.callback.on_train_batch_end(trainer, self.module, None, None, 0)  # type: ignore[arg-type]

    def saved(self) -> dict[str, Any]:
        checkpoint = {"state_dict": {k: v.clone() for k, v in self.module.state_dict().items()}}
        self.callback.on_save_checkpoint(None, self.module, checkpoint)  # type: ignore[arg-type]
        return checkpoint


def test_it_is_the_exponential_moving_average() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    steps = Steps(module, WeightAverage(0.9))
    expected = None
    for _ in range(5):
        steps.go()
        weight = module.weight.detach().double()
        expected = weight if expected is None else 0.9 * expected + 0.1 * weight
        # A batch that only accumulates gradients is no step.
        steps.go(optimizer=False)
    torch.testing.assert_close(steps.saved()["state_dict"]["weight"].double(), expected)
    assert torch.equal(steps.saved()["current_model_state"]["weight"], module.weight)


@pytest.mark.parametrize("frames", [298, 500, 516, 1000, 2000])
def test_a_checkpoint_keeps_its_geometry_and_tables(frames: int) -> None:
    task = make_task(frames=frames)
    norm = nn.BatchNorm1d(2)
    task.add_module("norm", norm)
    frozen = {n: p.clone() for n, p in task.named_parameters() if not p.requires_grad}
    assert frozen
    steps = Steps(task, WeightAverage(0.9999))
    for _ in range(3):
        norm(torch.randn(8, 2))
        steps.go()
    checkpoint = steps.saved()
    live, saved = task.state_dict(), checkpoint["state_dict"]
    assert saved["model.geometry"][0] == frames
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert checkpoint["current_model_state"].keys() == trained
    for name, value in live.items():
        assert torch.equal(saved[name], value) == (name not in trained), name
    for name, value in frozen.items():
        assert torch.equal(saved[name], value), name
    assert torch.equal(saved["norm.running_mean"], norm.running_mean)


def test_validation_sees_the_average_and_training_goes_on_with_its_own() -> None:
    module = nn.Linear(3, 2)
    steps = Steps(module, WeightAverage(0.5))
    steps.go()
    steps.go()
    live, average = module.weight.clone(), steps.saved()["state_dict"]["weight"].clone()
    assert not torch.equal(live, average)
    trainer: Any = StandIn()
    steps.callback.on_validation_epoch_start(trainer, module)  # type: ignore[arg-type]
    assert torch.equal(module.weight, average)
    steps.callback.on_validation_epoch_end(trainer, module)  # type: ignore[arg-type]
    assert torch.equal(module.weight, live)
    steps.callback.on_train_end(trainer, module)  # type: ignore[arg-type]
    assert torch.equal(module.weight, average)


def test_it_resumes_bit_for_bit() -> None:
    def run(steps: Steps, count: int) -> None:
        for _ in range(count):
            torch.manual_seed(steps.step)
            steps.go()

    torch.manual_seed(0)
    whole = Steps(nn.Linear(3, 2), WeightAverage(0.9999))
    run(whole, 2)
    saved = {k: {n: v.clone() for n, v in part.items()} for k, part in whole.saved().items()}
    run(whole, 3)
    module, callback = nn.Linear(3, 2), WeightAverage(0.9999)
    module.load_state_dict(saved["state_dict"])
    callback.on_load_checkpoint(FITTING, module, saved)  # type: ignore[arg-type]
    resumed = Steps(module, callback, step=2)
    loaded = saved["state_dict"]["weight"].clone()
    run(resumed, 3)
    # The average is its own, and none of the file's tensors.
    assert torch.equal(saved["state_dict"]["weight"], loaded)
    for part, state in whole.saved().items():
        for name, value in state.items():
            assert torch.equal(value, resumed.saved()[part][name]), (part, name)
    # Evaluation is of the average.
    testing: Any = StandIn(state=SimpleNamespace(fn=TrainerFn.TESTING))
    module.load_state_dict(saved["state_dict"])
    callback.on_load_checkpoint(testing, module, saved)  # type: ignore[arg-type]
    assert torch.equal(module.weight, saved["state_dict"]["weight"])
    saved["current_model_state"]["weight"] = torch.zeros(2, 4)
    with pytest.raises(CheckpointError, match="weight"):
        callback.on_load_checkpoint(FITTING, module, saved)  # type: ignore[arg-type]


def test_the_average_of_lightning_is_refused_with_a_remedy(sounds: Path, tmp_path: Path) -> None:
    task = Classification(pretrained=None, size="toy", stride=(16, 16), **FACTS)  # type: ignore[arg-type]
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[EMAWeightAveraging()])
    with pytest.raises(ConfigError, match=r"peas\.callbacks\.WeightAverage"):
        trainer.fit(task, datamodule=data(sounds))
    with pytest.raises(ConfigError, match="decay"):
        WeightAverage(1.0)
