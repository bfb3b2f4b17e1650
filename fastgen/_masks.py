"""Masks: which style is seen where, with soft edges."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgen import _resize
from fastgen import image as image_module

__all__ = ["Mask", "Regions", "check_feather"]

TOP = 65535  # weight 1 of a map
MAX_FEATHER = 10_000
_DARK = 8  # a mask of bytes up to this is rather one of indices

_FORMS = "a path, a Pillow image, an array (H,W) or (K,H,W), a tensor, or a list with one per style"


@dataclass(frozen=True)
class Regions:
    """Where each style is seen.

    The result is the picture of ``base``, mixed with the others: ``base + sum map * (other -
    base)``, map in 0..65535.

    Attributes:
        base: index of a style, or None: the photo.
        maps: (index of a style, (H,W) uint16), only of styles that are seen somewhere.
    """

    base: int | None
    maps: tuple[tuple[int, np.ndarray], ...]

    @property
    def used(self) -> tuple[int, ...]:
        """Indices of the styles that have to run."""
        own = () if self.base is None else (self.base,)
        return own + tuple(index for index, _ in self.maps)


def check_feather(feather: object) -> int:
    """Checks a radius of soft edges and rounds it to whole pixels."""
    known = isinstance(feather, int | float | np.integer | np.floating)
    if isinstance(feather, bool) or not known:
        raise TypeError(f"feather is {feather!r}, must be a number of pixels")
    if not 0 <= feather <= MAX_FEATHER:  # type: ignore[operator]
        raise ValueError(f"feather is {feather}, must be 0..{MAX_FEATHER} pixels")
    return round(feather)  # type: ignore[call-overload, no-any-return]


class Mask:
    """A mask with soft edges, prepared for many frames.

    ``stylizer(frame, mask=m, feather=20)`` makes one for each call; a loop over frames saves that
    time with ``mask=fastgen.Mask(m, feather=20)``.

    Args:
        mask: a path, a Pillow image, an array or a tensor:

            - for two styles (H,W): 0 (black) is the first style, 1 (white) the second; bool, uint8
              0..255, uint16 0..65535 or floats in 0..1;
            - for more styles (H,W) of integers: the index of the style, 0 the first (in a file, the
              grey value, or a palette's index);
            - for any number K (K,H,W), or a list of K masks: the weight of each style. Where they
              add up to more than 1 they are divided by their sum; where to less, the rest is the
              photo.

            It is stretched to the picture, whatever its size and proportions.
        feather: an edge becomes a slope that begins and ends so many pixels of the picture beside
            it. Rounded to whole pixels.
        max_pixels: largest width*height of a file.

    Raises:
        TypeError: another type or dtype. ValueError: another shape, or values out of range.
        OSError: a file cannot be read.
    """

    def __init__(
        self, mask: Any, *, feather: float = 0, max_pixels: int = image_module.DEFAULT_MAX_PIXELS
    ) -> None:
        self.feather = check_feather(feather)
        if isinstance(mask, Mask):
            raise TypeError("mask is a fastgen.Mask already; give what it was made of")
        if isinstance(mask, list | tuple):
            if not mask:
                raise ValueError("mask is an empty list; give one mask per style")
            planes = [_grey(_read(item, max_pixels)) for item in mask]
            sizes = [f"{p.shape[1]}x{p.shape[0]}" for p in planes]
            if len(set(sizes)) > 1:
                raise ValueError(f"masks have the sizes {', '.join(sizes)}, must have one")
            self._planes, self._indices = planes, None
        else:
            array, self._indices = _read(mask, max_pixels)
            self._planes = list(array) if array.ndim == 3 else [array]
        self._known: tuple[Any, Regions] | None = None

    def regions(self, count: int, height: int, width: int) -> Regions:
        """The maps for a picture of this size and ``count`` styles; the last ones are kept."""
        key = count, height, width
        if self._known is None or self._known[0] != key:
            self._known = key, self._make(*key)
        return self._known[1]

    def digest(self) -> str:
        """Equal for equal masks, whatever they were made of."""
        from hashlib import sha256

        planes = self._planes if self._indices is None else [*self._planes, self._indices]
        hashed = sha256()
        for plane in planes:
            hashed.update(f"{plane.dtype}{plane.shape}".encode())
            hashed.update(plane.tobytes())
        return hashed.hexdigest()[:16]

    def check(self, count: int) -> None:
        """Checks that the mask is for ``count`` styles."""
        self._source(count)

    def _source(self, count: int) -> tuple[bool, Callable[[int, int], np.ndarray]]:
        """Whether weights always add up to 1, and a function: rows to maps (M,rows,w), 0..1.

        Where they do, the maps are those of all styles but the first.
        """
        planes = self._planes
        if len(planes) == 1 and count == 2 and planes[0].dtype.kind in "bf":
            return True, lambda a, b: _unit(planes[0][None, a:b])
        if len(planes) == 1 and count == 2 and planes[0].dtype in (np.uint8, np.uint16):
            top = int(planes[0].max())
            if 0 < top <= _DARK:
                raise ValueError(
                    f"mask is {planes[0].dtype} of values up to {top}, which is all but black; use "
                    "255 for white, bool, or for indices a signed type"
                )
            return True, lambda a, b: _unit(planes[0][None, a:b])
        if len(planes) == 1:
            labels = self._labels(count)
            wanted = np.arange(1, count)[:, None, None]
            return True, lambda a, b: (labels[None, a:b] == wanted).astype(np.float32)
        if len(planes) != count:
            raise ValueError(f"{len(planes)} masks for {count} styles; give one mask per style")

        def weights(first: int, last: int) -> np.ndarray:
            maps = np.stack([_unit(plane[first:last]) for plane in planes])
            return maps / np.maximum(maps.sum(axis=0), 1)

        return False, weights

    def _labels(self, count: int) -> np.ndarray:
        labels = self._planes[0] if self._indices is None else self._indices
        if labels.dtype.kind == "f":
            raise ValueError(
                f"mask is one float array for {count} styles; give integers 0..{count - 1}, or "
                f"({count},H,W) weights"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= count:
            raise ValueError(
                f"mask has the value {low if low < 0 else high}; for {count} styles values are "
                f"their indices, 0..{count - 1}, or give one mask per style"
            )
        return labels

    def _make(self, count: int, height: int, width: int) -> Regions:
        whole, rows_of = self._source(count)
        source = self._planes[0].shape
        maps = np.empty((count - whole, height, width), np.uint16)
        margin = 2 * self.feather  # what the border is repeated by
        for first, last in _resize.blocks(height, (width + margin) * len(maps)):
            if source == (height, width):
                part = rows_of(first, last)
            else:
                low, high = _resize.needed(source[0], height, first, last, "BILINEAR")
                place = low, source[0], width, height, first, last
                part = np.stack(
                    [_resize.resize_part(p, *place, "BILINEAR") for p in rows_of(low, high)]
                )
            maps[:, first:last] = _whole(_tent(part, self.feather, 2))
        if self.feather:
            for first, last in _resize.blocks(width, (height + margin) * len(maps)):
                columns = maps[:, :, first:last] * np.float32(1 / TOP)
                maps[:, :, first:last] = _whole(_tent(columns, self.feather, 1))
        if not whole:
            return Regions(None, tuple((i, m) for i, m in enumerate(maps) if m.any()))
        seen = [(i, m) for i, m in enumerate(maps, 1) if m.any()]
        if _covers(maps, len(seen)):
            return Regions(seen[0][0], tuple(seen[1:]))
        return Regions(0, tuple(seen))


def _covers(maps: np.ndarray, seen: int) -> bool:
    """Whether nothing is left for the first style (but for rounding)."""
    if not seen:
        return False
    height, width = maps.shape[1:]
    for first, last in _resize.blocks(height, width):
        if int(maps[:, first:last].sum(axis=0, dtype=np.int64).min()) < TOP - seen:
            return False
    return True


def _whole(x: np.ndarray) -> np.ndarray:
    x = x * x.dtype.type(TOP)
    return np.rint(x, out=x).clip(0, TOP, out=x)


def _unit(plane: np.ndarray) -> np.ndarray:
    top = {"u1": 255.0, "u2": 65535.0}.get(plane.dtype.str[1:], 1.0)
    return plane.astype(np.float32) / np.float32(top)


def _tent(x: np.ndarray, feather: int, axis: int) -> np.ndarray:
    """Convolution with a tent that is 0 ``feather + 1`` pixels from its middle: two boxes."""
    if not feather:
        return x
    size = feather + 1
    pad = [(0, 0)] * x.ndim
    pad[axis] = (feather, feather)
    x = np.pad(x, pad, mode="edge")
    before = (slice(None),) * axis
    for _ in range(2):
        shape = [n + (a == axis) for a, n in enumerate(x.shape)]
        total = np.zeros(shape)  # sums of all before; float64, so that whole numbers stay exact
        np.cumsum(x, axis=axis, out=total[(*before, slice(1, None))])
        x = total[(*before, slice(size, None))] - total[(*before, slice(None, -size))]
    x /= size**2
    return x


# ---------------------------------------------------------------------------- reading


def _read(mask: Any, max_pixels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask as an array (H,W) or (K,H,W); of a palette file also the indices of its colours."""
    if isinstance(mask, str | os.PathLike):
        return _from_pillow(image_module.decode(mask, max_pixels=max_pixels), f"{mask}: ")
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(mask, pillow.Image):
        return _from_pillow(mask, "")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
        mask = (mask.float() if mask.is_floating_point() else mask).numpy()
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"mask is of type {type(mask).__qualname__}, must be {_FORMS}")
    array = np.asarray(mask)
    if array.dtype.kind not in "buif":
        raise TypeError(f"mask has the dtype {array.dtype}, must be bool, integer or float")
    # What a type means must not depend on the order of its bytes.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"mask has the shape {array.shape}, must be (H,W) or (K,H,W)")
    if array.ndim == 3 and array.dtype.kind in "ui" and array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"masks have the dtype {array.dtype}, must be bool, uint8, uint16 or float")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"mask has values in {low:g}..{high:g}, floats must be in 0..1")
    return array, None


