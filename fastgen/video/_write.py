"""Writing frames: encoded files, animated GIF, numbered pictures, pipes."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastgen.video._av import av_module, errors
from fastgen.video._convert import Color, Framer
from fastgen.video._read import Clip, check_rate, is_pattern

__all__ = ["Encoding", "Writer", "check_codec", "encoding_for", "open_encoder", "set_up", "write"]

# Suffix -> codecs that every player of that format has, the first that FFmpeg was built with.
CODECS = {
    ".mp4": ("libx264", "mpeg4"),
    ".m4v": ("libx264", "mpeg4"),
    ".mov": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".webm": ("libvpx-vp9",),
    ".gif": ("gif",),
}
MAX_TICKS = 90_000  # a second; players and codecs get on with no finer time base


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded.

    Attributes:
        codec: FFmpeg's name of the encoder.
        options: its private options.
        rate: mean frames a second.
        time_base: seconds a tick.
        width: pixels.
        height: pixels.
        color: tags to keep.
    """

    codec: str
    options: tuple[tuple[str, str], ...]
    rate: Fraction
    time_base: Fraction
    width: int
    height: int
    color: Color

    @property
    def pixel_format(self) -> str:
        """4:2:0, or 4:4:4 for odd sides, which 4:2:0 cannot have."""
        if self.codec == "gif":
            return "pal8"
        if self.codec in ("ffv1", "libx264rgb"):
            return "bgr0" if self.codec == "ffv1" else "rgb24"
        odd = self.width % 2 or self.height % 2
        return "yuv444p" if odd else "yuv420p"


def check_codec(codec: str | None, suffix: str) -> str:
    """The encoder to use.

    Raises:
        ValueError: an unknown suffix or encoder; both are named, with what there is.
    """
    av = av_module()
    if suffix not in CODECS:
        raise ValueError(
            f"{suffix or 'a name without suffix'} is no video format that is written here; use "
            f"{', '.join(CODECS)}, a pattern such as out/%05d.png, or -"
        )
    for name in (codec,) if codec else CODECS[suffix]:
        try:
            found = av.codec.Codec(name, "w")
        except (ValueError, LookupError):
            continue
        if found.type == "video":
            return str(name)
    known = sorted(n for n in av.codec.codecs_available if "264" in n or "265" in n or "vp9" in n)
    raise ValueError(f"this FFmpeg has no encoder {codec!r}; it has {', '.join(known)}, ...")


def encoding_for(
    clip: Clip, suffix: str, codec: str | None, quality: int | None, preset: str | None
) -> Encoding:
    """An encoding with the clip's size, times and colours.

    Raises:
        ValueError: see :func:`check_codec`; a quality outside 0..63.
    """
    name = check_codec(codec, suffix)
    if quality is not None and not 0 <= quality <= 63:
        raise ValueError(f"quality is {quality}, must be 0 (best) to 63, see the encoder's crf")
    options: dict[str, str] = {}
    if name in ("libx264", "libx264rgb", "libx265"):
        options = {"crf": str(20 if quality is None else quality), "preset": preset or "veryfast"}
        if name == "libx265":
            options["x265-params"] = "log-level=error"
    elif name == "libvpx-vp9":
        options = {"crf": str(32 if quality is None else quality), "b": "0", "row-mt": "1"}
        options |= {"deadline": "realtime" if preset is None else preset, "cpu-used": "6"}
    elif name == "libsvtav1":
        options = {"crf": str(35 if quality is None else quality), "preset": preset or "9"}
    elif name.endswith("_nvenc"):
        options = {"cq": str(23 if quality is None else quality), "preset": preset or "p4"}
    elif quality is not None or preset is not None:
        raise ValueError(f"the encoder {name} has no quality or preset that is known here")
    ticks = 1 / clip.time_base
    time_base = clip.time_base if ticks <= MAX_TICKS else Fraction(1, MAX_TICKS)
    if name == "gif":
        time_base = Fraction(1, 100)
    elif name == "mpeg4" and time_base.denominator > 65535:
        time_base = Fraction(1, 60000)
    return Encoding(
        name, tuple(options.items()), clip.rate, time_base, clip.width, clip.height, clip.color
    )


def open_encoder(container: Any, encoding: Encoding) -> Any:
    """Adds a video stream to an open container and returns it."""
    stream = container.add_stream(
        encoding.codec, rate=encoding.rate, options=dict(encoding.options)
    )
    set_up(stream.codec_context, encoding)
    stream.time_base = encoding.time_base
    return stream


def set_up(context: Any, encoding: Encoding) -> None:
    """Size, times, pixel format and colour tags of an encoder that is not open yet."""
    context.width, context.height = encoding.width, encoding.height
    context.pix_fmt = encoding.pixel_format
    context.time_base = encoding.time_base
    context.framerate = encoding.rate
    # Headers apart from the packets: what mp4 and mkv want, and pieces can share them.
    context.flags |= av_module().codec.context.Flags.global_header
    if encoding.pixel_format.startswith("yuv"):
        color = encoding.color
        context.colorspace, context.color_range = color.space, color.range
        context.color_primaries, context.color_trc = color.primaries, color.transfer


