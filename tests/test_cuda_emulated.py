"""The CUDA kernels, compiled for the host against an emulation that checks every access.

What runs is the shipped path from tensors to results: ``fastgen/ops/_cuda.py``, the bindings and the
kernels' sources. Only the device itself is emulated (tests/cuda_emulation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import cuda_emulation
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastgen.ops import _cuda
from fastgen.ops._cuda_pack import pack
from fastgen.ops._spec import ConvSpec

LARGE, SMALL = 227 * 1024, 99 * 1024  # shared memory of a block: sm_90, sm_86
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Rounding of the result, relative; fp32 sums and 3xTF32 come on top.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture(scope="module")
def native() -> Any:
    reason = cuda_emulation.why_not()
    if reason:
        pytest.skip(reason)
    return cuda_emulation.load()


class Card:
    """Calls functions of ``_cuda`` on the emulated device."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.limits = (4, LARGE)  # multiprocessors
        self.results: set[int] = set()

    def address(self, tensor: torch.Tensor | None) -> int:
        if tensor is None:
            return 0
        start = tensor.untyped_storage().data_ptr()
        name = f"{tensor.dtype} {tuple(tensor.shape)}"
        size = tensor.numel() * tensor.element_size()
        self.native.declare(tensor.data_ptr(), size, start in self.results, name)
        return tensor.data_ptr()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        self.native.forget_all()
        self.results.clear()
        for arg in args:
            if isinstance(arg, _cuda.PackedCuda):
                for tensor in arg.tensors:
                    self.address(tensor)
        return function(*args)


@pytest.fixture
def card(native: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    card = Card(native)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs).fill_(float("nan"))
        card.results.add(tensor.untyped_storage().data_ptr())
        return tensor

    monkeypatch.setattr(_cuda, "_native", lambda: native)
    monkeypatch.setattr(_cuda, "_limits", lambda device: card.limits)
    monkeypatch.setattr(_cuda, "_stream", lambda device: 0)
    monkeypatch.setattr(_cuda, "_on", lambda device: nullcontext())
    monkeypatch.setattr(_cuda, "_address", card.address)
    monkeypatch.setattr(torch, "empty", poisoned)
    yield card
    native.forget_all()


def random(shape: tuple[int, ...], dtype: str, seed: int, channels_last: bool = False) -> Any:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    return x.to(memory_format=torch.channels_last) if channels_last else x


def assert_close(out: torch.Tensor, ref: torch.Tensor, dtype: str, depth: int) -> None:
    """Element by element: rounding of the result, and of fp32 sums of `depth` products."""
    assert out.shape == ref.shape
    sums = 2.0**-22 * depth**0.5 * float(ref.abs().mean() + 1)
    limit = (ROUNDING[dtype] * 1.01 + 2.0**-22 * depth**0.5) * ref.abs() + sums
    excess = (out.double() - ref).abs() - limit
    assert bool((excess <= 0).all()), f"off by {float(excess.max()):.3g} more than {sums:.3g}"


# ---------------------------------------------------------------------- the emulation itself


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_barrier", "race"),
        ("read_past_end", "bytes into 'in'"),
        ("write_input", "an input"),
        ("divergent_barrier", "a barrier is reached by"),
        ("uninitialised", "never written"),
        ("not_waited", "was not waited for"),
        ("divergent_mma", "at once"),
        ("shared_overrun", "shared access"),
    ],
)
def test_emulation_finds_the_mistake(native: Any, name: str, message: str) -> None:
    x, y = np.arange(64, dtype=np.float32), np.full(64, np.nan, np.float32)
    native.forget_all()
    native.declare(x.ctypes.data, x.nbytes, False, "in")
    native.declare(y.ctypes.data, y.nbytes, True, "out")
    native.run_faulty("correct", x.ctypes.data, y.ctypes.data)
    assert np.array_equal(y, x[::-1])
    with pytest.raises(RuntimeError, match=message):
        native.run_faulty(name, x.ctypes.data, y.ctypes.data)
    native.forget_all()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_emulated_fragments(native: Any, code: int) -> None:
    """Operands placed by the tables of the PTX manual give the matrix product."""
    depth = 8 if code == 0 else 16
    generator = np.random.default_rng(code)
    a, b = (generator.integers(-8, 8, s).astype(np.float32) for s in ((16, depth), (depth, 8)))
    c = np.full((16, 8), np.nan, np.float32)
    kind = [torch.float32, torch.float16, torch.bfloat16][code]
    tensors = [torch.from_numpy(m).to(kind).contiguous() for m in (a, b)]
    native.forget_all()
    for t in tensors:
        native.declare(t.data_ptr(), t.numel() * t.element_size(), False, "operand")
    native.declare(c.ctypes.data, c.nbytes, True, "product")
    native.run_fragments(code, tensors[0].data_ptr(), tensors[1].data_ptr(), c.ctypes.data)
    assert np.array_equal(c, a @ b)
    native.forget_all()


