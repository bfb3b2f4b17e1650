"""Pictures of another size, in blocks of rows, and detail for a small painting of a large photo.

Arrays are uint8 (0..255) or float32 (0..1). Rows are worked on in blocks, so that a huge picture
needs no more than itself and its result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["blocks", "resize", "resize_rows", "restore_detail", "store"]

_BLOCK = 1 << 20  # pixels that are worked on at a time
_SUPPORT = {"BILINEAR": 1.0, "BICUBIC": 2.0, "LANCZOS": 3.0}  # pixels, of the smaller picture
# How detail follows the painting: windows of 7x7 pixels; contrasts well below 4.5 of 255 are noise.
_RADIUS, _NOISE = 3, 20.0 / 255.0**2


def blocks(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) row of blocks of about a million pixels."""
    rows = max(1, _BLOCK // max(1, width))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def resize(image: np.ndarray, width: int, height: int, kind: str = "LANCZOS") -> np.ndarray:
    """Scales a picture; smaller ones are filtered, so that nothing aliases.

    Args:
        image: (H,W) or (H,W,3), uint8 or float32.
        width: pixels of the result.
        height: pixels of the result.
        kind: ``"BILINEAR"``, ``"BICUBIC"`` or ``"LANCZOS"``.

    Returns:
        An array of the same dtype; floats stay in 0..1.
    """
    result = np.empty((height, width, *image.shape[2:]), image.dtype)
    for first, last in blocks(height, max(width, image.shape[1] * image.shape[0] // height)):
        result[first:last] = resize_rows(image, width, height, first, last, kind)
    return result


def resize_rows(
    image: np.ndarray, width: int, height: int, first: int, last: int, kind: str
) -> np.ndarray:
    """Rows ``first`` to ``last`` of :func:`resize`, from only the rows that they need."""
    low, high = needed(image.shape[0], height, first, last, kind)
    return resize_part(image[low:high], low, image.shape[0], width, height, first, last, kind)


def needed(source: int, height: int, first: int, last: int, kind: str) -> tuple[int, int]:
    """Rows of a picture of ``source`` rows that rows of its scaled picture are made of."""
    scale = source / height
    reach = _SUPPORT[kind] * max(scale, 1.0) + 1.0
    return max(0, math.floor(first * scale - reach)), min(source, math.ceil(last * scale + reach))


def resize_part(
    part: np.ndarray,
    low: int,
    source: int,
    width: int,
    height: int,
    first: int,
    last: int,
    kind: str,
) -> np.ndarray:
    """As :func:`resize_rows`, given the rows from ``low`` on that :func:`needed` asks for."""
    from PIL import Image

    scale = source / height
    box = (0.0, first * scale - low, float(part.shape[1]), min(last * scale - low, len(part)))
    size, method = (width, last - first), Image.Resampling[kind]

    def plane(pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize(size, method, box))

    if part.dtype == np.uint8 or part.ndim == 2:
        result = plane(part)
    else:
        result = np.stack([plane(part[..., c]) for c in range(part.shape[2])], axis=-1)
    return result if part.dtype == np.uint8 else result.clip(0.0, 1.0)


def restore_detail(
    photo: np.ndarray, small: np.ndarray, painted: np.ndarray, luma: Any
) -> np.ndarray:
    """Scales a painting up to its photo and gives it the photo's detail where it follows the photo.

    The detail is what the photo's lightness has and the small photo, scaled up, has not. It is
    multiplied by the slope ``a`` of the guided filter, ``painted = a * small + b`` over each
    window: near 1 along an edge that the painting kept, 0 where its strokes went their own way, so
    that no ghost of the photo shines through. Its mean over a small pixel is 0, so the result,
    scaled down, is the small painting.

    Args:
        photo: (H,W,3), uint8 or float32.
        small: (h,w,3), the photo scaled down.
        painted: (h,w,3), the painting of ``small``.
        luma: weights of the channels.

    Returns:
        (H,W,3) of the same dtype.

    Source: He, Sun, Tang, "Guided Image Filtering", ECCV 2010, Eq. 5; He, Sun, "Fast Guided
    Filter", 2015.
    """
    height, width = photo.shape[:2]
    rows = small.shape[0]
    weights = np.asarray(luma, np.float32) / np.float32(255 if photo.dtype == np.uint8 else 1)
    result = np.empty_like(photo)
    for first, last in blocks(height, width):
        low, high = needed(rows, height, first, last, "BICUBIC")
        place = low, rows, width, height, first, last
        # The slopes of these rows need a window's rows around them.
        above, below = max(0, low - _RADIUS), min(rows, high + _RADIUS)
        grey = small[above:below] @ weights
        slope = _slope(grey, painted[above:below] @ weights)[low - above : high - above]
        gain = resize_part(slope, *place, "BILINEAR")
        coarse = resize_part(grey[low - above : high - above], *place, "BICUBIC")
        detail = gain * (photo[first:last] @ weights - coarse)
        block = resize_part(painted[low:high], *place, "BICUBIC")
        if photo.dtype == np.uint8:
            detail *= np.float32(255)
        for channel in range(3):  # numpy is slow where the last axis has only three values
            store(block[:, :, channel] + detail, result[first:last, :, channel])
    return result


def _slope(guide: np.ndarray, value: np.ndarray) -> np.ndarray:
    """``a`` of ``value = a * guide + b``, least squares over windows, 0..1; (h,w) float32 each."""
    mean_g, mean_v = _mean(guide), _mean(value)
    covariance = _mean(guide * value) - mean_g * mean_v
    variance = _mean(guide * guide) - mean_g * mean_g
    return (covariance / (variance.clip(0) + _NOISE)).clip(0, 1).astype(np.float32)


def _mean(x: np.ndarray) -> np.ndarray:
    """Means over windows of 7x7; the border is repeated."""
    x = np.pad(x, _RADIUS, mode="edge")
    for _ in (0, 1):
        two = x[:-1] + x[1:]
        four = two[:-2] + two[2:]
        # A transposed view: the next turn goes along the other axis, the one after that back.
        x = (four[:-3] + two[4:-1] + x[6:]).T
    return x / np.float32((2 * _RADIUS + 1) ** 2)


def store(values: np.ndarray, target: np.ndarray) -> None:
    """Rounds and clips float32 values to what an array of pixels holds."""
    if target.dtype == np.uint8:
        np.rint(values, out=values)
        np.clip(values, 0, 255, out=values)
    else:
        np.clip(values, 0, 1, out=values)
    target[...] = values
