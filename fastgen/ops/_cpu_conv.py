"""Fused convolutions on the CPU by the C++ kernels: torch tensors or numpy arrays, no torch needed.

The instruction set is chosen at run time (``FASTGEN_CPU_ISA`` forces one), the number of threads
is ``FASTGEN_NUM_THREADS`` or the CPUs this process may use.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fastgen.ops._array import Dense, address, dense, empty, empty_like
from fastgen.ops._spec import ConvSpec

__all__ = ["Packed", "conv", "conv_norm", "conv_norm_plain", "pack_conv", "why_not"]

_DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}


class Packed:
    """Prepacked weights of one convolution.

    Attributes:
        spec: what was packed.
        outputs: channels of the result.
        inputs: channels of the input.
        code: of the dtype of both.
        same: whether the result has the shape of the input.
    """

    def __init__(self, spec: ConvSpec, isa: str = "") -> None:
        from fastgen import _C

        self.spec = spec
        self.outputs, self.inputs, kh, kw = spec.weight.shape
        self._factor, self._stride = spec.upsample, spec.stride
        self._rows, self._columns = 2 * spec.padding - kh, 2 * spec.padding - kw
        self.code = _DTYPES[spec.dtype]
        self.same = (
            self.outputs == self.inputs
            and self._factor == self._stride == 1
            and self._rows == self._columns == -1
        )
        self.run = _C.PackedConv(
            np.asarray(spec.weight, np.float32),
            np.asarray(spec.bias, np.float32),
            spec.stride,
            spec.padding,
            spec.padding_mode == "reflect",
            spec.upsample,
            spec.negative_slope,
            self.code,
            spec.load_slope,
            spec.gamma,
            spec.beta,
            spec.eps,
            isa,
        ).run

    def output(self, x: Any, described: Dense) -> Any:
        """A new tensor for the result, in the memory order of the input."""
        if self.same:
            return empty_like(x)
        n, _, height, width = described[1]
        rows = (height * self._factor + self._rows) // self._stride + 1
        columns = (width * self._factor + self._columns) // self._stride + 1
        if rows < 1 or columns < 1:
            raise ValueError(
                f"the input of {height} rows and {width} columns is smaller than the kernel; pad it"
            )
        return empty(x, (n, self.outputs, rows, columns), described[2])


def why_not(op: str) -> str | None:
    """None when the fused convolutions can run here, else the reason with the remedy."""
    try:
        from fastgen import _C

        _C.PackedConv(np.ones((1, 1, 1, 1), np.float32), np.zeros(1, np.float32))
    except ImportError as error:
        return f"its extension module is not built ({error}); reinstall fastgen: pip install ."
    except ValueError as error:
        return str(error)
    return None


def pack_conv(spec: ConvSpec, device: str | None = None, isa: str = "") -> Packed:
    """Folds nothing, packs everything: the weights in the order in which the kernels read them.

    Args:
        spec: the convolution.
        device: not used.
        isa: an instruction set; "" takes ``FASTGEN_CPU_ISA`` or the best.
    """
    return Packed(spec, isa)


def conv(x: Any, handle: Packed, residual: Any = None) -> Any:
    """``leaky_relu(conv(pad(upsample(x))) + bias + residual)``.

    Args:
        x: (N,I,H,W) in the packed dtype; any strides.
        handle: from :func:`pack_conv`, without an instance norm.
        residual: None, or of the output's shape, or one image of it.

    Returns:
        A new tensor in the memory order of ``x``.
    """
    x, described = dense(x)
    y = handle.output(x, described)
    if residual is None:
        handle.run(described, address(y), None)
    else:
        residual, added = _like(residual, described[2])
        handle.run(described, address(y), added)
    return y


def conv_norm(
    x: Any,
    handle: Packed,
    scale: Any = None,
    shift: Any = None,
    residual: Any = None,
) -> tuple[Any, Any, Any]:
    """``conv(pad(upsample(leaky_relu(x*scale + shift) + residual))) + bias`` and its norm.

    Args:
        x: (N,I,H,W) in the packed dtype; any strides.
        handle: from :func:`pack_conv`, with the instance norm of the output.
        scale: (N,I) float32, for tensors contiguous; or None.
        shift: as scale.
        residual: None, or of the shape of ``x``, or one image of it.

    Returns:
        y in the memory order of ``x``, and the (N,O) float32 scale and shift that normalise it.
    """
    x, described = dense(x)
    y = handle.output(x, described)
    n, outputs, added = described[1][0], handle.outputs, None
    if residual is not None:
        residual, added = _like(residual, described[2])
    if isinstance(x, np.ndarray):
        out_scale = np.empty((n, outputs), np.float32)
        out_shift = np.empty_like(out_scale)
        norms = 0, 0, address(out_scale), address(out_shift)
        if scale is not None:
            scale, shift = (np.require(v, requirements=("C", "A")) for v in (scale, shift))
            norms = address(scale), address(shift), *norms[2:]
        handle.run(described, address(y), added, *norms)
        return y, out_scale, out_shift
    torch = sys.modules["torch"]
    out_scale = torch.empty(n, outputs, dtype=torch.float32)
    out_shift = torch.empty_like(out_scale)
    before = after = 0
    if scale is not None:
        before, after = scale.data_ptr(), shift.data_ptr()
        if not (before and after):
            raise ValueError("scale or shift has no memory")
    first, second = out_scale.data_ptr(), out_shift.data_ptr()
    handle.run(described, y.data_ptr(), added, before, after, first, second)
    return y, out_scale, out_shift


def conv_norm_plain(
    x: Any, handle: Packed, scale: Any, shift: Any, shape: tuple[int, ...]
) -> tuple[Any, Any, Any]:
    """:func:`conv_norm` of tensors with a norm and without a residual, in as few steps as can be.

    ``shape`` is that of ``x``. Every microsecond here is one of each call.
    """
    torch = sys.modules["torch"]
    last = not x.is_contiguous()
    if last and not x.is_contiguous(memory_format=torch.channels_last):
        x, last = x.contiguous(), False
    if handle.same:  # then this is the quickest
        y, out_scale = torch.empty_like(x), torch.empty_like(scale)
    else:
        y = handle.output(x, (0, shape, last, handle.code))
        out_scale = torch.empty(shape[0], handle.outputs, dtype=torch.float32)
    out_shift = torch.empty_like(out_scale)
    before, after = scale.data_ptr(), shift.data_ptr()
    if not (before and after):
        raise ValueError("scale or shift has no memory")
    first, second = out_scale.data_ptr(), out_shift.data_ptr()
    described = (x.data_ptr(), shape, last, handle.code)
    handle.run(described, y.data_ptr(), None, before, after, first, second)
    return y, out_scale, out_shift


def _like(residual: Any, last: bool) -> tuple[Any, Dense]:
    """The residual or a copy, in the memory order of the input; the caller keeps it alive."""
    kept, described = dense(residual)
    if described[2] is last:
        return kept, described
    # In an order of its own. One that fits both is taken for contiguous.
    copy = empty(residual, described[1], last)
    copy[...] = residual
    return copy, (address(copy), described[1], last, described[3])
