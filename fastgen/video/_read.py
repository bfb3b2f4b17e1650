"""Frames of a video file, an animation, numbered pictures or a pipe."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import sys
import time as clock
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from fastgen.image import DEFAULT_MAX_PIXELS
from fastgen.video._av import av_module, errors
from fastgen.video._convert import Color, Converter, color_of

__all__ = ["Clip", "Frame", "is_pattern", "pictures", "read", "resample", "state_of"]

DEFAULT_RATE = Fraction(25)
_NUMBER = re.compile(r"%(0?)(\d*)d")


@dataclass
class Frame:
    """One picture of a clip.

    Attributes:
        image: (H,W,3) uint8 RGB, upright.
        time: seconds, as the file has it (an exact fraction).
        index: 0 for the first frame that was read.
    """

    image: np.ndarray
    time: Fraction
    index: int


@dataclass
class Clip:
    """An open source of frames; iterate once, use as a context manager or ``close()``.

    Attributes:
        name: what was opened.
        width: pixels of an upright frame.
        height: pixels of an upright frame.
        rate: mean frames a second.
        time_base: seconds of one tick of the frames' times.
        frames: number of frames (of files that only say how long they are, an estimate), or None.
        duration: seconds, or None.
        color: how its YCbCr is meant.
        damaged: packets that could not be decoded so far.
    """

    name: str
    width: int
    height: int
    rate: Fraction
    time_base: Fraction
    frames: int | None
    duration: float | None
    color: Color = field(default_factory=Color)
    damaged: int = 0
    _frames: Any = None
    _close: Any = None

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; reading on is an error."""
        if self._frames is not None:
            self._frames.close()
        if self._close is not None:
            self._close()
            self._close = None


def read(
    source: str | os.PathLike[str],
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    max_height: int | None = None,
    raw: tuple[int, int] | None = None,
    hwaccel: str | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Clip:
    """Opens a video for reading, frame by frame, in constant memory.

    Frames are upright (the file's rotation is applied) and RGB. A packet that cannot be decoded
    is skipped and counted (``Clip.damaged``).

    Args:
        source: a file or URL that FFmpeg knows (also an animated GIF), a pattern of numbered
            pictures (``frames/%05d.png``), or ``"-"`` for standard input (y4m, or with ``raw``
            plain RGB bytes).
        start: skip frames before this second.
        end: stop before this second.
        fps: frames a second of numbered pictures and raw pipes (25 unless given); of other
            sources frames are dropped or repeated to give this rate.
        max_height: larger frames are scaled down to it, in proportion.
        raw: (width, height) of plain rgb24 frames on standard input.
        hwaccel: decode on this device type of FFmpeg (``"cuda"``, ``"vaapi"``, ...).
        max_pixels: largest width*height of a frame.

    Raises:
        FastgenError: PyAV is not installed.
        OSError: the file cannot be read.
        ValueError: no video in it, a damaged header, or a wrong argument.
    """
    name = os.fspath(source)
    first, last = _seconds("start", start), _seconds("end", end)
    if first is not None and last is not None and last <= first:
        raise ValueError(f"end is {float(last):g} s, must be after start, {float(first):g} s")
    rate = None if fps is None else check_rate(fps)
    if max_height is not None and (not isinstance(max_height, int) or max_height < 2):
        raise ValueError(f"max_height is {max_height!r}, must be an integer of at least 2")
    if raw is not None and name != "-":
        raise ValueError("raw frames are read from standard input only; the source must be '-'")
    if raw is not None:
        clip = _raw(raw, rate or DEFAULT_RATE, sys.stdin.buffer)
    elif is_pattern(name):
        clip = _pictures(name, rate or DEFAULT_RATE, max_pixels)
    else:
        clip = _container(name, max_height, hwaccel, max_pixels)
        if rate is not None:
            clip._frames = resample(clip._frames, rate)
            clip.frames = None if clip.duration is None else round(clip.duration * rate)
            clip.rate, clip.time_base = rate, 1 / rate
    if first is not None or last is not None:
        clip._frames = _between(clip._frames, first or Fraction(0), last)
        if clip.duration is not None:
            until = clip.duration if last is None else min(float(last), clip.duration)
            clip.duration = max(0.0, until - float(first or 0))
            clip.frames = round(clip.duration * clip.rate)
    return clip


def check_rate(fps: float) -> Fraction:
    """A frame rate as a fraction; 29.97 and the like become multiples of 1000/1001."""
    number = isinstance(fps, int | float | Fraction) and not isinstance(fps, bool)
    if not number or not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps!r}, must be a number above 0 and at most 1000")
    exact = Fraction(fps).limit_denominator(1001)
    broadcast = Fraction(round(fps * 1.001) * 1000, 1001)
    return broadcast if abs(broadcast - Fraction(fps)) < Fraction(1, 200) and fps % 1 else exact


