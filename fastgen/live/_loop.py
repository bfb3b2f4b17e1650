"""``stylize_live``: capturing, painting and showing at the same time, newest frame first."""

from __future__ import annotations

import itertools
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from fastgen._stream import KEPT, StreamStats, newest
from fastgen.image import DEFAULT_MAX_PIXELS
from fastgen.live._scale import Ladder
from fastgen.live._sink import Closed, Shape, open_sink
from fastgen.live._source import Settings, Source
from fastgen.stabilizer import Stabilizer, stabilizer_strength
from fastgen.stylizer import Style, Stylizer
from fastgen.video._convert import Converter

__all__ = ["LiveStats", "stylize_live"]

STAGES = ("in", "paint", "show")
_OVER = object()
IDLE = 0.02  # seconds after which a window without a new frame answers to the user


@dataclass
class LiveStats(StreamStats):
    """What a live stream did so far; latency is from capture to shown.

    Attributes:
        width: pixels of the output.
        height: pixels of the output.
        painted: (width, height) at which the network works now.
        changes: how often that size was changed.
        damaged: packets that could not be decoded.
        reconnects: how often the source was opened again.
        ended: why it ended: ``"source"``, ``"closed"``, ``"interrupted"`` or ``"duration"``.
    """

    width: int = 0
    height: int = 0
    painted: tuple[int, int] = (0, 0)
    changes: int = 0
    damaged: int = 0
    reconnects: int = 0
    ended: str = ""
    _stages: dict[str, deque[float]] = field(
        default_factory=lambda: {name: deque(maxlen=KEPT) for name in STAGES}, repr=False
    )

    def stage(self, name: str) -> float:
        """Median seconds that a stage is busy with a frame; NaN before one.

        Args:
            name: ``"in"`` (colours and size), ``"paint"`` or ``"show"`` (size, colours, encoding).
        """
        known = self._stages[name]
        return median(known) if known else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Everything in simple types, latencies in milliseconds."""

        def ms(seconds: float) -> float | None:
            return None if math.isnan(seconds) else round(1e3 * seconds, 2)

        return {
            "frames": self.frames,
            "dropped": self.dropped,
            "seconds": round(self.seconds, 3),
            "fps": round(self.fps, 2),
            "width": self.width,
            "height": self.height,
            "painted": list(self.painted),
            "changes": self.changes,
            "damaged": self.damaged,
            "reconnects": self.reconnects,
            "ended": self.ended,
            "latency_ms": {f"p{p}": ms(self.latency(p)) for p in (50, 95, 99)},
            "stage_ms": {name: ms(self.stage(name)) for name in STAGES},
        }


@dataclass
class _Result:
    image: np.ndarray
    arrived: float


def stylize_live(
    source: str | os.PathLike[str] | Iterable[np.ndarray] = "camera",
    sink: str | os.PathLike[str] | Callable[[np.ndarray], Any] = "window",
    style: Style | Stylizer = "starry_night.small",
    *,
    strength: float = 1.0,
    preserve_color: bool = False,
    stabilize: bool | float = False,
    target_fps: float | None = None,
    max_height: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    loop: bool = False,
    reconnect: bool = False,
    duration: float | None = None,
    options: dict[str, str] | None = None,
    codec: str | None = None,
    quality: int | None = None,
    preset: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Callable[[LiveStats], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> LiveStats:
    """Paints what a camera or stream shows now; frames that come too fast are dropped.

    Call it in the main thread if the sink is a window. It returns when the source or ``duration``
    ends, the window is closed, or on Ctrl-C; a file is complete then. When the source or the
    sink fails, what was recorded is kept, too.

    Args:
        source: ``"camera"`` (the first), ``"camera:1"``, a device file, an RTSP, HTTP or other URL
            that FFmpeg reads, a video file, which plays in real time, or an iterable of (H,W,3)
            uint8 RGB arrays.
        sink: ``"window"``, ``"virtual"`` (a virtual camera: v4l2loopback, or OBS's;
            ``"virtual:/dev/video10"`` names one), a file (.mp4, .mov, .mkv, .webm), an HLS playlist
            (.m3u8), a URL to send to (rtsp, rtmp, srt, udp, ...), ``"-"`` (y4m on standard
            output), ``"none"``, or a function that is called with each (H,W,3) uint8 array.
        style: name, checkpoint, a dict of styles and weights for a blend, or a ``Stylizer`` to
            use.
        strength: 0 the source, 1 the painting.
        preserve_color: keep the source's colours and take only lightness from the painting.
        stabilize: less flicker, by a :class:`fastgen.Stabilizer`: True, or its strength in 0..1.
        target_fps: make the network's picture smaller, by up to 0.3 of the sides, while this rate
            is not held; the output keeps its size.
        max_height: larger frames are scaled down first.
        size: (width, height) that a camera is asked for.
        fps: frames a second that a camera is asked for.
        loop: play a file again and again.
        reconnect: wait for a camera or stream that is gone and go on with it.
        duration: seconds after which to end.
        options: FFmpeg's options of the input, such as ``{"input_format": "mjpeg"}``.
        codec: as for :func:`fastgen.stylize_video`.
        quality: as for :func:`fastgen.stylize_video`.
        preset: as for :func:`fastgen.stylize_video`.
        backend: as for :func:`fastgen.stylize`.
        precision: as for :func:`fastgen.stylize`.
        threads: CPU threads of the network.
        max_pixels: largest width*height of a frame.
        progress: called after each frame that is shown.
        tell: called with a line when the source is gone and when it is back.

    Raises:
        FastgenError: PyAV is not installed, no display, no virtual camera.
        ValueError, TypeError: a wrong argument, a source without video.
        OSError: the source or the sink cannot be opened, or is gone.
    """
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration is {duration!r}, must be seconds above 0")
    Ladder(64, 64, target_fps)  # a wrong rate is told before a camera is opened
    settings = Settings(size, fps, loop, reconnect, dict(options or {}), max_pixels)
    origin = Source(source, settings, tell or (lambda line: None))
    if not isinstance(style, Stylizer):
        style = Stylizer(style, backend=backend, precision=precision, threads=threads)
    paint = _painter(style, stabilize, strength, preserve_color)
    stats = LiveStats()
    pictures = iter(origin)
    try:
        first = next(pictures, None)
        if first is None:
            raise ValueError(f"{origin.name}: no frame")
        convert = Converter(max_height)
        stats.width, stats.height = (max(2, side // 2 * 2) for side in convert.size(first))
        ladder = Ladder(stats.width, stats.height, target_fps)
        stats.painted = ladder.size
        shape = Shape(stats.width, stats.height, origin.rate, origin.color)
        output = open_sink(sink, shape, codec, quality, preset, f"fastgen: {style.info.style}")
        stream = newest(itertools.chain([first], pictures), stats)
        try:
            _run(stream, convert, paint, ladder, output, stats, origin, duration, progress)
        finally:
            output.close()
    finally:
        origin.stop()
        stats.damaged, stats.reconnects = origin.damaged, origin.reconnects
    return stats


def _painter(
    style: Stylizer, stabilize: bool | float, strength: float, preserve_color: bool
) -> Callable[[np.ndarray], np.ndarray]:
    steadiness = stabilizer_strength(stabilize)
    target: Any = Stabilizer(style, strength=steadiness) if steadiness else style

    def paint(image: np.ndarray) -> np.ndarray:
        return target(image, strength=strength, preserve_color=preserve_color)  # type: ignore[no-any-return]

    paint(np.zeros((16, 16, 3), np.uint8))  # wrong arguments are told before anything is opened
    if target is not style:
        target.reset()
    return paint


def _run(
    stream: Iterator[tuple[Any, float]],
    convert: Converter,
    paint: Callable[[np.ndarray], np.ndarray],
    ladder: Ladder,
    output: Any,
    stats: LiveStats,
    origin: Source,
    duration: float | None,
    progress: Callable[[LiveStats], None] | None,
) -> None:
    """Paints in a thread; this one shows, because a window belongs to the main thread."""
    results: queue.Queue[_Result | BaseException | None] = queue.Queue(1)
    stop = threading.Event()

    def put(item: _Result | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                results.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def painting() -> None:
        try:
            for picture, arrived in stream:
                size = stats.painted = ladder.size
                times = [time.perf_counter()]
                image = convert(picture, size)
                times.append(time.perf_counter())
                image = paint(image)
                times.append(time.perf_counter())
                for name, a, b in zip(STAGES, times, times[1:], strict=False):
                    stats._stages[name].append(b - a)
                if not put(_Result(image, arrived)):
                    return
                # Showing overlaps, and takes no less of a smaller picture.
                ladder.add(times[2], times[2] - times[0])
                stats.changes = ladder.changes
            put(None)
        except BaseException as error:  # handed to the calling thread
            put(error)
        finally:
            stream.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=painting, name="fastgen painting", daemon=True)
    enlarge = Converter()
    began: float | None = None
    end = math.inf
    thread.start()
    try:
        while True:
            item = _next(results, output, end)
            if item is _OVER:
                stats.ended = "duration"
                return
            if not isinstance(item, _Result):
                stats.ended = "source"
                if item is not None:
                    raise item
                return
            started = time.perf_counter()
            if began is None:
                began = item.arrived
                end = math.inf if duration is None else began + duration
            image = item.image
            if image.shape[1::-1] != (stats.width, stats.height):
                image = _resized(enlarge, image, (stats.width, stats.height))
            output.show(image, item.arrived - began)
            stats._stages["show"].append(time.perf_counter() - started)
            stats.add(item.arrived)
            if progress is not None:
                progress(stats)
    except Closed:
        stats.ended = "closed"
    except KeyboardInterrupt:
        stats.ended = "interrupted"
    finally:
        stop.set()
        origin.stop()
        thread.join(timeout=10)


def _next(results: queue.Queue[Any], output: Any, end: float) -> Any:
    """The next result, or ``_OVER`` at the time ``end``; a window goes on answering meanwhile."""
    idle = getattr(output, "idle", None)
    while (left := end - time.perf_counter()) > 0:
        try:
            return results.get(timeout=min(left, 0.5 if idle is None else IDLE))
        except queue.Empty:
            if idle is not None:
                idle()
    return _OVER


def _resized(convert: Converter, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from fastgen.video._av import av_module

    return convert(av_module().VideoFrame.from_numpy_buffer(image, format="rgb24"), size)
