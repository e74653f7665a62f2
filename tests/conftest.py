"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data that the project does not ship: $LIGHTNING_TRAJ_DATA, or ../shared/data."""
    folder = Path(os.environ.get("LIGHTNING_TRAJ_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with real data; set LIGHTNING_TRAJ_DATA to one")
    return folder
