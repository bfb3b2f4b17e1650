"""Runs in bands: options, and the choice between them and a run of the whole frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["RECOMPUTE", "BandInfo", "Bands", "Plan", "check_bands"]

RECOMPUTE = ("auto", "full")
MAX_ROWS = 1 << 24
DEFAULT_ROWS = 64  # of an automatic run in bands

# What a run may take of the memory that is left, before it goes through the frame in bands, and
# what a run in bands may take then.
WHOLE_SHARE, BANDED_SHARE = 0.7, 0.5
# Where memory is not what limits: the least of it for at most this many times the arithmetic.
MOST_WORK = 2.0


class Bands(NamedTuple):  # compared and hashed in every run: a dataclass takes 3 us for that
    """How a run goes through the frame: None for ``rows`` is all at once, 0 is ``"auto"``."""

    rows: int | None = None
    full: bool = False


@dataclass(frozen=True)
class BandInfo:
    """A run in bands.

    Attributes:
        rows: rows of the frame in each band.
        bands: number of bands.
        passes: passes over the frame; one more for each norm that follows on another.
        memory: bytes of the engine's arena.
        kept: bytes of it for values that are kept whole, at most.
        arithmetic: multiply-adds beside a run of the whole frame at once.
        why: one sentence.
    """

    rows: int
    bands: int
    passes: int
    memory: int
    kept: int
    arithmetic: float
    why: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.bands} bands of {self.rows} rows, {self.passes} passes, "
            f"{self.memory / 2**20:.0f} MiB, {self.arithmetic:.2f} times the arithmetic: {self.why}"
        )


@dataclass(frozen=True)
class Plan:
    """How inputs of some shapes are run.

    Attributes:
        plan: the engine's.
        shapes: of all values of the graph.
        info: where the run is in bands.
    """

    plan: Any
    shapes: dict[str, tuple[int, ...]]
    info: BandInfo | None


def check_bands(band_rows: object, recompute: object) -> Bands:
    """The options of a run as :class:`Bands`.

    Args:
        band_rows: None (the whole frame at once), ``"auto"``, or rows of the frame per band.
        recompute: ``"auto"`` or ``"full"``.

    Raises:
        ValueError: out of range, or an unknown word. TypeError: of another type.
    """
    if not isinstance(recompute, str) or recompute not in RECOMPUTE:
        raise ValueError(f"recompute is {recompute!r}, must be one of {', '.join(RECOMPUTE)}")
    full = recompute == "full"
    if isinstance(band_rows, str):
        if band_rows != "auto":
            raise ValueError(
                f"band_rows is {band_rows!r}, must be 'auto', None or an integer in 1..{MAX_ROWS}"
            )
        return Bands(0, full)
    if band_rows is None:
        if full:
            raise ValueError("recompute='full' is for runs in bands; give band_rows, too")
        return Bands()
    if isinstance(band_rows, bool) or not isinstance(band_rows, int | np.integer):
        raise TypeError(
            f"band_rows is {band_rows!r}, must be 'auto', None or an integer in 1..{MAX_ROWS}"
        )
    if not 1 <= band_rows <= MAX_ROWS:
        raise ValueError(f"band_rows is {band_rows}, must be in 1..{MAX_ROWS}")
    return Bands(int(band_rows), full)
