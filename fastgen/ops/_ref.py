"""The reference: plain PyTorch on any device and floating dtype, differentiable as it stands.

Sixteen-bit tensors are computed in float32 and rounded once. numpy arrays go in and come out too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fastgen.ops._spec import ConvSpec

__all__ = [
    "concat_features",
    "conv",
    "conv_bn_leaky_relu",
    "conv_instance_norm",
    "conv_norm",
    "gram_matrix",
    "pack_conv",
    "why_not",
]


def why_not(op: str) -> str | None:
    """None when torch is installed, else what to do."""
    if find_spec("torch") is None:
        return "torch is not installed; pip install 'fastgen[torch]', or use arrays with impl 'cpu'"
    return None


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function on tensors take arrays, and keeps autocast out of it."""

    @functools.wraps(function)
    def call(x: Any, *args: Any) -> Any:
        import torch

        if isinstance(x, np.ndarray):
            args = tuple(_tensor(a) if isinstance(a, np.ndarray) else a for a in args)
            with torch.no_grad():
                result = function(_tensor(x), *args)
            return tuple(r.numpy() for r in result) if isinstance(result, tuple) else result.numpy()
        kind = x.device.type
        # Autocast would compute in half precision what is promised in the input's own.
        # (Tracers see through only one of the two; a context that changes nothing is not entered.)
        off = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if off else contextlib.nullcontext():
            return function(x, *args)

    return call


def _tensor(array: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _wide(x: Tensor) -> Tensor:
    import torch

    return x if x.dtype == torch.float64 else x.float()


def _shaped(y: Tensor, like: Tensor, layout: Tensor) -> Tensor:
    """``y`` in the dtype of ``like`` and the memory format of ``layout``."""
    import torch

    from fastgen.ops._check import channels_last

    last = channels_last(layout)
    return y.to(like.dtype).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


@_plain
def gram_matrix(x: Tensor, deterministic: bool = False) -> Tensor:
    """(N, C, C): products of the rows, in the layout that needs no copy."""
    from fastgen.ops._check import channels_last

    n, c, h, w = x.shape
    wide = _wide(x)
    if channels_last(x):
        rows = wide.permute(0, 2, 3, 1).reshape(n, h * w, c)
        return rows.transpose(1, 2) @ rows / (c * h * w)
    flat = wide.reshape(n, c, h * w)
    return flat @ flat.transpose(1, 2) / (c * h * w)


@_plain
def concat_features(content: Tensor, style: Tensor) -> Tensor:
    """Channel concatenation of ``content`` and ``style``, which broadcasts."""
    import torch

    n, _, h, w = content.shape
    if style.dim() == 2:
        style = style[:, :, None, None]
    both = torch.cat([content, style.expand(n, -1, h, w)], 1)
    return _shaped(both, content, content)


def _spread(x: Tensor, padding: int, padding_mode: str, upsample: int) -> Tensor:
    """Nearest upsampling, then padding."""
    import torch.nn.functional as F

    if upsample > 1:
        x = F.interpolate(x, scale_factor=float(upsample), mode="nearest")
    if padding:
        mode = "reflect" if padding_mode == "reflect" else "constant"
        x = F.pad(x, (padding, padding, padding, padding), mode=mode)
    return x


@_plain
def conv_bn_leaky_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    residual: Tensor | None,
    eps: float,
    negative_slope: float,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
) -> Tensor:
    """The formula of the public function, one step after the other, nothing folded."""
    import torch.nn.functional as F

    def channel(v: Tensor) -> Tensor:
        return v.to(wide.dtype)[:, None, None]

    wide = _wide(x)
    y = F.conv2d(
        _spread(wide, padding, padding_mode, upsample), weight.to(wide.dtype), stride=stride
    )
    for value, sign in ((bias, 1), (mean, -1)):
        if value is not None:
            y = y + sign * channel(value)
    if var is not None:
        y = y / (channel(var) + eps).sqrt()
    if gamma is not None:
        y = y * channel(gamma)
    if beta is not None:
        y = y + channel(beta)
    if residual is not None:
        y = y + residual.to(wide.dtype)
    return _shaped(F.leaky_relu(y, negative_slope), x, x)


@_plain
def conv_instance_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    eps: float,
    load_slope: float,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula of the public function; the variance by two passes, in float32 or float64."""
    import torch
    import torch.nn.functional as F

    wide = _wide(x)
    value = wide
    if scale is not None and shift is not None:
        value = value * scale[:, :, None, None] + shift[:, :, None, None]
    value = F.leaky_relu(value, load_slope) if load_slope != 1 else value
    if residual is not None:
        value = value + residual.to(wide.dtype)
    y = F.conv2d(
        _spread(value, padding, padding_mode, upsample),
        weight.to(wide.dtype),
        None if bias is None else bias.to(wide.dtype),
        stride,
    )
    var, mean = torch.var_mean(y, (2, 3), correction=0)
    out_scale = (var + eps).rsqrt()
    if gamma is not None:
        out_scale = out_scale * gamma.to(wide.dtype)
    out_shift = -mean * out_scale
    if beta is not None:
        out_shift = out_shift + beta.to(wide.dtype)
    return _shaped(y, x, x), out_scale, out_shift


class _Packed(NamedTuple):
    spec: ConvSpec
    weight: Tensor
    bias: Tensor
    gamma: Tensor | None
    beta: Tensor | None


def pack_conv(spec: ConvSpec, device: str | None) -> _Packed:
    """The arrays of a spec as tensors on a device."""
    import torch

    def tensor(value: np.ndarray | None) -> Any:
        return None if value is None else torch.from_numpy(value).to(device or "cpu")

    weight, bias, gamma, beta = map(tensor, (spec.weight, spec.bias, spec.gamma, spec.beta))
    return _Packed(spec, weight, bias, gamma, beta)


def conv(x: Any, handle: _Packed, residual: Any) -> Any:
    """:func:`conv_bn_leaky_relu` with folded weights."""
    s = handle.spec
    folded = (handle.weight, handle.bias, None, None, None, None, residual, s.eps)
    where = (s.stride, s.padding, s.padding_mode, s.upsample)
    return conv_bn_leaky_relu(x, *folded, s.negative_slope, *where)


def conv_norm(x: Any, handle: _Packed, scale: Any, shift: Any, residual: Any) -> Any:
    """:func:`conv_instance_norm` with packed weights."""
    s = handle.spec
    packed = (handle.weight, handle.bias, handle.gamma, handle.beta)
    where = (s.stride, s.padding, s.padding_mode, s.upsample)
    return conv_instance_norm(x, *packed, scale, shift, residual, s.eps, s.load_slope, *where)
