"""Fused convolutions on the CPU by the C++ kernels: torch tensors or numpy arrays, no torch needed.

The instruction set is chosen at run time (``FASTGEN_CPU_ISA`` forces one), the number of threads
is ``FASTGEN_NUM_THREADS`` or the CPUs this process may use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgen.ops._array import FLOAT32, Described, channels_last, contiguous, describe, empty
from fastgen.ops._spec import ConvSpec

__all__ = ["Packed", "conv", "conv_norm", "pack_conv", "why_not"]

_DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}


class Packed:
    """Prepacked weights of one convolution.

    Attributes:
        spec: what was packed.
        outputs: channels of the result.
    """

    def __init__(self, spec: ConvSpec, isa: str = "") -> None:
        from fastgen import _C

        self.spec = spec
        self.outputs, _, kh, kw = spec.weight.shape
        self._factor, self._stride = spec.upsample, spec.stride
        self._rows, self._columns = 2 * spec.padding - kh, 2 * spec.padding - kw
        self.run = _C.PackedConv(
            np.asarray(spec.weight, np.float32),
            np.asarray(spec.bias, np.float32),
            spec.stride,
            spec.padding,
            spec.padding_mode == "reflect",
            spec.upsample,
            spec.negative_slope,
            _DTYPES[spec.dtype],
            spec.load_slope,
            spec.gamma,
            spec.beta,
            spec.eps,
            isa,
        ).run

    def output(self, x: Any, described: Described, last: bool) -> Any:
        """A new tensor for the result, in the memory order of the input."""
        n, _, height, width = described[1]
        rows = (height * self._factor + self._rows) // self._stride + 1
        columns = (width * self._factor + self._columns) // self._stride + 1
        if rows < 1 or columns < 1:
            raise ValueError(
                f"the input of {height} rows and {width} columns is smaller than the kernel; pad it"
            )
        return empty(x, (n, self.outputs, rows, columns), last)


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
    x, described, last = _dense(x)
    y = handle.output(x, described, last)
    other, added = _like(residual, last)
    handle.run(described, describe(y), added)
    del other  # a copy lives until here
    return y


def conv_norm(
    x: Any, handle: Packed, scale: Any = None, shift: Any = None, residual: Any = None
) -> tuple[Any, Any, Any]:
    """``conv(pad(upsample(leaky_relu(x*scale + shift) + residual))) + bias`` and its norm.

    Args:
        x: (N,I,H,W) in the packed dtype; any strides.
        handle: from :func:`pack_conv`, with the instance norm of the output.
        scale: (N,I) float32 or None.
        shift: as scale.
        residual: None, or of the shape of ``x``, or one image of it.

    Returns:
        y in the memory order of ``x``, and the (N,O) float32 scale and shift that normalise it.
    """
    x, described, last = _dense(x)
    y = handle.output(x, described, last)
    shape = (described[1][0], handle.outputs)
    out_scale = empty(x, shape, code=FLOAT32)
    out_shift = empty(x, shape, code=FLOAT32)
    before = [0, 0]
    if scale is not None:
        # Contiguous copies, where they are needed, live until the call is over.
        scale, shift = _matrix(scale, described[1]), _matrix(shift, described[1])
        before = [describe(scale)[0], describe(shift)[0]]
    other, added = _like(residual, last)
    handle.run(
        described,
        describe(y),
        added,
        *before,
        describe(out_scale)[0],
        describe(out_shift)[0],
    )
    del other  # a copy lives until here
    return y, out_scale, out_shift


def _dense(x: Any) -> tuple[Any, Described, bool]:
    """x or a dense copy of it, its description, and whether its channels are last in memory."""
    described = describe(x)
    last = channels_last(described[1], described[2])
    if last is None:
        x = contiguous(x)
        return x, describe(x), False
    return x, described, last


def _like(residual: Any, last: bool) -> tuple[Any, Described | None]:
    """The residual, or a copy in the memory order of the input; the caller keeps it alive."""
    if residual is None:
        return None, None
    described = describe(residual)
    if channels_last(described[1], described[2]) is last:
        return residual, described
    copy = empty(residual, described[1], last)
    copy[...] = residual
    return copy, describe(copy)


def _matrix(values: Any, shape: tuple[int, ...]) -> Any:
    """(N,I) float32, contiguous."""
    _, given, strides, code = describe(values)
    if tuple(given) != (shape[0], shape[1]) or code != FLOAT32:
        raise ValueError(
            f"scale and shift have the shape {tuple(given)}, must be {(shape[0], shape[1])} float32"
        )
    return values if strides == (shape[1], 1) else contiguous(values)
