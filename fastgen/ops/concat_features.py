"""Feature maps of a photo beside those of a style."""

from __future__ import annotations

from typing import Any

from numpy import ndarray

from fastgen.errors import ImplUnavailable
from fastgen.ops import _check, _cpu, _dispatch, _register
from fastgen.ops._check import Array

__all__ = ["concat_features"]

_CODES: dict[Any, int] = {"float32": 0, "float16": 1, "bfloat16": 2}  # csrc/dtype.h


def concat_features(content: Array, style: Array, *, impl: str = "auto") -> Array:
    """Content and style features, channel beside channel: ``out[n] = [content[n]; style[n]]``.

    A style of shape (N, Cs) is the same at every position. What follows is usually a convolution:
    :func:`fastgen.ops.conv_concat` is both in one and never writes the concatenation.

    Args:
        content: (N, Cc, H, W) float32, float16, bfloat16, or float64 (``ref`` only); contiguous or
            channels_last (others are copied). Torch tensor, or numpy array on the CPU.
        style: (N, Cs, H, W) or (N, Cs), dtype and device of the content; a batch of 1 serves
            every image.
        impl: ``"auto"``, ``"ref"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Returns:
        (N, Cc + Cs, H, W), dtype and memory format of the content. Exact: values are copied.

    Raises:
        TypeError: not tensors or arrays, or dtypes that differ or are not taken.
        ValueError: shapes or devices that do not fit, unknown ``impl`` or one for another device.
        ImplUnavailable: the named implementation cannot run here; the message says why.
    """
    if impl == "auto" or impl == "cpu":
        usual = _usual(content, style)
        if usual is not None:
            return usual
    _dispatch.check_impl(impl)
    dtype = _check.dtype_name("content", content)
    check_style(content, style)
    if isinstance(content, ndarray):
        modules = _dispatch.candidates("concat_features", impl, "cpu", dtype)
    else:
        if impl != "ref" and not _dispatch.is_direct(content, style):
            content, style = _check.as_dense(content), _dense_style(style)
            return _register.call("concat_features", content, style, impl)
        kind = "cpu" if content.is_cpu else content.device.type  # the second is slow
        modules = _dispatch.candidates("concat_features", impl, kind, dtype)
    if modules[0] is not _cpu:  # which takes any strides
        content, style = _check.as_dense(content), _dense_style(style)
    try:
        return modules[0].concat_features(content, style)
    except ImplUnavailable:
        return _dispatch.run_next(modules, "concat_features", content, style)


def _usual(content: Any, style: Any) -> Any:
    """The result, if the call is what nearly every one on the CPU is: dense tensors of one type.

    None where one must look closely. A small copy takes hardly longer than all the checks.
    """
    dtype = getattr(content, "dtype", None)
    code = _CODES.get(_check.TORCH.get(dtype))
    if (
        code is None
        or getattr(style, "dtype", None) is not dtype
        or not _dispatch.is_direct(content, style)
        or not (content.is_cpu and style.is_cpu)
        or _cpu.why_not("concat_features")
    ):
        return None
    return _cpu.concat_plain(content, style, code)


def check_style(content: Any, style: Any) -> None:
    """The style fits the content.

    Raises:
        TypeError, ValueError: it does not.
    """
    n, _, h, w = _check.features("content", content)
    _check.same_kind("style", style, "content", content)
    shape = style.shape
    fits = len(shape) == 2 or (len(shape) == 4 and shape[2] == h and shape[3] == w)
    if not fits or shape[1] == 0 or (shape[0] != n and shape[0] != 1):
        raise ValueError(
            f"style has the shape {tuple(shape)}, must be ({n} or 1, C, {h}, {w}) or "
            f"({n} or 1, C) for this content"
        )


def _dense_style(style: Any) -> Any:
    if len(style.shape) == 4:
        return _check.as_dense(style)
    return _check.as_contiguous(style)
