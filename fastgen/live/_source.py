"""Where live frames come from: a camera, a stream, a file that plays like a camera, an iterator."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.image import DEFAULT_MAX_PIXELS
from fastgen.video._av import av_module, errors
from fastgen.video._convert import Color, color_of
from fastgen.video._read import DEFAULT_RATE, pictures

__all__ = ["Settings", "Source"]

OPEN_SECONDS, READ_SECONDS = 10.0, 5.0  # without an answer, or a frame, the source counts as gone
FIRST_WAIT, LONGEST_WAIT = 0.5, 5.0  # seconds between two attempts to connect again
MAX_SPEED = 1000  # frames a second that a file's rate may say


@dataclass(frozen=True)
class Settings:
    """What is asked of a source.

    Attributes:
        size: (width, height) that a camera is asked for.
        fps: frames a second that a camera is asked for.
        loop: play a file again and again.
        reconnect: wait for a camera or stream that is gone, and go on.
        options: FFmpeg's options of the input (``rtsp_transport``, ``input_format``, ...).
        max_pixels: largest width*height of a frame.
    """

    size: tuple[int, int] | None = None
    fps: float | None = None
    loop: bool = False
    reconnect: bool = False
    options: dict[str, str] = field(default_factory=dict)
    max_pixels: int = DEFAULT_MAX_PIXELS


class Source:
    """A live source; iterate once.

    Args:
        what: ``"camera"``, ``"camera:N"``, a device file, a URL, a video file, or an iterable of
            (H,W,3) uint8 RGB arrays.
        settings: what is asked of it.
        tell: called with a line when the source is gone and when it is back.

    Attributes:
        name: for messages.
        rate: mean frames a second, once the first frame was read.
        color: how its YCbCr is meant.
        damaged: packets that could not be decoded.
        reconnects: how often it was opened again.
    """

    def __init__(
        self, what: str | os.PathLike[str] | Iterable[Any], settings: Settings, tell: Callable
    ) -> None:
        self.rate = DEFAULT_RATE
        self.color = Color()
        self.damaged = self.reconnects = 0
        self._settings, self._tell = settings, tell
        self._stop = threading.Event()
        self._arrays: Iterator[Any] | None = None
        self._open: Callable[[], Any] | None = None
        self._endless = self._is_file = False
        if not isinstance(what, str | os.PathLike):
            self.name = "the iterator"
            self._arrays = iter(what)
            return
        self.name = os.fspath(what)
        device = camera(self.name)
        if device is not None:
            self._endless = True
            self._open = lambda: _open_camera(*device, settings)  # type: ignore[misc]
        elif "://" in self.name:
            self._open = lambda: _open_stream(self.name, settings)
        else:
            if not os.path.exists(self.name):
                raise FileNotFoundError(
                    f"{self.name}: no such file; a camera is called camera or camera:1"
                )
            self._is_file = True
            self._open = lambda: _open(self.name, None, dict(settings.options), None)

    def stop(self) -> None:
        """Ends the iteration before the next frame."""
        self._stop.set()

    def __iter__(self) -> Iterator[Any]:
        """Decoded pictures, each when it is there or due.

        Raises:
            OSError, ValueError: it cannot be opened or is gone, and reconnecting was not asked for.
        """
        if self._arrays is not None:
            yield from self._from_arrays()
            return
        assert self._open is not None
        seen, wait = False, FIRST_WAIT
        while not self._stop.is_set():
            try:
                for picture in self._once(self._open):
                    if wait > FIRST_WAIT or (seen and self._waiting):
                        self._tell(f"{self.name}: is back")
                    seen, wait, self._waiting = True, FIRST_WAIT, False
                    yield picture
                gone = f"{self.name}: ended"
                if self._is_file and self._settings.loop:
                    continue
                if not self._endless and (self._is_file or not self._settings.reconnect):
                    return
                failure: Exception = OSError(f"{self.name}: the camera is gone")
            except (OSError, ValueError) as error:
                failure, gone = error, str(error)
            if self._stop.is_set():
                return
            if not self._settings.reconnect or self._is_file or not seen:
                raise failure
            if not self._waiting:
                self._tell(f"{gone}; waiting for it")
            self._waiting = True
            self.reconnects += 1
            self._stop.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    _waiting = False

    def _from_arrays(self) -> Iterator[Any]:
        assert self._arrays is not None
        av = av_module()
        for image in self._arrays:
            good = isinstance(image, np.ndarray) and image.dtype == np.uint8
            if not good or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                kind = getattr(image, "shape", type(image).__name__)
                raise ValueError(f"a frame is {kind}, must be a (H,W,3) uint8 array")
            if self._stop.is_set():
                return
            yield av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")

    def _once(self, opener: Callable[[], Any]) -> Iterator[Any]:
        """The pictures until the source ends, in real time if it is a file."""
        with opener() as container:
            if not container.streams.video:
                raise ValueError(f"{self.name}: has no video")
            stream = container.streams.video[0]
            # Threads over frames hold as many frames back.
            stream.thread_type = "AUTO" if self._is_file else "SLICE"
            if not self._is_file:
                stream.codec_context.flags |= av_module().codec.context.Flags.low_delay
            rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
            self.rate = Fraction(rate) if 0 < rate <= MAX_SPEED else DEFAULT_RATE
            before = self.damaged
            found = pictures(container, stream, self.name, self._settings.max_pixels)
            began: float | None = None
            with errors(self.name):
                for picture, at, damaged in found:
                    self.damaged = before + damaged
                    self.color = color_of(picture)
                    if self._is_file:
                        began = time.perf_counter() - float(at) if began is None else began
                        self._stop.wait(max(0.0, began + float(at) - time.perf_counter()))
                    if self._stop.is_set():
                        return
                    yield picture
            if self._is_file and self._settings.loop and began is not None:
                self._stop.wait(float(1 / self.rate))  # the last picture's own time


def camera(name: str) -> tuple[str, str] | None:
    """FFmpeg's format and address of a camera, or None when the name is of something else."""
    match = re.fullmatch(r"camera(?::(.+))?", name)
    if match is None:
        return ("v4l2", name) if re.fullmatch(r"/dev/video\d+", name) else None
    which = match[1] or "0"
    if sys.platform == "darwin":
        return "avfoundation", f"{which}:none" if ":" not in which else which
    if sys.platform == "win32":
        return "dshow", f"video={which}"
    return "v4l2", f"/dev/video{which}" if which.isdigit() else which


