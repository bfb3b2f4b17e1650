"""Serving with one backend while a faster one gets ready.

A TensorRT engine takes seconds to minutes to build. With ``backend="auto"`` nobody waits for it:
frames run on the next backend until the engine for their size is there.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from typing import Any

import numpy as np

from fastgen.backends import ImageIO

__all__ = ["SwitchingRunner"]

_log = logging.getLogger("fastgen")
# A single picture is done long before an engine is, so the second frame of a size starts a build.
_FRAMES_BEFORE_BUILD = 2
_stop = threading.Event()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _at_exit() -> None:
    """A build that still runs when Python ends would call into an interpreter that is gone."""
    _stop.set()
    for thread in list(_threads):
        thread.join(30)


atexit.register(_at_exit)


class SwitchingRunner:
    """A runner that gives frames to ``fast`` where it is ready and to ``slow`` where it is not.

    Args:
        fast: has ``shapes_of(inputs, io)``, ``ready(shapes)`` and ``prepare(shapes, progress)``
            besides what every runner has.
        slow: any runner.
        why: why ``fast`` was chosen.
    """

    sized_engines = True  # those of ``fast``

    def __init__(self, fast: Any, slow: Any, why: str) -> None:
        self._fast, self._slow = fast, slow
        self._serving = slow
        self._chosen = why
        self._state = f"until its engine for the size is there, {slow.backend} serves"
        self._seen: dict[Any, int] = {}
        self._failed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def graph(self) -> Any:
        """The network."""
        return self._fast.graph

    @property
    def backend(self) -> str:
        """The backend that served the last frame."""
        return str(self._serving.backend)

    @property
    def precision(self) -> str:
        """Precision of the backend that served the last frame."""
        return str(self._serving.precision)

    @property
    def threads(self) -> int:
        """Threads of the backend that served the last frame."""
        return int(self._serving.threads)

    @property
    def why(self) -> str:
        """Why this backend serves."""
        return f"{self._fast.backend} is {self._chosen}; {self._state}"

    def close(self) -> None:
        """Closes both runners."""
        self._fast.close()
        self._slow.close()

    def run(self, inputs: Any, io: ImageIO | None = None, out: Any = None, **options: Any) -> Any:
        """Runs on the faster runner if it is ready for the size, else on the other.

        Args:
            inputs: as for any runner.
            io: as for any runner.
            out: as for any runner.
            **options: of the slower runner only (bands).
        """
        shapes = self._fast.shapes_of(inputs, io)
        # Tensors on a GPU are what the slow runner may not take.
        values = inputs.values() if isinstance(inputs, dict) else [inputs]
        able = self._slow.backend == "cuda" or all(isinstance(v, np.ndarray) for v in values)
        if self._fast.ready(shapes) or not able:
            self._serving = self._fast
            return self._fast.run(inputs, io, out)
        self._request(shapes)
        self._serving = self._slow
        return self._slow.run(inputs, io, out, **options)

    def band_info(self, shape: tuple[int, int, int, int], **options: Any) -> Any:
        """How the slower runner would run this size in bands, see ``Stylizer.band_info``."""
        return self._slow.band_info(shape, **options)

    def release(self) -> None:
        """Gives the slower runner's memory back until the next run."""
        self._slow.release()

    def _request(self, shapes: Any) -> None:
        """Starts to get the fast runner ready in the background, one size at a time."""
        key = tuple(sorted(shapes.items()))
        with self._lock:
            if len(self._seen) > 1000:  # many sizes, none of which came twice
                self._seen.clear()
            self._seen[key] = self._seen.get(key, 0) + 1
            busy = self._thread is not None and self._thread.is_alive()
            if self._failed or busy or self._seen[key] < _FRAMES_BEFORE_BUILD or _stop.is_set():
                return
            size = _text(shapes)
            self._say(f"it prepares an engine for {size}, {self._slow.backend} serves meanwhile")
            self._thread = threading.Thread(
                target=self._prepare, args=(shapes, size), name="fastgen-engine", daemon=True
            )
            _threads.add(self._thread)
            self._thread.start()

    def _prepare(self, shapes: Any, size: str) -> None:
        try:
            self._fast.prepare(shapes, lambda *_: not _stop.is_set())
        except Exception as error:  # whatever it is: the frames have another way
            self._failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            self._say(f"it failed for {size} ({reason}), {self._slow.backend} serves", failed=True)
        else:
            self._say(f"its engine for {size} is there")

    def _say(self, state: str, failed: bool = False) -> None:
        self._state = state
        _log.log(logging.WARNING if failed else logging.INFO, "backend %s", self.why)


def _text(shapes: dict[str, tuple[int, ...]]) -> str:
    """``1280x720``, or all sizes where the input is not one image."""
    if len(shapes) == 1:
        (shape,) = shapes.values()
        if len(shape) == 4:
            return f"{shape[3]}x{shape[2]}" + (f" in batches of {shape[0]}" * (shape[0] > 1))
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
