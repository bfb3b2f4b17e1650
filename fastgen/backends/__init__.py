"""Backends: ways of running a whole graph, and the choice between them.

A backend is a module with ``why_not() -> str | None`` (None: it can run here), ``PRECISIONS``,
``precision_why_not(precision) -> str | None``, ``auto_precision() -> (precision, why)`` and
``compile(graph, weights, precision, threads, ranges) -> Runner``; ``precision_note(precision) ->
str | None`` if something is to be known of a precision that can run. A runner has
``run(inputs, io=None, out=None)``, ``precision``, ``threads``, ``backend`` and ``close()``; that of
the cpu backend also takes ``norm_stats``, ``band_rows`` and ``recompute``. The runners of a module
with ``SLOW_START`` need minutes before the first frame; ``auto`` serves with the next backend
meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from fastgen.errors import BackendUnavailable
from fastgen.graph import Dim, Graph

__all__ = [
    "ImageIO",
    "check_image_batch",
    "choose",
    "compile_graph",
    "get",
    "names",
    "padded_size",
    "reflect_index",
    "why_not",
]

# Fastest first: `auto` takes the first one that can run here.
_BACKENDS = ("tensorrt", "cuda", "cpu", "torch")


@dataclass(frozen=True)
class ImageIO:
    """How an image batch (N,H,W,3) becomes the network's input, and its output an image again.

    Args:
        input_range: what black and white are for the network's input.
        output_range: what black and white are in the network's output.
        strength: 0 gives the photo back, 1 the stylised picture; linear in between.
        preserve_color: keep the photo's chroma (BT.601 full range) and take only the luma.
        bgr: the channels of the image are B, G, R (OpenCV) instead of R, G, B.
    """

    input_range: tuple[float, float] = (0.0, 255.0)
    output_range: tuple[float, float] = (0.0, 255.0)
    strength: float = 1.0
    preserve_color: bool = False
    bgr: bool = False

    LUMA: ClassVar[tuple[float, float, float]] = (0.299, 0.587, 0.114)  # BT.601

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength is {self.strength}, must be in 0..1")
        for low, high in (self.input_range, self.output_range):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ValueError(f"range ({low}, {high}) must be finite with low < high")


def names() -> tuple[str, ...]:
    """Names of the backends, fastest first."""
    return _BACKENDS


def get(name: str) -> ModuleType:
    """Returns a backend's module.

    Raises:
        ValueError: unknown name.
        BackendUnavailable: it cannot run here; the message says why and what to do.
    """
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: auto, {', '.join(_BACKENDS)}")
    module = import_module(f"fastgen.backends.{name}")
    reason = module.why_not()
    if reason is not None:
        raise BackendUnavailable(f"backend {name!r} cannot run here: {reason}")
    return module


def why_not(name: str) -> str | None:
    """None when the backend can run here, else the reason with the remedy."""
    try:
        get(name)
    except BackendUnavailable as error:
        return str(error)
    return None


def choose(
    name: str = "auto", precision: str = "auto", skip: Collection[str] = ()
) -> tuple[str, str]:
    """Resolves ``"auto"``.

    Args:
        name: a backend, or ``"auto"``.
        precision: ``auto`` takes only backends that have it.
        skip: backends that ``auto`` does not take.

    Returns:
        The backend's name and one sentence that says why.

    Raises:
        BackendUnavailable: the named one, or none at all, can run here.
        ValueError: unknown name; a precision that none has of those that can run here.
    """
    if name != "auto":
        get(name)
        return name, "it was named"
    reasons: list[str] = []
    runnable: list[str] = []
    for candidate in _BACKENDS:
        if candidate in skip:
            continue
        reason = why_not(candidate)
        if reason is None:
            runnable.append(candidate)
            if precision == "auto" or precision in get(candidate).PRECISIONS:
                passed = f" ({'; '.join(reasons)})" if reasons else ""
                return candidate, f"the fastest that can run here{passed}"
            reason = f"backend {candidate!r} has no precision {precision!r}"
        reasons.append(reason)
    for candidate in runnable:
        get(candidate).precision_why_not(precision)  # says which there are
    raise BackendUnavailable(f"no backend can run here: {'; '.join(reasons)}")


def compile_graph(
    name: str,
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    precision: str = "auto",
    threads: int | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> tuple[Any, str]:
    """Compiles a graph for a backend, or for ``"auto"``.

    Returns:
        The runner, and one sentence that says why this backend.

    Raises:
        ValueError: unknown backend or precision.
        BackendUnavailable: it cannot run here.
    """
    chosen, why = choose(name, precision)
    module = get(chosen)
    runner = module.compile(graph, weights, precision, threads, ranges)
    if name == "auto" and getattr(module, "SLOW_START", False):
        from fastgen.backends._switching import SwitchingRunner

        try:
            other, _ = choose("auto", precision, skip=(chosen,))
        except (BackendUnavailable, ValueError):
            return runner, why
        slow = get(other).compile(graph, weights, precision, threads, ranges)
        return SwitchingRunner(runner, slow, why), why
    return runner, why


def padded_size(graph: Graph, height: int, width: int) -> tuple[int, int]:
    """The smallest size of the graph's image input that holds height x width."""
    shape = graph.inputs[0].shape
    result = []
    for size, dim in ((height, shape[2]), (width, shape[3])):
        if isinstance(dim, Dim):
            size = max(size, dim.minimum)
            result.append(-(-size // dim.divisor) * dim.divisor)
        elif size > dim:
            raise ValueError(f"image side is {size} px, this network takes {dim} px; resize it")
        else:
            result.append(dim)
    return result[0], result[1]


def reflect_index(size: int, padded: int) -> np.ndarray:
    """Source index of each of ``padded`` positions: reflection without repeating the border.

    Unlike PyTorch's reflect padding it goes on reflecting when ``padded`` is more than twice
    ``size`` (a triangle wave), so that a side of 1 px works too. int64, shape (padded,).
    """
    period = max(2 * (size - 1), 1)
    index = np.arange(padded, dtype=np.int64) % period
    return np.minimum(index, period - index) if size > 1 else np.zeros(padded, np.int64)


def check_image_batch(image: Any) -> None:
    """Checks that an image batch is (N,H,W,3), uint8 or float32.

    Raises:
        ValueError: wrong shape.
        TypeError: wrong dtype.
    """
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"image batch has the shape {shape}, must be (N,H,W,3) without zeros")
    if str(image.dtype).removeprefix("torch.") not in ("uint8", "float32"):
        raise TypeError(f"image batch has the dtype {image.dtype}, must be uint8 or float32")
