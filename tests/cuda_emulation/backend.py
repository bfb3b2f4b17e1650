"""The cuda backend on the emulated card."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from cuda_emulation.card import LARGE


def emulated_module(native: Any, shared: int = LARGE, devices: int = 1) -> ModuleType:
    """A module like ``fastgen._cuda``: the emulated kernels, and facts about a card."""
    module = ModuleType("fastgen._cuda")
    module.__dict__.update({k: v for k, v in vars(native).items() if not k.startswith("__")})
    facts = {
        "name": "Emulated card",
        "capability": (8, 0),
        "memory_bytes": 1 << 33,
        "multiprocessors": 4,
        "shared_bytes": shared,
    }
    reason = None if devices else "no driver"
    module.__dict__.update(
        device_count=lambda: (devices, reason),
        device=lambda index: facts,
        compiled_archs=lambda: "emulated",
    )
    return module


def emulate(native: Any, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> ModuleType:
    """Puts the emulated card below ``fastgen.backends.cuda`` until the test ends."""
    import fastgen

    module = emulated_module(native, **facts)
    monkeypatch.setitem(sys.modules, "fastgen._cuda", module)
    monkeypatch.setattr(fastgen, "_cuda", module, raising=False)
    return module
