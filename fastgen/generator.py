"""Generating pictures from a content and a style: ``generate`` and ``Generator`` behind it."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastgen import backends
from fastgen._pictures import to_planes
from fastgen.checkpoint import Checkpoint
from fastgen.errors import CheckpointError, GraphError
from fastgen.generators import generator_path, load_generator
from fastgen.glyphs import Glyphs

__all__ = ["Generator", "GeneratorInfo", "generate"]

STYLE_CODE = "style_code_relu"  # the style vector's value in the graphs of fastgen.models.saae
MODES = ("pairs", "grid")
_BATCH = 64  # images of one run of the network; larger ones gain nothing and take memory
_CACHE_SIZE = 4
_cache: OrderedDict[tuple[Any, ...], Generator] = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True)
class GeneratorInfo:
    """What a :class:`Generator` runs.

    Attributes:
        name: the model's name, from the checkpoint.
        model: the graph's name.
        alphabet: the characters whose glyphs it was trained with; empty where contents are images.
        size: (height, width) of the pictures.
        channels: 1 (grey) or 3.
        style_size: (height, width) of a style image.
        styles: number of stored styles.
        parameters: number of weights.
        backend: the backend that runs it, and why.
        why: why this backend.
        precision: ``"fp32"``, ``"bf16"``, ...
        threads: CPU threads.
        sha256: digest of graph and weights.
        licence: terms of the weights.
    """

    name: str
    model: str
    alphabet: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    style_size: tuple[int, int]
    styles: int
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


class Generator:
    """A stylized adversarial autoencoder, compiled once.

    Calls from several threads are safe.

    Args:
        model: name of a shipped generator (``fastgen.list_generators()``), path of a
            ``.safetensors`` checkpoint of ``fastgen train saae``, or a ``Checkpoint``.
        backend: ``"auto"``, ``"cuda"``, ``"cpu"`` or ``"torch"``.
        precision: ``"auto"`` or one that the backend has.
        threads: CPU threads; None takes the backend's choice.
        font: font file of glyphs that the checkpoint does not hold; None takes the default font,
            then one of the system.

    Raises:
        ValueError: unknown model, backend or precision, or a checkpoint of another kind.
        BackendUnavailable: the named backend cannot run here.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Checkpoint = "saae-mnist",
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        font: str | os.PathLike[str] | None = None,
    ) -> None:
        ckpt = load_generator(model)
        graph, meta = ckpt.graph, ckpt.meta
        name, why = backends.choose(backend)
        try:
            # Cut at the style vector, so that a style is encoded once for many contents.
            parts = graph.part(("style",), STYLE_CODE), graph.part(("content", STYLE_CODE), "image")
            shapes = graph.infer_shapes(graph.smallest_shapes())
        except GraphError as error:
            raise CheckpointError(f"this is no generator's graph: {error}") from None
        runners = [
            backends.get(name).compile(
                part, {k: ckpt.weights[k] for k in part.weight_shapes()}, precision, threads
            )
            for part in parts
        ]
        self._encoder, self._decoder = runners
        self._content, self._style, self._image = (
            _planes_of(shapes[key]) for key in ("content", "style", "image")
        )
        self._bank = _unpack(meta.get("style_bank"), shapes[STYLE_CODE][1])
        self._alphabet = tuple(meta.get("alphabet", ()))
        self._known = _glyphs(meta, self._alphabet, self._content)
        margin = float(meta.get("glyph_margin", 0.1))
        self._draw = Glyphs(self._content[1:], font, margin) if self._known is not None else None
        self._info = GeneratorInfo(
            name=str(meta.get("name", "")),
            model=graph.name,
            alphabet=self._alphabet,
            size=self._image[1:],
            channels=self._image[0],
            style_size=self._style[1:],
            styles=len(self._bank),
            parameters=graph.parameter_count(),
            backend=name,
            why=why,
            precision=runners[0].precision,
            threads=runners[0].threads,
            sha256=str(meta.get("sha256", "")),
            licence=str(meta.get("licence", "")),
        )

    @property
    def info(self) -> GeneratorInfo:
        """What runs, where and why."""
        return self._info

    def __repr__(self) -> str:
        i = self._info
        return f"Generator({i.name!r}, backend={i.backend!r}, precision={i.precision!r})"

    def __call__(
        self,
        content: Any,
        style: Any = None,
        *,
        mode: str = "pairs",
        seed: int | None = None,
    ) -> np.ndarray:
        """Generates pictures; arguments and result as for :func:`generate`."""
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, must be one of {', '.join(MODES)}")
        contents = self.contents(content)
        count = len(contents)
        if style is None:
            codes = self.stored_styles(count if mode == "pairs" else 1, seed)
        else:
            codes = self.encode(style)
        if mode == "grid":
            rows, columns = np.divmod(np.arange(len(codes) * count), count)
        else:
            if len(codes) not in (1, count):
                raise ValueError(
                    f"{count} contents and {len(codes)} styles make no pairs; give one style or "
                    f"{count}, or mode='grid' for all with all"
                )
            columns = np.arange(count)
            rows = columns if len(codes) == count else np.zeros(count, np.int64)
        return self.decode(contents, codes, columns, rows)

    def contents(self, content: Any) -> np.ndarray:
        """Contents as the network takes them.

        Args:
            content: as for :func:`generate`.

        Returns:
            (N,C,H,W) float32 in 0..1.
        """
        texts = isinstance(content, str) or (
            isinstance(content, list | tuple) and all(isinstance(t, str) for t in content)
        )
        if not texts:
            return to_planes("content", content, self._content)
        if self._known is None or self._draw is None:
            raise ValueError(
                f"model {self._info.name!r} takes content images of "
                f"{self._content[2]}x{self._content[1]}, not text"
            )
        items = list(content)
        if not items:
            raise ValueError("content is empty; give at least one character")
        if any(t.isspace() for t in items):
            raise ValueError("white space has no glyph; leave it out of the text")
        unknown = [t for t in dict.fromkeys(items) if t not in self._known]
        glyphs = dict(self._known)
        if unknown:
            glyphs |= dict(zip(unknown, self._draw(unknown), strict=True))
        return np.stack([glyphs[t] for t in items])[:, None]

    def unfamiliar(self, text: Any) -> list[str]:
        """Those glyphs of a text that the model was not trained with, in order."""
        return [t for t in dict.fromkeys(text) if t not in self._alphabet]

    def encode(self, style: Any) -> np.ndarray:
        """Style vectors, to be used for any number of contents.

        Args:
            style: one image or several, as for :func:`generate`.

        Returns:
            (N,S) float32.
        """
        planes = to_planes("style", style, self._style)
        parts = [
            self._encoder.run({"style": planes[i : i + _BATCH]})[STYLE_CODE]
            for i in range(0, len(planes), _BATCH)
        ]
        return np.concatenate(parts)

    def stored_styles(self, count: int, seed: int | None = None) -> np.ndarray:
        """Style vectors (count,S) drawn from the model's bank of real styles by a seed."""
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
            raise TypeError(f"seed is {seed!r}, must be an integer or None")
        rng = np.random.default_rng(0 if seed is None else abs(int(seed)))
        return self.all_styles()[rng.integers(0, len(self._bank), count)]

    def all_styles(self) -> np.ndarray:
        """All stored style vectors (N,S).

        Raises:
            ValueError: the model stores none.
        """
        if not len(self._bank):
            raise ValueError(
                f"model {self._info.name!r} has no stored styles; give style images (style=)"
            )
        return self._bank

    def decode(
        self,
        contents: np.ndarray,
        codes: np.ndarray,
        which_content: np.ndarray | None = None,
        which_style: np.ndarray | None = None,
    ) -> np.ndarray:
        """Pictures of contents and style vectors, batch by batch.

        Args:
            contents: (N,C,H,W) of :meth:`contents`.
            codes: (M,S) of :meth:`encode` or :meth:`stored_styles`.
            which_content: (K,) index of each picture's content; None for all in order.
            which_style: (K,) index of each picture's style vector; None for all in order.

        Returns:
            (K,H,W) or (K,H,W,3) float32 in 0..1.
        """
        picked = np.arange(len(contents)) if which_content is None else which_content
        styled = np.arange(len(codes)) if which_style is None else which_style
        channels, height, width = self._image
        result = np.empty((len(picked), channels, height, width), np.float32)
        for i in range(0, len(picked), _BATCH):
            now = slice(i, i + _BATCH)
            inputs = {"content": contents[picked[now]], STYLE_CODE: codes[styled[now]]}
            result[now] = self._decoder.run(inputs)["image"]
        np.clip(result, 0.0, 1.0, out=result)
        if channels == 1:
            return result[:, 0]
        return np.ascontiguousarray(result.transpose(0, 2, 3, 1))


