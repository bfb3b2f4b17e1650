"""Weights in the order in which the CUDA convolution reads them (csrc/cuda/conv_kernel.cuh)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastgen.ops._spec import ConvSpec

__all__ = ["DTYPES", "PackedArrays", "fold_upsampling", "pack", "pack_kernels"]

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # DType in csrc/fastgen.h
_ZERO, _REFLECT, _CLAMP = 0, 1, 2  # Border in csrc/cuda/conv_geometry.h
_ROW_BYTES = 64  # of one output's weights in one step
_ROW_MODE_CHANNELS = 10


@dataclass(frozen=True)
class PackedArrays:
    """What goes to the device, and what the kernel is told about it.

    Attributes:
        weights: (phases**2, steps, outputs padded to 8, elements of 64 bytes), as the bits of the
            element type: int32 or int16.
        bias: float32, padded as the outputs are.
        geometry: arguments of the native ``Conv``, without the pointers.
    """

    weights: np.ndarray
    bias: np.ndarray
    geometry: dict[str, int | float | bool]


def pack(spec: ConvSpec) -> PackedArrays:
    """Chooses phases and row mode and packs the weights of a convolution."""
    outputs, inputs, kernel_h, kernel_w = spec.weight.shape
    weight = np.asarray(spec.weight, np.float32)
    border = _REFLECT if spec.padding_mode == "reflect" else _ZERO
    # Reflection by more than one pixel takes the two pixels of an upsampled pair to different
    # ones of the small map, so those convolutions stay on the large map.
    phases = 1
    if spec.upsample == 2 and spec.stride == 1 and (border == _ZERO or spec.padding <= 1):
        phases = 2
        if border == _REFLECT:
            border = _CLAMP  # pixel -1 of the large map reflects to 1: both belong to pixel 0
    kernels = fold_upsampling(weight, spec.padding, spec.padding) if phases == 2 else weight[None]
    _, _, _, height, width = kernels.shape
    weights, bias, row_mode = pack_kernels(kernels, spec.bias, spec.dtype)
    return PackedArrays(
        weights,
        bias,
        {
            "dtype": DTYPES[spec.dtype],
            "inputs": inputs,
            "outputs": outputs,
            "kernel_h": height,
            "kernel_w": width,
            "full_kernel_h": kernel_h,
            "full_kernel_w": kernel_w,
            "stride": spec.stride,
            "upsample": spec.upsample,
            "padding": spec.padding,
            "border": border,
            "phases": phases,
            "row_mode": row_mode,
            "slope": spec.negative_slope,
            "load_slope": spec.load_slope,
            "eps": spec.eps,
        },
    )


def pack_kernels(
    kernels: np.ndarray, bias: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Weights and bias of all phases in the kernel's order.

    Args:
        kernels: (phases**2, O, I, kh, kw), float32.
        bias: (O,).
        dtype: a key of ``DTYPES``.

    Returns:
        Weights and bias as in :class:`PackedArrays`, and whether a tap is a whole kernel row.
    """
    phases, outputs, inputs, height, width = kernels.shape
    depth = _ROW_BYTES // (4 if dtype == "float32" else 2)
    row_mode = inputs <= _ROW_MODE_CHANNELS and -(-width * inputs // depth) < width * -(
        -inputs // depth
    )
    if row_mode:  # (phase, output, kernel row, kx * inputs + c)
        runs = kernels.transpose(0, 1, 3, 4, 2).reshape(phases, outputs, height, -1)
    else:
        runs = kernels.transpose(0, 1, 3, 4, 2).reshape(phases, outputs, -1, inputs)
    taps, elements = runs.shape[2:]
    blocks, padded = -(-elements // depth), -(-outputs // 8) * 8
    full = np.zeros((phases, padded, taps, blocks * depth), np.float32)
    full[:, :outputs, :, :elements] = runs
    steps = full.reshape(phases, padded, taps, blocks, depth).transpose(0, 3, 2, 1, 4)
    padded_bias = np.zeros(padded, np.float32)
    padded_bias[:outputs] = bias
    packed = np.ascontiguousarray(steps).reshape(phases, -1, padded, depth)
    return _bits(packed, dtype), padded_bias, row_mode


def fold_upsampling(weight: np.ndarray, top: int, left: int) -> np.ndarray:
    """The four kernels (4, O, I, kh, kw) on the small map that equal nearest x2 and then `weight`.

    `top` and `left` are the rows and columns of padding around the large map.

    Output 2i + r reads rows 2i + r + t - padding of the large map, which are rows
    i + floor((r + t - padding) / 2) of the small one: taps that meet there are added.
    """
    kernels = [weight.astype(np.float64)]
    for axis, padding in ((2, top), (3, left)):  # rows first: phase ry * 2 + rx is at that place
        kernels = [_fold(kernel, axis, r - padding) for kernel in kernels for r in range(2)]
        taps = max(kernel.shape[axis] for kernel in kernels)
        kernels = [_extend(kernel, axis, taps) for kernel in kernels]
    return np.stack(kernels).astype(np.float32)


def _fold(kernel: np.ndarray, axis: int, first: int) -> np.ndarray:
    """Adds the taps along `axis` that read the same pixel when the first tap is at `first`."""
    taps = np.moveaxis(kernel, axis, 0)
    to = [(first + t) // 2 - first // 2 for t in range(len(taps))]
    folded = np.zeros((to[-1] + 1, *taps.shape[1:]))
    np.add.at(folded, to, taps)
    return np.moveaxis(folded, 0, axis)


def _extend(kernel: np.ndarray, axis: int, taps: int) -> np.ndarray:
    pad = [(0, 0)] * kernel.ndim
    pad[axis] = (0, taps - kernel.shape[axis])
    return np.pad(kernel, pad)


def _bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to the element type, as integers of its size."""
    if dtype == "float32":
        return values.view(np.int32)
    if dtype == "float16":
        return values.astype(np.float16).view(np.int16)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    return rounded.astype(np.uint16).view(np.int16)
