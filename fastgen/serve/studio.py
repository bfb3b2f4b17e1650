"""The styles that are served: one compiled ``Stylizer`` each, shared by all clients."""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastgen import image as image_module
from fastgen._masks import Mask
from fastgen._mix import StyleMix
from fastgen.errors import BackendUnavailable, ImageError
from fastgen.serve.settings import Settings
from fastgen.stabilizer import Stabilizer
from fastgen.styles import list_styles, load_style, style_card, style_path
from fastgen.stylizer import Stylizer

__all__ = [
    "PAGE",
    "PHOTO_FORMATS",
    "Look",
    "Painted",
    "Studio",
    "Style",
    "decode",
    "encode_jpeg",
    "own_words",
]

PAGE = Path(__file__).parent / "page"
# What browsers send; the other decoders (TIFF above all) stay closed to strangers.
PHOTO_FORMATS = ("JPEG", "PNG", "WEBP")
_THUMBNAIL = (192, 128)
_JPEG_SIDE = 65_500  # libjpeg's limit
_SCANS = 100  # of a JPEG; encoders write about ten


@dataclass(frozen=True)
class Style:
    """What clients are told of a style.

    Attributes:
        name: what requests name it by.
        title: the painting's title, or the name.
        artist: the painter, or nothing.
        size: ``"small"`` (for streams), ``"half"`` or ``"full"``, or nothing for checkpoints.
        licence: terms of the weights.
    """

    name: str
    title: str
    artist: str
    size: str
    licence: str


@dataclass(frozen=True)
class Look:
    """How something is painted.

    Attributes:
        style: a name that is served.
        second: another one that is mixed in, or None.
        share: of ``second``, 0..1.
        strength: as for ``stylize``.
        preserve_color: as for ``stylize``.
    """

    style: str
    second: str | None = None
    share: float = 0.5
    strength: float = 1.0
    preserve_color: bool = False


@dataclass(frozen=True)
class Painted:
    """A result, and how long the network took in seconds."""

    pixels: np.ndarray
    seconds: float


