"""Fixtures of the unit tests."""

import logging
from pathlib import Path

import pytest
from toys import Run, fit

from peas.callbacks.mask_plots import MaskPlots
from peas.callbacks.peas import PEAS
from peas.data.synthetic import write_sounds


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty sounds of four kinds in ESC-50's layout, 0.64 s each: 62 frames."""
    return write_sounds(
        tmp_path_factory.mktemp("data") / "sounds", classes=4, clips_per_class=10, seconds=0.64
    )


@pytest.fixture(scope="session")
def peas_run(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs with PEAS, pictures of one clip, a refreshed cache and a moving average."""
    strategy = PEAS(2, 1, 20, 24, ramp="off", refresh_every=2, aux_encoder="ema", ema_decay=0.5)
    folder = tmp_path_factory.mktemp("peas_run")
    return fit(sounds, folder, strategy, MaskPlots(clips=1), epochs=2)


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What `rank_zero_info` prints."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, "lightning.pytorch")
    return caplog
