"""Conversions between YCbCr and RGB against the formulas of ITU-T H.273 in double precision."""

from __future__ import annotations

import numpy as np
import pytest

_C = pytest.importorskip("fastgen._C")

from fastgen.video._convert import MATRICES  # noqa: E402

ISAS = [isa for isa in ("avx512", "avx2", "scalar") if isa in _C.isa_available()]


def planes(height: int, width: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height // part, width // part), np.uint8) for part in (1, 2, 2)]


def call(name: str, parts: list[np.ndarray], rgb: np.ndarray, how: tuple, isa: str) -> None:
    addresses = tuple(p.ctypes.data for p in parts)
    rows = parts[0].strides[0], parts[1].strides[0]
    height, width = parts[0].shape
    getattr(_C, name)(addresses, *rows, width, height, *how, rgb.ctypes.data, isa)


def ranges(full: bool) -> tuple[float, float, float]:
    """Black, and what 1 of luma and of chroma are."""
    return (0.0, 255.0, 255.0) if full else (16.0, 219.0, 224.0)


def up(chroma: np.ndarray, axis: int, centred: bool) -> np.ndarray:
    """Twice the samples: between two rows (3/4 and 1/4), or on the even columns."""
    chroma = np.moveaxis(chroma, axis, 0)
    before = np.concatenate([chroma[:1], chroma[:-1]])
    after = np.concatenate([chroma[1:], chroma[-1:]])
    pair = (
        (0.75 * chroma + 0.25 * before, 0.75 * chroma + 0.25 * after)
        if centred
        else (chroma, (chroma + after) / 2)
    )
    return np.moveaxis(np.stack(pair, 1).reshape(-1, *chroma.shape[1:]), 0, axis)


@pytest.mark.parametrize("space", sorted(MATRICES))
@pytest.mark.parametrize("full", [False, True])
def test_to_rgb(space: int, full: bool) -> None:
    kr, kb = MATRICES[space]
    low, luma, chroma = ranges(full)
    for size in ((6, 38), (2, 2), (4, 16), (10, 34)):
        y, u, v = parts = planes(*size, seed=size[1])
        cb, cr = (up(up(c.astype(float), 0, True), 1, False) - 128 for c in (u, v))
        light = (y - low) / luma * 255
        red = light + 2 * (1 - kr) * cr * 255 / chroma
        blue = light + 2 * (1 - kb) * cb * 255 / chroma
        green = (light - kr * red - kb * blue) / (1 - kr - kb)
        expected = np.clip(np.stack([red, green, blue], -1), 0, 255)
        results = []
        for isa in ISAS:
            found = np.zeros((*size, 3), np.uint8)
            call("yuv420_to_rgb", parts, found, (kr, kb, full), isa)
            assert np.abs(found - expected).max() <= 0.53
            results.append(found)
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("space", sorted(MATRICES))
@pytest.mark.parametrize("full", [False, True])
def test_from_rgb(space: int, full: bool) -> None:
    kr, kb = MATRICES[space]
    low, luma, chroma = ranges(full)
    for size in ((6, 38), (2, 2), (4, 16), (10, 34)):
        rgb = np.random.default_rng(size[1]).integers(0, 256, (*size, 3), np.uint8)
        light = rgb @ np.array([kr, 1 - kr - kb, kb])
        rows = (rgb[0::2] + rgb[1::2].astype(float)) / 2
        left = np.concatenate([rows[:, :1], rows[:, 1:-1:2]], 1)
        mean = (left + 2 * rows[:, 0::2] + rows[:, 1::2]) / 4
        gray = mean @ np.array([kr, 1 - kr - kb, kb])
        expected = [
            low + light * luma / 255,
            128 + (mean[..., 2] - gray) / (2 * (1 - kb)) * chroma / 255,
            128 + (mean[..., 0] - gray) / (2 * (1 - kr)) * chroma / 255,
        ]
        results = []
        for isa in ISAS:
            parts = [np.zeros_like(p) for p in planes(*size, seed=0)]
            call("rgb_to_yuv420", parts, rgb, (kr, kb, full), isa)
            for found, want in zip(parts, expected, strict=True):
                assert np.abs(found - np.clip(want, 0, 255)).max() <= 0.53
            results.append(parts)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("full", [False, True])
def test_greys_stay_grey(full: bool) -> None:
    low, luma, _ = ranges(full)
    for value in range(256):
        rgb = np.full((2, 16, 3), value, np.uint8)
        parts = planes(2, 16, seed=0)
        call("rgb_to_yuv420", parts, rgb, (0.299, 0.114, full), "")
        assert {int(x) for x in parts[0].ravel()} == {round(low + value * luma / 255)}
        assert all((p == 128).all() for p in parts[1:])
        again = np.zeros_like(rgb)
        call("yuv420_to_rgb", parts, again, (0.299, 0.114, full), "")
        assert np.abs(again.astype(int) - value).max() <= 1
        assert again.std() == 0


def test_rows_with_gaps() -> None:
    wide = planes(4, 64, seed=1)
    parts = [p[:, : p.shape[1] // 2] for p in wide]
    dense = [np.ascontiguousarray(p) for p in parts]
    results = []
    for chosen in (parts, dense):
        rgb = np.zeros((4, 32, 3), np.uint8)
        call("yuv420_to_rgb", chosen, rgb, (0.2126, 0.0722, False), "")
        results.append(rgb)
    np.testing.assert_array_equal(*results)


def test_wrong_frames() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    parts = planes(4, 4, seed=0)
    address = tuple(p.ctypes.data for p in parts)
    good = [address, 4, 2, 4, 4, 0.299, 0.114, False, rgb.ctypes.data, ""]
    for place, value, text in (
        (3, 3, "even sides of 2 to 65536, not 3x4"),
        (4, 0, "even sides of 2 to 65536, not 4x0"),
        (1, 3, "shorter than the frame"),
        (5, 0.9, "sum below 1"),
        (8, 0, "no memory"),
        (9, "mmx", "mmx"),
    ):
        words = list(good)
        words[place] = value
        for name in ("yuv420_to_rgb", "rgb_to_yuv420"):
            with pytest.raises(ValueError, match=text):
                getattr(_C, name)(*words)
