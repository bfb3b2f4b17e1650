"""Reading a foreign state dict safely, and fitting it to a graph name by name."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.errors import CheckpointError
from fastgen.graph import Graph

__all__ = ["blocks_of", "fit", "read_state_dict", "width_of"]

State = Mapping[str, np.ndarray]


def read_state_dict(path: Path, supported: str) -> dict[str, np.ndarray]:
    """Tensors of a file written by ``torch.save``, as float32 arrays by name.

    A ``state_dict`` wrapper is opened and a ``module.`` prefix on every name is removed.

    Args:
        path: the file; old files that are not zip archives are read too.
        supported: list of formats for error messages.

    Raises:
        CheckpointError: not such a file, or anything in it but tensors of finite numbers.
        OSError: the file cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, must be a checkpoint file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise CheckpointError(f"{path}: empty file (0 bytes); supported: {supported}")
    if head[8:9] == b"{":
        raise CheckpointError(
            f"{path}: already a safetensors file; a fastgen checkpoint needs no import (use its "
            f"path as the style). Supported for import: {supported}"
        )
    if not head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive; a bare pickle
        raise CheckpointError(f"{path}: not a file of torch.save; supported: {supported}")
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about newer pickles, which are then read or refused
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: not a file of weights only, so it is not opened (it could run code); save "
            f"its state_dict alone. Supported: {supported}"
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyTorch's first sentence; the others ask for bug reports.
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0][:120]
        raise CheckpointError(
            f"{path}: not a checkpoint that PyTorch can read ({reason}); supported: {supported}"
        ) from None
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping) or not data:
        kind = type(data).__name__
        raise CheckpointError(f"{path}: holds a {kind}, not named weights; supported: {supported}")
    state = {key: _array(path, key, value, torch) for key, value in data.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _array(path: Path, key: object, value: Any, torch: Any) -> np.ndarray:
    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
        raise CheckpointError(
            f"{path}: entry {key!r:.60} is a {type(value).__name__}, must be a tensor with a name"
        )
    dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    if not dense or value.is_complex():
        kind = f"{str(value.dtype).removeprefix('torch.')}, {value.layout}, {value.device}"
        raise CheckpointError(
            f"{path}: weight {key[:60]!r} is {kind}; must be a dense tensor of real numbers"
        )
    # A view may claim any size over one stored number.
    stored = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > stored:
        raise CheckpointError(
            f"{path}: weight {key[:60]!r} has the shape {tuple(value.shape)}, but the file stores "
            f"{stored} bytes of it"
        )
    array = value.detach().to("cpu", torch.float32).numpy().copy()
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path}: weight {key[:60]!r} contains NaN or infinity")
    return array


def width_of(state: State, key: str) -> int:
    """Channels of the first layer, from the shape (width, 3, 9, 9) of the weight ``key``."""
    if key not in state:
        raise CheckpointError(f"weight {key!r} is missing")
    shape = state[key].shape
    if len(shape) != 4 or shape[1:] != (3, 9, 9) or not 1 <= shape[0] <= 256:
        raise CheckpointError(
            f"weight {key!r} has the shape {shape}, must be (width, 3, 9, 9) with width in 1..256"
        )
    return shape[0]


def blocks_of(state: State) -> int:
    """Number of residual blocks: the highest i of the names ``res<i>.``; 0 if there is none."""
    found = [k.split(".")[0].removeprefix("res") for k in state if k.startswith("res")]
    return max((int(i) for i in found if i.isdecimal() and int(i) <= 32), default=0)


def fit(state: State, names: Mapping[str, str], graph: Graph) -> dict[str, np.ndarray]:
    """Renames weights and checks that exactly the expected ones are there.

    Args:
        state: foreign name -> array.
        names: foreign layer name -> node name, for every node with weights.
        graph: the graph to fill.

    Returns:
        float32 weights by the graph's names.

    Raises:
        CheckpointError: names the missing, unknown or wrongly shaped weights.
    """
    foreign = {node: layer for layer, node in names.items()}
    expected = {}
    for key in graph.weight_shapes():
        node, _, parameter = key.rpartition(".")
        expected[f"{foreign[node]}.{parameter}"] = key
    missing = [k for k in expected if k not in state]
    unknown = [k for k in state if k not in expected]
    for what, keys in (("missing", missing), ("unknown", unknown)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            listed = ", ".join(repr(k[:60]) for k in keys[:5])
            raise CheckpointError(f"{what} weights: {listed}{more}")
    shapes = graph.weight_shapes()
    weights = {}
    for theirs, ours in expected.items():
        if state[theirs].shape != shapes[ours]:
            raise CheckpointError(
                f"weight {theirs!r} has the shape {state[theirs].shape}, must be {shapes[ours]}"
            )
        weights[ours] = np.asarray(state[theirs], np.float32)
    return weights