def test_emulated_half(native: Any) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    finite = bits[np.isfinite(bits.view(np.float16))]
    assert all(native.half_round_trip(int(b)) == b for b in finite[::7])
    values = np.random.default_rng(0).normal(0, 1, 3000) * 10.0 ** np.arange(-10, 5).repeat(200)
    expected = values.astype(np.float32).astype(np.float16).view(np.uint16)
    assert [native.float_to_half(float(np.float32(v))) for v in values] == expected.tolist()


# ---------------------------------------------------------------------- index arithmetic


def test_source_index(native: Any) -> None:
    for size, upsample, pad in ((1, 1, 0), (2, 1, 1), (5, 1, 4), (7, 2, 3), (3, 2, 5)):
        large = np.arange(size).repeat(upsample)
        window = range(-pad, size * upsample + pad)
        for border, mode in ((0, "constant"), (1, "reflect")):
            expected = np.pad(large + 1, pad, mode) - 1
            got = [native.source_index(u, size, upsample, border) for u in window]
            assert got == expected.tolist()
        clamped = np.pad(np.arange(size), pad, "edge")
        positions = range(-pad, size + pad)
        assert [native.source_index(u, size, 1, 2) for u in positions] == clamped.tolist()


def test_offsets_beyond_32_bits(native: Any) -> None:
    for image, pixel, channel in ((70_000, 65_535, 511), (1, 2**31 - 1, 2**20)):
        strides = (512 * 65_536, 512, 1)
        expected = image * strides[0] + pixel * strides[1] + channel
        assert expected > 2**31
        assert native.element(image, strides[0], pixel, strides[1], channel, 1) == expected
        planar = image * strides[0] + pixel + channel * 2**31
        assert native.element(image, strides[0], pixel, 1, channel, 2**31) == planar


def test_workspace_beyond_32_bits(native: Any) -> None:
    assert native.gram_matrix_workspace(1, 64, 2**40, False, 1, 2**22, LARGE) > 2**31


