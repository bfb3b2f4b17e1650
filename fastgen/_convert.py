"""Arguments: images of every accepted type to the batch that backends take, and back; checks.

A backend takes one C-contiguous batch (N,H,W,3), uint8 0..255 or float32 0..1. ``to_batch`` makes
it from a path, a Pillow image, an array or a tensor and returns a function that turns the result
into the type, shape, dtype and device that came in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgen import image as image_module

__all__ = [
    "check_color",
    "check_names",
    "check_options",
    "check_strength",
    "to_batch",
    "to_device_batch",
]

Restore = Callable[[np.ndarray], Any]

_KINDS = "a path, a Pillow image, a numpy array (H,W,C) or a torch tensor (C,H,W)"
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_UINT16 = np.dtype(np.uint16)


def to_batch(
    image: Any, *, bgr: bool = False, max_pixels: int = image_module.DEFAULT_MAX_PIXELS
) -> tuple[np.ndarray, Restore]:
    """Converts an image of any accepted type.

    Args:
        image: see ``fastgen.stylize``; it is never modified.
        bgr: array or tensor channels are B, G, R(, A). The order is not changed here; a backend
            reads it.
        max_pixels: limit for files.

    Returns:
        The batch (N,H,W,3), possibly a view of the input, and the function that converts a result
        batch of the same shape and dtype back.

    Raises:
        TypeError: a type or dtype that is not an image.
        ValueError: a shape or values that are not an image.
        OSError: the file cannot be read.
    """
    image_module.check_max_pixels(max_pixels)
    if isinstance(image, np.ndarray):
        # Subclasses would bring rules of their own: a mask, a matrix that is always 2-D.
        return _from_array(np.asarray(image))
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(image, torch.Tensor):
        return _from_tensor(image, torch)
    if isinstance(image, str | os.PathLike):
        image = image_module.decode(image, max_pixels=max_pixels)
    elif not _is_pillow(image):
        name = type(image).__qualname__
        remedy = "; use Stylizer.stream for several" if isinstance(image, list | tuple) else ""
        raise TypeError(f"image is of type {name}, must be {_KINDS}{remedy}")
    if bgr:
        raise ValueError("bgr=True is for arrays and tensors; files and Pillow images are RGB")
    pixels = image_module.pixels_of(image)
    return pixels.rgb[None], lambda result: pixels.image(result[0])


def to_device_batch(image: Any, device: int) -> tuple[Any, Callable[[Any], Any]] | None:
    """A PyTorch tensor on a GPU as the batch (N,3,H,W) that it is, without a copy.

    Args:
        image: of any type.
        device: index of the GPU.

    Returns:
        The batch and the function that gives a result the shape that came in; None for everything
        that :func:`to_batch` has to convert.

    Raises:
        ValueError: floats outside 0..1.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(image, torch.Tensor) or not image.is_cuda:
        return None
    known = image.dtype in (torch.uint8, torch.float32) and image.layout == torch.strided
    if not known or image.device.index != device or image.ndim not in (3, 4):
        return None
    if image.shape[-3] != 3 or 0 in image.shape:
        return None
    batch = image.detach()
    if batch.dtype != torch.uint8:
        _check_range(batch)
    if batch.ndim == 4:
        return batch, lambda result: result
    return batch[None], lambda result: result[0]


def _is_pillow(image: object) -> bool:
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


# ---------------------------------------------------------------------------- arrays


def _from_array(array: np.ndarray) -> tuple[np.ndarray, Restore]:
    dtype = array.dtype
    _check_array_dtype(dtype)
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"array has the shape {array.shape}, must be (H,W), (H,W,C) or (N,H,W,C) with 1, 3 or "
            "4 channels"
        )
    if array.size == 0:
        raise ValueError(f"array has the shape {array.shape}: an empty image has no pixels")
    if array.ndim > 2 and array.shape[-1] not in (1, 3, 4):
        first = array.shape[-3]
        remedy = "; move the channels to the end" if first in (1, 3, 4) else ""
        raise ValueError(
            f"array has {array.shape[-1]} channels (shape {array.shape}), must be 1, 3 or 4 as the "
            f"last axis{remedy}"
        )
    batch = array[:, :, None] if array.ndim == 2 else array
    single = batch.ndim == 3
    batch = batch[None] if single else batch
    alpha = batch[..., 3:] if batch.shape[-1] == 4 else None
    pixels = _to_working(batch[..., :3], dtype)

    def restore(result: np.ndarray) -> np.ndarray:
        result = _from_working(result, dtype)
        if alpha is not None:
            result = np.concatenate([result, alpha], axis=-1, dtype=dtype)
        return result[0] if single else result

    return pixels, restore


