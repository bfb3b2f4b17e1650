"""Checks of arguments: each error is one line with the value, the limit and the remedy."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy import ndarray

__all__ = [
    "as_dense",
    "channels_last",
    "dtype_name",
    "features",
    "geometry",
    "norm_pair",
    "output_size",
    "same_kind",
    "slope",
    "vector",
]

# A torch tensor or a numpy array; every array of one call is of the same kind, results included.
Array = Any
# stride, padding, padding mode, upsampling
Geometry = Any

DTYPES = ("float32", "float16", "bfloat16", "float64")
MAX_KERNEL = 15
MAX_PADDING = 1024

_NUMPY = {np.dtype(name): name for name in ("float32", "float16", "float64")}
TORCH: dict[Any, str] = {}  # names of torch's dtypes that have been met


def dtype_name(name: str, x: Any) -> str:
    """Name of the dtype of an array or tensor.

    Raises:
        TypeError: neither numpy array nor torch tensor, not a floating dtype that ops take, or
            a byte order or layout of its own.
    """
    if isinstance(x, ndarray):
        found = _NUMPY.get(x.dtype)
        if found is None:
            raise TypeError(
                f"{name} has the dtype {x.dtype.str}, must be native float32, float16 or float64; "
                "convert it with astype"
            )
        return found
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} is a {type(x).__name__}, must be a torch tensor or numpy array; convert it"
        )
    found = TORCH.get(x.dtype)
    if found is None:
        found = str(x.dtype)[6:]  # torch.float32
        if found not in DTYPES:
            raise TypeError(
                f"{name} has the dtype {found}, must be {', '.join(DTYPES)}; convert it with .to"
            )
        if not torch.compiler.is_compiling():
            TORCH[x.dtype] = found
    if x.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {x.layout}, must be dense; use to_dense()")
    return found


def features(name: str, x: Any) -> tuple[int, int, int, int]:
    """(N, C, H, W) of an array that :func:`dtype_name` has accepted.

    Raises:
        TypeError: a nested tensor.
        ValueError: not four sizes, or one of them is 0.
    """
    try:
        shape = x.shape
    except RuntimeError:
        raise TypeError(f"{name} is a nested tensor, must be dense; pad it") from None
    if len(shape) != 4 or 0 in shape:
        raise ValueError(
            f"{name} has the shape {tuple(shape)}, must be (N,C,H,W) with every size >= 1"
        )
    return shape


def same_kind(name: str, value: Any, like_name: str, like: Any, *, dtype: bool = True) -> None:
    """``value`` lives where ``like`` does, and has its dtype when ``dtype``.

    Raises:
        TypeError: another kind of array or another dtype.
        ValueError: another device.
    """
    if type(value) is type(like) and value.dtype == like.dtype:
        # What nearly every call is; ``like`` has been looked at before.
        if isinstance(value, ndarray):
            return
        if value.is_cpu and like.is_cpu and value.layout == like.layout:
            return
    own = dtype_name(name, value)
    if isinstance(value, ndarray) != isinstance(like, ndarray):
        kinds = ("torch tensor", "numpy array")
        raise TypeError(
            f"{name} is a {kinds[isinstance(value, ndarray)]} and {like_name} a "
            f"{kinds[isinstance(like, ndarray)]}; give both as the same kind"
        )
    if dtype and value.dtype != like.dtype:
        raise TypeError(
            f"{name} is {own} and {like_name} {dtype_name(like_name, like)}; convert one"
        )
    if not isinstance(value, ndarray) and value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device} and {like_name} on {like.device}; move one of them"
        )


def norm_pair(scale: Any, shift: Any, x: Any, dtype: str) -> None:
    """``scale`` and ``shift`` of a norm fit ``x``, whose dtype is named ``dtype``.

    Raises:
        TypeError, ValueError: they do not.
    """
    wanted = "float64" if dtype == "float64" else "float32"
    size = tuple(x.shape[:2])
    for name, value in (("norm's scale", scale), ("norm's shift", shift)):
        same_kind(name, value, "x", x, dtype=False)
        if dtype_name(name, value) != wanted:
            raise TypeError(f"{name} is {value.dtype}, must be {wanted}; do not convert it")
        if tuple(value.shape) != size:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, must be (N,I) = {size}")


def channels_last(x: Any) -> bool:
    """Whether results for ``x`` are channels_last in memory: it is, and not also contiguous."""
    if isinstance(x, ndarray):
        return not x.flags.c_contiguous and bool(x.transpose(0, 2, 3, 1).flags.c_contiguous)
    import torch

    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def as_dense(x: Any) -> Any:
    """``x`` itself when contiguous or channels_last, else a contiguous copy."""
    if isinstance(x, ndarray):
        dense = x.flags.c_contiguous or x.transpose(0, 2, 3, 1).flags.c_contiguous
        return x if dense and x.flags.aligned else np.array(x, order="C")
    if x.is_contiguous():
        return x
    import torch

    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def as_contiguous(value: Any) -> Any:
    """``value`` itself when contiguous, else a copy."""
    if isinstance(value, ndarray):
        return value if value.flags.c_contiguous and value.flags.aligned else value.copy()
    return value.contiguous()


def _integer(name: str, value: Any, allowed: str, fits: bool) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}, must be an integer {allowed}")
    if not fits:
        raise ValueError(f"{name} is {value}, must be {allowed}")
    return value


def slope(name: str, value: Any) -> float:
    """A LeakyReLU slope.

    Raises:
        TypeError: not a number.
        ValueError: not in 0..1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, must be a number in 0..1")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}, must be in 0..1 (0: ReLU, 1: no activation)")
    return float(value)