# ---------------------------------------------------------------------- gram_matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "multiprocessors"),
    [
        ((1, 3, 19, 27), 4),
        ((2, 64, 24, 40), 8),
        ((1, 13, 1, 1), 4),
        ((2, 72, 8, 16), 3),
        ((1, 130, 16, 24), 12),
        ((1, 200, 9, 7), 1),
    ],
)
def test_gram_matrix(
    card: Card, shape: tuple[int, ...], multiprocessors: int, dtype: str, channels_last: bool
) -> None:
    card.limits = (multiprocessors, LARGE)
    x = random(shape, dtype, 1, channels_last)
    n, c, height, width = shape
    out = card(_cuda.gram_matrix, x)
    rows = x.double().reshape(n, c, -1)
    ref = rows @ rows.transpose(1, 2) / (c * height * width)
    scale = c * height * width
    assert_close(out * scale, ref * scale, "float32", height * width)
    assert torch.equal(out, out.transpose(1, 2))
    assert torch.equal(out, card(_cuda.gram_matrix, x, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gram_matrix_large_tile(card: Card, dtype: str, channels_last: bool) -> None:
    """128 x 128 tiles, on and off the diagonal; a small card falls back to 64."""
    x = random((1, 136, 12, 24), dtype, 2, channels_last)
    rows = x.double().reshape(1, 136, -1)
    ref = rows @ rows.transpose(1, 2)
    for multiprocessors, shared in ((2, LARGE), (1, SMALL)):
        card.limits = (multiprocessors, shared)
        before = card.native.counts()["blocks"]
        out = card(_cuda.gram_matrix, x) * x.numel()
        assert card.native.counts()["blocks"] > before
        assert_close(out, ref, "float32", 288)


def test_gram_matrix_large_mean(card: Card) -> None:
    x = random((1, 16, 32, 32), "float32", 3) + 1000
    ref = x.double().reshape(16, -1)
    ref = ref @ ref.T / x.numel()
    out = card(_cuda.gram_matrix, x)[0]
    assert float((out - ref).abs().max() / ref.abs().max()) < 3e-6


# ---------------------------------------------------------------------- concat_features


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("style", ["map", "map of one", "vector", "vector of one"])
@pytest.mark.parametrize(
    "sizes", [(2, 16, 8, 8, 16), (3, 5, 3, 7, 7), (2, 12, 2, 5, 20), (1, 1, 1, 1, 1), (2, 6, 4, 1, 2)]
)
def test_concat_features(
    card: Card, sizes: tuple[int, ...], style: str, channels_last: bool, dtype: str
) -> None:
    n, channels, style_channels, height, width = sizes
    content = random((n, channels, height, width), dtype, 4, channels_last)
    batch = 1 if "one" in style else n
    if "map" in style:
        other = random((batch, style_channels, height, width), dtype, 5, channels_last)
        full = other.expand(n, -1, -1, -1)
    else:
        other = random((batch, style_channels), dtype, 5)
        full = other[:, :, None, None].expand(n, -1, height, width)
    out = card(_cuda.concat_features, content, other)
    assert torch.equal(out, torch.cat([content, full], 1))
    assert out.is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


# ---------------------------------------------------------------------- convolutions


def make_spec(outputs: int, inputs: int, kernel: int, dtype: str = "float32", **kw: Any) -> ConvSpec:
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


def run_conv(card: Card, spec: ConvSpec, x: torch.Tensor, residual: Any = None, tile: int = -1) -> Any:
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
@pytest.mark.parametrize("case", ["3x3 reflect", "3x3 zeros, several blocks of channels", "1x1",
                                  "3x3 stride 2", "phases reflect", "phases of 4x4, odd output",
                                  "9x9, photo", "9x9, to a photo", "odd channels"])
@pytest.mark.parametrize("what", ["norm", "norm and residual"])
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
    scale, shift = norm_inputs(2, inputs, 15)
    residual = random(tuple(x.shape), dtype, 17, channels_last) if "residual" in what else None
    handle = _cuda.pack_conv(spec, "cpu")
    y, out_scale, out_shift = card(_cuda.conv_norm, x, handle, scale, shift, residual)
    ref = reference(loaded(x, spec, scale, shift, residual), spec)
    # Where the fp32 norm lands next to a rounding boundary, an operand differs by one bit.
    slack = 16 if dtype == "float32" else 1
    operand = 0.0 if dtype == "float32" else ROUNDING[dtype] * 0.1 * kernel * inputs**0.5
    worst = (y.double() - ref).abs() - ROUNDING[dtype] * 1.01 * ref.abs()
    assert float(worst.max()) <= operand + slack * 2e-5
    assert_statistics(ref, spec, out_scale, out_shift, 1e-5 + operand * 0.05)


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


def test_statistics_of_one_pixel(card: Card) -> None:
    one = np.ones(3, np.float32)
    spec = make_spec(3, 4, 1, "float32", gamma=one, beta=one * 2)
    x = random((2, 4, 1, 1), "float32", 19)
    y, scale, shift = card(_cuda.conv_norm, x, _cuda.pack_conv(spec, "cpu"), None, None, None)
    assert torch.allclose(y[:, :, 0, 0] * scale + shift, torch.full((2, 3), 2.0), atol=1e-3)


# ---------------------------------------------------------------------- the plan


def plan(native: Any, spec: ConvSpec, n: int, height: int, width: int, card: tuple[int, int]) -> Any:
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