class Writer:
    """Takes frames and writes a video; a context manager.

    The file appears when the writer is closed without an error, complete or not at all.
    """

    def __init__(self, path: str, encoding: Encoding | None, rate: Fraction) -> None:
        self.path = path
        self.frames = 0
        self._encoding = encoding
        self._rate = rate
        self._last: int | None = None
        self._temporary = ""
        self._container: Any = None
        self._stream: Any = None
        if encoding is not None:
            folder, base = os.path.split(os.path.abspath(path))
            os.makedirs(folder, exist_ok=True)
            self._temporary = os.path.join(folder, f".{base}.{os.getpid()}.part")
            suffix = os.path.splitext(path)[1].lower()
            kinds = {".m4v": "mp4", ".mkv": "matroska"}
            with errors(path):
                self._container = av_module().open(
                    self._temporary, "w", format=kinds.get(suffix, suffix[1:])
                )
                self._stream = open_encoder(self._container, encoding)
            self._frame = Framer(encoding)

    def write(self, image: np.ndarray, time: Fraction | float | None = None) -> None:
        """Adds a frame.

        Args:
            image: (H,W,3) uint8 RGB of the video's size.
            time: seconds; later than the frame before. None: at the constant rate.

        Raises:
            ValueError: a wrong size, type or time.
            OSError: the file cannot be written.
        """
        encoding = self._encoding
        check_frame(image, None if encoding is None else (encoding.width, encoding.height))
        moment = self.frames / self._rate if time is None else Fraction(time)
        if encoding is None:
            self._write_picture(image)
        else:
            ticks = round(moment / encoding.time_base)
            if self._last is not None and ticks <= self._last:
                ticks = self._last + 1
            self._last = ticks
            with errors(self.path):
                for packet in self._stream.encode(self._frame(image, ticks)):
                    self._container.mux(packet)
        self.frames += 1

    def _write_picture(self, image: np.ndarray) -> None:
        from PIL import Image

        from fastgen.image import save

        save(Image.fromarray(image), self.path % (self.frames + 1))

    def close(self) -> None:
        """Finishes the file."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            with errors(self.path):
                if self.frames:
                    for packet in self._stream.encode(None):
                        container.mux(packet)
                container.close()
            if not self.frames:
                raise ValueError(f"{self.path}: no frame was written")
            os.replace(self._temporary, self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._container is not None:
            container, self._container = self._container, None
            with contextlib.suppress(Exception):
                container.close()
            self._discard()


def check_frame(image: np.ndarray, size: tuple[int, int] | None) -> None:
    """Checks that a picture is (H,W,3) uint8 of a size (width, height).

    Raises:
        TypeError, ValueError: it is not.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"frame is of type {kind}, must be a uint8 array")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"frame has the shape {image.shape}, must be (H,W,3)")
    if size is not None and image.shape[:2] != size[::-1]:
        raise ValueError(
            f"frame is {image.shape[1]}x{image.shape[0]}, the video is {size[0]}x{size[1]}; all "
            "frames must have one size"
        )


def write(
    path: str | os.PathLike[str],
    *,
    like: Clip | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    codec: str | None = None,
    quality: int | None = None,
    preset: str | None = None,
) -> Writer:
    """Opens a video for writing, without sound.

    Args:
        path: the file; its suffix names the format (.mp4, .mov, .mkv, .webm, .gif), or a
            pattern of numbered pictures (``out/%05d.png``, from 1 on).
        like: a clip whose size, rate, times and colour tags are kept.
        size: (width, height), when there is no ``like`` or another size.
        fps: frames a second, when there is no ``like``; 25 unless given.
        codec: FFmpeg's name of an encoder; H.264, for .webm VP9, unless given.
        quality: the encoder's constant quality (crf), 0 is best; 20 for H.264 unless given.
        preset: the encoder's speed preset; ``veryfast`` for H.264 unless given.

    Raises:
        FastgenError: PyAV is not installed.
        OSError: the file cannot be written.
        ValueError: an unknown suffix or codec, neither ``like`` nor ``size``.
    """
    name = os.fspath(path)
    if size is None and like is None:
        raise ValueError("give like=CLIP or size=(width, height)")
    if size is not None and (len(size) != 2 or min(size) < 1 or max(size) > 16384):
        raise ValueError(f"size is {size}, must be (width, height), each 1 to 16384")
    rate = check_rate(25 if fps is None else fps) if like is None or fps else like.rate
    if is_pattern(name):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        return Writer(name, None, rate)
    if like is None or fps is not None or size is not None:
        width, height = size or (like.width, like.height)  # type: ignore[union-attr]
        color = like.color if like is not None else Color()
        base = like.time_base if like is not None and fps is None else 1 / (rate * 1000)
        like = Clip(name, width, height, rate, base, None, None, color)
    suffix = Path(name).suffix.lower()
    return Writer(name, encoding_for(like, suffix, codec, quality, preset), rate)


class Pipe:
    """Frames on standard output: y4m, or plain RGB bytes."""

    def __init__(self, kind: str, encoding_clip: Clip, pipe: BinaryIO | None = None) -> None:
        self.frames = 0
        self._size = encoding_clip.width, encoding_clip.height
        self._pipe = pipe if pipe is not None else sys.stdout.buffer
        self._kind = kind
        if kind == "y4m":
            width, height = self._size
            rate, color = encoding_clip.rate, encoding_clip.color
            self._frame = Framer(Encoding("rawvideo", (), rate, 1 / rate, width, height, color))
            layout = "444" if width % 2 or height % 2 else "420jpeg"
            full = "XCOLORRANGE=FULL" if color.range == 2 else "XCOLORRANGE=LIMITED"
            head = f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1"
            self._pipe.write(f"{head} C{layout} {full}\n".encode())

    def write(self, image: np.ndarray, time: Fraction | float | None = None) -> None:
        """Writes a frame; times do not exist in these formats."""
        del time
        check_frame(image, self._size)
        if self._kind == "y4m":
            planes = self._frame(image, self.frames).to_ndarray(channel_last=False)
            self._pipe.write(b"FRAME\n")
            self._pipe.write(np.ascontiguousarray(planes).tobytes())
        else:
            self._pipe.write(np.ascontiguousarray(image).tobytes())
        self.frames += 1

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.flush()