def _seconds(what: str, value: float | None) -> Fraction | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise TypeError(f"{what} is {value!r}, must be seconds")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{what} is {value!r}, must be seconds of at least 0")
    # 0.2 as the user means it, not as binary floating point has it
    return Fraction(value).limit_denominator(1_000_000)


def _between(frames: Iterator[Frame], start: Fraction, end: Fraction | None) -> Iterator[Frame]:
    index = 0
    for frame in frames:
        if end is not None and frame.time >= end:
            break
        if frame.time >= start:
            yield Frame(frame.image, frame.time, index)
            index += 1


def resample(frames: Iterator[Frame], rate: Fraction) -> Iterator[Frame]:
    """At each tick the newest frame that is due: frames are repeated or left out."""
    held: Frame | None = None
    tick = 0
    for frame in frames:
        while held is not None and tick / rate < frame.time:
            yield Frame(held.image, tick / rate, tick)
            tick += 1
        if held is None:
            tick = math.ceil(frame.time * rate)
        held = frame
    if held is not None and tick / rate <= held.time:
        yield Frame(held.image, tick / rate, tick)


# ---------------------------------------------------------------------- files


def _container(name: str, max_height: int | None, hwaccel: str | None, max_pixels: int) -> Clip:
    av = av_module()
    options: dict[str, Any] = {}
    if hwaccel is not None:
        options["hwaccel"] = _hwaccel(hwaccel)
    shown = "standard input" if name == "-" else name
    if name != "-" and "://" not in name and not os.path.exists(name):
        raise FileNotFoundError(f"{name}: no such file")
    with errors(shown):
        container = av.open(sys.stdin.buffer if name == "-" else name, **options)
    if not container.streams.video:
        container.close()
        raise ValueError(f"{shown}: has no video")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    context = stream.codec_context
    if context.width * context.height > max_pixels:
        container.close()
        raise ValueError(
            f"{shown}: frames of {context.width}x{context.height} are above the limit of "
            f"{max_pixels} pixels; raise max_pixels for a file that you trust"
        )
    decoder = _decode(container, stream, shown, Converter(max_height), max_pixels)
    first = next(decoder, None)
    if first is None:
        container.close()
        raise ValueError(f"{shown}: no frame of its video can be decoded")
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    duration = None
    if stream.duration is not None and stream.time_base:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / 1_000_000
    height, width = first[0].image.shape[:2]
    clip = Clip(
        shown,
        width,
        height,
        Fraction(rate),
        Fraction(stream.time_base),
        stream.frames or (round(duration * rate) if duration else None),
        duration,
        first[1],
        _close=container.close,
    )

    def frames() -> Iterator[Frame]:
        yield first[0]
        for frame, _, clip.damaged in decoder:
            yield frame

    clip.damaged = first[2]
    clip._frames = frames()
    return clip


def _hwaccel(device: str) -> Any:
    av = av_module()
    from av.codec.hwaccel import HWAccel, hwdevices_available

    known = hwdevices_available()
    if device not in known:
        raise ValueError(f"hwaccel {device!r} is unknown; this FFmpeg has {', '.join(known)}")
    try:
        return HWAccel(device_type=device, allow_software_fallback=False)
    except (ValueError, LookupError, av.error.FFmpegError) as error:
        raise ValueError(f"hwaccel {device!r} cannot be used here: {error}") from None


