"""How long a call takes: by CUDA events between flushes of the cache, or by the host's clock.

Each repeat reads a buffer several times the size of the L2 cache first, so that inputs come from
memory, as they do in a network whose activations do not fit. It is read, not written: dirty lines
would be written back during the measured call. While the device reads, the host queues the call,
so launch overhead is not in the figure; ``call_us`` is: calls back to back, by the host's clock.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["DeviceTimer", "HostTimer", "Timer", "make_timer"]

Call = Callable[[], Any]


class Timer(ABC):
    """Common part: how many repeats, and what is said about them."""

    warm_up = 3
    trial = 3  # calls from which the number of repeats is chosen
    repeats = (10, 200)  # at least, at most

    @abstractmethod
    def sync(self) -> None:
        """Waits for the device."""

    @abstractmethod
    def once(self, call: Call, count: int) -> list[float]:
        """Times of ``count`` calls in microseconds."""

    def measure(self, call: Call, seconds: float) -> dict[str, float]:
        """Warms up, then measures for about so many seconds.

        Returns:
            ``p20_us``, ``p50_us``, ``p80_us`` of one call on the device, ``call_us`` of calls back
            to back by the host's clock, ``repeats``.
        """
        for _ in range(self.warm_up):
            call()
        self.sync()
        start = time.perf_counter()
        first = self.once(call, self.trial)
        each = (time.perf_counter() - start) / self.trial
        low, high = self.repeats
        count = min(high, max(low, math.ceil(seconds / each)))
        times = sorted(self.once(call, count))
        many = min(high, max(self.trial, math.ceil(seconds / 4 / (min(first) * 1e-6 + 1e-6))))
        self.sync()
        start = time.perf_counter()
        for _ in range(many):
            call()
        self.sync()
        wall = (time.perf_counter() - start) / many * 1e6
        at = [times[min(count - 1, int(count * q))] for q in (0.2, 0.5, 0.8)]
        return {
            **dict(zip(("p20_us", "p50_us", "p80_us"), at, strict=True)),
            "call_us": wall,
            "repeats": count,
        }


class HostTimer(Timer):
    """For a CPU: the host's clock, the cache as the call before left it; few calls."""

    warm_up = 0
    trial = 1
    repeats = (1, 20)

    def sync(self) -> None:
        """Nothing: the host's own calls are over when they return."""

    def once(self, call: Call, count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
        return times


class DeviceTimer(Timer):
    """For a CUDA device: events, with the L2 cache flushed before every call."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        # Long enough to read that the host has queued even a call of several kernels from Python.
        size = max(1 << 30, 8 * cache)
        self._buffer = torch.ones(size // 4, device="cuda")

    def sync(self) -> None:
        torch.cuda.synchronize()

    def once(self, call: Call, count: int) -> list[float]:
        starts, ends = (
            [torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2)
        )
        for start, end in zip(starts, ends, strict=True):
            self._buffer.sum()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e3 for a, b in zip(starts, ends, strict=True)]


def make_timer(device: str) -> Timer:
    """The timer for ``"cuda"`` or ``"cpu"``."""
    return DeviceTimer() if device == "cuda" else HostTimer()
