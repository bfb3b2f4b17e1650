"""Model repositories for NVIDIA Triton Inference Server: an ONNX model or a TensorRT engine.

The format is ``config.pbtxt`` (text of the message ``inference.ModelConfig``) beside numbered
folders with the model. Nothing of the server is needed to write it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from fastgen.checkpoint import Checkpoint, atomic_write
from fastgen.exporters.onnx import checkpoint_model
from fastgen.graph import Dim, Graph

__all__ = ["export_triton_server", "model_config"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_QUEUE_DELAY_US = 2000  # what a request may wait for others of its size


def export_triton_server(
    style: str | os.PathLike[str] | Checkpoint,
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    plan: str | os.PathLike[str] | None = None,
    fp16: bool = False,
    any_size: bool = False,
    max_batch: int | None = None,
) -> Path:
    """Adds a style to a model repository: ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``.

    Args:
        style: name of a shipped style, path of a checkpoint, or a ``Checkpoint``.
        repository: the folder that ``tritonserver --model-repository`` is given.
        name: the model's name; the style's unless given.
        plan: file of a TensorRT engine with float32 input and output in [0,1], as
            ``fastgen engine build -o`` makes them, instead of an ONNX model.
        fp16: see :func:`fastgen.export_onnx`.
        any_size: see :func:`fastgen.export_onnx`.
        max_batch: images in one run; for a plan what it was built for. 8, or 1 for a plan.

    Returns:
        The model's folder.

    Raises:
        ValueError: a name or a number that the server would not accept.
        FastgenError: the package ``onnx`` is not installed (not needed for a plan).
        OSError, CheckpointError: as for :func:`fastgen.load_checkpoint`.
    """
    from fastgen.checkpoint import load_checkpoint
    from fastgen.styles import style_path

    ckpt = style if isinstance(style, Checkpoint) else load_checkpoint(style_path(style))
    name = name or str(ckpt.meta.get("style", "")) or ckpt.graph.name
    batch = max_batch if max_batch is not None else (8 if plan is None else 1)
    config = model_config(ckpt.graph, name, max_batch=batch, plan=plan is not None)
    if plan is None:
        file = "model.onnx"
        data = checkpoint_model(ckpt, fp16=fp16, any_size=any_size).SerializeToString()
    else:
        file, data = "model.plan", Path(plan).read_bytes()
    folder = Path(repository) / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    # The server takes the one that its backend knows: a file of the other kind would stay unseen.
    for other in {"model.onnx", "model.plan"} - {file}:
        (folder / "1" / other).unlink(missing_ok=True)
    atomic_write(folder / "1" / file, data)
    atomic_write(folder / "config.pbtxt", config.encode())
    return folder


def model_config(graph: Graph, name: str, *, max_batch: int, plan: bool) -> str:
    """The text of ``config.pbtxt``.

    Args:
        graph: inputs and outputs; free sizes become -1.
        name: the model's name.
        max_batch: largest batch that the server makes.
        plan: for a TensorRT engine instead of an ONNX model.

    Raises:
        ValueError: a name or a batch that the server would not accept.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"model name {name!r} must be letters, digits, '_', '-' and '.'; set name")
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}, must be at least 1")
    shapes = graph.infer_shapes(graph.smallest_shapes())
    free = any(isinstance(d, Dim) for i in graph.inputs for d in i.shape[1:])
    lines = [
        f"name: {json.dumps(name)}",
        f'backend: "{"tensorrt" if plan else "onnxruntime"}"',
        f'default_model_filename: "model.{"plan" if plan else "onnx"}"',
        f"max_batch_size: {max_batch}",
    ]
    for item in graph.inputs:
        dims = [-1 if isinstance(d, Dim) else d for d in item.shape[1:]]
        lines += _tensor("input", item.name, dims)
    for output, value in graph.outputs.items():
        shape = shapes[value][1:]
        dims = [shape[0], *([-1] * len(shape[1:]) if free else shape[1:])]
        lines += _tensor("output", output, dims)
    if max_batch > 1:  # requests of one size are run together
        lines += ["dynamic_batching {", f"  max_queue_delay_microseconds: {_QUEUE_DELAY_US}", "}"]
    for key, number in _size_rule(graph).items():
        lines += _parameter(key, str(number))
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, dims: list[int]) -> list[str]:
    return [
        f"{kind} {{",
        f"  name: {json.dumps(name)}",
        "  data_type: TYPE_FP32",
        f"  dims: [ {', '.join(map(str, dims))} ]",
        "}",
    ]


def _parameter(key: str, value: str) -> list[str]:
    return [
        "parameters {",
        f"  key: {json.dumps(key)}",
        f"  value {{ string_value: {json.dumps(value)} }}",
        "}",
    ]


def _size_rule(graph: Graph) -> dict[str, Any]:
    """What clients must keep to: sides in multiples of, and at least."""
    sides = [d for i in graph.inputs for d in i.shape[2:] if isinstance(d, Dim)]
    if not sides:
        return {}
    return {
        "size_divisor": max(d.divisor for d in sides),
        "size_minimum": max(d.minimum for d in sides),
    }
