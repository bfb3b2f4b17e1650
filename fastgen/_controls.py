"""Pictures of more than one plain run: several styles, another stroke size, a part of the colours.

A frame that needs none of it never comes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastgen import _resize
from fastgen._masks import TOP, Mask, Regions
from fastgen.backends import ImageIO

__all__ = ["Controls", "Part", "check_stroke_size", "network_size", "paint"]

TRAINED = 256  # pixels of the short side of the photos that styles are trained on
MIN_STROKE, MAX_STROKE = 0.01, 16.0


class Part(Protocol):
    """A network that paints a batch."""

    def _paint_batch(
        self, pixels: np.ndarray, strength: float, preserve_color: bool, bgr: bool
    ) -> np.ndarray:
        """Paints (N,H,W,3), uint8 or float32."""

    def _release(self, shape: tuple[int, ...]) -> None:
        """Gives memory back where it is short."""


@dataclass(frozen=True)
class Controls:
    """What is asked for.

    Attributes:
        strength: 0 photo, 1 painting.
        keep: how much of the photo's colours is kept, 0..1.
        bgr: the order of the channels.
        stroke_size: None, or size of the strokes in the picture, see :func:`network_size`.
        weights: of the styles, when there is no mask; not all 0.
        mask: where each style is seen, or None.
        max_pixels: largest width*height that a network runs at for ``stroke_size``.
    """

    strength: float
    keep: float
    bgr: bool
    stroke_size: float | None
    weights: Sequence[float]
    mask: Mask | None
    max_pixels: int


def check_stroke_size(stroke_size: object) -> float:
    """Checks a stroke size.

    Raises:
        TypeError: not a number. ValueError: out of range.
    """
    known = isinstance(stroke_size, int | float | np.integer | np.floating)
    if isinstance(stroke_size, bool) or not known:
        raise TypeError(
            f"stroke_size is {stroke_size!r}, must be a number in {MIN_STROKE:g}..{MAX_STROKE:g} "
            "or None"
        )
    if not MIN_STROKE <= stroke_size <= MAX_STROKE:  # type: ignore[operator]
        raise ValueError(
            f"stroke_size is {stroke_size}, must be in {MIN_STROKE:g}..{MAX_STROKE:g} (1: as large "
            f"in the picture as in training)"
        )
    return float(stroke_size)  # type: ignore[arg-type]


def network_size(
    width: int, height: int, stroke_size: float | None, max_pixels: int
) -> tuple[int, int]:
    """The size (width, height) that a network runs at.

    Strokes have a fixed size in the network's pixels, so their size in the picture is that of the
    network's input: with ``stroke_size=1`` its short side is that of the photos in training, with
    0.5 twice as long.

    Raises:
        ValueError: more pixels than ``max_pixels``.
    """
    if stroke_size is None:
        return width, height
    scale = TRAINED / stroke_size / min(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size[0] * size[1] > max(max_pixels, width * height):
        raise ValueError(
            f"stroke_size {stroke_size:g} makes {size[0]}x{size[1]} pixels for the network, the "
            f"limit is {max_pixels:,}; take a larger stroke_size or raise max_pixels"
        )
    return size


def paint(parts: Sequence[Part | None], pixels: np.ndarray, controls: Controls) -> np.ndarray:
    """Paints a batch.

    Args:
        parts: the styles; None is the photo.
        pixels: (N,H,W,3), uint8 or float32 0..1; not modified.
        controls: what is asked for.

    Returns:
        A new batch of the same shape and dtype.
    """
    height, width = pixels.shape[1:3]
    size = network_size(width, height, controls.stroke_size, controls.max_pixels)
    native = size == (width, height)
    # Strength and colour are part of a network's last step, unless more happens after it.
    fused = native and controls.keep in (0.0, 1.0)
    options = (controls.strength, controls.keep == 1.0) if fused else (1.0, False)
    small = pixels if native else np.stack([_resize.resize(image, *size) for image in pixels])
    luma = ImageIO.LUMA[::-1] if controls.bgr else ImageIO.LUMA

    regions: Regions | None = None
    if controls.mask is not None:
        regions = controls.mask.regions(len(parts), height, width)
        used: Sequence[int] = regions.used
    else:
        used = [index for index, weight in enumerate(controls.weights) if weight > 0]
    pictures = {}
    for index in used:
        part = parts[index]
        if part is None:
            pictures[index] = small
            continue
        pictures[index] = part._paint_batch(small, *options, controls.bgr)
        if index != used[-1]:
            part._release(small.shape)

    def large(picture: np.ndarray) -> np.ndarray:
        """A painting at the photo's size."""
        if native:
            return picture
        if picture is small:
            return pixels
        if size[0] >= width:
            return np.stack([_resize.resize(image, width, height) for image in picture])
        images = zip(pixels, small, picture, strict=True)
        return np.stack([_resize.restore_detail(*image, luma) for image in images])

    if regions is None:
        weights = [controls.weights[index] for index in used]
        result = large(_blend([pictures[index] for index in used], weights))
    else:
        for index in used:
            pictures[index] = large(pictures[index])
        result = _compose(pixels, pictures, regions)
    if result is pixels or result is small:
        result = pixels.copy()
    if not fused and (controls.strength != 1.0 or controls.keep):
        _finish(pixels, result, controls, luma)
    return result


