"""TensorRT engines on disk: their key, the cache, and which sizes one engine serves.

Building an engine takes seconds to minutes, and an engine works only with the library version and
the kind of GPU that it was built for. All of that is in its key, so a change of any of it finds no
engine instead of a wrong one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastgen.checkpoint import atomic_write
from fastgen.graph import Dim, Graph

__all__ = [
    "EngineCache",
    "Entry",
    "Profile",
    "engine_key",
    "network_hash",
    "profile_for",
    "profile_holds",
]

# Input name -> smallest, best and largest shape.
Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
T = TypeVar("T")

_MAGIC = b"fastgen-engine 1 "
_MAX_HEADER = 1 << 20
_SUFFIX = ".engine"
_DEFAULT_BYTES = 4 << 30

# Largest sizes of engines: a few engines serve all frames, and common video sizes are met closely.
_BATCHES = (1, 4, 16, 64)
_SIDES = (256, 512, 768, 1088, 1280, 1920, 2560, 3840, 7680)


def network_hash(graph: Graph, weights: Mapping[str, np.ndarray]) -> str:
    """sha256 of a graph and its weights as float32."""
    digest = hashlib.sha256(graph.to_json().encode())
    for key in sorted(weights):
        value = np.ascontiguousarray(weights[key], np.float32)
        digest.update(f"\0{key}\0{value.shape}\0".encode())
        digest.update(value.data)
    return digest.hexdigest()


def engine_key(
    *,
    network: str,
    profile: Profile,
    precision: str,
    library: str,
    flavour: str,
    device: str,
    capability: str,
    driver: int,
    fastgen: str,
    options: Mapping[str, Any],
) -> str:
    """The one key of an engine: 32 hexadecimal digits.

    Args:
        network: :func:`network_hash`.
        profile: sizes that the engine serves.
        precision: ``"fp32"``, ``"fp16"``.
        library: full version of TensorRT.
        flavour: ``"full"``, ``"rtx"`` or ``"lean"``.
        device: name of the GPU, ``"any"`` for engines that work on all.
        capability: compute capability such as ``"9.0"``, or ``"any"``.
        driver: CUDA version of the driver, 0 for engines that do not depend on it.
        fastgen: version of fastgen, whose ONNX export the engine is made of.
        options: whatever else was told to the builder.
    """
    facts = dict(locals())
    facts["profile"] = {name: [list(s) for s in sizes] for name, sizes in profile.items()}
    facts["options"] = dict(options)
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# ---------------------------------------------------------------------- sizes


def _above(size: int, steps: Iterable[int]) -> int:
    """The smallest step that holds a size; beyond the last one, its multiples."""
    last = 1
    for last in steps:
        if size <= last:
            return last
    return -(-size // last) * last


def profile_for(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> Profile:
    """The sizes of the engine that serves these input shapes and all smaller ones.

    Raises:
        GraphError: shapes that do not fit the graph.
    """
    graph.infer_shapes(shapes)
    low = graph.smallest_shapes()
    result: Profile = {}
    for item in graph.inputs:
        high = []
        for axis, (dim, size) in enumerate(zip(item.shape, shapes[item.name], strict=True)):
            if isinstance(dim, Dim):
                step = _above(size, _SIDES if axis else _BATCHES)
                size = max(-(-step // dim.divisor) * dim.divisor, low[item.name][axis])
            high.append(size)
        result[item.name] = (low[item.name], tuple(high), tuple(high))
    return result


def profile_holds(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether an engine of this profile serves these input shapes."""
    return all(
        name in shapes
        and len(shapes[name]) == len(low)
        and all(a <= b <= c for a, b, c in zip(low, shapes[name], high, strict=True))
        for name, (low, _, high) in profile.items()
    )


# ---------------------------------------------------------------------- cache


@dataclass(frozen=True)
class Entry:
    """An engine in the cache: its key, file size, time of last use and what it was built from."""

    key: str
    bytes: int
    used: float
    facts: dict[str, Any]


