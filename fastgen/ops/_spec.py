"""What the fused convolutions are packed from: one description for every implementation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ConvSpec"]


@dataclass(frozen=True)
class ConvSpec:
    """A convolution with everything known beforehand folded in.

    Without an instance norm ``y = leaky_relu(conv(pad(upsample(x))) + bias + residual)``; with one
    ``y = conv(pad(upsample(load(x)))) + bias`` and its statistics, where
    ``load(x) = leaky_relu(x * scale + shift, load_slope) + residual``. A scale and shift that are
    not given are 1 and 0: the slope is applied all the same.

    Attributes:
        weight: (O, I, kh, kw) float32, batch norm folded in, contiguous.
        bias: (O,) float32, batch norm folded in.
        stride: 1 or 2.
        padding: pixels on every side of the (upsampled) input.
        padding_mode: ``"zeros"`` or ``"reflect"`` (without repeating the border pixel).
        upsample: 1, or 2 for nearest x2 before the padding.
        negative_slope: of the output's LeakyReLU; 0 is ReLU, 1 is none.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``: input, output and residual.
        load_slope: of the LeakyReLU on load, with or without a norm before it.
        gamma: (O,) float32 of the instance norm whose statistics are returned, or None: no
            statistics.
        beta: (O,) float32, as gamma.
        eps: of that instance norm.
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: int = 1
    padding: int = 0
    padding_mode: str = "zeros"
    upsample: int = 1
    negative_slope: float = 1.0
    dtype: str = "float32"
    load_slope: float = 1.0
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    eps: float = 1e-5

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an input of height x width."""
        _, _, kh, kw = self.weight.shape
        rows = (height * self.upsample + 2 * self.padding - kh) // self.stride + 1
        columns = (width * self.upsample + 2 * self.padding - kw) // self.stride + 1
        return rows, columns
