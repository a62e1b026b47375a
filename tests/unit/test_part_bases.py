"""What the bases of parts do for parts that are not ours."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from peas.audio.frontend import FrontEnd, KaldiLogMel, Spectrogram
from peas.errors import ConfigError
from peas.models import Encoder
from peas.models.weights.checking import check_moments
from peas.objectives.feature_distillation import FeatureTargets
from peas.tasks import Pretraining
from peas.tasks.restoring import agree_on_part
from peas.teachers import Teacher
from peas.teachers.grid import Extent


class Bands(Teacher):
    """Four bands."""

    def __init__(self) -> None:
        edges = (0.0, 500.0, 1500.0, 3500.0, 8000.0)
        super().__init__(rate=16_000, width=4, extent=Extent(0.08, 0.16, edges), name="bands")

    def build(self) -> nn.Module:
        return nn.Identity()

    def settings(self) -> dict[str, object]:
        return {}

    def features(self, waveform: Tensor, length: Tensor) -> Tensor:
        """Rows that count 0 to 3."""
        return torch.arange(4.0).view(1, 1, 4, 1).expand(1, 4, 4, 2)


class Silent(FrontEnd):
    """A front end that hears nothing."""

    n_mels = 64

    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Spectrogram:
        raise NotImplementedError


class Sized(Encoder):
    """An encoder whose settings have the names of what it knows."""

    fixed = ("width", "depth", "decoder_width")

    def __init__(
        self, width: int | None = None, depth: int | None = None, decoder_width: int = 3
    ) -> None:
        super().__init__()
        self.width, self.depth, self.decoder_width = width or 8, depth or 2, decoder_width

    def make(self, needs: Any) -> None:
        self.make_classifier()

    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def targets(time_major: bool) -> Tensor:
    """Targets `[N, D]` of a student of 64 mel bins."""
    model = SimpleNamespace(grid=(4, 2), mels=64, patch=(16, 16), time_major=time_major)
    batch = {"teacher_waveform": torch.zeros(1, 10), "teacher_length": torch.tensor([10])}
    made = FeatureTargets(Bands(), None, "physical", "none")
    return made.of(cast(Any, batch), cast(Any, model))[0]


def test_a_teachers_rows_reach_the_top_of_any_number_of_mel_bins() -> None:
    rows = targets(time_major=True)[:, 0].view(2, 4)
    assert rows.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2


def test_targets_have_the_order_of_the_encoders_tokens() -> None:
    rows = targets(time_major=False)[:, 0].view(4, 2)
    assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]


def set_up(front_end: FrontEnd, **settings: Any) -> Pretraining:
    task = Pretraining(front_end=front_end, labels=["a"], multi_label=False)
    info = SimpleNamespace(frames=64, mean=-4.0, std=4.0, channels="mean")
    data = SimpleNamespace(info=info, rate=16_000)
    task._trainer = cast(Any, SimpleNamespace(datamodule=data))
    task._prepared = True
    task.setup("fit")
    return task


def test_a_front_end_of_another_rate_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"KaldiLogMel.* 8000 Hz.* 16000 Hz"):
        set_up(KaldiLogMel(rate=8000))


def test_a_front_end_does_not_take_the_statistics_of_another() -> None:
    with pytest.raises(ConfigError, match=r"mean and std of Silent"):
        set_up(Silent())
    assert float(set_up(Silent(mean=1.0, std=2.0)).front_end.mean) == 1.0


def test_settings_may_have_the_names_of_what_an_encoder_knows() -> None:
    encoder = Sized(depth=5).build(16, 16)
    assert (encoder.width, encoder.depth, encoder.decoder_width) == (8, 5, 3)
    assert encoder.layer_of("blocks.4.weight") == 5
    assert encoder.layer_of("norm.weight") == 6


def test_a_setting_that_is_null_here_and_in_the_checkpoint_stays_the_parts_own() -> None:
    task = Pretraining(encoder=Sized(), labels=["a"], multi_label=False)
    saved = {"encoder": {**task.hparams["encoder"]}}
    saved["encoder"]["init_args"] = {"width": None, "depth": 7, "decoder_width": 3}
    agree_on_part(task, "encoder", task.model, saved, "x.ckpt", True)
    assert (task.model.width, task.model.depth) == (8, 7)
    assert task.model.setting("depth") == 7


def test_another_optimiser_than_adam_has_its_own_moments() -> None:
    weight = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.square().sum().backward()
    sgd.step()
    check_moments([sgd], "x.ckpt")