class EngineCache:
    """Engines in a folder, bounded; the one that was not used for longest goes first.

    Args:
        folder: None takes ``FASTGEN_ENGINE_CACHE``, or ``fastgen/engines`` in the user's cache.
        limit: bytes; None takes ``FASTGEN_ENGINE_CACHE_BYTES``, or 4 GiB. An engine larger than
            that is kept nevertheless, alone.

    Raises:
        ValueError: a limit that is not a positive number.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, limit: int | None = None
    ) -> None:
        named = os.environ.get("FASTGEN_ENGINE_CACHE")
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self.folder = Path(folder or named or os.path.join(base, "fastgen", "engines"))
        if limit is None:
            text = os.environ.get("FASTGEN_ENGINE_CACHE_BYTES", str(_DEFAULT_BYTES))
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(
                    f"FASTGEN_ENGINE_CACHE_BYTES is {text!r}, must be a number of bytes above 0"
                )
            limit = int(text)
        self.limit = limit

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def get(
        self,
        key: str,
        facts: Mapping[str, Any],
        open_plan: Callable[[bytes], T],
        build: Callable[[], bytes],
    ) -> T:
        """The opened engine of a key: from the cache, or built and then kept.

        An engine that cannot be opened is deleted and built again, once.

        Args:
            key: from :func:`engine_key`.
            facts: what :meth:`entries` will tell about it.
            open_plan: opens an engine; ``ValueError`` when the library does not accept it.
            build: makes one.
        """
        plan = self.load(key)
        if plan is not None:
            try:
                return open_plan(plan)
            except ValueError:
                self.remove(key)
        plan = build()
        opened = open_plan(plan)  # first, so that only engines that work are kept
        # A full disk or a folder of somebody else costs the next start time, but not this run.
        with contextlib.suppress(OSError):
            self.store(key, plan, facts)
        return opened

    def load(self, key: str) -> bytes | None:
        """An engine's bytes; None when there is none, or a damaged one, which is deleted."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        header, plan = _split(data)
        if header is None or header.get("sha256") != hashlib.sha256(plan).hexdigest():
            self.remove(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return plan

    def store(self, key: str, plan: bytes, facts: Mapping[str, Any]) -> None:
        """Keeps an engine; the file appears complete or not at all.

        Raises:
            OSError: it cannot be written.
        """
        header = dict(facts) | {"sha256": hashlib.sha256(plan).hexdigest(), "built": time.time()}
        line = json.dumps(header, sort_keys=True).encode()
        # Engines are code: nobody else may put one there.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(self._path(key), _MAGIC + line + b"\n" + plan)
        self._shrink(keep=key)

    def _shrink(self, keep: str) -> None:
        entries = sorted(self.entries(), key=lambda e: (e.key != keep, -e.used))
        total = 0
        for entry in entries:
            total += entry.bytes
            if total > self.limit and entry.key != keep:
                self.remove(entry.key)

    def remove(self, key: str) -> None:
        """Deletes an engine if it is there."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def entries(self) -> list[Entry]:
        """The engines in the cache, last used first; damaged files have no facts."""
        result = []
        for path in self.folder.glob(f"*{_SUFFIX}") if self.folder.is_dir() else ():
            try:
                with open(path, "rb") as file:
                    header, _ = _split(file.read(_MAX_HEADER))
                state = path.stat()
            except OSError:  # another process was faster
                continue
            result.append(Entry(path.stem, state.st_size, state.st_mtime, header or {}))
        return sorted(result, key=lambda e: (-e.used, e.key))

    def clear(self) -> int:
        """Deletes all engines and timing caches and returns how many engines there were."""
        entries = self.entries()
        for entry in entries:
            self.remove(entry.key)
        for path in self.folder.glob("*.timing") if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):
                path.unlink()
        return len(entries)

    def timing(self, name: str) -> bytes:
        """The timing cache of a library and device; empty when there is none."""
        try:
            return (self.folder / f"{name}.timing").read_bytes()
        except OSError:
            return b""

    def store_timing(self, name: str, data: bytes) -> None:
        """Keeps a timing cache; where it cannot be written, the next build takes longer."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(self.folder / f"{name}.timing", data)


def _split(data: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """Header and engine of a file's bytes; no header when it is not one of ours."""
    line, newline, plan = data.partition(b"\n")
    if not newline or not line.startswith(_MAGIC):
        return None, b""
    try:
        header = json.loads(line[len(_MAGIC) :])
    except ValueError:
        return None, b""
    return (header, plan) if isinstance(header, dict) else (None, b"")
