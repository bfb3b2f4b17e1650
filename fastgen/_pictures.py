"""Pictures of fixed size for generators: files, Pillow images and arrays to (N,C,H,W) in 0..1."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastgen import image as image_module

__all__ = ["to_planes"]


def to_planes(what: str, images: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """One picture or several as planes.

    Files and Pillow images are stretched to the size and turned to grey or colour, as in training;
    arrays must have the size and the channels already.

    Args:
        what: for messages, ``"style"`` or ``"content"``.
        images: a path or Pillow image, an array (H,W), (H,W,C), (N,H,W) or (N,H,W,C) of uint8
            0..255 or floats 0..1, or a list of any of these.
        shape: (C,H,W) that the model takes.

    Returns:
        (N,C,H,W) float32 in 0..1.

    Raises:
        ValueError: nothing at all, another size, other channels, or values outside 0..1.
        TypeError: something that is no picture.
        OSError: a file that cannot be read.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError(f"{what} is an empty list; give at least one image")
        return np.concatenate([to_planes(what, image, shape) for image in images])
    if isinstance(images, str | os.PathLike):
        return _from_pillow(image_module.decode(images), shape)
    if not isinstance(images, np.ndarray) and hasattr(images, "convert"):
        return _from_pillow(images, shape)
    if not isinstance(images, np.ndarray):
        kind = type(images).__qualname__
        raise TypeError(
            f"{what} is of type {kind}, must be a path, a Pillow image, an array, or a list of them"
        )
    return _from_array(what, images, shape)


def _from_pillow(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    channels, height, width = shape
    pixels = image_module.pixels_of(image).rgb
    if pixels.dtype != np.uint8:
        pixels = np.round(np.asarray(pixels) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if channels == 1:
        picture = picture.convert("L")
    small = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    planes = np.asarray(small, np.float32) / 255
    return planes[None, None] if channels == 1 else planes.transpose(2, 0, 1)[None]


def _from_array(what: str, array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    sizes: tuple[tuple[int, ...], ...] = ((height, width, channels),)
    if channels == 1:
        sizes += ((height, width),)
    found = array.shape
    if array.size == 0 or not any(found == s or found[1:] == s for s in sizes):
        wanted = f"({height},{width})" if channels == 1 else f"({height},{width},{channels})"
        raise ValueError(
            f"{what} has the shape {found}, this model takes {wanted} or several of them; "
            "files and Pillow images are resized"
        )
    if array.dtype == np.uint8:
        values = array.astype(np.float32) / 255
    elif array.dtype.kind == "f":
        values = array.astype(np.float32)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{what} has values in {low:g}..{high:g}, floats must be in 0..1; divide by 255 "
                "or clip"
            )
    else:
        raise TypeError(f"{what} has the dtype {array.dtype}, must be uint8 or float32")
    planes = values.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes)
