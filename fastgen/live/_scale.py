"""How large the network's picture may be for a rate that is wanted."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

__all__ = ["Ladder"]

# As many as a runner of the cpu backend keeps plans for, so that each size is compiled once.
STEPS = 8
SHRINK = 2 ** (-1 / 4)  # from step to step; the last one has 0.3 of the sides
FULL = 0.95  # share of the time between two frames above which the size is too large
ROOM = 0.8  # share that the next larger size may take by estimate
WINDOW = 12  # frames that a decision is of
PATIENCE = 2.0  # seconds that there must be room for; doubled when a larger size had to be left
LONGEST = 60.0


class Ladder:
    """Chooses the network's working size so that a rate is held.

    The size falls as soon as the median time of the last frames is too long, by as many steps as
    that time says. It rises by one step when the next size, by its number of pixels, has had room
    for some seconds. A size that had to be left soon after it was tried is tried again later and
    later, so that the size does not swing.

    Args:
        width: pixels of the frames.
        height: pixels of the frames.
        target_fps: frames a second to hold; None keeps the full size.

    Raises:
        ValueError: a rate outside 0..1000.
    """

    def __init__(self, width: int, height: int, target_fps: float | None = None) -> None:
        if target_fps is not None and not 0 < target_fps <= 1000:
            raise ValueError(
                f"target_fps is {target_fps!r}, must be a number above 0 and at most 1000"
            )
        self._period = math.inf if target_fps is None else 1 / target_fps
        self.sizes = _sizes(width, height)
        self.step = 0
        self.changes = 0
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._skip = True  # the first frame of a size is slower: it is compiled
        self._room_since: float | None = None
        self._rose_at = -math.inf
        self._patience = PATIENCE

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) to paint at."""
        return self.sizes[self.step]

    def add(self, now: float, seconds: float) -> None:
        """Tells how long a frame of the present size took.

        Args:
            now: seconds of any clock that rises.
            seconds: that painting it took.
        """
        if self._period == math.inf:
            return
        if self._skip:
            self._skip = False
            return
        self._recent.append(seconds)
        if len(self._recent) < WINDOW // 2:
            return
        typical = median(self._recent)
        if typical > FULL * self._period:
            self._fall(now, typical)
        elif len(self._recent) == WINDOW:
            self._perhaps_rise(now, typical)

    def _fall(self, now: float, typical: float) -> None:
        if self.step == len(self.sizes) - 1:
            return
        if now - self._rose_at < 5 * PATIENCE:
            self._patience = min(2 * self._patience, LONGEST)
        step = self.step + 1
        while step < len(self.sizes) - 1 and self._estimate(typical, step) > FULL * self._period:
            step += 1
        self._go(step)

    def _perhaps_rise(self, now: float, typical: float) -> None:
        if self.step == 0 or self._estimate(typical, self.step - 1) > ROOM * self._period:
            self._room_since = None
            return
        if self._room_since is None:
            self._room_since = now
        if now - self._room_since >= self._patience:
            if now - self._rose_at > 10 * self._patience:
                self._patience = PATIENCE  # calm for long
            self._rose_at = now
            self._go(self.step - 1)

    def _estimate(self, typical: float, step: int) -> float:
        (w0, h0), (w1, h1) = self.size, self.sizes[step]
        return typical * (w1 * h1) / (w0 * h0)

    def _go(self, step: int) -> None:
        self.step = step
        self.changes += 1
        self._recent.clear()
        self._skip = True
        self._room_since = None


def _sizes(width: int, height: int) -> list[tuple[int, int]]:
    """The full size and smaller ones, of sides that are multiples of 8."""
    sizes = [(width, height)]
    for k in range(1, STEPS):
        factor = SHRINK**k
        size = tuple(max(16, 8 * round(side * factor / 8)) for side in (width, height))
        if size[0] < sizes[-1][0] and size[1] < sizes[-1][1]:
            sizes.append(size)  # type: ignore[arg-type]
    return sizes
