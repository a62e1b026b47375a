"""A checkpoint and sounds for the harnesses of evaluation suites."""

from pathlib import Path

import pytest
import torch

from peas.audio import KaldiLogMel
from peas.data.synthetic import write_sounds
from peas.inference import AudioModel
from peas.models import SSAST


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder of a small model: inputs of 64 frames, four rows of patches of 100 ms."""
    torch.manual_seed(0)
    model = AudioModel(SSAST("mini", stride=(10, 10)), KaldiLogMel(64, -6.8, 5.5))
    folder = tmp_path_factory.mktemp("exported") / "small"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty sounds of four kinds in ESC-50's layout, five folds."""
    return write_sounds(
        tmp_path_factory.mktemp("data") / "sounds", classes=4, clips_per_class=15, seconds=0.7
    )
