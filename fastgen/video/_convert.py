"""Decoded pictures as RGB arrays, and RGB arrays as frames to encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.video._av import av_module

if TYPE_CHECKING:
    from fastgen.video._write import Encoding

__all__ = ["Color", "Converter", "Framer", "color_of"]


@dataclass(frozen=True)
class Color:
    """How YCbCr becomes RGB, as numbers of ITU-T H.273; 2 is unspecified."""

    space: int = 2
    range: int = 0
    primaries: int = 2
    transfer: int = 2


def color_of(picture: Any) -> Color:
    """How a decoded picture's YCbCr is meant."""
    return Color(
        int(picture.colorspace),
        int(picture.color_range),
        int(picture.color_primaries),
        int(picture.color_trc),
    )


class Converter:
    """Decoded pictures of one stream as upright RGB arrays.

    Args:
        max_height: larger pictures are scaled down to it; None keeps their size.
    """

    def __init__(self, max_height: int | None = None) -> None:
        from av.video.reformatter import VideoReformatter

        self.max_height = max_height
        # One for the whole stream: setting swscale up costs more than a conversion.
        self._reformatter = VideoReformatter()

    def size(self, picture: Any) -> tuple[int, int]:
        """(width, height) of the upright array."""
        sides = picture.width, picture.height
        width, height = sides[::-1] if picture.rotation % 180 else sides
        if self.max_height is not None and height > self.max_height:
            factor = self.max_height / height
            # Even sides, so that every codec takes them.
            width, height = (max(2, 2 * round(s * factor / 2)) for s in (width, height))
        return width, height

    def __call__(self, picture: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H,W,3) uint8, full range.

        Args:
            picture: decoded.
            size: (width, height), another one than that of :meth:`size`.
        """
        from av.video.reformatter import ColorRange, Interpolation

        width, height = size or self.size(picture)
        if picture.rotation % 180:
            width, height = height, width
        scaled = (width, height) != (picture.width, picture.height)
        converted = self._reformatter.reformat(
            picture,
            format="rgb24",
            width=width,
            height=height,
            interpolation=(Interpolation.AREA if scaled else Interpolation.BILINEAR)
            | Interpolation.ACCURATE_RND
            | Interpolation.FULL_CHR_H_INT,
            src_color_range=picture.color_range or None,
            dst_color_range=ColorRange.JPEG,
            threads=1,  # the network has the other cores
        )
        image: np.ndarray = converted.to_ndarray()
        quarters = round(picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


class Framer:
    """Turns RGB pictures into frames of an encoding's pixel format.

    Args:
        encoding: size, pixel format, colour and time base.
    """

    def __init__(self, encoding: Encoding) -> None:
        from av.video.reformatter import VideoReformatter

        self._encoding = encoding
        # One for all frames: setting swscale up costs more than a conversion.
        self._reformatter = VideoReformatter()

    def __call__(self, image: np.ndarray, ticks: int) -> Any:
        """A frame that is shown at ``ticks`` of the encoding's time base."""
        av, encoding = av_module(), self._encoding
        if encoding.pixel_format == "pal8":
            frame = _palette_frame(av, image)
        else:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if encoding.pixel_format != "rgb24":
                frame = self._convert(frame)
        frame.pts, frame.time_base = ticks, encoding.time_base
        return frame

    def _convert(self, frame: Any) -> Any:
        from av.video.reformatter import ColorRange, Interpolation

        encoding = self._encoding
        is_yuv = encoding.pixel_format.startswith("yuv")
        return self._reformatter.reformat(
            frame,
            format=encoding.pixel_format,
            interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND,
            dst_colorspace=_swscale_space(encoding.color.space) if is_yuv else None,
            src_color_range=ColorRange.JPEG,
            dst_color_range=(encoding.color.range or ColorRange.MPEG) if is_yuv else None,
            threads=1,  # the network has the other cores
        )


def _swscale_space(space: int) -> int | None:
    """swscale's number of a matrix; reading an unspecified one took BT.601, too."""
    return space if space in (1, 4, 5, 6, 7, 9) else None


def _palette_frame(av: Any, image: np.ndarray) -> Any:
    from PIL import Image

    small = Image.fromarray(image).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    colors = np.array(small.getpalette("RGB") or [0, 0, 0], np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0] = 255
    palette[: len(colors), 1:] = colors
    return av.VideoFrame.from_ndarray((np.asarray(small), palette), format="pal8")
