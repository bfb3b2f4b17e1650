"""Checks of the arrays that a run takes."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_out", "float_array"]


def float_array(name: str, array: Any) -> np.ndarray:
    """An input as contiguous float32; TypeError for what is no float array."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"input {name!r} is {type(array).__name__}, must be a numpy array")
    if array.dtype.kind != "f":
        raise TypeError(f"input {name!r} has the dtype {array.dtype}, must be float32")
    return np.require(array, np.float32, ["C", "A"])


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``out=`` of a run, checked."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}, must be a numpy array")
    if out.shape != tuple(shape) or out.dtype != dtype or not out.flags.writeable:
        raise ValueError(
            f"out has the shape {out.shape} and dtype {out.dtype}, must be a writable array of "
            f"the shape {tuple(shape)} and dtype {dtype}"
        )
    return out
