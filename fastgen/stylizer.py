"""Stylising pictures: the function ``stylize`` and the object ``Stylizer`` behind it."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen import backends
from fastgen._convert import (
    check_color,
    check_names,
    check_options,
    check_strength,
    to_batch,
    to_device_batch,
)
from fastgen._stream import StreamStats, check_frames, paint_all
from fastgen.backends._bands import BandInfo, check_bands
from fastgen.checkpoint import Checkpoint
from fastgen.image import DEFAULT_MAX_PIXELS
from fastgen.styles import load_style, style_path

if TYPE_CHECKING:
    from fastgen._controls import Controls

__all__ = [
    "StreamStats",
    "Style",
    "Stylizer",
    "StylizerInfo",
    "check_color",
    "check_strength",
    "stylize",
]

# One style, or several: a blend with weights, or the regions of a mask.
Style = str | os.PathLike[str] | Checkpoint | list[Any] | tuple[Any, ...] | Mapping[Any, Any]

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
            checkpoint, or a ``Checkpoint``. A dict of styles and weights is a blend, a list of
            styles is for the regions of a mask; ``"none"`` in them is the photo itself.
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

    # Networks of a picture, and whether they are several; see ``_mix``.
    _parts: tuple[Stylizer | None, ...]
    _stride: int | None = None  # see ``Graph.stride``; None: pictures are not to be shifted

    def __new__(cls, style: Style, **_: Any) -> Stylizer:
        """Several styles are a ``StyleMix``, which is called in the same way."""
        if cls is Stylizer and isinstance(style, list | tuple | Mapping):
            from fastgen._mix import StyleMix

            return super().__new__(StyleMix)
        return super().__new__(cls)

    def __init__(
        self,
        style: Style,
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        band_rows: int | str | None = "auto",
        recompute: str = "auto",
    ) -> None:
        check_names(backend, precision)
        check_bands(band_rows, recompute)
        if threads is not None:
            known = isinstance(threads, int | np.integer) and not isinstance(threads, bool)
            if not known or threads < 1:
                raise ValueError(
                    f"threads is {threads!r}, must be an integer of at least 1 or None"
                )
            threads = int(threads)
        ckpt = load_style(style)  # type: ignore[arg-type]
        self._parts = (self,)
        self._runner, why = backends.compile_graph(
            backend, ckpt.graph, ckpt.weights, precision, threads, ckpt.ranges
        )
        if not getattr(self._runner, "sized_engines", False):
            self._stride = ckpt.graph.stride()
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
        preserve_color: bool | float = False,
        stroke_size: float | None = None,
        mask: Any = None,
        feather: float = 0,
        blend: Mapping[Any, float] | None = None,
        bgr: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Any:
        """Stylises one image or one batch; arguments and result as for :func:`stylize`.

        ``blend`` gives a blend other weights than it was made with: a dict of its styles.
        """
        controls = self.check_controls(
            strength, preserve_color, stroke_size, mask, feather, blend, bgr, max_pixels
        )
        if controls is None:
            painted = self._paint_on_device(image, strength, preserve_color == 1, bgr)
            if painted is not None:
                return painted
        pixels, restore = to_batch(image, bgr=bool(bgr), max_pixels=max_pixels)
        if strength == 0:
            return restore(pixels.copy())
        if controls is None:
            return restore(self._paint_batch(pixels, strength, preserve_color == 1, bgr))
        from fastgen._controls import paint

        return restore(paint(self._parts, pixels, controls))

    def check_controls(
        self,
        strength: float = 1.0,
        preserve_color: bool | float = False,
        stroke_size: float | None = None,
        mask: Any = None,
        feather: float = 0,
        blend: Mapping[Any, float] | None = None,
        bgr: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Controls | None:
        """Checks the arguments of a call, as for :func:`stylize`.

        Returns:
            None for one plain run of the network.

        Raises:
            TypeError, ValueError: what is wrong or does not fit this style.
        """
        check_options(strength, preserve_color, bgr)
        return self._controls(
            mask,
            feather,
            blend,
            strength=float(strength),
            keep=float(preserve_color),
            bgr=bool(bgr),
            stroke_size=stroke_size,
            max_pixels=max_pixels,
        )

    def _paint_batch(
        self, pixels: np.ndarray, strength: float, preserve_color: bool, bgr: bool
    ) -> np.ndarray:
        """Runs the network on a batch (N,H,W,3)."""
        io = self._image_io(strength, preserve_color, bgr)
        with self._lock:
            return self._runner.run(pixels, io, **self._bands)  # type: ignore[no-any-return]

    def _image_io(self, strength: float, preserve_color: bool, bgr: bool) -> backends.ImageIO:
        return backends.ImageIO(*self._ranges, float(strength), bool(preserve_color), bool(bgr))

    def _paint_on_device(
        self, image: Any, strength: float, preserve_color: bool, bgr: bool
    ) -> Any | None:
        """The result for a tensor on the runner's GPU, which need not leave it; None for others."""
        run_planar = getattr(self._runner, "run_planar", None)
        direct = to_device_batch(image, self._runner.device_index) if run_planar else None
        if run_planar is None or direct is None:
            return None
        planes, reshape = direct
        with self._lock:
            return reshape(run_planar(planes, self._image_io(strength, preserve_color, bgr)))

    def _release(self, shape: tuple[int, ...]) -> None:
        """Gives memory back where it is so short that such batches are run in bands."""
        if self._bands and self._runner.band_info(shape, **self._bands) is not None:
            with self._lock:
                self._runner.release()

    def _controls(self, mask: Any, feather: float, blend: Any, **rest: Any) -> Controls | None:
        """What depends on whether this is one style or several."""
        for what, value in (("mask", mask), ("blend", blend), ("feather", feather or None)):
            if value is not None:
                raise ValueError(
                    f"{what} is for several styles, this is {self._info.style or 'one'!r} alone; "
                    "give a list of styles for a mask, a dict of weights for a blend"
                )
        if rest["stroke_size"] is None and rest["keep"] in (0.0, 1.0):
            return None
        from fastgen._controls import Controls, check_stroke_size

        if rest["stroke_size"] is not None:
            check_stroke_size(rest["stroke_size"])
        return Controls(weights=(1.0,), mask=None, **rest)

    def band_info(
        self, width: int, height: int, stroke_size: float | None = None
    ) -> BandInfo | None:
        """How an image of this size is run in bands; None where it is run at once.

        With ``band_rows="auto"`` that is decided when a size is first seen, by the memory that is
        left then.
        """
        if not self._bands:
            return None
        if stroke_size is not None:
            from fastgen._controls import network_size

            width, height = network_size(width, height, stroke_size, 1 << 62)
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
        preserve_color: bool | float = False,
        bgr: bool = False,
        policy: str = "all",
        stats: StreamStats | None = None,
        stabilize: bool | float = False,
        **controls: Any,
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
            controls: ``stroke_size``, ``mask``, ``feather`` and ``blend``, as for a call.

        Returns:
            A generator with one result per frame.

        Raises:
            TypeError: ``frames`` is one image, or nothing that can be iterated over; an unknown
                argument.
            ValueError: an unknown policy, a wrong strength.
        """
        check_options(strength, preserve_color, bgr)
        if policy not in ("all", "latest"):
            raise ValueError(f"policy is {policy!r}, must be 'all' or 'latest'")
        if unknown := sorted(set(controls) - {"stroke_size", "mask", "feather", "blend"}):
            raise TypeError(f"stream has no argument {unknown[0]!r}")
        if controls.get("mask") is not None:
            from fastgen._masks import Mask

            if not isinstance(controls["mask"], Mask):
                controls["mask"] = Mask(controls["mask"], feather=controls.pop("feather", 0))
        stats = StreamStats() if stats is None else stats
        options = {"strength": strength, "preserve_color": preserve_color, "bgr": bgr} | controls
        paint = self._painter(stabilize)
        return paint_all(paint, check_frames(frames), options, policy == "latest", stats)

    def _painter(self, stabilize: object) -> Callable[..., Any]:
        """What paints the next frame of a video."""
        from fastgen.stabilizer import Stabilizer, stabilizer_strength

        strength = stabilizer_strength(stabilize)
        return Stabilizer(self, strength=strength) if strength else self


def stylize(
    image: Any,
    style: Style = "starry_night",
    *,
    strength: float = 1.0,
    preserve_color: bool | float = False,
    stroke_size: float | None = None,
    mask: Any = None,
    feather: float = 0,
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
            Several of them: a dict with weights, ``{"starry_night": 0.7, "great_wave": 0.3}``, is
            a blend; a list, for which a mask says where each is seen, may contain ``"none"``, the
            photo.
        strength: 0 gives the photo, 1 the painting, in between a mix.
        preserve_color: keep the photo's colours (chroma) and take only lightness from the painting;
            a number in 0..1 keeps a part.
        stroke_size: size of the strokes in the picture, whatever its number of pixels: 1 is as in
            training (the network runs at a short side of 256 pixels), 0.5 half of that, and so on.
            The painting gets the photo's detail back where it follows the photo. None: the
            network runs on the picture's own pixels.
        mask: where each style of a list is seen; see :class:`fastgen.Mask`.
        feather: pixels on each side of an edge of the mask over which it is soft.
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
    check_options(strength, preserve_color, bgr)
    check_names(backend, precision)
    stylizer = _cached(style, backend, precision)
    return stylizer(
        image,
        strength=strength,
        preserve_color=preserve_color,
        stroke_size=stroke_size,
        mask=mask,
        feather=feather,
        bgr=bgr,
        max_pixels=max_pixels,
    )


def _cached(style: Style, backend: str, precision: str) -> Stylizer:
    if isinstance(style, Checkpoint):
        return Stylizer(style, backend=backend, precision=precision)
    if isinstance(style, list | tuple | Mapping):
        from fastgen._mix import NONE, StyleMix

        def load(item: Any) -> Any:
            photo = item is None or (isinstance(item, str) and item == NONE)
            return item if photo else _cached(item, backend, precision)

        return StyleMix(style, load=load)
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
