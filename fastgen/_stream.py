"""Streams of frames: all of them, or only the newest where they arrive too fast."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["StreamStats", "check_frames", "newest", "paint_all"]

KEPT = 1000  # latencies that the percentiles are of, so that a long stream needs no more memory
_END = object()


@dataclass
class StreamStats:
    """What a stream did so far; filled while it runs.

    Attributes:
        frames: painted.
        dropped: arrived while another was painted, and replaced by a newer one.
        seconds: from the arrival of the first frame to the last result.
    """

    frames: int = 0
    dropped: int = 0
    seconds: float = 0.0
    _latencies: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT), repr=False)
    _first: float | None = field(default=None, repr=False)

    @property
    def fps(self) -> float:
        """Results a second."""
        return self.frames / self.seconds if self.seconds else 0.0

    def latency(self, percentile: float = 50.0) -> float:
        """Seconds from a frame's arrival to its result, of the last 1000 frames; NaN before one.

        Args:
            percentile: 50 is the median, 95 what one frame in twenty exceeds.
        """
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile is {percentile}, must be in 0..100")
        known = sorted(self._latencies)
        if not known:
            return math.nan
        return known[max(0, math.ceil(percentile / 100 * len(known)) - 1)]

    def add(self, arrived: float) -> None:
        """Counts a result of a frame that arrived at this ``time.perf_counter()``."""
        now = time.perf_counter()
        if self._first is None:
            self._first = arrived
        self.frames += 1
        self.seconds = now - self._first
        self._latencies.append(now - arrived)


def newest(frames: Iterator[Any], stats: StreamStats) -> Iterator[tuple[Any, float]]:
    """Reads in a thread of its own and gives the newest frame each time it is asked.

    Args:
        frames: the source; its errors are raised here.
        stats: counts what was dropped.

    Returns:
        (frame, when it arrived); ends with the source, whose last frame is never dropped.
    """
    changed = threading.Condition()
    slot: list[tuple[Any, float]] = []
    end: list[BaseException | None] = []
    stopped = threading.Event()

    def read() -> None:
        failure: BaseException | None = None
        try:
            while not stopped.is_set():
                frame = next(frames, _END)
                if frame is _END:
                    break
                with changed:
                    stats.dropped += len(slot)
                    slot[:] = [(frame, time.perf_counter())]
                    changed.notify()
        except BaseException as error:  # handed to the thread that paints
            failure = error
        with changed:
            end.append(failure)
            changed.notify()

    thread = threading.Thread(target=read, name="fastgen stream", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: slot or end)
                if not slot:
                    break
                item = slot.pop()
            yield item
        if end[0] is not None:
            raise end[0]
    finally:
        # A source that blocks (a camera that is gone) must not block its reader's end.
        stopped.set()
        thread.join(timeout=1.0)


def check_frames(frames: Any) -> Iterator[Any]:
    """One picture can be iterated over too (a path by letters), but never means frames."""
    shape = getattr(frames, "shape", None)
    single = isinstance(frames, str | bytes | os.PathLike) or (shape is not None and len(shape) < 4)
    try:
        if not single:
            return iter(frames)
    except TypeError:
        pass
    kind = type(frames).__qualname__
    raise TypeError(f"frames is one {kind}, must be an iterable of images; use [image] for one")


def paint_all(
    paint: Callable[..., Any],
    frames: Iterator[Any],
    options: dict[str, Any],
    latest: bool,
    stats: StreamStats,
) -> Iterator[Any]:
    """What ``Stylizer.stream`` returns."""
    timed = newest(frames, stats) if latest else ((f, time.perf_counter()) for f in frames)
    try:
        for frame, arrived in timed:
            result = paint(frame, **options)
            stats.add(arrived)
            yield result
    finally:
        timed.close()  # type: ignore[attr-defined]
        close = getattr(frames, "close", None)
        # A generator that its reader's thread still waits in cannot be closed from here.
        with contextlib.suppress(*([ValueError] if latest else [])):
            if close is not None:
                close()
