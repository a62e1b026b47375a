"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


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
