"""The fused operations on NVIDIA cards: CUDA C++ of csrc/cuda, called with plain pointers.

Inputs are validated by the public functions. Results are allocated by torch on the current stream,
and so is the workspace, which may be released before the kernels have run.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fastgen.errors import ImplUnavailable
from fastgen.ops._cuda_pack import DTYPES, pack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastgen.ops._spec import ConvSpec

__all__ = [
    "PackedCuda",
    "concat_features",
    "conv",
    "conv_norm",
    "gram_matrix",
    "pack_conv",
    "why_not",
]

_OLDEST = (8, 0)  # cp.async, mma of bf16 and tf32


def why_not(op: str) -> str | None:
    """The reason why no operation can run on a card here, or None."""
    try:
        native = _native()
    except ImportError as error:
        return f"fastgen._cuda is not built ({error}); install nvcc and reinstall fastgen"
    try:
        import torch
    except ImportError:
        return "torch is not installed; install a build of torch with CUDA"
    count, reason = native.device_count()
    if count == 0:
        return f"no CUDA device: {reason or 'none was found'}"
    if not torch.cuda.is_available():
        return "torch cannot use CUDA; install a build of torch with CUDA"
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST:
        return (
            f"the card has compute capability {capability[0]}.{capability[1]}, "
            f"{_OLDEST[0]}.{_OLDEST[1]} or newer is needed"
        )
    return None


def _native() -> Any:
    return importlib.import_module("fastgen._cuda")


@lru_cache
def _limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory that a block can have."""
    facts = _native().device(device.index)
    return facts["multiprocessors"], facts["shared_bytes"]


def _code(dtype: torch.dtype) -> int:
    return DTYPES[str(dtype).removeprefix("torch.")]


def _stream(device: torch.device) -> int:
    import torch

    return torch.cuda.current_stream(device).cuda_stream


def _on(device: torch.device) -> Any:
    """Makes the tensor's device the current one for a launch."""
    import torch

    if torch.cuda.current_device() == device.index:
        return nullcontext()
    return torch.cuda.device(device)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """`x` in a dense layout, and whether that is channels last."""
    import torch

    if x.is_contiguous():
        return x, False
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def _like(x: Tensor, channels_last: bool) -> Tensor:
    import torch

    return x.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def gram_matrix(x: Tensor, deterministic: bool = False) -> Tensor:
    """(N, C, H, W) to float32 (N, C, C); always deterministic, the argument changes nothing."""
    import torch

    x, channels_last = _dense(x)
    n, c, height, width = x.shape
    native, limits = _native(), _limits(x.device)
    what = (n, c, height * width, channels_last, _code(x.dtype), *limits)
    with _on(x.device):
        out = torch.empty((n, c, c), dtype=torch.float32, device=x.device)
        floats = native.gram_matrix_workspace(*what)
        workspace = _workspace(floats, x.device)
        native.gram_matrix(
            _address(x), _address(out), _address(workspace), *what, _stream(x.device)
        )
    return out


def concat_features(content: Tensor, style: Tensor) -> Tensor:
    """Both along the channels; a style of batch 1 or of one value per channel is repeated."""
    content, channels_last = _dense(content)
    n, channels, height, width = content.shape
    if style.ndim == 4:
        style = _like(style, channels_last)
        style_pixels = height * width
    else:
        style = style.contiguous()
        style_pixels = 1
    with _on(content.device):
        out = _empty((n, channels + style.shape[1], height, width), content, channels_last)
        _native().concat_features(
            _address(content),
            _address(style),
            _address(out),
            n,
            channels,
            style.shape[1],
            height * width,
            style.shape[0],
            style_pixels,
            channels_last,
            content.element_size(),
            _stream(content.device),
        )
    return out


@dataclass(frozen=True)
class PackedCuda:
    """A convolution whose weights are on the device; `native` holds their addresses."""

    native: Any
    tensors: tuple[Tensor | None, ...]
    outputs: int
    tile: int = -1  # a tile configuration to force; -1: the one expected to be fastest


def pack_conv(spec: ConvSpec, device: str | None = None) -> PackedCuda:
    """Packs for `device`, by default the current one."""
    import torch

    arrays = pack(spec)
    to = torch.device("cuda", torch.cuda.current_device()) if device is None else device
    statistics = spec.gamma is not None
    tensors = tuple(
        None if array is None else torch.from_numpy(array.copy()).to(to)
        for array in (
            arrays.weights,
            arrays.bias,
            spec.gamma if statistics else None,
            spec.beta if statistics else None,
        )
    )
    names = ("weights", "bias", "gamma", "beta")
    addresses = {name: _address(tensor) for name, tensor in zip(names, tensors, strict=True)}
    native = _native().Conv(**arrays.geometry, **addresses)
    return PackedCuda(native, tensors, spec.weight.shape[0])


def conv(x: Tensor, handle: PackedCuda, residual: Tensor | None = None) -> Tensor:
    """Convolution, bias, residual and LeakyReLU in one kernel."""
    return _run(x, handle, None, None, None, residual, False)[0]


def conv_norm(
    x: Tensor,
    handle: PackedCuda,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The raw convolution of the normalised input, and scale and shift for its own norm."""
    y, out_scale, out_shift = _run(x, handle, scale, shift, residual, None, True)
    assert out_scale is not None
    assert out_shift is not None
    return y, out_scale, out_shift


def _run(
    x: Tensor,
    handle: PackedCuda,
    scale: Tensor | None,
    shift: Tensor | None,
    load_residual: Tensor | None,
    residual: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    import torch

    x, channels_last = _dense(x)
    n, _, height, width = x.shape
    device = x.device
    limits = _limits(device)
    try:
        rows, columns, floats, *_ = handle.native.plan(n, height, width, *limits, handle.tile)
    except ValueError as error:  # too large for the card's shared memory or for one launch
        raise ImplUnavailable(str(error)) from None
    if load_residual is not None:
        load_residual = _like(load_residual.expand_as(x), channels_last)
    if residual is not None:
        residual = _like(residual, channels_last)
    if scale is not None and shift is not None:
        scale, shift = scale.contiguous(), shift.contiguous()
    with _on(device):
        y = _empty((n, handle.outputs, rows, columns), x, channels_last)
        workspace = _workspace(floats if statistics else 0, device)
        out_scale = out_shift = None
        if statistics:
            # Two allocations: results of an operator must not share memory.
            out_scale, out_shift = (
                torch.empty((n, handle.outputs), dtype=torch.float32, device=device)
                for _ in range(2)
            )
        handle.native.run(
            _address(x),
            n,
            height,
            width,
            channels_last,
            _address(scale),
            _address(shift),
            _address(load_residual),
            _address(residual),
            residual is not None and residual.shape[0] == 1,
            _address(y),
            _address(workspace),
            _address(out_scale),
            _address(out_shift),
            *limits,
            handle.tile,
            _stream(device),
        )
    return y, out_scale, out_shift


def _empty(shape: tuple[int, ...], like: Tensor, channels_last: bool) -> Tensor:
    import torch

    return torch.empty(
        shape,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _workspace(floats: int, device: torch.device) -> Tensor | None:
    import torch

    return torch.empty(floats, dtype=torch.float32, device=device) if floats else None
