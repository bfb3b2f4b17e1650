"""Checks of the arrays that a run takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastgen.graph import Graph

__all__ = ["check_out", "constant_arrays", "float_array"]

_FLOAT32 = np.dtype(np.float32)


def float_array(name: str, array: Any) -> np.ndarray:
    """An input as contiguous float32; TypeError for what is no float array."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"input {name!r} is {type(array).__name__}, must be a numpy array")
    if array.dtype.kind != "f":
        raise TypeError(f"input {name!r} has the dtype {array.dtype}, must be float32")
    flags = array.flags
    if array.dtype is _FLOAT32 and flags.c_contiguous and flags.aligned:
        return array  # what np.require would return, in a tenth of its time
    return np.require(array, np.float32, ["C", "A"])


def constant_arrays(graph: Graph, inputs: Mapping[str, Any]) -> dict[int, dict[str, np.ndarray]]:
    """Copies of the inputs that a graph declares constant, by their batch size.

    Args:
        graph: whose inputs they are.
        inputs: float arrays by input name, all of the graph's constant inputs, or none at all.

    Returns:
        One entry, or none where ``inputs`` is empty.

    Raises:
        ValueError: unknown or missing inputs, or different batch sizes. TypeError: wrong types.
    """
    if not inputs:
        return {}
    expected = {item.name for item in graph.inputs if item.constant}
    if set(inputs) != expected:
        raise ValueError(
            f"constant inputs are {sorted(map(str, inputs))}, must be {sorted(expected)}"
        )
    arrays = {name: float_array(name, array).copy() for name, array in inputs.items()}
    if len({array.shape[:1] for array in arrays.values()}) > 1:
        raise ValueError("constant inputs have different batch sizes; give all of them one")
    return {len(next(iter(arrays.values()))): arrays}


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
