"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from cuda_emulation.card import Card

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run and machine, and no time limit: a busy machine is not a bug.
settings.register_profile("fastgen", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fastgen")


@pytest.fixture(scope="session", autouse=True)
def no_tf32() -> None:
    """Convolutions of torch on a GPU would by default round float32 operands to 10 bits."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer versions prefer another name
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False


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


@pytest.fixture(scope="session")
def native() -> ModuleType:
    """The CUDA kernels on the host (tests/cuda_emulation); skips where they cannot be built."""
    import cuda_emulation

    reason = cuda_emulation.why_not()
    if reason:
        pytest.skip(reason)
    return cuda_emulation.load()


@pytest.fixture
def card(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """An emulated card, on which ``fastgen.ops._cuda`` runs for the length of a test."""
    from cuda_emulation.card import emulated_card

    yield emulated_card(native, monkeypatch)
    native.forget_all()


@pytest.fixture
def emulated(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An emulated card below the cuda backend, for the length of a test."""
    from cuda_emulation.backend import emulate

    return emulate(native, monkeypatch)
