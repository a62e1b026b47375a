"""The moving average of the weights: what it averages, and what it leaves exact."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from made import classification
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
    task = classification(pretrained=None, size="toy", stride=(16, 16), **FACTS)  # type: ignore[arg-type]
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[EMAWeightAveraging()])
    with pytest.raises(ConfigError, match=r"peas\.callbacks\.WeightAverage"):
        trainer.fit(task, datamodule=data(sounds))
    with pytest.raises(ConfigError, match="decay"):
        WeightAverage(1.0)
    with pytest.raises(ConfigError, match="equal_from"):
        WeightAverage(equal_from=-1)


def test_two_averages_are_refused(sounds: Path, tmp_path: Path) -> None:
    task = classification(pretrained=None, size="toy", stride=(16, 16), **FACTS)  # type: ignore[arg-type]
    both = [WeightAverage(equal_from=1), WeightAverage()]
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=both)
    with pytest.raises(ConfigError, match="WeightAverage"):
        trainer.fit(task, datamodule=data(sounds, frames=128))


class Noted(Callback):
    """The trained weights at the end of each epoch, and what its validation saw."""

    def __init__(self) -> None:
        self.trained: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            self.trained.append({k: v.clone() for k, v in pl_module.state_dict().items()})

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen: dict[str, torch.Tensor] | None = None

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.seen is None:
            self.seen = {k: v.clone() for k, v in pl_module.state_dict().items()}
            self.validated.append(self.seen)


def equal_mean(
    sounds: Path, folder: Path, *, start: Path | None = None, **settings: Any
) -> tuple[Classification, Noted]:
    torch.manual_seed(0)
    task = classification(pretrained=None, size="toy", stride=(16, 16), lr=1e-2, **FACTS)  # type: ignore[arg-type]
    noted = Noted()
    # Every step, also inside an epoch: four steps each.
    keeper = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = quiet_trainer(
        folder,
        **{
            "max_epochs": 4,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": True,
            "callbacks": [WeightAverage(equal_from=1), noted, keeper],
            **settings,
        },
    )
    trainer.fit(task, datamodule=data(sounds, frames=128), ckpt_path=start, weights_only=True)
    return task, noted


@pytest.fixture(scope="module")
def equal_run(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Noted, Path]:
    folder = tmp_path_factory.mktemp("equal")
    return *equal_mean(sounds, folder), folder


def test_equal_mean_of_the_epochs_ends(equal_run: tuple[Any, Noted, Path]) -> None:
    task, noted, folder = equal_run
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert len(noted.trained) == len(noted.validated) == 4
    for epoch, seen in enumerate(noted.validated):
        # Epochs 1 to 3, counted from 0, enter; before, validation sees the trained weights.
        models = noted.trained[1 : epoch + 1] or noted.trained[:1]
        for name, value in seen.items():
            if name in trained:
                wanted = torch.stack([model[name] for model in models]).double().mean(0)
                torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-6)
            else:
                assert torch.equal(value, noted.trained[epoch][name]), name
    for name in trained:
        assert torch.equal(task.state_dict()[name], noted.validated[-1][name]), name
    head = "model.head.weight"
    assert not torch.equal(noted.validated[-1][head], noted.trained[-1][head])
    # A checkpoint before the first epoch that enters holds the trained weights alone.
    steps = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    contents = [torch.load(path, weights_only=True) for path in steps]
    held = ["current_model_state" in content for content in contents]
    first = 2 * len(steps) // 4
    assert held == [step >= first for step in range(1, len(steps) + 1)]
    assert torch.equal(contents[-1]["state_dict"][head], noted.validated[-1][head])
    assert torch.equal(contents[-1]["current_model_state"][head], noted.trained[-1][head])


@pytest.mark.parametrize("share", [0.2, 0.6, 0.75])
def test_an_equal_mean_resumes_bit_for_bit(
    equal_run: tuple[Any, Noted, Path], sounds: Path, tmp_path: Path, share: float
) -> None:
    task, _, folder = equal_run
    steps = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    # Inside the epoch before the mean, inside one with it, and after a whole epoch.
    start = steps[int(share * len(steps)) - 1]
    resumed, _ = equal_mean(sounds, tmp_path, start=start)
    wanted = task.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, wanted[name]), name