def _blend(pictures: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Weighted mean of batches; one alone is returned as it is."""
    if len(pictures) == 1:
        return pictures[0]
    factors = np.asarray(weights, np.float64) / max(weights)  # a sum of large ones is no float
    factors /= factors.sum()
    result = np.empty_like(pictures[0])
    for number, target in enumerate(result):
        for first, last in _resize.blocks(*target.shape[:2]):
            mixed = np.zeros((last - first, *target.shape[1:]), np.float32)
            for picture, factor in zip(pictures, factors, strict=True):
                mixed += picture[number, first:last] * np.float32(factor)
            _resize.store(mixed, target[first:last])
    return result


def _compose(pixels: np.ndarray, pictures: dict[int, np.ndarray], regions: Regions) -> np.ndarray:
    """Every picture where its map shows it."""
    base = pixels if regions.base is None else pictures[regions.base]
    if not regions.maps:
        return base
    result = np.empty_like(base) if base is pixels else base
    for number, target in enumerate(result):
        for first, last in _resize.blocks(*target.shape[:2]):
            shares = [weights[first:last] / np.float32(TOP) for _, weights in regions.maps]
            for channel in range(3):  # numpy is slow where the last axis has only three values
                place = number, slice(first, last), slice(None), channel
                below = base[place].astype(np.float32)
                mixed = below.copy()
                for share, (index, _) in zip(shares, regions.maps, strict=True):
                    mixed += share * (pictures[index][place] - below)
                _resize.store(mixed, target[place[1:]])
    return result


def _finish(pixels: np.ndarray, result: np.ndarray, controls: Controls, luma: Any) -> None:
    """Colour and strength at the photo's size, in place; see ``ImageIO`` for the formulas."""
    top = 255 if pixels.dtype == np.uint8 else 1
    weights = np.asarray(luma, np.float32)
    for photo, target in zip(pixels, result, strict=True):
        for first, last in _resize.blocks(*target.shape[:2]):
            before = photo[first:last].astype(np.float32)
            after = target[first:last].astype(np.float32)
            if controls.keep:
                change = (after - before) @ weights
                for channel in range(3):
                    kept = (before[:, :, channel] + change).clip(0, top)
                    after[:, :, channel] += np.float32(controls.keep) * (
                        kept - after[:, :, channel]
                    )
            if controls.strength != 1.0:
                after = before + np.float32(controls.strength) * (after - before)
            _resize.store(after, target[first:last])
