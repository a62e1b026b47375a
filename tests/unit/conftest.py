"""Fixtures of the unit tests."""

from pathlib import Path

import pytest

from peas.data.synthetic import write_sounds


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty sounds of four kinds in ESC-50's layout, 0.64 s each: 62 frames."""
    return write_sounds(
        tmp_path_factory.mktemp("data") / "sounds", classes=4, clips_per_class=10, seconds=0.64
    )
