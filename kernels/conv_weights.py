"""Weights of a fused convolution in the order in which its kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["PackedWeights", "pack"]


@dataclass(frozen=True)
class PackedWeights:
    """What the convolution kernel multiplies with, and how.

    Attributes:
        weight: (phases * columns, depth); the index of the sum is the contiguous one, which is
            how the matrix units of every precision take it.
        bias: (columns,) float32.
        gamma: (O,) float32 of the norm whose statistics are returned, or None.
        beta: (O,) float32, as gamma.
        dtype: of the weights, the input and the output.
        out_channels: O.
        kernel: rows and columns of taps that the kernel loops over; not those of the convolution
            where it was folded (phases) or repeated (group).
        size: rows and columns of taps of the convolution.
        stride, padding, upsample, edge: of the index arithmetic; see ``jit``'s ``conv``.
        scaling, border: upsampling and padding of the convolution, for the size of the output.
        phases: 4 when an upsampled 3x3 kernel was folded into a 2x2 one per parity, else 1.
        group: neighbouring outputs in x that one row of the product computes.
        by_row: the sum's blocks are kernel rows, not taps.
        block_k: length of a block of the sum.
        negative_slope, load_slope, eps: as in the description that was packed.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    gamma: torch.Tensor | None
    beta: torch.Tensor | None
    dtype: str
    out_channels: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: int
    padding: int
    upsample: int
    edge: str
    scaling: int
    border: int
    phases: int
    group: int
    by_row: bool
    block_k: int
    negative_slope: float
    load_slope: float
    eps: float

    @property
    def columns(self) -> int:
        """Columns of the product, padded."""
        return self.weight.shape[0] // self.phases

    @property
    def depth(self) -> int:
        """Length of the sum, padded."""
        return self.weight.shape[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an input of height x width."""
        kh, kw = self.size
        rows = (height * self.scaling + 2 * self.border - kh) // self.stride + 1
        columns = (width * self.scaling + 2 * self.border - kw) // self.stride + 1
        return rows, columns


def fold_phases(weight: np.ndarray) -> np.ndarray:
    """(O, I, 3, 3) over a nearest x2 map -> (4, O, I, 2, 2) over the small one, by parity.

    An even output sees the taps (-1 | 0, 1) in two small pixels, an odd one (0, 1 | 2).
    """
    wide = weight.astype(np.float64)
    rows = [
        np.stack([wide[:, :, 0], wide[:, :, 1] + wide[:, :, 2]], 2),
        np.stack([wide[:, :, 0] + wide[:, :, 1], wide[:, :, 2]], 2),
    ]
    folded = [
        np.stack(columns, 3)
        for r in rows
        for columns in (
            (r[..., 0], r[..., 1] + r[..., 2]),
            (r[..., 0] + r[..., 1], r[..., 2]),
        )
    ]
    return np.stack(folded).astype(np.float32)


def repeat_for_group(weight: np.ndarray, group: int, stride: int) -> np.ndarray:
    """(O, I, kh, kw) -> (group * O, I, kh, kw + (group - 1) * stride): shifted copies.

    Few output channels would leave most columns of the matrix unit empty and read every input
    once per tap. With ``group`` neighbours as columns a row of inputs is read once for all of
    them; the zeros that this multiplies are cheaper than the empty columns were.
    """
    o, i, kh, kw = weight.shape
    result = np.zeros((group, o, i, kh, kw + (group - 1) * stride), weight.dtype)
    for g in range(group):
        result[g, ..., g * stride : g * stride + kw] = weight
    return result.reshape(group * o, i, kh, -1)


def choose_group(out_channels: int, kernel_width: int) -> int:
    """Neighbours per row: as many as fill 32 columns, for few channels and wide kernels."""
    if out_channels > 8 or kernel_width < 3:
        return 1
    return 1 << ((32 // out_channels).bit_length() - 1)


def choose_block(channels: int, most: int) -> int:
    """Longest block of the sum that pads the channels by at most an eighth more than 16 would."""
    least = -(-channels // 16) * 16
    for block in (64, 32):
        if block <= most and -(-channels // block) * block <= 1.125 * least:
            return block
    return 16


def pack(
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    stride: int,
    padding: int,
    padding_mode: str,
    upsample: int,
    dtype: str,
    device: str,
    negative_slope: float = 1.0,
    load_slope: float = 1.0,
    gamma: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    eps: float = 1e-5,
) -> PackedWeights:
    """Pack a convolution; the arguments are those of ``fastgen.ops._spec.ConvSpec``."""
    import torch

    out_channels, channels, kh, kw = weight.shape
    size = (kh, kw)
    edge = padding_mode
    scaling, border = upsample, padding
    group = 1 if gamma is not None else choose_group(out_channels, kw)
    folds = upsample == 2 and size == (3, 3) and padding == 1 and stride == 1 and group == 1
    if folds:
        kernels = fold_phases(weight)
        # The pixel that a reflection shows next to the border is the border's own half.
        edge = "clamp" if padding_mode == "reflect" else "zeros"
        upsample, padding = 1, 1
    else:
        kernels = repeat_for_group(weight, group, stride)[None]
    phases, columns, _, kh, kw = kernels.shape

    most = 32 if dtype == "float32" else 64
    block = choose_block(channels, most)
    row_block = max(16, 1 << (kw * channels - 1).bit_length())
    tap_depth = kh * kw * (-(-channels // block) * block)
    by_row = channels < 16 and row_block <= most and kh * row_block < tap_depth
    # (phase, column, row, tap, channel): the order of the sum's index in the kernel.
    kernels = kernels.transpose(0, 1, 3, 4, 2)
    if by_row:
        block = row_block
        kernels = kernels.reshape(phases, columns, kh, kw * channels)
    kernels = np.pad(kernels, [(0, 0)] * (kernels.ndim - 1) + [(0, -kernels.shape[-1] % block)])
    padded = 128 if columns > 64 else max(16, 1 << (columns - 1).bit_length())
    more = -columns % padded
    kernels = np.pad(kernels.reshape(phases, columns, -1), [(0, 0), (0, more), (0, 0)])
    biases = np.pad(np.tile(bias.astype(np.float32), group), (0, more))

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)

    return PackedWeights(
        weight=tensor(kernels.reshape(phases * (columns + more), -1)).to(getattr(torch, dtype)),
        bias=tensor(biases),
        gamma=None if gamma is None else tensor(gamma),
        beta=None if beta is None else tensor(beta),
        dtype=dtype,
        out_channels=out_channels,
        kernel=(kh, kw),
        size=size,
        stride=stride,
        padding=padding,
        upsample=upsample,
        edge=edge,
        scaling=scaling,
        border=border,
        phases=phases,
        group=group,
        by_row=by_row,
        block_k=block,
        negative_slope=negative_slope,
        load_slope=load_slope,
        eps=eps,
    )
