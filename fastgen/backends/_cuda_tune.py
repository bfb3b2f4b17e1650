"""Which tile is fastest for a convolution on this GPU: measured once, kept on disk."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastgen.checkpoint import atomic_write

__all__ = ["Tiles", "cache_folder"]

_WIDTHS = range(3, 9)  # log2 of a tile's columns
_REPEATS = 3
_FORMAT = 1
# What a convolution's time depends on.
_FIELDS = (
    *("dtype", "n", "height", "width", "out_height", "out_width", "inputs", "outputs", "kernel_h"),
    *("kernel_w", "stride", "phases", "row_mode", "x_kind", "y_kind", "x_pixel", "y_pixel"),
    *("load_slope", "residual_side", "is_image", "fold"),
)
_PRESENT = ("scale", "load_residual", "residual", "out_scale", "row_map")

Choice = tuple[int, int]  # tile, log2 of its columns


def cache_folder() -> Path:
    """``FASTGEN_TILE_CACHE``, or ``fastgen/tiles`` in the user's cache."""
    named = os.environ.get("FASTGEN_TILE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(named or os.path.join(base, "fastgen", "tiles"))


class Tiles:
    """Choices for one GPU, driver and version of fastgen.

    A file that is damaged or of another format is ignored and written anew; a folder that cannot
    be written costs the measurements of the next process, nothing else.

    Args:
        native: the extension module.
        device: index of the GPU.
        name: of the GPU.
        limits: multiprocessors, bytes of shared memory.
        folder: of the files; None takes :func:`cache_folder`.
    """

    def __init__(
        self,
        native: Any,
        device: int,
        name: str,
        limits: tuple[int, int],
        folder: Path | None = None,
    ) -> None:
        self._native, self._device, self._limits = native, device, limits
        version = sys.modules["fastgen"].__version__  # not an import: arrows point down
        self._facts = {
            "format": _FORMAT,
            "gpu": name,
            "driver": int(native.driver_version()),
            "fastgen": version,
            "archs": str(native.compiled_archs()) if hasattr(native, "compiled_archs") else "",
        }
        stem = f"{name}-{self._facts['driver']}-{version}"
        stem = "".join(c if c.isalnum() or c in ".-" else "_" for c in stem)
        self.path = (folder or cache_folder()) / f"{stem}.json"
        self._choices = self._read()
        self._changed = False

    def _read(self) -> dict[str, Choice]:
        try:
            data = json.loads(self.path.read_text("utf-8"))
            if {key: data.get(key) for key in self._facts} != self._facts:
                return {}
            found = {}
            for key, (tile, width) in data["tiles"].items():
                if type(tile) is int and type(width) is int:
                    found[str(key)] = tile, width
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def save(self) -> None:
        """Writes what was measured since the last time; other processes' choices are kept."""
        if not self._changed:
            return
        self._choices = self._read() | self._choices
        text = json.dumps(self._facts | {"tiles": self._choices}, indent=1, sort_keys=True)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, text.encode())
            self._changed = False

    def choose(self, conv: Any, stream: int) -> None:
        """Sets the tile of a convolution whose memory is there; its output is overwritten."""
        key = self._key(conv)
        choice = self._choices.get(key)
        if choice is None or not self._possible(conv, choice):
            choice = self._measure(conv, stream)
            self._choices[key] = choice
            self._changed = True
        conv.tile, conv.width_log = choice

    def _key(self, conv: Any) -> str:
        parts = [str(getattr(conv, name)) for name in _FIELDS]
        parts += [str(int(bool(getattr(conv, name)))) for name in _PRESENT]
        return " ".join(parts)

    def _possible(self, conv: Any, choice: Choice) -> bool:
        conv.tile, conv.width_log = choice
        try:
            self._native.net_conv_plan(conv, *self._limits)
        except ValueError:
            return False
        return True

    def _measure(self, conv: Any, stream: int) -> Choice:
        """The fastest of all tiles and widths; the first rounds leave out what is far behind."""
        conv.tile = conv.width_log = -1
        _, *expected = self._native.net_conv_plan(conv, *self._limits)[:3]
        start = int(expected[0]), int(expected[1])
        candidates = [start]
        for tile in range(self._native.conv_tiles):
            for width in _WIDTHS:
                if (tile, width) != start and self._possible(conv, (tile, width)):
                    candidates.append((tile, width))
        times = {choice: self._time(conv, choice, stream, 1) for choice in candidates}
        best = min(times.values())
        near = [choice for choice in candidates if times[choice] <= 1.3 * best]
        times = {choice: self._time(conv, choice, stream, _REPEATS) for choice in near}
        return min(near, key=lambda choice: times[choice])

    def _time(self, conv: Any, choice: Choice, stream: int, repeats: int) -> float:
        """Milliseconds of one launch, the least of some."""
        native = self._native
        conv.tile, conv.width_log = choice
        native.net_conv(conv, *self._limits, stream)  # loads the kernel, warms the cache
        events = [native.Event(self._device, True) for _ in range(repeats + 1)]
        events[0].record(stream)
        for event in events[1:]:
            native.net_conv(conv, *self._limits, stream)
            event.record(stream)
        events[-1].synchronize()
        return min(float(b.since(a)) for a, b in pairwise(events))