def _check_array_dtype(dtype: np.dtype[Any]) -> None:
    native = dtype.newbyteorder("=")
    if native == np.uint8 or native == _UINT16 or native in _FLOATS:
        return
    if dtype.kind == "b":
        remedy = "multiply a mask by 255 and convert it to uint8"
    elif dtype.kind == "O":
        remedy = "stack images of one size into one array"
    elif dtype.kind in "iu":
        remedy = "convert it with astype(numpy.uint8) if the values are 0..255"
    else:
        remedy = "convert it to float32 in 0..1"
    raise TypeError(
        f"array has the dtype {dtype}, must be uint8, uint16, float16, float32 or float64; {remedy}"
    )


def _to_working(batch: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """uint8 or float32 (N,H,W,3), C-contiguous; a view of the input where that is possible."""
    if dtype.kind == "f":
        _check_range(batch)
        batch = batch.astype(np.float32, copy=False)
    elif dtype != np.uint8:
        batch = batch.astype(np.float32) / np.float32(65535.0)
    if batch.shape[-1] == 1:
        batch = np.repeat(batch, 3, axis=-1)
    return np.ascontiguousarray(batch)


def _from_working(result: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind == "u" and dtype != np.uint8:
        result = np.rint(result.astype(np.float64) * 65535.0)
    return result.astype(dtype, copy=False)


def _check_range(values: Any) -> None:
    """Checks that all values of a float array are finite and in [0,1] (one pass each way)."""
    low, high = float(values.min()), float(values.max())
    if low >= 0.0 and high <= 1.0:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("float image contains NaN or infinity, must be finite; use nan_to_num")
    remedy = "divide by 255" if low >= 0.0 and high <= 255.0 and high > 2.0 else "clip or scale it"
    raise ValueError(f"float image has values in {low:g}..{high:g}, must be in 0..1; {remedy}")


# ---------------------------------------------------------------------------- tensors


def _from_tensor(tensor: Any, torch: Any) -> tuple[np.ndarray, Restore]:
    allowed = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.dtype not in allowed:
        name = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(
            f"tensor has the dtype {name}, must be uint8 (0..255) or a float type (0..1)"
        )
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "on the meta device" if tensor.is_meta else f"{tensor.layout}, not dense"
        raise TypeError(f"tensor is {kind}, must hold one value for every pixel")
    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4):
        raise ValueError(f"tensor has the shape {shape}, must be (C,H,W) or (N,C,H,W)")
    if 0 in shape:
        raise ValueError(f"tensor has the shape {shape}: an empty image has no pixels")
    if shape[-3] not in (1, 3, 4):
        remedy = "; move the channels first" if shape[-1] in (1, 3, 4) else ""
        raise ValueError(
            f"tensor has {shape[-3]} channels (shape {shape}), must be 1, 3 or 4 as axis "
            f"{len(shape) - 3}{remedy}"
        )
    dtype, device, single = tensor.dtype, tensor.device, len(shape) == 3
    batch = tensor.detach().resolve_neg()
    batch = batch[None] if single else batch
    alpha = batch[:, 3:] if shape[-3] == 4 else None
    colours = batch[:, :3]
    if dtype != torch.uint8:
        _check_range(colours)
        colours = colours.to(torch.float32)
    colours = colours.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    pixels = np.ascontiguousarray(colours.to("cpu").numpy())

    def restore(result: np.ndarray) -> Any:
        out = torch.from_numpy(result).permute(0, 3, 1, 2).to(device=device, dtype=dtype)
        out = torch.cat([out, alpha], dim=1) if alpha is not None else out.contiguous()
        return out[0] if single else out

    return pixels, restore


# ---------------------------------------------------------------------------- options


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


def check_color(preserve_color: object) -> None:
    """Checks that a part of the photo's colours is True, False or a number in 0..1.

    Raises:
        TypeError: neither. ValueError: outside 0..1, or NaN.
    """
    number = isinstance(preserve_color, int | float | np.integer | np.floating | np.bool_)
    if not number:
        raise TypeError(
            f"preserve_color is {preserve_color!r}, must be True, False or a number in 0..1"
        )
    if not 0.0 <= preserve_color <= 1.0:  # type: ignore[operator]
        raise ValueError(f"preserve_color is {preserve_color}, must be in 0..1")


def check_names(backend: object, precision: object) -> None:
    """Checks that names are strings; TypeError otherwise."""
    for what, value in (("backend", backend), ("precision", precision)):
        if not isinstance(value, str):
            raise TypeError(f"{what} is {value!r}, must be a string such as 'auto'")


def check_options(strength: object, preserve_color: object, bgr: object) -> None:
    """Checks the options that every call has; TypeError or ValueError otherwise."""
    check_strength(strength)
    check_color(preserve_color)
    if not isinstance(bgr, bool | np.bool_):
        raise TypeError(f"bgr is {bgr!r}, must be True or False")
