"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run and machine, and no time limit: a busy machine is not a bug.
settings.register_profile("fastgen", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fastgen")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that the tests belong to."""
    return ROOT


@pytest.fixture(scope="session")
def example_photo() -> Path:
    """The photo that ships with the project: RGB JPEG, 600x400."""
    return ROOT / "examples" / "coffee.jpg"


@pytest.fixture(scope="session")
def fastgen_data() -> Path:
    """The folder with photos, paintings and loss networks; skips where there is none."""
    value = os.environ.get("FASTGEN_DATA")
    if not value:
        pytest.skip("FASTGEN_DATA is not set: this test needs its photos and loss network")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"FASTGEN_DATA is {value}, which is not a folder")
    return path
