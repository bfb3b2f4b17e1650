"""Where live frames go: a window, a virtual camera, a stream, a file, a pipe, a function."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.errors import FastgenError
from fastgen.video._av import av_module, errors
from fastgen.video._convert import Color, Framer
from fastgen.video._read import Clip
from fastgen.video._write import Pipe, encoding_for, open_encoder

__all__ = ["Closed", "open_sink"]

FILES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
STREAMS = {"rtsp": "rtsp", "rtmp": "flv", "rtmps": "flv", "udp": "mpegts", "tcp": "mpegts"}
STREAMS |= {"srt": "mpegts", "http": "mpegts", "https": "mpegts"}
KEY_SECONDS = 2  # between key frames of a stream, where viewers can join
TICKS = Fraction(1, 90_000)


class Closed(Exception):
    """The window was closed."""


@dataclass(frozen=True)
class Shape:
    """What the sink gets.

    Attributes:
        width: pixels of its video.
        height: pixels of its video.
        rate: frames a second, about.
        color: tags of the source.
    """

    width: int
    height: int
    rate: Fraction
    color: Color


def open_sink(
    what: str | os.PathLike[str] | Callable[[np.ndarray], Any],
    shape: Shape,
    codec: str | None,
    quality: int | None,
    preset: str | None,
    title: str,
) -> Any:
    """Opens a sink: an object with ``show(image, seconds)`` and ``close()``.

    Raises:
        FastgenError: no display, no virtual camera, a missing package.
        OSError: it cannot be written.
        ValueError: a name that means nothing, an unknown codec.
    """
    if callable(what):
        return _Function(what)
    name = os.fspath(what)
    if name == "none":
        return _Function(lambda image: None)
    if name == "window":
        return Window(shape, title)
    if name == "virtual" or name.startswith("virtual:"):
        return _virtual(name.partition(":")[2] or None, shape)
    if name == "-":
        return _Standard(shape)
    scheme = name.partition("://")[0] if "://" in name else ""
    suffix = Path(name).suffix.lower()
    if scheme and scheme not in STREAMS:
        raise ValueError(f"{name}: {scheme}:// is no stream here; use {', '.join(STREAMS)}")
    if not scheme and suffix != ".m3u8" and suffix not in FILES:
        raise ValueError(
            f"{name} is no output of live; use window, virtual, a URL, -, none, or a file "
            f"({', '.join(FILES)}, .m3u8)"
        )
    return Encoded(name, scheme, suffix, shape, codec, quality, preset)


class _Function:
    def __init__(self, call: Callable[[np.ndarray], Any]) -> None:
        self._call = call

    def show(self, image: np.ndarray, seconds: float) -> None:
        self._call(image)

    def close(self) -> None:
        pass


class _Standard:
    """y4m on standard output."""

    def __init__(self, shape: Shape) -> None:
        self._pipe = Pipe("y4m", _clip("-", shape))

    def show(self, image: np.ndarray, seconds: float) -> None:
        try:
            self._pipe.write(image)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise Closed from None

    def close(self) -> None:
        pass


def _clip(name: str, shape: Shape) -> Clip:
    return Clip(name, shape.width, shape.height, shape.rate, TICKS, None, None, shape.color)


class Encoded:
    """A file, an HLS playlist or a stream.

    A file gets its name when it is closed, and keeps what was written when writing fails: each
    second or so of it can be played by itself.
    """

    def __init__(
        self,
        name: str,
        scheme: str,
        suffix: str,
        shape: Shape,
        codec: str | None,
        quality: int | None,
        preset: str | None,
    ) -> None:
        self.name = name
        self._is_file = not scheme and suffix != ".m3u8"
        likeness = suffix if self._is_file else ".mp4"
        encoding = encoding_for(_clip(name, shape), likeness, codec, quality, preset)
        options = dict(encoding.options)
        gop = max(1, round(shape.rate * KEY_SECONDS))
        if not self._is_file and encoding.codec in ("libx264", "libx265"):
            options["tune"] = "zerolatency"
        # Even sides: what every player of a stream knows.
        self._encoding = replace(encoding, options=tuple(options.items()), time_base=TICKS)
        self._target = name
        kind, container_options = STREAMS.get(scheme, "hls"), {}
        if self._is_file:
            folder, base = os.path.split(os.path.abspath(name))
            os.makedirs(folder, exist_ok=True)
            self._target = os.path.join(folder, f".{base}.{os.getpid()}.part")
            kind = FILES[suffix]
            container_options["flush_packets"] = "1"  # what is written stays when all else fails
            if kind == "matroska":
                container_options["cluster_time_limit"] = "1000"
            if kind in ("mp4", "mov"):
                container_options["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        elif not scheme:
            os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
            container_options |= {
                "hls_time": str(KEY_SECONDS),
                "hls_list_size": "6",
                "hls_flags": "delete_segments+temp_file",
            }
        elif scheme == "rtsp":
            container_options["rtsp_transport"] = "tcp"
        self.frames = 0
        self._last = -1
        self._frame = Framer(self._encoding)
        with errors(name):
            self._container = av_module().open(
                self._target, "w", format=kind, options=container_options, timeout=(10.0, 10.0)
            )
            self._stream = open_encoder(self._container, self._encoding)
            self._stream.codec_context.gop_size = gop

    def show(self, image: np.ndarray, seconds: float) -> None:
        """Encodes a frame.

        Args:
            image: (H,W,3) uint8 of the sink's size.
            seconds: since the first frame.
        """
        self._last = max(self._last + 1, round(seconds / TICKS))
        try:
            with errors(self.name):
                for packet in self._stream.encode(self._frame(image, self._last)):
                    self._container.mux(packet)
        except BaseException:
            self._abandon()
            raise
        self.frames += 1

    def close(self) -> None:
        """Finishes; a file appears under its name."""
        if self._container is None:
            return
        try:
            with errors(self.name):
                if self.frames:
                    for packet in self._stream.encode(None):
                        self._container.mux(packet)
                self._container.close()
        except BaseException:
            self._abandon()
            raise
        self._container = None
        self._keep()

    def _abandon(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(Exception):
                container.close()
            self._keep()

    def _keep(self) -> None:
        if not self._is_file:
            return
        with contextlib.suppress(FileNotFoundError):
            if self.frames and os.path.getsize(self._target):
                os.replace(self._target, self.name)
            else:
                os.unlink(self._target)


# ---------------------------------------------------------------------- virtual cameras


def _virtual(device: str | None, shape: Shape) -> Any:
    if sys.platform != "linux":
        return _OtherVirtual(shape, device)
    if device is None:
        found = loopback_devices()
        if not found:
            raise FastgenError(
                "there is no virtual camera: load v4l2loopback "
                "(sudo modprobe v4l2loopback exclusive_caps=1), or name one: virtual:/dev/video10"
            )
        device = found[0]
    if not os.path.exists(device):
        raise FileNotFoundError(f"{device}: no such device")
    return _Loopback(device, shape)


def loopback_devices(root: Path = Path("/sys/devices/virtual/video4linux")) -> list[str]:
    """Device files of v4l2loopback, in order."""
    numbers = sorted(int(p.name[5:]) for p in root.glob("video*") if p.name[5:].isdigit())
    return [f"/dev/video{n}" for n in numbers]


class _Loopback:
    """A device of v4l2loopback, written by FFmpeg."""

    def __init__(self, device: str, shape: Shape) -> None:
        self._device = device
        base = encoding_for(_clip(device, shape), ".mp4", None, None, None)
        encoding = replace(base, codec="rawvideo", options=(), time_base=TICKS)
        self._frame = Framer(encoding)
        self._last = -1
        with errors(device):
            self._container = av_module().open(device, "w", format="v4l2")
            self._stream = open_encoder(self._container, encoding)

    def show(self, image: np.ndarray, seconds: float) -> None:
        self._last = max(self._last + 1, round(seconds / TICKS))
        with errors(self._device):
            for packet in self._stream.encode(self._frame(image, self._last)):
                self._container.mux(packet)

    def close(self) -> None:
        with contextlib.suppress(av_module().error.FFmpegError):
            self._container.close()


class _OtherVirtual:
    """The virtual camera of OBS, on macOS and Windows."""

    def __init__(self, shape: Shape, device: str | None) -> None:
        try:
            import pyvirtualcam
        except ImportError as error:
            raise FastgenError(
                f"a virtual camera needs OBS and pyvirtualcam ({error}): pip install pyvirtualcam"
            ) from None
        try:
            self._camera = pyvirtualcam.Camera(
                shape.width, shape.height, float(shape.rate), device=device
            )
        except RuntimeError as error:
            raise FastgenError(f"virtual camera: {error}") from None

    def show(self, image: np.ndarray, seconds: float) -> None:
        self._camera.send(image)

    def close(self) -> None:
        self._camera.close()


# ---------------------------------------------------------------------- window


class Window:
    """A window of Tk; Esc, q or its close button end the stream."""

    def __init__(self, shape: Shape, title: str) -> None:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise FastgenError(
                f"a window needs tkinter ({error}); Debian, Ubuntu: apt install python3-tk"
            ) from None
        try:
            self._root = tkinter.Tk(className="fastgen")
        except tkinter.TclError as error:
            raise FastgenError(
                f"no window can be opened here ({error}); write to a file, a stream or virtual"
            ) from None
        self._open = True
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._end)
        for key in ("<Escape>", "q"):
            self._root.bind(key, self._end)
        self._photo = ImageTk.PhotoImage("RGB", (shape.width, shape.height))
        self._label = tkinter.Label(self._root, image=self._photo, borderwidth=0)
        self._label.pack()
        self._root.resizable(False, False)
        self._failure = tkinter.TclError
        self.idle()

    def _end(self, *_: object) -> None:
        self._open = False

    def idle(self) -> None:
        """Lets the window answer to the mouse and the keyboard.

        Raises:
            Closed: it was closed.
        """
        try:
            self._root.update()
        except self._failure:
            self._open = False
        if not self._open:
            raise Closed

    def show(self, image: np.ndarray, seconds: float) -> None:
        """Shows a picture of the window's size."""
        from PIL import Image

        self._photo.paste(Image.fromarray(image))
        self.idle()

    def close(self) -> None:
        """Removes the window."""
        with contextlib.suppress(self._failure):
            self._root.destroy()
