"""Stylising pictures: the function ``stylize`` and the object ``Stylizer`` behind it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fastgen import backends
from fastgen._convert import to_batch, to_device_batch
from fastgen._stream import StreamStats, newest
from fastgen.backends._bands import BandInfo, check_bands
from fastgen.checkpoint import Checkpoint
from fastgen.image import DEFAULT_MAX_PIXELS
from fastgen.styles import load_style, style_path

__all__ = ["StreamStats", "Stylizer", "StylizerInfo", "check_strength", "stylize"]

_CACHE_SIZE = 4
_cache: OrderedDict[tuple[Any, ...], Stylizer] = OrderedDict()
_cache_lock = threading.Lock()
_live: weakref.WeakSet[Stylizer] = weakref.WeakSet()


def _after_fork() -> None:
    """A lock that another thread of the parent held would never be released in the child."""
    global _cache_lock
    _cache_lock = threading.Lock()
    for stylizer in _live:
        stylizer._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class StylizerInfo:
    """What a :class:`Stylizer` runs.

    Attributes:
        style: the style's name, from the checkpoint.
        model: the graph's name.
        parameters: number of weights.
        backend: the backend that runs it.
        why: why this backend.
        precision: ``"fp32"``, ``"bf16"``, ...
        threads: CPU threads.
        sha256: digest of graph and weights, from the checkpoint; empty if it was never saved.
        licence: terms of the weights, from the checkpoint.
    """

    style: str
    model: str
    parameters: int
    backend: str
    why: str
    precision: str
    threads: int
    sha256: str
    licence: str

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


class Stylizer:
    """A style, compiled once, applied to any number of images of any size.

    Calls from several threads are safe (they run one after the other), and so is forking.

    Args:
        style: name of a shipped style (``fastgen.list_styles()``), path of a ``.safetensors``
            checkpoint, or a ``Checkpoint``.
        backend: ``"auto"`` (the fastest that can run here), ``"tensorrt"``, ``"cuda"``, ``"cpu"``
            or ``"torch"``.
        precision: ``"auto"`` (the fastest here that is not visibly different from fp32) or one
            that the backend has.
        threads: CPU threads; None takes the backend's choice.
        band_rows: rows of the frame that the cpu backend works on at a time: less memory, the same
            result. ``"auto"``: bands where the whole frame would not fit into the memory that is
            left. None: never.
        recompute: what a run in bands computes again instead of keeping it: ``"auto"`` (at most as
            much again) or ``"full"`` (the least memory).

    Raises:
        ValueError: unknown style, backend or precision, or a checkpoint of another kind.
        BackendUnavailable: the named backend cannot run here.
    """

    def __init__(
        self,
        style: str | os.PathLike[str] | Checkpoint,
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        band_rows: int | str | None = "auto",
        recompute: str = "auto",
    ) -> None:
        _check_names(backend, precision)
        check_bands(band_rows, recompute)
        if threads is not None:
            known = isinstance(threads, int | np.integer) and not isinstance(threads, bool)
            if not known or threads < 1:
                raise ValueError(
                    f"threads is {threads!r}, must be an integer of at least 1 or None"
                )
            threads = int(threads)
        ckpt = load_style(style)
        self._runner, why = backends.compile_graph(
            backend, ckpt.graph, ckpt.weights, precision, threads, ckpt.ranges
        )
        self._bands: dict[str, Any] = {"band_rows": band_rows, "recompute": recompute}
        if self._runner.backend != "cpu":
            if band_rows not in (None, "auto") or recompute != "auto":
                name = self._runner.backend
                raise ValueError(f"backend {name!r} does not run in bands; take backend='cpu'")
            self._bands = {}
        self._lock = threading.Lock()
        _live.add(self)
        self._ranges = tuple(ckpt.meta["input_range"]), tuple(ckpt.meta["output_range"])
        self._info = StylizerInfo(
            style=str(ckpt.meta.get("style", "")),
            model=ckpt.graph.name,
            parameters=ckpt.graph.parameter_count(),
            backend=self._runner.backend,
            why=getattr(self._runner, "why", why),
            precision=self._runner.precision,
            threads=self._runner.threads,
            sha256=str(ckpt.meta.get("sha256", "")),
            licence=str(ckpt.meta.get("licence", "")),
        )

    @property
    def info(self) -> StylizerInfo:
        """What runs, where and why; ``backend="auto"`` may change it between frames."""
        runner = self._runner
        return replace(
            self._info,
            backend=runner.backend,
            why=getattr(runner, "why", self._info.why),
            precision=runner.precision,
            threads=runner.threads,
        )

    def __repr__(self) -> str:
        i = self.info
        return f"Stylizer({i.style!r}, backend={i.backend!r}, precision={i.precision!r})"

    def __call__(
        self,
        image: Any,
        *,
        strength: float = 1.0,
        preserve_color: bool = False,
        bgr: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Any:
        """Stylises one image or one batch; arguments and result as for :func:`stylize`."""
        _check_options(strength, preserve_color, bgr)
        (input_range, output_range) = self._ranges
        io = backends.ImageIO(
            input_range, output_range, float(strength), bool(preserve_color), bool(bgr)
        )
        run_planar = getattr(self._runner, "run_planar", None)
        if run_planar is not None:  # of the cuda backend: its tensors need not leave the GPU
            direct = to_device_batch(image, self._runner.device_index)
            if direct is not None:
                planes, reshape = direct
                with self._lock:
                    return reshape(run_planar(planes, io))
        pixels, restore = to_batch(image, bgr=bool(bgr), max_pixels=max_pixels)
        if strength == 0:
            return restore(pixels.copy())
        with self._lock:
            result = self._runner.run(pixels, io, **self._bands)
        return restore(result)

    def band_info(self, width: int, height: int) -> BandInfo | None:
        """How an image of this size is run in bands; None where it is run at once.

        With ``band_rows="auto"`` that is decided when a size is first seen, by the memory that is
        left then.
        """
        if not self._bands:
            return None
        return self._runner.band_info((1, height, width, 3), **self._bands)  # type: ignore[no-any-return]

    def warmup(self, width: int, height: int) -> None:
        """Runs once on an empty image, so that the first real one of this size is not slower.

        Args:
            width: pixels, at least 1.
            height: pixels, at least 1.
        """
        for what, value in (("width", width), ("height", height)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{what} is {value!r}, must be an integer of at least 1")
        self(np.zeros((height, width, 3), np.uint8))

    def stream(
        self,
        frames: Iterable[Any],
        *,
        strength: float = 1.0,
        preserve_color: bool = False,
        bgr: bool = False,
        policy: str = "all",
        stats: StreamStats | None = None,
        stabilize: bool | float = False,
    ) -> Iterator[Any]:
        """Stylises frames one by one, in order, when the result is asked for.

        With ``policy="all"`` nothing is read ahead or dropped. With ``"latest"`` a thread reads
        ``frames`` as they come, and each result is of the newest one: what a camera needs, whose
        pictures would otherwise be older and older. When the returned generator ends or is closed,
        ``frames`` is closed too if it is a generator.

        Args:
            frames: images of any accepted type; sizes may change between frames.
            strength: as for :func:`stylize`.
            preserve_color: as for :func:`stylize`.
            bgr: as for :func:`stylize`.
            policy: ``"all"`` or ``"latest"``.
            stats: is told of every frame: how many, how many were dropped, their latency.
            stabilize: paint the frames, which must be uint8 arrays (H,W,3) then, as a
                :class:`fastgen.Stabilizer` does: True, or its strength in 0..1.

        Returns:
            A generator with one result per frame.

        Raises:
            TypeError: ``frames`` is one image, or nothing that can be iterated over.
            ValueError: an unknown policy, a wrong strength.
        """
        _check_options(strength, preserve_color, bgr)
        if policy not in ("all", "latest"):
            raise ValueError(f"policy is {policy!r}, must be 'all' or 'latest'")
        stats = StreamStats() if stats is None else stats
        options = {"strength": strength, "preserve_color": preserve_color, "bgr": bgr}
        return self._stream(
            _frames(frames), self._painter(stabilize), options, policy == "latest", stats
        )

    def _painter(self, stabilize: object) -> Callable[..., Any]:
        """What paints the next frame of a video."""
        from fastgen.stabilizer import Stabilizer, stabilizer_strength

        strength = stabilizer_strength(stabilize)
        return Stabilizer(self, strength=strength) if strength else self

    def _stream(
        self,
        frames: Iterator[Any],
        paint: Callable[..., Any],
        options: dict[str, Any],
        latest: bool,
        stats: StreamStats,
    ) -> Iterator[Any]:
        timed = newest(frames, stats) if latest else ((f, time.perf_counter()) for f in frames)
        try:
            for frame, arrived in timed:
                result = paint(frame, **options)
                stats.add(arrived)
                yield result
        finally:
            timed.close()  # type: ignore[attr-defined]
            close = getattr(frames, "close", None)
            # A generator that its reader's thread still waits in cannot be closed from here.
            with contextlib.suppress(*([ValueError] if latest else [])):
                if close is not None:
                    close()


def stylize(
    image: Any,
    style: str | os.PathLike[str] | Checkpoint = "starry_night",
    *,
    strength: float = 1.0,
    preserve_color: bool = False,
    backend: str = "auto",
    precision: str = "auto",
    bgr: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Any:
    """Paints a photo in a style. What comes in decides what comes out; the size never changes.

    The last four combinations of style, backend and precision stay loaded for the next call (a
    ``Checkpoint`` object does not); make a :class:`Stylizer` to decide yourself.

    Args:
        image: one of these; it is not modified.

            - path of an image file -> Pillow image, upright after its EXIF orientation;
            - Pillow image of any mode -> Pillow image RGB, or RGBA with its alpha;
            - array (H,W,C) or (N,H,W,C), or grey (H,W) -> array of the same dtype. uint8 is RGB
              0..255, uint16 0..65535, float16/32/64 must lie in [0,1]. One channel (or none)
              gives three; a fourth is alpha and is returned as it is;
            - torch tensor (C,H,W) or (N,C,H,W), uint8 or float -> tensor of the same dtype on the
              same device, without gradient.
        style: name of a shipped style, path of a ``.safetensors`` checkpoint, or a ``Checkpoint``.
        strength: 0 gives the photo, 1 the painting, in between a mix.
        preserve_color: keep the photo's colours (chroma) and take only lightness from the painting.
        backend: ``"auto"``, ``"tensorrt"``, ``"cuda"``, ``"cpu"`` or ``"torch"``.
        precision: ``"auto"`` or a precision that the backend has.
        bgr: array and tensor channels are in OpenCV's order.
        max_pixels: largest width*height of a file; 100 megapixels unless raised.

    Returns:
        The stylised image: same type, size, dtype and device as ``image``.

    Raises:
        TypeError: an image of a type or dtype that is not supported.
        ValueError: wrong shape or values, unknown style, backend or precision, strength outside
            0..1, a damaged or too large file.
        OSError: a file cannot be read.
        BackendUnavailable: the named backend cannot run here.

    Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution", ECCV 2016.
    """
    _check_options(strength, preserve_color, bgr)
    _check_names(backend, precision)
    stylizer = _cached(style, backend, precision)
    return stylizer(
        image, strength=strength, preserve_color=preserve_color, bgr=bgr, max_pixels=max_pixels
    )


def _cached(style: str | os.PathLike[str] | Checkpoint, backend: str, precision: str) -> Stylizer:
    if isinstance(style, Checkpoint):
        return Stylizer(style, backend=backend, precision=precision)
    path = os.path.realpath(style_path(style))
    state = os.stat(path)
    # A file that was trained again or replaced is loaded again.
    key = (path, state.st_mtime_ns, state.st_size, backend, precision)
    with _cache_lock:
        stylizer = _cache.pop(key, None)
        if stylizer is None:
            stylizer = Stylizer(path, backend=backend, precision=precision)
        _cache[key] = stylizer
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return stylizer


def check_strength(strength: object) -> None:
    """Checks that a strength is a number in 0..1.

    Raises:
        TypeError: not a number.
        ValueError: outside 0..1, or NaN.
    """
    is_number = isinstance(strength, int | float | np.integer | np.floating)
    if isinstance(strength, bool) or not is_number:
        raise TypeError(f"strength is {strength!r}, must be a number in 0..1")
    if not 0.0 <= strength <= 1.0:  # type: ignore[operator]
        raise ValueError(f"strength is {strength}, must be in 0..1")


def _check_names(backend: object, precision: object) -> None:
    for what, value in (("backend", backend), ("precision", precision)):
        if not isinstance(value, str):
            raise TypeError(f"{what} is {value!r}, must be a string such as 'auto'")


def _frames(frames: Any) -> Iterator[Any]:
    """One picture can be iterated over too (a path by letters), but never means frames."""
    shape = getattr(frames, "shape", None)
    single = isinstance(frames, str | bytes | os.PathLike) or (shape is not None and len(shape) < 4)
    try:
        if not single:
            return iter(frames)
    except TypeError:
        pass
    kind = type(frames).__qualname__
    raise TypeError(f"frames is one {kind}, must be an iterable of images; use [image] for one")


def _check_options(strength: object, preserve_color: object, bgr: object) -> None:
    check_strength(strength)
    for what, value in (("preserve_color", preserve_color), ("bgr", bgr)):
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{what} is {value!r}, must be True or False")