def pictures(
    container: Any, stream: Any, name: str, max_pixels: int
) -> Iterator[tuple[Any, Fraction, int]]:
    """Decoded pictures, their times, and the packets so far that could not be decoded.

    Args:
        container: open for reading.
        stream: its video.
        name: for messages.
        max_pixels: largest width*height.

    Raises:
        ValueError: a larger picture, or the source fails.
    """
    av = av_module()
    damaged = 0
    last: Fraction | None = None
    step = 1 / Fraction(stream.average_rate or DEFAULT_RATE)
    tick = Fraction(stream.time_base)
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            decoded = packet.decode()
        except av.error.EOFError:
            return
        except av.error.BlockingIOError:
            clock.sleep(
                0.005
            )  # a camera that has nothing new; only some systems wait by themselves
            packets = container.demux(stream)
            continue
        except (av.error.InvalidDataError, av.error.ValueError):
            damaged += 1
            continue
        except av.error.FFmpegError as error:
            raise ValueError(f"{name}: {error.strerror or error}") from None
        for picture in decoded:
            if picture.width * picture.height > max_pixels:
                raise ValueError(
                    f"{name}: a frame of {picture.width}x{picture.height} is above the limit of "
                    f"{max_pixels} pixels"
                )
            time = picture.pts * Fraction(picture.time_base) if picture.pts is not None else None
            if time is None:
                time = Fraction(0) if last is None else last + step
            elif last is not None and time <= last:
                time = last + tick  # broken files; a later time is needed for the writer
            last = time
            yield picture, time, damaged


def _decode(
    container: Any, stream: Any, name: str, convert: Converter, max_pixels: int
) -> Iterator[tuple[Frame, Color, int]]:
    """Frames, how their colours are meant, and the damaged packets so far."""
    found = pictures(container, stream, name, max_pixels)
    for index, (picture, time, damaged) in enumerate(found):
        yield Frame(convert(picture), time, index), color_of(picture), damaged


# ---------------------------------------------------------------------- numbered pictures, pipes


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern of numbered pictures such as ``frames/%05d.png``."""
    return len(_NUMBER.findall(os.path.basename(name))) == 1


def state_of(name: str) -> list[Any] | None:
    """What changes when a file, or one of numbered pictures, is written anew; None of the rest."""
    if os.path.exists(name):
        state = os.stat(name)
        return [state.st_size, state.st_mtime_ns]
    if not is_pattern(name):
        return None
    digest = hashlib.sha256()
    paths = _numbered(name)
    for path in paths:
        state = os.stat(path)
        digest.update(f"{os.path.basename(path)}\0{state.st_size} {state.st_mtime_ns}\n".encode())
    return [len(paths), digest.hexdigest()]


def _numbered(pattern: str) -> list[str]:
    """The pictures of a pattern, by their numbers."""
    folder, base = os.path.split(pattern)
    match = _NUMBER.search(base)
    assert match is not None
    head, tail = base[: match.start()], base[match.end() :]
    number = re.compile(re.escape(head) + r"(\d+)" + re.escape(tail))
    found = {}
    for path in glob.glob(os.path.join(glob.escape(folder), glob.escape(head) + "*")):
        hit = number.fullmatch(os.path.basename(path))
        if hit and base % int(hit[1]) == os.path.basename(path):
            found[int(hit[1])] = path
    return [found[k] for k in sorted(found)]


def _pictures(pattern: str, rate: Fraction, max_pixels: int) -> Clip:
    from fastgen.image import decode

    paths = _numbered(pattern)
    if not paths:
        raise FileNotFoundError(f"{pattern}: no picture matches")

    def load(path: str) -> np.ndarray:
        return np.asarray(decode(path, max_pixels=max_pixels).convert("RGB"))

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(paths):
            image = load(path)
            if image.shape[:2] != (height, width):
                raise ValueError(
                    f"{path}: {image.shape[1]}x{image.shape[0]}, but the first picture is "
                    f"{width}x{height}; all must have one size"
                )
            yield Frame(image, index / rate, index)

    height, width = load(paths[0]).shape[:2]
    seconds = float(len(paths) / rate)
    return Clip(pattern, width, height, rate, 1 / rate, len(paths), seconds, _frames=frames())


def _raw(size: tuple[int, int], rate: Fraction, pipe: BinaryIO) -> Clip:
    width, height = size
    if min(size) < 1 or width * height > DEFAULT_MAX_PIXELS:
        raise ValueError(f"raw size {width}x{height} must be 1x1 to {DEFAULT_MAX_PIXELS} pixels")
    count = width * height * 3

    def frames() -> Iterator[Frame]:
        index = 0
        while data := pipe.read(count):
            if len(data) < count:
                raise ValueError(
                    f"standard input: ends {len(data)} bytes into a frame of {count}; is the "
                    f"size {width}x{height} right?"
                )
            image = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            yield Frame(image, index / rate, index)
            index += 1

    name = "standard input"
    return Clip(name, width, height, rate, 1 / rate, None, None, _frames=frames())
