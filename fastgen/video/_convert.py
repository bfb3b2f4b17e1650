"""Decoded pictures as RGB arrays, and RGB arrays as frames to encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.video._av import av_module

if TYPE_CHECKING:
    from fastgen.video._write import Encoding

__all__ = ["Color", "Converter", "Framer", "color_of"]

# Weights of red and blue in luma, by the matrix's number in ITU-T H.273. Unspecified is BT.601, as
# swscale has it.
MATRICES = {
    1: (0.2126, 0.0722),
    2: (0.299, 0.114),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
JPEG = 2  # full range


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
        width, height = size or self.size(picture)
        if picture.rotation % 180:
            width, height = height, width
        image = None
        if (width, height) == (picture.width, picture.height):
            image = _to_rgb(picture)
        if image is None:
            image = self._swscale(picture, width, height)
        quarters = round(picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image

    def _swscale(self, picture: Any, width: int, height: int) -> np.ndarray:
        from av.video.reformatter import ColorRange, Interpolation

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
        return converted.to_ndarray()  # type: ignore[no-any-return]


def _native(name: str, width: int, height: int, space: int) -> Any:
    """Our own conversion, several times as fast as swscale's exact one; None where it cannot.

    Args:
        name: pixel format.
        width: pixels.
        height: pixels.
        space: the matrix's number.
    """
    if name not in ("yuv420p", "yuvj420p") or width % 2 or height % 2 or space not in MATRICES:
        return None
    try:
        from fastgen import _C
    except ImportError:
        return None
    return _C


def _planes(frame: Any, space: int, full: bool) -> tuple[Any, ...]:
    """What the native conversions are told of a frame."""
    y, u, v = (np.frombuffer(plane, np.uint8) for plane in frame.planes)
    rows = [plane.line_size for plane in frame.planes]
    addresses = tuple(int(plane.ctypes.data) for plane in (y, u, v))
    return (addresses, rows[0], rows[1], frame.width, frame.height, *MATRICES[space], full)


def _to_rgb(picture: Any) -> np.ndarray | None:
    """The picture by our own conversion, or None."""
    name, space = picture.format.name, int(picture.colorspace)
    native = _native(name, picture.width, picture.height, space)
    if native is None:
        return None
    image = np.empty((picture.height, picture.width, 3), np.uint8)
    full = name == "yuvj420p" or int(picture.color_range) == JPEG
    native.yuv420_to_rgb(*_planes(picture, space, full), image.ctypes.data, "")
    return image


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
        encoding = self._encoding
        image = np.ascontiguousarray(image)
        if encoding.pixel_format == "pal8":
            frame = _palette_frame(av_module(), image)
        elif encoding.pixel_format == "rgb24":
            frame = av_module().VideoFrame.from_ndarray(image, format="rgb24")
        else:
            frame = self._native(image) or self._swscale(image)
        frame.pts, frame.time_base = ticks, encoding.time_base
        return frame

    def _native(self, image: np.ndarray) -> Any:
        encoding = self._encoding
        height, width = image.shape[:2]
        color = encoding.color
        native = _native(encoding.pixel_format, width, height, color.space)
        if native is None:
            return None
        frame = av_module().VideoFrame(width, height, "yuv420p")
        full = color.range == JPEG
        native.rgb_to_yuv420(*_planes(frame, color.space, full), image.ctypes.data, "")
        frame.colorspace, frame.color_range = color.space, JPEG if full else 1
        return frame

    def _swscale(self, image: np.ndarray) -> Any:
        from av.video.reformatter import ColorRange, Interpolation

        encoding = self._encoding
        is_yuv = encoding.pixel_format.startswith("yuv")
        return self._reformatter.reformat(
            av_module().VideoFrame.from_numpy_buffer(image, format="rgb24"),
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
