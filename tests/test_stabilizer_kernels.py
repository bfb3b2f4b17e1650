"""The stabilizer's C++ part against numpy, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from stabilizer_reference import Reference

_C = pytest.importorskip("fastgen._C")

ISAS = _C.isa_available()


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random picture, larger than the frames that are cut out of it; float 0..255."""
    rng = np.random.default_rng(seed)
    rows, columns = height + 96, width + 96
    coarse = rng.uniform(20, 235, (rows // 6 + 2, columns // 6 + 2, 3))
    y, x = np.arange(rows) / 6, np.arange(columns) / 6
    j, i = y.astype(int), x.astype(int)
    v, u = (y - j)[:, None, None], (x - i)[None, :, None]
    top = coarse[j][:, i] * (1 - u) + coarse[j][:, i + 1] * u
    bottom = coarse[j + 1][:, i] * (1 - u) + coarse[j + 1][:, i + 1] * u
    return np.ascontiguousarray(top * (1 - v) + bottom * v)


def cut(picture: np.ndarray, height: int, width: int, x: float, y: float) -> np.ndarray:
    """The frame whose first pixel is at (x, y) of a picture: bilinear."""
    i, j = int(np.floor(x)), int(np.floor(y))
    u, v = x - i, y - j
    part = picture[j : j + height + 1, i : i + width + 1]
    part = part[:, :-1] * (1 - u) + part[:, 1:] * u
    return np.rint(part[:-1] * (1 - v) + part[1:] * v).astype(np.uint8)


def clip(height: int, width: int, count: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames of a pan with noise, and other pictures that move with them as their paintings."""
    rng = np.random.default_rng(7)
    picture, painted = scene(height, width), scene(height, width, 1)
    result = []
    for t in range(count):
        # The third frame stands still.
        x, y = 40 + 2.3 * min(t, 2), 40 - 1.4 * min(t, 2)
        frame = cut(picture, height, width, x, y).astype(int)
        frame += rng.integers(-2, 3, frame.shape)
        painting = cut(painted, height, width, x, y).astype(int)
        painting += rng.integers(-25, 26, painting.shape)
        result.append(tuple(np.clip(a, 0, 255).astype(np.uint8) for a in (frame, painting)))
    return result


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sharpen", [False, True])
@pytest.mark.parametrize("size", [(96, 160), (61, 83), (48, 33)])
def test_the_picture_is_that_of_numpy(isa: str, sharpen: bool, size: tuple[int, int]) -> None:
    core, reference = _C.Stabilizer(2, isa), Reference()
    mixed = 0
    for frame, painting in clip(*size):
        follows = core.motion(frame)
        vectors = core.vectors[..., :2] if follows else None
        out = core.blend(painting, 0.6, 0.8, sharpen)
        expected = reference(frame, painting, vectors, 0.6, 0.8, sharpen)
        np.testing.assert_array_equal(out, expected)
        mixed += int((out != painting).sum())
    assert mixed > painting.size  # most of what was compared is no copy


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shift", [(0.0, 0.0), (1.0, 0.0), (-2.5, 1.25), (9.0, -6.0), (-13.0, 10.0)]
)
def test_motion_is_found(isa: str, shift: tuple[float, float]) -> None:
    height, width = 144, 176
    picture = scene(height, width)
    core = _C.Stabilizer(1, isa)
    assert not core.motion(cut(picture, height, width, 40, 40))
    core.blend(np.zeros((height, width, 3), np.uint8), 0.5, 0.5)
    assert core.motion(cut(picture, height, width, 40 + shift[0], 40 + shift[1]))
    vectors = core.vectors
    assert vectors.shape == (9, 11, 3)
    # What is in the middle was in the frame before, wherever the border came from.
    inner = vectors[3:-3, 3:-3, :2].reshape(-1, 2)
    assert np.abs(np.median(inner, axis=0) - shift).max() < 0.1
    assert (np.abs(inner - shift).max(-1) < 0.5).mean() > 0.9


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bytes_for_the_same_motion(isa: str) -> None:
    still = [clip(50, 70)[0][0]] * 3
    results = []
    for name in (isa, "scalar"):
        core = _C.Stabilizer(1, name)
        for frame, (_, painting) in zip(still, clip(50, 70), strict=False):
            core.motion(frame)
            results.append(core.blend(painting, 0.5, 0.9))
    for a, b in zip(results[:3], results[3:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_all_sizes(isa: str, threads: int) -> None:
    """Nothing is read or written outside (the sanitizer build sees it), and bytes are reached."""
    rng = np.random.default_rng(3)
    core = _C.Stabilizer(threads, isa)
    for height, width in [(1, 1), (1, 2), (2, 1), (3, 3), (1, 300), (300, 1), (15, 17), (16, 16)]:
        first = rng.integers(0, 256, (height, width, 3), np.uint8)
        for shift in (0, 1, 7):
            frame = np.roll(first, shift, axis=1)
            core.motion(frame)
            out = core.blend(frame, 0.7, 0.9)
            assert out.shape == frame.shape
        # A picture that stays is reached exactly, whatever was before.
        target = rng.integers(0, 256, (height, width, 3), np.uint8)
        for _ in range(60):
            core.motion(frame)
            out = core.blend(target, 0.7, 0.9, False)
        np.testing.assert_array_equal(out, target)


def test_wrong_arrays() -> None:
    core = _C.Stabilizer(1)
    frame = np.zeros((8, 8, 3), np.uint8)
    for wrong in (frame[..., :2], frame.astype(np.float32), frame[:, ::2], frame[None]):
        with pytest.raises(ValueError, match="the frame must be contiguous"):
            core.motion(wrong)
    with pytest.raises(ValueError, match="another size"):
        core.blend(frame, 0.5, 0.5)
    core.motion(frame)
    with pytest.raises(ValueError, match="another size"):
        core.blend(frame[:4].copy(), 0.5, 0.5)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        core.blend(frame, 1.5, 0.5)
    with pytest.raises(ValueError, match="contiguous rows"):
        core.blend(frame[..., 0], 0.5, 0.5)
    with pytest.raises(ValueError, match="isa is"):
        _C.Stabilizer(1, "sse9")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("period", [1, 2, 4, 5])
def test_the_shift_is_the_motion_of_most_of_the_picture(isa: str, period: int) -> None:
    picture = scene(96, 160)
    core = _C.Stabilizer(2, isa)
    assert core.shift(period) == (0, 0)
    # How far the picture moves right and down: the frame is cut further left and up.
    for move in ((0, 0), (1.2, 0.1), (-1.1, 2.9), (2.0, -6.2)):
        core.reset()
        core.motion(cut(picture, 96, 160, 40, 40))
        core.motion(cut(picture, 96, 160, 40 - move[0], 40 - move[1]))
        assert core.shift(period) == tuple(round(m) % period for m in move)
        assert not core.motion(255 - cut(picture, 96, 160, 10, 10))
        assert core.shift(period) == (0, 0)  # a cut
    for wrong in (0, 65):
        with pytest.raises(ValueError, match=r"1\.\.64"):
            core.shift(wrong)


def test_a_part_of_a_larger_painting() -> None:
    outs = []
    for large in (False, True):
        core = _C.Stabilizer(2)
        for frame, painting in clip(61, 83):
            core.motion(frame)
            if large:
                around = np.zeros((70, 90, 3), np.uint8)
                around[3:64, 5:88] = painting
                painting = around[3:64, 5:88]
            outs.append(core.blend(painting, 0.6, 0.7))
    half = len(outs) // 2
    for one, other in zip(outs[:half], outs[half:], strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="contiguous rows"):
        core.blend(around[3:64, 5:88, ::-1], 0.5, 0.5)


def test_less_is_mixed_where_the_grid_goes_along() -> None:
    rng = np.random.default_rng(3)
    picture, far = scene(96, 160), []
    paintings = [rng.integers(100, 156, (96, 160, 3)).astype(np.uint8) for _ in range(2)]
    for move, period in ((0.0, 4), (2.0, 1), (2.0, 4)):  # only the last one moves the grid
        core = _C.Stabilizer(2)
        for t, painting in enumerate(paintings):
            core.motion(cut(picture, 96, 160, 40 - move * t, 40))
            core.shift(period)
            out = core.blend(painting, 0.5, 0.5, False)
        far.append(np.abs(out.astype(int) - paintings[-1]).mean())
    assert far[2] < 0.75 * min(far[:2])
