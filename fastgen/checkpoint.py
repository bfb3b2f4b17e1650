"""Checkpoints: one ``.safetensors`` file with the graph, the weights and where they come from.

The weights are named by node (``down0.weight``). The safetensors metadata holds ``format``
(``"1"``), ``graph`` (JSON), ``meta`` (JSON) and ``meta_sha256``. ``meta["sha256"]`` covers graph
and weights, ``meta_sha256`` the text of ``meta``, so that no damaged licence or range passes.
Nothing is ever unpickled. Files are untrusted: whatever is wrong with one ends in a
:class:`CheckpointError` of one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastgen.errors import CheckpointError, GraphError
from fastgen.graph import Graph

__all__ = ["FORMAT", "Checkpoint", "atomic_write", "load_checkpoint", "save_checkpoint"]

FORMAT = 1
MAX_FILE_BYTES = 4 << 30
_DTYPES = {"F16": np.float16, "F32": np.float32}
_RANGE_KEYS = ("input_range", "output_range")
_ENTRIES = frozenset({"format", "graph", "meta", "meta_sha256"})


@dataclass
class Checkpoint:
    """A graph with its weights.

    Args:
        graph: the network.
        weights: weight name -> float32 array; exactly the names of ``graph.weight_shapes()``.
        meta: ``kind`` ("style"), ``input_range``, ``output_range`` ([low, high]),
            ``channel_order`` ("rgb"), ``style``, ``licence``, ``provenance`` (object), ``sha256``
            (of graph and tensors, set when saving), optionally ``activation_ranges`` and whatever
            else is JSON.
    """

    graph: Graph
    weights: dict[str, np.ndarray]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """What is known of (low, high) of values, for ``precision="int8"``.

        By the name of the graph's first input, and of convolutions and linear layers for theirs.
        """
        found = {self.graph.inputs[0].name: self.meta["input_range"]}
        found |= self.meta.get("activation_ranges", {})
        return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def save_checkpoint(path: str | os.PathLike[str], ckpt: Checkpoint, dtype: str = "float16") -> None:
    """Writes a checkpoint; the file appears complete or not at all.

    Args:
        path: the file, usually ``*.safetensors``.
        ckpt: what to write; its ``meta["sha256"]`` is updated.
        dtype: ``"float16"`` or ``"float32"`` for the stored weights.

    Raises:
        CheckpointError: weights that do not fit the graph, are not finite, or overflow the dtype.
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}, must be 'float16' or 'float32'")
    _check_meta(str(path), ckpt.meta)
    expected = ckpt.graph.weight_shapes()
    _check_names(str(path), expected, {k: v.shape for k, v in ckpt.weights.items()})
    tensors: dict[str, np.ndarray] = {}
    for key in expected:
        with np.errstate(over="ignore"):
            tensors[key] = np.ascontiguousarray(ckpt.weights[key], dtype=dtype)
        if not np.isfinite(tensors[key]).all():
            raise CheckpointError(f"weight {key!r} is not finite as {dtype}; not written: {path}")
    ckpt.meta["sha256"] = _digest(ckpt.graph, tensors)
    meta = json.dumps(ckpt.meta, sort_keys=True, allow_nan=False)
    metadata = {
        "format": str(FORMAT),
        "graph": ckpt.graph.to_json(),
        "meta": meta,
        "meta_sha256": _text_digest(meta),
    }
    atomic_write(path, save(tensors, metadata=metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint from an untrusted file.

    Args:
        path: a file written by :func:`save_checkpoint`.

    Returns:
        The checkpoint, weights as float32.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: as for any file.
        CheckpointError: anything wrong with the content.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, must be a .safetensors checkpoint")
    size = path.stat().st_size
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file")
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: {size} bytes; the limit is {MAX_FILE_BYTES}")
    metadata, tensors = _read(path, size)
    graph, meta = _read_metadata(path, metadata)
    try:
        expected = graph.weight_shapes()
    except GraphError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _check_names(str(path), expected, {k: v.shape for k, v in tensors.items()})
    if meta.get("sha256") != _digest(graph, {k: tensors[k] for k in expected}):
        raise CheckpointError(f"{path}: content does not match its sha256; the file was changed")
    weights = {}
    for key in expected:
        weights[key] = tensors[key].astype(np.float32)
        if not np.isfinite(weights[key]).all():
            raise CheckpointError(f"{path}: weight {key!r} contains NaN or infinity")
    return Checkpoint(graph, weights, meta)


def _read(path: Path, size: int) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors. The safetensors parser checks every offset against the file size."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        head = file.read(9)
    if len(head) < 9 or head[8:9] != b"{" or int.from_bytes(head[:8], "little") > size:
        raise CheckpointError(f"{path}: not a safetensors file; see `fastgen import --help`")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if "format" not in metadata or "graph" not in metadata:
                raise CheckpointError(
                    f"{path}: a safetensors file without a fastgen graph; see `fastgen import`"
                )
            if metadata["format"] != str(FORMAT):
                raise CheckpointError(
                    f"{path}: checkpoint format {metadata['format'][:20]!r}, this version of "
                    f"fastgen reads {FORMAT}; upgrade fastgen"
                )
            tensors = {}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                kind = file.get_slice(key).get_dtype()
                if kind not in _DTYPES:
                    raise CheckpointError(
                        f"{path}: weight {key[:60]!r} has the type {kind}, must be F16 or F32"
                    )
                tensors[key] = file.get_tensor(key)
    except SafetensorError as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{path}: damaged or truncated safetensors file: {reason}") from None
    return metadata, tensors


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[Graph, dict[str, Any]]:
    # An unknown entry may be a damaged name of a known one, which would switch its check off.
    unknown = sorted(metadata.keys() - _ENTRIES)
    if unknown:
        raise CheckpointError(
            f"{path}: unknown metadata entry {unknown[0][:60]!r}; a checkpoint has "
            f"{', '.join(sorted(_ENTRIES))}"
        )
    text = metadata.get("meta", "")
    if metadata.get("meta_sha256", _text_digest(text)) != _text_digest(text):
        raise CheckpointError(
            f"{path}: metadata does not match its sha256; the file was changed after it was written"
        )
    try:
        graph = Graph.from_json(metadata["graph"])
    except GraphError as error:
        raise CheckpointError(f"{path}: {error}") from None
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata is not JSON: {error}") from None
    _check_meta(str(path), meta)
    return graph, meta


def _check_meta(path: str, meta: object) -> None:
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: metadata must be an object")
    if not isinstance(meta.get("kind"), str):
        raise CheckpointError(f"{path}: metadata 'kind' is {meta.get('kind')!r}, must be a string")
    for key in _RANGE_KEYS:
        value = meta.get(key)
        if not isinstance(value, list | tuple) or len(value) != 2 or not _is_range(*value):
            text = repr(value)[:60]
            raise CheckpointError(
                f"{path}: metadata {key!r} is {text}, must be [low, high] with low below high"
            )
    measured = meta.get("activation_ranges", {})
    if not isinstance(measured, dict):
        raise CheckpointError(f"{path}: metadata 'activation_ranges' must be an object")
    for name, value in measured.items():
        pair = value if isinstance(value, list | tuple) and len(value) == 2 else (1, 0)
        if not _is_range(*pair) and not (pair[0] == pair[1] and _is_range(pair[0] - 1, pair[1])):
            raise CheckpointError(
                f"{path}: activation range of {name[:60]!r} is {repr(value)[:60]}, must be "
                "[low, high] with low not above high"
            )
    if meta.get("channel_order") != "rgb":
        order = meta.get("channel_order")
        raise CheckpointError(f"{path}: metadata 'channel_order' is {order!r}, must be 'rgb'")


def _is_range(low: object, high: object) -> bool:
    return (
        isinstance(low, int | float)
        and isinstance(high, int | float)
        and -1e9 < low < high < 1e9  # False for NaN too
    )


def _check_names(
    path: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        text = ", ".join(
            f"{len(keys)} {what} (first: {keys[0][:60]!r})"
            for what, keys in (("missing", missing), ("unknown", unknown))
            if keys
        )
        raise CheckpointError(f"{path}: weights do not fit the graph: {text}")
    for key, shape in expected.items():
        if tuple(found[key]) != shape:
            raise CheckpointError(
                f"{path}: weight {key!r} has the shape {tuple(found[key])}, must be {shape}"
            )


def _text_digest(text: str) -> str:
    # A lone surrogate cannot be encoded strictly, and must end in an error, not in a traceback.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digest(graph: Graph, tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 over the graph's JSON and, in execution order, each name, type and content."""
    digest = hashlib.sha256(graph.to_json().encode())
    for key, value in tensors.items():
        digest.update(f"\n{key} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes ``data`` under a temporary name in the same folder, then renames it.

    Raises:
        OSError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes private files; give the mode that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
