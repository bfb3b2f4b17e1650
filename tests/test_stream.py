"""`Stylizer.stream` with the newest frame first, and what it counts."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import save_tiny

import fastgen
from fastgen._stream import newest


def frame(index: int) -> np.ndarray:
    return np.full((8, 8, 3), index, np.uint8)


@pytest.fixture(scope="module")
def paint(tmp_path_factory: pytest.TempPathFactory) -> fastgen.Stylizer:
    path: Path = save_tiny(tmp_path_factory.mktemp("style"))
    return fastgen.Stylizer(path)


def test_the_newest_frame_wins() -> None:
    """The source runs ahead only when it is allowed to, so nothing depends on speed."""
    go, arrived = threading.Semaphore(0), threading.Semaphore(0)

    def source() -> Iterator[int]:
        for k in range(6):
            go.acquire()
            yield k
            arrived.release()  # k is in the slot once the next one is asked for

    stats = fastgen.StreamStats()
    stream = newest(source(), stats)
    go.release()
    assert next(stream)[0] == 0
    for _ in range(3):  # 1, 2 and 3 arrive while 0 is painted
        go.release()
    for _ in range(4):
        arrived.acquire(timeout=10)
    assert next(stream)[0] == 3
    assert stats.dropped == 2
    for _ in range(2):
        go.release()
    assert [item[0] for item in stream][-1] == 5  # the last one is never dropped


def test_results_are_those_of_the_frames(paint: fastgen.Stylizer) -> None:
    stats = fastgen.StreamStats()
    found = list(paint.stream([frame(7)] * 5, policy="latest", stats=stats))
    assert 1 <= len(found) <= 5
    assert stats.frames == len(found)
    assert stats.frames + stats.dropped == 5
    np.testing.assert_array_equal(found[-1], paint(frame(7)))


def test_all_drops_nothing(paint: fastgen.Stylizer) -> None:
    stats = fastgen.StreamStats()
    assert len(list(paint.stream([frame(k) for k in range(5)], stats=stats))) == 5
    assert (stats.frames, stats.dropped) == (5, 0)
    assert 0 < stats.latency(50) <= stats.latency(95) <= stats.latency(100) <= stats.seconds
    assert stats.fps == pytest.approx(5 / stats.seconds)


def test_an_error_of_the_source_arrives(paint: fastgen.Stylizer) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield frame(1)
        raise OSError("camera gone")

    with pytest.raises(OSError, match="camera gone"):
        list(paint.stream(broken(), policy="latest"))


def test_closing_closes_the_source(paint: fastgen.Stylizer) -> None:
    closed = threading.Event()

    def source() -> Iterator[np.ndarray]:
        try:
            while True:
                yield frame(1)
        finally:
            closed.set()

    stream = paint.stream(source(), policy="latest")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed.wait(10)
    assert not [t for t in threading.enumerate() if t.name == "fastgen stream"]


def test_percentiles() -> None:
    stats = fastgen.StreamStats()
    assert math.isnan(stats.latency())
    assert stats.fps == 0
    stats._latencies.extend([0.3, 0.1, 0.2, 0.4])
    assert [stats.latency(p) for p in (0, 25, 50, 75, 100)] == [0.1, 0.1, 0.2, 0.3, 0.4]


def test_wrong_arguments(paint: fastgen.Stylizer) -> None:
    with pytest.raises(ValueError, match="policy is 'some', must be 'all' or 'latest'"):
        paint.stream([], policy="some")
    with pytest.raises(ValueError, match="percentile is 101"):
        fastgen.StreamStats().latency(101)
