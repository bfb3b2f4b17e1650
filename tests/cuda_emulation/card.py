"""The emulated card: `_cuda` runs on it with tensors of the host; fixtures in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fastgen.ops import _cuda

LARGE, SMALL = 227 * 1024, 99 * 1024  # shared memory of a block: sm_90, sm_86
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Rounding of the result, relative; fp32 sums and 3xTF32 come on top.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class Card:
    """Calls functions of ``_cuda`` on the emulated device."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.limits = (4, LARGE)  # multiprocessors
        self.results: set[int] = set()

    def address(self, tensor: torch.Tensor | None) -> int:
        if tensor is None:
            return 0
        start = tensor.untyped_storage().data_ptr()
        name = f"{tensor.dtype} {tuple(tensor.shape)}"
        size = tensor.numel() * tensor.element_size()
        self.native.declare(tensor.data_ptr(), size, start in self.results, name)
        return tensor.data_ptr()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        self.native.forget_all()
        self.results.clear()
        for arg in args:
            if isinstance(arg, _cuda.PackedCuda):
                for tensor in arg.tensors:
                    self.address(tensor)
        return function(*args)


def emulated_card(native: Any, monkeypatch: pytest.MonkeyPatch) -> Card:
    """Puts the emulated device below ``_cuda`` until the test ends."""
    card = Card(native)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs).fill_(float("nan"))
        card.results.add(tensor.untyped_storage().data_ptr())
        return tensor

    monkeypatch.setattr(_cuda, "_native", lambda: native)
    monkeypatch.setattr(_cuda, "_limits", lambda device: card.limits)
    monkeypatch.setattr(_cuda, "_stream", lambda device: 0)
    monkeypatch.setattr(_cuda, "_on", lambda device: nullcontext())
    monkeypatch.setattr(_cuda, "_address", card.address)
    monkeypatch.setattr(torch, "empty", poisoned)
    return card


def random(shape: tuple[int, ...], dtype: str, seed: int, channels_last: bool = False) -> Any:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    return x.to(memory_format=torch.channels_last) if channels_last else x


def assert_close(out: torch.Tensor, ref: torch.Tensor, dtype: str, depth: int) -> None:
    """Element by element: rounding of the result, and of fp32 sums of `depth` products."""
    assert out.shape == ref.shape
    sums = 2.0**-22 * depth**0.5 * float(ref.abs().mean() + 1)
    # Three products for eight positions of float32, each rounding the sum towards zero.
    towards_zero = 2.0**-23 * 3 / 8 * depth
    limit = (ROUNDING[dtype] * 1.01 + 2.0**-22 * depth**0.5 + towards_zero) * ref.abs() + sums
    excess = (out.double() - ref).abs() - limit
    assert bool((excess <= 0).all()), f"off by {float(excess.max()):.3g} more than {sums:.3g}"
