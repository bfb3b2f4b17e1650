"""The CUDA convolutions, compiled for the host against an emulation that checks every access.

What runs is the shipped path from tensors to results: ``fastgen/ops/_cuda.py``, the bindings and
the kernels' sources. Only the device itself is emulated (tests/cuda_emulation).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_emulation.card import DTYPES, LARGE, ROUNDING, SMALL, Card, assert_close, random

from fastgen.errors import ImplUnavailable
from fastgen.ops import _cuda
from fastgen.ops._cuda_pack import pack
from fastgen.ops._spec import ConvSpec


def make_spec(
    outputs: int, inputs: int, kernel: int, dtype: str = "float32", **kw: Any
) -> ConvSpec:
    """Weights of few bits: sums of phases and their rounding to 16 bits are exact."""
    generator = np.random.default_rng(outputs * 31 + inputs * 7 + kernel)
    weight = generator.integers(-8, 9, (outputs, inputs, kernel, kernel)).astype(np.float32) / 16
    bias = generator.normal(0, 1, outputs).astype(np.float32)
    return ConvSpec(weight, bias, dtype=dtype, **kw)


def loaded(
    x: torch.Tensor,
    spec: ConvSpec,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    z = x.double()
    if scale is not None and shift is not None:
        z = z * scale.double()[:, :, None, None] + shift.double()[:, :, None, None]
    z = torch.where(z > 0, z, z * spec.load_slope)
    if residual is not None:
        z = z + residual.double()
    return z.to(DTYPES[spec.dtype]).double()  # the operands of the tensor cores


def reference(z: torch.Tensor, spec: ConvSpec, residual: torch.Tensor | None = None) -> Any:
    if spec.upsample == 2:
        z = F.interpolate(z, scale_factor=2, mode="nearest")
    if spec.padding:
        mode = "reflect" if spec.padding_mode == "reflect" else "constant"
        z = F.pad(z, [spec.padding] * 4, mode=mode)
    weight, bias = torch.from_numpy(spec.weight), torch.from_numpy(spec.bias)
    y = F.conv2d(z, weight.double(), bias.double(), spec.stride)
    if residual is not None:
        y = y + residual.double()
    return torch.where(y > 0, y, y * spec.negative_slope)


def run_conv(
    card: Card, spec: ConvSpec, x: torch.Tensor, residual: Any = None, tile: int = -1
) -> Any:
    handle = dataclasses.replace(_cuda.pack_conv(spec, "cpu"), tile=tile)
    out = card(_cuda.conv, x, handle, residual)
    depth = int(np.prod(spec.weight.shape[1:]))
    assert_close(out, reference(x.double(), spec, residual), spec.dtype, depth)
    return out


CASES = {  # inputs, height, width, outputs, kernel, stride, upsample, padding, mode
    "3x3 reflect": (32, 9, 20, 40, 3, 1, 1, 1, "reflect"),
    "3x3 zeros, several blocks of channels": (80, 9, 11, 24, 3, 1, 1, 1, "zeros"),
    "3x3 stride 2": (24, 17, 22, 16, 3, 2, 1, 1, "reflect"),
    "4x4 stride 2": (16, 12, 19, 8, 4, 2, 1, 1, "zeros"),
    "1x1": (72, 13, 9, 48, 1, 1, 1, 0, "zeros"),
    "1x1 stride 2": (200, 9, 10, 8, 1, 2, 1, 0, "zeros"),
    "1x1 padded": (8, 5, 6, 8, 1, 1, 1, 2, "zeros"),
    "5x5, few outputs": (16, 12, 14, 3, 5, 1, 1, 2, "reflect"),
    "9x9, photo": (3, 18, 21, 16, 9, 1, 1, 4, "reflect"),
    "9x9, to a photo": (40, 10, 18, 3, 9, 1, 1, 4, "reflect"),
    "15x15 stride 2": (5, 19, 17, 8, 15, 2, 1, 7, "zeros"),
    "2x2 unpadded": (8, 6, 9, 8, 2, 1, 1, 0, "zeros"),
    "odd channels": (13, 7, 9, 21, 3, 1, 1, 1, "zeros"),
    "one pixel": (4, 1, 1, 3, 3, 1, 1, 1, "zeros"),
    "phases reflect": (24, 7, 9, 16, 3, 1, 2, 1, "reflect"),
    "phases zeros": (40, 5, 8, 8, 3, 1, 2, 1, "zeros"),
    "phases of 4x4, odd output": (8, 5, 4, 8, 4, 1, 2, 1, "zeros"),
    "phases of 5x5": (3, 6, 5, 6, 5, 1, 2, 2, "zeros"),
    "phases unpadded": (8, 6, 5, 8, 3, 1, 2, 0, "reflect"),
    "upsampled, reflection of 2": (8, 6, 5, 8, 5, 1, 2, 2, "reflect"),
    "upsampled, stride 2": (8, 6, 7, 8, 3, 2, 2, 1, "zeros"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_conv(card: Card, case: str, channels_last: bool, dtype: str) -> None:
    inputs, height, width, outputs, kernel, stride, upsample, padding, mode = CASES[case]
    spec = make_spec(
        outputs,
        inputs,
        kernel,
        dtype,
        stride=stride,
        upsample=upsample,
        padding=padding,
        padding_mode=mode,
        negative_slope=0.2,
    )
    x = random((1, inputs, height, width), dtype, 6, channels_last)
    out = run_conv(card, spec, x)
    assert out.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", range(6))
def test_conv_tiles(card: Card, tile: int, dtype: str) -> None:
    """Every tile configuration: several blocks, tails of pixels and outputs, batch, residual."""
    spec = make_spec(72, 40, 3, dtype, padding=1, padding_mode="reflect", negative_slope=0.0)
    channels_last = tile % 2 == 0
    x = random((2, 40, 11, 13), dtype, 7, channels_last)
    residual = random((1 + tile % 2, 72, 11, 13), dtype, 8, channels_last)
    run_conv(card, spec, x, residual, tile)


@pytest.mark.parametrize("channels_last", [False, True])
def test_conv_residual_and_slopes(card: Card, channels_last: bool) -> None:
    for slope in (0.0, 0.2, 1.0):
        for batch in (1, 2):
            spec = make_spec(9, 6, 3, "float32", padding=1, negative_slope=slope)
            x = random((2, 6, 5, 7), "float32", 9, channels_last)
            run_conv(card, spec, x, random((batch, 9, 5, 7), "float32", 10, not channels_last))


def test_conv_unaligned_and_strided(card: Card) -> None:
    """A view that starts at an odd element and one that is not dense."""
    spec = make_spec(8, 8, 3, "float16", padding=1)
    flat = random((1 + 8 * 5 * 6,), "float16", 11)
    view = flat[1:].view(1, 5, 6, 8).permute(0, 3, 1, 2)
    assert view.data_ptr() % 16 != 0
    run_conv(card, spec, view)
    run_conv(card, spec, random((1, 8, 5, 12), "float16", 12)[..., ::2])


def norm_inputs(n: int, channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    scale = random((n, channels), "float32", seed).abs() + 0.5
    return scale, random((n, channels), "float32", seed + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        "3x3 reflect",
        "3x3 zeros, several blocks of channels",
        "1x1",
        "3x3 stride 2",
        "phases reflect",
        "phases of 4x4, odd output",
        "9x9, photo",
        "9x9, to a photo",
        "odd channels",
    ],
)
@pytest.mark.parametrize("what", ["norm", "norm and residual", "slope"])
def test_conv_norm(card: Card, what: str, case: str, channels_last: bool, dtype: str) -> None:
    inputs, height, width, outputs, kernel, stride, upsample, padding, mode = CASES[case]
    gamma, beta = (t[0].numpy() for t in norm_inputs(1, outputs, 13))
    spec = make_spec(
        outputs,
        inputs,
        kernel,
        dtype,
        stride=stride,
        upsample=upsample,
        padding=padding,
        padding_mode=mode,
        load_slope=0.1,
        gamma=gamma,
        beta=beta,
    )
    x = random((2, inputs, height, width), dtype, 14, channels_last)
    scale, shift = norm_inputs(2, inputs, 15) if "norm" in what else (None, None)
    residual = random(tuple(x.shape), dtype, 17, channels_last) if "residual" in what else None
    handle = _cuda.pack_conv(spec, "cpu")
    y, out_scale, out_shift = card(_cuda.conv_norm, x, handle, scale, shift, residual)
    ref = reference(loaded(x, spec, scale, shift, residual), spec)
    # Where the fp32 norm lands next to a rounding boundary, an operand differs by one bit.
    slack = 16 if dtype == "float32" else 1
    operand = 0.0 if dtype == "float32" else ROUNDING[dtype] * 0.1 * kernel * inputs**0.5
    # Every product of 8 (fp32: a third of that) rounds the sum towards zero.
    towards_zero = 2.0**-23 * 3 / 8 * inputs * kernel**2 * ref.abs().max()
    worst = (y.double() - ref).abs() - ROUNDING[dtype] * 1.01 * ref.abs() - towards_zero
    assert float(worst.max()) <= operand + slack * 2e-5
    assert_statistics(ref, spec, out_scale, out_shift, 2e-5 + operand * 0.05)


def assert_statistics(
    ref: torch.Tensor, spec: ConvSpec, scale: torch.Tensor, shift: torch.Tensor, limit: float
) -> None:
    assert spec.gamma is not None
    assert spec.beta is not None
    mean, variance = ref.mean((2, 3)), ref.var((2, 3), unbiased=False)
    expected = torch.from_numpy(spec.gamma).double() / (variance + spec.eps).sqrt()
    assert float(((scale - expected) / expected).abs().max()) < limit
    offset = torch.from_numpy(spec.beta).double() - mean * expected
    size = (mean * expected).abs() + 1
    assert float(((shift - offset) / size).abs().max()) < limit


@pytest.mark.parametrize("tile", range(6))
def test_statistics_of_a_large_mean(card: Card, tile: int) -> None:
    """Means a thousand times the deviation: what a plain sum of squares would lose."""
    one = np.ones(24, np.float32)
    spec = make_spec(24, 8, 1, "float32", gamma=one, beta=one)
    spec = dataclasses.replace(spec, bias=np.full(24, 3000, np.float32))
    x = random((2, 8, 23, 31), "float32", 18, True)
    handle = dataclasses.replace(_cuda.pack_conv(spec, "cpu"), tile=tile)
    _, scale, shift = card(_cuda.conv_norm, x, handle, None, None, None)
    ref = reference(x.double(), spec)
    assert_statistics(ref, spec, scale, shift, 1e-3)  # the sums themselves carry 3000 * 2^-24
    again = card(_cuda.conv_norm, x, handle, None, None, None)
    assert torch.equal(scale, again[1])
    assert torch.equal(shift, again[2])


def test_too_large_for_the_card(card: Card) -> None:
    card.limits = (4, 8 * 1024)
    handle = _cuda.pack_conv(make_spec(8, 8, 5, "float16"), "cpu")
    with pytest.raises(ImplUnavailable, match="bytes of shared memory"):
        card(_cuda.conv, random((1, 8, 9, 9), "float16", 20), handle)


def test_statistics_of_one_pixel(card: Card) -> None:
    one = np.ones(3, np.float32)
    spec = make_spec(3, 4, 1, "float32", gamma=one, beta=one * 2)
    x = random((2, 4, 1, 1), "float32", 19)
    y, scale, shift = card(_cuda.conv_norm, x, _cuda.pack_conv(spec, "cpu"), None, None, None)
    assert torch.allclose(y[:, :, 0, 0] * scale + shift, torch.full((2, 3), 2.0), atol=1e-3)


# ---------------------------------------------------------------------- the plan


def plan(
    native: Any, spec: ConvSpec, n: int, height: int, width: int, card: tuple[int, int]
) -> Any:
    arrays = pack(spec)
    conv = native.Conv(**arrays.geometry, weights=16, bias=16, gamma=0, beta=0)
    return conv.plan(n, height, width, *card)


def test_plan_fits_every_card(native: Any) -> None:
    for shared in (SMALL, 163 * 1024, LARGE):
        for kernel, stride in ((1, 1), (3, 1), (3, 2), (4, 2), (5, 1), (9, 1)):
            for inputs, outputs in ((3, 32), (32, 3), (64, 64), (256, 256), (13, 24)):
                for dtype in DTYPES:
                    spec = make_spec(
                        outputs, inputs, kernel, dtype, stride=stride, padding=kernel // 2
                    )
                    rows, columns, *_, used = plan(native, spec, 1, 96, 128, (132, shared))
                    assert (rows, columns) == spec.output_size(96, 128)
                    assert used <= shared


def test_plan_follows_the_size(native: Any) -> None:
    """Few outputs take the narrow tile, much work the large one, little work small ones."""
    tiles = {
        name: plan(native, spec, 1, size, size, (132, LARGE))[3]
        for name, spec, size in (
            ("narrow", make_spec(3, 32, 9, "float16", padding=4), 256),
            ("large", make_spec(256, 256, 3, "float16", padding=1), 256),
            ("little", make_spec(256, 256, 3, "float16", padding=1), 32),
        )
    }
    assert tiles["narrow"] == 5
    assert tiles["large"] == 0
    assert tiles["little"] in (2, 3)


@pytest.mark.parametrize(
    ("height", "width", "shared", "message"),
    [
        (40_000, 40_000, LARGE, "outside 1..2\\^28 pixels"),
        (64, 64, 8 * 1024, "bytes of shared memory"),
        (1, 1, LARGE, "larger than the padded input"),
    ],
)
def test_plan_refuses(native: Any, height: int, width: int, shared: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(native, make_spec(8, 8, 5, "float16"), 1, height, width, (132, shared))