def _grey(read: tuple[np.ndarray, np.ndarray | None]) -> np.ndarray:
    if read[0].ndim != 2 or (read[0].dtype.kind in "ui" and read[0].dtype.itemsize > 2):
        raise ValueError(
            f"one of the masks is {read[0].dtype} of the shape {read[0].shape}, must be (H,W) of "
            "bool, uint8, uint16 or float"
        )
    return read[0]


def _from_pillow(picture: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    if 0 in picture.size:
        raise image_module.ImageError(f"{name}mask has no pixels")
    picture = image_module.upright(picture)
    indices = np.asarray(picture) if picture.mode == "P" else None
    if picture.mode.startswith("I") or picture.mode == "F":
        array = np.asarray(picture)
        top = 1.0 if picture.mode == "F" else 65535.0
        if not (array.min() >= 0 and array.max() <= top):
            raise image_module.ImageError(
                f"{name}mask of mode {picture.mode!r} has values in {array.min():g}.."
                f"{array.max():g}, must be in 0..{top:g}"
            )
        return array.astype(np.float32 if picture.mode == "F" else np.uint16), None
    if picture.mode == "1":
        return np.asarray(picture), None
    if picture.mode != "L":
        picture = picture.convert("RGB").convert("L")
    return np.asarray(picture), indices
