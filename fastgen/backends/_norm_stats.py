"""Statistics of the instance norms of a run: returned by one, given to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgen.backends._steps import ConvStep, Lowered, StatsStep

__all__ = ["NormStats"]


class NormStats:
    """The norms of a lowered graph whose statistics are the data's, in the order of their steps."""

    def __init__(self, lowered: Lowered) -> None:
        norms = [s.norm for s in lowered.steps if isinstance(s, ConvStep | StatsStep) and s.norm]
        self.channels = {norm.name: lowered.slots[norm.slot].channels for norm in norms}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the graph's nodes."""
        return tuple(self.channels)

    def arrays(self, norm_stats: Any, images: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What the engine takes for ``norm_stats``: given statistics, memory for wanted ones.

        Raises:
            ValueError: neither None, ``"return"`` nor a dict of all names, or wrong shapes.
        """
        if norm_stats is None:
            return None, None
        if isinstance(norm_stats, str) and norm_stats == "return":
            return None, np.zeros(2 * images * sum(self.channels.values()), np.float32)
        if not isinstance(norm_stats, Mapping):
            raise ValueError(f"norm_stats is {norm_stats!r}, must be None, 'return' or a dict")
        wrong = sorted(map(str, set(norm_stats) ^ set(self.channels)))
        if wrong:
            raise ValueError(
                f"norm_stats has not just the names of norm_names: {wrong[0]!r} is missing or "
                "unknown; take what norm_stats='return' gave"
            )
        parts = [np.zeros(0, np.float32)]
        for name, channels in self.channels.items():
            pair = [np.asarray(array) for array in norm_stats[name]]
            shape = (images, channels)
            if len(pair) != 2 or any(a.shape != shape or a.dtype.kind != "f" for a in pair):
                raise ValueError(
                    f"norm_stats[{name!r}] must be mean and variance, float arrays {shape}"
                )
            if not all(np.isfinite(a).all() for a in pair) or (pair[1] < 0).any():
                raise ValueError(f"norm_stats[{name!r}] must be finite, its variance 0 at least")
            parts += [array.astype(np.float32).ravel() for array in pair]
        return np.concatenate(parts), None

    def by_name(self, flat: np.ndarray, images: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The engine's array as a dict of (mean, variance)."""
        result = {}
        for name, channels in self.channels.items():
            mean, variance = flat[: 2 * images * channels].reshape(2, images, channels)
            result[name] = (mean, variance)
            flat = flat[2 * images * channels :]
        return result
