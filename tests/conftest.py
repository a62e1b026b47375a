"""Fixtures that every test may use."""

import logging
import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores, and so do the processes that tests start; read when torch starts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _lines_of_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `caplog` see what `rank_zero_info` prints.

    Lightning's loggers hand nothing on when they were imported before any handler was there: by
    a conftest, say, of tests that happen to run in the same session.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference numbers and real recordings that the project itself does not ship."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("PEAS_SHARED", root.parent / "shared"))
    if folder.is_dir():
        return folder
    reason = f"reference data not found at {folder} (set PEAS_SHARED to its folder)"
    if os.environ.get("PEAS_REQUIRE_SHARED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
