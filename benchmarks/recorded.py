"""Hands rounds that other processes measured to pytest-benchmark.

pytest-benchmark times what it calls; here the times are already known. Its clock is replaced by one
that each call advances by the next recorded round, so that its statistics are of the real times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_clock = {"now": 0.0}


def clock() -> float:
    """The timer to give to ``pytest.mark.benchmark``."""
    return _clock["now"]


def replay(benchmark: Any, seconds: list[float]) -> None:
    """Lets the fixture ``benchmark`` see these rounds."""
    left: Iterator[float] = iter(seconds)

    def step() -> None:
        _clock["now"] += next(left)

    benchmark.pedantic(step, rounds=len(seconds), iterations=1)
