"""The C++ implementations on CPU tensors and numpy arrays; `csrc/cpu/` has the kernels.

Inputs are valid already: four axes (a style may have two), none of size 0, dtypes that agree.
Results are freshly allocated, of the kind of the input.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

from fastgen.ops._array import (
    FLOAT32,
    Dense,
    Described,
    address,
    channels_last,
    contiguous,
    dense,
    describe,
    empty,
)

try:
    # Through a name of type Any: mypy meets this module in an import cycle.
    _C: Any = import_module("fastgen._C")
except ImportError as error:
    _REASON = str(error)
    _C = None

__all__ = ["concat_features", "concat_plain", "gram_matrix", "why_not"]


@cache
def why_not(op: str) -> str | None:
    """Why this implementation of an op cannot run here, or None."""
    if _C is None:
        return f"the C++ extension fastgen._C could not be loaded ({_REASON}); reinstall fastgen"
    if op in ("gram_matrix", "concat_features"):
        return None
    try:
        convolutions = import_module("fastgen.ops._cpu_conv")
    except ImportError as error:
        return f"the C++ convolutions could not be loaded ({error}); reinstall fastgen"
    return convolutions.why_not(op)


def gram_matrix(x: Any, deterministic: bool = False, isa: str = "") -> Any:
    """Products of all pairs of channels, summed over positions, over C*H*W.

    Sums are float32 over blocks of 512 positions and float64 over blocks. Their order depends on
    shape and memory format only, so the result is the same bits for any number of threads and on
    every call: ``deterministic`` changes nothing.

    Args:
        x: (N,C,H,W) float32, float16 or (torch) bfloat16.
        deterministic: accepted as every implementation does.
        isa: instruction set, for tests; "" takes the best.

    Returns:
        (N,C,C) float32, exactly symmetric.
    """
    described = describe(x)
    shape, strides = described[1], described[2]
    if not _loads(shape, strides):
        x = contiguous(x)
        described = describe(x)
    n, c = shape[0], shape[1]
    out = empty(x, (n, c, c), code=FLOAT32)
    _C.gram_matrix(*described, address(out), isa)
    return out


def concat_features(content: Any, style: Any, isa: str = "") -> Any:
    """Content and style side by side along channels.

    Args:
        content: (N,Cc,H,W).
        style: (N or 1,Cs,H,W), or (N or 1,Cs) for the same values at every position.
        isa: instruction set, for tests; "" takes the best.

    Returns:
        (N,Cc+Cs,H,W) in content's dtype and memory format.
    """
    content, a = dense(content)
    n, channels, h, w = a[1]
    style, b = _described_style(style, n, h, w)
    out = empty(content, (n, channels + b[1][1], h, w), a[2])
    _C.concat_features(*a, *b, address(out), a[2], isa)
    return out


def concat_plain(content: Any, style: Any, code: int) -> Any:
    """:func:`concat_features` of tensors in as few steps as can be; None where they need more.

    Args:
        content: of a dtype that the kernels take.
        style: of the same dtype.
        code: of this dtype.
    """
    torch = sys.modules["torch"]
    strided = torch.strided
    if content.layout is not strided or style.layout is not strided:
        return None
    try:
        shape, other = content.shape, style.shape
    except RuntimeError:  # a nested tensor
        return None
    if len(shape) != 4 or 0 in shape or 0 in other:
        return None
    n, channels, h, w = shape
    last = not content.is_contiguous()
    if last and not content.is_contiguous(memory_format=torch.channels_last):
        return None
    strides: bool | tuple[int, ...] = last
    if len(other) == 2:
        batch, more = other
        if (batch != n and batch != 1) or not style.is_contiguous():
            return None
        strides = (more if batch == n else 0, 1, 0, 0)
    else:
        if len(other) != 4 or other[0] != n or other[2] != h or other[3] != w:
            return None
        more, strides = other[1], not style.is_contiguous()
        if strides and not style.is_contiguous(memory_format=torch.channels_last):
            return None
    sizes, dtype = (n, channels + more, h, w), content.dtype
    if last:
        out = torch.empty(*sizes, dtype=dtype, memory_format=torch.channels_last)
    else:
        out = torch.empty(*sizes, dtype=dtype)
    _C.concat_features(
        *(content.data_ptr(), shape, last, code),
        *(style.data_ptr(), (n, more, h, w), strides, code),
        *(out.data_ptr(), last, ""),
    )
    return out


def _loads(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the kernels read these strides: one step from position to position, one of 1."""
    _, _, h, w = shape
    _, sc, sh, sw = strides
    if min(strides) < 0:
        return False
    if h == 1 or w == 1:
        return sc == 1 or (sh if w == 1 else sw) == 1 or h == w
    return sh == w * sw and (sw == 1 or sc == 1)


def _described_style(style: Any, n: int, h: int, w: int) -> tuple[Any, Described | Dense]:
    """A style as (N,Cs,H,W); axes along which it is the same have stride 0."""
    if len(style.shape) == 4 and style.shape[0] == n:
        return dense(style)
    at, shape, strides, code = describe(style)
    if len(shape) == 2:
        if strides[1] != 1 and shape[1] > 1:
            style = contiguous(style)
            at, shape, strides, code = describe(style)
        batch = strides[0] if shape[0] == n else 0
        return style, (at, (n, shape[1], h, w), (batch, 1, 0, 0), code)
    if channels_last(shape, strides) is None:
        style = contiguous(style)
        at, shape, strides, code = describe(style)
    return style, (at, (n, *shape[1:]), (0, *strides[1:]), code)