def _open_camera(kind: str, address: str, settings: Settings) -> Any:
    if kind == "v4l2" and not os.path.exists(address):
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        raise FileNotFoundError(f"{address}: no such camera; cameras here: {there}")
    if kind == "dshow" and address == "video=0":
        raise ValueError(
            "cameras have names on Windows: camera:NAME; "
            "'ffmpeg -list_devices true -f dshow -i dummy' lists them"
        )
    options = {}
    if settings.size is not None:
        options["video_size"] = "{}x{}".format(*settings.size)
    if settings.fps is not None:
        options["framerate"] = f"{settings.fps:g}"
    elif kind == "avfoundation":
        options["framerate"] = "30"  # its own default is one that no camera has
    return _open(address, kind, options | settings.options, (OPEN_SECONDS, READ_SECONDS))


def _open_stream(name: str, settings: Settings) -> Any:
    # What was read while the format was found out comes at once; all but the last is dropped.
    options = {"rtsp_transport": "tcp"} if name.startswith("rtsp") else {}
    return _open(name, None, options | settings.options, (OPEN_SECONDS, READ_SECONDS))


def _open(
    name: str, kind: str | None, options: dict[str, str], timeout: tuple[float, float] | None
) -> Any:
    av = av_module()
    try:
        with errors(name):
            return av.open(name, format=kind, options=options, timeout=timeout)
    except ValueError as error:
        if kind is not None and kind not in av.formats_available:
            raise ValueError(f"{name}: this PyAV was built without {kind}: {error}") from None
        raise
