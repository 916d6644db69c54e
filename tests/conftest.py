"""Fixtures that several test modules share."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the folder of reference data beside the repository, or skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "parity").is_dir():
        pytest.skip("reference folder ../shared is not present")
    return folder