def epsilon(value: Any) -> float:
    """The number that keeps a variance away from 0.

    Raises:
        TypeError: not a number.
        ValueError: not positive and finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"eps is {value!r}, must be a number > 0")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"eps is {value}, must be finite and > 0")
    return float(value)


def geometry(weight: Any, stride: Any, padding: Any, padding_mode: Any, upsample: Any) -> None:
    """The shape of a convolution's weight and its integers.

    Raises:
        TypeError: not integers.
        ValueError: a value that the fused convolutions do not support.
    """
    shape = tuple(weight.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"weight has the shape {shape}, must be (O,I,k,k) with every size >= 1")
    if shape[2] != shape[3] or shape[2] > MAX_KERNEL:
        raise ValueError(
            f"weight has a {shape[2]}x{shape[3]} kernel, must be square and at most {MAX_KERNEL}; "
            "use torch.nn.functional.conv2d"
        )
    _integer("stride", stride, "1 or 2", stride in (1, 2))
    _integer("upsample", upsample, "1 or 2", upsample in (1, 2))
    _integer("padding", padding, f"in 0..{MAX_PADDING}", padding in range(MAX_PADDING + 1))
    if padding_mode not in ("zeros", "reflect"):
        raise ValueError(f"padding_mode is {padding_mode!r}, must be 'zeros' or 'reflect'")


def output_size(
    size: tuple[int, int], k: int, stride: int, padding: int, padding_mode: str, upsample: int
) -> tuple[int, int]:
    """Rows and columns of a convolution's output.

    Raises:
        ValueError: the input is too small.
    """
    h, w = size[0] * upsample, size[1] * upsample
    if padding_mode == "reflect" and padding >= min(h, w):
        raise ValueError(
            f"padding is {padding}, reflection of a {w}x{h} input allows at most {min(h, w) - 1}; "
            "use a larger input"
        )
    h, w = h + 2 * padding - k, w + 2 * padding - k
    if h < 0 or w < 0:
        raise ValueError(
            f"the padded input is {w + k}x{h + k}, smaller than the {k}x{k} kernel; "
            "use a larger input or more padding"
        )
    return h // stride + 1, w // stride + 1


def size(name: str, value: Any) -> int:
    """A number of pixels.

    Raises:
        TypeError: not an integer.
        ValueError: not positive.
    """
    return _integer(name, value, ">= 1", isinstance(value, int) and value >= 1)


def channel_split(content: Any, total: int) -> int:
    """How many of ``total`` channels are the content's: at least one, and not all.

    Raises:
        TypeError: not an integer.
        ValueError: out of range.
    """
    allowed = f"in 1..{total - 1}, below the weight's {total} input channels"
    return _integer("content_channels", content, allowed, content in range(1, total))


def vector(name: str, value: Any, size: int, like: Any) -> None:
    """``value`` is None or one number for each of ``size`` channels, where ``like`` lives.

    Raises:
        TypeError, ValueError: it is not.
    """
    if value is None:
        return
    same_kind(name, value, "weight", like, dtype=False)
    if tuple(value.shape) != (size,):
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, must be ({size},)")
