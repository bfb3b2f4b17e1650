"""How the minutes are shared out: what matters most comes first and takes what it needs."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Budget"]

_RESERVE_S = 8.0  # for writing results and ending processes


class Budget:
    """Counts down.

    Args:
        seconds: of the whole run.
        clock: in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._end = self._start + seconds - _RESERVE_S

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def left(self) -> float:
        """Seconds that may still be spent; not negative."""
        return max(0.0, self._end - self._clock())

    def share(self, most: float) -> float:
        """Seconds for a part that may take at most so many."""
        return min(most, self.left())