def generate(
    content: Any,
    style: Any = None,
    model: str | os.PathLike[str] | Checkpoint = "saae-mnist",
    *,
    mode: str = "pairs",
    seed: int | None = None,
    backend: str = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Draws contents in styles.

    The last four combinations of model, backend and precision stay loaded (a ``Checkpoint`` object
    does not); make a :class:`Generator` to decide yourself.

    Args:
        content: a string (its characters, one glyph each), a list of strings (one glyph each), or
            content images like ``style``. Characters that the model was not trained with are
            drawn with a font; how well they come out is not promised.
        style: one image or N: a path, a Pillow image, an array (H,W), (H,W,C), (N,H,W) or
            (N,H,W,C), uint8 or floats in [0,1], or a list of these. Files and Pillow images are
            stretched to the model's size. None draws one real style for each content from those
            that the model stores.
        model: name of a shipped generator, path of a checkpoint, or a ``Checkpoint``.
        mode: ``"pairs"``: the i-th content in the i-th style, or all in the one style; ``"grid"``:
            every content in the first style, then every content in the second, and so on.
        seed: chooses stored styles; None is 0.
        backend: ``"auto"``, ``"cuda"``, ``"cpu"`` or ``"torch"``.
        precision: ``"auto"`` or a precision that the backend has.

    Returns:
        (N,H,W) for a grey model, (N,H,W,3) for a colour model; float32 in [0,1].

    Raises:
        ValueError: wrong sizes, channels or values; numbers that make no pairs; a character that
            no font has; an unknown model, backend or precision.
        TypeError: something that is no picture.
        OSError: a file cannot be read.
        BackendUnavailable: the named backend cannot run here.

    Source: Zhao, Deng, Huang, Lu, Hua, "Stylized Adversarial AutoEncoder for Image Generation",
    ACM Multimedia 2017.
    """
    return _cached(model, backend, precision)(content, style, mode=mode, seed=seed)


def _cached(model: str | os.PathLike[str] | Checkpoint, backend: str, precision: str) -> Generator:
    if isinstance(model, Checkpoint):
        return Generator(model, backend=backend, precision=precision)
    path = os.path.realpath(generator_path(model))
    state = os.stat(path)
    key = (path, state.st_mtime_ns, state.st_size, backend, precision)
    with _cache_lock:
        generator = _cache.pop(key, None)
        if generator is None:
            generator = Generator(path, backend=backend, precision=precision)
        _cache[key] = generator
        while len(_cache) > _CACHE_SIZE:
            _cache.popitem(last=False)
    return generator


def _planes_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 4:
        raise CheckpointError(f"this is no generator's graph: {shape} is no batch of pictures")
    return shape[1], shape[2], shape[3]


def _unpack(item: Any, size: int) -> np.ndarray:
    """The stored style vectors (N,size); an untrusted part of the checkpoint."""
    if item is None:
        return np.zeros((0, size), np.float32)
    try:
        count, found = (int(v) for v in item["shape"])
        values = np.frombuffer(base64.b64decode(item["float16"], validate=True), "<f2")
        if found != size or values.size != count * size or not np.isfinite(values).all():
            raise ValueError(f"{values.size} values for ({count}, {found}), must be (N, {size})")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's style_bank is damaged: {error}") from None
    return values.reshape(count, size).astype(np.float32)


def _glyphs(
    meta: dict[str, Any], alphabet: tuple[str, ...], shape: tuple[int, int, int]
) -> dict[str, np.ndarray] | None:
    """Stored glyphs by text; None for a model whose contents are images."""
    if not meta.get("content_is_glyph"):
        return None
    from PIL import Image, UnidentifiedImageError

    height, width = shape[1:]
    try:
        file = io.BytesIO(base64.b64decode(meta["glyphs"], validate=True))
        with Image.open(file, formats=["PNG"]) as image:
            if image.size != (width, height * len(alphabet)) or image.mode != "L":
                raise ValueError(f"a sheet of {image.size} for {len(alphabet)} glyphs")
            sheet = np.asarray(image, np.float32) / 255
    except (TypeError, KeyError, ValueError, OSError, UnidentifiedImageError) as error:
        raise CheckpointError(f"the checkpoint's glyphs are damaged: {error}") from None
    return dict(zip(alphabet, sheet.reshape(len(alphabet), height, width), strict=True))
