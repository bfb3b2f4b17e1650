"""Small statistics for evaluations over seeds: means with intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["interval", "paired", "quantile_t", "text"]


def _tail_t(t: float, df: int) -> float:
    """P(|T| > t) of Student's distribution, t >= 0 (finite sums for integer degrees)."""
    angle = math.atan2(t, math.sqrt(df))
    cosine, sine = math.cos(angle), math.sin(angle)
    total, term = 0.0, 1.0
    if df % 2:
        for j in range(1, (df - 1) // 2 + 1):
            term = cosine if j == 1 else term * cosine**2 * (2 * j - 2) / (2 * j - 1)
            total += term
        return 1 - 2 / math.pi * (angle + sine * total)
    for j in range(df // 2):
        term = 1.0 if j == 0 else term * cosine**2 * (2 * j - 1) / (2 * j)
        total += term
    return 1 - sine * total


def quantile_t(level: float, df: int) -> float:
    """The t for which Student's distribution has the given mass in (-t, t).

    Args:
        level: Two-sided mass, e.g. 0.95.
        df: Degrees of freedom, at least 1.
    """
    if not 0 < level < 1 or df < 1:
        raise ValueError(f"level {level} must be in (0, 1) and df {df} at least 1")
    low, high = 0.0, 1.0
    while _tail_t(high, df) > 1 - level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _tail_t(middle, df) > 1 - level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean of one number a seed with its t interval.

    Args:
        values: One or more numbers.
        level: Coverage.

    Returns:
        ``n``, ``mean`` and, from two values on, ``se``, ``low`` and ``high``; with one value these
        are None: a single seed says nothing about the spread.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"values are {list(values)[:5]}; give one or more finite numbers")
    mean = float(data.mean())
    if data.size == 1:
        return {"n": 1, "mean": mean, "se": None, "low": None, "high": None}
    se = float(data.std(ddof=1) / math.sqrt(data.size))
    half = quantile_t(level, data.size - 1) * se
    return {"n": int(data.size), "mean": mean, "se": se, "low": mean - half, "high": mean + half}


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Interval of the differences ``first - second``, pair by pair.

    Returns:
        As :func:`interval`, with ``above``: whether the whole interval is above zero (None with one
        pair), and ``two_se``: whether the mean is more than two standard errors above zero.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs; give equal numbers")
    result = interval([a - b for a, b in zip(first, second, strict=True)], level)
    known = result["se"] is not None
    result["above"] = result["low"] > 0 if known else None
    result["two_se"] = result["mean"] > 2 * result["se"] if known else None
    return result


def text(result: dict[str, Any], digits: int = 2, percent: bool = False) -> str:
    """``12.3 [11.0, 13.6]``, or only the mean when there was one seed."""
    scale = 100 if percent else 1
    mean = f"{result['mean'] * scale:.{digits}f}"
    if result["low"] is None:
        return mean
    return f"{mean} [{result['low'] * scale:.{digits}f}, {result['high'] * scale:.{digits}f}]"
