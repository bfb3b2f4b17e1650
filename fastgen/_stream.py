"""Frames that arrive faster than they are painted: only the newest counts."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["StreamStats", "newest"]

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
