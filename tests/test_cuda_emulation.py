"""The emulation of a card finds mistakes; Gram matrices and concatenation on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_emulation.card import DTYPES, LARGE, SMALL, Card, assert_close, random

from fastgen.ops import _cuda

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
    "sizes",
    [(2, 16, 8, 8, 16), (3, 5, 3, 7, 7), (2, 12, 2, 5, 20), (1, 1, 1, 1, 1), (2, 6, 4, 1, 2)],
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


# ---------------------------------------------------------------------- availability


class NoCard:
    def __init__(self, count: int) -> None:
        self.count = count

    def device_count(self) -> tuple[int, str | None]:
        return self.count, None if self.count else "no CUDA-capable device is detected"


def test_why_not_names_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'fastgen._cuda'")

    monkeypatch.setattr(_cuda, "_native", missing)
    assert "fastgen._cuda is not built" in str(_cuda.why_not("gram_matrix"))
    monkeypatch.setattr(_cuda, "_native", lambda: NoCard(0))
    assert "no CUDA-capable device" in str(_cuda.why_not("gram_matrix"))
    monkeypatch.setattr(_cuda, "_native", lambda: NoCard(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch cannot use CUDA" in str(_cuda.why_not("gram_matrix"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, fine in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert (_cuda.why_not("gram_matrix") is None) == fine


def test_bindings_refuse_what_no_kernel_takes(native: Any) -> None:
    limits = (4, LARGE)
    with pytest.raises(ValueError, match="a size is 0"):
        native.gram_matrix_workspace(1, 0, 5, False, 0, *limits)
    with pytest.raises(ValueError, match="too large"):
        native.gram_matrix_workspace(2**30, 2**20, 2**20, False, 0, *limits)
    with pytest.raises(ValueError, match="workspace is missing"):
        native.gram_matrix(16, 16, 0, 1, 8, 4096, False, 0, *limits, 0)
    with pytest.raises(ValueError, match="a size is wrong"):
        native.concat_features(16, 16, 16, 3, 4, 4, 9, 2, 9, False, 4, 0)
    with pytest.raises(ValueError, match="not aligned"):
        native.concat_features(17, 16, 16, 1, 4, 4, 9, 1, 9, False, 4, 0)