class Studio:
    """Loads styles when they are first asked for; runs in the engine's thread alone.

    Args:
        settings: which styles, on what backend.

    Attributes:
        styles: what is served, by name.
        stabilizes: whether streams can be stabilized here.

    Raises:
        ValueError: no such style, or two of one name.
        OSError: a checkpoint that cannot be read.
        BackendUnavailable: a named backend cannot run here.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._where: dict[str, str | os.PathLike[str]] = {}
        self.styles: dict[str, Style] = {}
        for item in settings.styles or list_styles():
            for name, where in _found(item):
                if self._where.setdefault(name, where) is not where and name in self.styles:
                    if os.path.samefile(style_path(where), style_path(self._where[name])):
                        continue
                    raise ValueError(f"two styles are called {name!r}; rename one of the files")
                self.styles[name] = _describe(name, where)
        self._loaded: dict[str, Stylizer] = {}
        self._mixes: dict[tuple[str, str], StyleMix] = {}
        self._lock = threading.Lock()
        # A backend that cannot run here is an error now, not at the first frame.
        first = self.stylizer(next(iter(self.styles)))
        try:
            Stabilizer(first)
            self.stabilizes = True
        except BackendUnavailable:
            self.stabilizes = False  # without the compiled extension

    @property
    def first(self) -> str:
        """The style that is taken unless another is named."""
        return next(iter(self.styles))

    def stylizer(self, name: str) -> Stylizer:
        """The style's compiled network.

        Args:
            name: a key of ``styles``.
        """
        with self._lock:
            found = self._loaded.get(name)
            if found is None:
                s = self._settings
                found = Stylizer(
                    self._where[name], backend=s.backend, precision=s.precision, threads=s.threads
                )
                self._loaded[name] = found
        return found

    def painter(self, look: Look) -> Stylizer:
        """The network or networks of a look, whatever its share."""
        if look.second is None:
            return self.stylizer(look.style)
        pair = look.style, look.second
        mix = self._mixes.get(pair)
        if mix is None:
            mix = self._mixes[pair] = StyleMix(dict.fromkeys(pair, 1.0), load=self.stylizer)
        return mix

    def paint(
        self,
        look: Look,
        pixels: np.ndarray,
        stabilizer: Stabilizer | None = None,
        mask: Mask | None = None,
    ) -> Painted:
        """Paints (H,W,3) uint8.

        Args:
            look: how.
            pixels: the photo or frame.
            stabilizer: of ``painter(look)`` and the stream that the frame belongs to.
            mask: where the second style is seen, or, without one, the style.
        """
        options: dict[str, Any] = {"strength": look.strength, "preserve_color": look.preserve_color}
        if mask is not None:
            pair = ("none", look.style) if look.second is None else (look.style, look.second)
            painter: Any = StyleMix(list(pair), load=self.stylizer)
            options["mask"] = mask
        else:
            painter = stabilizer or self.painter(look)
            if look.second is not None:
                options["blend"] = {look.style: 1 - look.share, look.second: look.share}
        start = time.perf_counter()
        result = painter(pixels, **options)
        return Painted(result, time.perf_counter() - start)

    def thumbnail(self, name: str) -> bytes:
        """The example photo in a style, as a small JPEG."""
        from PIL import Image

        photo = image_module.decode(PAGE / "example.jpg").convert("RGB")
        small = photo.resize(_THUMBNAIL, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return encode_jpeg(self.paint(Look(name), np.asarray(small)).pixels, 82)


def _found(item: str | os.PathLike[str]) -> list[tuple[str, str | os.PathLike[str]]]:
    """(name, what load_style takes) of a style, a pattern or a file."""
    if isinstance(item, str) and any(c in item for c in "*?["):
        names = list_styles(item)
        if not names:
            raise ValueError(f"no style matches {item!r}; `fastgen styles` lists them")
        return [(n, n) for n in names]
    if isinstance(item, str) and item in list_styles():
        return [(item, item)]
    return [(style_path(item).stem, item)]


def _describe(name: str, where: str | os.PathLike[str]) -> Style:
    shipped = isinstance(where, str) and where in list_styles()
    if not shipped:
        ckpt = load_style(where)
        meta = ckpt.meta
        title = str(meta.get("style") or name)
        return Style(name, title, "", "", str(meta.get("licence", "")))
    card = style_card(name)
    painting: dict[str, Any] = card.get("painting", {})
    return Style(
        name=name,
        title=str(painting.get("title", name)),
        artist=str(painting.get("artist", "")),
        size=name.partition(".")[2] or "half",
        licence=str(card.get("licence", "")),
    )


# ---------------------------------------------------------------------------- files


def decode(data: bytes | memoryview, max_pixels: int, name: str) -> image_module.PillowPixels:
    """Pixels of a JPEG, PNG or WebP file that a stranger sent.

    Raises:
        ImageError: another format, damaged, too large, or made to take long.
    """
    if bytes(data[:2]) == b"\xff\xd8":
        # Each scan of a progressive JPEG is a pass over all pixels, and one may cost a few bytes.
        # Inside a scan's data the marker cannot occur.
        scans = bytes(data).count(b"\xff\xda")
        if scans > _SCANS:
            raise ImageError(f"{name}: a JPEG of {scans} scans, the limit is {_SCANS}")
    image = image_module.decode_bytes(data, max_pixels=max_pixels, formats=PHOTO_FORMATS, name=name)
    return image_module.pixels_of(image)


def own_words(text: str) -> str:
    """An error without the remedy that is for the one who runs the server."""
    return text.partition("; for a trusted file")[0]


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """(H,W,3) uint8 as JPEG with halved chroma, quick rather than small.

    Raises:
        ImageError: a side longer than a JPEG can have.
    """
    height, width = pixels.shape[:2]
    if max(width, height) > _JPEG_SIDE:
        raise ImageError(
            f"{width}x{height} is no JPEG, whose sides have {_JPEG_SIDE} pixels at most; take "
            "another format"
        )
    from PIL import Image, JpegImagePlugin  # noqa: F401 (registers the writer)

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
